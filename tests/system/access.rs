//! Who may: access control, permissive mode, identity, plaintext.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use oxmesh::pod::User;
use oxmesh_controller::identity::{Ca, LeafRequest};
use oxmesh_tests::{
    eventually,
    mesh::{Planes, TestMesh},
    shop,
};

use crate::{matrix, ours};

pub(crate) fn trials(trials: &mut Vec<Trial>) {
    matrix(trials, "a thief is refused while the client is served", None, thief);
    ours(trials, "a refusal says why in access log and metric", None, says_why);
    matrix(trials, "policy and permissive mode follow their objects live", None, switching);
    matrix(trials, "plaintext straight to a pod's port is reset over IPv4 and IPv6", None, plaintext);
    ours(trials, "no certificate, a foreign one, and one of another trust domain are refused", None, certificates);
}

const STORE: &str = "http://store-v1.shop/books";
const PATIENCE: Duration = Duration::from_secs(15);

async fn refused(mesh: &TestMesh, from: &str, url: &str) -> Result<()> {
    match mesh.curl(from, &[url]).await {
        Ok(answer) if (200..300).contains(&answer.status) => bail!("{from} was let through: {}", answer.text),
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn thief(planes: Planes) -> Result<()> {
    let mesh = TestMesh::start(&shop::files(), planes).await?;
    mesh.served("client", STORE).await?;
    for _ in 0..5 {
        refused(&mesh, "thief", STORE).await?;
    }
    mesh.no_nacks().await
}

/// The thief knows the way (it speaks TLS to the store's pod itself, with its own valid certificate), and is stopped by the
/// server: at the connection, since no rule names it. The client, on a path that no rule names, is stopped at the request.
async fn says_why(planes: Planes) -> Result<()> {
    let narrow = shop::policy().replace("pathRegex: \".*\"", "pathRegex: \"/books|/status/.*\"");
    let mut files = shop::files();
    files.retain(|(name, _)| *name != "policy.yaml");
    files.push(("policy.yaml", narrow));
    let mesh = TestMesh::start(&files, planes).await?;
    mesh.served("client", STORE).await?;
    let answer = with_certificate_of(&mesh, "thief").await?;
    ensure!(answer.is_empty(), "the thief was answered {answer:?}");
    let answer = mesh.curl("client", &["http://store-v1.shop/secrets"]).await?;
    ensure!(answer.status == 404, "a path that no rule names was answered {}", answer.text);
    let reasons = ["rbac_access_denied_matched_policy[none]", "route_not_found"];
    eventually("the log names both refusals", Duration::from_secs(5), || {
        let log = mesh.access_log("store-v1");
        async move {
            let log = log?;
            for reason in reasons {
                ensure!(log.iter().any(|l| l["response_code_details"] == reason), "no line with {reason} in {log:?}");
            }
            Ok(())
        }
    })
    .await?;
    let metrics = mesh.prometheus("store-v1").await?;
    let counted = metrics.lines().any(|l| l.contains("rbac_denied{") && l.contains("network-") && !l.ends_with(" 0"));
    ensure!(counted, "no metric counts the refusal");
    Ok(())
}

/// In the pod of `who`, outside of redirection (as the sidecar's user), OpenSSL speaks mTLS itself to store-v1, with a
/// certificate of `who` that the mesh's authority issued.
async fn with_certificate_of(mesh: &TestMesh, who: &str) -> Result<String> {
    let dir = mesh.shop(who)?.pod().namespace().folder().join("identity");
    std::fs::create_dir_all(&dir)?;
    let ca = Ca::open_or_create(&mesh.session().topology().folder().join("ca"))?;
    let files = write_leaf(&ca, &dir, &format!("{who}.shop.cluster.local"))?;
    request_over_tls(mesh, who, &files).await
}

/// What comes back for a request over TLS with the mesh's ALPN and server name; empty when the handshake is refused.
async fn request_over_tls(mesh: &TestMesh, who: &str, args: &str) -> Result<String> {
    let ip = mesh.shop("store-v1")?.pod().ip();
    let script = format!(
        "printf 'GET /books HTTP/1.1\\r\\nhost: store-v1.shop\\r\\nconnection: close\\r\\n\\r\\n' | timeout 10 openssl s_client -quiet \
         -ign_eof -connect {ip}:8080 -servername store-v1.shop.svc.cluster.local -alpn osm {args} 2>/dev/null || true"
    );
    Ok(mesh.shop(who)?.pod().namespace().exec(User::Id(1500), &["bash", "-c", &script]).await?)
}

async fn switching(planes: Planes) -> Result<()> {
    let mesh = TestMesh::start(&shop::files(), planes).await?;
    mesh.served("client", STORE).await?;
    mesh.remove("policy.yaml")?;
    eventually("without TrafficTarget the client is refused", PATIENCE, || refused(&mesh, "client", STORE)).await?;
    mesh.write("config.yaml", &shop::mesh_config(true, false, "24h"))?;
    mesh.served("client", STORE).await.context("in permissive mode")?;
    mesh.served("thief", STORE).await.context("in permissive mode")?;
    mesh.write("config.yaml", &shop::mesh_config(false, false, "24h"))?;
    eventually("back in policy mode the thief is refused", PATIENCE, || refused(&mesh, "thief", STORE)).await?;
    eventually("back in policy mode the client is refused", PATIENCE, || refused(&mesh, "client", STORE)).await?;
    mesh.write("policy.yaml", &shop::policy())?;
    mesh.served("client", STORE).await.context("with the TrafficTarget back")?;
    mesh.no_nacks().await
}

/// From the node, which is no part of the mesh: curl's exit status 56 is "connection reset", 52 "empty reply".
async fn plaintext(planes: Planes) -> Result<()> {
    let mesh = TestMesh::start(&shop::files(), planes).await?;
    mesh.served("client", STORE).await?;
    let store = mesh.shop("store-v1")?.pod();
    for ip in store.ips() {
        for port in [8080, 9001] {
            let url = match ip {
                std::net::IpAddr::V4(ip) => format!("http://{ip}:{port}/books"),
                std::net::IpAddr::V6(ip) => format!("http://[{ip}]:{port}/books"),
            };
            let node = mesh.session().topology().node();
            let script = format!("curl -s -g --max-time 10 {url}; echo status $?");
            let out = node.exec(User::Root, &["bash", "-c", &script]).await?;
            ensure!(out.trim() == "status 56" || out.trim() == "status 52", "{url}: {out}");
        }
    }
    let log =
        std::fs::read_to_string(mesh.shop("store-v1")?.apps()[0].log().unwrap_or(std::path::Path::new("/dev/null")))?;
    ensure!(!log.contains("/books\" from"), "the application saw a plaintext request");
    Ok(())
}

async fn certificates(planes: Planes) -> Result<()> {
    let mesh = TestMesh::start(&shop::files(), planes).await?;
    mesh.served("client", STORE).await?;
    let allowed = with_certificate_of(&mesh, "client").await?;
    ensure!(allowed.contains(" 200 "), "the client's own certificate was refused: {allowed}");
    let refused = request_over_tls(&mesh, "thief", "").await?;
    ensure!(refused.is_empty(), "without a certificate: {refused}");
    // A certificate of the same name by another authority.
    let dir = mesh.shop("thief")?.pod().namespace().folder().join("foreign");
    let foreign = Ca::open_or_create(&dir)?;
    let refused = request_over_tls(&mesh, "thief", &write_leaf(&foreign, &dir, "client.shop.cluster.local")?).await?;
    ensure!(refused.is_empty(), "with a foreign authority's certificate: {refused}");
    // Our authority, another trust domain.
    let ca = Ca::open_or_create(&mesh.session().topology().folder().join("ca"))?;
    let refused = request_over_tls(&mesh, "thief", &write_leaf(&ca, &dir, "client.shop.other.domain")?).await?;
    ensure!(refused.is_empty(), "another trust domain: {refused}");
    Ok(())
}

/// Issues a leaf of this name into `dir`, readable by the sidecar's user; gives OpenSSL's options for it.
fn write_leaf(ca: &Ca, dir: &Path, name: &str) -> Result<String> {
    let request = LeafRequest {
        common_name: name.to_owned(),
        dns: Vec::new(),
        uris: Vec::new(),
        ips: Vec::new(),
        validity: Duration::from_secs(600),
    };
    let leaf = ca.issue(&request, SystemTime::now())?;
    let (cert, key) = (dir.join("leaf.pem"), dir.join("leaf.key"));
    std::fs::write(&cert, leaf.chain_pem)?;
    std::fs::write(&key, leaf.key_pem)?;
    for path in [dir, &cert, &key] {
        std::os::unix::fs::chown(path, Some(1500), Some(1500))?;
    }
    Ok(format!("-cert {} -key {}", cert.display(), key.display()))
}
