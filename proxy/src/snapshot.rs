//! What is in force: configuration joined with its runtime state, immutable, swapped as a whole.
//!
//! `xds::assemble` makes snapshots on the control thread; connections and requests load the current one once and hold
//! it. Parts that did not change are the same `Arc` in the next snapshot, so a push cuts nothing and forgets nothing.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use crate::http::Routes;
use crate::{
    config::{self, Name, listener::ChainIndex},
    drain::Drain,
    http::HttpRuntime,
    net::{filter::Filters, waiting::Waiting},
    tcp::TcpRuntime,
    telemetry::{
        Registry,
        access_log::{Loggers, Sinks},
        listener::ListenerStats,
    },
    tls::{ResolvedSecrets, ServerTls},
    upstream::Cluster,
};

/// Everything in force at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows by one with each publication; 0 is the empty snapshot before the first.
    pub version: u64,
    /// By name. A listener whose routes have not come is not here, so that it does not listen.
    pub listeners: HashMap<Name, Arc<Listener>>,
    /// Route tables of RDS, by name. Tables written in place live in their chain.
    pub routes: HashMap<Name, Arc<Routes>>,
    /// By name.
    pub clusters: HashMap<Name, Arc<Cluster>>,
}

/// A listener with its runtime state. A new one is made when anything but its chains changes.
#[derive(Debug)]
pub struct Listener {
    /// What was asked for.
    pub config: Arc<config::listener::Listener>,
    /// Finds the chain of a connection; its answers are positions in [`Self::chains`].
    pub index: ChainIndex,
    /// Statistics of its connections.
    pub stats: Arc<ListenerStats>,
    /// Logs connections that got no chain.
    pub loggers: Arc<Loggers>,
    /// In the order of [`config::listener::Listener::chains`].
    pub chains: Vec<Arc<Chain>>,
    /// Used when no chain matches.
    pub default_chain: Option<Arc<Chain>>,
    /// Begins when the listener is removed or replaced.
    pub drain: Drain,
}

/// A filter chain with its runtime state. The same `Arc` for as long as its configuration and secrets stay equal.
#[derive(Debug)]
pub struct Chain {
    /// What was asked for.
    pub config: Arc<config::listener::FilterChain>,
    /// Set exactly when the terminal is HTTP.
    pub http: Option<Arc<HttpRuntime>>,
    /// Set exactly when the terminal is TCP.
    pub tcp: Option<Arc<TcpRuntime>>,
    /// The network filters before the terminal.
    pub filters: Arc<Filters>,
    /// Made of the chain's secrets. None although [`config::listener::FilterChain::tls`] asks for TLS: its secrets have
    /// not come, so the connection is closed, never served in plaintext.
    pub tls: Option<Arc<ServerTls>>,
    /// The secrets in [`Self::tls`].
    pub secrets: ResolvedSecrets,
    /// Begins when the chain vanishes or changes, not when only its secrets do; a child of the listener's.
    pub drain: Drain,
}

/// The current snapshot and the news of its change. Clones share.
#[derive(Clone, Debug)]
pub struct Store {
    current: Arc<ArcSwap<Snapshot>>,
    version: watch::Sender<u64>,
}

impl Default for Store {
    fn default() -> Self {
        Self { current: Arc::default(), version: watch::Sender::new(0) }
    }
}

impl Store {
    /// Holds the empty snapshot.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What is in force now. Load once per request or connection and keep it: two loads may differ.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Puts a snapshot in force and gives it the next version. Called by the control thread alone.
    pub fn publish(&self, mut next: Snapshot) -> Arc<Snapshot> {
        next.version = self.current.load().version + 1;
        let next = Arc::new(next);
        self.current.store(Arc::clone(&next));
        self.version.send_replace(next.version);
        next
    }

    /// Tells of each publication, by version.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

/// What every part of the process shares; passed down, never global.
#[derive(Debug)]
pub struct Shared {
    /// What is in force.
    pub store: Store,
    /// Statistics.
    pub metrics: Registry,
    /// Access log files and streams.
    pub sinks: Sinks,
    /// Connections that are still being made out.
    pub waiting: Waiting,
    /// The end of the process.
    pub drain: Drain,
}

impl Shared {
    /// An empty snapshot, no series, no open log.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Registry::default();
        Self {
            store: Store::new(),
            sinks: Sinks::new(&metrics),
            metrics,
            waiting: Waiting::default(),
            drain: Drain::new(),
        }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::{Snapshot, Store};

    #[test]
    fn a_publication_is_seen_by_readers_and_watchers_while_old_readers_keep_theirs() {
        let store = Store::new();
        let mut news = store.changed();
        let old = store.current();
        store.publish(Snapshot::default());
        store.publish(Snapshot::default());
        assert!(news.has_changed().unwrap());
        assert_eq!((old.version, store.current().version, *news.borrow_and_update()), (0, 2, 2));
    }
}
