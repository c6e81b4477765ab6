//! The chart's roles, one permission after another taken away: the controller says which one it lacks, doesn't end, and
//! what doesn't need it goes on.

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
    let steady = Steady::start(cluster, &mesh, 30).await?;
    let outside = cluster.namespace("asks").await?;
    outside.apply(&include_str!("data/asks.yaml").replace("{{app}}", &cluster.image("app"))).await?;
    outside.wait("pod/curl", "condition=Ready", LIMIT).await?;
    let roles = Roles { cluster, mesh: &mesh };
    reviews(&roles, &steady).await?;
    statuses(&roles, &steady).await?;
    secrets(&roles, &steady).await?;
    steady.all_ok().await?;
    reads(&roles, &outside).await?;
    steady.follows(&mesh).await?;
    authority(&roles).await?;
    lease_and_preset(&roles).await?;
    steady.follows(&mesh).await?;
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

/// Without `…/status` and `events` findings are in the log alone; they are written when the permission is back.
async fn statuses(roles: &Roles<'_>, steady: &Steady) -> Result<()> {
    let kinds = ["egresses/status", "traffictargets/status", "httproutegroups/status", "trafficsplits/status"];
    let is_said = |rule: &Value| names(rule).any(|name| name.ends_with("/status") || name == "events");
    let lacking = roles.without(CLUSTER_ROLE, is_said).await?;
    steady.ns.apply(include_str!("data/policies.yaml")).await?;
    for kind in kinds {
        roles.says(&format!("cannot patch resource \"{kind}\"")).await?;
    }
    roles.says("cannot create resource \"events\"").await?;
    roles.restore(lacking).await?;
    eventually("the status is written", LIMIT, || async {
        let target = steady.ns.get(["traffictarget", "wrong"]).await?;
        ensure!(target["status"]["currentStatus"] == "error", "{target}");
        Ok(())
    })
    .await
}

/// Without the authority's Secret a new controller can do nothing at all: it ends with words, and the old one goes on.
async fn authority(roles: &Roles<'_>) -> Result<()> {
    let lacking = roles.without(ROLE, |rule| of(rule, "secrets")).await?;
    roles.cluster.kubectl(["-n", roles.mesh.name(), "rollout", "restart", "deploy/osm-controller"]).await?;
    let words = "(the controller's Role must let it get and create Secrets in its namespace)";
    eventually("the new controller says what it lacks", LIMIT, || async {
        let said =
            roles.cluster.kubectl(["-n", roles.mesh.name(), "logs", "-l", "app=osm-controller", "--tail=-1"]).await?;
        ensure!(said.contains(words), "{}", said.lines().last().unwrap_or_default());
        Ok(())
    })
    .await?;
    let available =
        ["-n", roles.mesh.name(), "get", "deploy/osm-controller", "-o", "jsonpath={.status.availableReplicas}"];
    ensure!(roles.cluster.kubectl(available).await? == "1", "the old controller is gone");
    roles.restore(lacking).await?;
    roles.restarted().await
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

/// A new controller that may not read a kind, or not the webhook configuration, isn't ready and says why; the old one
/// goes on serving.
async fn reads(roles: &Roles<'_>, outside: &Namespace) -> Result<()> {
    let reads = |rule: &Value| {
        rule["verbs"] == json!(["list", "watch"]) && !of(rule, "namespaces")
            || of(rule, "mutatingwebhookconfigurations")
    };
    let lacking = roles.without(CLUSTER_ROLE, reads).await?;
    roles.cluster.kubectl(["-n", roles.mesh.name(), "rollout", "restart", "deploy/osm-controller"]).await?;
    let groups = [
        "\"endpointslices\" in API group \"discovery.k8s.io\"",
        "\"meshconfigs\" in API group \"config.openservicemesh.io\"",
        "\"meshrootcertificates\"",
        "\"extensionservices\"",
        "\"egresses\" in API group \"policy.openservicemesh.io\"",
        "\"ingressbackends\"",
        "\"retries\"",
        "\"upstreamtrafficsettings\"",
        "\"telemetries\"",
        "\"traffictargets\" in API group \"access.smi-spec.io\"",
        "\"httproutegroups\" in API group \"specs.smi-spec.io\"",
        "\"tcproutes\"",
        "\"udproutes\"",
        "\"trafficsplits\" in API group \"split.smi-spec.io\"",
        "MutatingWebhookConfiguration",
    ];
    eventually("the new controller says what it waits for", LIMIT, || async {
        let said = roles.readiness(outside).await?;
        for group in groups {
            ensure!(said.contains(group), "{group}: {said}");
        }
        ensure!(said.contains("the controller's ClusterRole must allow it"), "{said}");
        Ok(())
    })
    .await?;
    roles.restore(lacking).await?;
    roles.mesh.ready(LIMIT).await?;
    // Namespaces come before all else, with the core kinds of their rule.
    let lacking = roles.without(CLUSTER_ROLE, |rule| of(rule, "namespaces")).await?;
    roles.cluster.kubectl(["-n", roles.mesh.name(), "rollout", "restart", "deploy/osm-controller"]).await?;
    eventually("the new controller waits for namespaces", LIMIT, || async {
        let said = roles.readiness(outside).await?;
        ensure!(said.contains("cannot list resource \"namespaces\""), "{said}");
        Ok(())
    })
    .await?;
    roles.restore(lacking).await?;
    roles.mesh.ready(LIMIT).await
}

/// Without the lease nothing is written, without MeshConfig and its preset the defaults stay in force. All are missing at
/// first, and come back in the order in which a controller needs them.
async fn lease_and_preset(roles: &Roles<'_>) -> Result<()> {
    let steps = [("leases", "get"), ("meshconfigs", "get"), ("configmaps", "get"), ("meshconfigs", "create")];
    let is_it = |rule: &Value, (resource, verb): (&str, &str)| {
        of(rule, resource) && (resource == "leases" || rule["verbs"] == json!([verb]))
    };
    let full = roles.without(ROLE, |rule| steps.iter().any(|step| is_it(rule, *step))).await?;
    let config = ["-n", roles.mesh.name(), "delete", "meshconfig", "osm-mesh-config"];
    roles.cluster.kubectl(config).await?;
    roles.restarted().await?;
    for (at, (resource, verb)) in steps.iter().enumerate() {
        roles.says(&format!("cannot {verb} resource \"{resource}\"")).await?;
        let mut role = full.clone();
        let rules = role["rules"].as_array_mut().context("rules")?;
        rules.retain(|rule| !steps[at + 1..].iter().any(|step| is_it(rule, *step)));
        roles.restore(role).await?;
    }
    eventually("the preset MeshConfig is made", LIMIT, || async {
        roles.cluster.kubectl(["-n", roles.mesh.name(), "get", "meshconfig", "osm-mesh-config"]).await
    })
    .await
    .map(|_| ())
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
        let text = self.cluster.kubectl(["-n", self.mesh.name(), "get", kind, &name, "-o", "json"]).await?;
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

    /// Waits until a controller has logged these words, and no controller has ended.
    async fn says(&self, words: &str) -> Result<()> {
        eventually(&format!("the log says {words}"), LIMIT, || async {
            let log = ["-n", self.mesh.name(), "logs", "-l", "app=osm-controller", "--tail=-1", "--prefix=false"];
            let log = self.cluster.kubectl(log).await?.replace('\\', "");
            ensure!(log.contains(words), "{}", log.lines().rev().take(5).collect::<Vec<_>>().join("\n"));
            Ok(())
        })
        .await?;
        self.none_has_ended().await
    }

    async fn none_has_ended(&self) -> Result<()> {
        let path = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
        let pods = ["-n", self.mesh.name(), "get", "pods", "-l", "app=osm-controller", "-o", path];
        let counts = self.cluster.kubectl(pods).await?;
        ensure!(counts.split_whitespace().all(|count| count == "0"), "restarts: {counts}");
        Ok(())
    }

    /// A new controller is ready and the old one gone.
    async fn restarted(&self) -> Result<()> {
        self.cluster.kubectl(["-n", self.mesh.name(), "rollout", "restart", "deploy/osm-controller"]).await?;
        self.mesh.ready(LIMIT).await
    }

    /// What the newest controller answers when asked whether it is ready.
    async fn readiness(&self, outside: &Namespace) -> Result<String> {
        let newest = [
            "-n",
            self.mesh.name(),
            "get",
            "pods",
            "-l",
            "app=osm-controller",
            "--sort-by=.metadata.creationTimestamp",
            "-o",
            "jsonpath={.items[-1:].status.podIP}",
        ];
        let ip = self.cluster.kubectl(newest).await?;
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
