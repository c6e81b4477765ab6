//! Kubelet's probes reach the application through the sidecar, and fail when it fails.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    cluster::{Cluster, Namespace},
    eventually,
    installed::DataPlane,
};
use serde_json::{Value, json};

use super::{Form, LIMIT, mesh_of, namespace};
use crate::scenario;

pub(super) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>, with_envoy: Option<&str>) {
    let name = "http, https, TCP and gRPC probes of each kind tell kubelet of the application [e2e_health_probe]";
    scenario(trials, missing, name, |cluster| each_kind(cluster, DataPlane::Oxmesh, Form::Native));
    let envoy = format!("{name} (envoy)");
    scenario(trials, with_envoy, &envoy, |cluster| each_kind(cluster, DataPlane::Envoy, Form::Native));
}

const KINDS: [&str; 4] = ["http", "https", "tcp", "grpc"];

/// The probe of a container, whose application listens at `base` and the two ports after it.
fn probe(kind: &str, base: u16, failures: u32) -> Value {
    let header = json!([{"name": "X-Asked-By", "value": "kubelet"}]);
    let mut probe = match kind {
        "http" => json!({"httpGet": {"path": "/health/with/x-asked-by", "port": "web", "httpHeaders": header}}),
        "https" => json!({"httpGet": {"path": "/health", "port": base + 1, "scheme": "HTTPS"}}),
        "tcp" => json!({"tcpSocket": {"port": base + 2}}),
        _ => json!({"grpc": {"port": base}}),
    };
    probe["periodSeconds"] = json!(1);
    probe["timeoutSeconds"] = json!(5);
    probe["failureThreshold"] = json!(failures);
    probe
}

/// One pod with a container for each kind of probe.
fn pod(name: &str, field: &str, failures: u32, healthy: bool, image: &str) -> Value {
    let containers = KINDS.iter().zip([8000_u16, 8010, 8020, 8030]).map(|(kind, base)| {
        let [http, https, echo] = [base, base + 1, base + 2].map(|port| port.to_string());
        let mut args = vec!["serve", "--http", &http, "--https", &https, "--echo", &echo];
        args.extend((!healthy).then_some("--unhealthy"));
        let mut container = json!({"name": kind, "image": image, "args": args});
        if *kind == "http" {
            container["ports"] = json!([{"name": "web", "containerPort": base}]);
        }
        container[field] = probe(kind, base, failures);
        container
    });
    let containers: Vec<Value> = containers.collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": containers}})
}

pub(super) async fn each_kind(cluster: &'static Cluster, plane: DataPlane, form: Form) -> Result<()> {
    let mesh = mesh_of(cluster, form).await?;
    let ns = namespace(&mesh, "probes", plane).await?;
    let image = cluster.image("app");
    let patient = 600;
    let living = match form {
        Form::Native => 4,
        // Beside an Envoy the application starts before there is somebody to pass its probes on.
        Form::First => 15,
    };
    let pods = json!({"apiVersion": "v1", "kind": "List", "items": [
        pod("starting", "startupProbe", patient, false, &image),
        pod("ready", "readinessProbe", 1, true, &image),
        pod("living", "livenessProbe", living, true, &image),
    ]});
    ns.apply(&pods.to_string()).await?;
    ns.wait("pod/ready", "condition=Ready", LIMIT).await?;
    ns.wait("pod/living", "condition=Ready", LIMIT).await?;
    let running = |state: &Value| state["state"].get("running").is_some();
    expect(&ns, "starting", "run, and are not started", |state| running(state) && state["started"] == false).await?;

    for pod in ["ready", "living"] {
        expect(&ns, pod, "have not been restarted", |state| state["restartCount"] == 0).await?;
        switch(&ns, pod, "off").await?;
    }
    expect(&ns, "ready", "are not ready", |state| state["ready"] == false && state["restartCount"] == 0).await?;
    expect(&ns, "living", "were restarted", |state| state["restartCount"].as_u64() >= Some(1)).await?;
    // Still: no probe was answered by anything but the application.
    expect(&ns, "starting", "are not started", |state| running(state) && state["started"] == false).await?;
    switch(&ns, "starting", "on").await?;
    switch(&ns, "ready", "on").await?;
    for pod in ["starting", "ready", "living"] {
        expect(&ns, pod, "are ready", |state| state["ready"] == true).await?;
    }
    expect(&ns, "starting", "have not been restarted", |state| state["restartCount"] == 0).await?;
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

/// Makes the applications of all containers well or not.
async fn switch(ns: &Namespace, pod: &str, to: &str) -> Result<()> {
    for (kind, port) in KINDS.iter().zip([8000, 8010, 8020, 8030]) {
        let url = format!("http://127.0.0.1:{port}/health/{to}");
        ns.kubectl(["exec", pod, "-c", kind, "--", "curl", "-fsS", "--max-time", "5", &url]).await?;
    }
    Ok(())
}

async fn expect(ns: &Namespace, pod: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<()> {
    eventually(&format!("all containers of {pod} {what}"), Duration::from_secs(60), || async {
        let object = ns.get(["pod", pod]).await?;
        let all = object["status"]["containerStatuses"].as_array().context("no statuses")?;
        // A sidecar may stand among them.
        let ours = |state: &&Value| KINDS.iter().any(|kind| state["name"] == *kind);
        let states: Vec<&Value> = all.iter().filter(ours).collect();
        ensure!(states.len() == KINDS.len(), "{states:?}");
        let wrong: Vec<_> = states.into_iter().filter(|state| !is(state)).collect();
        ensure!(wrong.is_empty(), "{wrong:?}");
        Ok(())
    })
    .await
}
