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
use super::{DataPlane, NativeSidecars, Settings};
use crate::readiness::{Part, Readiness};
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
    /// Whether sidecars are init containers that keep running.
    pub native_sidecars: NativeSidecars,
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
        native = native_sidecars(options.native_sidecars, &client, &shared.readiness) => native,
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

/// Asks the API server until what the operator chose can be done: a choice that can't is the operator's to change, or
/// waits for the server's upgrade.
async fn native_sidecars(choice: NativeSidecars, client: &Client, readiness: &Readiness) -> bool {
    loop {
        let (why, pause) = match client.apiserver_version().await {
            Ok(version) => match decide(choice, &version) {
                Ok(native) => return native,
                Err(why) => (why, REFUSED_PAUSE),
            },
            Err(error) => (format!("the API server's version is not known yet: {error}"), VERSION_PAUSE),
        };
        warn!(why, "no pod is reviewed yet");
        readiness.explain(Part::Injector, why);
        tokio::time::sleep(pause).await;
    }
}

/// An older server drops `restartPolicy` without a word: the sidecar would be an init container that never ends, and no
/// pod would start.
fn decide(choice: NativeSidecars, version: &Info) -> Result<bool, String> {
    match (choice, has_native_sidecars(version)) {
        (NativeSidecars::Never, _) => Ok(false),
        (NativeSidecars::Auto, has) => Ok(has),
        (NativeSidecars::Always, true) => Ok(true),
        (NativeSidecars::Always, false) => Err(format!(
            "--native-sidecars=always: the API server is of version {}, and native sidecars come with 1.29 (upgrade it, or \
             choose auto or never, osm.injector.nativeSidecars in the chart)",
            version.git_version
        )),
    }
}

/// Kubernetes 1.29 and later. Providers append letters: `29+`.
fn has_native_sidecars(version: &Info) -> bool {
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
    (number(&version.major), number(&version.minor)) >= (1, 29)
}

const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(24 * 3600);
const VERSION_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at a server that is too old.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use axum::http::{Request, Response};
    use bytes::Bytes;
    use http_body_util::Full;
    use serde_json::json;

    use super::*;

    /// An API server whose version is what `minor` holds at the time.
    fn server(minor: &Arc<AtomicU32>) -> Client {
        let minor = Arc::clone(minor);
        let answer = move |_: Request<kube::client::Body>| {
            let minor = minor.load(Relaxed);
            let body = json!({"major": "1", "minor": minor.to_string(), "gitVersion": format!("v1.{minor}.3"),
                "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
            let response = Response::new(Full::new(Bytes::from(body.to_string())));
            std::future::ready(Ok::<_, std::io::Error>(response))
        };
        Client::new(tower::service_fn(answer), "default")
    }

    #[tokio::test(start_paused = true)]
    async fn always_waits_with_words_until_the_server_has_them() {
        let minor = Arc::new(AtomicU32::new(28));
        let (client, readiness) = (server(&minor), Readiness::default());
        assert!(!native_sidecars(NativeSidecars::Auto, &client, &readiness).await);
        readiness.wait(Part::Injector, "not yet");
        let waiting = native_sidecars(NativeSidecars::Always, &client, &readiness);
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_secs(60), &mut waiting).await.is_err());
        let words = readiness.awaited().concat();
        assert!(words.contains("v1.28.3") && words.contains("osm.injector.nativeSidecars"), "{words}");
        minor.store(29, Relaxed);
        assert!(waiting.await);
    }

    #[test]
    fn native_sidecars_come_with_1_29_unless_the_operator_says_otherwise() {
        for (major, minor, has) in
            [("1", "28", false), ("1", "29", true), ("1", "34+", true), ("2", "0", true), ("", "", false)]
        {
            let git_version = format!("v{major}.{minor}.0");
            let version = Info { major: major.into(), minor: minor.into(), git_version, ..Info::default() };
            assert_eq!(decide(NativeSidecars::Auto, &version), Ok(has), "{major}.{minor}");
            assert_eq!(decide(NativeSidecars::Never, &version), Ok(false), "{major}.{minor}");
            match decide(NativeSidecars::Always, &version) {
                Ok(native) => assert!(native && has, "{major}.{minor}"),
                Err(why) => {
                    assert!(!has && why.contains(&version.git_version) && why.contains("--native-sidecars"), "{why}");
                }
            }
        }
    }
}
