//! The injector as a part of the control plane: what it is started with, and what it must learn first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::version::Info;
use kube::Client;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::webhook::{Injector, InjectorTls, Snapshots, serve};
use super::{DataPlane, Settings};
use crate::readiness::Part;
use crate::shared::Shared;

/// What the operator chose.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the webhook listens. OSM's port is 9090.
    pub address: SocketAddr,
    /// Image of our proxy.
    pub proxy_image: String,
    /// Image of the init program.
    pub init_image: String,
    /// Image of Envoy; without it, MeshConfig or the pod must name one.
    pub envoy_image: Option<String>,
    /// The sidecar where neither pod nor namespace chooses.
    pub data_plane: DataPlane,
    /// The control plane's own addresses: where one is IPv6, sidecars listen for probes on IPv6 too.
    pub pod_ips: Vec<IpAddr>,
    /// After this a pod that was admitted is there or never comes, and the Secret made for its Envoy is removed.
    pub orphan_age: Duration,
}

/// Learns what the cluster can do, then reviews pods until stopped.
pub(crate) async fn run(
    listener: TcpListener,
    options: Options,
    client: Client,
    shared: Arc<Shared>,
    snapshots: Snapshots,
    stop: CancellationToken,
) {
    let native_sidecars = tokio::select! {
        () = stop.cancelled() => return,
        version = version(&client, &shared) => has_native_sidecars(&version),
    };
    let mesh = &shared.settings;
    let tls = match InjectorTls::new(Arc::clone(&shared.issuer), &mesh.osm_namespace, CERTIFICATE_VALIDITY) {
        Ok(tls) => Arc::new(tls),
        Err(error) => {
            shared.readiness.explain(Part::Injector, format!("the injector has no certificate: {error}"));
            return error!(%error, "the injector has no certificate: no pod gets a sidecar");
        }
    };
    let has_ipv6 = options.pod_ips.iter().any(IpAddr::is_ipv6);
    let settings = Settings {
        mesh_name: mesh.mesh_name.clone(),
        osm_namespace: mesh.osm_namespace.clone(),
        trust_domain: mesh.trust_domain.clone(),
        proxy_image: options.proxy_image,
        init_image: options.init_image,
        envoy_image: options.envoy_image.unwrap_or_default(),
        data_plane: options.data_plane,
        native_sidecars,
        probe_address: if has_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() },
    };
    info!(?settings, "the injector reviews pods");
    let (issuer, metrics) = (Arc::clone(&shared.issuer), Arc::clone(&shared.metrics));
    let leader = shared.leader.subscribe();
    let injector = Injector::new(settings, issuer, metrics, snapshots, leader, client, options.orphan_age);
    let injector = Arc::new(injector.telling(Arc::clone(&shared.readiness)));
    shared.readiness.done(Part::Injector);
    serve(listener, injector, tls, stop).await;
    shared.readiness.wait(Part::Injector, "new pods are reviewed no longer");
}

async fn version(client: &Client, shared: &Shared) -> Info {
    loop {
        match client.apiserver_version().await {
            Ok(version) => return version,
            Err(error) => {
                warn!(%error, "the API server's version is not known yet; no pod is reviewed before");
                shared.readiness.explain(Part::Injector, format!("the API server's version is not known yet: {error}"));
            }
        }
        tokio::time::sleep(VERSION_PAUSE).await;
    }
}

/// Kubernetes 1.29 and later. Providers append letters: `29+`.
fn has_native_sidecars(version: &Info) -> bool {
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
    (number(&version.major), number(&version.minor)) >= (1, 29)
}

const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(24 * 3600);
const VERSION_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_sidecars_come_with_1_29() {
        for (major, minor, expected) in
            [("1", "28", false), ("1", "29", true), ("1", "34+", true), ("2", "0", true), ("", "", false)]
        {
            let version = Info { major: major.into(), minor: minor.into(), ..Info::default() };
            assert_eq!(has_native_sidecars(&version), expected, "{major}.{minor}");
        }
    }
}
