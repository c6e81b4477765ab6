//! The command line on a cluster: installing, looking after, removing.

use std::{collections::BTreeSet, process::Output, time::Duration};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    cluster::{Cluster, Namespace},
    eventually,
    installed::{DataPlane, Installed},
    load::Load,
    trial::{envoy_missing, trial},
};
use serde_json::Value;

use crate::{UNDISTURBED, scenario};

const LIMIT: Duration = Duration::from_secs(60);
const PERMISSIVE: &str = "osm.enablePermissiveTrafficPolicy=true";

pub(crate) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>) {
    let envoy = envoy_missing();
    let with_envoy = missing.or(envoy.as_deref());
    let refused = "oxmesh install changes nothing when told to, when a value is wrong or another mesh is there, and takes back what doesn't start [e2e_helm_install]";
    scenario(trials, missing, refused, installing);
    let members = "oxmesh namespace adds, removes, ignores and lists, and metrics are on and off by namespace [e2e_ignore_namespace]";
    scenario(trials, missing, members, namespaces);
    let get = "oxmesh proxy get and top read the sidecars of pods";
    scenario(trials, missing, get, |cluster| sidecars(cluster, DataPlane::Oxmesh));
    scenario(trials, with_envoy, &format!("{get} (envoy)"), |cluster| sidecars(cluster, DataPlane::Envoy));
    let faults = "oxmesh check names a pod without sidecar, a broken caBundle and a control plane that is gone, and all is well after";
    scenario(trials, missing, faults, checks);
    let served = "pods go on serving while their mesh is uninstalled, and a new installation takes its authority over [e2e_osm_reinstall]";
    scenario(trials, missing, served, reinstalled);
    let nothing = "oxmesh uninstall mesh -a leaves no object of any kind behind";
    trials.push(trial(nothing, missing.map(ToOwned::to_owned), || async {
        let cluster = Cluster::shared()?;
        // The kinds go with the last mesh, which others may just be installing.
        let _alone = UNDISTURBED.write().await;
        uninstalled(cluster).await
    }));
}

/// Everything that ran: whether it succeeded, and both its outputs.
async fn said(mesh: &Installed, arguments: &[&str]) -> Result<(bool, String)> {
    let Output { status, stdout, stderr } = mesh.command(arguments.iter().copied())?.output().await?;
    Ok((status.success(), [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).join("\n")))
}

async fn refused(mesh: &Installed, arguments: &[&str], words: &str) -> Result<()> {
    let (success, said) = said(mesh, arguments).await?;
    ensure!(!success && said.contains(words), "{arguments:?}, of which `{words}` was expected: {said}");
    Ok(())
}

async fn json(mesh: &Installed, arguments: &[&str]) -> Result<Value> {
    let text = mesh.oxmesh(arguments.iter().copied()).await?;
    serde_json::from_str(&text).with_context(|| text)
}

/// A server `store` behind a service, and `client`, which waits to be told what to do.
async fn shop(cluster: &Cluster, ns: &Namespace) -> Result<()> {
    ns.apply(&include_str!("data/shop.yaml").replace("{{app}}", &cluster.image("app"))).await?;
    ns.wait("pod/store", "condition=Ready", LIMIT).await?;
    ns.wait("pod/client", "condition=Ready", LIMIT).await
}

/// A pod is decided upon when it is made; whether it starts doesn't matter here.
async fn pod(cluster: &Cluster, ns: &Namespace, name: &str) -> Result<Value> {
    let image = format!("--image={}", cluster.image("app"));
    let enabled = "--annotations=openservicemesh.io/sidecar-injection=enabled";
    ns.kubectl(["run", name, &image, enabled, "--", "serve", "--http", "8080"]).await?;
    ns.get(["pod", name]).await
}

fn has_sidecar(pod: &Value) -> bool {
    pod["metadata"]["labels"]["osm-proxy-uuid"].is_string()
}

async fn load(ns: &Namespace, seconds: &str, least: u64) -> Result<()> {
    let app = "/usr/local/bin/oxmesh-test-app";
    let said = ns.exec("client", [app, "load", "http://store/", "--rate", "50", "--seconds", seconds]).await?;
    Load::parse(&said)?.all_ok(least)
}

async fn installing(cluster: &'static Cluster) -> Result<()> {
    let mesh = Installed::new(cluster, DataPlane::Oxmesh, &[]).await?;
    let other = format!("{}-x", mesh.name());
    let place = ["--mesh-name", &other, "--osm-namespace", &other];
    let with = |words: &[&'static str]| [&["install"], words, &place[..]].concat();

    let objects = mesh.oxmesh(with(&["--dry-run"])).await?;
    for kind in ["CustomResourceDefinition", "Deployment", "MutatingWebhookConfiguration", "ClusterRole"] {
        ensure!(objects.contains(&format!("\nkind: {kind}\n")), "{kind} is not printed");
    }
    refused(&mesh, &with(&[]), "other meshes are installed").await?;
    refused(&mesh, &with(&["--enforce-single-mesh=false", "--set", "osm.dataPlane=nginx"]), "dataPlane").await?;
    refused(&mesh, &["install"], "is installed in").await?;
    let namespaces = cluster.kubectl(["get", "namespaces", "-o", "name"]).await?;
    ensure!(!namespaces.contains(&other), "a namespace was made for nothing: {namespaces}");

    let tag = "osm.image.tag=there-is-none";
    let broken = [
        "--enforce-single-mesh=false",
        "--atomic",
        "--timeout=8s",
        "--set",
        tag,
        "--set",
        "osm.image.registry=oxmesh.test",
    ];
    refused(&mesh, &with(&broken), "taken back").await?;
    let namespaces = cluster.kubectl(["get", "namespaces", "-o", "name"]).await?;
    ensure!(!namespaces.contains(&other), "the namespace was not taken back: {namespaces}");
    let webhooks = cluster.kubectl(["get", "mutatingwebhookconfigurations", "-o", "name"]).await?;
    ensure!(!webhooks.contains(&other) && webhooks.contains(mesh.name()), "{webhooks}");
    // Nothing of that touched the mesh that was there.
    ensure!(json(&mesh, &["check", "-o", "json"]).await?["status"] != "error");
    Ok(())
}

async fn namespaces(cluster: &'static Cluster) -> Result<()> {
    let mesh = Installed::new(cluster, DataPlane::Oxmesh, &[]).await?;
    let ns = cluster.namespace("member").await?;
    let name = ns.name();
    ensure!(!has_sidecar(&pod(cluster, &ns, "before").await?), "a namespace that nobody added");

    mesh.oxmesh(["namespace", "add", name]).await?;
    let row = |rows: &Value| rows.as_array().and_then(|rows| rows.iter().find(|row| row["namespace"] == name).cloned());
    let listed = row(&json(&mesh, &["namespace", "list", "-o", "json"]).await?).context("it is listed")?;
    ensure!(listed["mesh"] == mesh.name() && listed["sidecarInjection"] == "enabled", "{listed}");
    let meshes = json(&mesh, &["mesh", "list", "-o", "json"]).await?;
    let own = meshes.as_array().and_then(|rows| rows.iter().find(|row| row["mesh"] == mesh.name()));
    let own = own.context("the mesh is listed")?;
    ensure!(own["namespaces"] == serde_json::json!([name]) && own["ready"] == 1, "{own}");
    let version = mesh.oxmesh(["version"]).await?;
    ensure!(version.contains(&format!("mesh {} in {}: ", mesh.name(), mesh.name())), "{version}");

    let scraped = |pod: &Value| pod["metadata"]["annotations"]["prometheus.io/scrape"] == "true";
    let made = followed(cluster, &ns, "added", has_sidecar).await?;
    ensure!(!scraped(&made), "nobody asked for metrics: {made}");
    mesh.oxmesh(["metrics", "enable", "-n", name]).await?;
    followed(cluster, &ns, "scraped", |pod| has_sidecar(pod) && scraped(pod)).await?;
    mesh.oxmesh(["metrics", "disable", "-n", name]).await?;
    followed(cluster, &ns, "unscraped", |pod| has_sidecar(pod) && !scraped(pod)).await?;

    mesh.oxmesh(["namespace", "remove", name]).await?;
    refused(&mesh, &["namespace", "remove", name], "belongs to no mesh").await?;
    ensure!(row(&json(&mesh, &["namespace", "list", "-o", "json"]).await?).is_none());
    refused(&mesh, &["metrics", "enable", "-n", name], "belongs to no mesh").await?;
    ensure!(!has_sidecar(&pod(cluster, &ns, "removed").await?));
    mesh.oxmesh(["namespace", "ignore", name]).await?;
    refused(&mesh, &["namespace", "add", name], "kept out of every mesh").await?;
    ensure!(!has_sidecar(&pod(cluster, &ns, "ignored").await?), "annotated, but its namespace is ignored");
    refused(&mesh, &["namespace", "add", "there-is-none"], "kubectl create namespace there-is-none").await
}

/// Makes pods until the control plane has heard of a change of their namespace, and the API server of the control plane.
async fn followed(cluster: &Cluster, ns: &Namespace, name: &str, good: impl Fn(&Value) -> bool) -> Result<Value> {
    let number = std::cell::Cell::new(0);
    eventually(&format!("a pod {name} is as it should be"), LIMIT, || async {
        let made = pod(cluster, ns, &format!("{name}-{}", number.replace(number.get() + 1))).await?;
        ensure!(good(&made), "{made}");
        Ok(made)
    })
    .await
}

async fn sidecars(cluster: &'static Cluster, data_plane: DataPlane) -> Result<()> {
    let mesh = Installed::new(cluster, data_plane, &[PERMISSIVE]).await?;
    let ns = mesh.namespace("shop").await?;
    shop(cluster, &ns).await?;
    let get = |page: &'static str| mesh.oxmesh(["proxy", "get", page, "client", "-n", ns.name()]);
    eventually("the client knows the store", LIMIT, || async {
        let clusters = get("clusters").await?;
        ensure!(clusters.contains("/store|80"), "{clusters}");
        Ok(())
    })
    .await?;
    let dump: Value = serde_json::from_str(&get("config_dump").await?)?;
    ensure!(dump["configs"].as_array().is_some_and(|parts| parts.len() >= 4), "{dump}");
    let certificates: Value = serde_json::from_str(&get("certs").await?)?;
    ensure!(certificates["certificates"].as_array().is_some_and(|all| !all.is_empty()), "{certificates}");
    ensure!(get("stats?filter=cluster_manager").await?.contains("cluster_manager.active_clusters: "));
    ensure!(get("there-is-none").await.is_err());
    refused(&mesh, &["proxy", "get", "stats", "there-is-none", "-n", ns.name()], "there is no pod").await?;

    let top = ["top", "-n", ns.name(), "--once", "--window", "4s", "-o", "json"];
    let (calls, traffic) = tokio::join!(load(&ns, "9", 400), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        json(&mesh, &top).await
    });
    calls?;
    let traffic = traffic?;
    let edges = traffic["edges"].as_array().context("edges")?;
    let edge = edges.iter().find(|edge| edge["from"] == format!("{}/client", ns.name())).context("the client calls")?;
    ensure!(edge["to"] == format!("{}/store", ns.name()) && edge["mtls"] == true && edge["why"] == "", "{edge}");
    ensure!(edge["count"].as_u64() >= Some(100) && edge["ok"] == edge["count"], "{edge}");
    let rate = edge["rps"].as_f64().context("a rate")?;
    ensure!((30.0..=70.0).contains(&rate), "50 calls a second were made: {edge}");
    ensure!(traffic["unanswered"] == serde_json::json!({}), "{traffic}");
    // What nobody serves is turned away, and told.
    mesh.configure(serde_json::json!({"traffic": {"enablePermissiveTrafficPolicyMode": false}})).await?;
    eventually("the client's calls are turned away", LIMIT, || async {
        let arguments = ["top", "-n", ns.name(), "--once", "--window", "2s", "-o", "json"];
        let call = ns.exec("client", ["curl", "-s", "--max-time", "5", "http://store/"]);
        let (top, answer) = tokio::join!(json(&mesh, &arguments), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            call.await
        });
        let refused = &top?["refused"][0];
        ensure!(answer.is_err() && refused["from"] == format!("{}/client", ns.name()), "{refused}");
        Ok(())
    })
    .await?;
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

/// The checks that aren't ok, by name, and the exit status.
async fn found(mesh: &Installed) -> Result<(bool, BTreeSet<String>)> {
    let output = mesh.command(["check", "-o", "json"])?.output().await?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let checks = report["checks"].as_array().context("checks")?;
    ensure!(checks.len() >= 10, "{report}");
    let ill = checks.iter().filter(|check| check["state"] != "ok");
    let names = ill.map(|check| {
        ensure!(check["hint"].is_string() || check["name"] == "pods", "no mend: {check}");
        Ok(check["name"].as_str().context("a name")?.to_owned())
    });
    Ok((output.status.success(), names.collect::<Result<_>>()?))
}

async fn checks(cluster: &'static Cluster) -> Result<()> {
    let late = cluster.namespace("late").await?;
    late.apply(&include_str!("data/shop.yaml").replace("{{app}}", &cluster.image("app"))).await?;
    let mesh = Installed::new(cluster, DataPlane::Oxmesh, &[PERMISSIVE]).await?;
    let before = json(&mesh, &["check", "--before", "-o", "json"]).await;
    ensure!(before.is_err(), "a mesh of this name is there already: {before:?}");
    late.wait("pod/client", "condition=Ready", LIMIT).await?;
    mesh.oxmesh(["namespace", "add", late.name()]).await?;
    let well = |expected: &'static [&str]| {
        let mesh = &mesh;
        async move {
            let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
            eventually("checks find what was planted", LIMIT, || async {
                let found = found(mesh).await?;
                ensure!(found == (true, expected.clone()), "{found:?}, not {expected:?}");
                Ok(())
            })
            .await
        }
    };
    well(&["missing"]).await?;
    let short = mesh.oxmesh(["check", "-o", "short"]).await?;
    ensure!(short.contains(&format!("{}/store", late.name())) && short.contains("fix: "), "{short}");
    late.kubectl(["delete", "pod", "store", "client", "--now"]).await?;
    well(&[]).await?;

    let scale =
        |replicas: &'static str| cluster.kubectl(["-n", mesh.name(), "scale", "deploy/osm-controller", replicas]);
    scale("--replicas=0").await?;
    cluster.kubectl(["-n", mesh.name(), "wait", "pod", "--all", "--for=delete", "--timeout=60s"]).await?;
    let webhook = format!("osm-webhook-{}", mesh.name());
    let patch = r#"[{"op":"replace","path":"/webhooks/0/clientConfig/caBundle","value":""}]"#;
    cluster.kubectl(["patch", "mutatingwebhookconfiguration", &webhook, "--type=json", "-p", patch]).await?;
    let (success, names) = found(&mesh).await?;
    let planted = ["replicas", "services", "webhook"].map(ToOwned::to_owned);
    ensure!(!success && planted.iter().all(|name| names.contains(name)), "{names:?}");
    let made = pod(cluster, &late, "unmade").await;
    ensure!(made.is_err(), "a pod without sidecar came into the mesh: {made:?}");
    scale("--replicas=1").await?;
    mesh.ready(LIMIT).await?;
    well(&[]).await?;
    followed(cluster, &late, "made", has_sidecar).await.map(drop)
}

async fn reinstalled(cluster: &'static Cluster) -> Result<()> {
    let mesh = Installed::new(cluster, DataPlane::Oxmesh, &[PERMISSIVE]).await?;
    let ns = mesh.namespace("shop").await?;
    shop(cluster, &ns).await?;
    eventually("the client reaches the store", LIMIT, || ns.exec("client", ["curl", "-fsS", "http://store/"])).await?;
    let authority = ["-n", mesh.name(), "get", "secret", "osm-ca-bundle", "-o", "jsonpath={.data.ca\\.crt}"];
    let root = cluster.kubectl(authority).await?;
    ensure!(root.len() > 500, "{root}");
    let (served, removed) = tokio::join!(load(&ns, "10", 450), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        said(&mesh, &["uninstall", "mesh", "-f"]).await
    });
    let (success, words) = removed?;
    ensure!(success && words.contains("keep their sidecars") && words.contains(ns.name()), "{words}");
    served?;
    ensure!(cluster.kubectl(authority).await? == root, "the authority stays");
    refused(&mesh, &["uninstall", "mesh"], "there is no mesh").await?;

    mesh.install(DataPlane::Oxmesh, &[PERMISSIVE]).await?;
    ensure!(cluster.kubectl(authority).await? == root, "the authority is taken over");
    // A pod of the new installation and one of the old trust each other.
    ns.kubectl(["delete", "pod", "client", "--now"]).await?;
    let shop = include_str!("data/shop.yaml").replace("{{app}}", &cluster.image("app"));
    ns.apply(shop.rsplit("---").next().context("the client is the last")?).await?;
    ns.wait("pod/client", "condition=Ready", LIMIT).await?;
    eventually("the new client reaches the store", LIMIT, || ns.exec("client", ["curl", "-fsS", "http://store/"]))
        .await?;
    load(&ns, "3", 140).await?;
    ensure!(found(&mesh).await? == (true, BTreeSet::new()), "{:?}", found(&mesh).await?);
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

/// `Kind/namespace/name` of every object of every kind, but for those that tell of others.
async fn objects(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let kinds = cluster.kubectl(["api-resources", "--verbs=list", "-o", "name"]).await?;
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    ensure!(kinds.len() > 30, "{kinds:?}");
    let names = r#"jsonpath={range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name}{"\n"}{end}"#;
    let all = cluster.kubectl(["get", &kinds.join(","), "-A", "-o", names, "--ignore-not-found"]).await?;
    Ok(all.lines().map(ToOwned::to_owned).collect())
}

async fn uninstalled(cluster: &'static Cluster) -> Result<()> {
    let plane = if envoy_missing().is_none() { DataPlane::Envoy } else { DataPlane::Oxmesh };
    let ns = cluster.namespace("member").await?;
    eventually("the namespace has its account", LIMIT, || ns.get(["serviceaccount", "default"])).await?;
    let before = objects(cluster).await?;
    let mesh = Installed::new(cluster, plane, &["osm.osmController.replicaCount=2"]).await?;
    mesh.oxmesh(["namespace", "add", ns.name()]).await?;
    followed(cluster, &ns, "app", has_sidecar).await?;
    let there = objects(cluster).await?;
    ensure!(there.difference(&before).count() >= 15, "{:?}", there.difference(&before));
    mesh.oxmesh(["uninstall", "mesh", "-f", "-a", "--delete-namespace"]).await?;
    ns.kubectl(["delete", "pods", "--all", "--now"]).await?;
    eventually("nothing is left", Duration::from_secs(20), || async {
        let after = objects(cluster).await?;
        let left: Vec<_> = after.difference(&before).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;
    let labels = ns.get(["namespace", ns.name()]).await?["metadata"].to_string();
    ensure!(!labels.contains("openservicemesh.io"), "{labels}");
    let others = json(&mesh, &["mesh", "list", "-o", "json"]).await?;
    let kinds = cluster.kubectl(["get", "customresourcedefinitions", "-o", "name"]).await?;
    ensure!(others != serde_json::json!([]) || !kinds.contains("openservicemesh.io"), "{kinds}");
    Ok(())
}
