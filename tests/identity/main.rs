//! A sidecar that makes its own key: the real proxy program against the real signing server and the real ADS server.
//! Only the API server's answers about tokens are played; a real one is asked in the tests on the cluster.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod plane;
mod proxy;
mod stage;

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use oxmesh_tests::eventually;

use crate::{plane::Plane, proxy::Sidecar};

const LIMIT: Duration = Duration::from_secs(60);

/// Begins a connection with the sidecar's inbound listener and returns the serial number of its certificate.
async fn serial_at(plane: &Plane, sidecar: &Sidecar) -> anyhow::Result<String> {
    let (_, serial) = plane.connect_as_peer(sidecar.inbound()).await?;
    Ok(serial)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_gets_its_certificate_by_its_own_key_and_serves_with_it() {
    let plane = Plane::start(Duration::from_secs(3600)).await;
    let sidecar = Sidecar::start(&plane, "buyer-1:uid-1");
    sidecar.ready().await;
    let (_, serial) =
        eventually("a peer's handshake", LIMIT, || plane.connect_as_peer(sidecar.inbound())).await.unwrap();
    assert!(!serial.is_empty());
    assert_eq!(plane.key_homes(), ["pod"], "the controller knows the sidecar by its certificate");
    assert_eq!(plane.issuer_keys(), None, "the controller has made no key");
    let key = sidecar.identity().join("..data/key.pem");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let key = fs::read_to_string(key).unwrap();
    let inner = key.lines().nth(1).unwrap();
    assert!(!sidecar.admin("/config_dump").await.1.contains(inner), "the key is on an admin page");
    assert!(!sidecar.log().contains(inner), "the key is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_while_serving_and_no_connection_is_cut() {
    let plane = Plane::start(Duration::from_secs(9)).await;
    let sidecar = Sidecar::start(&plane, "buyer-1:uid-1");
    sidecar.ready().await;
    let (mut held, first) =
        eventually("a peer's handshake", LIMIT, || plane.connect_as_peer(sidecar.inbound())).await.unwrap();
    plane::echo(&mut held, "before").await.unwrap();
    let mut serials = vec![first];
    while serials.len() < 4 {
        let serial = serial_at(&plane, &sidecar).await.expect("every handshake succeeds while certificates change");
        if !serials.contains(&serial) {
            serials.push(serial);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    plane::echo(&mut held, "after").await.unwrap();
    assert_eq!(sidecar.admin("/ready").await.0, 200);
    let renewals = sidecar.stat("identity.certificates_obtained").await;
    assert!(renewals >= 4, "{renewals}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_sidecar_says_why_and_starts_as_soon_as_its_token_is_good() {
    let plane = Plane::start(Duration::from_secs(3600)).await;
    for (token, code) in [
        ("audience", "token_audience"),
        ("expired", "token_refused"),
        ("seller-1:uid-2", "pod_differs"),
        ("gone:uid-9", "pod_unknown"),
        ("buyer-1:uid-of-a-predecessor", "pod_unknown"),
    ] {
        let sidecar = Sidecar::start(&plane, token);
        let said = eventually("the reason on /ready", LIMIT, || async {
            let (status, body) = sidecar.admin("/ready").await;
            anyhow::ensure!(status == 503 && body.contains(code), "{status} {body}");
            Ok(body)
        });
        let said = said.await.unwrap();
        assert!(said.starts_with("PRE_INITIALIZING\nno certificate yet: signing server"), "{said}");
        assert!(fs::read_dir(sidecar.identity()).unwrap().next().is_none(), "nothing is written");
        assert!(plane.key_homes().is_empty(), "no configuration is asked for");
        assert!(sidecar.stat("identity.requests_refused").await >= 1);
        if token == "audience" {
            sidecar.token("buyer-1:uid-1");
            sidecar.ready().await;
        }
        drop(sidecar);
        eventually("the sidecar is gone", LIMIT, || async {
            anyhow::ensure!(plane.key_homes().is_empty());
            Ok(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_signer_is_only_told_and_a_restart_uses_what_is_there() {
    let plane = Plane::start(Duration::from_secs(60)).await;
    let mut sidecar = Sidecar::start(&plane, "buyer-1:uid-1");
    sidecar.ready().await;
    let first = eventually("a peer's handshake", LIMIT, || serial_at(&plane, &sidecar)).await.unwrap();
    plane.stop_signer().await;
    sidecar.restart(&plane);
    sidecar.ready().await;
    let again = eventually("a peer's handshake", LIMIT, || serial_at(&plane, &sidecar)).await.unwrap();
    assert_eq!(first, again);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impostor_of_the_signing_server_gets_no_token() {
    let plane = Plane::start(Duration::from_secs(3600)).await;
    let other = Plane::start(Duration::from_secs(3600)).await;
    let sidecar = Sidecar::start_with(&plane, "buyer-1:uid-1", other.roots_pem(), plane::NAME);
    let wrong_name =
        Sidecar::start_with(&plane, "buyer-1:uid-1", plane.roots_pem(), "another.osm-system.svc.cluster.local");
    for sidecar in [&sidecar, &wrong_name] {
        eventually("the reason on /ready", LIMIT, || async {
            let (_, body) = sidecar.admin("/ready").await;
            anyhow::ensure!(body.contains("TLS: invalid peer certificate"), "{body}");
            Ok(())
        })
        .await
        .unwrap();
    }
    assert_eq!(plane.tokens_seen(), 0);
}
