//! What goes on when a permission of the chart's roles is taken away: the controller says which, doesn't end, and only what
//! needs it waits. That each of them is asked for in words is shown in [`crate::privilege`].

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    cluster::{Cluster, Namespace},
    eventually,
    installed::{DataPlane, Installed},
};
use serde_json::{Value, json};

use crate::{scenario, steady::Steady};

const LIMIT: Duration = Duration::from_secs(40);

pub(crate) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>) {
    let name = "a controller that lacks a permission names it and goes on with what doesn't need it";
    scenario(trials, missing, name, denied);
}

async fn denied(cluster: &'static Cluster) -> Result<()> {
    let mesh = Installed::new(cluster, DataPlane::Oxmesh, &[]).await?;
    let steady = Steady::start(cluster, &mesh, 20).await?;
    let outside = cluster.namespace("asks").await?;
    outside.apply(&include_str!("data/asks.yaml").replace("{{app}}", &cluster.image("app"))).await?;
    outside.wait("pod/curl", "condition=Ready", LIMIT).await?;
    let roles = Roles { cluster, mesh: &mesh };
    reviews(&roles, &steady).await?;
    secrets(&roles, &steady).await?;
    steady.all_ok().await?;
    reads(&roles, &outside).await?;
    authority(&roles).await?;
    lease_and_preset(&roles, &steady).await?;
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

/// Without `tokenreviews` a new pod waits for its certificate, and has it as soon as the permission is back.
async fn reviews(roles: &Roles<'_>, steady: &Steady) -> Result<()> {
    let lacking = roles.without(CLUSTER_ROLE, |rule| of(rule, "tokenreviews")).await?;
    steady.ns.kubectl(["scale", "deployment/store", "--replicas=2"]).await?;
    roles.says("cannot create resource \"tokenreviews\"").await?;
    roles.restore(lacking).await?;
    steady.ns.rolled_out("deployment/store", Duration::from_secs(60)).await
}

/// Without the authority's Secret a new controller can do nothing at all: it ends with words, and the old one goes on.
async fn authority(roles: &Roles<'_>) -> Result<()> {
    let lacking = roles.without(ROLE, |rule| of(rule, "secrets")).await?;
    roles.restart().await?;
    let words = "(the controller's Role must let it get and create Secrets in its namespace)";
    eventually("the new controller says what it lacks", LIMIT, || async {
        let said = roles.log().await?;
        ensure!(said.contains(words), "{}", said.lines().last().unwrap_or_default());
        Ok(())
    })
    .await?;
    roles.old_serves().await?;
    roles.restore(lacking).await?;
    roles.restart().await?;
    roles.mesh.ready(LIMIT).await
}

/// Without `secrets` a pod with real Envoy is refused in words, and pods with our own sidecar come up.
async fn secrets(roles: &Roles<'_>, steady: &Steady) -> Result<()> {
    let lacking = roles.without(CLUSTER_ROLE, |rule| of(rule, "secrets")).await?;
    let pod = |name: &str, plane: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "annotations": {"oxmesh.io/data-plane": plane}},
            "spec": {"terminationGracePeriodSeconds": 1, "serviceAccountName": "client", "containers": [{"name": "app",
                "image": roles.cluster.image("app"), "args": ["serve", "--http", "8080"]}]}})
        .to_string()
    };
    eventually("a pod with Envoy is refused", LIMIT, || async {
        match steady.ns.apply(&pod("with-envoy", "envoy")).await {
            Ok(_) => {
                steady.ns.kubectl(["delete", "pod", "with-envoy", "--now"]).await?;
                anyhow::bail!("it was taken");
            }
            Err(error) => {
                let words = format!("{error:#}");
                ensure!(words.contains("cannot create resource \"secrets\""), "{words}");
                Ok(())
            }
        }
    })
    .await?;
    steady.ns.apply(&pod("with-ours", "oxmesh")).await?;
    steady.ns.wait("pod/with-ours", "condition=Ready", LIMIT).await?;
    roles.restore(lacking).await
}

/// A new controller that may not read a kind, nor the webhook configuration, isn't ready and says why; the old one goes on
/// serving.
async fn reads(roles: &Roles<'_>, outside: &Namespace) -> Result<()> {
    let reads = |rule: &Value| of(rule, "meshconfigs") || of(rule, "mutatingwebhookconfigurations");
    let lacking = roles.without(CLUSTER_ROLE, reads).await?;
    roles.restart().await?;
    eventually("the new controller says what it waits for", LIMIT, || async {
        let said = roles.readiness(outside).await?;
        for words in [
            "cannot list resource \"meshconfigs\" in API group \"config.openservicemesh.io\"",
            "the controller's ClusterRole must allow it",
            "cannot list resource \"mutatingwebhookconfigurations\"",
        ] {
            ensure!(said.contains(words), "{words}: {said}");
        }
        Ok(())
    })
    .await?;
    roles.old_serves().await?;
    roles.restore(lacking).await?;
    roles.mesh.ready(LIMIT).await
}

/// Without the lease and MeshConfig's preset nothing is written, and a new controller serves all the same.
async fn lease_and_preset(roles: &Roles<'_>, steady: &Steady) -> Result<()> {
    let lacking = roles.without(ROLE, |rule| !of(rule, "secrets")).await?;
    roles.restart().await?;
    roles.mesh.ready(LIMIT).await?;
    roles.says("cannot get resource \"leases\"").await?;
    steady.follows(roles.mesh).await?;
    roles.restore(lacking).await
}

const CLUSTER_ROLE: &str = "clusterrole";
const ROLE: &str = "role";

/// The chart's roles of a mesh.
struct Roles<'a> {
    cluster: &'static Cluster,
    mesh: &'a Installed,
}

impl Roles<'_> {
    /// Takes away the rules that `is_it` finds, at least one; what it was like before comes back.
    async fn without(&self, kind: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        let name =
            if kind == ROLE { "osm-controller".to_owned() } else { format!("osm-controller-{}", self.mesh.name()) };
        let text = self.mesh.kubectl(["get", kind, &name, "-o", "json"]).await?;
        let mut before: Value = serde_json::from_str(&text)?;
        if let Some(metadata) = before["metadata"].as_object_mut() {
            metadata.retain(|key, _| ["name", "namespace", "labels", "annotations"].contains(&key.as_str()));
        }
        let mut after = before.clone();
        let rules = after["rules"].as_array_mut().context("rules")?;
        let all = rules.len();
        rules.retain(|rule| !is_it(rule));
        ensure!(rules.len() < all, "no such rule in {kind} {name}");
        self.restore(after).await?;
        Ok(before)
    }

    async fn restore(&self, role: Value) -> Result<()> {
        self.cluster.apply(&role.to_string()).await.map(|_| ())
    }

    /// What the controllers have logged.
    async fn log(&self) -> Result<String> {
        Ok(self.mesh.kubectl(["logs", "-l", "app=osm-controller", "--tail=-1"]).await?.replace('\\', ""))
    }

    /// Waits until a controller has logged these words, and no controller has ended.
    async fn says(&self, words: &str) -> Result<()> {
        eventually(&format!("the log says {words}"), LIMIT, || async {
            let log = self.log().await?;
            ensure!(log.contains(words), "{}", log.lines().rev().take(5).collect::<Vec<_>>().join("\n"));
            Ok(())
        })
        .await?;
        self.none_has_ended().await
    }

    async fn none_has_ended(&self) -> Result<()> {
        let path = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
        let counts = self.mesh.kubectl(["get", "pods", "-l", "app=osm-controller", "-o", path]).await?;
        ensure!(counts.split_whitespace().all(|count| count == "0"), "restarts: {counts}");
        Ok(())
    }

    async fn restart(&self) -> Result<()> {
        self.mesh.kubectl(["rollout", "restart", "deploy/osm-controller"]).await.map(|_| ())
    }

    /// The controller from before the restart is there and ready.
    async fn old_serves(&self) -> Result<()> {
        let path = "jsonpath={.status.availableReplicas}";
        let available = self.mesh.kubectl(["get", "deploy/osm-controller", "-o", path]).await?;
        ensure!(available == "1", "of old controllers {available:?} are available");
        Ok(())
    }

    /// What the newest controller answers when asked whether it is ready.
    async fn readiness(&self, outside: &Namespace) -> Result<String> {
        let (order, path) = ("--sort-by=.metadata.creationTimestamp", "jsonpath={.items[-1:].status.podIP}");
        let ip = self.mesh.kubectl(["get", "pods", "-l", "app=osm-controller", order, "-o", path]).await?;
        let said =
            outside.exec("curl", ["curl", "-sS", "--max-time", "5", &format!("http://{ip}:9091/health/ready")]).await?;
        self.none_has_ended().await?;
        Ok(said)
    }
}

fn names(rule: &Value) -> impl Iterator<Item = &str> {
    rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn of(rule: &Value, resource: &str) -> bool {
    names(rule).any(|name| name == resource)
}
