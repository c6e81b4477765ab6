//! The control plane as a workload of a cluster: its authority, its lease, and what it writes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api_server;

use std::time::Duration;

use api_server::ApiServer;
use oxmesh_controller::app::{App, Authority, Options, Source};
use oxmesh_controller::identity::ca_secret;
use oxmesh_controller::settings::Settings;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

async fn start(server: &ApiServer) -> App {
    let any = ([127, 0, 0, 1], 0).into();
    let client = server.client();
    let app = App::start(Options {
        source: Source::Kubernetes(client.clone()),
        authority: Authority::Secret { client, name: "osm-ca-bundle".to_owned() },
        xds_address: any,
        admin_address: any,
        xds_names: vec![],
        xds_ips: vec![],
        spiffe: false,
        identity_address: any,
        inject: None,
        settings: Settings::default(),
    })
    .await
    .unwrap();
    timeout(WAIT, app.ready()).await.unwrap();
    app
}

async fn until<T>(what: &str, found: impl Fn() -> Option<T>) -> T {
    let look = async {
        loop {
            match found() {
                Some(found) => break found,
                None => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(WAIT, look).await.unwrap_or_else(|_| panic!("{what}"))
}

fn preset(text: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "preset-mesh-config", "namespace": "osm-system"},
        "data": {"preset-mesh-config.json": text}})
}

fn target(name: &str, rule: &str) -> Value {
    json!({"apiVersion": "access.smi-spec.io/v1alpha3", "kind": "TrafficTarget",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"destination": {"kind": "ServiceAccount", "name": "web", "namespace": "shop"},
            "sources": [{"kind": "ServiceAccount", "name": "web", "namespace": "shop"}],
            "rules": [{"kind": "TCPRoute", "name": rule}]}})
}

fn shop() -> Vec<Value> {
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "shop", "labels": {"openservicemesh.io/monitored-by": "osm"}}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web", "namespace": "shop"}}),
        json!({"apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "TCPRoute", "metadata": {"name": "r", "namespace": "shop"},
            "spec": {"matches": {"ports": [80]}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "odd", "namespace": "shop"},
            "spec": {"selector": {"app": "x"}, "ports": [{"port": 80}]}}),
    ]
}

fn holder(server: &ApiServer) -> Option<String> {
    let lease = server.get("/apis/coordination.k8s.io/v1/leases", "osm-system", "osm-controller")?;
    lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn a_new_mesh_gets_its_mesh_config_and_every_object_an_answer() {
    let server = ApiServer::default();
    shop().iter().for_each(|object| server.put(object));
    server.put(&preset(r#"{"traffic": {"enableEgress": true}}"#));
    server.put(&target("good", "r"));
    server.put(&target("bad", "absent"));
    let app = start(&server).await;
    let config = until("a MeshConfig", || server.get(CONFIGS, "osm-system", "osm-mesh-config")).await;
    assert_eq!(config["spec"]["traffic"]["enableEgress"], true);
    let status = |name: &'static str| {
        let server = server.clone();
        move || server.get(TARGETS, "shop", name)?.get("status").cloned()
    };
    let good = until("an answer", status("good")).await;
    assert_eq!(good, json!({"currentStatus": "committed", "reason": "successfully committed by the system"}));
    let bad = until("an answer", status("bad")).await;
    assert_eq!(bad["currentStatus"], "error");
    assert!(bad["reason"].as_str().unwrap().starts_with("error: spec.rules[0]"), "{bad}");
    let events = until("an event", || Some(server.all(EVENTS)).filter(|events| !events.is_empty())).await;
    assert_eq!((&events[0]["regarding"]["kind"], &events[0]["regarding"]["name"]), (&json!("Service"), &json!("odd")));
    assert!(events[0]["note"].as_str().unwrap().contains("no address yet"), "{events:?}");

    server.put(&target("bad", "r"));
    until("the mended answer", || {
        (server.get(TARGETS, "shop", "bad")?["status"]["currentStatus"] == "committed").then_some(())
    })
    .await;
    // Nothing is written again and again.
    sleep(Duration::from_secs(2)).await;
    let patches = |server: &ApiServer| {
        server.requests().iter().filter(|r| r.starts_with("PATCH") && r.contains("/status")).count()
    };
    let before = patches(&server);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(patches(&server), before);
    app.stop().await;
}

#[tokio::test]
async fn a_preset_that_is_wrong_changes_nothing_and_a_mesh_config_that_is_there_stays() {
    let server = ApiServer::default();
    server.put(&preset(r#"{"trafic": {}}"#));
    let app = start(&server).await;
    until("a holder of the lease", || holder(&server)).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(server.all(CONFIGS), [] as [Value; 0]);
    assert!(app.findings().iter().any(|f| f.to_string().contains("osm-mesh-config: is not there")));
    app.stop().await;

    let own = json!({"apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
        "metadata": {"name": "osm-mesh-config", "namespace": "osm-system"}, "spec": {}});
    server.put(&own);
    server.put(&preset(r#"{"traffic": {"enableEgress": true}}"#));
    let app = start(&server).await;
    until("an answer to the MeshConfig", || {
        server.get(CONFIGS, "osm-system", "osm-mesh-config")?.get("status").cloned()
    })
    .await;
    assert_eq!(server.get(CONFIGS, "osm-system", "osm-mesh-config").unwrap()["spec"], json!({}));
    app.stop().await;
}

#[tokio::test]
async fn of_two_replicas_one_holds_the_lease_and_gives_it_back() {
    let server = ApiServer::default();
    let first = start(&server).await;
    let holder_1 = until("a holder", || holder(&server)).await;
    let second = start(&server).await;
    assert_eq!(first.issuer().ca().cert_pem(), second.issuer().ca().cert_pem());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(holder(&server).as_ref(), Some(&holder_1));
    first.stop().await;
    assert_ne!(holder(&server).as_ref(), Some(&holder_1), "given back");
    let other = || holder(&server).filter(|holder| *holder != holder_1);
    until("another holder", other).await;
    second.stop().await;
}

#[tokio::test]
async fn replicas_that_race_for_the_authority_end_with_one_and_never_write_over_it() {
    let server = ApiServer::default();
    let client = server.client();
    let race = (0..8).map(|_| ca_secret::open_or_create(&client, "osm-system", "osm-ca-bundle"));
    let all = futures_util::future::join_all(race).await;
    let roots: Vec<String> = all.into_iter().map(|ca| ca.unwrap().cert_pem().to_owned()).collect();
    assert!(roots.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(server.all(SECRETS).len(), 1);

    let mut broken = server.all(SECRETS).remove(0);
    broken["data"].as_object_mut().unwrap().remove("private.key");
    server.put(&broken);
    let error = ca_secret::open_or_create(&client, "osm-system", "osm-ca-bundle").await.unwrap_err().to_string();
    assert!(error.starts_with("Secret osm-system/osm-ca-bundle, key private.key: missing"), "{error}");
    assert_eq!(server.all(SECRETS)[0]["data"], broken["data"]);
}

const CONFIGS: &str = "/apis/config.openservicemesh.io/v1alpha2/meshconfigs";
const TARGETS: &str = "/apis/access.smi-spec.io/v1alpha3/traffictargets";
const EVENTS: &str = "/apis/events.k8s.io/v1/events";
const SECRETS: &str = "/api/v1/secrets";
const WAIT: Duration = Duration::from_secs(40);
