//! Entry point of the control plane.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgGroup, Parser, ValueEnum};
use ipnet::Ipv4Net;
use oxmesh_controller::api::crds_yaml;
use oxmesh_controller::app::{App, Authority, Options, Source};
use oxmesh_controller::inject::{self, DataPlane, NativeSidecars};
use oxmesh_controller::kubernetes;
use oxmesh_controller::lint::lint;
use oxmesh_controller::settings::Settings;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

/// The control plane of oxmesh: reads Kubernetes objects, tells proxies what to do over xDS.
#[derive(Debug, Parser)]
#[command(name = "oxmesh-controller", version, group = ArgGroup::new("source").required(true))]
struct Arguments {
    /// A folder of manifests (YAML or JSON, also below it), watched for changes. May be repeated.
    #[arg(long, value_name = "DIR", group = "source")]
    folder: Vec<PathBuf>,
    /// Watch the API server of the cluster that this runs in, or that --kubeconfig names.
    #[arg(long, group = "source")]
    kubernetes: bool,
    /// Print the custom resource definitions as YAML, and nothing else.
    #[arg(long, exclusive = true, group = "source")]
    crds: bool,
    /// How to reach the API server from outside the cluster.
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,
    /// The Secret that keeps the certificate authority (ca.crt, private.key); made if there is none.
    #[arg(long, value_name = "NAME", requires = "kubernetes", default_value = "osm-ca-bundle")]
    ca_secret: String,
    /// Only read the folders and say what is wrong. Exit code 2 if something asked for does not count.
    #[arg(long, visible_alias = "check", conflicts_with = "kubernetes")]
    validate_only: bool,
    /// Where the built-in certificate authority is kept; made at the first start. In a cluster see --ca-secret.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/oxmesh", env = "OXMESH_STATE")]
    state: PathBuf,
    /// An authority's certificate to use instead of the built-in one (PEM).
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// The key of --ca-cert (PEM, PKCS #8, mode 0600).
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// Where proxies ask for their configuration.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15128")]
    xds_addr: SocketAddr,
    /// Where certificates are signed for keys that pods made (with --kubernetes).
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15129")]
    identity_addr: SocketAddr,
    /// A further name for the ADS server's certificate. May be repeated.
    #[arg(long, value_name = "NAME")]
    xds_name: Vec<String>,
    /// An address for the ADS server's certificate. May be repeated.
    #[arg(long, value_name = "IP")]
    xds_ip: Vec<IpAddr>,
    /// Health, metrics and debug pages. Debug pages answer on loopback only.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9091")]
    admin_addr: SocketAddr,
    /// Where the API server has new pods reviewed.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9090")]
    webhook_addr: SocketAddr,
    /// Image of the sidecar.
    #[arg(long, value_name = "IMAGE", default_value = concat!("oxmesh/proxy:", env!("CARGO_PKG_VERSION")))]
    proxy_image: String,
    /// Image of the init program that redirects a pod's traffic.
    #[arg(long, value_name = "IMAGE", default_value = concat!("oxmesh/init:", env!("CARGO_PKG_VERSION")))]
    init_image: String,
    /// Image of Envoy, for pods that have it as their sidecar. MeshConfig's sidecar.envoyImage wins.
    #[arg(long, value_name = "IMAGE")]
    envoy_image: Option<String>,
    /// The sidecar where neither pod nor namespace chooses by oxmesh.io/data-plane.
    #[arg(long, value_enum, default_value_t = DataPlane::Oxmesh)]
    data_plane: DataPlane,
    /// Sidecars as init containers that keep running: start before the application, end after it, don't keep Jobs from
    /// ending.
    #[arg(long, value_enum, default_value_t = NativeSidecars::Auto)]
    native_sidecars: NativeSidecars,
    /// The control plane's own addresses; where one is IPv6, sidecars listen for probes on IPv6 too.
    #[arg(long, value_name = "IPS", value_delimiter = ',', env = "POD_IPS")]
    pod_ips: Vec<IpAddr>,
    /// How long the Secret made for a pod with Envoy waits for that pod, before it is removed as one whose pod never came.
    /// Longer than the API server takes at most to store a pod that was admitted.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    orphan_age: Duration,
    /// The mesh's name: namespaces labelled openservicemesh.io/monitored-by=NAME belong to it.
    #[arg(long, value_name = "NAME", default_value = "osm")]
    mesh_name: String,
    /// The last part of every identity.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,
    /// The control plane's own namespace, where MeshConfig osm-mesh-config counts.
    #[arg(long, value_name = "NAME", default_value = "osm-system")]
    osm_namespace: String,
    /// Where services without a clusterIP get one from.
    #[arg(long, value_name = "CIDR", default_value = "10.96.0.0/16")]
    service_cidr: Ipv4Net,
    /// Write SPIFFE ids into certificates besides the DNS names.
    #[arg(long)]
    spiffe: bool,
    /// error, warn, info, debug, trace, or a filter such as info,oxmesh_controller::xds=debug.
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "OXMESH_LOG")]
    log_level: EnvFilter,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.crds {
        print!("{}", crds_yaml().context("write the definitions")?);
        return Ok(ExitCode::SUCCESS);
    }
    let settings = Settings {
        mesh_name: arguments.mesh_name.clone(),
        trust_domain: arguments.trust_domain.clone(),
        osm_namespace: arguments.osm_namespace.clone(),
        service_cidr: arguments.service_cidr,
        injects: arguments.kubernetes,
    };
    if arguments.validate_only {
        return Ok(check(&arguments.folder, &settings));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(run(arguments, settings))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints every finding; 2 if one is an error.
fn check(folders: &[PathBuf], settings: &Settings) -> ExitCode {
    let findings = lint(folders, settings);
    for finding in &findings {
        println!("{finding}");
    }
    let errors = findings.iter().filter(|finding| finding.is_error()).count();
    println!("{} findings, {errors} of them errors", findings.len());
    if errors > 0 { ExitCode::from(2) } else { ExitCode::SUCCESS }
}

async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<()> {
    log(arguments.log_level, arguments.log_format);
    let (source, client) = if arguments.kubernetes {
        let client = kubernetes::connect(arguments.kubeconfig.as_deref()).await?;
        (Source::Kubernetes(client.clone()), Some(client))
    } else {
        (Source::Folders(arguments.folder), None)
    };
    let authority = match (arguments.ca_cert.zip(arguments.ca_key), client) {
        (Some((cert, key)), _) => Authority::Files { cert, key },
        (None, Some(client)) => Authority::Secret { client, name: arguments.ca_secret },
        (None, None) => Authority::State(arguments.state),
    };
    let inject = arguments.kubernetes.then_some(inject::Options {
        address: arguments.webhook_addr,
        proxy_image: arguments.proxy_image,
        init_image: arguments.init_image,
        envoy_image: arguments.envoy_image,
        data_plane: arguments.data_plane,
        native_sidecars: arguments.native_sidecars,
        pod_ips: arguments.pod_ips,
        orphan_age: arguments.orphan_age,
    });
    let app = App::start(Options {
        inject,
        source,
        authority,
        xds_address: arguments.xds_addr,
        identity_address: arguments.identity_addr,
        admin_address: arguments.admin_addr,
        xds_names: arguments.xds_name,
        xds_ips: arguments.xds_ip,
        spiffe: arguments.spiffe,
        settings,
    })
    .await?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: stopping"),
        result = tokio::signal::ctrl_c() => {
            result.context("listen for SIGINT")?;
            info!("SIGINT: stopping");
        }
    }
    app.stop().await;
    Ok(())
}

fn log(filter: EnvFilter, format: LogFormat) {
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
