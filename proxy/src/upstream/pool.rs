//! Idle HTTP/1 connections. The only file that names `pingora-pool`.
//!
//! Each (endpoint, worker) has a [`Slot`] with a small stack: the last connection used is the next one used, so a low
//! load lets the others age. What does not fit, or was idle for a while, goes to one `pingora-pool` for the process, which
//! bounds the number and closes at the idle timeout.
//!
//! The key there is a number from a counter, made anew for each slot and TLS version: two keys can't collide, and a
//! connection made with old secrets is never found again. The full key travels with the connection and is compared once
//! more when it is taken out.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use pingora_pool::{ConnectionMeta, ConnectionPool};
use smallvec::SmallVec;
use tokio::{runtime::Handle, time::Instant};

use super::{
    connect::Facts,
    h2::Multiplexed,
    io::{Flags, Gate},
    lease::Lease,
    stats::ClusterStats,
};
use crate::body::Body;

/// Idle connections of one worker to one endpoint that are kept at hand.
const STACK: usize = 64;
/// Idle connections of the process beyond those at hand; above, the oldest are closed.
const MAX_OVERFLOWED: usize = 4096;
/// Longest time between two looks at a stack; a connection idle for that long leaves it.
const SWEEP: Duration = Duration::from_secs(15);

/// Whose connections a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotKey {
    /// Number of the cluster object: SNI, ALPN and the rest of the spec are fixed in it.
    pub(super) cluster: u64,
    pub(super) address: SocketAddr,
    pub(super) worker: usize,
}

/// Everything that makes connections interchangeable.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PoolKey {
    slot: SlotKey,
    tls: u64,
    /// Name in `pingora-pool`.
    number: u64,
}

impl PoolKey {
    /// Number of the worker that made the connection.
    pub(super) fn worker(&self) -> usize {
        self.slot.worker
    }
}

/// An HTTP/1 connection. Lent to one request at a time; as that request's body guard it finds its own way back.
pub(super) struct H1 {
    pub(super) sender: SendRequest<Body>,
    pub(super) flags: Arc<Flags>,
    pub(super) facts: Arc<Facts>,
    pub(super) key: Arc<PoolKey>,
    /// Requests served.
    pub(super) uses: u32,
    idle_since: Instant,
    /// The request being served.
    pub(super) lease: Option<Lease>,
}

impl H1 {
    pub(super) fn new(sender: SendRequest<Body>, flags: Arc<Flags>, facts: Arc<Facts>, key: Arc<PoolKey>) -> Box<Self> {
        Box::new(Self { sender, flags, facts, key, uses: 0, idle_since: Instant::now(), lease: None })
    }

    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// Connections of one worker to one endpoint.
pub(super) struct Slot {
    inner: Arc<Inner>,
}

struct Inner {
    key: SlotKey,
    gate: Arc<Gate>,
    idle: Mutex<Idle>,
    /// A task looks at it from time to time.
    swept: AtomicBool,
    multiplexed: Multiplexed,
    overflowed: Arc<Overflowed>,
}

struct Idle {
    key: Arc<PoolKey>,
    stack: SmallVec<[Box<H1>; 4]>,
}

impl Slot {
    pub(super) fn new(key: SlotKey, overflowed: Arc<Overflowed>) -> Self {
        let first = Arc::new(PoolKey { slot: key, tls: 0, number: overflowed.number() });
        let idle = Mutex::new(Idle { key: first, stack: SmallVec::new() });
        let (gate, multiplexed) = (Arc::default(), Multiplexed::default());
        let inner = Inner { key, gate, idle, swept: AtomicBool::new(false), multiplexed, overflowed };
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.inner.gate
    }

    pub(super) fn multiplexed(&self) -> &Multiplexed {
        &self.inner.multiplexed
    }

    /// The key of a connection made with TLS version `tls`.
    pub(super) fn key(&self, tls: u64) -> Arc<PoolKey> {
        let key = self.inner.key_for(tls);
        // Secrets changed while it was dialled: a key that no slot has, so that it is never pooled.
        if key.tls == tls { key } else { Arc::new(PoolKey { slot: self.inner.key, tls, number: 0 }) }
    }

    /// A connection that can serve a request at once.
    pub(super) fn take(&self, tls: u64) -> Option<Box<H1>> {
        self.inner.take(tls)
    }

    /// Puts a connection back whose last response and request were both read to their end.
    pub(super) fn put(&self, conn: Box<H1>, now: Instant, idle_timeout: Duration, stats: &Arc<ClusterStats>) {
        let excess = {
            let mut idle = self.inner.idle.lock();
            if *conn.key != *idle.key || conn.is_closed() {
                return;
            }
            let mut conn = conn;
            conn.idle_since = now;
            idle.stack.push(conn);
            (idle.stack.len() > STACK).then(|| idle.stack.remove(0))
        };
        self.inner.gate.freed.notify_one();
        if let Some(conn) = excess {
            self.inner.overflowed.put(conn, idle_timeout, stats.clone());
        }
        self.sweep(idle_timeout, stats);
    }

    /// Starts looking for idle connections, unless that goes on already.
    pub(super) fn sweep(&self, idle_timeout: Duration, stats: &Arc<ClusterStats>) {
        // Without a runtime (a body dropped while the worker ends) there is nobody to use the connection either.
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.inner.swept.swap(true, Relaxed) {
            runtime.spawn(sweep(Arc::downgrade(&self.inner), idle_timeout, stats.clone()));
        }
    }

    /// Secrets changed: what is idle and was made with another TLS version closes, the rest is never handed out again.
    pub(super) fn retire(&self, tls: u64) {
        drop(self.inner.key_for(tls));
        self.inner.multiplexed.retire(tls);
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("key", &self.inner.key).finish_non_exhaustive()
    }
}

impl Inner {
    fn key_for(&self, tls: u64) -> Arc<PoolKey> {
        let (key, old) = {
            let mut idle = self.idle.lock();
            let old = self.renew(&mut idle, tls);
            (idle.key.clone(), old)
        };
        drop(old);
        key
    }

    /// Makes the key that of `tls`; returns what was idle under another one, to be dropped without the lock.
    fn renew(&self, idle: &mut Idle, tls: u64) -> Option<SmallVec<[Box<H1>; 4]>> {
        // A request that began before a change of secrets must not bring the old version back.
        if idle.key.tls >= tls {
            return None;
        }
        let key = Arc::new(PoolKey { slot: self.key, tls, number: self.overflowed.number() });
        let old_key = std::mem::replace(&mut idle.key, key);
        self.overflowed.forget(old_key.number);
        Some(std::mem::take(&mut idle.stack))
    }

    fn take(&self, tls: u64) -> Option<Box<H1>> {
        let mut dead: SmallVec<[Box<H1>; 4]> = SmallVec::new();
        let (found, key) = {
            let mut idle = self.idle.lock();
            if let Some(old) = self.renew(&mut idle, tls) {
                dead.extend(old);
            }
            if idle.key.tls != tls {
                return None;
            }
            let mut at = idle.stack.len();
            let mut found = None;
            while at > 0 && found.is_none() {
                at -= 1;
                if idle.stack[at].is_closed() {
                    dead.push(idle.stack.remove(at));
                } else if idle.stack[at].sender.is_ready() {
                    found = Some(idle.stack.remove(at));
                }
                // Else its driver has still to see the end of the last exchange: leave it for the next one.
            }
            (found, idle.key.clone())
        };
        drop(dead);
        found.or_else(|| self.overflowed.take(&key))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.overflowed.forget(self.idle.get_mut().key.number);
    }
}

/// Looks at a stack until it is empty: the dead go, those idle for a while move to the overflow, which times them out.
async fn sweep(slot: Weak<Inner>, idle_timeout: Duration, stats: Arc<ClusterStats>) {
    let forever = idle_timeout.is_zero();
    let round = if forever { SWEEP } else { (idle_timeout / 2).clamp(Duration::from_millis(1), SWEEP) };
    loop {
        tokio::time::sleep(round).await;
        let Some(slot) = slot.upgrade() else { return };
        let now = Instant::now();
        let old: SmallVec<[Box<H1>; 4]> = {
            let mut idle = slot.idle.lock();
            let stack = std::mem::take(&mut idle.stack);
            let (stay, old) = stack.into_iter().partition(|c| !c.is_closed() && now - c.idle_since < round);
            idle.stack = stay;
            old
        };
        for conn in old.into_iter().filter(|c| !c.is_closed()) {
            slot.overflowed.put(conn, idle_timeout, stats.clone());
        }
        let expired = if forever { 0 } else { slot.multiplexed.expire(idle_timeout) };
        stats.upstream_cx_idle_timeout.increment(expired);
        // Said to be over first: one that comes now starts another.
        slot.swept.store(false, Relaxed);
        let finished = slot.idle.lock().stack.is_empty() && slot.multiplexed.is_empty();
        if finished || slot.swept.swap(true, Relaxed) {
            return;
        }
    }
}

/// Idle connections of the process that are not at hand.
pub(super) struct Overflowed {
    pool: ConnectionPool<Box<H1>>,
    next_number: AtomicU64,
    /// `pingora-pool` wants ids unique over all keys. It wraps after 2^32 connections; by then the first are long gone.
    next_id: AtomicI32,
}

impl Overflowed {
    pub(super) fn new() -> Self {
        Self { pool: ConnectionPool::new(MAX_OVERFLOWED), next_number: AtomicU64::new(1), next_id: AtomicI32::new(0) }
    }

    fn number(&self) -> u64 {
        self.next_number.fetch_add(1, Relaxed)
    }

    fn put(self: &Arc<Self>, conn: Box<H1>, idle_timeout: Duration, stats: Arc<ClusterStats>) {
        let Ok(runtime) = Handle::try_current() else { return };
        let rest = (!idle_timeout.is_zero()).then(|| idle_timeout.saturating_sub(conn.idle_since.elapsed()));
        let meta = ConnectionMeta::new(conn.key.number, self.next_id.fetch_add(1, Relaxed));
        let closed = conn.flags.closed();
        let (evicted, used) = self.pool.put(&meta, conn);
        let (overflowed, since) = (self.clone(), Instant::now());
        runtime.spawn(async move {
            overflowed.pool.idle_timeout(&meta, rest, evicted, closed, used).await;
            if rest.is_some_and(|rest| since.elapsed() >= rest) {
                stats.upstream_cx_idle_timeout.increment(1);
            }
        });
    }

    fn take(&self, key: &Arc<PoolKey>) -> Option<Box<H1>> {
        loop {
            let conn = self.pool.get(&key.number)?;
            if conn.key == *key && conn.sender.is_ready() {
                return Some(conn);
            }
        }
    }

    fn forget(&self, number: u64) {
        while self.pool.get(&number).is_some() {}
    }
}

impl std::fmt::Debug for Overflowed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overflowed").finish_non_exhaustive()
    }
}
