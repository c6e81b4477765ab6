//! `oxmesh metrics`: whether Prometheus is told of a namespace's sidecars.

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::connect::{Cluster, ClusterArgs, is_absent};
use super::labels::{METRICS, MONITORED_BY};

/// Options of `oxmesh metrics`.
#[derive(Debug, Args)]
pub struct MetricsArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Annotate pods made from now on, so that Prometheus reads their sidecars.
    Enable(Names),
    /// Stop to do so.
    Disable(Names),
}

#[derive(Debug, Args)]
struct Names {
    /// Namespaces of the mesh, with commas between them or one after the other.
    #[arg(short, long = "namespace", value_name = "NAME", value_delimiter = ',', required = true)]
    namespaces: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// When a namespace isn't part of a mesh, or can't be changed.
pub async fn run(args: MetricsArgs) -> anyhow::Result<ExitCode> {
    let cluster = args.cluster.connect().await?;
    let (Names { namespaces }, value, done) = match args.command {
        Command::Enable(names) => (names, Some("enabled"), "enabled"),
        Command::Disable(names) => (names, None, "disabled"),
    };
    for name in namespaces {
        annotate(&cluster, &name, value).await?;
        println!("Metrics successfully {done} in namespace [{name}]");
        eprintln!("pods that run there already follow by: kubectl -n {name} rollout restart deploy");
    }
    Ok(ExitCode::SUCCESS)
}

async fn annotate(cluster: &Cluster, name: &str, value: Option<&str>) -> anyhow::Result<()> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = match api.get(name).await {
        Err(error) if is_absent(&error) => bail!("there is no namespace {name}"),
        Err(error) => return Err(cluster.failed(&format!("read namespace {name}"), error)),
        Ok(namespace) => namespace,
    };
    if !namespace.labels().contains_key(MONITORED_BY) {
        bail!("{name} belongs to no mesh; first: oxmesh namespace add {name}");
    }
    let patch = json!({"metadata": {"annotations": {METRICS: value}}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(|error| cluster.failed(&format!("annotate namespace {name}"), error))?;
    Ok(())
}
