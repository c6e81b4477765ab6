//! Reviews over TLS, as the API server sends them. The API server behind the injector's own requests is a recorder.

use std::sync::Mutex;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::identity::{Ca, Policy};
use crate::inject::patch::tests::settings;

const UID: &str = "8281f730-d0ba-475c-8fa8-4e0dae2b5051";

struct Server {
    address: std::net::SocketAddr,
    ca: Arc<Ca>,
    calls: Arc<Mutex<Vec<(String, String)>>>,
    now: Now,
    metrics: Arc<Metrics>,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    tls: Arc<InjectorTls>,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What the API server answers for the namespace `shop`: its status, and the object or words. None: never.
type Now = Arc<Mutex<Option<(u16, Value)>>>;

fn namespace() -> Value {
    json!({"metadata": {"name": "shop", "labels": {"openservicemesh.io/monitored-by": "osm"},
        "annotations": {"openservicemesh.io/sidecar-injection": "enabled"}}})
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.objects.namespaces.insert(Key::new("", "shop"), serde_json::from_value(namespace()).unwrap());
    snapshot
}

fn status(code: u16) -> Value {
    json!({"kind": "Status", "status": "Failure", "message": "m", "reason": "r", "code": code})
}

async fn start(validity: Duration, data_plane: DataPlane) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let ca = Arc::new(Ca::open_or_create(&dir.path().join("ca")).unwrap());
    let issuer = Arc::new(Issuer::new(Arc::clone(&ca), Policy::new("cluster.local")));
    let calls: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let record = Arc::clone(&calls);
    let now: Now = Arc::new(Mutex::new(Some((200, namespace()))));
    let answers = Arc::clone(&now);
    let service = tower::service_fn(move |request: axum::http::Request<kube::client::Body>| {
        let (record, answers) = (Arc::clone(&record), Arc::clone(&answers));
        async move {
            let line = format!("{} {}", request.method(), request.uri().path());
            let body = request.into_body().collect_bytes().await.unwrap_or_default();
            let text = String::from_utf8_lossy(&body).into_owned();
            let (code, answer) = match line.as_str() {
                "GET /api/v1/namespaces/shop" => {
                    let answer = answers.lock().unwrap().clone();
                    let Some((code, answer)) = answer else { return std::future::pending().await };
                    (code, answer.to_string())
                }
                get if get.starts_with("GET /api/v1/namespaces/") => (404, status(404).to_string()),
                post if post.starts_with("POST") => (200, text.clone()),
                _ => (200, "{}".to_owned()),
            };
            record.lock().unwrap().push((line, text));
            let mut response = axum::http::Response::new(kube::client::Body::from(answer.into_bytes()));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let (snapshots, receiver) = watch::channel(Some(Arc::new(snapshot())));
    let no_leader = watch::channel(false).1;
    let metrics = Arc::new(Metrics::default());
    let tls = Arc::new(InjectorTls::new(Arc::clone(&issuer), "osm-system", validity).unwrap());
    let settings = Settings { data_plane, ..settings() };
    let client = Client::new(service, "default");
    let (metrics_too, orphan_age) = (Arc::clone(&metrics), Duration::from_secs(600));
    let injector = Injector::new(settings, issuer, metrics_too, receiver, no_leader, client, orphan_age);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(serve(listener, Arc::new(injector), Arc::clone(&tls), stop.clone()));
    Server { address, ca, calls, now, metrics, snapshots, tls, stop, _dir: dir }
}

impl Server {
    async fn connect(&self) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.cert_der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("osm-injector.osm-system.svc").unwrap();
        let tcp = TcpStream::connect(self.address).await?;
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    /// Status and body of the answer.
    async fn post(&self, kind: &str, body: &[u8]) -> (u16, String) {
        let mut stream = self.connect().await.unwrap();
        let head = format!(
            "POST /mutate-pod-creation?timeout=20s HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // A server that has refused already need not read on.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), body.to_owned())
    }

    async fn review(&self, review: &Value) -> Value {
        let (status, body) = self.post("application/json", review.to_string().as_bytes()).await;
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&answer["apiVersion"], &answer["kind"]),
            (&json!("admission.k8s.io/v1"), &json!("AdmissionReview"))
        );
        assert_eq!(answer["response"]["uid"], UID);
        answer["response"].clone()
    }

    fn secrets_made(&self) -> Vec<Value> {
        let calls = self.calls.lock().unwrap();
        let made = calls.iter().filter(|(line, _)| line == "POST /api/v1/namespaces/shop/secrets");
        made.map(|(_, body)| serde_json::from_str(body).unwrap()).collect()
    }
}

fn review(pod: Value, namespace: &str, dry_run: bool) -> Value {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": UID, "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": namespace, "operation": "CREATE", "userInfo": {"username": "u"}, "object": pod, "dryRun": dry_run,
    }})
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "a-"}, "spec": {"containers": [{"name": "a"}]}})
}

#[tokio::test]
async fn a_review_is_answered_with_a_patch_and_counted() {
    let server = start(Duration::from_secs(3600), DataPlane::Oxmesh).await;
    let response = server.review(&review(pod(), "shop", false)).await;
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let text: Vec<u8> = serde_json::from_value::<k8s_openapi::ByteString>(response["patch"].clone()).unwrap().0;
    let patch: json_patch::Patch = serde_json::from_slice(&text).unwrap();
    let mut patched = pod();
    json_patch::patch(&mut patched, &patch).unwrap();
    assert_eq!(patched["metadata"]["labels"]["osm-proxy-uuid"], UID);
    assert!(server.secrets_made().is_empty(), "the key is made in the pod");
    let metrics = server.metrics.render();
    assert!(metrics.contains("osm_injector_injector_sidecar_count 1"), "{metrics}");
    assert!(metrics.contains("osm_injector_injector_rq_time_count{success=\"true\"} 1"), "{metrics}");
}

#[tokio::test]
async fn an_envoy_gets_its_secret_but_not_on_a_dry_run() {
    let server = start(Duration::from_secs(3600), DataPlane::Envoy).await;
    assert_eq!(server.review(&review(pod(), "shop", true)).await["allowed"], true);
    assert!(server.secrets_made().is_empty());
    assert_eq!(server.review(&review(pod(), "shop", false)).await["allowed"], true);
    let made = server.secrets_made();
    assert_eq!(made.len(), 1);
    assert_eq!(made[0]["metadata"]["name"], format!("envoy-bootstrap-config-{UID}"));
    let keys: Vec<&String> = made[0]["data"].as_object().unwrap().keys().collect();
    for key in ["bootstrap.yaml", "cacert.pem", "sds_cert.pem", "sds_key.pem", "tls_certificate_sds_secret.yaml"] {
        assert!(keys.iter().any(|known| *known == key), "{keys:?}");
    }
}

#[tokio::test]
async fn a_refusal_says_why() {
    let server = start(Duration::from_secs(3600), DataPlane::Oxmesh).await;
    let mut bad = pod();
    bad["spec"]["securityContext"] = json!({"runAsUser": 1500});
    let response = server.review(&review(bad, "shop", false)).await;
    assert_eq!(response["allowed"], false);
    let words = response["status"]["message"].as_str().unwrap();
    assert!(words.contains("spec.securityContext.runAsUser: 1500 is the sidecar's own"), "{words}");
    let odd = json!({"spec": {"containers": {}}});
    assert_eq!(server.review(&review(odd, "shop", false)).await["allowed"], false);
    assert!(server.metrics.render().contains("oxmesh_injector_refused_count 2"));
}

#[tokio::test]
async fn a_pod_made_of_anothers_dump_is_refused() {
    let server = start(Duration::from_secs(3600), DataPlane::Oxmesh).await;
    let request = Request {
        namespace: &snapshot().objects.namespaces[&Key::new("", "shop")],
        mesh_config: None,
        uuid: UID,
        trust_bundle: "",
    };
    let Ok(Outcome::Injected(injection)) = inject(&pod(), &request, &settings()) else { panic!("not injected") };
    let again = server.review(&review(injection.pod.clone(), "shop", false)).await;
    assert_eq!((&again["allowed"], again.get("patch")), (&json!(true), None), "another webhook came in between");
    let mut with_pod = snapshot();
    with_pod.objects.pods.insert(Key::new("shop", "a"), serde_json::from_value(injection.pod.clone()).unwrap());
    server.snapshots.send_replace(Some(Arc::new(with_pod)));
    let response = server.review(&review(injection.pod, "shop", false)).await;
    assert!(response["status"]["message"].as_str().unwrap().contains("belongs to a pod that is there already"));
}

#[tokio::test]
async fn the_namespace_counts_as_it_is_now_not_as_the_watch_saw_it_last() {
    let server = start(Duration::from_secs(3600), DataPlane::Oxmesh).await;
    let request = review(pod(), "shop", false);
    let mut changed = namespace();
    changed["metadata"]["annotations"]["oxmesh.io/data-plane"] = json!("envoy");
    *server.now.lock().unwrap() = Some((200, changed.clone()));
    assert!(server.review(&request).await["patch"].is_string());
    assert_eq!(server.secrets_made().len(), 1, "an Envoy, as the annotation has said for a moment");
    changed["metadata"]["annotations"]["openservicemesh.io/sidecar-injection"] = json!("disabled");
    *server.now.lock().unwrap() = Some((200, changed));
    let response = server.review(&request).await;
    assert_eq!((&response["allowed"], response.get("patch")), (&json!(true), None));
    // Just added: the watch has not shown it yet.
    server.snapshots.send_replace(Some(Arc::default()));
    *server.now.lock().unwrap() = Some((200, namespace()));
    assert!(server.review(&request).await["patch"].is_string());
}

#[tokio::test]
async fn when_the_api_server_does_not_tell_the_watch_counts_and_without_it_the_pod_is_refused() {
    let server = start(Duration::from_secs(3600), DataPlane::Oxmesh).await;
    let request = review(pod(), "shop", false);
    for answer in [None, Some((500, status(500))), Some((403, status(403)))] {
        server.snapshots.send_replace(Some(Arc::new(snapshot())));
        *server.now.lock().unwrap() = answer.clone();
        assert!(server.review(&request).await["patch"].is_string(), "{answer:?}");
        server.snapshots.send_replace(Some(Arc::default()));
        let refused = server.review(&request).await;
        assert_eq!(refused["allowed"], false, "none starts without the sidecar that it may need");
        let words = refused["status"]["message"].as_str().unwrap();
        assert!(words.contains("namespace \"shop\" can't be read"), "{words}");
    }
    let gone = server.review(&review(pod(), "nowhere", false)).await;
    assert!(gone["status"]["message"].as_str().unwrap().contains("is not there"), "{gone}");
    server.snapshots.send_replace(None);
    assert_eq!(server.review(&request).await["allowed"], false);
}

#[tokio::test]
async fn what_is_no_review_of_a_new_pod_is_refused_at_once() {
    let server = start(Duration::from_secs(3600), DataPlane::Oxmesh).await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let large = review(json!({"metadata": {"annotations": {"a": "x".repeat(3 << 20)}}}), "shop", false).to_string();
    let change = |pointer: &str, value: Value| {
        let mut changed = review(pod(), "shop", false);
        *changed.pointer_mut(pointer).unwrap() = value;
        changed.to_string()
    };
    for (body, status) in [
        (deep, 400),
        (large, 413),
        ("{}".to_owned(), 400),
        ("null".to_owned(), 400),
        (change("/apiVersion", json!("admission.k8s.io/v1beta1")), 400),
        (change("/request/operation", json!("UPDATE")), 400),
        (change("/request/resource/resource", json!("services")), 400),
        (change("/request/uid", json!("../../x")), 400),
        (change("/request/object", json!(null)), 400),
    ] {
        let begin = std::time::Instant::now();
        let (got, words) = server.post("application/json", body.as_bytes()).await;
        assert_eq!(got, status, "{} {words}", &body[..body.len().min(80)]);
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
    assert_eq!(server.post("text/plain", b"{}").await.0, 415);
    assert_eq!(server.review(&review(pod(), "shop", false)).await["allowed"], true, "it serves on");
}

#[tokio::test]
async fn the_certificate_is_renewed_while_connections_go_on() {
    let server = start(Duration::from_secs(590), DataPlane::Oxmesh).await;
    let serial = |stream: &tokio_rustls::client::TlsStream<TcpStream>| {
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let old = server.connect().await.unwrap();
    assert!(!server.tls.rotate(SystemTime::now()).unwrap());
    assert!(server.tls.rotate(SystemTime::now() + Duration::from_secs(296)).unwrap());
    let new = server.connect().await.unwrap();
    assert_ne!(serial(&old), serial(&new));
    assert_eq!(server.review(&review(pod(), "shop", false)).await["allowed"], true);
}
