//! Least privilege: a controller that begins with no permission at all is given each that it asks for in words, and in the
//! end has those of the chart's roles: all of them, and no other.
//!
//! What must work is written as if nothing was missing; beside it somebody reads the controller's log, and gives.

use std::{collections::BTreeSet, fmt, time::Duration};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    cluster::{Cluster, Namespace},
    eventually,
    installed::{DataPlane, Installed},
};
use regex::{Captures, Regex};
use serde_json::{Value, json};
use tokio::{select, time::sleep, try_join};

use crate::scenario;

pub(crate) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>) {
    let name =
        "a controller without permissions asks for those of its roles in words, one after another, and for no others";
    scenario(trials, missing, name, from_nothing);
}

async fn from_nothing(cluster: &'static Cluster) -> Result<()> {
    let mesh = Installed::new(cluster, DataPlane::Oxmesh, &[]).await?;
    let shop = mesh.namespace("shop").await?;
    shop.apply(include_str!("data/policies.yaml")).await?;
    let mut giver = Giver::new(&mesh)?;
    let chart = giver.chart().await?;
    ensure!(chart.len() > 50, "the chart's roles: {chart:?}");
    begin_anew(&mesh, &giver).await?;
    giver.beside(works(cluster, &mesh, &shop)).await?;
    let unasked: Vec<_> = chart.difference(&giver.given).map(ToString::to_string).collect();
    let lacking = giver.given.iter().filter(|given| !chart.iter().any(|has| has.covers(given)));
    let lacking: Vec<_> = lacking.map(ToString::to_string).collect();
    ensure!(
        unasked.is_empty() && lacking.is_empty(),
        "the chart's roles have, and nobody asked for: {unasked:#?}; they lack what was asked for: {lacking:#?}"
    );
    Ok(())
}

/// The mesh as on its first day, with an empty role and with nothing that a controller has made.
async fn begin_anew(mesh: &Installed, giver: &Giver<'_>) -> Result<()> {
    mesh.kubectl(["scale", "deployment/osm-controller", "--replicas=0"]).await?;
    mesh.kubectl(["wait", "--for=delete", "pod", "-l", "app=osm-controller", "--timeout=60s"]).await?;
    giver.write().await?;
    mesh.kubectl(["delete", "secret/osm-ca-bundle", "lease/osm-controller", "meshconfig/osm-mesh-config"]).await?;
    // Secrets are looked after within the scenario's time.
    let patch = r#"[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--orphan-age=5s"},
        {"op": "replace", "path": "/spec/replicas", "value": 1}]"#;
    mesh.kubectl(["patch", "deployment/osm-controller", "--type=json", "-p", patch]).await.map(|_| ())
}

/// Everything that the controller needs a permission for.
async fn works(cluster: &Cluster, mesh: &Installed, shop: &Namespace) -> Result<()> {
    mesh.ready(LIMIT).await?;
    try_join!(lease_and_preset(mesh), pods(cluster, shop))?;
    written(shop).await?;
    bundle(cluster, mesh).await?;
    ensure!(mesh.metric("oxmesh_csr_signed_count").await? >= 1.0, "no certificate was signed");
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

async fn lease_and_preset(mesh: &Installed) -> Result<()> {
    eventually("the lease is held", LIMIT, || async {
        let holder = "jsonpath={.spec.holderIdentity}";
        ensure!(!mesh.kubectl(["get", "lease", "osm-controller", "-o", holder]).await?.is_empty());
        Ok(())
    })
    .await?;
    let config = || mesh.kubectl(["get", "meshconfig", "osm-mesh-config"]);
    eventually("MeshConfig is made of its preset", LIMIT, config).await.map(|_| ())
}

/// A pod with our sidecar, one with Envoy, and one with Envoy that never comes.
async fn pods(cluster: &Cluster, shop: &Namespace) -> Result<()> {
    let pod = |name: &str, plane: &str, hostname: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "store"}, "annotations": {"oxmesh.io/data-plane": plane}},
            "spec": {"hostname": hostname, "terminationGracePeriodSeconds": 1, "containers": [{"name": "app",
                "image": cluster.image("app"), "args": ["serve", "--http", "8080"]}]}})
        .to_string()
    };
    let ours = pod("ours", "oxmesh", "ours");
    eventually("a pod gets its sidecar", LIMIT, || shop.apply(&ours)).await?;
    shop.wait("pod/ours", "condition=Ready", LIMIT).await?;
    let envoy = pod("envoy", "envoy", "envoy");
    eventually("a pod gets Envoy", LIMIT, || shop.apply(&envoy)).await?;
    // What the webhook has let in, and made a Secret for, is refused after that.
    let never = shop.apply(&pod("never", "envoy", "not a name")).await;
    let words = never.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(words.contains("spec.hostname: Invalid value"), "{words:?}");
    secrets(shop).await
}

/// The Secret of the pod with Envoy is the pod's, and that of the pod that never came is gone.
async fn secrets(shop: &Namespace) -> Result<()> {
    let uid = shop.get(["pod", "envoy"]).await?["metadata"]["uid"].clone();
    eventually("each Secret has its pod", LIMIT, || async {
        let secrets = shop.get(["secrets"]).await?;
        let owners =
            secrets["items"].as_array().into_iter().flatten().map(|s| &s["metadata"]["ownerReferences"][0]["uid"]);
        ensure!(owners.collect::<Vec<_>>() == [&uid], "{secrets}");
        Ok(())
    })
    .await
}

/// Every object has a status, and the Service without one an Event.
async fn written(shop: &Namespace) -> Result<()> {
    eventually("every status is written", LIMIT, || async {
        for kind in WITH_STATUS {
            let objects = shop.get([*kind]).await?;
            let status = |object: &Value| object["status"]["currentStatus"].clone();
            let all: Vec<Value> = objects["items"].as_array().into_iter().flatten().map(status).collect();
            ensure!(all.len() == 1 && all[0].is_string(), "{kind}: {objects}");
            ensure!(*kind != "traffictargets" || all[0] == "error", "{objects}");
        }
        Ok(())
    })
    .await?;
    eventually("the Event is written", LIMIT, || async {
        let events = shop.get(["events.events.k8s.io"]).await?;
        let mut about = events["items"].as_array().into_iter().flatten().map(|event| &event["regarding"]["name"]);
        ensure!(about.any(|name| name == "odd"), "{events}");
        Ok(())
    })
    .await
}

const WITH_STATUS: &[&str] = &[
    "traffictargets",
    "httproutegroups",
    "tcproutes",
    "udproutes",
    "trafficsplits",
    "egresses",
    "ingressbackends",
    "retries",
    "upstreamtrafficsettings",
    "telemetries",
    "extensionservices",
    "meshrootcertificates",
    "meshconfigs",
];

/// The webhook's `caBundle` is the new authority, and is so again when somebody changes it.
async fn bundle(cluster: &Cluster, mesh: &Installed) -> Result<()> {
    let name = format!("osm-webhook-{}", mesh.name());
    let right = mesh.kubectl(["get", "secret", "osm-ca-bundle", "-o", "jsonpath={.data.ca\\.crt}"]).await?;
    let wrong = r#"[{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": "Y2VydA=="}]"#;
    cluster.kubectl(["patch", "mutatingwebhookconfiguration", &name, "--type=json", "-p", wrong]).await?;
    eventually("caBundle is right again", LIMIT, || async {
        let path = "jsonpath={.webhooks[0].clientConfig.caBundle}";
        let is = cluster.kubectl(["get", "mutatingwebhookconfiguration", &name, "-o", path]).await?;
        ensure!(is == right, "{is}");
        Ok(())
    })
    .await
}

/// A verb on a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Permission {
    /// In the whole cluster, by the ClusterRole; else in the control plane's namespace, by the Role.
    everywhere: bool,
    group: String,
    resource: String,
    verb: String,
    /// The one object that it holds for.
    name: Option<String>,
}

impl Permission {
    fn covers(&self, other: &Self) -> bool {
        (self.everywhere || !other.everywhere)
            && (&self.group, &self.resource, &self.verb) == (&other.group, &other.resource, &other.verb)
            && (self.name.is_none() || self.name == other.name)
    }

    fn rule(&self) -> Value {
        let mut rule = json!({"apiGroups": [self.group], "resources": [self.resource], "verbs": [self.verb]});
        if let Some(name) = &self.name {
            rule["resourceNames"] = json!([name]);
        }
        rule
    }

    /// What a role permits.
    fn of(role: &Value, everywhere: bool) -> Vec<Self> {
        let strings = |list: &Value| -> Vec<String> {
            list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(ToOwned::to_owned)).collect()
        };
        let mut all = Vec::new();
        for rule in role["rules"].as_array().into_iter().flatten() {
            let mut names: Vec<_> = strings(&rule["resourceNames"]).into_iter().map(Some).collect();
            if names.is_empty() {
                names.push(None);
            }
            for group in strings(&rule["apiGroups"]) {
                for resource in strings(&rule["resources"]) {
                    for verb in strings(&rule["verbs"]) {
                        let (group, resource) = (&group, &resource);
                        all.extend(names.iter().cloned().map(|name| Self {
                            everywhere,
                            group: group.clone(),
                            resource: resource.clone(),
                            verb: verb.clone(),
                            name,
                        }));
                    }
                }
            }
        }
        all
    }

    fn is(&self, verb: &str, resource: &str) -> bool {
        self.verb == verb && self.resource == resource
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { everywhere, group, resource, verb, name } = self;
        write!(f, "{verb} {resource} of group {group:?}")?;
        if let Some(name) = name {
            write!(f, " named {name}")?;
        }
        write!(f, "{}", if *everywhere { " everywhere" } else { " in the control plane's namespace" })
    }
}

/// Gives the controller what its log says that it lacks.
struct Giver<'a> {
    mesh: &'a Installed,
    denial: Regex,
    given: BTreeSet<Permission>,
}

impl<'a> Giver<'a> {
    fn new(mesh: &'a Installed) -> Result<Self> {
        // The API server's own words.
        let denial = Regex::new(
            r#"(?: "(?<name>[^"]+)")? is forbidden: User "[^"]+" cannot (?<verb>\w+) resource "(?<resource>[^"]+)" in API group "(?<group>[^"]*)" (?:at the cluster scope|in the namespace "(?<namespace>[^"]+)")"#,
        )?;
        Ok(Self { mesh, denial, given: BTreeSet::new() })
    }

    /// Does it until the work is done.
    async fn beside(&mut self, work: impl Future<Output = Result<()>>) -> Result<()> {
        let done = select! {
            done = work => done,
            Err(error) = self.give() => Err(error),
        };
        let given: Vec<_> = self.given.iter().map(ToString::to_string).collect();
        done.with_context(|| format!("a controller with these permissions: {given:#?}"))?;
        self.given.extend(self.asked().await);
        Ok(())
    }

    /// For ever; returns when something fails.
    async fn give(&mut self) -> Result<()> {
        loop {
            let mut new: BTreeSet<_> = self.asked().await.difference(&self.given).cloned().collect();
            // A pod is asked for where the watch doesn't show it: so there must be no watch first.
            if !self.given.iter().any(|given| given.is("get", "pods")) {
                new.retain(|asked| !asked.is("watch", "pods"));
            }
            if new.is_empty() {
                sleep(PAUSE).await;
                continue;
            }
            let ended = new.iter().any(|given| !given.everywhere && given.resource == "secrets");
            self.given.extend(new);
            self.write().await?;
            if ended {
                // Without its authority's Secret a controller ends; kubelet would wait longer and longer to start it again.
                self.mesh.kubectl(["delete", "pod", "-l", "app=osm-controller", "--wait=false"]).await?;
            }
        }
    }

    /// What the log says now.
    async fn asked(&self) -> BTreeSet<Permission> {
        // There is none while its container starts.
        let log = self.mesh.kubectl(["logs", "-l", "app=osm-controller", "--tail=-1"]).await;
        let log = log.unwrap_or_default().replace('\\', "");
        self.denial.captures_iter(&log).map(|denial| self.permission(&denial)).collect()
    }

    fn permission(&self, denial: &Captures<'_>) -> Permission {
        let text = |part: &str| denial.name(part).map(|text| text.as_str().to_owned());
        let namespace = text("namespace");
        let own = namespace.as_deref() == Some(self.mesh.name());
        Permission {
            everywhere: !own,
            group: text("group").unwrap_or_default(),
            resource: text("resource").unwrap_or_default(),
            verb: text("verb").unwrap_or_default(),
            // Names in namespaces of the mesh are anybody's.
            name: text("name").filter(|_| own || namespace.is_none()),
        }
    }

    /// What the chart's roles permit.
    async fn chart(&self) -> Result<BTreeSet<Permission>> {
        let mut all = BTreeSet::new();
        for (everywhere, kind, name) in self.roles() {
            let role = self.mesh.kubectl(["get", kind, &name, "-o", "json"]).await?;
            all.extend(Permission::of(&serde_json::from_str(&role)?, everywhere));
        }
        Ok(all)
    }

    /// Makes the roles permit what is given, and nothing else.
    async fn write(&self) -> Result<()> {
        for (everywhere, kind, name) in self.roles() {
            let given = self.given.iter().filter(|given| given.everywhere == everywhere);
            let rules = json!({"rules": given.map(Permission::rule).collect::<Vec<_>>()}).to_string();
            self.mesh.kubectl(["patch", kind, &name, "--type=merge", "-p", &rules]).await?;
        }
        Ok(())
    }

    fn roles(&self) -> [(bool, &'static str, String); 2] {
        let everywhere = format!("osm-controller-{}", self.mesh.name());
        [(true, "clusterrole", everywhere), (false, "role", "osm-controller".to_owned())]
    }
}

const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(300);
