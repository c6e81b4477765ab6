//! A cluster: what was asked for, joined with its endpoints, limits, TLS and statistics.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};
use fastrand::Rng;
use tokio::sync::{Notify, watch};

use super::{
    connect,
    dns::{self, Resolve},
    endpoint::{Endpoint, Hosts},
    error::{NoEndpoint, Overflow},
    limits::{Breakers, RequestPermit, RetryPermit},
    original_dst::OriginalDst,
    pool::{Overflowed, Slot, SlotKey},
    stats::ClusterStats,
};
use crate::{
    config::cluster::{Assignment, ClusterSpec, Discovery, EndpointSpec, Health, UpstreamHttp},
    telemetry::{Registry, Scope},
    tls::ClientTls,
};

/// What all clusters of a process share. Made once at start.
#[derive(Debug)]
pub struct Upstreams {
    pub(super) registry: Registry,
    pub(super) workers: usize,
    pub(super) overflowed: Arc<Overflowed>,
    pub(super) resolver: Arc<dyn Resolve>,
    pub(super) socket_mark: Option<u32>,
    listeners: ArcSwap<Vec<SocketAddr>>,
    next_id: AtomicU64,
}

impl Upstreams {
    /// For `workers` traffic threads, numbered from 0. `socket_mark` is set on all upstream sockets (`SO_MARK`, needs
    /// `CAP_NET_ADMIN`) so that redirection rules can tell them.
    #[must_use]
    pub fn new(registry: Registry, workers: usize, resolver: Arc<dyn Resolve>, socket_mark: Option<u32>) -> Arc<Self> {
        Arc::new(Self {
            registry,
            workers,
            overflowed: Arc::new(Overflowed::new()),
            resolver,
            socket_mark,
            listeners: ArcSwap::default(),
            next_id: AtomicU64::new(1),
        })
    }

    /// Tells where this proxy listens, so that original-destination clusters never dial it.
    pub fn set_listeners(&self, addresses: Vec<SocketAddr>) {
        self.listeners.store(Arc::new(addresses));
    }

    pub(super) fn listeners(&self) -> Arc<Vec<SocketAddr>> {
        self.listeners.load_full()
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Relaxed)
    }
}

/// HTTP version towards an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
}

/// What a pick looks at.
#[derive(Clone, Copy, Debug, Default)]
pub struct PickContext<'a> {
    /// Address that the client dialled before redirection.
    pub original_dst: Option<SocketAddr>,
    /// Endpoints that were tried already and should be avoided.
    pub previous: &'a [Arc<Endpoint>],
    /// Further picks to find one that is not in `previous`; after those the last pick stands.
    pub more_picks: u32,
}

/// TLS towards the endpoints, with the number of its version.
#[derive(Debug)]
pub(super) struct TlsGeneration {
    pub(super) number: u64,
    pub(super) tls: Arc<ClientTls>,
}

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    spec: Arc<ClusterSpec>,
    id: u64,
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) stats: Arc<ClusterStats>,
    pub(super) breakers: Arc<Breakers>,
    hosts: ArcSwap<Hosts>,
    tls: ArcSwapOption<TlsGeneration>,
    original: OriginalDst,
    /// Told when a connection is gone, for those who wait at the connection limit.
    pub(super) freed: Arc<Notify>,
    ready: watch::Sender<bool>,
}

impl Cluster {
    /// A cluster with the endpoints of its spec; those of EDS, DNS and secrets come later. Call [`Self::start`] next.
    #[must_use]
    pub fn new(spec: Arc<ClusterSpec>, upstreams: &Arc<Upstreams>) -> Arc<Self> {
        let scope = Scope::cluster(&spec.stat_name);
        let cluster = Arc::new(Self {
            id: upstreams.next_id(),
            stats: ClusterStats::new(&upstreams.registry, scope.clone()),
            breakers: Breakers::new(spec.limits, &upstreams.registry, &scope),
            hosts: ArcSwap::from_pointee(Hosts::empty(spec.lb)),
            tls: ArcSwapOption::empty(),
            original: OriginalDst::default(),
            freed: Arc::default(),
            ready: watch::Sender::new(matches!(spec.discovery, Discovery::OriginalDst)),
            upstreams: upstreams.clone(),
            spec,
        });
        if let Discovery::Static(endpoints) = &cluster.spec.discovery {
            cluster.set_endpoints(endpoints, 140, 0);
        }
        cluster
    }

    /// Starts name resolution and the clean-up of idle original destinations on the current runtime (the control one).
    /// The tasks end when the cluster is dropped.
    pub fn start(self: &Arc<Self>) {
        match &self.spec.discovery {
            Discovery::StrictDns(..) | Discovery::LogicalDns(..) => dns::start(self),
            Discovery::OriginalDst => OriginalDst::start(self),
            Discovery::Static(_) | Discovery::Eds(_) => {}
        }
    }

    /// What was asked for.
    #[must_use]
    pub fn spec(&self) -> &Arc<ClusterSpec> {
        &self.spec
    }

    /// Handles of its statistics.
    #[must_use]
    pub fn stats(&self) -> &Arc<ClusterStats> {
        &self.stats
    }

    /// Its endpoints now. Original destinations are not among them.
    #[must_use]
    pub fn hosts(&self) -> Arc<Hosts> {
        self.hosts.load_full()
    }

    /// The version to speak, given whether the downstream request came as HTTP/2.
    #[must_use]
    pub fn version(&self, downstream_http2: bool) -> Version {
        match self.spec.http {
            UpstreamHttp::Http2 => Version::Http2,
            UpstreamHttp::UseDownstream if downstream_http2 => Version::Http2,
            UpstreamHttp::Http1 | UpstreamHttp::UseDownstream => Version::Http1,
        }
    }

    /// True once the endpoints were told (EDS), resolved (DNS, also in vain) or written in place, and the secrets are
    /// there: the end of Envoy's warming.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow() && (self.spec.tls.is_none() || self.tls.load().is_some())
    }

    /// Tells when the endpoints are known for the first time.
    #[must_use]
    pub fn endpoints_known(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Endpoints from EDS. Loads and connections of addresses that stay are kept.
    pub fn set_assignment(&self, assignment: &Assignment) {
        self.set_endpoints(&assignment.endpoints, assignment.overprovisioning_percent, assignment.drop_ppm);
    }

    /// EDS has nothing for this cluster, or did not answer in time: it is empty and no longer waited for.
    pub fn give_up_waiting(&self) {
        self.ready.send_replace(true);
    }

    pub(super) fn set_endpoints(&self, specs: &[EndpointSpec], overprovisioning_percent: u32, drop_ppm: u32) {
        let workers = self.upstreams.workers;
        let next = self.hosts.load().next(specs, self.spec.lb, overprovisioning_percent, drop_ppm, workers);
        #[expect(clippy::cast_precision_loss, reason = "a count of endpoints")]
        let gauge = |n: usize| n as f64;
        self.stats.membership_total.set(gauge(next.all().len()));
        self.stats.membership_healthy.set(gauge(next.count(Health::Healthy)));
        self.stats.membership_degraded.set(gauge(next.count(Health::Degraded)));
        let same = |a: &Hosts, b: &Hosts| {
            a.all().len() == b.all().len()
                && a.all().iter().zip(b.all()).all(|(a, b)| Arc::ptr_eq(&a.endpoint, &b.endpoint))
        };
        if !same(&self.hosts.load(), &next) {
            self.stats.membership_change.increment(1);
        }
        self.hosts.store(Arc::new(next));
        self.ready.send_replace(true);
    }

    /// Puts TLS in force that was built from new secrets. Connections made with the old one finish what they do and are
    /// never handed out again.
    pub fn set_tls(&self, tls: Arc<ClientTls>) {
        let number = self.upstreams.next_id();
        self.tls.store(Some(Arc::new(TlsGeneration { number, tls })));
        self.each_endpoint(|e| e.slots().for_each(|slot| slot.retire(number)));
    }

    pub(super) fn original(&self) -> &OriginalDst {
        &self.original
    }

    fn each_endpoint(&self, mut f: impl FnMut(&Arc<Endpoint>)) {
        self.hosts.load().all().iter().for_each(|h| f(&h.endpoint));
        self.original.each(&mut f);
    }

    /// TLS in force: None for plaintext.
    ///
    /// # Errors
    /// Words when TLS is asked for and its secrets have not come. Never falls back to plaintext.
    pub(super) fn tls(&self) -> Result<Option<Arc<TlsGeneration>>, &'static str> {
        match (&self.spec.tls, self.tls.load_full()) {
            (None, _) => Ok(None),
            (Some(_), Some(tls)) => Ok(Some(tls)),
            (Some(_), None) => Err("TLS_error: secret is not supplied by SDS"),
        }
    }

    /// Number of the TLS version in force; 0 for none.
    pub(super) fn tls_number(&self) -> u64 {
        if self.spec.tls.is_none() {
            return 0;
        }
        self.tls.load().as_ref().map_or(0, |t| t.number)
    }

    /// Takes a place among the requests in flight; `upstream_rq_pending_overflow` counts refusals.
    ///
    /// # Errors
    /// [`Overflow::Requests`].
    pub fn admit_request(&self) -> Result<RequestPermit, Overflow> {
        self.breakers.request().inspect_err(|_| self.stats.upstream_rq_pending_overflow.increment(1))
    }

    /// Takes a place among the retries in flight; `upstream_rq_retry_overflow` counts refusals. Hold it until the retry's
    /// response has begun.
    ///
    /// # Errors
    /// [`Overflow::Retries`].
    pub fn admit_retry(&self) -> Result<RetryPermit, Overflow> {
        self.breakers.retry().inspect_err(|_| self.stats.upstream_rq_retry_overflow.increment(1))
    }

    /// Picks an endpoint.
    ///
    /// # Errors
    /// [`NoEndpoint`]; counted where Envoy has a counter.
    pub fn pick(&self, context: &PickContext<'_>) -> Result<Arc<Endpoint>, NoEndpoint> {
        if matches!(self.spec.discovery, Discovery::OriginalDst) {
            let address = context.original_dst.ok_or(NoEndpoint::NoOriginalDestination)?;
            return self.original.endpoint(address, &self.upstreams);
        }
        let hosts = self.hosts.load();
        let mut rng = Rng::new();
        if hosts.drop_ppm > 0 && rng.u32(..1_000_000) < hosts.drop_ppm {
            self.stats.upstream_rq_drop_overload.increment(1);
            return Err(NoEndpoint::Dropped);
        }
        let mut picked = hosts.balancer.pick(&mut rng);
        for _ in 0..context.more_picks {
            match picked {
                Some(p) if context.previous.iter().any(|e| Arc::ptr_eq(e, p)) => picked = hosts.balancer.pick(&mut rng),
                _ => break,
            }
        }
        picked.cloned().ok_or_else(|| {
            self.stats.upstream_cx_none_healthy.increment(1);
            NoEndpoint::NoneHealthy
        })
    }

    /// A worker's connections to an endpoint.
    pub(super) fn slot<'a>(&self, endpoint: &'a Endpoint, worker: usize) -> &'a Slot {
        endpoint.slot(worker, || {
            Slot::new(
                SlotKey { cluster: self.id, address: endpoint.address(), worker },
                self.upstreams.overflowed.clone(),
            )
        })
    }

    /// Opens a TCP connection (with TLS if the cluster has it) for a TCP proxy. It counts as a connection, a request and
    /// a load of the endpoint for as long as it lives.
    ///
    /// # Errors
    /// Overflow at `max_connections`, else why the connection failed.
    pub async fn connect_tcp(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
    ) -> Result<super::UpstreamConn, super::UpstreamError> {
        connect::tcp(self, endpoint).await
    }
}
