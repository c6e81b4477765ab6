//! What a request holds of its cluster while it is on its way, and how its end is counted.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    cluster::Cluster,
    endpoint::{Endpoint, Load},
    error::ErrorKind,
    limits::RequestPermit,
    stats::millis,
};
use crate::body::End;

/// What one request holds of its cluster. Everything is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) cluster: Arc<Cluster>,
    load: Load,
    pub(super) started: Instant,
    /// A connection was found for it.
    attached: bool,
    settled: bool,
    _permit: RequestPermit,
}

impl Lease {
    pub(super) fn new(cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>, permit: RequestPermit) -> Self {
        let (cluster, load) = (cluster.clone(), endpoint.enter());
        Self { cluster, load, started: Instant::now(), attached: false, settled: false, _permit: permit }
    }

    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        self.load.endpoint()
    }

    /// Counts the request, once: from here on it is on a connection.
    pub(super) fn attach(&mut self) {
        if !std::mem::replace(&mut self.attached, true) {
            self.cluster.stats.upstream_rq_total.increment(1);
            self.cluster.stats.upstream_rq_active.increment(1.0);
        }
    }

    /// Counts how the stream ended.
    pub(super) fn settle(&mut self, end: End<'_>, now: Instant) {
        self.settled = true;
        let stats = &self.cluster.stats;
        match end {
            End::Complete => stats.upstream_rq_time.record(millis(now - self.started)),
            End::Failed(_) => stats.upstream_rq_rx_reset.increment(1),
            End::Dropped => stats.upstream_rq_tx_reset.increment(1),
        }
    }

    /// Counts an attempt without answer.
    pub(super) fn fail(&mut self, kind: &ErrorKind) {
        self.settled = true;
        let stats = &self.cluster.stats;
        match kind {
            ErrorKind::Connect(_) | ErrorKind::ConnectTimeout(_) | ErrorKind::Tls(_) => {
                stats.upstream_rq_pending_failure_eject.increment(1);
            }
            ErrorKind::Closed(_) | ErrorKind::Reset(_) | ErrorKind::Refused => stats.upstream_rq_rx_reset.increment(1),
            ErrorKind::Protocol(_) => {
                stats.upstream_cx_protocol_error.increment(1);
                stats.upstream_rq_rx_reset.increment(1);
            }
            ErrorKind::RequestBody(_) => stats.upstream_rq_tx_reset.increment(1),
            ErrorKind::Overflow(_) => {}
        }
        if !matches!(kind, ErrorKind::Overflow(_) | ErrorKind::RequestBody(_)) {
            self.load.endpoint().failed();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let stats = &self.cluster.stats;
        if !self.settled {
            // The caller lost interest before the answer.
            let lost = if self.attached { &stats.upstream_rq_tx_reset } else { &stats.upstream_rq_cancelled };
            lost.increment(1);
        }
        if self.attached {
            stats.upstream_rq_active.decrement(1.0);
        }
    }
}
