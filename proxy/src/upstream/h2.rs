//! HTTP/2 connections: shared by the requests of one worker to one endpoint.
//!
//! A connection takes streams until the server's limit; then another is opened, one at a time. One that was told to go
//! away, that served its number of requests, that fell silent or that was made with old secrets takes no more streams and
//! closes when its last one ends: dropping the last handle is all that it takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::client::conn::http2::SendRequest;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    connect::Facts,
    error::ErrorKind,
    io::{Flags, Gate},
};
use crate::body::Body;

/// Streams given to a connection before the server has told its limit; those above it wait inside.
const STREAMS_BEFORE_SETTINGS: usize = 100;

/// A request that waited for longer than this on a connection that brought nothing makes it suspect.
const SILENCE: Duration = Duration::from_secs(1);

/// A connection.
pub(super) struct H2 {
    sender: SendRequest<Body>,
    pub(super) flags: Arc<Flags>,
    pub(super) facts: Arc<Facts>,
    tls: u64,
    streams: AtomicU32,
    max_streams: Arc<AtomicUsize>,
    /// An answer came, so the server's SETTINGS came before it.
    answered: AtomicBool,
    /// Requests ever.
    uses: AtomicU32,
    max_uses: u32,
    /// No new streams.
    draining: AtomicBool,
    idle_since: Mutex<Instant>,
}

impl H2 {
    pub(super) fn new(
        sender: SendRequest<Body>,
        flags: Arc<Flags>,
        facts: Arc<Facts>,
        tls: u64,
        max_streams: Arc<AtomicUsize>,
        max_uses: Option<u32>,
    ) -> Arc<Self> {
        Arc::new(Self {
            sender,
            flags,
            facts,
            tls,
            streams: AtomicU32::new(0),
            max_streams,
            answered: AtomicBool::new(false),
            uses: AtomicU32::new(0),
            max_uses: max_uses.unwrap_or(u32::MAX),
            draining: AtomicBool::new(false),
            idle_since: Mutex::new(Instant::now()),
        })
    }

    fn is_usable(&self) -> bool {
        !self.draining.load(Relaxed) && !self.sender.is_closed()
    }

    /// Takes no more streams.
    pub(super) fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// An answer came on it.
    fn answered(&self) {
        if !self.answered.load(Relaxed) {
            self.answered.store(true, Relaxed);
        }
    }

    /// Streams that may be given to it at once.
    fn max_streams(&self) -> usize {
        match self.max_streams.load(Relaxed) {
            1 if !self.answered.load(Relaxed) => STREAMS_BEFORE_SETTINGS,
            told => told,
        }
    }

    /// A place for one request. Called by its own worker only, under the list's lock or before it is in the list.
    pub(super) fn enter(self: &Arc<Self>, gate: &Arc<Gate>) -> Option<Stream> {
        if self.streams.load(Relaxed) as usize >= self.max_streams() {
            return None;
        }
        self.streams.fetch_add(1, Relaxed);
        self.flags.begin(true);
        let uses = self.uses.fetch_add(1, Relaxed);
        if uses + 1 >= self.max_uses {
            self.drain();
        }
        let (read_before, since) = (self.flags.read(), Instant::now());
        Some(Stream { conn: self.clone(), gate: gate.clone(), first: uses == 0, answered: false, read_before, since })
    }
}

/// A request's place on a connection.
pub(super) struct Stream {
    pub(super) conn: Arc<H2>,
    gate: Arc<Gate>,
    /// The first of its connection.
    pub(super) first: bool,
    answered: bool,
    /// Bytes that the connection had read when this began.
    read_before: u64,
    since: Instant,
}

impl Stream {
    pub(super) fn sender(&self) -> SendRequest<Body> {
        self.conn.sender.clone()
    }

    /// An answer came.
    pub(super) fn answered(&mut self) {
        self.answered = true;
        self.conn.answered();
    }

    /// True when the caller gave up waiting and the connection brought nothing at all meanwhile: the peer may be gone
    /// without a word, and further requests would wait in vain too.
    fn was_silent(&self) -> bool {
        !self.answered && self.conn.flags.read() == self.read_before && self.since.elapsed() >= SILENCE
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.was_silent() {
            self.conn.drain();
        }
        self.conn.flags.finish();
        if self.conn.streams.fetch_sub(1, Relaxed) == 1 {
            *self.conn.idle_since.lock() = Instant::now();
        }
        self.gate.freed.notify_one();
    }
}

/// The connections of one worker to one endpoint.
#[derive(Default)]
pub(super) struct Multiplexed {
    conns: Mutex<SmallVec<[Arc<H2>; 1]>>,
    /// Held while one is dialled; those who wait for it share its failure.
    pub(super) dialling: tokio::sync::Mutex<Option<(Instant, ErrorKind)>>,
}

impl Multiplexed {
    /// A place on a connection made with TLS version `tls`.
    pub(super) fn take(&self, tls: u64, gate: &Arc<Gate>) -> Option<Stream> {
        let mut conns = self.conns.lock();
        conns.retain(|c| c.is_usable());
        conns.iter().filter(|c| c.tls == tls).find_map(|c| c.enter(gate))
    }

    pub(super) fn add(&self, conn: Arc<H2>) {
        self.conns.lock().push(conn);
    }

    /// Drops those made with another TLS version; their streams go on.
    pub(super) fn retire(&self, tls: u64) {
        self.conns.lock().retain(|c| c.tls == tls);
    }

    /// Drops those without streams for `idle`; tells how many.
    pub(super) fn expire(&self, idle: Duration) -> u64 {
        let mut conns = self.conns.lock();
        let before = conns.len();
        conns.retain(|c| c.is_usable() && (c.streams.load(Relaxed) > 0 || c.idle_since.lock().elapsed() < idle));
        (before - conns.len()) as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.conns.lock().is_empty()
    }
}
