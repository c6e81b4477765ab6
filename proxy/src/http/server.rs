//! A downstream connection that speaks HTTP: codec, bounds, and its end.
//!
//! Framing belongs to hyper. This chooses the version, sets every bound on purpose, hands each request to the stack, and
//! ends the connection when its chain is drained, its time is over or its client is too slow.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context as Task, Poll, Wake, Waker, ready},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::Instant,
};
use tower::Service;

use super::{
    attempt::Attempt,
    exchange::{Conn, Exchange},
    frames::Frames,
    life::{Life, Phase},
    stack::stack,
    upload,
};
use crate::{
    body::Body,
    config::flags::{Flag, Flags},
    config::http::{Codec, HttpConnectionManager},
    net::connection::ConnInfo,
    snapshot::{Chain, Shared},
};

/// Serves HTTP on an accepted connection until it ends. Returns at once when the chain's terminal is not HTTP.
///
/// Cancel safe in the sense that dropping the future closes the connection.
pub async fn serve_connection<I>(io: I, chain: Arc<Chain>, info: ConnInfo, shared: Arc<Shared>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(http) = chain.http.clone() else { return };
    let life = Arc::new(Life::new(&http.config));
    let conn = Arc::new(Conn { info, http, shared, life, drain: chain.drain.clone() });
    drop(chain);
    let _counted = Counted::new(&conn);
    let mut io = Downstream { inner: io, prefix: Bytes::new(), life: Arc::clone(&conn.life), frames: None };
    let http2 = match conn.http.config.codec {
        Codec::Http1 => false,
        Codec::Http2 => true,
        Codec::Auto => match conn.info.alpn.as_deref() {
            Some(alpn) => alpn == b"h2",
            None => match with_end(&conn, sniff(&mut io)).await {
                Some(Ok(http2)) => http2,
                Some(Err(_)) | None => return,
            },
        },
    };
    if http2 {
        conn.life.set_http2();
        conn.http.stats.downstream_cx_http2_total.increment(1);
        serve_http2(io, &conn).await;
    } else {
        conn.http.stats.downstream_cx_http1_total.increment(1);
        serve_http1(io, &conn).await;
    }
}

/// Counts a connection while it lives.
struct Counted(Arc<Conn>);

impl Counted {
    fn new(conn: &Arc<Conn>) -> Self {
        let stats = &conn.http.stats;
        stats.downstream_cx_total.increment(1);
        stats.downstream_cx_active.increment(1.0);
        if conn.info.tls_version.is_some() {
            stats.downstream_cx_ssl_total.increment(1);
        }
        Self(Arc::clone(conn))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.http.stats.downstream_cx_active.decrement(1.0);
        self.0.http.stats.downstream_cx_destroy.increment(1);
    }
}

async fn serve_http1<I>(io: Downstream<I>, conn: &Arc<Conn>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = &conn.http.config;
    let head = head_bytes(config);
    let mut builder = http1::Builder::new();
    builder.max_header_size(head).max_buf_size(head.max(MIN_BUFFER_BYTES)).header_read_timeout(None);
    if config.max_headers_count != HYPER_HEADERS {
        // hyper then allocates; its default costs nothing.
        builder.max_headers(config.max_headers_count as usize);
    }
    let service = service_fn(|request| call(request, conn));
    let served = builder.serve_connection(TokioIo::new(io), service).with_upgrades();
    if let Some(Err(error)) = drive(conn, pin!(served), |served| served.graceful_shutdown()).await {
        protocol_error(conn, &error);
    }
}

async fn serve_http2<I>(mut io: Downstream<I>, conn: &Arc<Conn>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = &conn.http.config;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .max_concurrent_streams(config.max_concurrent_streams)
        .max_header_list_size(u32::try_from(head_bytes(config)).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS);
    io.frames = Some(Box::new(Frames::new()));
    let shared = Arc::clone(conn);
    let service = service_fn(move |request| call(request, &shared));
    let served = builder.serve_connection(TokioIo::new(io), service);
    if let Some(Err(error)) = drive(conn, pin!(served), |served| served.graceful_shutdown()).await {
        protocol_error(conn, &error);
    }
}

/// Hands a request to the stack.
fn call(
    request: Request<Incoming>,
    conn: &Arc<Conn>,
) -> impl Future<Output = Result<http::Response<Body>, std::convert::Infallible>> + Send + use<> {
    let mut exchange = Exchange::new(request.map(Body::incoming), Arc::clone(conn));
    let body = std::mem::take(exchange.request.body_mut());
    *exchange.request.body_mut() = upload::watch(body, &exchange.cx);
    stack(Attempt).call(exchange)
}

/// Drives a connection to its end, or to none when it is cut. `close` begins the graceful end.
async fn drive<C: Future>(conn: &Conn, mut served: Pin<&mut C>, close: impl Fn(Pin<&mut C>)) -> Option<C::Output> {
    let mut watched = Watched::new(conn.life.watch(&conn.http.config, &conn.http.stats, &conn.drain));
    let mut closing = false;
    let mut half_a_head = false;
    poll_fn(|task| {
        loop {
            if let Poll::Ready(output) = served.as_mut().poll(task) {
                return Poll::Ready(Some(output));
            }
            let half = conn.life.has_half_a_head();
            if half != half_a_head || conn.life.has_untimed_head() {
                half_a_head = half;
                conn.life.look_again();
            }
            watched.poll(task);
            match conn.life.phase() {
                Phase::Cut => return Poll::Ready(None),
                Phase::Closing if !closing => {
                    closing = true;
                    close(served.as_mut());
                }
                _ => return Poll::Pending,
            }
        }
    })
    .await
}

/// Runs `work` unless the connection must end before it is done.
async fn with_end<F: Future>(conn: &Conn, work: F) -> Option<F::Output> {
    let ended = async {
        let watch = conn.life.watch(&conn.http.config, &conn.http.stats, &conn.drain);
        let mut watch = pin!(watch);
        poll_fn(|task| {
            // Nothing is in flight yet, so that a graceful end is an end.
            let cut = watch.as_mut().poll(task).is_ready();
            if cut || conn.life.phase() != Phase::Open { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    };
    tokio::select! {
        done = work => Some(done),
        () = ended => None,
    }
}

/// A side future that is polled only when it was woken, not each time the connection is.
struct Watched<F> {
    future: Pin<Box<F>>,
    waker: Waker,
    bell: Arc<Bell>,
}

struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Relaxed);
        self.task.wake();
    }
}

impl<F: Future> Watched<F> {
    fn new(future: F) -> Self {
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { future: Box::pin(future), waker: Waker::from(Arc::clone(&bell)), bell }
    }

    fn poll(&mut self, task: &Task<'_>) {
        self.bell.task.register(task.waker());
        if self.bell.rung.swap(false, Relaxed) {
            // It tells by the connection's phase, not by its end.
            let _pending = self.future.as_mut().poll(&mut Task::from_waker(&self.waker));
        }
    }
}

/// Notes what hyper refused by itself; it has answered 400 or 431 where there was something to answer.
fn protocol_error(conn: &Conn, error: &hyper::Error) {
    let h2 = std::error::Error::source(error).and_then(|e| e.downcast_ref::<h2::Error>());
    if h2.is_some_and(|h2| !h2.is_io() && !h2.is_remote()) {
        conn.http.stats.downstream_cx_protocol_error.increment(1);
    }
    if !error.is_parse() {
        return;
    }
    conn.http.stats.downstream_cx_protocol_error.increment(1);
    if let Some(mut entry) = conn.http.loggers.begin(&conn.info.connection, Instant::now()) {
        entry.flags = Flags::of(Flag::DownstreamProtocolError);
        entry.details =
            Some(if error.is_parse_too_large() { "http1.headers_too_large" } else { "http1.codec_error" }.into());
        entry.status = Some(if error.is_parse_too_large() {
            http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        } else {
            http::StatusCode::BAD_REQUEST
        });
    }
}

fn head_bytes(config: &HttpConnectionManager) -> usize {
    config.max_request_headers_kb as usize * 1024
}

/// Reads as much as tells the version, and puts it back.
async fn sniff<I: AsyncRead + Unpin>(io: &mut Downstream<I>) -> io::Result<bool> {
    let mut seen = Vec::with_capacity(PREFACE.len());
    let http2 = loop {
        let missing = (PREFACE.len() - seen.len()) as u64;
        if io.take(missing).read_buf(&mut seen).await? == 0 {
            break false;
        }
        // A preface that stops half way is half a head.
        io.life.look_again();
        if !PREFACE.starts_with(&seen) {
            break false;
        }
        if seen.len() == PREFACE.len() {
            break true;
        }
    };
    io.prefix = Bytes::from(seen);
    Ok(http2)
}

/// The client's side: what was read to tell the version comes again, and each read is noted.
struct Downstream<I> {
    inner: I,
    prefix: Bytes,
    life: Arc<Life>,
    /// For HTTP/2 only.
    frames: Option<Box<Frames>>,
}

impl<I> Downstream<I> {
    /// Notes bytes from the client.
    fn see(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.life.bytes_read();
        let life = &self.life;
        match &mut self.frames {
            Some(frames) => frames.read(bytes, || life.age()).map_err(io::Error::other),
            None => Ok(()),
        }
    }

    /// Notes bytes to the client.
    fn wrote(&mut self, polled: &Poll<io::Result<usize>>) {
        if let (Some(frames), Poll::Ready(Ok(bytes))) = (&mut self.frames, polled) {
            frames.wrote(*bytes);
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Downstream<I> {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Task<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let some = self.prefix.len().min(buf.remaining());
            let again = self.prefix.split_to(some);
            buf.put_slice(&again);
            return Poll::Ready(self.see(&again));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(task, buf))?;
        let new = &buf.filled()[before..];
        Poll::Ready(if new.is_empty() { Ok(()) } else { self.see(new) })
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Downstream<I> {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Task<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(task, buf);
        self.wrote(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(task, bufs);
        self.wrote(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(task)
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// hyper's own limit of header lines, for which it needs no allocation.
const HYPER_HEADERS: u32 = 100;
/// hyper refuses a smaller one.
const MIN_BUFFER_BYTES: usize = 8 << 10;
/// What one stream may have in flight towards us before we have read it.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// The same for all streams of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// What one stream may have waiting towards the client.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// Streams reset by the client before they were looked at (rapid reset): more end the connection.
const MAX_PENDING_RESETS: usize = 20;
/// Streams that the client made us reset: more end the connection.
const MAX_LOCAL_RESETS: usize = 128;
