//! `oxmesh mesh list`: the meshes of a cluster.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde::Serialize;

use super::connect::{Cluster, ClusterArgs};
use super::labels::{CONTROLLERS, MESH_NAME, MONITORED_BY, VERSION};
use crate::output::{self, Format};

/// Options of `oxmesh mesh`.
#[derive(Debug, Args)]
pub struct MeshArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the meshes of the cluster, with their versions and namespaces.
    List {
        /// Form of the output.
        #[arg(short, long, value_name = "FORM", default_value = "table")]
        output: Format,
    },
}

/// A mesh as its Deployment tells it.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The mesh's name.
    pub mesh: String,
    /// Namespace of its control plane.
    pub namespace: String,
    /// Its version.
    pub version: String,
    /// Replicas of the control plane that serve.
    pub ready: i32,
    /// Replicas that there should be.
    pub replicas: i32,
    /// Namespaces that belong to it.
    pub namespaces: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// When the cluster can't be asked.
pub async fn run(args: MeshArgs) -> anyhow::Result<ExitCode> {
    let Command::List { output } = args.command;
    let cluster = args.cluster.connect().await?;
    let rows = meshes(&cluster).await?;
    output::print(output, &rows, |rows| table(rows))?;
    Ok(ExitCode::SUCCESS)
}

/// All meshes of a cluster.
pub(super) async fn meshes(cluster: &Cluster) -> anyhow::Result<Vec<Row>> {
    let deployments = controllers(cluster).await?;
    let api = Api::all(cluster.client.clone());
    let members = cluster.all(&api, ListParams::default().labels(MONITORED_BY), "namespaces").await?;
    Ok(deployments.iter().map(|deployment| row(deployment, &members)).collect())
}

/// The Deployments of all control planes.
pub(super) async fn controllers(cluster: &Cluster) -> anyhow::Result<Vec<Deployment>> {
    let api = Api::all(cluster.client.clone());
    cluster.all(&api, ListParams::default().labels(CONTROLLERS), "deployments").await
}

fn row(deployment: &Deployment, members: &[Namespace]) -> Row {
    let label = |name: &str| deployment.labels().get(name).cloned().unwrap_or_else(|| "-".to_owned());
    let mesh = label(MESH_NAME);
    let mine = |namespace: &&Namespace| namespace.labels().get(MONITORED_BY) == Some(&mesh);
    Row {
        namespaces: members.iter().filter(mine).map(|namespace| namespace.name_any()).collect(),
        namespace: deployment.namespace().unwrap_or_default(),
        version: label(VERSION),
        ready: deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0),
        replicas: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        mesh,
    }
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no mesh is installed; install one by: oxmesh install".to_owned();
    }
    let namespaces = |row: &Row| if row.namespaces.is_empty() { "-".to_owned() } else { row.namespaces.join(",") };
    output::table(
        &["MESH NAME", "MESH NAMESPACE", "VERSION", "READY", "ADDED NAMESPACES"],
        rows.iter().map(|row| {
            let ready = format!("{}/{}", row.ready, row.replicas);
            [row.mesh.clone(), row.namespace.clone(), row.version.clone(), ready, namespaces(row)]
        }),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mesh_is_told_by_its_deployment_and_its_namespaces_by_their_label() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "osm-controller", "namespace": "osm-system",
                         "labels": {"meshName": "osm", "app.kubernetes.io/version": "0.1.0"}},
            "spec": {"replicas": 2, "selector": {}, "template": {}},
            "status": {"readyReplicas": 1},
        }))
        .unwrap();
        let namespace = |name: &str, mesh: &str| -> Namespace {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {MONITORED_BY: mesh}}})).unwrap()
        };
        let row = row(&deployment, &[namespace("shop", "osm"), namespace("other", "two")]);
        assert_eq!((row.ready, row.replicas, row.namespaces.as_slice()), (1, 2, &["shop".to_owned()][..]));
        let text = table(&[row]);
        assert!(text.contains("1/2") && text.contains("0.1.0"), "{text}");
    }
}
