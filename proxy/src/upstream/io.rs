//! An upstream socket that counts its bytes and its end, and the flags that a connection's users and its driver share.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{Notify, watch},
    time::Instant,
};
use tokio_rustls::client::TlsStream;

use super::{
    limits::ConnectionPermit,
    stats::{ClusterStats, millis},
};

/// Interim answers taken before one final answer.
const MAX_INTERIM: u32 = 8;

/// Flags of one connection.
#[derive(Debug)]
pub(super) struct Flags {
    /// The driver must drop the connection now.
    abort: AtomicBool,
    waker: AtomicWaker,
    /// Bytes written to the transport.
    written: AtomicU64,
    /// Bytes read from it.
    read: AtomicU64,
    /// The body of the current request was read to its end.
    request_done: AtomicBool,
    /// Interim answers to the current request.
    interim: AtomicU32,
    /// Requests (HTTP) or the stream (TCP) in flight.
    active: AtomicU32,
    /// The other side ended it first.
    remote_closed: AtomicBool,
    /// Turns true when the driver has ended.
    closed: watch::Sender<bool>,
}

impl Flags {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            abort: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            request_done: AtomicBool::new(false),
            interim: AtomicU32::new(0),
            active: AtomicU32::new(0),
            remote_closed: AtomicBool::new(false),
            closed: watch::Sender::new(false),
        })
    }

    /// Cuts the connection, whatever its driver is waiting for.
    pub(super) fn abort(&self) {
        self.abort.store(true, Relaxed);
        self.waker.wake();
    }

    pub(super) fn aborted(&self) -> bool {
        self.abort.load(Relaxed)
    }

    pub(super) fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    pub(super) fn read(&self) -> u64 {
        self.read.load(Relaxed)
    }

    pub(super) fn begin(&self, request_done: bool) {
        self.active.fetch_add(1, Relaxed);
        self.request_done.store(request_done, Relaxed);
        self.interim.store(0, Relaxed);
    }

    pub(super) fn finish(&self) {
        self.active.fetch_sub(1, Relaxed);
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.load(Relaxed) > 0
    }

    pub(super) fn set_request_done(&self) {
        self.request_done.store(true, Relaxed);
    }

    pub(super) fn request_done(&self) -> bool {
        self.request_done.load(Relaxed)
    }

    /// Counts an interim answer; too many cut the connection.
    pub(super) fn interim(&self) {
        if self.interim.fetch_add(1, Relaxed) + 1 > MAX_INTERIM {
            self.abort();
        }
    }

    pub(super) fn too_many_interim(&self) -> bool {
        self.interim.load(Relaxed) > MAX_INTERIM
    }

    pub(super) fn closed(&self) -> watch::Receiver<bool> {
        self.closed.subscribe()
    }

    pub(super) fn set_closed(&self) {
        self.closed.send_replace(true);
    }

    /// To be called by the driver each time it is polled; true = end now.
    pub(super) fn poll_abort(&self, cx: &Context<'_>) -> bool {
        if self.aborted() {
            return true;
        }
        self.waker.register(cx.waker());
        self.aborted()
    }
}

/// What an endpoint's waiting requests look at. Apart from the slot, because connections must not keep it alive.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Connections open or being opened.
    pub(super) open: AtomicU32,
    /// Told when one became free or is gone.
    pub(super) freed: Notify,
}

/// Counts a connection in all places for as long as its socket is open.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) flags: Arc<Flags>,
    pub(super) stats: Arc<ClusterStats>,
    pub(super) gate: Option<Arc<Gate>>,
    pub(super) cluster_freed: Arc<Notify>,
    pub(super) opened: Instant,
    /// Last: given back after everything else was told.
    pub(super) permit: Option<ConnectionPermit>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let stats = &self.stats;
        let (remote, active) = (self.flags.remote_closed.load(Relaxed), self.flags.is_active());
        stats.upstream_cx_active.decrement(1.0);
        stats.upstream_cx_destroy.increment(1);
        let (side, side_active) = if remote {
            (&stats.upstream_cx_destroy_remote, &stats.upstream_cx_destroy_remote_with_active_rq)
        } else {
            (&stats.upstream_cx_destroy_local, &stats.upstream_cx_destroy_local_with_active_rq)
        };
        side.increment(1);
        if active {
            side_active.increment(1);
            stats.upstream_cx_destroy_with_active_rq.increment(1);
        }
        stats.upstream_cx_length_ms.record(millis(self.opened.elapsed()));
        drop(self.permit.take());
        if let Some(gate) = &self.gate {
            gate.open.fetch_sub(1, Relaxed);
            gate.freed.notify_one();
        }
        self.cluster_freed.notify_one();
    }
}

/// The transport.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A counted transport.
#[derive(Debug)]
pub(super) struct Socket {
    transport: Transport,
    counted: Counted,
}

impl Socket {
    pub(super) fn new(transport: Transport, counted: Counted) -> Self {
        Self { transport, counted }
    }

    pub(super) fn flags(&self) -> &Arc<Flags> {
        &self.counted.flags
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        match &self.transport {
            Transport::Plain(tcp) => tcp,
            Transport::Tls(tls) => tls.get_ref().0,
        }
    }

    fn wrote(&self, result: &io::Result<usize>) {
        match result {
            Ok(n) => {
                self.counted.flags.written.fetch_add(*n as u64, Relaxed);
                self.counted.stats.upstream_cx_tx_bytes_total.increment(*n as u64);
            }
            Err(_) => self.counted.flags.remote_closed.store(true, Relaxed),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Transport::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        });
        let n = buf.filled().len() - before;
        if n == 0 {
            self.counted.flags.remote_closed.store(true, Relaxed);
        } else {
            self.counted.flags.read.fetch_add(n as u64, Relaxed);
            self.counted.stats.upstream_cx_rx_bytes_total.increment(n as u64);
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Transport::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        });
        self.wrote(&result);
        Poll::Ready(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Transport::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        });
        self.wrote(&result);
        Poll::Ready(result)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(tcp) => tcp.is_write_vectored(),
            Transport::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
