//! Objects from an API server: the same mesh as from a folder, whole before anything is said, and kept when things go wrong.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api_server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api_server::ApiServer;
use oxmesh_controller::api::Key;
use oxmesh_controller::api::core::Pod;
use oxmesh_controller::mesh::Mesh;
use oxmesh_controller::settings::Settings;
use oxmesh_controller::source::{Folder, Snapshot, watch_cluster};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

struct Watched {
    server: ApiServer,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    stop: CancellationToken,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Watches a server that has these objects.
fn watched(objects: &[Value]) -> Watched {
    let server = ApiServer::default();
    objects.iter().for_each(|object| server.put(object));
    follow(server)
}

fn follow(server: ApiServer) -> Watched {
    let stop = CancellationToken::new();
    let snapshots = watch_cluster(server.client(), Settings::default(), watch::Sender::default(), stop.clone());
    Watched { server, snapshots, stop }
}

impl Watched {
    /// Waits for a snapshot of which this holds.
    async fn until(&mut self, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let found = self.snapshots.wait_for(|snapshot| snapshot.as_deref().is_some_and(&holds));
        let found = timeout(Duration::from_secs(30), found).await;
        found.unwrap_or_else(|_| panic!("{what}")).unwrap().clone().unwrap()
    }

    /// Waits a while and says what is in force then.
    async fn after(&self, wait: Duration) -> Option<Arc<Snapshot>> {
        tokio::time::sleep(wait).await;
        self.snapshots.borrow().clone()
    }
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/osm-golden")
}

/// The documents of a scenario with its pods and addresses, as an API server would have them.
fn scenario(name: &str) -> Vec<Value> {
    let files =
        [data().join("apps.yaml"), data().join("bookstore.yaml"), data().join("policy.yaml"), data().join(name)];
    let mut all: Vec<Value> = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        all.extend(serde_saphyr::from_multiple::<Value>(&text).unwrap().into_iter().filter(|d| !d.is_null()));
    }
    // The last one of a name counts, as with kubectl.
    let by_name: BTreeMap<String, Value> = all
        .into_iter()
        .map(|d| (format!("{} {} {}", d["kind"], d["metadata"]["namespace"], d["metadata"]["name"]), d))
        .collect();
    let mut all: Vec<Value> = by_name.into_values().collect();
    let text = fs::read_to_string(data().join("addresses.txt")).unwrap();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        let (namespace, name) = words[1].split_once('/').unwrap();
        if words[0] == "service" {
            let is_it = |d: &&mut Value| {
                d["kind"] == "Service" && d["metadata"]["name"] == name && d["metadata"]["namespace"] == namespace
            };
            all.iter_mut().find(is_it).unwrap()["spec"]["clusterIP"] = json!(words[2]);
            continue;
        }
        let mut labels: BTreeMap<&str, &str> = words[4].split(',').filter_map(|l| l.split_once('=')).collect();
        labels.insert("osm-proxy-uuid", name);
        let port = json!({"name": "web", "containerPort": 8080});
        all.push(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"serviceAccountName": words[3], "hostname": words.get(5).map(|_| name), "subdomain": words.get(5),
                "containers": [{"name": "app", "image": "x", "ports": [port]}]},
            "status": {"phase": "Running", "podIP": words[2], "podIPs": [{"ip": words[2]}]}}));
    }
    // Kinds that no API source reads: pods are there already.
    all.retain(|d| !matches!(d["kind"].as_str(), Some("Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")));
    all.push(mesh_config());
    all
}

fn mesh_config() -> Value {
    json!({"apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
        "metadata": {"name": "osm-mesh-config", "namespace": "osm-system"},
        "spec": {"featureFlags": {"enableRetryPolicy": true}}})
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"openservicemesh.io/monitored-by": "osm"}}})
}

fn account(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}})
}

fn split(weight: Value) -> Value {
    json!({"apiVersion": "split.smi-spec.io/v1alpha2", "kind": "TrafficSplit",
        "metadata": {"name": "s", "namespace": "shop"},
        "spec": {"service": "web", "backends": [{"service": "web", "weight": weight}]}})
}

fn weight(snapshot: &Snapshot) -> Option<u32> {
    Some(snapshot.objects.traffic_splits.get(&Key::new("shop", "s"))?.spec.backends[0].weight)
}

#[tokio::test]
async fn both_sources_give_the_same_mesh() {
    for name in
        ["01-smi", "04-egress-policy", "05-ingress", "06-tcp", "07-retry", "08-limits", "09-split-tcp-and-roots"]
    {
        let documents = scenario(&format!("{name}/scenario.yaml"));
        let dir = tempfile::tempdir().unwrap();
        for (i, document) in documents.iter().enumerate() {
            fs::write(dir.path().join(format!("{i:04}.json")), document.to_string()).unwrap();
        }
        let settings = Settings::default();
        let of_folder = Folder::new(vec![dir.path().to_owned()], settings.service_cidr).read_once();
        let mut watched = watched(&documents);
        let of_server = watched.until("everything", |_| true).await;
        assert_eq!(of_server.findings, [], "{name}");
        let (a, b) = (Mesh::build(&of_folder.objects, &settings), Mesh::build(&of_server.objects, &settings));
        assert_eq!(a.findings, b.findings, "{name}");
        assert_eq!(format!("{:#?}", a.mesh), format!("{:#?}", b.mesh), "{name}");
        assert!(b.mesh.services().len() > 5 && b.mesh.workloads().count() > 5, "{name}");
    }
}

#[tokio::test]
async fn objects_come_change_and_go_and_those_of_other_namespaces_are_passed_over() {
    let other = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}});
    let mut w = watched(&[namespace("shop"), other, mesh_config(), account("other", "x"), split(json!(1))]);
    let first = w.until("the first snapshot", |_| true).await;
    assert_eq!((weight(&first), first.objects.service_accounts.len(), first.objects.namespaces.len()), (Some(1), 0, 1));
    assert!(first.objects.namespaces.values().all(|n| n.metadata.managed_fields.is_none()));

    w.server.put(&split(json!(2)));
    w.until("a change", |s| weight(s) == Some(2)).await;
    w.server.delete(&split(json!(2)));
    w.until("a removal", |s| weight(s).is_none()).await;

    w.server.put(&namespace("other"));
    w.until("a namespace that joins, with all that is in it", |s| s.objects.service_accounts.len() == 1).await;
    let mut ignored = namespace("other");
    ignored["metadata"]["labels"]["openservicemesh.io/ignore"] = json!("true");
    w.server.put(&ignored);
    let left = w.until("a namespace that leaves", |s| s.objects.service_accounts.is_empty()).await;
    assert_eq!(left.objects.namespaces.len(), 1);
}

#[tokio::test]
async fn what_cannot_be_understood_leaves_the_last_good_version_in_force() {
    let mut w = watched(&[namespace("shop"), mesh_config(), split(json!(1)), account("shop", "a")]);
    w.until("the first snapshot", |s| weight(s) == Some(1)).await;
    w.server.put(&split(json!("much")));
    let bad = w.until("a finding", |s| !s.findings.is_empty()).await;
    assert_eq!(weight(&bad), Some(1));
    let words = bad.findings[0].to_string();
    assert!(words.starts_with("error: TrafficSplit shop/s: spec.backends[0].weight: "), "{words}");
    assert!(words.ends_with("stays in force)"), "{words}");
    w.server.put(&split(json!(7)));
    w.until("the mended version", |s| weight(s) == Some(7) && s.findings.is_empty()).await;
}

#[tokio::test]
async fn what_is_known_stays_in_force_while_the_server_is_away_and_the_watch_goes_on_afterwards() {
    let mut w = watched(&[namespace("shop"), mesh_config(), split(json!(1))]);
    let first = w.until("the first snapshot", |s| weight(s) == Some(1)).await;
    w.server.go_away(true);
    assert_eq!(w.after(Duration::from_secs(2)).await.unwrap(), first);
    w.server.go_away(false);
    while w.server.watches(SPLITS) == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    w.server.put_and_forget(&split(json!(5)));
    w.until("what changed meanwhile", |s| weight(s) == Some(5)).await;
}

#[tokio::test]
async fn nothing_is_said_before_every_kind_is_known() {
    let server = ApiServer::default();
    [namespace("shop"), mesh_config(), split(json!(1))].iter().for_each(|o| server.put(o));
    server.forget_kind(TARGETS, true);
    let mut w = follow(server);
    assert!(w.after(Duration::from_secs(2)).await.is_none());
    w.server.forget_kind(TARGETS, false);
    w.until("the whole", |s| weight(s) == Some(1)).await;
}

#[tokio::test]
async fn a_kind_that_older_clusters_lack_is_reported_and_found_when_it_comes() {
    let server = ApiServer::default();
    [namespace("shop"), mesh_config()].iter().for_each(|o| server.put(o));
    server.forget_kind(TELEMETRIES, true);
    let mut w = follow(server);
    let first = w.until("the rest", |_| true).await;
    assert!(first.findings[0].to_string().contains("no Telemetry objects"), "{:?}", first.findings);
    w.server.forget_kind(TELEMETRIES, false);
    w.server.put(&json!({"apiVersion": "policy.openservicemesh.io/v1alpha1", "kind": "Telemetry",
        "metadata": {"name": "t", "namespace": "osm-system"}, "spec": {}}));
    w.until("the kind", |s| s.objects.telemetries.len() == 1 && s.findings.is_empty()).await;
}

#[tokio::test]
async fn without_a_mesh_config_the_defaults_count_and_it_is_said() {
    let mut w = watched(&[namespace("shop")]);
    let first = w.until("the first snapshot", |_| true).await;
    assert!(first.findings[0].to_string().contains("MeshConfig osm-system/osm-mesh-config: is not there"));
    w.server.put(&mesh_config());
    w.until("the MeshConfig", |s| s.findings.is_empty()).await;
}

/// A pod as clusters have them, with all that the mesh doesn't read.
fn big_pod(i: usize) -> Value {
    let env: Vec<Value> =
        (0..20).map(|e| json!({"name": format!("VARIABLE_{e}"), "value": "some value of some length"})).collect();
    let name = format!("web-6d4cf56db6-{i:05}");
    let container = json!({"name": "app", "image": "registry.example/team/app:v1.2.3", "env": env,
        "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}, "volumeMounts": [{"name": "a", "mountPath": "/a"}],
        "livenessProbe": {"httpGet": {"path": "/", "port": "http"}}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop",
            "labels": {"app": "web", "pod-template-hash": "6d4cf56db6", "osm-proxy-uuid": format!("7f4e0c5e-0000-4000-8000-{i:012}")},
            "annotations": {"example.com/config": "x".repeat(500), "openservicemesh.io/sidecar-injection": "enabled"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6d4cf56db6", "uid": "u", "controller": true}]},
        "spec": {"serviceAccountName": "web", "nodeName": "node-1", "containers": [container, {"name": "envoy", "image": "proxy"}],
            "tolerations": [{"key": "k", "operator": "Exists"}], "volumes": [{"name": "a", "emptyDir": {}}]},
        "status": {"phase": "Running", "podIP": format!("10.1.{}.{}", i / 250, i % 250),
            "podIPs": [{"ip": format!("10.1.{}.{}", i / 250, i % 250)}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"name": "app", "image": "x", "imageID": "y", "ready": true, "restartCount": 0, "state": {}}]}})
}

fn resident_bytes() -> usize {
    let pages: usize = fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Prints how much memory a watched pod takes; `docs/kubernetes.md` states it.
#[tokio::test]
#[ignore = "a measurement, alone in its process"]
async fn memory_of_a_watched_pod() {
    const PODS: usize = 20_000;
    let server = ApiServer::default();
    server.put(&namespace("shop"));
    server.put(&mesh_config());
    (0..PODS).for_each(|i| server.put(&big_pod(i)));
    let before = resident_bytes();
    let mut w = follow(server);
    let snapshot = w.until("all pods", |s| s.objects.pods.len() == PODS).await;
    let held = resident_bytes().saturating_sub(before);
    println!("{} bytes a pod as it comes, {} more resident", big_pod(1).to_string().len(), held / PODS);
    let copies: Vec<Pod> = (0..4).flat_map(|_| snapshot.objects.pods.values().map(|pod| Pod::clone(pod))).collect();
    let copied = resident_bytes().saturating_sub(before + held);
    println!("{} bytes a pod that is kept", copied / copies.len());
}

const TARGETS: &str = "/apis/access.smi-spec.io/v1alpha3/traffictargets";
const SPLITS: &str = "/apis/split.smi-spec.io/v1alpha2/trafficsplits";
const TELEMETRIES: &str = "/apis/policy.openservicemesh.io/v1alpha1/telemetries";
