//! Traffic of every kind between two pods, by services of every shape, and out of the mesh.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    cluster::{Cluster, Namespace},
    eventually,
    installed::{DataPlane, Installed},
    load::Load,
    trial::envoy_missing,
};
use serde_json::{Value, json};

use crate::scenario;

const LIMIT: Duration = Duration::from_secs(90);
/// How long the mesh may take to follow a change of objects, on a busy machine.
const FOLLOWS: Duration = Duration::from_secs(90);

pub(crate) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>) {
    let envoy = envoy_missing();
    let with_envoy = missing.or(envoy.as_deref());
    let shapes = "two services of one pod, several and named ports, headless, without selector and IPv6 services are reached; so are gRPC, WebSocket, raw and server-first TCP";
    let shapes_files = "[e2e_client_server_connectivity, e2e_multiple_ports_per_service, e2e_multiple_services_per_pod, e2e_grpc_insecure_origination, e2e_tcp_client_server, e2e_tcp_server_first]";
    let egress_name = "nothing leaves the mesh, all does with egress on, and by an Egress policy its host alone";
    let egress_files = "[e2e_egress, e2e_egress_policy, e2e_tcp_egress]";
    let ours = |name: &str, files: &str| format!("{name} (oxmesh) {files}");
    let envoys = |name: &str, files: &str| format!("{name} (envoy) {files}");
    scenario(trials, missing, &ours(shapes, shapes_files), |cluster| services(cluster, DataPlane::Oxmesh));
    scenario(trials, with_envoy, &envoys(shapes, shapes_files), |cluster| services(cluster, DataPlane::Envoy));
    scenario(trials, missing, &ours(egress_name, egress_files), |cluster| egress(cluster, DataPlane::Oxmesh));
    scenario(trials, with_envoy, &envoys(egress_name, egress_files), |cluster| egress(cluster, DataPlane::Envoy));
}

/// Manifests with the image of the tests' application.
fn manifests(cluster: &Cluster, text: &str) -> String {
    text.replace("{{app}}", &cluster.image("app"))
}

async fn services(cluster: &'static Cluster, plane: DataPlane) -> Result<()> {
    let mesh = Installed::new(cluster, plane, &[]).await?;
    let ns = mesh.namespace("traffic").await?;
    ns.apply(&manifests(cluster, include_str!("data/traffic.yaml")).replace("{{namespace}}", ns.name())).await?;
    for pod in ["pod/store", "pod/client", "pod/thief"] {
        ns.wait(pod, "condition=Ready", LIMIT).await?;
    }
    by_hand(&ns).await?;
    http(&ns).await?;
    grpc_and_websocket(&ns).await?;
    tcp(&ns).await?;
    ensure!(mesh.nacks().await? == 0, "a sidecar refused its configuration");
    let connected = mesh.metric("osm_proxy_connect_count").await?;
    ensure!((connected - 3.0).abs() < 0.5, "{connected} of 3 sidecars are connected");
    Ok(())
}

/// The endpoints of the service without selector: the store's pod, as a program of the user would write them.
async fn by_hand(ns: &Namespace) -> Result<()> {
    let pod = ns.get(["pod", "store"]).await?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "store-by-hand", "labels": {"kubernetes.io/service-name": "store-by-hand"}},
        "endpoints": [{"addresses": [pod["status"]["podIP"]]}],
        "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}],
    });
    ns.apply(&slice.to_string()).await.map(|_| ())
}

/// Each service answers fifty requests without a failure, on the port that was meant, and none of the thief's.
async fn http(ns: &Namespace) -> Result<()> {
    let services = [
        ("http://store/", 8080),
        ("http://store:81/", 8081),
        ("http://store-too/", 8080),
        ("http://store-headless:8080/", 8080),
        ("http://store-by-hand/", 8080),
        ("http://store6/", 8080),
    ];
    for (url, port) in services {
        let ask = || async { Ok(serde_json::from_str::<Value>(&curl(ns, "client", url).await?)?) };
        let answer = eventually(&format!("{url} answers"), FOLLOWS, ask).await?;
        ensure!(answer["identity"] == "store" && answer["port"] == port, "{url}: {answer}");
        let load = ["oxmesh-test-app", "load", url, "--rate", "50", "--seconds", "1", "--connections", "2"];
        Load::parse(&ns.exec("client", load).await?)?.all_ok(50)?;
        ensure!(curl(ns, "thief", url).await.is_err(), "the thief was answered by {url}");
    }
    Ok(())
}

async fn grpc_and_websocket(ns: &Namespace) -> Result<()> {
    let call = || ns.exec("client", ["oxmesh-test-app", "grpc", "http://store:9000"]);
    let called: Value = serde_json::from_str(&eventually("gRPC calls are answered", FOLLOWS, call).await?)?;
    ensure!(called == json!({"unary": 20, "streamed": 50, "identity": "store"}), "{called}");
    ensure!(ns.exec("thief", ["oxmesh-test-app", "grpc", "http://store:9000"]).await.is_err(), "the thief called");

    let hold = ["oxmesh-test-app", "websocket", "ws://store:8090/", "--seconds", "2"];
    let held: Value =
        serde_json::from_str(&eventually("a WebSocket opens", FOLLOWS, || ns.exec("client", hold)).await?)?;
    ensure!(held["identity"] == "store" && held["rounds"].as_u64() > Some(10), "{held}");
    ensure!(ns.exec("thief", hold).await.is_err(), "the thief got a WebSocket");
    Ok(())
}

async fn tcp(ns: &Namespace) -> Result<()> {
    // What comes back first, for a line sent; nothing is sent to the server that speaks first until it has spoken.
    let echo = "(echo hello; sleep 1) | nc -w 3 store 9001";
    let banner = "sleep 1 | nc -w 3 store 3306";
    for (script, expected) in [(echo, "hello"), (banner, "store")] {
        eventually(&format!("{script} is answered"), FOLLOWS, || async {
            let said = ns.exec("client", ["sh", "-c", script]).await?;
            ensure!(said.trim() == expected, "{script}: {said:?}");
            Ok(())
        })
        .await?;
        let quiet = format!("{script} || true");
        let stolen = ns.exec("thief", ["sh", "-c", &quiet]).await?;
        ensure!(stolen.is_empty(), "the thief got {stolen:?} of {script}");
    }
    Ok(())
}

async fn curl(ns: &Namespace, pod: &str, url: &str) -> Result<String> {
    ns.exec(pod, ["curl", "-fsS", "--max-time", "5", url]).await
}

/// The world outside is a pod of a namespace that no mesh knows.
async fn egress(cluster: &'static Cluster, plane: DataPlane) -> Result<()> {
    let mesh = Installed::new(cluster, plane, &[]).await?;
    let ns = mesh.namespace("egress").await?;
    let outside = cluster.namespace("outside").await?;
    let text = include_str!("data/egress.yaml");
    let (inside_yaml, outside_yaml) = text.split_once("# Outside\n").unwrap_or((text, ""));
    ns.apply(&manifests(cluster, inside_yaml)).await?;
    outside.apply(&manifests(cluster, outside_yaml)).await?;
    outside.wait("pod/outside", "condition=Ready", LIMIT).await?;
    for pod in ["pod/client", "pod/other"] {
        ns.wait(pod, "condition=Ready", LIMIT).await?;
    }
    let world = World { ns, url: format!("http://outside.{}.svc.cluster.local/", outside.name()), outside };

    world.closed("client").await?;
    mesh.configure(json!({"traffic": {"enableEgress": true}})).await?;
    eventually("with egress on, all may leave", FOLLOWS, || world.open("client")).await?;
    world.open("other").await?;
    world.tcp("client").await?;
    let load = ["oxmesh-test-app", "load", world.url.as_str(), "--rate", "50", "--seconds", "1"];
    Load::parse(&world.ns.exec("client", load).await?)?.all_ok(50)?;

    mesh.configure(json!({"traffic": {"enableEgress": false}})).await?;
    eventually("with egress off again, nobody may", FOLLOWS, || world.closed("client")).await?;
    ensure!(world.tcp("client").await.is_err(), "TCP left with egress off");

    let policy = include_str!("data/egress-policy.yaml");
    let policy = policy.replace("{{namespace}}", world.ns.name()).replace("{{outside}}", world.outside.name());
    world.ns.apply(&policy).await?;
    eventually("by policy the client may", FOLLOWS, || world.open("client")).await?;
    world.closed("other").await?;
    // The policy is for the host, not for the address that it has.
    let elsewhere = ["curl", "-fsS", "--max-time", "5", "-H", "host: elsewhere.example", world.url.as_str()];
    ensure!(world.ns.exec("client", elsewhere).await.is_err(), "another host was reached at the same address");
    world.ns.kubectl(["delete", "egress", "to-outside"]).await?;
    eventually("without the policy the client may not", FOLLOWS, || world.closed("client")).await?;
    ensure!(mesh.nacks().await? == 0, "a sidecar refused its configuration");
    Ok(())
}

/// A namespace of the mesh, and what lies outside.
struct World {
    ns: Namespace,
    outside: Namespace,
    url: String,
}

impl World {
    async fn open(&self, pod: &str) -> Result<()> {
        let answer = curl(&self.ns, pod, &self.url).await?;
        ensure!(answer.contains("\"identity\":\"outside\""), "{answer}");
        Ok(())
    }

    async fn closed(&self, pod: &str) -> Result<()> {
        let answer = curl(&self.ns, pod, &self.url).await;
        ensure!(answer.is_err(), "{pod} reached the outside: {answer:?}");
        Ok(())
    }

    /// Raw TCP to the address of a pod outside. The client speaks first: of a port that no object tells of, a sidecar reads
    /// the first bytes before it knows the protocol.
    async fn tcp(&self, pod: &str) -> Result<()> {
        let status = self.outside.get(["pod", "outside"]).await?;
        let script =
            format!("(echo hello; sleep 1) | nc -w 3 {} 9001", status["status"]["podIP"].as_str().unwrap_or_default());
        let said = self.ns.exec(pod, ["sh", "-c", &script]).await?;
        ensure!(said.trim() == "hello", "{said:?}");
        Ok(())
    }
}
