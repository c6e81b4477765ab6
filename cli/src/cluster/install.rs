//! `oxmesh install`: the chart into the cluster, by helm, with checks before and progress while it starts.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::chart::Chart;
use super::check::{self, State, control_plane};
use super::connect::{Cluster, ClusterArgs, is_absent};
use super::helm::Helm;
use super::labels::{CONTROLLERS, IGNORE, MADE};
use crate::output;
use crate::signals::Shutdown;

/// Options of `oxmesh install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// A value of the chart, KEY=VALUE; may be given several times. `helm show values` of the chart lists them.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// A file with values; may be given several times.
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    values: Vec<PathBuf>,
    /// A chart in place of the one that comes with this program.
    #[arg(long, value_name = "PATH")]
    osm_chart_path: Option<PathBuf>,
    /// Refuse to install when there is another mesh.
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true",
          require_equals = true, action = clap::ArgAction::Set)]
    enforce_single_mesh: bool,
    /// How long the control plane may take to be ready.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Remove everything again when it doesn't become ready.
    #[arg(long)]
    atomic: bool,
    /// Install nothing; print the objects as YAML, for those who apply them by other means.
    #[arg(long)]
    dry_run: bool,
}

/// Installs the mesh.
///
/// # Errors
/// When the cluster isn't fit, a value is refused, or the control plane doesn't become ready in time.
pub async fn run(args: InstallArgs) -> anyhow::Result<ExitCode> {
    let helm = Helm::new();
    let chart = Chart::new(args.osm_chart_path.as_deref())?;
    if args.dry_run {
        let command = command(&helm, &args, &chart, &["template", "--include-crds"]);
        output::say(&helm.output(command).await?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = ready_for(&args).await?;
    let (mesh, home) = (&args.cluster.mesh_name, &args.cluster.osm_namespace);
    eprintln!("installing mesh {mesh} in namespace {home} of {}", cluster.url);
    // A refused value must leave no namespace behind.
    helm.output(command(&helm, &args, &chart, &["template"])).await?;
    let made = namespace(&cluster, home).await?;
    let timeout = format!("{}s", args.timeout.as_secs());
    let mut words = vec!["install", "--wait", "--timeout", &timeout];
    if args.atomic {
        words.push("--atomic");
    }
    let work = helm.output(command(&helm, &args, &chart, &words));
    if let Err(error) = watched(&cluster, home, work).await {
        return Err(undo(&cluster, &args, made, error).await);
    }
    println!("oxmesh installed successfully in namespace [{home}] with mesh name [{mesh}]");
    eprintln!("\nnext:");
    eprintln!("  oxmesh check                              is everything all right?");
    eprintln!("  oxmesh namespace add NAME                 pods made there from then on get a sidecar");
    eprintln!("  kubectl -n NAME rollout restart deploy    pods that are there already, too");
    Ok(ExitCode::SUCCESS)
}

/// Runs the checks; says what isn't well.
async fn ready_for(args: &InstallArgs) -> anyhow::Result<Cluster> {
    let (cluster, outcomes) = check::before_install(&args.cluster, args.enforce_single_mesh).await?;
    for outcome in outcomes.iter().filter(|outcome| outcome.state != State::Ok) {
        eprintln!("{}", outcome.line(false));
    }
    if outcomes.iter().any(|outcome| outcome.state == State::Error) {
        bail!("the cluster isn't fit for the installation, nothing was changed; all checks: oxmesh check --before");
    }
    Ok(cluster)
}

fn command(helm: &Helm, args: &InstallArgs, chart: &Chart, words: &[&str]) -> Command {
    let mut command = helm.command(&args.cluster, words);
    command.arg(&args.cluster.mesh_name).arg(chart.path());
    for file in &args.values {
        command.arg("--values").arg(file);
    }
    command.arg("--set-string").arg(format!("osm.meshName={}", args.cluster.mesh_name));
    command.arg("--set").arg(format!("osm.enforceSingleMesh={}", args.enforce_single_mesh));
    for value in &args.set {
        command.arg("--set").arg(value);
    }
    command
}

/// The control plane's namespace with its labels; true when it was made.
async fn namespace(cluster: &Cluster, name: &str) -> anyhow::Result<bool> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let labels = json!({"name": name, IGNORE: "true"});
    match api.get(name).await {
        Ok(found) if found.metadata.deletion_timestamp.is_some() => {
            bail!("namespace {name} is just being deleted; try again when it is gone")
        }
        Ok(_) => {
            let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
            api.patch(name, &PatchParams::default(), &patch)
                .await
                .map_err(|error| cluster.failed(&format!("label namespace {name}"), error))?;
            Ok(false)
        }
        Err(error) if is_absent(&error) => {
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {
                "name": name, "labels": labels, "annotations": {MADE: "oxmesh install"},
            }}))?;
            let made = api.create(&PostParams::default(), &namespace).await;
            made.map_err(|error| cluster.failed(&format!("make namespace {name}"), error))?;
            Ok(true)
        }
        Err(error) => Err(cluster.failed(&format!("read namespace {name}"), error)),
    }
}

/// Waits for helm, and tells how the pods are doing whenever that changes.
async fn watched(
    cluster: &Cluster,
    home: &str,
    work: impl Future<Output = anyhow::Result<String>>,
) -> anyhow::Result<()> {
    let mut shutdown = Shutdown::new()?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), home);
    let progress = async {
        let (start, mut told) = (Instant::now(), String::new());
        loop {
            sleep(LOOK).await;
            // Helm says what goes wrong with the API server; this is only about the pods.
            let Ok(found) = pods.list(&ListParams::default().labels(CONTROLLERS)).await else { continue };
            let now = state(&found.items);
            if now != told {
                eprintln!("  {:>3} s  {now}", start.elapsed().as_secs());
                told = now;
            }
        }
    };
    tokio::select! {
        done = work => done.map(drop),
        () = progress => unreachable!("progress is told until helm ends"),
        () = shutdown.wait() => bail!("interrupted"),
    }
}

fn state(pods: &[Pod]) -> String {
    let ready = |pod: &&Pod| {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let mut text = format!("osm-controller: {} of {} pods ready", pods.iter().filter(ready).count(), pods.len());
    if let Some(why) = pods.iter().find_map(control_plane::trouble) {
        text = format!("{text} ({why})");
    }
    text
}

/// What went wrong, with the state of the pods; and the namespace away again if `--atomic` asks for that.
async fn undo(cluster: &Cluster, args: &InstallArgs, made: bool, error: anyhow::Error) -> anyhow::Error {
    let home = &args.cluster.osm_namespace;
    if args.atomic {
        if made && let Err(error) = cluster.remove_namespace(home).await {
            eprintln!("‼ {error:#}");
        }
        return error.context("the installation failed and was taken back, but for the kinds of objects");
    }
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), home);
    let troubles = match pods.list(&ListParams::default().labels(CONTROLLERS)).await {
        Ok(found) => found
            .items
            .iter()
            .filter_map(|pod| Some(format!("\n× pod {}: {}", pod.name_any(), control_plane::trouble(pod)?)))
            .collect(),
        Err(_) => String::new(),
    };
    anyhow!(
        "the installation failed: {error:#}{troubles}\nlook: kubectl -n {home} describe pods; undo: oxmesh uninstall mesh -f \
         --mesh-name {} --osm-namespace {home}",
        args.cluster.mesh_name
    )
}

const LOOK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_ready_pods_and_names_the_first_trouble() {
        let pod = |ready: &str| -> Pod {
            serde_json::from_value(json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}})).unwrap()
        };
        assert_eq!(state(&[pod("True"), pod("False")]), "osm-controller: 1 of 2 pods ready");
        let pull: Pod = serde_json::from_value(json!({"status": {"containerStatuses": [{
            "name": "osm-controller", "ready": false, "image": "", "imageID": "", "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}]}}))
        .unwrap();
        assert_eq!(state(&[pull]), "osm-controller: 0 of 1 pods ready (osm-controller: ErrImagePull: not found)");
    }
}
