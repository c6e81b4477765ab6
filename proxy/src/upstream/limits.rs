//! Circuit breakers: how much may be in flight towards a cluster at once.
//!
//! Counts with one atomic per kind, shared by all workers. A permit gives back what it took when it is dropped; nothing
//! else does.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use metrics::Gauge;

use super::error::Overflow;
use crate::{
    config::cluster::Limits,
    telemetry::{Registry, Scope},
};

/// A bounded count, with Envoy's two gauges.
#[derive(Debug)]
struct Bound {
    max: u32,
    used: AtomicU32,
    /// `*_open`: 1 while the limit is reached.
    open: Gauge,
    /// `remaining_*`, only with `track_remaining`.
    remaining: Option<Gauge>,
}

impl Bound {
    fn new(max: u32, open: Gauge, remaining: Option<Gauge>) -> Self {
        open.set(f64::from(u8::from(max == 0)));
        if let Some(g) = &remaining {
            g.set(f64::from(max));
        }
        Self { max, used: AtomicU32::new(0), open, remaining }
    }

    fn take(&self) -> bool {
        let before = self.used.fetch_add(1, Relaxed);
        if before >= self.max {
            self.used.fetch_sub(1, Relaxed);
            return false;
        }
        self.took(before + 1);
        true
    }

    /// Takes even when the limit is reached.
    fn take_anyway(&self) {
        let before = self.used.fetch_add(1, Relaxed);
        self.took(before.saturating_add(1));
    }

    fn took(&self, now: u32) {
        if now >= self.max {
            self.open.set(1.0);
        }
        if let Some(g) = &self.remaining {
            g.set(f64::from(self.max.saturating_sub(now)));
        }
    }

    fn give_back(&self) {
        let before = self.used.fetch_sub(1, Relaxed);
        if before == self.max {
            self.open.set(0.0);
        }
        if let Some(g) = &self.remaining {
            g.set(f64::from(self.max.saturating_sub(before - 1)));
        }
    }
}

/// The limits of one cluster.
#[derive(Debug)]
pub(super) struct Breakers {
    spec: Limits,
    connections: Bound,
    pending: Bound,
    requests: Bound,
    retries: Bound,
}

impl Breakers {
    pub(super) fn new(spec: Limits, registry: &Registry, cluster: &Scope) -> Arc<Self> {
        let scope = cluster.child("circuit_breakers").child("default");
        let bound = |max: u32, open: &str, remaining: &str| {
            let rest = spec.track_remaining.then(|| registry.gauge(&scope, remaining));
            Bound::new(max, registry.gauge(&scope, open), rest)
        };
        // The budget is worked out at each retry; the plain bound then never refuses.
        let max_retries = if spec.retry_budget.is_some() { u32::MAX } else { spec.max_retries };
        Arc::new(Self {
            spec,
            connections: bound(spec.max_connections, "cx_open", "remaining_cx"),
            pending: bound(spec.max_pending_requests, "rq_pending_open", "remaining_pending"),
            requests: bound(spec.max_requests, "rq_open", "remaining_rq"),
            retries: bound(max_retries, "rq_retry_open", "remaining_retries"),
        })
    }

    pub(super) fn request(self: &Arc<Self>) -> Result<RequestPermit, Overflow> {
        if self.requests.take() { Ok(RequestPermit(self.clone())) } else { Err(Overflow::Requests) }
    }

    pub(super) fn retry(self: &Arc<Self>) -> Result<RetryPermit, Overflow> {
        if let Some(budget) = self.spec.retry_budget {
            let active = u64::from(self.requests.used.load(Relaxed)) + u64::from(self.pending.used.load(Relaxed));
            let share = active * u64::from(budget.ppm) / 1_000_000;
            let allowed = share.max(u64::from(budget.min_concurrency));
            if u64::from(self.retries.used.load(Relaxed)) >= allowed {
                return Err(Overflow::Retries);
            }
        }
        if self.retries.take() { Ok(RetryPermit(self.clone())) } else { Err(Overflow::Retries) }
    }

    pub(super) fn pending(self: &Arc<Self>) -> Result<PendingPermit, Overflow> {
        if self.pending.take() { Ok(PendingPermit(self.clone())) } else { Err(Overflow::Pending) }
    }

    /// A connection within the limit; with `anyway`, also above it: an endpoint to which no connection exists gets one,
    /// else requests to it would wait for ever (Envoy's rule).
    pub(super) fn connection(self: &Arc<Self>, anyway: bool) -> Result<ConnectionPermit, Overflow> {
        if !self.connections.take() {
            if !anyway {
                return Err(Overflow::Connections);
            }
            self.connections.take_anyway();
        }
        Ok(ConnectionPermit(self.clone()))
    }
}

macro_rules! permit {
    ($(#[$doc:meta])* $vis:vis $name:ident, $field:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[must_use = "dropping it gives the place back"]
        $vis struct $name(Arc<Breakers>);
        impl Drop for $name {
            fn drop(&mut self) {
                self.0.$field.give_back();
            }
        }
    };
}
permit!(
    /// A place among the requests in flight. Hand it to [`super::Cluster::send`]; it lives as long as the stream.
    pub RequestPermit, requests);
permit!(
    /// A place among the retries in flight; held until the retry's response has begun.
    pub RetryPermit, retries);
permit!(pub(super) PendingPermit, pending);
permit!(pub(super) ConnectionPermit, connections);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cluster::RetryBudget;

    fn breakers(spec: Limits) -> (Arc<Breakers>, Registry) {
        let registry = Registry::default();
        (Breakers::new(spec, &registry, &Scope::cluster("a")), registry)
    }

    #[test]
    fn a_limit_refuses_and_a_dropped_permit_makes_room() {
        let (b, registry) = breakers(Limits { max_requests: 2, track_remaining: true, ..Limits::default() });
        let gauge = |name: &str| registry.value(&format!("cluster.a.circuit_breakers.default.{name}")).unwrap();
        let one = b.request().unwrap();
        assert_eq!((gauge("rq_open"), gauge("remaining_rq")), (0, 1));
        let _two = b.request().unwrap();
        assert_eq!(b.request().unwrap_err(), Overflow::Requests);
        assert_eq!((gauge("rq_open"), gauge("remaining_rq")), (1, 0));
        drop(one);
        assert_eq!((gauge("rq_open"), gauge("remaining_rq")), (0, 1));
        let _three = b.request().unwrap();
    }

    #[test]
    fn a_connection_is_given_above_the_limit_only_when_there_is_no_other() {
        let (b, _registry) = breakers(Limits { max_connections: 1, ..Limits::default() });
        let first = b.connection(false).unwrap();
        assert_eq!(b.connection(false).unwrap_err(), Overflow::Connections);
        let above = b.connection(true).unwrap();
        drop(first);
        assert!(b.connection(false).is_err(), "the one above the limit still counts");
        drop(above);
        let _again = b.connection(false).unwrap();
    }

    #[test]
    fn a_retry_budget_grows_with_the_requests_in_flight_and_beats_max_retries() {
        let budget = RetryBudget { ppm: 200_000, min_concurrency: 1 };
        let (b, _registry) = breakers(Limits { max_retries: 0, retry_budget: Some(budget), ..Limits::default() });
        let first = b.retry().unwrap();
        assert_eq!(b.retry().unwrap_err(), Overflow::Retries);
        let _requests: Vec<_> = (0..10).map(|_| b.request().unwrap()).collect();
        let _second = b.retry().unwrap();
        assert!(b.retry().is_err());
        drop(first);
    }

    #[test]
    fn zero_means_none() {
        let (b, _registry) = breakers(Limits { max_requests: 0, max_retries: 0, ..Limits::default() });
        assert!(b.request().is_err() && b.retry().is_err());
    }
}
