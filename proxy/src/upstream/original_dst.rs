//! Endpoints that are whatever address the client dialled.
//!
//! Bounded, cleaned of the idle, and never this proxy itself: a request to our own listener would come back for ever.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use parking_lot::RwLock;
use tokio::time::Instant;

use super::{
    cluster::{Cluster, Upstreams},
    endpoint::Endpoint,
    error::NoEndpoint,
};

/// Addresses remembered. Beyond, addresses that nobody uses are forgotten first.
const MAX_REMEMBERED: usize = 4096;
/// Time between clean-ups; an address unused for a whole round is forgotten (Envoy's `cleanup_interval`).
const CLEANUP: Duration = Duration::from_secs(5);

/// The addresses in use.
#[derive(Debug, Default)]
pub(super) struct OriginalDst {
    endpoints: RwLock<HashMap<SocketAddr, Entry>>,
}

#[derive(Debug)]
struct Entry {
    endpoint: Arc<Endpoint>,
    /// Requests counted at the last clean-up, and when that was seen to change last.
    seen: (u64, Instant),
}

impl OriginalDst {
    pub(super) fn endpoint(&self, address: SocketAddr, upstreams: &Upstreams) -> Result<Arc<Endpoint>, NoEndpoint> {
        if let Some(entry) = self.endpoints.read().get(&address) {
            return Ok(entry.endpoint.clone());
        }
        if is_own(address, &upstreams.listeners()) {
            return Err(NoEndpoint::Loop);
        }
        let mut endpoints = self.endpoints.write();
        if endpoints.len() >= MAX_REMEMBERED {
            endpoints.retain(|_, e| Arc::strong_count(&e.endpoint) > 1);
            if endpoints.len() >= MAX_REMEMBERED {
                return Err(NoEndpoint::NoneHealthy);
            }
        }
        let entry = endpoints.entry(address).or_insert_with(|| Entry {
            endpoint: Arc::new(Endpoint::new(address, upstreams.workers)),
            seen: (0, Instant::now()),
        });
        Ok(entry.endpoint.clone())
    }

    pub(super) fn each(&self, f: &mut impl FnMut(&Arc<Endpoint>)) {
        self.endpoints.read().values().for_each(|e| f(&e.endpoint));
    }

    /// Forgets addresses that were not used for `idle` and are not in use. Their pooled connections close.
    fn clean(&self, idle: Duration) {
        let now = Instant::now();
        let mut gone = Vec::new();
        self.endpoints.write().retain(|_, entry| {
            let requests = entry.endpoint.requests();
            if requests != entry.seen.0 {
                entry.seen = (requests, now);
            }
            // One reference is ours; any other is a request on its way or in flight.
            let keep = Arc::strong_count(&entry.endpoint) > 1 || now - entry.seen.1 < idle;
            if !keep {
                gone.push(entry.endpoint.clone());
            }
            keep
        });
    }

    /// Cleans up from time to time for as long as the cluster lives.
    pub(super) fn start(cluster: &Arc<Cluster>) {
        let weak = Arc::downgrade(cluster);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(CLEANUP).await;
                let Some(cluster) = weak.upgrade() else { return };
                cluster.original().clean(CLEANUP);
            }
        });
    }
}

/// True when `address` is one of our listeners, on an address of this machine (or network namespace).
fn is_own(address: SocketAddr, listeners: &[SocketAddr]) -> bool {
    let matches = |l: &SocketAddr| l.port() == address.port() && (l.ip().is_unspecified() || l.ip() == address.ip());
    listeners.iter().any(matches) && is_local(address.ip())
}

/// Only a local address can be bound. Asked once per new address that has a listener's port.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_listeners_are_never_a_destination() {
        let listeners = ["0.0.0.0:15001".parse().unwrap(), "127.0.0.1:15000".parse().unwrap()];
        for (address, own) in [
            ("127.0.0.1:15001", true),
            ("127.0.0.5:15001", true),
            ("127.0.0.1:15000", true),
            ("127.0.0.5:15000", false),
            ("127.0.0.1:80", false),
            ("192.0.2.1:15001", false),
        ] {
            assert_eq!(is_own(address.parse().unwrap(), &listeners), own, "{address}");
        }
    }
}
