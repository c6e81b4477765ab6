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
