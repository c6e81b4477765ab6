//! `server.*`: whether the process lives, since when, and how much memory it has.

use metrics::Gauge;
use tokio::time::Instant;

use super::{Registry, Scope};

/// Handles of `server.*`; values that only change with time are read when [`ServerStats::refresh`] is called.
#[derive(Debug)]
pub struct ServerStats {
    start: Instant,
    live: Gauge,
    state: Gauge,
    uptime: Gauge,
    physical: Gauge,
    heap: Gauge,
    concurrency: Gauge,
}

/// `server.state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Serves.
    Live,
    /// Health check was failed by the operator, or the process is going.
    Draining,
    /// Waits for its first clusters.
    PreInitializing,
    /// Waits for its first listeners.
    Initializing,
}

impl ServerStats {
    /// Registers the gauges; uptime counts from now. `workers` is `server.concurrency`.
    #[must_use]
    pub fn new(registry: &Registry, workers: u32) -> Self {
        let gauge = |name| registry.gauge(&Scope::plain("server"), name);
        let stats = Self {
            start: Instant::now(),
            live: gauge("live"),
            state: gauge("state"),
            uptime: gauge("uptime"),
            physical: gauge("memory_physical_size"),
            heap: gauge("memory_heap_size"),
            concurrency: gauge("concurrency"),
        };
        stats.concurrency.set(f64::from(workers));
        stats
    }

    /// Brings the gauges up to date; called before the statistics are shown. Memory stays as it was where `/proc` is not
    /// readable.
    pub fn refresh(&self, state: State) {
        self.live.set(if state == State::Live { 1.0 } else { 0.0 });
        // Numbers of Envoy's ServerInfo.State.
        self.state.set(match state {
            State::Live => 0.0,
            State::Draining => 1.0,
            State::PreInitializing => 2.0,
            State::Initializing => 3.0,
        });
        self.uptime.set(self.start.elapsed().as_secs_f64());
        if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
            let kib = |key: &str| {
                status.lines().find_map(|l| l.strip_prefix(key)?.split_whitespace().next()?.parse::<f64>().ok())
            };
            if let Some(v) = kib("VmRSS:") {
                self.physical.set(v * 1024.0);
            }
            if let Some(v) = kib("RssAnon:") {
                self.heap.set(v * 1024.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_server_says_so_and_shows_its_memory() {
        let registry = Registry::default();
        let stats = ServerStats::new(&registry, 2);
        stats.refresh(State::Initializing);
        assert_eq!(registry.value("server.live"), Some(0));
        stats.refresh(State::Live);
        assert_eq!(registry.value("server.live"), Some(1));
        assert_eq!(registry.value("server.concurrency"), Some(2));
        assert!(registry.value("server.memory_physical_size") > Some(1 << 20));
    }
}
