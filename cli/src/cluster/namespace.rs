//! `oxmesh namespace`: which namespaces belong to a mesh.
//!
//! What a label or annotation becomes is decided by pure functions from what the namespace says now.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::connect::{Cluster, ClusterArgs, is_absent};
use super::labels::{CONTROLLERS, IGNORE, INJECTION, MESH_NAME, METRICS, MONITORED_BY};
use crate::output::{self, Format};

/// Options of `oxmesh namespace`.
#[derive(Debug, Args)]
pub struct NamespaceArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make namespaces part of the mesh; pods made there from then on get a sidecar.
    #[command(after_help = "Example:\n  oxmesh namespace add shop && kubectl -n shop rollout restart deploy")]
    Add {
        /// Namespaces.
        #[arg(required = true)]
        names: Vec<String>,
        /// Only watch their services and policies: no sidecars.
        #[arg(long)]
        disable_sidecar_injection: bool,
    },
    /// Take namespaces out of the mesh; pods keep their sidecars until they are made anew.
    Remove {
        /// Namespaces.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Keep namespaces out of every mesh.
    Ignore {
        /// Namespaces.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// List the namespaces of all meshes, or of one.
    List {
        /// Form of the output.
        #[arg(short, long, value_name = "FORM", default_value = "table")]
        output: Format,
    },
}

/// A namespace of a mesh.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    namespace: String,
    mesh: String,
    sidecar_injection: String,
    metrics: bool,
}

/// Runs the command.
///
/// # Errors
/// When the cluster can't be asked, or a namespace can't become what is asked.
pub async fn run(args: NamespaceArgs) -> anyhow::Result<ExitCode> {
    let cluster = args.cluster.connect().await?;
    let mesh = &args.cluster.mesh_name;
    match args.command {
        Command::Add { names, disable_sidecar_injection } => {
            let injector = has_mesh(&cluster, mesh).await;
            if !injector {
                eprintln!("‼ there is no mesh {mesh} in the cluster yet: oxmesh install");
            }
            for name in names {
                if name == args.cluster.osm_namespace {
                    bail!("{name} is the control plane's own namespace, which can't be part of the mesh");
                }
                let patch = |namespace: &Namespace| add(namespace, mesh, !disable_sidecar_injection);
                change(&cluster, &name, patch).await?;
                println!("Namespace [{name}] successfully added to mesh [{mesh}]");
                if !disable_sidecar_injection {
                    if injector && let Some(why) = unreached(&cluster, &name).await {
                        eprintln!("‼ pods can't be made there yet: {why}\n    fix: oxmesh check");
                    }
                    eprintln!(
                        "pods that run there already get their sidecar by: kubectl -n {name} rollout restart deploy"
                    );
                }
            }
        }
        Command::Remove { names } => {
            for name in names {
                change(&cluster, &name, |namespace| remove(namespace, mesh)).await?;
                println!("Namespace [{name}] successfully removed from mesh [{mesh}]");
            }
        }
        Command::Ignore { names } => {
            for name in names {
                change(&cluster, &name, |_| Ok(ignore())).await?;
                println!("Successfully ignored namespace [{name}]");
            }
        }
        Command::List { output } => {
            let api = Api::all(cluster.client.clone());
            let members = cluster.all(&api, ListParams::default().labels(MONITORED_BY), "namespaces").await?;
            let rows: Vec<Row> = members.iter().map(row).collect();
            output::print(output, &rows, |rows| table(rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the mesh is in the cluster: labels are worth something only when somebody reads them, but the order is free.
async fn has_mesh(cluster: &Cluster, mesh: &str) -> bool {
    let api: Api<Deployment> = Api::all(cluster.client.clone());
    let selector = format!("{CONTROLLERS},{MESH_NAME}={mesh}");
    let found = api.list(&ListParams::default().labels(&selector).limit(1)).await;
    // Who may not look is not told that there is none.
    found.map_or(true, |found| !found.items.is_empty())
}

/// Waits until the API server reaches the injector, which takes it a moment after an installation: the next pod would be
/// refused until then. Gives the API server's words when it doesn't come to that. Nothing is made.
async fn unreached(cluster: &Cluster, namespace: &str) -> Option<String> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"generateName": "oxmesh-namespace-add-"},
        "spec": {"containers": [{"name": "app", "image": "none"}]},
    }))
    .expect("a pod of constants");
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let deadline = Instant::now() + REACHED;
    loop {
        match api.create(&params, &pod).await {
            Err(kube::Error::Api(status)) if status.message.contains("failed calling webhook") => {
                if Instant::now() >= deadline {
                    return Some(status.message.clone());
                }
                sleep(Duration::from_millis(500)).await;
            }
            // Whatever else is wrong with such a pod, the injector was asked, or is not to be asked.
            _ => return None,
        }
    }
}

const REACHED: Duration = Duration::from_secs(30);

async fn change(
    cluster: &Cluster,
    name: &str,
    patch: impl FnOnce(&Namespace) -> anyhow::Result<Value>,
) -> anyhow::Result<()> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = api.get(name).await.map_err(|error| {
        if is_absent(&error) {
            anyhow::anyhow!("there is no namespace {name}; make it by: kubectl create namespace {name}")
        } else {
            cluster.failed(&format!("read namespace {name}"), error)
        }
    })?;
    let patch = patch(&namespace)?;
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(|error| cluster.failed(&format!("label namespace {name}"), error))?;
    Ok(())
}

/// The change that makes a namespace a member.
fn add(namespace: &Namespace, mesh: &str, injection: bool) -> anyhow::Result<Value> {
    let name = namespace.name_any();
    if namespace.labels().contains_key(IGNORE) {
        bail!("{name} is kept out of every mesh by its label; first: kubectl label namespace {name} {IGNORE}-");
    }
    if let Some(other) = namespace.labels().get(MONITORED_BY).filter(|other| *other != mesh) {
        bail!("{name} belongs to mesh {other}; first: oxmesh namespace remove {name} --mesh-name {other}");
    }
    let injection = if injection { json!("enabled") } else { Value::Null };
    Ok(json!({"metadata": {"labels": {MONITORED_BY: mesh}, "annotations": {INJECTION: injection}}}))
}

/// The change that ends a membership.
fn remove(namespace: &Namespace, mesh: &str) -> anyhow::Result<Value> {
    let name = namespace.name_any();
    match namespace.labels().get(MONITORED_BY) {
        None => bail!("{name} belongs to no mesh"),
        Some(other) if other != mesh => bail!("{name} belongs to mesh {other}, not {mesh}; say --mesh-name {other}"),
        Some(_) => Ok(left()),
    }
}

/// Neither label nor annotations of a mesh.
pub(super) fn left() -> Value {
    json!({"metadata": {
        "labels": {MONITORED_BY: null}, "annotations": {INJECTION: null, METRICS: null},
    }})
}

fn ignore() -> Value {
    json!({"metadata": {
        "labels": {IGNORE: "true", MONITORED_BY: null}, "annotations": {INJECTION: null},
    }})
}

fn row(namespace: &Namespace) -> Row {
    let note = |key: &str| namespace.annotations().get(key).map(String::as_str);
    Row {
        namespace: namespace.name_any(),
        mesh: namespace.labels().get(MONITORED_BY).cloned().unwrap_or_default(),
        sidecar_injection: note(INJECTION).unwrap_or("-").to_owned(),
        metrics: note(METRICS) == Some("enabled"),
    }
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no namespace belongs to a mesh; add one by: oxmesh namespace add NAME".to_owned();
    }
    let metrics = |row: &Row| if row.metrics { "enabled" } else { "-" }.to_owned();
    output::table(
        &["NAMESPACE", "MESH", "SIDECAR-INJECTION", "METRICS"],
        rows.iter().map(|row| [row.namespace.clone(), row.mesh.clone(), row.sidecar_injection.clone(), metrics(row)]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(labels: &Value) -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": "shop", "labels": labels}})).unwrap()
    }

    #[test]
    fn a_namespace_joins_with_or_without_sidecars() {
        let patch = add(&namespace(&json!({})), "osm", true).unwrap();
        assert_eq!(patch["metadata"]["labels"][MONITORED_BY], "osm");
        assert_eq!(patch["metadata"]["annotations"][INJECTION], "enabled");
        let patch = add(&namespace(&json!({MONITORED_BY: "osm"})), "osm", false).unwrap();
        assert_eq!(patch["metadata"]["annotations"][INJECTION], Value::Null);
    }

    #[test]
    fn a_namespace_of_another_mesh_or_an_ignored_one_is_refused_with_the_mend() {
        let other = add(&namespace(&json!({MONITORED_BY: "two"})), "osm", true).unwrap_err().to_string();
        assert!(other.contains("oxmesh namespace remove shop --mesh-name two"), "{other}");
        let ignored = add(&namespace(&json!({IGNORE: "true"})), "osm", true).unwrap_err().to_string();
        assert!(ignored.contains("kubectl label namespace shop openservicemesh.io/ignore-"), "{ignored}");
    }

    #[test]
    fn only_a_member_can_leave() {
        assert!(remove(&namespace(&json!({MONITORED_BY: "osm"})), "osm").is_ok());
        assert!(remove(&namespace(&json!({})), "osm").unwrap_err().to_string().contains("no mesh"));
        let other = remove(&namespace(&json!({MONITORED_BY: "two"})), "osm").unwrap_err().to_string();
        assert!(other.contains("--mesh-name two"), "{other}");
    }

    #[test]
    fn the_list_is_a_table_or_says_what_to_do() {
        assert!(table(&[]).contains("oxmesh namespace add"));
        let text = table(&[row(&namespace(&json!({MONITORED_BY: "osm"})))]);
        assert!(text.contains("shop") && text.contains("SIDECAR-INJECTION"), "{text}");
    }
}
