//! One address of a cluster, and the set of them.
//!
//! An endpoint is its address: weight, priority and health belong to the set, so that a change of those keeps
//! connections and loads.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use super::{balance::Balancer, pool::Slot};
use crate::config::cluster::{EndpointSpec, Health, LoadBalancing};

/// An address with its load and its connections.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    active: AtomicU32,
    requests: AtomicU64,
    failures: AtomicU64,
    slots: Box<[OnceLock<Slot>]>,
}

impl Endpoint {
    /// With room for the connections of `workers` threads.
    pub(super) fn new(address: SocketAddr, workers: usize) -> Self {
        let slots = (0..workers.max(1)).map(|_| OnceLock::new()).collect();
        Self { address, active: AtomicU32::new(0), requests: AtomicU64::new(0), failures: AtomicU64::new(0), slots }
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests and TCP streams in flight.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// Requests and TCP streams ever sent here.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Attempts that got no answer.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    pub(super) fn failed(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    /// Counts one in flight until the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> Load {
        self.active.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        Load(self.clone())
    }

    /// The connections of one worker. A worker beyond the last shares the last one's.
    pub(super) fn slot(&self, worker: usize, make: impl FnOnce() -> Slot) -> &Slot {
        self.slots[worker.min(self.slots.len() - 1)].get_or_init(make)
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter_map(OnceLock::get)
    }
}

/// One unit of an endpoint's load.
#[derive(Debug)]
pub(super) struct Load(Arc<Endpoint>);

impl Load {
    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

/// An endpoint's place in a cluster.
#[derive(Clone, Debug)]
pub struct Host {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Weight, at least 1.
    pub weight: u32,
    /// Priority, 0 is the highest.
    pub priority: u32,
    /// Health as the control plane tells it.
    pub health: Health,
}

/// All endpoints of a cluster at one moment.
#[derive(Debug)]
pub struct Hosts {
    hosts: Vec<Host>,
    pub(super) balancer: Balancer,
    /// Share of requests dropped, in parts of a million.
    pub(super) drop_ppm: u32,
}

impl Hosts {
    pub(super) fn empty(policy: LoadBalancing) -> Self {
        Self { hosts: Vec::new(), balancer: Balancer::new(&[], policy, 140), drop_ppm: 0 }
    }

    /// The next set: endpoints whose address stays are the same. An address that comes twice counts once, the first time.
    pub(super) fn next(
        &self,
        specs: &[EndpointSpec],
        policy: LoadBalancing,
        overprovisioning_percent: u32,
        drop_ppm: u32,
        workers: usize,
    ) -> Self {
        let known: std::collections::HashMap<_, _> =
            self.hosts.iter().map(|h| (h.endpoint.address, &h.endpoint)).collect();
        let mut seen = std::collections::HashSet::with_capacity(specs.len());
        let hosts: Vec<Host> = specs
            .iter()
            .filter(|s| seen.insert(s.address))
            .map(|s| Host {
                endpoint: known
                    .get(&s.address)
                    .map_or_else(|| Arc::new(Endpoint::new(s.address, workers)), |e| (*e).clone()),
                weight: s.weight.max(1),
                priority: s.priority,
                health: s.health,
            })
            .collect();
        Self { balancer: Balancer::new(&hosts, policy, overprovisioning_percent), hosts, drop_ppm }
    }

    /// All of them, as configured.
    #[must_use]
    pub fn all(&self) -> &[Host] {
        &self.hosts
    }

    pub(super) fn count(&self, health: Health) -> usize {
        self.hosts.iter().filter(|h| h.health == health).count()
    }
}
