//! One attempt: takes a connection, sends the request, checks the answer's head, and hands the answer's body over with
//! everything that must live as long as it.
//!
//! A request that was given to a pooled connection and provably not written goes to another connection, without the
//! caller's knowledge. Whatever may have been written is the caller's decision.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Request, Response, StatusCode, Uri, header, uri::Scheme};
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    cluster::{Cluster, TlsGeneration, Version},
    connect::{self, Facts, MAX_FIELDS},
    endpoint::{Endpoint, Load},
    error::{ErrorKind, UpstreamError},
    h2::{H2, Stream},
    io::Flags,
    limits::{ConnectionPermit, PendingPermit, RequestPermit},
    pool::{H1, Slot},
    stats::millis,
};
use crate::{
    body::{Body, End, Guard},
    tls::PeerIdentity,
};

/// How to send.
#[derive(Clone, Copy, Debug)]
pub struct SendOptions {
    /// HTTP version; see [`Cluster::version`].
    pub version: Version,
    /// Number of the calling worker.
    pub worker: usize,
    /// The request asks for an upgrade and may have it: 101 is a valid answer. HTTP/1 only.
    pub upgrade: bool,
}

/// An answer. The body cuts the message if it fails or is dropped early; its end gives back permit and connection.
#[derive(Debug)]
pub struct Answer {
    /// Head and body. `trailers` come through the body.
    pub response: Response<Body>,
    /// The connection had served other requests before.
    pub reused: bool,
    /// Time that opening a connection took; None when one was there.
    pub connected_in: Option<Duration>,
    /// With status 101: the raw connection.
    pub upgrade: Option<Upgrade>,
    facts: Arc<Facts>,
}

impl Answer {
    /// Our address on the connection.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.facts.local
    }

    /// Who answered, if the cluster verifies.
    #[must_use]
    pub fn peer(&self) -> Option<&Arc<PeerIdentity>> {
        self.facts.handshake.as_ref().and_then(|h| h.peer.as_ref())
    }
}

/// What one request holds of its cluster. Everything is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    cluster: Arc<Cluster>,
    load: Load,
    started: Instant,
    /// A connection was found for it.
    attached: bool,
    settled: bool,
    _permit: RequestPermit,
}

impl Lease {
    fn new(cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>, permit: RequestPermit) -> Self {
        let (cluster, load) = (cluster.clone(), endpoint.enter());
        Self { cluster, load, started: Instant::now(), attached: false, settled: false, _permit: permit }
    }

    /// Counts the request, once: from here on it is on a connection.
    fn attach(&mut self) {
        if !std::mem::replace(&mut self.attached, true) {
            self.cluster.stats.upstream_rq_total.increment(1);
            self.cluster.stats.upstream_rq_active.increment(1.0);
        }
    }

    /// Counts how the stream ended.
    fn settle(&mut self, end: End<'_>) {
        self.settled = true;
        let stats = &self.cluster.stats;
        match end {
            End::Complete => stats.upstream_rq_time.record(millis(self.started.elapsed())),
            End::Failed(_) => stats.upstream_rq_rx_reset.increment(1),
            End::Dropped => stats.upstream_rq_tx_reset.increment(1),
        }
    }

    /// Counts an attempt without answer.
    fn fail(&mut self, kind: &ErrorKind) {
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

impl Cluster {
    /// Sends one request to `endpoint`. `permit` is held until the answer's body has ended.
    ///
    /// The request names its host by `Host` or by an absolute URI; both are put in the form that the version wants.
    /// Connection-specific fields must have been removed. There is no time limit but the one on connecting. Dropping the
    /// future cancels the request: an HTTP/1 connection is closed, an HTTP/2 stream reset.
    ///
    /// Counts `upstream_rq_*` including the answer's status code.
    ///
    /// # Errors
    /// [`UpstreamError`]. Refused as protocol errors: an unasked 101, more than 8 interim answers, heads above 64 KiB or
    /// 100 fields, ambiguous lengths.
    pub async fn send(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        mut request: Request<Body>,
        permit: RequestPermit,
        options: SendOptions,
    ) -> Result<Answer, UpstreamError> {
        let mut lease = Lease::new(self, endpoint, permit);
        let slot = self.slot(endpoint, options.worker);
        let shaped = match options.version {
            Version::Http1 => shape_http1(&mut request),
            Version::Http2 => shape_http2(&mut request, self.spec().tls.is_some()),
        };
        if let Err(e) = shaped {
            lease.fail(&e.kind);
            return Err(e);
        }
        let answer = match options.version {
            Version::Http1 => self.send_http1(slot, request, lease, options.upgrade).await,
            Version::Http2 => self.send_http2(slot, request, lease).await,
        };
        answer.inspect(|a| self.stats.charge_code(a.response.status()))
    }

    async fn send_http1(
        &self,
        slot: &Slot,
        mut request: Request<Body>,
        mut lease: Lease,
        upgrade: bool,
    ) -> Result<Answer, UpstreamError> {
        loop {
            let (mut conn, connected_in) = match self.checkout_http1(slot, lease.load.endpoint()).await {
                Ok(found) => found,
                Err(e) => {
                    lease.fail(&e.kind);
                    return Err(e);
                }
            };
            let (reused, written) = (conn.uses > 0, conn.flags.written());
            conn.uses += 1;
            lease.attach();
            conn.lease = Some(lease);
            watch_request(&mut request, &conn.flags);
            match conn.sender.try_send_request(request).await {
                Ok(response) => return conn.answer(response, upgrade, reused, connected_in),
                Err(mut e) => {
                    let sent = conn.flags.written() > written;
                    let unsent = e.take_message().filter(|_| reused && !sent);
                    let (error, mut back) = (e.into_error(), conn.take_lease());
                    match unsent {
                        Some(again) => request = again,
                        None => {
                            let error = conn.failure(&error, sent, reused);
                            back.fail(&error.kind);
                            return Err(error);
                        }
                    }
                    lease = back;
                }
            }
        }
    }

    async fn checkout_http1(
        &self,
        slot: &Slot,
        endpoint: &Endpoint,
    ) -> Result<(Box<H1>, Option<Duration>), UpstreamError> {
        let number = self.tls_number();
        match slot.take(number) {
            Some(conn) => Ok((conn, None)),
            // In a box of its own, so that requests that find a connection don't carry its size.
            None => Box::pin(self.open_http1(slot, endpoint, number)).await,
        }
    }

    async fn open_http1(
        &self,
        slot: &Slot,
        endpoint: &Endpoint,
        number: u64,
    ) -> Result<(Box<H1>, Option<Duration>), UpstreamError> {
        let since = Instant::now();
        let pending = Pending::enter(self)?;
        match self.wait_for_connection(slot, || slot.take(number)).await? {
            Found::Idle(conn) => Ok((conn, None)),
            Found::Permit(permit) => {
                let tls = self.tls_or_refuse()?;
                let key = slot.key(tls.as_ref().map_or(0, |t| t.number));
                let gate = Some(slot.gate().clone());
                let dialled = connect::dial(self, endpoint.address(), tls.as_deref(), permit, gate).await?;
                drop(pending);
                let (sender, flags) = connect::http1(self, dialled.socket).await?;
                Ok((H1::new(sender, flags, dialled.facts, key), Some(since.elapsed())))
            }
        }
    }

    async fn send_http2(
        &self,
        slot: &Slot,
        mut request: Request<Body>,
        mut lease: Lease,
    ) -> Result<Answer, UpstreamError> {
        loop {
            let (stream, connected_in) = match self.checkout_http2(slot, lease.load.endpoint()).await {
                Ok(found) => found,
                Err(e) => {
                    lease.fail(&e.kind);
                    return Err(e);
                }
            };
            let reused = !stream.first;
            lease.attach();
            let sent = stream.sender().try_send_request(request).await;
            match sent {
                Ok(response) => {
                    stream.conn.answered();
                    return answer_http2(response, stream, lease, reused, connected_in);
                }
                Err(mut e) => {
                    let unsent = e.take_message();
                    let mut error = UpstreamError::of(&e.into_error(), unsent.is_none(), reused);
                    if error.kind.is_refused() {
                        error.sent = false;
                    }
                    if !error.sent {
                        stream.conn.drain();
                    }
                    match unsent.filter(|_| reused) {
                        Some(again) => request = again,
                        None => {
                            lease.fail(&error.kind);
                            return Err(error);
                        }
                    }
                }
            }
        }
    }

    async fn checkout_http2(
        &self,
        slot: &Slot,
        endpoint: &Endpoint,
    ) -> Result<(Stream, Option<Duration>), UpstreamError> {
        let number = self.tls_number();
        match slot.multiplexed().take(number, slot.gate()) {
            Some(stream) => Ok((stream, None)),
            None => Box::pin(self.open_http2(slot, endpoint, number)).await,
        }
    }

    async fn open_http2(
        &self,
        slot: &Slot,
        endpoint: &Endpoint,
        number: u64,
    ) -> Result<(Stream, Option<Duration>), UpstreamError> {
        let (multiplexed, gate) = (slot.multiplexed(), slot.gate());
        let since = Instant::now();
        let pending = Pending::enter(self)?;
        let mut dialling = multiplexed.dialling.lock().await;
        if let Some((_, kind)) = dialling.as_ref().filter(|(when, _)| *when >= since) {
            return Err(UpstreamError::unsent(kind.clone()));
        }
        match self.wait_for_connection(slot, || multiplexed.take(number, gate)).await? {
            Found::Idle(stream) => Ok((stream, None)),
            Found::Permit(permit) => {
                let stream = self.dial_http2(slot, endpoint, permit).await.inspect_err(|e| {
                    *dialling = Some((Instant::now(), e.kind.clone()));
                })?;
                drop(pending);
                Ok((stream, Some(since.elapsed())))
            }
        }
    }

    async fn dial_http2(
        &self,
        slot: &Slot,
        endpoint: &Endpoint,
        permit: ConnectionPermit,
    ) -> Result<Stream, UpstreamError> {
        let tls = self.tls_or_refuse()?;
        let gate = slot.gate();
        let dialled = connect::dial(self, endpoint.address(), tls.as_deref(), permit, Some(gate.clone())).await?;
        let max_streams = Arc::new(AtomicUsize::new(1));
        let told = max_streams.clone();
        let (sender, flags) = connect::http2(self, dialled.socket, move |max| told.store(max, Relaxed)).await?;
        let number = tls.as_ref().map_or(0, |t| t.number);
        let limit = self.spec().max_requests_per_connection;
        let conn = H2::new(sender, flags, dialled.facts, number, max_streams, limit);
        let stream = conn.enter(gate).ok_or_else(|| UpstreamError::unsent(ErrorKind::Refused))?;
        // Secrets may have changed meanwhile: this request was admitted before, the next ones go elsewhere.
        if number == self.tls_number() {
            slot.multiplexed().add(conn);
            slot.sweep(self.spec().idle_timeout, &self.stats);
        }
        Ok(stream)
    }

    fn tls_or_refuse(&self) -> Result<Option<Arc<TlsGeneration>>, UpstreamError> {
        self.tls().map_err(|why| UpstreamError::unsent(ErrorKind::Tls(why.to_owned())))
    }

    /// Waits until `take` finds something or another connection may be opened.
    async fn wait_for_connection<T>(
        &self,
        slot: &Slot,
        mut take: impl FnMut() -> Option<T>,
    ) -> Result<Found<T>, UpstreamError> {
        let mut waited = false;
        loop {
            // Listening begins before the look, so that nothing freed in between is missed.
            let mut near = pin!(slot.gate().freed.notified());
            let mut far = pin!(self.freed.notified());
            near.as_mut().enable();
            far.as_mut().enable();
            if let Some(found) = take() {
                return Ok(Found::Idle(found));
            }
            let none_open = slot.gate().open.load(Relaxed) == 0;
            if let Ok(permit) = self.breakers.connection(none_open) {
                return Ok(Found::Permit(permit));
            }
            if !std::mem::replace(&mut waited, true) {
                self.stats.upstream_cx_overflow.increment(1);
            }
            tokio::select! {
                () = near => {}
                () = far => {}
            }
        }
    }
}

enum Found<T> {
    Idle(T),
    Permit(ConnectionPermit),
}

/// A request that waits for a connection.
struct Pending<'a> {
    cluster: &'a Cluster,
    _permit: PendingPermit,
}

impl<'a> Pending<'a> {
    fn enter(cluster: &'a Cluster) -> Result<Self, UpstreamError> {
        let stats = &cluster.stats;
        let permit = cluster.breakers.pending().map_err(|o| {
            stats.upstream_rq_pending_overflow.increment(1);
            UpstreamError::unsent(ErrorKind::Overflow(o))
        })?;
        stats.upstream_rq_pending_total.increment(1);
        stats.upstream_rq_pending_active.increment(1.0);
        Ok(Self { cluster, _permit: permit })
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.cluster.stats.upstream_rq_pending_active.decrement(1.0);
    }
}

/// Tells the connection's flags when the request's body has been read, and of interim answers.
fn watch_request(request: &mut Request<Body>, flags: &Arc<Flags>) {
    struct Done(Arc<Flags>);
    impl Guard for Done {
        fn end(self: Box<Self>, end: End<'_>, _: u64) {
            if matches!(end, End::Complete) {
                self.0.set_request_done();
            }
        }
    }
    let empty = request.body().is_end();
    flags.begin(empty);
    if !empty {
        request.body_mut().guard(Box::new(Done(flags.clone())));
    }
    let seen = flags.clone();
    hyper::ext::on_informational(request, move |_| seen.interim());
}

impl H1 {
    fn take_lease(&mut self) -> Lease {
        self.lease.take().expect("a connection that serves a request holds its lease")
    }

    fn failure(&self, error: &hyper::Error, sent: bool, reused: bool) -> UpstreamError {
        if self.flags.too_many_interim() {
            return UpstreamError::protocol("too many interim answers", reused);
        }
        UpstreamError::of(error, sent, reused)
    }

    fn answer(
        mut self: Box<Self>,
        mut response: Response<Incoming>,
        upgrade: bool,
        reused: bool,
        connected_in: Option<Duration>,
    ) -> Result<Answer, UpstreamError> {
        if let Some(why) = fault_http1(&response, upgrade, &self.flags) {
            self.flags.abort();
            let error = UpstreamError::protocol(why, reused);
            self.take_lease().fail(&error.kind);
            return Err(error);
        }
        let facts = self.facts.clone();
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgrade = Upgrade { on: hyper::upgrade::on(&mut response), conn: self };
            let response = response.map(|_| Body::empty());
            return Ok(Answer { response, reused, connected_in, upgrade: Some(upgrade), facts });
        }
        let response = response.map(|incoming| {
            let mut body = Body::incoming(incoming);
            body.guard(self);
            body
        });
        Ok(Answer { response, reused, connected_in, upgrade: None, facts })
    }
}

impl Guard for H1 {
    fn end(mut self: Box<Self>, end: End<'_>, _bytes: u64) {
        let Some(mut lease) = self.lease.take() else { return };
        lease.settle(end);
        // A server may answer before it has read the request. hyper then neither ends nor frees the connection
        // (hyper#4176), so it is cut.
        if !matches!(end, End::Complete) || !self.flags.request_done() {
            return self.flags.abort();
        }
        self.flags.finish();
        let cluster = &lease.cluster;
        if cluster.spec().max_requests_per_connection.is_some_and(|max| self.uses >= max) {
            return cluster.stats.upstream_cx_max_requests.increment(1);
        }
        let slot = cluster.slot(lease.load.endpoint(), self.key.worker());
        slot.put(self, cluster.spec().idle_timeout, &cluster.stats);
    }
}

impl Drop for H1 {
    fn drop(&mut self) {
        if self.lease.is_some() {
            self.flags.abort();
        }
    }
}

/// What is wrong with the head of an answer, if anything.
fn fault_http1(response: &Response<Incoming>, upgrade: bool, flags: &Flags) -> Option<&'static str> {
    if flags.too_many_interim() {
        return Some("too many interim answers");
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !upgrade {
        return Some("status 101 that nobody asked for");
    }
    let headers = response.headers();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (Some(_), Some(_)) => Some("both Content-Length and Transfer-Encoding"),
        (Some(coding), None) if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            Some("a transfer coding other than chunked")
        }
        (Some(_), None) if codings.next().is_some() => Some("several Transfer-Encoding fields"),
        (None, Some(_)) if lengths.next().is_some() => Some("several Content-Length fields"),
        _ => None,
    }
}

/// A request's place on an HTTP/2 connection, as its answer's guard.
struct Held {
    stream: Stream,
    lease: Lease,
}

impl Guard for Held {
    fn end(mut self: Box<Self>, end: End<'_>, _bytes: u64) {
        self.lease.settle(end);
    }
}

fn answer_http2(
    response: Response<Incoming>,
    stream: Stream,
    mut lease: Lease,
    reused: bool,
    connected_in: Option<Duration>,
) -> Result<Answer, UpstreamError> {
    if response.headers().len() > MAX_FIELDS {
        let error = UpstreamError::protocol("more than 100 header fields", reused);
        lease.fail(&error.kind);
        return Err(error);
    }
    let facts = stream.conn.facts.clone();
    let response = response.map(|incoming| {
        let mut body = Body::incoming(incoming);
        body.guard(Box::new(Held { stream, lease }));
        body
    });
    Ok(Answer { response, reused, connected_in, upgrade: None, facts })
}

fn shape_http1(request: &mut Request<Body>) -> Result<(), UpstreamError> {
    *request.version_mut() = http::Version::HTTP_11;
    let Some(authority) = request.uri().authority() else { return Ok(()) };
    if !request.headers().contains_key(header::HOST) {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| no_host())?;
        request.headers_mut().insert(header::HOST, host);
    }
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    Ok(())
}

fn shape_http2(request: &mut Request<Body>, tls: bool) -> Result<(), UpstreamError> {
    *request.version_mut() = http::Version::HTTP_2;
    let host = request.headers_mut().remove(header::HOST);
    if request.uri().authority().is_some() && request.uri().scheme().is_some() {
        return Ok(());
    }
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    if parts.authority.is_none() {
        let host = host.ok_or_else(no_host)?;
        parts.authority = Some(host.as_bytes().try_into().map_err(|_| no_host())?);
    }
    parts.scheme.get_or_insert(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    parts.path_and_query.get_or_insert_with(|| http::uri::PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| no_host())?;
    Ok(())
}

fn no_host() -> UpstreamError {
    UpstreamError::unsent(ErrorKind::RequestBody("the request names no valid host".to_owned()))
}

/// The raw connection behind a 101. Dropping it closes the connection.
pub struct Upgrade {
    on: OnUpgrade,
    conn: Box<H1>,
}

impl Upgrade {
    /// The stream that follows the head.
    ///
    /// # Errors
    /// When the connection broke meanwhile.
    pub async fn into_io(self) -> Result<UpgradedIo, UpstreamError> {
        let io = self.on.await.map_err(|e| UpstreamError::of(&e, true, false))?;
        Ok(UpgradedIo { io: TokioIo::new(io), conn: self.conn })
    }
}

impl std::fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upgrade").finish_non_exhaustive()
    }
}

/// An upgraded stream. Counts as a request and a connection until it is dropped.
pub struct UpgradedIo {
    io: TokioIo<Upgraded>,
    conn: Box<H1>,
}

impl Drop for UpgradedIo {
    fn drop(&mut self) {
        if let Some(lease) = &mut self.conn.lease {
            lease.settle(End::Complete);
        }
    }
}

impl std::fmt::Debug for UpgradedIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpgradedIo").finish_non_exhaustive()
    }
}

impl AsyncRead for UpgradedIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for UpgradedIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
