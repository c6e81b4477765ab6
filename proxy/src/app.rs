//! The process: from the command line to serving, and to its end.
//!
//! The main thread is the control thread: configuration, admin, names, watches. The traffic threads serve.

mod run;
mod signals;
pub mod sockets;
pub mod workers;

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use envoy_types::pb::envoy::config::core::v3::{Locality, node::UserAgentVersionType};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{
    args::{Args, Mode},
    bootstrap::{self, Api, Bootstrap},
    healthcheck,
    identity::{self, Agent},
    logging,
    snapshot::Shared,
    telemetry::mesh::{MeshStats, Workload},
    upstream::{SystemResolver, Upstreams},
    xds::{
        assemble::{Assembler, Statics},
        control::{Control, Status},
        convert::{Options, Origin},
        kind::Kind,
        resource::{cluster_references, listener_references},
        sds_file::Files,
        state::{Client, Settings, Variant},
    },
};

/// Runs the process to its end.
///
/// # Errors
/// What is wrong with the command line's files or the bootstrap, in one line.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let path = args.log_path.as_deref();
    let logging = logging::start(args.log_level, &args.component_log_level, args.log_format.clone(), path)
        .map_err(anyhow::Error::msg)?;
    if matches!(args.mode, Mode::Healthcheck | Mode::AwaitReady) {
        return healthcheck::run(args);
    }
    let bootstrap = read(args)?;
    let workers = match args.concurrency {
        Some(count) => count.get(),
        // Knows of CPU affinity and of cgroup quotas.
        None => std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("control runtime")?;
    runtime.block_on(async {
        let mut parts = Parts::new(args, bootstrap, workers)?;
        parts.control.step();
        let faults: Vec<String> = parts.control.status.load().faults.iter().map(|(k, v)| format!("{k}: {v}")).collect();
        match args.mode {
            Mode::Serve => run::serve(args, parts, logging, workers).await,
            Mode::Validate | Mode::InitOnly if !faults.is_empty() => bail!("{}", faults.join("; ")),
            Mode::Validate => {
                println!("configuration '{}' OK", shown_path(args));
                Ok(())
            }
            Mode::InitOnly => {
                println!("all dependencies initialized; exiting");
                Ok(())
            }
            Mode::Healthcheck | Mode::AwaitReady => Ok(()),
        }
    })
}

/// What serving is made of.
pub(crate) struct Parts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) bootstrap: Arc<Bootstrap>,
    pub(crate) client: Arc<Mutex<Client>>,
    pub(crate) files: Files,
    pub(crate) control: Control,
    pub(crate) dynamic: Options,
    pub(crate) agent: Option<Agent>,
}

impl Parts {
    fn new(args: &Args, bootstrap: Bootstrap, workers: usize) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::new());
        let (changed, outgoing) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let files = Files::new(Arc::clone(&changed));
        let resolver = Arc::new(SystemResolver::default());
        let agent = agent(args, &shared, &resolver)?;
        let upstreams = Upstreams::new(shared.metrics.clone(), workers, resolver, args.upstream_mark);
        let source = Workload::from_env(|key| std::env::var(key).ok());
        let mesh = Some(Arc::new(MeshStats::new(shared.metrics.clone(), source)));
        let client = Arc::new(Mutex::new(Client::new(settings(&bootstrap), Instant::now())));
        let statics = Statics {
            clusters: bootstrap.clusters.iter().map(|cluster| Arc::clone(&cluster.config)).collect(),
            listeners: bootstrap.listeners.iter().map(|listener| Arc::clone(&listener.config)).collect(),
            secrets: static_secrets(&bootstrap)?,
        };
        let again = Arc::clone(&changed);
        let assembler = Assembler::new(Arc::clone(&shared), upstreams, mesh, statics, files.clone(), again);
        let control = Control {
            shared: Arc::clone(&shared),
            client: Arc::clone(&client),
            changed,
            outgoing,
            assembler,
            status: Arc::new(ArcSwap::from_pointee(Status::default())),
            drain_time: args.drain_time,
        };
        let dynamic = Options { origin: Origin::Server, reject_unknown_fields: args.reject_unknown_dynamic_fields };
        Ok(Self { shared, bootstrap: Arc::new(bootstrap), client, files, control, dynamic, agent })
    }
}

/// None without `--identity-server`, and where nothing is served: checking a configuration asks nobody for anything.
fn agent(args: &Args, shared: &Shared, resolver: &Arc<SystemResolver>) -> anyhow::Result<Option<Agent>> {
    let options = identity::Options::read(args, std::env::var(identity::TRUST_BUNDLE_VARIABLE).ok())?;
    match options.filter(|_| args.mode == Mode::Serve) {
        Some(options) => Agent::new(options, &shared.metrics, Arc::<SystemResolver>::clone(resolver)).map(Some),
        None => Ok(None),
    }
}

fn read(args: &Args) -> anyhow::Result<Bootstrap> {
    let file = match &args.config_path {
        Some(path) => Some(std::fs::read_to_string(path).with_context(|| format!("bootstrap {}", path.display()))?),
        None if args.config_yaml.is_none() => bail!("no bootstrap: give --config-path or --config-yaml"),
        None => None,
    };
    let options = Options {
        origin: Origin::File,
        reject_unknown_fields: !(args.allow_unknown_static_fields || args.allow_unknown_fields),
    };
    let mut bootstrap = bootstrap::parse(file.as_deref(), args.config_yaml.as_deref(), Path::new("."), &options)
        .map_err(|rejected| anyhow::anyhow!("{}: {}", shown_path(args), rejected.errors.join("; ")))?;
    for warning in &bootstrap.warnings {
        tracing::warn!(warning, "bootstrap");
    }
    let node = &mut bootstrap.node;
    if let Some(id) = &args.service_node {
        node.id.clone_from(id);
    }
    if let Some(cluster) = &args.service_cluster {
        node.cluster.clone_from(cluster);
    }
    if let Some(zone) = &args.service_zone {
        node.locality.get_or_insert_with(Locality::default).zone.clone_from(zone);
    }
    // As Envoy does, whatever the file says: control planes tell their clients apart by it.
    "oxmesh-proxy".clone_into(&mut node.user_agent_name);
    node.user_agent_version_type = Some(UserAgentVersionType::UserAgentVersion(env!("CARGO_PKG_VERSION").to_owned()));
    if bootstrap.ads.is_some() && (node.id.is_empty() || node.cluster.is_empty()) {
        tracing::warn!("the node has no id or no cluster; most control planes want both");
    }
    Ok(bootstrap)
}

fn shown_path(args: &Args) -> String {
    args.config_path.as_ref().map_or_else(|| "--config-yaml".to_owned(), |path| path.display().to_string())
}

fn settings(bootstrap: &Bootstrap) -> Settings {
    let mut roots = Vec::new();
    let mut found = |kind: Kind, wanted: &crate::config::Wanted| roots.push((kind, wanted.clone()));
    bootstrap.clusters.iter().for_each(|cluster| cluster_references(&cluster.config, &mut found));
    bootstrap.listeners.iter().for_each(|listener| listener_references(&listener.config, &mut found));
    let configured = [bootstrap.cds, bootstrap.lds];
    let waits: Vec<Duration> = configured.iter().flatten().map(|s| s.initial_fetch_timeout).collect();
    // Zero stands for "without end", so it wins over any other.
    let patience = match waits.iter().any(Duration::is_zero) {
        true => Duration::ZERO,
        false => waits.into_iter().max().unwrap_or(DEFAULT_PATIENCE),
    };
    Settings {
        variant: match bootstrap.ads.as_ref().map(|ads| ads.api) {
            Some(Api::DeltaGrpc) => Variant::Delta,
            Some(Api::Grpc) | None => Variant::Sotw,
        },
        clusters: bootstrap.cds.is_some(),
        listeners: bootstrap.lds.is_some(),
        patience,
        roots,
        static_clusters: bootstrap.clusters.iter().map(|c| Arc::clone(&c.config.name)).collect::<HashSet<_>>(),
        static_listeners: bootstrap.listeners.iter().map(|l| Arc::clone(&l.config.name)).collect::<HashSet<_>>(),
    }
}

fn static_secrets(
    bootstrap: &Bootstrap,
) -> anyhow::Result<HashMap<crate::config::Name, Arc<crate::config::tls::Secret>>> {
    let mut secrets = HashMap::new();
    for (name, secret) in &bootstrap.secrets {
        crate::xds::secrets::check(name, &secret.config).map_err(anyhow::Error::msg)?;
        secrets.insert(Arc::clone(name), Arc::clone(&secret.config));
    }
    Ok(secrets)
}

/// Envoy's default of `initial_fetch_timeout`.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(15);
