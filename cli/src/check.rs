//! `oxmesh check`: what is wrong with folders of objects, before a mesh reads it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use oxmesh_controller::lint::{Finding, lint};
use oxmesh_controller::settings::Settings;

use crate::output::{self, Format};

/// Options of `oxmesh check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// A folder with objects; may be given several times.
    #[arg(short, long = "folder", value_name = "FOLDER", required = true)]
    folders: Vec<PathBuf>,
    /// Form of the output.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Format,
}

/// Exit status when there is something to say.
const FINDINGS: u8 = 2;

/// Prints all findings; status 0 without any, else 2.
///
/// # Errors
/// When a folder isn't there.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    if let Some(folder) = args.folders.iter().find(|folder| !folder.is_dir()) {
        bail!("{} is not a folder", folder.display());
    }
    let findings = lint(&args.folders, &Settings::default());
    output::print(args.output, &findings, |findings| render(findings))?;
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
