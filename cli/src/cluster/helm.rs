//! Runs the user's `helm`: the chart is its input, and upgrades and rollbacks by hand stay possible.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use tokio::process::Command;

use super::connect::ClusterArgs;

/// A `helm` that runs.
pub(super) struct Helm {
    program: PathBuf,
}

impl Helm {
    /// `helm` of the path, or the one that $OXMESH_HELM names.
    pub(super) fn new() -> Self {
        Self { program: std::env::var_os("OXMESH_HELM").map_or_else(|| "helm".into(), PathBuf::from) }
    }

    /// Its version, such as `v3.17.3+ge4da497`.
    pub(super) async fn version(&self) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command.args(["version", "--short"]);
        let version = self.output(command).await?;
        let version = version.trim().to_owned();
        let major = version.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < 3) {
            bail!("{} is {version}; version 3 or later is needed", self.program.display());
        }
        Ok(version)
    }

    /// A command for the cluster and the namespace of the control plane.
    pub(super) fn command(&self, args: &ClusterArgs, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).args(["--namespace", &args.osm_namespace]);
        if let Some(file) = &args.kubeconfig {
            command.arg("--kubeconfig").arg(file);
        }
        if let Some(context) = &args.context {
            command.args(["--kube-context", context]);
        }
        command
    }

    /// Runs it to its end and gives what it printed.
    ///
    /// # Errors
    /// Its own words, when it fails; how to get it, when it isn't there.
    pub(super) async fn output(&self, mut command: Command) -> anyhow::Result<String> {
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                missing(&self.program)
            } else {
                anyhow::Error::new(error).context(format!("running {}", self.program.display()))
            }
        })?;
        let errors = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("helm: {}", own_words(&errors));
        }
        String::from_utf8(output.stdout).context("what helm printed")
    }

    /// True when the mesh was installed by helm.
    pub(super) async fn has_release(&self, args: &ClusterArgs) -> anyhow::Result<bool> {
        let filter = format!("^{}$", args.mesh_name);
        let list = self.output(self.command(args, &["list", "--all", "--short", "--filter", &filter])).await?;
        Ok(list.lines().any(|line| line == args.mesh_name))
    }
}

/// Helm's error without what it always says.
fn own_words(errors: &str) -> String {
    let lines = errors.lines().filter(|line| !line.starts_with("WARNING") && !line.starts_with("Use --debug"));
    let text = lines.collect::<Vec<_>>().join("\n");
    let text = text.trim().trim_start_matches("Error: ").trim_start_matches("INSTALLATION FAILED: ");
    // Of a refusal only the reasons count, not where in the chart it was made.
    let reasons = text.strip_prefix("execution error at ").and_then(|rest| rest.split_once("): "));
    reasons.map_or(text, |(_, reasons)| reasons).trim().to_owned()
}

fn missing(program: &Path) -> anyhow::Error {
    anyhow::anyhow!(
        "there is no program {}, which installs the chart; get helm from https://helm.sh/docs/intro/install, \
         or name it by $OXMESH_HELM",
        program.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reasons_of_a_refusal_are_shown() {
        let said = "Error: INSTALLATION FAILED: execution error at (oxmesh/templates/refuse.yaml:24:16): \n\
                    - osm.deployPrometheus: none\n\nUse --debug flag to render out invalid YAML\n";
        assert_eq!(own_words(said), "- osm.deployPrometheus: none");
        assert_eq!(own_words("WARNING: perms\nError: INSTALLATION FAILED: no\n"), "no");
    }

    #[tokio::test]
    async fn a_missing_helm_is_named_with_the_way_to_get_it() {
        let helm = Helm { program: "/nowhere/helm".into() };
        let error = helm.version().await.unwrap_err().to_string();
        assert!(error.contains("/nowhere/helm") && error.contains("https://helm.sh"), "{error}");
    }
}
