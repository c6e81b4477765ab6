//! What all streams share: the current view of the mesh, and the list of connected proxies.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use tracing::warn;

use crate::identity::{KeyHome, ServiceIdentity, SidecarIdentity};
use crate::metrics::{CONFIG_UPDATE_TIME, Metrics};
use crate::xds::cache::State;
use crate::xds::session::{Accepted, KindReport, Protocol};

/// The mesh at one moment, as the server needs it.
pub trait View: Send + Sync + 'static {
    /// What a proxy should have, by where its keys are.
    ///
    /// # Errors
    /// [`Denied`] if it must get nothing.
    fn state(&self, proxy: &SidecarIdentity, keys: KeyHome) -> Result<State, Denied>;

    /// Most streams that may be open at once; none for no bound.
    fn max_proxies(&self) -> Option<usize>;
}

/// Why a proxy gets no resources.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No pod has this uuid together with this identity.
    #[error("no pod with label osm-proxy-uuid={} runs as service account {} (was it deleted, or recreated with another account?)", .0.uuid, .0.service)]
    NoSuchPod(SidecarIdentity),
    /// They can't be worked out now. A passing fault of ours, such as a certificate that can't be
    /// issued.
    #[error("its resources can't be worked out now: {0}")]
    Unavailable(String),
}

/// Why a stream is one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    /// For the whole control plane.
    #[error("there are {0} streams of proxies, as many as MeshConfig spec.sidecar.maxDataPlaneConnections allows")]
    Mesh(usize),
    /// For one proxy, which needs one, and one more while it reconnects.
    #[error("this proxy has {MAX_STREAMS_PER_PROXY} streams open already")]
    Proxy,
}

/// A connected proxy as the admin interface shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyReport {
    /// The value of the pod's label `osm-proxy-uuid`.
    pub uuid: String,
    /// The service account, as `namespace/name`.
    pub identity: String,
    /// Where the stream came from.
    pub address: SocketAddr,
    /// Where its private keys are.
    pub keys: KeyHome,
    /// Which protocol it speaks.
    pub protocol: Protocol,
    /// What the proxy calls itself, such as `envoy 1.40.0`.
    pub user_agent: String,
    /// When the stream began, in seconds since 1970.
    pub since: u64,
    /// By kind: what was sent, and how it was taken.
    pub kinds: Vec<KindReport>,
    #[serde(skip)]
    pub(super) service: ServiceIdentity,
}

impl ProxyReport {
    /// Whether this is a stream of `proxy`. The uuid alone doesn't tell: pods choose their labels.
    fn is_of(&self, proxy: &SidecarIdentity) -> bool {
        self.uuid == proxy.uuid && self.service == proxy.service
    }
}

/// Shared by all streams.
pub struct Hub {
    view: watch::Receiver<Arc<dyn View>>,
    trust_domain: String,
    metrics: Arc<Metrics>,
    proxies: Mutex<Proxies>,
    builders: Semaphore,
}

#[derive(Default)]
struct Proxies {
    next_id: u64,
    streams: BTreeMap<u64, ProxyReport>,
    /// Of proxies that are not connected now.
    accepted: HashMap<SidecarIdentity, Accepted>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("streams", &self.proxies.lock().streams.len()).finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub that serves whatever `view` holds.
    pub fn new(view: watch::Receiver<Arc<dyn View>>, trust_domain: &str, metrics: Arc<Metrics>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            view,
            trust_domain: trust_domain.to_owned(),
            metrics,
            proxies: Mutex::default(),
            builders: Semaphore::new(cores),
        }
    }

    /// The connected proxies, in the order in which they came.
    pub fn proxies(&self) -> Vec<ProxyReport> {
        self.proxies.lock().streams.values().cloned().collect()
    }

    /// The identities of the connected proxies whose keys the controller makes.
    pub fn identities(&self) -> BTreeSet<ServiceIdentity> {
        let proxies = self.proxies.lock();
        let ours = proxies.streams.values().filter(|proxy| proxy.keys == KeyHome::Controller);
        ours.map(|proxy| proxy.service.clone()).collect()
    }

    pub(super) fn view(&self) -> watch::Receiver<Arc<dyn View>> {
        self.view.clone()
    }

    pub(super) fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Works out a proxy's state off the threads that serve streams, as many at once as there are
    /// cores.
    pub(super) async fn build(
        &self,
        view: Arc<dyn View>,
        proxy: &SidecarIdentity,
        keys: KeyHome,
    ) -> Result<State, Denied> {
        let _permit = self.builders.acquire().await;
        let (begun, id) = (std::time::Instant::now(), proxy.clone());
        let built = tokio::task::spawn_blocking(move || view.state(&id, keys)).await;
        // A panic in rendering hurts this proxy alone, which keeps what it has.
        let state = built.unwrap_or_else(|error| {
            warn!(%proxy, %error, "rendering the resources of a proxy failed");
            Err(Denied::Unavailable("rendering failed, see the controller's log".to_owned()))
        });
        let success = if state.is_ok() { "true" } else { "false" };
        self.metrics.took(&CONFIG_UPDATE_TIME, &[("resource_type", "ADS"), ("success", success)], begun.elapsed());
        state
    }

    /// Enters a stream; with what the proxy accepted on an earlier one.
    ///
    /// # Errors
    /// [`Full`] if there are too many.
    pub(super) fn enter(&self, report: ProxyReport, proxy: &SidecarIdentity) -> Result<(u64, Accepted), Full> {
        let limit = self.view.borrow().max_proxies();
        let mut proxies = self.proxies.lock();
        let own = proxies.streams.values().filter(|other| other.is_of(proxy)).count();
        let full = if own >= MAX_STREAMS_PER_PROXY {
            Some(Full::Proxy)
        } else {
            limit.filter(|limit| proxies.streams.len() >= *limit).map(Full::Mesh)
        };
        if let Some(full) = full {
            self.metrics.count("osm_proxy_max_connections_rejected", &[]);
            return Err(full);
        }
        let earlier = proxies.accepted.remove(proxy);
        if earlier.is_some() {
            self.metrics.count("osm_proxy_reconnect_count", &[]);
        }
        proxies.next_id += 1;
        let id = proxies.next_id;
        proxies.streams.insert(id, report);
        self.metrics.set("osm_proxy_connect_count", &[], as_f64(proxies.streams.len()));
        Ok((id, earlier.unwrap_or_default()))
    }

    pub(super) fn update(&self, id: u64, kinds: Vec<KindReport>) {
        if let Some(report) = self.proxies.lock().streams.get_mut(&id) {
            report.kinds = kinds;
        }
    }

    /// Takes a stream out. What it accepted is kept for its proxy's next stream, unless the proxy
    /// must not come back.
    pub(super) fn leave(&self, id: u64, proxy: &SidecarIdentity, accepted: Option<Accepted>) {
        let mut proxies = self.proxies.lock();
        proxies.streams.remove(&id);
        self.metrics.set("osm_proxy_connect_count", &[], as_f64(proxies.streams.len()));
        if !proxies.streams.values().any(|other| other.is_of(proxy)) {
            self.metrics.forget("proxy_uuid", &proxy.uuid);
        }
        match accepted {
            Some(accepted) => {
                if proxies.accepted.len() >= MAX_REMEMBERED {
                    proxies.accepted.clear();
                }
                proxies.accepted.insert(proxy.clone(), accepted);
            }
            None => {
                proxies.accepted.remove(proxy);
            }
        }
    }
}

pub(super) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

fn as_f64(n: usize) -> f64 {
    u32::try_from(n).unwrap_or(u32::MAX).into()
}

const MAX_STREAMS_PER_PROXY: usize = 8;
/// Proxies that went away whose last good resources are kept in memory.
const MAX_REMEMBERED: usize = 1024;
