//! `oxmesh proxy get`: what a sidecar says on its admin port.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ListParams;
use kube::core::Selector;
use kube::{Api, ResourceExt as _};

use super::connect::{Cluster, ClusterArgs, is_absent};
use super::forward;
use super::labels::PROXY_UUID;

/// What else `oxmesh proxy` does.
#[derive(Debug, Subcommand)]
pub enum ProxyCommand {
    /// Ask a pod's sidecar on its admin port: config_dump, clusters, listeners, certs, stats, ready, ...
    #[command(
        disable_help_flag = false,
        after_help = "Examples:\n  \
        oxmesh proxy get clusters bookbuyer-7d9f -n bookbuyer\n  \
        oxmesh proxy get 'stats?filter=upstream_rq_completed' deploy/bookbuyer -n bookbuyer"
    )]
    Get(GetArgs),
}

/// Options of `oxmesh proxy get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Page of the admin port, with its parameters; `help` lists them.
    query: String,
    /// A pod, or deploy/NAME, statefulset/NAME, daemonset/NAME for one of its pods.
    pod: String,
    /// Namespace of the pod.
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// Write to this file and not to standard output.
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// As in OSM; no local port is opened.
    #[arg(short = 'p', long, value_name = "PORT", hide = true)]
    local_port: Option<u16>,
}

/// Runs the command.
///
/// # Errors
/// When there is no such pod, it has no sidecar, or the sidecar refuses.
pub async fn run(command: ProxyCommand) -> anyhow::Result<ExitCode> {
    let ProxyCommand::Get(args) = command;
    let cluster = args.cluster.connect().await?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &args.namespace);
    let pod = find(&cluster, &pods, &args).await?;
    let name = pod.name_any();
    if !pod.labels().contains_key(PROXY_UUID) {
        bail!(
            "pod {name} has no sidecar; is {0} part of the mesh (oxmesh namespace list), and was the pod made after it was \
             added? kubectl -n {0} rollout restart deploy",
            args.namespace
        );
    }
    let path = format!("/{}", args.query.trim_start_matches('/'));
    let (status, body) = forward::get(&pods, &name, ADMIN, &path).await?;
    if !status.is_success() {
        bail!("the sidecar of {name} answers {status}: {}", String::from_utf8_lossy(&body).trim());
    }
    match &args.file {
        Some(file) => fs::write(file, &body).with_context(|| format!("writing {}", file.display()))?,
        None => std::io::stdout().write_all(&body).context("writing to standard output")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The pod itself, or the first running pod of what is named.
async fn find(cluster: &Cluster, pods: &Api<Pod>, args: &GetArgs) -> anyhow::Result<Pod> {
    let Some((kind, name)) = args.pod.split_once('/') else {
        return pods.get(&args.pod).await.map_err(|error| absent(cluster, error, "pod", args));
    };
    if matches!(kind, "pod" | "pods" | "po") {
        return pods.get(name).await.map_err(|error| absent(cluster, error, "pod", args));
    }
    let selector = selector(cluster, kind, name, args).await?;
    let selector: Selector = selector.try_into().context("the selector of the pods")?;
    let params = ListParams::default().labels_from(&selector);
    let found = cluster.all(pods, params, "pods").await?;
    let running = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    found.into_iter().find(running).with_context(|| format!("{} has no running pod in {}", args.pod, args.namespace))
}

async fn selector(cluster: &Cluster, kind: &str, name: &str, args: &GetArgs) -> anyhow::Result<LabelSelector> {
    let client = cluster.client.clone();
    macro_rules! of {
        ($kind:ty) => {{
            let api: Api<$kind> = Api::namespaced(client, &args.namespace);
            api.get(name).await.map(|object| object.spec.map(|spec| spec.selector))
        }};
    }
    let found = match kind {
        "deploy" | "deployment" | "deployments" => of!(Deployment),
        "sts" | "statefulset" | "statefulsets" => of!(StatefulSet),
        "ds" | "daemonset" | "daemonsets" => of!(DaemonSet),
        "rs" | "replicaset" | "replicasets" => of!(ReplicaSet),
        _ => bail!("{kind}/: only pods, deployments, statefulsets, daemonsets and replicasets have pods"),
    };
    found.map_err(|error| absent(cluster, error, kind, args))?.context("it has no selector")
}

fn absent(cluster: &Cluster, error: kube::Error, kind: &str, args: &GetArgs) -> anyhow::Error {
    if is_absent(&error) {
        anyhow::anyhow!("there is no {kind} {} in namespace {}; another one by -n", args.pod, args.namespace)
    } else {
        cluster.failed(&format!("read {}", args.pod), error)
    }
}

/// The sidecar's admin port, on the pod's loopback address.
pub(super) const ADMIN: u16 = 15000;
