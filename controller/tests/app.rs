//! The control plane from files to the wire.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod plane;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type as SecretType;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use oxmesh_controller::app::{App, Authority, Options, Source};
use oxmesh_controller::settings::Settings;
use oxmesh_controller::xds::Kind;
use plane::{Plane, Whole, delta, mesh_config, pod, shop, sidecar};
use prost::Message as _;

const CERT: &[&str] = &["service-cert:shop/buyer"];
const STORE: &[&str] = &["shop/store|8080"];

fn files(permissive: bool, validity: &str) -> Vec<(&'static str, String)> {
    vec![("mesh.yaml", mesh_config(permissive, validity)), ("shop.yaml", shop())]
}

fn names(response: &DiscoveryResponse) -> Vec<&[u8]> {
    response.resources.iter().map(|any| any.value.as_slice()).collect()
}

fn leaf(response: &DiscoveryResponse) -> Vec<u8> {
    let secret = Secret::decode(response.resources[0].value.as_slice()).unwrap();
    let Some(SecretType::TlsCertificate(pair)) = secret.r#type else { panic!("no certificate") };
    pair.certificate_chain.unwrap().encode_to_vec()
}

fn addresses(response: &DiscoveryResponse) -> usize {
    let assignment = ClusterLoadAssignment::decode(response.resources[0].value.as_slice()).unwrap();
    assignment.endpoints.iter().map(|locality| locality.lb_endpoints.len()).sum()
}

#[tokio::test]
async fn a_sidecar_started_from_its_directory_gets_everything_in_order() {
    let plane = Plane::start(&files(true, "24h")).await;
    let wanted: &[(Kind, &[&str])] =
        &[(Kind::Listener, &[]), (Kind::Secret, CERT), (Kind::Endpoint, STORE), (Kind::Cluster, &[])];
    let mut stream = Whole::open(&plane, &sidecar("buyer"), wanted).await;
    let mut got = vec![];
    for _ in 0..4 {
        let names = [STORE, CERT, &[], &[]];
        let response = stream.unanswered().await;
        assert!(!response.resources.is_empty() && names.len() == 4);
        got.push(Kind::from_type_url(&response.type_url).unwrap());
    }
    got.sort();
    assert_eq!(got, [Kind::Cluster, Kind::Endpoint, Kind::Listener, Kind::Secret]);
    let (_, config) = plane.page("/debug/config/buyer").await;
    assert!(config.contains("127.0.1.2:8080"), "{config}");
    assert!(!config.contains("PRIVATE"), "{config}");
    plane.app.stop().await;
}

#[tokio::test]
async fn a_new_pod_reaches_proxies_as_endpoints_and_nothing_else() {
    let plane = Plane::start(&files(true, "24h")).await;
    let wanted: &[(Kind, &[&str])] = &[(Kind::Cluster, &[]), (Kind::Endpoint, STORE)];
    let mut stream = Whole::open(&plane, &sidecar("buyer"), wanted).await;
    stream.next(&[]).await;
    let (_, first) = stream.next(STORE).await;
    assert_eq!(addresses(&first), 1);
    let second = pod("store", "127.0.1.9").replace("name: store, namespace", "name: store-2, namespace");
    let second = second.replace("osm-proxy-uuid: store", "osm-proxy-uuid: store-2");
    plane.write("more.yaml", &second);
    let (kind, response) = stream.next(STORE).await;
    assert_eq!((kind, addresses(&response)), (Kind::Endpoint, 2));
    assert!(stream.is_silent(Duration::from_millis(300)).await);
    plane.app.stop().await;
}

#[tokio::test]
async fn rotation_sends_a_new_certificate_and_nothing_else() {
    let plane = Plane::start(&files(true, "4s")).await;
    let wanted: &[(Kind, &[&str])] = &[(Kind::Cluster, &[]), (Kind::Secret, CERT)];
    let mut stream = Whole::open(&plane, &sidecar("buyer"), wanted).await;
    stream.next(&[]).await;
    let (_, first) = stream.next(CERT).await;
    let (kind, second) = stream.next(CERT).await;
    assert_eq!(kind, Kind::Secret);
    assert_ne!(leaf(&first), leaf(&second));
    let (kind, third) = stream.next(CERT).await;
    assert_eq!(kind, Kind::Secret);
    assert_ne!(leaf(&second), leaf(&third));
    plane.app.stop().await;
}

#[tokio::test]
async fn nobody_gets_the_certificate_of_another() {
    let plane = Plane::start(&files(true, "24h")).await;
    for (own, other) in [("buyer", "store"), ("store", "buyer")] {
        let foreign = format!("service-cert:shop/{other}");
        let wanted: &[(Kind, &[&str])] = &[(Kind::Secret, &[&foreign]), (Kind::Cluster, &[])];
        let mut stream = Whole::open(&plane, &sidecar(own), wanted).await;
        assert_eq!(stream.next(&[]).await.0, Kind::Cluster);
        assert!(stream.is_silent(Duration::from_millis(200)).await);
    }
    plane.app.stop().await;
}

#[tokio::test]
async fn a_restart_changes_nothing_for_a_proxy() {
    let plane = Plane::start(&files(true, "24h")).await;
    let before = delta(&plane, &sidecar("buyer"), Kind::Cluster, &[]).await;
    assert!(before.resources.len() > 1);
    let held: Vec<_> = before.resources.into_iter().map(|r| (r.name, r.version)).collect();
    let plane = plane.restart().await;
    let after = delta(&plane, &sidecar("buyer"), Kind::Cluster, &held).await;
    assert_eq!((after.resources.len(), after.removed_resources.len()), (0, 0));
    plane.app.stop().await;
}

#[tokio::test]
async fn a_bad_file_is_reported_and_changes_nothing() {
    let plane = Plane::start(&files(true, "24h")).await;
    let mut stream = Whole::open(&plane, &sidecar("buyer"), &[(Kind::Cluster, &[])]).await;
    let (_, first) = stream.next(&[]).await;
    plane.write("shop.yaml", "kind: [\n");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while plane.app.findings().is_empty() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(stream.is_silent(Duration::from_millis(200)).await);
    let again = delta(&plane, &sidecar("buyer"), Kind::Cluster, &[]).await;
    assert_eq!(again.resources.len(), names(&first).len());
    let (status, page) = plane.page("/debug/findings").await;
    assert_eq!(status, 200);
    assert!(page.contains("shop.yaml") && page.contains("stays in force"), "{page}");
    plane.app.stop().await;
}

#[tokio::test]
async fn the_admin_pages_tell_how_proxies_take_their_configuration() {
    let plane = Plane::start(&files(true, "24h")).await;
    assert_eq!(plane.page("/health/ready").await, (200, "ready\n".into()));
    assert_eq!(plane.page("/health/alive").await.0, 200);
    let mut stream = Whole::open(&plane, &sidecar("buyer"), &[(Kind::Cluster, &[])]).await;
    let (_, response) = stream.next(&[]).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while plane.app.proxies().first().is_none_or(|p| p.kinds.first().is_none_or(|k| k.acked.is_none())) {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (_, page) = plane.page("/debug/proxies").await;
    let version = &response.version_info;
    assert!(page.contains(&format!("\"acked\":\"{version}\"")), "{page}");
    assert!(page.contains("\"identity\":\"shop/buyer\""), "{page}");
    let (_, metrics) = plane.page("/metrics").await;
    assert!(metrics.contains("osm_proxy_connect_count 1\n"), "{metrics}");
    assert!(metrics.contains("osm_cert_issued_count 1\n"), "{metrics}");
    let (_, services) = plane.page("/debug/services").await;
    assert!(services.contains("shop/store") && services.contains("10.96."), "{services}");
    assert_eq!(plane.page("/debug/config/nobody").await.0, 404);
    plane.app.stop().await;
}

#[tokio::test]
async fn what_keeps_it_from_starting_is_said_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let any = ([127, 0, 0, 1], 0).into();
    let options = Options {
        source: Source::Folders(vec![dir.path().join("absent")]),
        authority: Authority::State(dir.path().join("state")),
        xds_address: any,
        identity_address: any,
        admin_address: any,
        xds_names: vec![],
        xds_ips: vec![],
        spiffe: false,
        inject: None,
        settings: Settings::default(),
    };
    let error = App::start(options.clone()).await.unwrap_err().to_string();
    assert!(error.contains("absent can't be read"), "{error}");

    let good = Options { source: Source::Folders(vec![dir.path().to_owned()]), ..options };
    let app = App::start(good.clone()).await.unwrap();
    let taken = Options { admin_address: app.admin_address(), ..good.clone() };
    let error = App::start(taken).await.unwrap_err().to_string();
    assert!(error.contains("--admin-addr"), "{error}");
    app.stop().await;

    fs::set_permissions(dir.path().join("state/ca.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let error = App::start(good).await.unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
}
