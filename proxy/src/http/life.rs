//! The life of one downstream connection: how many requests are in flight, and when it must end.
//!
//! Requests and the connection's reader write here; the watcher of [`super::server`] reads and decides.

use std::{
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::stats::HttpStats;
use crate::{config::http::HttpConnectionManager, drain::Drain};

/// See the module.
pub(super) struct Life {
    started: Instant,
    http2: AtomicBool,
    active: AtomicU32,
    served: AtomicU32,
    max_requests: u32,
    /// Milliseconds after the start at which the last request ended.
    idle_since: AtomicU64,
    /// Milliseconds after the start at which half a head was found, plus one; 0 for none, [`UNTIMED`] for one that nobody
    /// has looked at: most heads come whole, and reading the clock costs.
    head_since: AtomicU64,
    phase: AtomicU8,
    /// Milliseconds after the start at which the end began.
    closing_since: AtomicU64,
    changed: Notify,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It serves.
    Open,
    /// It ends after the requests in flight.
    Closing,
    /// It ends now.
    Cut,
}

impl Life {
    pub(super) fn new(config: &HttpConnectionManager) -> Self {
        Self {
            started: Instant::now(),
            http2: AtomicBool::new(false),
            active: AtomicU32::new(0),
            served: AtomicU32::new(0),
            max_requests: config.max_requests_per_connection.unwrap_or(u32::MAX),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            phase: AtomicU8::new(Phase::Open as u8),
            closing_since: AtomicU64::new(0),
            changed: Notify::new(),
        }
    }

    pub(super) fn set_http2(&self) {
        self.http2.store(true, Relaxed);
    }

    /// Time since the connection began.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from((at - self.started).as_millis()).unwrap_or(UNTIMED - 1)
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Open,
            1 => Phase::Closing,
            _ => Phase::Cut,
        }
    }

    fn enter(&self, phase: Phase) {
        if self.phase() == Phase::Open {
            self.closing_since.store(self.millis(Instant::now()), Relaxed);
        }
        self.phase.fetch_max(phase as u8, Relaxed);
    }

    /// The end began at least `limit` ago.
    pub(super) fn is_closing_for(&self, limit: Duration) -> bool {
        self.phase() != Phase::Open && self.age() >= Duration::from_millis(self.closing_since.load(Relaxed)) + limit
    }

    /// Bytes came from the client.
    pub(super) fn bytes_read(&self) {
        if self.active.load(Relaxed) == 0 && self.head_since.load(Relaxed) == 0 {
            self.head_since.store(UNTIMED, Relaxed);
        }
    }

    /// A request's head is half read; the watcher must time it.
    pub(super) fn has_half_a_head(&self) -> bool {
        self.head_since.load(Relaxed) != 0 && !self.http2.load(Relaxed)
    }

    /// That head is a new one.
    pub(super) fn has_untimed_head(&self) -> bool {
        self.head_since.load(Relaxed) == UNTIMED && !self.http2.load(Relaxed)
    }

    /// Has the watcher look again.
    pub(super) fn look_again(&self) {
        self.changed.notify_one();
    }

    pub(super) fn request_began(&self) {
        self.head_since.store(0, Relaxed);
        self.active.fetch_add(1, Relaxed);
        if self.served.fetch_add(1, Relaxed) + 1 == self.max_requests {
            self.enter(Phase::Closing);
            self.changed.notify_one();
        }
    }

    pub(super) fn request_ended(&self, now: Instant) {
        self.idle_since.store(self.millis(now), Relaxed);
        self.active.fetch_sub(1, Relaxed);
    }

    /// The response about to go out is the connection's last.
    pub(super) fn closes_after_this(&self) -> bool {
        self.phase() != Phase::Open
    }

    /// Watches the connection until it must be cut. What happens is told by [`Self::phase`].
    pub(super) async fn watch(&self, config: &HttpConnectionManager, stats: &HttpStats, drain: &Drain) {
        let limits = Limits::new(config);
        let mut draining = std::pin::pin!(drain.draining());
        let mut cut = std::pin::pin!(drain.cut_off());
        loop {
            let open = match self.phase() {
                Phase::Cut => return,
                phase => phase == Phase::Open,
            };
            let due = self.next(&limits, open).map(|after| self.started + after);
            tokio::select! {
                () = &mut draining, if open => {
                    stats.downstream_cx_drain_close.increment(1);
                    self.enter(Phase::Closing);
                }
                () = &mut cut => self.enter(Phase::Cut),
                () = self.changed.notified() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.check(&limits, stats),
            }
        }
    }

    /// The earliest time, after the start, at which a limit may pass.
    fn next(&self, limits: &Limits, open: bool) -> Option<Duration> {
        let idle = limits.idle.map(|limit| Duration::from_millis(self.idle_since.load(Relaxed)) + limit);
        // While requests are in flight the connection is not idle; look again a whole limit later.
        let idle = match (idle, limits.idle) {
            (Some(_), Some(limit)) if self.active.load(Relaxed) > 0 => Some(self.started.elapsed() + limit),
            (idle, _) => idle,
        };
        let head = limits.head.filter(|_| self.has_half_a_head()).map(|limit| self.head_began() + limit);
        [idle.filter(|_| open), head, limits.duration.filter(|_| open)].into_iter().flatten().min()
    }

    fn head_began(&self) -> Duration {
        if self.head_since.load(Relaxed) == UNTIMED {
            self.head_since.store(self.millis(Instant::now()) + 1, Relaxed);
        }
        Duration::from_millis(self.head_since.load(Relaxed).saturating_sub(1))
    }

    fn check(&self, limits: &Limits, stats: &HttpStats) {
        let now = self.started.elapsed();
        let idle_since = Duration::from_millis(self.idle_since.load(Relaxed));
        if limits.head.is_some_and(|limit| self.has_half_a_head() && now >= self.head_began() + limit) {
            stats.downstream_rq_header_timeout.increment(1);
            self.enter(Phase::Cut);
        } else if limits.duration.is_some_and(|limit| now >= limit) {
            stats.downstream_cx_max_duration_reached.increment(1);
            self.enter(Phase::Closing);
        } else if self.active.load(Relaxed) == 0 && limits.idle.is_some_and(|limit| now >= idle_since + limit) {
            stats.downstream_cx_idle_timeout.increment(1);
            self.enter(Phase::Closing);
        }
    }
}

/// Time limits of a connection; none is no limit.
struct Limits {
    idle: Option<Duration>,
    head: Option<Duration>,
    duration: Option<Duration>,
}

impl Limits {
    fn new(config: &HttpConnectionManager) -> Self {
        let some = |limit: Duration| (!limit.is_zero()).then_some(limit);
        Self {
            idle: some(config.idle_timeout),
            head: Some(some(config.request_headers_timeout).unwrap_or(HEAD_TIMEOUT)),
            duration: config.max_connection_duration.and_then(some),
        }
    }
}

/// See [`Life::head_since`].
const UNTIMED: u64 = u64::MAX;
/// Longest time for one request's head where none is configured: a slow one holds memory and a place.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
