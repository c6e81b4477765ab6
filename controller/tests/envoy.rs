//! Real Envoy under our control plane. It listens on the sidecar's usual ports, so run it where
//! they are free:
//!
//! ```text
//! OXMESH_ENVOY=/path/to/envoy unshare -n sh -c \
//!   'ip link set lo up; cargo test -p oxmesh-controller --test envoy -- --ignored --test-threads 1'
//! ```
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod plane;

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{LbConfig, LbPolicy, RingHashLbConfig};
use envoy_types::pb::google::protobuf::UInt64Value;
use oxmesh_controller::bootstrap::{self, BOOTSTRAP_FILE};
use oxmesh_controller::identity::{Ca, Issuer, KeyHome, Policy, SidecarIdentity};
use oxmesh_controller::xds::Kind;
use oxmesh_controller::xds::cache::{Resource, State};
use oxmesh_controller::xds::server::{Denied, Hub, ProxyReport, ServerTls, View, serve};
use plane::{Plane, mesh_config, pod, shop, sidecar};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

fn envoy(dir: &Path) -> Child {
    let binary = std::env::var_os("OXMESH_ENVOY").expect("OXMESH_ENVOY names the binary");
    Command::new(binary)
        .arg("-c")
        .arg(dir.join(BOOTSTRAP_FILE))
        .args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning"])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn wait_for(plane: &Plane, what: &str, holds: impl Fn(&ProxyReport) -> bool) {
    eventually(|| plane.app.proxies(), what, holds).await;
}

/// Waits until the one proxy is as it should be.
async fn eventually(now: impl Fn() -> Vec<ProxyReport>, what: &str, holds: impl Fn(&ProxyReport) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let proxies = now();
        if proxies.first().is_some_and(&holds) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {proxies:#?}");
        sleep(Duration::from_millis(50)).await;
    }
}

fn version(proxy: &ProxyReport, kind: &str) -> Option<String> {
    let report = proxy.kinds.iter().find(|k| k.kind == kind)?;
    assert_eq!(report.nacks, 0, "{report:?}");
    report.acked.clone().filter(|acked| report.sent.as_ref() == Some(acked))
}

/// Clusters by stage: a good one, then two more of which Envoy refuses one at its creation, then
/// all good. Of the refusal Envoy says nothing before it gets a response without the cluster.
struct Stage(usize);

impl View for Stage {
    fn state(&self, _: &SidecarIdentity, _keys: KeyHome) -> Result<State, Denied> {
        let mut state = State::default();
        let mut add = |name: &str, smallest_ring: u64| {
            let ring = RingHashLbConfig {
                minimum_ring_size: Some(UInt64Value { value: smallest_ring }),
                maximum_ring_size: Some(UInt64Value { value: 64 }),
                ..RingHashLbConfig::default()
            };
            let cluster = Cluster {
                name: name.into(),
                lb_policy: LbPolicy::RingHash.into(),
                lb_config: Some(LbConfig::RingHashLbConfig(ring)),
                ..Cluster::default()
            };
            state.insert(Kind::Cluster, Resource::new(Kind::Cluster, name, cluster.encode_to_vec()));
        };
        add("first", 8);
        if self.0 > 0 {
            add("odd", if self.0 == 1 { 128 } else { 16 });
            add("second", 8);
        }
        Ok(state)
    }

    fn max_proxies(&self) -> Option<usize> {
        None
    }
}

async fn recovers_from_a_refused_cluster(delta: bool) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Arc::new(Ca::open_or_create(&dir.path().join("ca")).unwrap());
    let issuer = Issuer::new(Arc::clone(&ca), Policy::new("cluster.local"));
    let name = bootstrap::controller_name("osm-system");
    let day = Duration::from_secs(86_400);
    let tls = ServerTls::new(ca, "cluster.local", &name, vec![], vec![], day).unwrap();
    let (view, watch): (watch::Sender<Arc<dyn View>>, _) = watch::channel(Arc::new(Stage(0)));
    let hub = Arc::new(Hub::new(watch, "cluster.local", Arc::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = bootstrap::Options {
        controller_host: "127.0.0.1".into(),
        controller_port: listener.local_addr().unwrap().port(),
        read_dir: dir.path().to_owned(),
        admin: ([127, 0, 0, 1], 0).into(),
        delta,
        ..bootstrap::Options::new("osm-system")
    };
    bootstrap::write(dir.path(), &sidecar("buyer"), &issuer, &options).unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(serve(listener, Arc::new(tls), Arc::clone(&hub), stop.clone()));
    let _envoy = envoy(dir.path());
    // All is accepted but for what is refused.
    let rests = |refused: &'static [&'static str]| {
        move |proxy: &ProxyReport| {
            let Some(clusters) = proxy.kinds.iter().find(|k| k.kind == "CDS") else { return false };
            let names: Vec<_> = clusters.refused.iter().map(|r| r.name.as_str()).collect();
            clusters.acked.is_some() && clusters.acked == clusters.sent && names == refused
        }
    };
    eventually(|| hub.proxies(), "the first", rests(&[])).await;
    view.send_replace(Arc::new(Stage(1)));
    eventually(|| hub.proxies(), "the good one of the new ones", rests(&["odd"])).await;
    view.send_replace(Arc::new(Stage(2)));
    eventually(|| hub.proxies(), "all", rests(&[])).await;
    assert!(hub.proxies()[0].kinds[0].nacks > 0);
    stop.cancel();
}

#[tokio::test]
#[ignore = "needs a real Envoy, see above"]
async fn envoy_recovers_from_a_refused_cluster_in_state_of_the_world() {
    recovers_from_a_refused_cluster(false).await;
}

#[tokio::test]
#[ignore = "needs a real Envoy, see above"]
async fn envoy_recovers_from_a_refused_cluster_in_delta() {
    recovers_from_a_refused_cluster(true).await;
}

async fn lives_with_changes(delta: bool) {
    let files = [("mesh.yaml", mesh_config(true, "20s")), ("shop.yaml", shop())];
    let plane = Plane::start(&files).await;
    let dir = plane.bootstrap(&sidecar("buyer"), delta);
    let _envoy = envoy(&dir);
    let all = ["CDS", "EDS", "LDS", "RDS", "SDS"];
    wait_for(&plane, "everything is accepted", |p| all.iter().all(|kind| version(p, kind).is_some())).await;
    let now = |kind| version(&plane.app.proxies()[0], kind);
    let (clusters, endpoints, secrets) = (now("CDS"), now("EDS"), now("SDS"));

    let more = pod("store", "127.0.1.9").replace("name: store, namespace", "name: store-2, namespace");
    plane.write("more.yaml", &more.replace("osm-proxy-uuid: store", "osm-proxy-uuid: store-2"));
    wait_for(&plane, "a pod more", |p| version(p, "EDS").is_some_and(|v| Some(v) != endpoints)).await;
    assert_eq!(now("CDS"), clusters);

    wait_for(&plane, "a new certificate", |p| version(p, "SDS").is_some_and(|v| Some(v) != secrets)).await;
    assert_eq!(now("CDS"), clusters);

    // Back to policies, of which there are none: the store is out of reach, its cluster goes.
    plane.write("mesh.yaml", &mesh_config(false, "20s"));
    wait_for(&plane, "fewer clusters", |p| version(p, "CDS").is_some_and(|v| Some(v) != clusters)).await;
    plane.write("mesh.yaml", &mesh_config(true, "20s"));
    wait_for(&plane, "all clusters again", |p| version(p, "CDS") == clusters).await;
    assert_eq!(plane.app.proxies().len(), 1);
    plane.app.stop().await;
}

#[tokio::test]
#[ignore = "needs a real Envoy, see above"]
async fn envoy_lives_with_changes_in_state_of_the_world() {
    lives_with_changes(false).await;
}

#[tokio::test]
#[ignore = "needs a real Envoy, see above"]
async fn envoy_lives_with_changes_in_delta() {
    lives_with_changes(true).await;
}

#[tokio::test]
#[ignore = "needs a real Envoy, see above"]
async fn envoy_comes_back_to_a_restarted_control_plane_of_another_port() {
    let files = [("mesh.yaml", mesh_config(true, "24h")), ("shop.yaml", shop())];
    let plane = Plane::start(&files).await;
    let first = envoy(&plane.bootstrap(&sidecar("buyer"), true));
    wait_for(&plane, "accepted", |p| version(p, "SDS").is_some()).await;
    drop(first);
    let plane = plane.restart().await;
    let _second = envoy(&plane.bootstrap(&sidecar("buyer"), true));
    wait_for(&plane, "accepted again", |p| version(p, "SDS").is_some()).await;
    plane.app.stop().await;
}

#[tokio::test]
#[ignore = "needs a real Envoy, see above"]
async fn envoy_takes_paths_as_long_as_we_let_through() {
    let path = "/".to_owned() + &"long-path/".repeat(400);
    let policy = format!(
        "apiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata: {{name: long, namespace: shop}}\n\
         spec: {{matches: [{{name: long, pathRegex: {path}}}]}}\n---\n\
         apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {{name: t, namespace: shop}}\n\
         spec: {{destination: {{kind: ServiceAccount, name: store}}, sources: [{{kind: ServiceAccount, name: buyer}}], \
         rules: [{{kind: HTTPRouteGroup, name: long}}]}}\n"
    );
    let plane =
        Plane::start(&[("mesh.yaml", mesh_config(false, "24h")), ("shop.yaml", shop()), ("policy.yaml", policy)]).await;
    let _envoy = envoy(&plane.bootstrap(&sidecar("store"), true));
    wait_for(&plane, "the routes", |p| version(p, "RDS").is_some()).await;
    plane.app.stop().await;
}

/// Status of an answer to `method path`, and what the application says of the request.
async fn ask(port: u16, method: &str, path: &str) -> (u16, String) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = tokio::time::timeout(Duration::from_secs(5), async {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            let request = format!("{method} {path} HTTP/1.1\r\nHost: probe\r\nX-A: b\r\nConnection: close\r\n\r\n");
            tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await?;
            let mut text = String::new();
            tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut text).await?;
            std::io::Result::Ok(text)
        });
        match answer.await {
            Ok(Ok(text)) if text.starts_with("HTTP/1.1 ") => {
                let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
                return (text[9..12].parse().unwrap(), body);
            }
            // The proxy has no configuration yet.
            other => assert!(Instant::now() < deadline, "{port} {path}: {other:?}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// An application that answers with the request's first line and one of its headers, over TLS if there is a config.
async fn application(tls: Option<rustls::ServerConfig>) -> u16 {
    async fn answer(mut io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
        let mut head = vec![0; 4096];
        let n = tokio::io::AsyncReadExt::read(&mut io, &mut head).await.unwrap_or(0);
        let head = String::from_utf8_lossy(&head[..n]).into_owned();
        let has_header = head.to_ascii_lowercase().contains("x-a: b");
        let body = format!("{} {has_header}", head.lines().next().unwrap_or_default());
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let _ = tokio::io::AsyncWriteExt::write_all(&mut io, text.as_bytes()).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut io).await;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = tls.map(|config| tokio_rustls::TlsAcceptor::from(Arc::new(config)));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            match &acceptor {
                None => answer(tcp).await,
                Some(acceptor) => match acceptor.accept(tcp).await {
                    Ok(tls) => answer(tls).await,
                    Err(error) => eprintln!("{error}"),
                },
            }
        }
    });
    port
}

fn self_signed() -> rustls::ServerConfig {
    let pair = rcgen::generate_simple_self_signed(["app".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
    rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.der().clone()], key)
        .unwrap()
}

/// Also for our own proxy: `OXMESH_ENVOY=target/debug/oxmesh-proxy`.
#[tokio::test]
#[ignore = "needs a real Envoy, see above"]
async fn probes_of_an_injected_pod_reach_one_path_of_the_application_and_nothing_else() {
    use bootstrap::probes::{GrpcProbe, HttpProbe, ProbeKind, Probes, READY_PATH};
    let (plain, tls) = (application(None).await, application(Some(self_signed())).await);
    let probe = |kind, port, path: &str, tls| HttpProbe {
        kind,
        container: "app".into(),
        port,
        path: path.into(),
        tls,
        timeout: Duration::from_secs(2),
    };
    let probes = Probes {
        http: vec![
            probe(ProbeKind::Liveness, plain, "/live//x", false),
            probe(ProbeKind::Startup, tls, "/start", true),
            probe(ProbeKind::Readiness, 1, "/closed", false),
        ],
        grpc: vec![GrpcProbe { listen: 15_905, port: plain, timeout: Duration::from_secs(1) }],
    };
    let plane = Plane::start(&[("mesh.yaml", mesh_config(true, "24h")), ("shop.yaml", shop())]).await;
    let dir = plane.bootstrap(&sidecar("store"), false);
    let options = bootstrap::Options {
        controller_host: "127.0.0.1".into(),
        controller_port: plane.app.xds_address().port(),
        read_dir: dir.clone(),
        probes: Some(probes),
        ..bootstrap::Options::new("osm-system")
    };
    bootstrap::write(&dir, &sidecar("store"), plane.app.issuer(), &options).unwrap();
    let binary = std::env::var_os("OXMESH_ENVOY").unwrap();
    let checked =
        Command::new(binary).arg("-c").arg(dir.join(BOOTSTRAP_FILE)).args(["--mode", "validate"]).output().await;
    let checked = checked.unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    let _envoy = envoy(&dir);
    let deadline = Instant::now() + Duration::from_secs(60);
    while ask(15_902, "GET", READY_PATH).await.0 != 200 {
        assert!(Instant::now() < deadline, "the proxy is not ready");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        ask(15_901, "GET", "/osm-liveness-probe/app?full=1").await,
        (200, "GET /live//x?full=1 HTTP/1.1 true".into())
    );
    assert_eq!(ask(15_903, "GET", "/osm-startup-probe/app").await, (200, "GET /start HTTP/1.1 true".into()));
    assert_eq!(ask(15_902, "GET", "/osm-readiness-probe/app").await.0, 503, "the application is not there");
    for (port, method, path) in [
        (15_901, "GET", "/"),
        (15_901, "GET", "/live//x"),
        (15_901, "GET", "/osm-liveness-probe/app/"),
        (15_901, "GET", "/osm-liveness-probe/app/../admin"),
        (15_901, "POST", "/osm-liveness-probe/app"),
        (15_902, "GET", "/quitquitquit"),
        (15_902, "POST", READY_PATH),
        (15_903, "GET", "/osm-liveness-probe/app"),
        (15_905, "GET", "/"),
        (15_905, "POST", "/shop.Admin/Delete"),
    ] {
        let (status, body) = ask(port, method, path).await;
        assert_eq!(status, 404, "{port} {method} {path}: {body}");
    }
    plane.app.stop().await;
}
