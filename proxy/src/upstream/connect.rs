//! Dials an endpoint: TCP, TLS, HTTP; spawns the task that drives an HTTP connection.
//!
//! The cluster's `connect_timeout` covers TCP and TLS together. Every failure is counted and put in words here.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout},
};

use super::{
    cluster::{Cluster, TlsGeneration},
    endpoint::{Endpoint, Load},
    error::{ErrorKind, UpstreamError},
    io::{Counted, Flags, Gate, Socket, Transport},
    limits::{ConnectionPermit, RequestPermit},
    stats::millis,
};
use crate::{body::Body, config::cluster::TcpKeepalive, tls::Handshake};

/// Largest response head, in bytes.
pub(super) const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Largest read buffer of an HTTP/1 connection, in bytes, whatever the cluster allows. For a client that never reads, up to
/// three times this is held: what was read ahead, what waits between the two connections, and what waits to be written.
const MAX_READ_BYTES: usize = 128 * 1024;
/// Smallest one: it holds a head and what is read with it.
const MIN_READ_BYTES: usize = MAX_HEAD_BYTES + 8 * 1024;
/// Most fields in a response head. hyper's own limit for HTTP/1 is the same.
pub(super) const MAX_FIELDS: usize = 100;

/// An open socket with what was learnt on the way.
pub(super) struct Dialled {
    pub(super) socket: Socket,
    pub(super) facts: Arc<Facts>,
}

/// What is known of a connection; the same for all its requests.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) local: Option<SocketAddr>,
    pub(super) handshake: Option<Handshake>,
}

/// Opens a connection within `connect_timeout`.
pub(super) async fn dial(
    cluster: &Cluster,
    address: SocketAddr,
    tls: Option<&TlsGeneration>,
    permit: ConnectionPermit,
    gate: Option<Arc<Gate>>,
) -> Result<Dialled, UpstreamError> {
    let stats = &cluster.stats;
    stats.upstream_cx_total.increment(1);
    stats.upstream_cx_active.increment(1.0);
    if let Some(gate) = &gate {
        gate.open.fetch_add(1, Relaxed);
    }
    let counted = Counted {
        flags: Flags::new(),
        stats: stats.clone(),
        gate,
        cluster_freed: cluster.freed.clone(),
        opened: Instant::now(),
        permit: Some(permit),
    };
    let limit = cluster.spec().connect_timeout;
    let (transport, handshake) = match timeout(limit, open(cluster, address, tls)).await {
        Ok(Ok(done)) => done,
        Ok(Err(kind)) => {
            stats.upstream_cx_connect_fail.increment(1);
            return Err(UpstreamError::unsent(kind));
        }
        Err(_) => {
            stats.upstream_cx_connect_fail.increment(1);
            stats.upstream_cx_connect_timeout.increment(1);
            return Err(UpstreamError::unsent(ErrorKind::ConnectTimeout(limit)));
        }
    };
    stats.upstream_cx_connect_ms.record(millis(counted.opened.elapsed()));
    let socket = Socket::new(transport, counted);
    let facts = Arc::new(Facts { local: socket.tcp().local_addr().ok(), handshake });
    Ok(Dialled { socket, facts })
}

async fn open(
    cluster: &Cluster,
    address: SocketAddr,
    tls: Option<&TlsGeneration>,
) -> Result<(Transport, Option<Handshake>), ErrorKind> {
    let tcp = tcp_connect(cluster, address).await.map_err(|e| ErrorKind::Connect(refusal(address, &e)))?;
    let Some(generation) = tls else { return Ok((Transport::Plain(tcp), None)) };
    let ssl = cluster.stats.ssl();
    match generation.tls.connect(tcp).await {
        Ok((stream, handshake)) => {
            ssl.done(&handshake);
            Ok((Transport::Tls(Box::new(stream)), Some(handshake)))
        }
        Err(e) => {
            ssl.failed(&e);
            Err(ErrorKind::Tls(e.to_string()))
        }
    }
}

fn refusal(address: SocketAddr, error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::ConnectionRefused => " (nothing listens there)",
        io::ErrorKind::PermissionDenied => " (a firewall or a missing capability forbids it)",
        _ => "",
    };
    format!("{address}: {error}{hint}")
}

async fn tcp_connect(cluster: &Cluster, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    let options = socket2::SockRef::from(&socket);
    if let Some(mark) = cluster.upstreams.socket_mark {
        options.set_mark(mark)?;
    }
    if let Some(keepalive) = &cluster.spec().tcp_keepalive {
        options.set_tcp_keepalive(&keepalive_of(keepalive))?;
    }
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

fn keepalive_of(spec: &TcpKeepalive) -> socket2::TcpKeepalive {
    let mut keepalive = socket2::TcpKeepalive::new();
    if let Some(time) = spec.time {
        keepalive = keepalive.with_time(time);
    }
    if let Some(interval) = spec.interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(probes) = spec.probes {
        keepalive = keepalive.with_retries(probes);
    }
    keepalive
}

/// Speaks HTTP/1.1 on it.
pub(super) async fn http1(
    cluster: &Cluster,
    socket: Socket,
) -> Result<(http1::SendRequest<Body>, Arc<Flags>), UpstreamError> {
    let flags = socket.flags().clone();
    // The number of fields is limited to `MAX_FIELDS` by default.
    let (sender, connection) = http1::Builder::new()
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size((cluster.spec().buffer_limit_bytes as usize).clamp(MIN_READ_BYTES, MAX_READ_BYTES))
        .handshake(TokioIo::new(socket))
        .await
        .map_err(|e| UpstreamError::of(&e, false, false))?;
    cluster.stats.upstream_cx_http1_total.increment(1);
    tokio::spawn(Driver { connection: connection.with_upgrades(), flags: flags.clone(), polled: |_: &_| {} });
    Ok((sender, flags))
}

/// Speaks HTTP/2 on it. `max_streams` is told how many streams the server allows, now and whenever that changes.
pub(super) async fn http2(
    cluster: &Cluster,
    socket: Socket,
    max_streams: impl Fn(usize) + Send + Unpin + 'static,
) -> Result<(http2::SendRequest<Body>, Arc<Flags>), UpstreamError> {
    let flags = socket.flags().clone();
    let window = cluster.spec().buffer_limit_bytes.clamp(64 * 1024, 16 << 20);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    if let Some(keepalive) = cluster.spec().http2_keepalive {
        builder
            .keep_alive_interval(keepalive.interval)
            .keep_alive_timeout(keepalive.timeout)
            .keep_alive_while_idle(true);
    }
    let (sender, connection) = builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(window)
        .initial_connection_window_size(window.saturating_mul(4).min(64 << 20))
        // Streams above a limit that is not known yet would be refused: one opens, the others wait inside for SETTINGS.
        .initial_max_send_streams(1)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .handshake(TokioIo::new(socket))
        .await
        .map_err(|e| UpstreamError::of(&e, false, false))?;
    cluster.stats.upstream_cx_http2_total.increment(1);
    tokio::spawn(Driver {
        connection,
        flags: flags.clone(),
        polled: move |c: &http2::Connection<_, _, _>| max_streams(c.current_max_send_streams()),
    });
    Ok((sender, flags))
}

/// Runs a connection until it ends or its flags say so.
struct Driver<C, F> {
    connection: C,
    flags: Arc<Flags>,
    polled: F,
}

impl<C, F> Future for Driver<C, F>
where
    C: Future<Output = hyper::Result<()>> + Unpin,
    F: Fn(&C) + Unpin,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.flags.poll_abort(cx) {
            self.flags.set_closed();
            return Poll::Ready(());
        }
        let polled = Pin::new(&mut self.connection).poll(cx);
        (self.polled)(&self.connection);
        if let Err(e) = ready!(polled) {
            tracing::debug!(error = %e, "upstream connection ended");
        }
        self.flags.set_closed();
        Poll::Ready(())
    }
}

/// A raw connection to an upstream. Counts as a connection, a request and a load until it is dropped.
#[derive(Debug)]
pub struct UpstreamConn {
    socket: Socket,
    facts: Arc<Facts>,
    cluster: Arc<Cluster>,
    load: Load,
    _permit: RequestPermit,
}

impl UpstreamConn {
    /// Our address.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.facts.local
    }

    /// The TLS handshake, if the cluster speaks TLS.
    #[must_use]
    pub fn handshake(&self) -> Option<&Handshake> {
        self.facts.handshake.as_ref()
    }

    /// The endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        self.load.endpoint()
    }

    /// The socket below TLS; for options and, without TLS, for splicing.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        self.socket.tcp()
    }
}

impl Drop for UpstreamConn {
    fn drop(&mut self) {
        self.socket.flags().finish();
        self.cluster.stats.upstream_rq_active.decrement(1.0);
    }
}

impl AsyncRead for UpstreamConn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for UpstreamConn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// For a TCP proxy.
pub(super) async fn tcp(cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>) -> Result<UpstreamConn, UpstreamError> {
    let stats = &cluster.stats;
    let overflow = |o| UpstreamError::unsent(ErrorKind::Overflow(o));
    let request = cluster.admit_request().map_err(overflow)?;
    let permit = cluster.breakers.connection(false).map_err(|o| {
        stats.upstream_cx_overflow.increment(1);
        overflow(o)
    })?;
    let tls = cluster.tls().map_err(|why| UpstreamError::unsent(ErrorKind::Tls(why.to_owned())))?;
    let load = endpoint.enter();
    let dialled =
        dial(cluster, endpoint.address(), tls.as_deref(), permit, None).await.inspect_err(|_| endpoint.failed())?;
    dialled.socket.flags().begin(true);
    stats.upstream_rq_total.increment(1);
    stats.upstream_rq_active.increment(1.0);
    Ok(UpstreamConn { socket: dialled.socket, facts: dialled.facts, cluster: cluster.clone(), load, _permit: request })
}
