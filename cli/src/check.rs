//! `oxmesh check`: what is wrong with a cluster's mesh, or with folders of objects before a mesh reads them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use oxmesh_controller::lint::{Finding, lint};
use oxmesh_controller::settings::Settings;

use crate::cluster::ClusterArgs;
use crate::cluster::check::{self as cluster_check, Form};
use crate::output;

/// Options of `oxmesh check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Check a folder with objects in place of the cluster; may be given several times.
    #[arg(short, long = "folder", value_name = "FOLDER", conflicts_with_all = ["before", "kubeconfig", "context"])]
    folders: Vec<PathBuf>,
    /// Check what an installation needs, even if there is one.
    #[arg(long, visible_alias = "pre")]
    before: bool,
    /// Form of the output.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Form,
}

/// Exit status when there is something to say about a folder.
const FINDINGS: u8 = 2;

/// Prints what was found. Status for a cluster: 1 if a check failed, else 0; for folders: 0 without findings, else 2.
///
/// # Errors
/// When a folder isn't there.
pub async fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    if args.folders.is_empty() {
        let well = cluster_check::run(&args.cluster, args.before, args.output).await?;
        return Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if let Some(folder) = args.folders.iter().find(|folder| !folder.is_dir()) {
        bail!("{} is not a folder", folder.display());
    }
    let settings = Settings {
        mesh_name: args.cluster.mesh_name.clone(),
        osm_namespace: args.cluster.osm_namespace.clone(),
        ..Settings::default()
    };
    let findings = lint(&args.folders, &settings);
    match args.output {
        Form::Table | Form::Short => output::say(&render(&findings))?,
        Form::Json => output::say(&serde_json::to_string_pretty(&findings)?)?,
        Form::Yaml => output::say(&serde_saphyr::to_string(&findings)?)?,
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FINDINGS) })
}

fn render(findings: &[Finding]) -> String {
    let errors = findings.iter().filter(|finding| finding.is_error()).count();
    let mut lines: Vec<String> =
        findings.iter().map(|finding| format!("{} {finding}", if finding.is_error() { "×" } else { "‼" })).collect();
    lines.push(match findings.len() {
        0 => "√ nothing to say".to_owned(),
        all => format!("{errors} errors, {} notices", all - errors),
    });
    lines.join("\n")
}
