//! Pods as the API server stores them, and those that get no sidecar or are refused.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    cluster::{Cluster, Namespace},
    eventually,
    installed::DataPlane,
};
use serde_json::{Value, json};

use super::{LIMIT, choose, container, mesh, names, namespace, refused};
use crate::scenario;

pub(super) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>, with_envoy: Option<&str>) {
    let ours = "a pod is stored with our proxy as its sidecar, its key made in the pod";
    scenario(trials, missing, ours, oxmesh);
    let envoy =
        "a pod is stored with OSM's Envoy as its sidecar, and the Secret goes with the pod [e2e_garbage_collector]";
    scenario(trials, with_envoy, envoy, secret_of_envoy);
    let not = "a pod without a sidecar is one that said so, or whose namespace did, or on the node's network [e2e_ignore_namespace]";
    scenario(trials, missing, not, left_alone);
    scenario(trials, missing, "why a pod is refused stands in the events of what makes it", refusals);
}

fn pod(name: &str, image: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: app
      image: {image}
      args: [serve, --http, "8080"]
      ports: [{{name: web, containerPort: 8080}}]
      readinessProbe: {{httpGet: {{path: /health, port: web}}, periodSeconds: 1}}
"#
    )
}

async fn oxmesh(cluster: &'static Cluster) -> Result<()> {
    let mesh = mesh(cluster).await?;
    let ns = namespace(&mesh, "stored", DataPlane::Oxmesh).await?;
    ns.apply(&pod("web", &cluster.image("app"))).await?;
    let stored = ns.get(["pod", "web"]).await?;
    common(&stored)?;
    let sidecar = container(&stored, "initContainers", "envoy")?;
    ensure!(sidecar["image"] == json!(cluster.image("proxy")), "{sidecar}");
    let mounts = names(&sidecar["volumeMounts"]);
    ensure!(mounts.contains(&"oxmesh-identity") && mounts.contains(&"oxmesh-token"), "{mounts:?}");
    let volume = |name: &str| stored["spec"]["volumes"].as_array()?.iter().find(|v| v["name"] == name).cloned();
    ensure!(volume("oxmesh-identity").context("no identity")?["emptyDir"]["medium"] == "Memory");
    let token = volume("oxmesh-token").context("no token")?;
    ensure!(token.pointer("/projected/sources/0/serviceAccountToken/audience") == Some(&json!("oxmesh.io")), "{token}");
    ensure!(volume("envoy-bootstrap-config-volume").is_none());
    ns.wait("pod/web", "condition=Ready", LIMIT).await?;
    let secrets = ns.kubectl(["get", "secrets", "-o", "name"]).await?;
    ensure!(secrets.is_empty(), "no Secret is made for our proxy: {secrets}");

    // The stored pod, sent again under its own uuid, would be a second with the identity of the first.
    let dump = ns.kubectl(["get", "pod", "web", "-o", "json"]).await?;
    let mut copy: Value = serde_json::from_str(&dump)?;
    copy["metadata"] = json!({"name": "copy", "labels": copy["metadata"]["labels"]});
    refused(ns.apply(&copy.to_string()).await, "belongs to a pod that is there already")?;
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

async fn secret_of_envoy(cluster: &'static Cluster) -> Result<()> {
    let mesh = mesh(cluster).await?;
    let ns = namespace(&mesh, "stored-envoy", DataPlane::Oxmesh).await?;
    // At once: the namespace counts as it is now.
    choose(&ns, DataPlane::Envoy).await?;
    let manifest = pod("web", &cluster.image("app"));
    ns.apply(&manifest).await?;
    let stored = ns.get(["pod", "web"]).await?;
    common(&stored)?;
    ensure!(container(&stored, "initContainers", "envoy")?["image"] == json!(cluster.envoy_image()));
    let uuid = stored["metadata"]["labels"]["osm-proxy-uuid"].as_str().context("uuid")?;
    let name = format!("envoy-bootstrap-config-{uuid}");
    let volumes = stored["spec"]["volumes"].as_array().context("volumes")?;
    ensure!(volumes.iter().any(|v| v["secret"]["secretName"] == json!(name)), "{volumes:?}");
    let owned = || async {
        let secret = ns.get(["secret", &name]).await?;
        ensure!(secret["metadata"]["ownerReferences"][0]["uid"] == stored["metadata"]["uid"], "{}", secret["metadata"]);
        Ok(())
    };
    eventually("the pod owns its Secret", Duration::from_secs(20), owned).await?;
    ns.wait("pod/web", "condition=Ready", LIMIT).await?;
    ns.kubectl(["delete", "pod", "web"]).await?;
    let gone = || async {
        let left = ns.kubectl(["get", "secrets", "-o", "name"]).await?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    };
    eventually("the Secret goes with its pod", Duration::from_secs(30), gone).await?;

    // One whose pods never come goes with what would have made them.
    ns.kubectl(["create", "quota", "none", "--hard=pods=0"]).await?;
    ns.apply(&deployment("never", &manifest)?).await?;
    let owner = || async {
        let secrets = ns.get(["secrets"]).await?;
        let kind = secrets.pointer("/items/0/metadata/ownerReferences/0/kind").cloned();
        ensure!(kind == Some(json!("ReplicaSet")), "{kind:?}");
        Ok(())
    };
    eventually("the ReplicaSet owns a Secret", Duration::from_secs(20), owner).await?;
    ns.kubectl(["delete", "deployment", "never"]).await?;
    eventually("the Secrets go with the ReplicaSet", Duration::from_secs(30), gone).await?;
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

/// What both kinds share with the pods that OSM makes.
fn common(pod: &Value) -> Result<()> {
    let uuid = pod["metadata"]["labels"]["osm-proxy-uuid"].as_str().context("no label osm-proxy-uuid")?;
    ensure!(uuid.len() == 36, "{uuid}");
    ensure!(names(&pod["spec"]["initContainers"]) == ["osm-init", "envoy"], "{}", pod["spec"]["initContainers"]);
    ensure!(names(&pod["spec"]["containers"]) == ["app"]);
    let init = container(pod, "initContainers", "osm-init")?;
    let rights = &init["securityContext"];
    ensure!(rights["capabilities"] == json!({"add": ["NET_ADMIN"], "drop": ["ALL"]}), "{rights}");
    ensure!(rights["privileged"] == false && rights["allowPrivilegeEscalation"] == false, "{rights}");
    let sidecar = container(pod, "initContainers", "envoy")?;
    ensure!(sidecar["restartPolicy"] == "Always", "{sidecar}");
    ensure!(sidecar["startupProbe"]["httpGet"]["port"] == 15902, "{sidecar}");
    let rights = &sidecar["securityContext"];
    ensure!(rights["runAsUser"] == 1500 && rights["runAsNonRoot"] == true, "{rights}");
    ensure!(rights["capabilities"] == json!({"drop": ["ALL"]}) && rights["readOnlyRootFilesystem"] == true, "{rights}");
    let fields = names(&sidecar["env"]);
    for name in ["POD_UID", "POD_NAME", "POD_NAMESPACE", "POD_IP", "SERVICE_ACCOUNT"] {
        ensure!(fields.contains(&name), "no {name} in {fields:?}");
    }
    let ports = names(&sidecar["ports"]);
    for name in ["proxy-admin", "proxy-inbound", "proxy-metrics", "readiness-port"] {
        ensure!(ports.contains(&name), "no {name} in {ports:?}");
    }
    let probe = &container(pod, "containers", "app")?["readinessProbe"];
    ensure!(probe["httpGet"]["port"] == 15902 && probe["periodSeconds"] == 1, "{probe}");
    Ok(())
}

async fn left_alone(cluster: &'static Cluster) -> Result<()> {
    let mesh = mesh(cluster).await?;
    let ns = namespace(&mesh, "alone", DataPlane::Oxmesh).await?;
    let with = |name: &str, change: Value| -> Result<String> {
        let mut object: Value = serde_saphyr::from_str(&pod(name, &cluster.image("app")))?;
        merge(&mut object, &change);
        Ok(object.to_string())
    };
    let annotated = |value: &str| json!({"metadata": {"annotations": {"openservicemesh.io/sidecar-injection": value}}});
    let ignored = json!({"metadata": {"labels": {"openservicemesh.io/ignore": "true"}}});
    // The port is not to collide with another test's on the node.
    let host = json!({"spec": {"hostNetwork": true, "containers": [{"name": "app", "image": cluster.image("app"),
        "command": ["sleep", "60"]}]}});
    ns.apply(&with("disabled", annotated("disabled"))?).await?;
    ns.apply(&with("ignored", ignored)?).await?;
    let said = ns.apply(&with("host", host)?).await?;
    ensure!(said.contains("created"), "{said}");
    ns.apply(&with("usual", json!({}))?).await?;
    expect_sidecars(&ns, &["usual"]).await?;
    refused(ns.apply(&with("odd", annotated("perhaps"))?).await, "openservicemesh.io/sidecar-injection of the pod")?;

    mesh.oxmesh(["namespace", "ignore", ns.name()]).await?;
    ns.apply(&with("later", annotated("enabled"))?).await?;
    expect_sidecars(&ns, &["usual"]).await
}

async fn expect_sidecars(ns: &Namespace, expected: &[&str]) -> Result<()> {
    let pods = ns.get(["pods"]).await?;
    let items = pods["items"].as_array().context("items")?;
    ensure!(items.len() >= 4, "{} pods", items.len());
    let with = items.iter().filter(|pod| names(&pod["spec"]["initContainers"]).contains(&"envoy"));
    let with: Vec<_> = with.filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
    ensure!(with == expected, "sidecars: {with:?}");
    Ok(())
}

fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}

/// The pod of a manifest, made by a Deployment.
fn deployment(name: &str, pod: &str) -> Result<String> {
    let pod: Value = serde_saphyr::from_str(pod)?;
    let labels = json!({"app": name});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod["spec"]}}});
    Ok(deployment.to_string())
}

async fn refusals(cluster: &'static Cluster) -> Result<()> {
    let mesh = mesh(cluster).await?;
    let ns = namespace(&mesh, "refusals", DataPlane::Oxmesh).await?;
    let mut object: Value = serde_json::from_str(&deployment("bad", &pod("bad", &cluster.image("app")))?)?;
    object["spec"]["template"]["spec"]["securityContext"] = json!({"runAsUser": 1500});
    ns.apply(&object.to_string()).await?;
    let words = "spec.securityContext.runAsUser: 1500 is the sidecar's own";
    let told = || async {
        let events = ns.kubectl(["get", "events", "--field-selector", "involvedObject.kind=ReplicaSet"]).await?;
        ensure!(events.contains("oxmesh injector") && events.contains(words), "{events}");
        Ok(())
    };
    eventually("the ReplicaSet's event says why", Duration::from_secs(20), told).await?;
    ensure!(ns.kubectl(["get", "pods", "-o", "name"]).await?.is_empty());
    Ok(())
}
