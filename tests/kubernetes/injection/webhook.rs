//! The webhook's configuration is kept right, and without the webhook no pod of the mesh starts.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    cluster::{Cluster, Namespace},
    eventually,
    installed::{DataPlane, Installed},
};
use serde_json::{Value, json};

use super::{LIMIT, names, refused};
use crate::scenario;

pub(super) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>) {
    let name = "a webhook configuration that was broken or made anew is right within seconds [e2e_reconciler]";
    scenario(trials, missing, name, kept_right);
    let name = "while the control plane is away no pod of the mesh is made, and others are as ever";
    scenario(trials, missing, name, away);
}

const SOON: Duration = Duration::from_secs(10);

async fn kept_right(cluster: &'static Cluster) -> Result<()> {
    let mesh = Installed::new(cluster, DataPlane::Oxmesh, &[]).await?;
    let ns = mesh.namespace("webhook").await?;
    let name = format!("osm-webhook-{}", mesh.name());
    let read = || async {
        let text = cluster.kubectl(["get", "mutatingwebhookconfiguration", &name, "-o", "json"]).await?;
        Ok::<Value, anyhow::Error>(serde_json::from_str(&text)?)
    };
    let bundle = |object: &Value| object.pointer("/webhooks/0/clientConfig/caBundle").cloned();
    let first = read().await?;
    let right = bundle(&first).filter(Value::is_string).context("no caBundle")?;
    injected(cluster, &ns, "one").await?;

    // Somebody else's authority, and none.
    for wrong in [json!("Y2VydA=="), json!("")] {
        let patch = json!([{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": wrong}]).to_string();
        let set = ["patch", "mutatingwebhookconfiguration", &name, "--type=json", "-p", &patch];
        cluster.kubectl(set).await?;
        restored(&read, &bundle, &right).await?;
    }
    injected(cluster, &ns, "two").await?;

    cluster.kubectl(["delete", "mutatingwebhookconfiguration", &name]).await?;
    let mut anew = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name, "labels": first["metadata"]["labels"], "annotations": first["metadata"]["annotations"]},
        "webhooks": first["webhooks"]});
    anew.pointer_mut("/webhooks/0/clientConfig").and_then(Value::as_object_mut).context("webhooks")?.remove("caBundle");
    cluster.apply(&anew.to_string()).await?;
    restored(&read, &bundle, &right).await?;
    injected(cluster, &ns, "three").await
}

async fn restored<F>(read: &impl Fn() -> F, bundle: &impl Fn(&Value) -> Option<Value>, right: &Value) -> Result<()>
where
    F: Future<Output = Result<Value>>,
{
    eventually("caBundle is right again", SOON, || async {
        let now = bundle(&read().await?);
        ensure!(now.as_ref() == Some(right), "{now:?}");
        Ok(())
    })
    .await
}

fn pod(cluster: &Cluster, name: &str) -> String {
    let image = cluster.image("app");
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{name: app, image: {image}, command: [sleep, "3600"]}}]
"#
    )
}

/// The API server hears of the configuration a moment later itself.
async fn injected(cluster: &Cluster, ns: &Namespace, name: &str) -> Result<()> {
    eventually("a pod gets its sidecar", SOON, || async { ns.apply(&pod(cluster, name)).await }).await?;
    let stored = ns.get(["pod", name]).await?;
    ensure!(names(&stored["spec"]["initContainers"]).contains(&"envoy"), "{stored}");
    Ok(())
}

async fn away(cluster: &'static Cluster) -> Result<()> {
    let mesh = Installed::new(cluster, DataPlane::Oxmesh, &[]).await?;
    let ns = mesh.namespace("away").await?;
    let outside = cluster.namespace("outside").await?;
    injected(cluster, &ns, "before").await?;
    let scale =
        |replicas: &'static str| cluster.kubectl(["-n", mesh.name(), "scale", "deploy/osm-controller", replicas]);
    scale("--replicas=0").await?;
    let gone = || async {
        let left =
            cluster.kubectl(["-n", mesh.name(), "get", "pods", "-l", "app=osm-controller", "-o", "name"]).await?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    };
    eventually("the control plane is away", LIMIT, gone).await?;
    refused(ns.apply(&pod(cluster, "during")).await, "failed calling webhook")?;
    // Not even one that asks for no sidecar: nobody is there to tell.
    let asks_not = pod(cluster, "without")
        .replace("metadata: {", "metadata: {annotations: {openservicemesh.io/sidecar-injection: disabled}, ");
    refused(ns.apply(&asks_not).await, "failed calling webhook")?;
    outside.apply(&pod(cluster, "free")).await?;
    outside.wait("pod/free", "condition=Ready", LIMIT).await?;
    let free = outside.get(["pod", "free"]).await?;
    ensure!(free["spec"].get("initContainers").is_none(), "{free}");
    let left = ns.kubectl(["get", "pods", "-o", "name"]).await?;
    ensure!(left.trim() == "pod/before", "{left}");
    scale("--replicas=1").await?;
    mesh.ready(LIMIT).await?;
    injected(cluster, &ns, "after").await?;
    ns.wait("pod/after", "condition=Ready", LIMIT).await
}
