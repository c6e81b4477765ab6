//! The loop that keeps the snapshot in step with what is held: waits for news, lets a burst end, assembles, publishes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use metrics::Gauge;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    assemble::Assembler,
    kind::Kind,
    state::{Client, Counts},
};
use crate::{
    config::{Name, tls::Secret},
    drain::Drain,
    snapshot::Shared,
    telemetry::{Registry, Scope},
};

/// How far things are, for people and for readiness.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The first clusters are in force.
    pub clusters_settled: bool,
    /// The first listeners as well.
    pub all_settled: bool,
    /// Clusters that wait for endpoints or secrets.
    pub warming: Vec<Name>,
    /// Listeners that wait for routes or secrets.
    pub waiting_listeners: BTreeSet<Name>,
    /// What can't be put in force, by resource.
    pub faults: BTreeMap<String, String>,
    /// Certificates and validation contexts in use.
    pub secrets: BTreeMap<Name, Arc<Secret>>,
}

/// What the loop works on.
#[derive(Debug)]
pub struct Control {
    /// What is in force.
    pub shared: Arc<Shared>,
    /// What is asked and held.
    pub client: Arc<Mutex<Client>>,
    /// Told of news.
    pub changed: Arc<Notify>,
    /// Told when the state may have requests to send.
    pub outgoing: Arc<Notify>,
    /// Makes snapshots.
    pub assembler: Assembler,
    /// Where the loop says how far things are.
    pub status: Arc<ArcSwap<Status>>,
    /// Connections of what is replaced are cut after this (`--drain-time-s`).
    pub drain_time: Duration,
}

impl Control {
    /// Assembles and publishes once.
    pub fn step(&mut self) {
        let now = Instant::now();
        let (assembled, clusters_settled, all_settled) = {
            let mut client = self.client.lock();
            client.poll(now);
            client.take_changed();
            let assembled = self.assembler.assemble(&client, now);
            (assembled, client.clusters_settled(now), client.all_settled(now))
        };
        self.outgoing.notify_one();
        let snapshot = self.shared.store.publish(assembled.snapshot);
        tracing::debug!(
            version = snapshot.version,
            listeners = snapshot.listeners.len(),
            routes = snapshot.routes.len(),
            clusters = snapshot.clusters.len(),
            "snapshot in force"
        );
        for drain in assembled.retired {
            retire(drain, self.drain_time);
        }
        let waiting_listeners = self.assembler.waiting_listeners().clone();
        self.status.store(Arc::new(Status {
            clusters_settled: clusters_settled && self.assembler.static_clusters_ready(),
            all_settled: all_settled && self.assembler.static_clusters_ready(),
            warming: self.assembler.warming(),
            waiting_listeners,
            faults: self.assembler.faults().clone(),
            secrets: self.assembler.secrets(&snapshot),
        }));
    }

    /// Runs for ever, on the control runtime.
    pub async fn run(mut self) {
        let mut stats = Stats::new(&self.shared.metrics);
        loop {
            self.step();
            stats.update(&self.shared, &self.status.load(), &self.client.lock());
            let next = self.client.lock().next_poll(Instant::now());
            let woken = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => self.let_burst_end().await,
                () = woken => {}
            }
        }
    }

    /// Pushes come in groups (clusters, endpoints, listeners, routes): they are put in force together.
    async fn let_burst_end(&self) {
        let latest = Instant::now() + LONGEST_BURST;
        let quiet = || latest.min(Instant::now() + QUIET);
        while Instant::now() < latest && timeout_at(quiet(), self.changed.notified()).await.is_ok() {}
    }
}

fn retire(drain: Drain, drain_time: Duration) {
    drain.begin();
    tokio::spawn(async move {
        sleep(drain_time).await;
        drain.cut();
    });
}

/// Envoy's gauges and counters of what the control plane says.
struct Stats {
    clusters: Gauge,
    warming: Gauge,
    listeners: Gauge,
    waiting: Gauge,
    services: Vec<(Kind, [metrics::Counter; 3])>,
}

impl Stats {
    fn new(registry: &Registry) -> Self {
        let gauge = |scope, name| registry.gauge(&Scope::plain(scope), name);
        let counters = |kind: Kind| {
            let scope = match kind {
                Kind::Cluster => "cluster_manager.cds",
                Kind::Listener => "listener_manager.lds",
                Kind::Endpoints => "control_plane.eds",
                Kind::Secret => "control_plane.sds",
                Kind::Routes => "control_plane.rds",
            };
            let counter = |name| registry.counter(&Scope::plain(scope), name);
            (kind, [counter("update_success"), counter("update_rejected"), counter("update_attempt")])
        };
        Self {
            clusters: gauge("cluster_manager", "active_clusters"),
            warming: gauge("cluster_manager", "warming_clusters"),
            listeners: gauge("listener_manager", "total_listeners_active"),
            waiting: gauge("listener_manager", "total_listeners_warming"),
            services: Kind::ALL.map(counters).into(),
        }
    }

    fn update(&mut self, shared: &Shared, status: &Status, client: &Client) {
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let set = |gauge: &Gauge, n: usize| gauge.set(n as f64);
        let snapshot = shared.store.current();
        set(&self.clusters, snapshot.clusters.len());
        set(&self.warming, status.warming.len());
        set(&self.listeners, snapshot.listeners.len());
        set(&self.waiting, status.waiting_listeners.len());
        for (kind, [success, rejected, attempt]) in &self.services {
            let Counts { update_success, update_rejected, update_attempt } = client.counts(*kind);
            success.absolute(update_success);
            rejected.absolute(update_rejected);
            attempt.absolute(update_attempt);
        }
    }
}

/// A burst has ended after this much silence,
const QUIET: Duration = Duration::from_millis(20);
/// or after this long in any case.
const LONGEST_BURST: Duration = Duration::from_millis(200);
