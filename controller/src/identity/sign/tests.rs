//! The signer as sidecars meet it: real requests over real TLS, with a reviewer that knows a few tokens.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use axum::http::Request;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::api::core::{Namespace, Pod};
use crate::api::{Key, Objects};
use crate::identity::{Ca, Policy};
use crate::source::Snapshot;
use crate::xds::server::ServerTls;

const NAME: &str = "osm-controller.osm-system.svc.cluster.local";
const TD: &str = "cluster.local";

/// Answers by the token's text: `<pod>:<uid>:<node>`, or what is wrong with it.
struct Reviewer;

impl TokenReviewer for Reviewer {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, String>> {
        Box::pin(async move {
            if token == "unreachable" {
                return Err("connection refused".to_owned());
            }
            if token == "expired" {
                let error = Some("[invalid bearer token, service account token has expired]".to_owned());
                return Ok(TokenReviewStatus { error, ..Default::default() });
            }
            let account = if token.starts_with("misnamed:") { "u1.sidecar.buyer" } else { "buyer" };
            let audience = if token == "audience" { "https://kubernetes.default.svc" } else { TOKEN_AUDIENCE };
            let extra = match token.split(':').collect::<Vec<_>>().as_slice() {
                [pod, uid, node] => [("pod-name", *pod), ("pod-uid", *uid), ("node-name", *node)]
                    .map(|(key, value)| (format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]))
                    .into(),
                _ => BTreeMap::new(),
            };
            Ok(TokenReviewStatus {
                authenticated: Some(true),
                audiences: Some(vec![audience.to_owned()]),
                user: Some(UserInfo {
                    username: Some(format!("system:serviceaccount:shop:{account}")),
                    extra: Some(extra),
                    ..Default::default()
                }),
                error: None,
            })
        })
    }
}

fn pod(name: &str, uid: &str, account: &str, labels: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name, "namespace": "shop", "uid": uid, "labels": labels },
        "spec": { "serviceAccountName": account, "nodeName": "node-1", "containers": [] },
    }))
    .unwrap()
}

fn objects() -> Objects {
    let mut objects = Objects::default();
    let label = json!({ "openservicemesh.io/monitored-by": "osm" });
    let namespace: Namespace =
        serde_json::from_value(json!({ "metadata": { "name": "shop", "labels": label } })).unwrap();
    objects.namespaces.insert(Key::new("", "shop"), namespace.into());
    for pod in [
        pod("buyer-1", "uid-1", "buyer", &json!({ "osm-proxy-uuid": "u1" })),
        pod("plain", "uid-2", "buyer", &json!({})),
        pod("other", "uid-3", "seller", &json!({ "osm-proxy-uuid": "u3" })),
        pod("misnamed", "uid-5", "u1.sidecar.buyer", &json!({ "osm-proxy-uuid": "u5" })),
        pod("dotted", "uid-4", "buyer", &json!({ "osm-proxy-uuid": "x.sidecar.victim" })),
    ] {
        objects.pods.insert(Key::of(&pod.metadata), pod.into());
    }
    objects
}

struct Fixture {
    _dir: tempfile::TempDir,
    issuer: Arc<Issuer>,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    metrics: Arc<Metrics>,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn snapshot(objects: Objects) -> Option<Arc<Snapshot>> {
    Some(Arc::new(Snapshot { objects, ..Default::default() }))
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let ca = Arc::new(Ca::open_or_create(dir.path()).unwrap());
    let policy = Policy { validity: Duration::from_secs(3600), spiffe: true, ..Policy::new(TD) };
    let issuer = Arc::new(Issuer::new(Arc::clone(&ca), policy));
    let tls = ServerTls::new(ca, TD, NAME, vec![], vec![], Duration::from_secs(3600)).unwrap();
    let (snapshots, watch) = watch::channel(snapshot(objects()));
    let pods = Pods { snapshots: watch, api: None, mesh_name: "osm".into(), patience: Duration::from_millis(200) };
    let metrics = Arc::new(Metrics::default());
    let signer = Signer::new(Arc::clone(&issuer), Arc::new(Reviewer), pods, Arc::clone(&metrics));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(server::serve(listener, Arc::new(tls), Arc::new(signer), stop.clone()));
    Fixture { _dir: dir, issuer, snapshots, metrics, address, stop }
}

impl Fixture {
    async fn send(&self, request: Request<Full<axum::body::Bytes>>) -> (StatusCode, Value) {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.ca().cert_der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await.unwrap();
        let running = tokio::spawn(connection);
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        running.abort();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn ask(&self, token: Option<&str>, body: String) -> (StatusCode, Value) {
        let mut request = Request::post(server::PATH).header("host", NAME);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.send(request.body(Full::from(body)).unwrap()).await
    }

    async fn ask_plainly(&self, token: &str) -> (StatusCode, Value) {
        self.ask(Some(token), body(&csr(&KeyPair::generate().unwrap()))).await
    }
}

fn csr(key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn body(csr: &str) -> String {
    json!({ "csr": csr }).to_string()
}

fn openssl(dir: &Path, arguments: &[&str]) -> String {
    let done = Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[tokio::test]
async fn a_pods_request_is_signed_and_openssl_agrees() {
    let fixture = fixture().await;
    let key = KeyPair::generate().unwrap();
    let (status, answer) = fixture.ask(Some("buyer-1:uid-1:node-1"), body(&csr(&key))).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let answer: Answer = serde_json::from_value(answer).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    put("ca.pem", &answer.trust_bundle);
    put("sidecar.pem", &answer.sidecar);
    put("service.pem", &answer.service);
    put("key.pem", &key.serialize_pem());
    let own_key = openssl(dir.path(), &["pkey", "-in", "key.pem", "-pubout"]);
    for purpose in ["sslclient", "sslserver"] {
        for file in ["sidecar.pem", "service.pem"] {
            let verified =
                openssl(dir.path(), &["verify", "-x509_strict", "-CAfile", "ca.pem", "-purpose", purpose, file]);
            assert!(verified.contains("OK"), "{verified}");
            assert_eq!(openssl(dir.path(), &["x509", "-in", file, "-noout", "-pubkey"]), own_key);
        }
    }
    let text = |file| openssl(dir.path(), &["x509", "-in", file, "-noout", "-text", "-nameopt", "RFC2253"]);
    let (sidecar, service) = (text("sidecar.pem"), text("service.pem"));
    assert!(sidecar.contains("OU=oxmesh-key-in-pod,CN=u1.sidecar.buyer.shop.cluster.local"), "{sidecar}");
    assert!(sidecar.contains("DNS:u1.sidecar.buyer.shop.cluster.local\n"), "{sidecar}");
    assert!(service.contains("Subject: CN=buyer.shop.cluster.local\n"), "{service}");
    assert!(service.contains("DNS:buyer.shop.cluster.local, URI:spiffe://cluster.local/buyer/shop\n"), "{service}");
    for text in [&sidecar, &service] {
        assert!(text.contains("CA:FALSE") && text.contains("Digital Signature\n"), "{text}");
    }
    let end = OffsetDateTime::parse(&answer.not_after, &Rfc3339).unwrap();
    let left = end - OffsetDateTime::now_utc();
    assert!((3590..=3600).contains(&left.whole_seconds()), "{left}");
    assert_eq!(fixture.issuer.next_due(), None, "the controller has made no key for it");
    let metrics = fixture.metrics.render();
    assert!(metrics.contains("oxmesh_csr_signed_count 1\n"), "{metrics}");
}

#[tokio::test]
async fn every_wrong_token_and_every_foreign_pod_is_refused_with_a_reason_and_a_hint() {
    let fixture = fixture().await;
    let cases = [
        ("expired", 401, "token_refused", "has expired"),
        ("audience", 401, "token_audience", "oxmesh.io"),
        ("unbound", 403, "token_not_bound", "not bound to a pod"),
        ("gone:uid-9:node-1", 403, "pod_unknown", "no pod shop/gone with uid uid-9"),
        ("buyer-1:uid-of-its-predecessor:node-1", 403, "pod_unknown", "shop/buyer-1"),
        ("buyer-1:uid-1:node-2", 403, "pod_differs", "node \"node-1\""),
        ("other:uid-3:node-1", 403, "pod_differs", "service account \"seller\""),
        ("plain:uid-2:node-1", 403, "pod_without_sidecar", "osm-proxy-uuid"),
        ("dotted:uid-4:node-1", 403, "pod_bad_name", "x.sidecar.victim"),
        ("misnamed:uid-5:node-1", 403, "pod_bad_name", "u1.sidecar.buyer"),
        ("unreachable", 503, "api_server_unavailable", "connection refused"),
    ];
    for (token, status, code, words) in cases {
        let (got, answer) = fixture.ask_plainly(token).await;
        assert_eq!((got.as_u16(), answer["code"].as_str()), (status, Some(code)), "{token}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains(words), "{token}: {answer}");
        assert!(!answer["hint"].as_str().unwrap().is_empty(), "{answer}");
        let counted = format!("oxmesh_csr_refused_count{{reason=\"{code}\"}}");
        assert!(fixture.metrics.render().contains(&counted), "{counted}");
    }
    let (status, answer) = fixture.ask(None, body("x")).await;
    assert_eq!((status.as_u16(), answer["code"].as_str()), (401, Some("token_missing")));
}

#[tokio::test]
async fn bad_bodies_and_greedy_requests_are_refused() {
    let fixture = fixture().await;
    let mut greedy = CertificateParams::new(vec!["admin.kube-system.cluster.local".to_owned()]).unwrap();
    greedy.distinguished_name = rcgen::DistinguishedName::new();
    let greedy = greedy.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let cases = [
        (body(&greedy), 403, "csr_forbidden"),
        (body("garbage"), 400, "csr_invalid"),
        ("{".to_owned(), 400, "body_invalid"),
        (json!({ "csr": "x", "names": ["admin"] }).to_string(), 400, "body_invalid"),
        (body(&"x".repeat(32 << 10)), 400, "body_invalid"),
    ];
    for (body, status, code) in cases {
        let (got, answer) = fixture.ask(Some("buyer-1:uid-1:node-1"), body).await;
        assert_eq!((got.as_u16(), answer["code"].as_str()), (status, Some(code)), "{answer}");
    }
    let elsewhere = Request::get("/").header("host", NAME).body(Full::default()).unwrap();
    assert_eq!(fixture.send(elsewhere).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_pod_that_asks_without_end_is_told_to_wait() {
    let fixture = fixture().await;
    let mut last = StatusCode::OK;
    for _ in 0..=POD_BURST {
        last = fixture.ask_plainly("buyer-1:uid-1:node-1").await.0;
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_pod_that_is_newer_than_the_snapshot_is_waited_for() {
    let fixture = fixture().await;
    let asking = fixture.ask_plainly("late:uid-7:node-1");
    let arriving = async {
        tokio::task::yield_now().await;
        let mut objects = objects();
        let late = pod("late", "uid-7", "buyer", &json!({ "osm-proxy-uuid": "u7" }));
        objects.pods.insert(Key::of(&late.metadata), late.into());
        fixture.snapshots.send_replace(snapshot(objects));
    };
    let ((status, answer), ()) = tokio::join!(asking, arriving);
    assert_eq!(status, StatusCode::OK, "{answer}");
}

#[tokio::test]
async fn before_the_first_snapshot_a_pod_is_told_to_come_again() {
    let fixture = fixture().await;
    fixture.snapshots.send_replace(None);
    let (status, answer) = fixture.ask_plainly("buyer-1:uid-1:node-1").await;
    assert_eq!((status.as_u16(), answer["code"].as_str()), (503, Some("not_synced")), "{answer}");
    assert!(Refusal::Pod(PodError::NotSynced).retry_after().is_some());
    fixture.snapshots.send_replace(snapshot(objects()));
    assert_eq!(fixture.ask_plainly("buyer-1:uid-1:node-1").await.0, StatusCode::OK);
}

#[tokio::test]
async fn pods_outside_the_mesh_get_nothing() {
    let fixture = fixture().await;
    let mut outside = objects();
    outside.namespaces.clear();
    fixture.snapshots.send_replace(snapshot(outside));
    let (status, answer) = fixture.ask_plainly("buyer-1:uid-1:node-1").await;
    assert_eq!((status.as_u16(), answer["code"].as_str()), (403, Some("namespace_not_in_mesh")));
}
