//! The bookstore from the demo's manifests, nothing else, on a mesh of its own.
//!
//! Only names that must differ between tests that run side by side are put in: namespaces, mesh, image; and the buyers'
//! pause is shorter, so that some hundred requests take seconds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh::apps::Counts;
use oxmesh_tests::{
    cluster::{Cluster, Namespace},
    eventually,
    installed::{DataPlane, Installed},
    trial::envoy_missing,
};
use serde_json::json;

use crate::scenario;

const LIMIT: Duration = Duration::from_secs(90);
/// Hundreds of calls take seconds, but minutes on a machine that builds something else.
const CALLS: Duration = Duration::from_secs(180);
/// How long the mesh may take to follow a change of objects, on a busy machine.
const FOLLOWS: Duration = Duration::from_secs(90);

pub(crate) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>) {
    scenario(trials, missing, "oxmesh check finds nothing wrong with a mesh just installed", just_installed);
    let sold = "the bookstore as the demo has it: split, access, live changes and permissive mode, the thief refused";
    let files = "[e2e_trafficsplit, e2e_permissive_smi_switching, e2e_smi_traffic_target, e2e_tcp_server_first]";
    let envoy = envoy_missing();
    let with_envoy = missing.or(envoy.as_deref());
    scenario(trials, missing, &format!("{sold} (oxmesh) {files}"), |cluster| bookstore(cluster, Sidecars::Oxmesh));
    scenario(trials, with_envoy, &format!("{sold} (envoy) {files}"), |cluster| bookstore(cluster, Sidecars::Envoy));
    scenario(trials, with_envoy, &format!("{sold} (mixed) {files}"), |cluster| bookstore(cluster, Sidecars::Mixed));
}

async fn just_installed(cluster: &'static Cluster) -> Result<()> {
    let mesh = Installed::new(cluster, DataPlane::Oxmesh, &[]).await?;
    let _shop = mesh.namespace("shop").await?;
    let said = mesh.oxmesh(["check", "-o", "short"]).await?;
    ensure!(said.contains("Status: √"), "{said}");
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

/// Which program the sidecars are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sidecars {
    Oxmesh,
    Envoy,
    /// Ours for the buyer and the warehouse, Envoy for the stores and the thief.
    Mixed,
}

/// The bookstore's namespaces, and the mesh that they are in.
struct Shop {
    buyer: Namespace,
    thief: Namespace,
    store: Namespace,
    warehouse: Namespace,
    mesh: Installed,
}

async fn bookstore(cluster: &'static Cluster, sidecars: Sidecars) -> Result<()> {
    let shop = Shop::open(cluster, sidecars).await?;
    shop.sidecars_are(cluster, sidecars).await?;
    shop.sells_half_and_half().await?;
    shop.split_edited_live().await?;
    shop.access_and_permissive_mode(cluster).await?;
    ensure!(shop.mesh.nacks().await? == 0, "a sidecar refused its configuration");
    let connected = shop.mesh.metric("osm_proxy_connect_count").await?;
    ensure!((connected - 6.0).abs() < 0.5, "{connected} of 6 sidecars are connected");
    Ok(())
}

impl Shop {
    async fn open(cluster: &'static Cluster, sidecars: Sidecars) -> Result<Self> {
        let plane = if sidecars == Sidecars::Envoy { DataPlane::Envoy } else { DataPlane::Oxmesh };
        let mesh = Installed::new(cluster, plane, &[]).await?;
        let shop = Self {
            buyer: cluster.namespace("bookbuyer").await?,
            thief: cluster.namespace("bookthief").await?,
            store: cluster.namespace("bookstore").await?,
            warehouse: cluster.namespace("bookwarehouse").await?,
            mesh,
        };
        if sidecars == Sidecars::Mixed {
            for ns in [&shop.store, &shop.thief] {
                cluster.kubectl(["annotate", "namespace", ns.name(), "oxmesh.io/data-plane=envoy"]).await?;
            }
        }
        let files = [
            include_str!("../../demo/mesh-config.yaml"),
            include_str!("../../demo/access.yaml"),
            include_str!("../../demo/split.yaml"),
            include_str!("../../demo/bookwarehouse.yaml"),
            include_str!("../../demo/bookstore.yaml"),
            include_str!("../../demo/bookbuyer.yaml"),
            include_str!("../../demo/bookthief.yaml"),
        ];
        // Namespaces that are to have sidecars must say so before their pods come: each file begins with its own.
        for file in files {
            cluster.apply(&shop.named(cluster, file)).await?;
        }
        shop.rolled_out().await?;
        Ok(shop)
    }

    fn deployments(&self) -> [(&Namespace, &'static str); 6] {
        [
            (&self.warehouse, "deployment/bookdb"),
            (&self.warehouse, "deployment/bookwarehouse"),
            (&self.store, "deployment/bookstore-v1"),
            (&self.store, "deployment/bookstore-v2"),
            (&self.buyer, "deployment/bookbuyer"),
            (&self.thief, "deployment/bookthief"),
        ]
    }

    async fn rolled_out(&self) -> Result<()> {
        for (ns, deployment) in self.deployments() {
            ns.rolled_out(deployment, LIMIT).await?;
        }
        Ok(())
    }

    /// A manifest of the demo with this shop's names.
    fn named(&self, cluster: &Cluster, manifest: &str) -> String {
        let (store, warehouse) = (self.store.name(), self.warehouse.name());
        let mut text = manifest
            .replace("monitored-by: osm\n", &format!("monitored-by: {}\n", self.mesh.name()))
            .replace("namespace: osm-system\n", &format!("namespace: {}\n", self.mesh.name()))
            .replace("oxmesh/app:0.1.0", &cluster.image("app"))
            .replace("value: \"1\"", "value: \"0.05\"")
            .replace("service: bookstore.bookstore\n", &format!("service: bookstore.{store}\n"))
            .replace("bookdb.bookwarehouse:3306", &format!("bookdb.{warehouse}:3306"));
        for ns in [&self.buyer, &self.thief, &self.store, &self.warehouse] {
            let name = ns.name();
            let short = name.split('-').next().unwrap_or(name);
            let fields = ["namespace: ", "kind: Namespace\nmetadata:\n  name: ", "_NAMESPACE\n              value: "];
            for field in fields {
                text = text.replace(&format!("{field}{short}\n"), &format!("{field}{name}\n"));
            }
        }
        text
    }

    /// Each pod has the sidecar that it was to get.
    async fn sidecars_are(&self, cluster: &Cluster, sidecars: Sidecars) -> Result<()> {
        for ns in [&self.buyer, &self.thief, &self.store, &self.warehouse] {
            let with_envoy = match sidecars {
                Sidecars::Oxmesh => false,
                Sidecars::Envoy => true,
                Sidecars::Mixed => ns.name() == self.store.name() || ns.name() == self.thief.name(),
            };
            let image = if with_envoy { cluster.envoy_image() } else { cluster.image("proxy") };
            let pods = ns.get(["pods"]).await?;
            let pods = pods["items"].as_array().context("pods")?;
            ensure!(!pods.is_empty());
            for pod in pods {
                let containers = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array());
                let mut all = containers.into_iter().flatten().flatten();
                let sidecar = all.find(|container| container["name"] == "envoy").context("a pod without sidecar")?;
                ensure!(sidecar["image"] == *image, "{}: {}", ns.name(), sidecar["image"]);
            }
        }
        Ok(())
    }

    /// The buyer's requests all succeed, half with each version; the warehouse and its database are reached; the thief,
    /// who asks for the same, gets nothing.
    async fn sells_half_and_half(&self) -> Result<()> {
        self.eventually_sells(&self.buyer, "bookbuyer").await?;
        let stolen = counts(&self.thief, "bookthief").await?;
        let sold = next(&self.buyer, "bookbuyer", 300).await?;
        ensure!(sold.failed == 0 && sold.ok >= 300, "the buyer was not served: {sold:?}");
        let share = f64::from(u32::try_from(from(&sold, "bookstore-v1"))?) / f64::from(u32::try_from(sold.ok)?);
        // Four standard deviations of 300 throws.
        ensure!((share - 0.5).abs() < 0.12, "v1 got {share:.2} of the requests: {sold:?}");
        ensure!(from(&sold, "bookstore-v1") + from(&sold, "bookstore-v2") == sold.ok, "{sold:?}");

        let tried = since(&counts(&self.thief, "bookthief").await?, &stolen);
        ensure!(tried.ok == 0 && tried.failed >= 20, "the thief: {tried:?}");
        self.thief_logged().await?;

        for version in ["bookstore-v1", "bookstore-v2"] {
            let restocked = counts(&self.store, version).await?;
            ensure!(restocked.ok >= 50, "{version} was not restocked: {restocked:?}");
        }
        let stored = next(&self.warehouse, "bookwarehouse", 20).await?;
        ensure!(stored.failed == 0 && from(&stored, "bookdb") == stored.ok, "the database: {stored:?}");
        Ok(())
    }

    /// The thief's sidecar says why: nobody has told it a way to the store.
    async fn thief_logged(&self) -> Result<()> {
        let log = self.thief.logs("deployment/bookthief", "envoy").await?;
        let refused = log.lines().filter(|line| line.contains("filter_chain_not_found")).count();
        ensure!(refused >= 20, "{refused} refusals in the thief's access log: {log}");
        Ok(())
    }

    /// While the buyer goes on buying, all of its requests move to the first version; none fails.
    async fn split_edited_live(&self) -> Result<()> {
        let before = counts(&self.buyer, "bookbuyer").await?;
        let backends = json!({"spec": {"backends": [
            {"service": "bookstore-v1", "weight": 100}, {"service": "bookstore-v2", "weight": 0},
        ]}});
        let patch = backends.to_string();
        self.store.kubectl(["patch", "trafficsplit", "bookstore-split", "--type=merge", "-p", &patch]).await?;
        eventually("all requests go to the first version", FOLLOWS, || async {
            let sold = next(&self.buyer, "bookbuyer", 50).await?;
            ensure!(from(&sold, "bookstore-v1") == sold.attempts, "{sold:?}");
            Ok(())
        })
        .await?;
        let meanwhile = since(&counts(&self.buyer, "bookbuyer").await?, &before);
        ensure!(meanwhile.failed == 0 && meanwhile.ok >= 50, "a request failed in the change: {meanwhile:?}");
        Ok(())
    }

    /// Without its TrafficTargets the buyer stops; in permissive mode both buy; back in policy mode nobody does, until the
    /// TrafficTargets are there again.
    async fn access_and_permissive_mode(&self, cluster: &Cluster) -> Result<()> {
        let targets = ["delete", "traffictarget", "bookbuyer-access-bookstore-v1", "bookbuyer-access-bookstore-v2"];
        self.store.kubectl(targets).await?;
        self.eventually_refused(&self.buyer, "bookbuyer").await?;
        let permissive = |on: bool| self.mesh.configure(json!({"traffic": {"enablePermissiveTrafficPolicyMode": on}}));
        permissive(true).await?;
        for (ns, app) in [(&self.buyer, "bookbuyer"), (&self.thief, "bookthief")] {
            self.eventually_sells(ns, app).await?;
            let sold = next(ns, app, 50).await?;
            ensure!(sold.failed == 0, "{app} in permissive mode: {sold:?}");
        }
        permissive(false).await?;
        self.eventually_refused(&self.buyer, "bookbuyer").await?;
        self.eventually_refused(&self.thief, "bookthief").await?;
        cluster.apply(&self.named(cluster, include_str!("../../demo/access.yaml"))).await?;
        self.eventually_sells(&self.buyer, "bookbuyer").await?;
        self.eventually_refused(&self.thief, "bookthief").await
    }

    async fn eventually_sells(&self, ns: &Namespace, app: &str) -> Result<()> {
        eventually(&format!("{app} buys"), FOLLOWS, || async {
            let sold = next(ns, app, 10).await?;
            ensure!(sold.failed == 0, "{sold:?}");
            Ok(())
        })
        .await
    }

    async fn eventually_refused(&self, ns: &Namespace, app: &str) -> Result<()> {
        eventually(&format!("{app} is refused"), FOLLOWS, || async {
            let tried = next(ns, app, 10).await?;
            ensure!(tried.ok == 0, "{tried:?}");
            Ok(())
        })
        .await
    }
}

/// What an application counted so far, asked for inside its pod.
async fn counts(ns: &Namespace, app: &str) -> Result<Counts> {
    let pod = format!("deployment/{app}");
    let text = ns.exec(&pod, ["curl", "-fsS", "--max-time", "5", "http://127.0.0.1:14001/"]).await?;
    serde_json::from_str(&text).with_context(|| text)
}

/// What an application counts from now on, until it has made this many more calls.
async fn next(ns: &Namespace, app: &str, calls: u64) -> Result<Counts> {
    let before = counts(ns, app).await?;
    eventually(&format!("{app} makes {calls} calls"), CALLS, || async {
        let seen = since(&counts(ns, app).await?, &before);
        ensure!(seen.attempts >= calls, "only {seen:?}");
        Ok(seen)
    })
    .await
}

/// The difference of two counts.
fn since(now: &Counts, before: &Counts) -> Counts {
    let mut seen = now.clone();
    seen.attempts -= before.attempts;
    seen.ok -= before.ok;
    seen.failed -= before.failed;
    seen.served -= before.served;
    for (who, count) in &mut seen.by_identity {
        *count -= before.by_identity.get(who).copied().unwrap_or(0);
    }
    for (why, count) in &mut seen.by_failure {
        *count -= before.by_failure.get(why).copied().unwrap_or(0);
    }
    seen
}

fn from(counts: &Counts, who: &str) -> u64 {
    counts.by_identity.get(who).copied().unwrap_or(0)
}
