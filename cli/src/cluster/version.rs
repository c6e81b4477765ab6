//! `oxmesh version`: of this program and of the control planes.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::timeout;

use super::connect::ClusterArgs;
use super::mesh::{self, Row};
use crate::output::{self, Format};

/// Options of `oxmesh version`.
#[derive(Debug, Args)]
pub struct VersionArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Ask no cluster.
    #[arg(long)]
    client_only: bool,
    /// Form of the output.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Format,
}

#[derive(Debug, Serialize)]
struct Versions {
    client: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    meshes: Option<Vec<Row>>,
}

/// Prints the versions; a cluster that can't be asked is no failure.
///
/// # Errors
/// When the form can't be written.
pub async fn run(args: VersionArgs) -> anyhow::Result<ExitCode> {
    let meshes = if args.client_only { None } else { ask(&args.cluster).await };
    let versions = Versions { client: env!("CARGO_PKG_VERSION"), meshes };
    output::print(args.output, &versions, text)?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(args: &ClusterArgs) -> Option<Vec<Row>> {
    let asked = async { mesh::meshes(&args.connect().await?).await };
    match timeout(LIMIT, asked).await {
        Ok(Ok(meshes)) => Some(meshes),
        Ok(Err(error)) => {
            eprintln!("control plane not asked: {error:#}");
            None
        }
        Err(_) => {
            eprintln!("control plane not asked: the cluster didn't answer in {} s", LIMIT.as_secs());
            None
        }
    }
}

fn text(versions: &Versions) -> String {
    let mut lines = vec![format!("oxmesh {}", versions.client)];
    match versions.meshes.as_deref() {
        None => {}
        Some([]) => lines.push("control plane: not installed".to_owned()),
        Some(meshes) => lines.extend(meshes.iter().map(|mesh| {
            let newer = if mesh.version == versions.client { "" } else { " (differs from this program)" };
            format!("control plane: mesh {} in {}: {}{newer}", mesh.mesh, mesh.namespace, mesh.version)
        })),
    }
    lines.join("\n")
}

const LIMIT: Duration = Duration::from_secs(10);
