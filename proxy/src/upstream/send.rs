//! One attempt: takes a connection, sends the request, checks the answer's head, and hands the answer's body over with
//! everything that must live as long as it.
//!
//! A request that was given to a pooled connection and provably not written goes to another connection, without the
//! caller's knowledge. Whatever may have been written is the caller's decision.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{
    cluster::{Cluster, Version},
    connect::{Facts, MAX_FIELDS},
    endpoint::Endpoint,
    error::UpstreamError,
    h2::Stream,
    io::Flags,
    lease::Lease,
    limits::RequestPermit,
    pool::{H1, Slot},
    shape::{fault_http1, shape_http1, shape_http2},
    upgrade::Upgrade,
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
    /// When the sending began.
    pub started: Instant,
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
            let (mut conn, connected_in) = match self.checkout_http1(slot, lease.endpoint()).await {
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

    async fn send_http2(
        &self,
        slot: &Slot,
        mut request: Request<Body>,
        mut lease: Lease,
    ) -> Result<Answer, UpstreamError> {
        loop {
            let (mut stream, connected_in) = match self.checkout_http2(slot, lease.endpoint()).await {
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
                    stream.answered();
                    return answer_http2(response, stream, lease, reused, connected_in);
                }
                Err(mut e) => {
                    let unsent = e.take_message();
                    let mut error = UpstreamError::of(&e.into_error(), unsent.is_none(), reused);
                    if error.kind.is_refused() {
                        error.sent = false;
                    }
                    if unsent.is_some() {
                        // It was told to go away, or is gone.
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
        let (facts, started) = (self.facts.clone(), self.lease.as_ref().map_or_else(Instant::now, |l| l.started));
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgrade = Upgrade { on: hyper::upgrade::on(&mut response), conn: self };
            let response = response.map(|_| Body::empty());
            return Ok(Answer { response, reused, connected_in, started, upgrade: Some(upgrade), facts });
        }
        let response = response.map(|incoming| {
            let mut body = Body::incoming(incoming);
            body.guard(self);
            body
        });
        Ok(Answer { response, reused, connected_in, started, upgrade: None, facts })
    }
}

impl Guard for H1 {
    fn end(mut self: Box<Self>, end: End<'_>, _bytes: u64) {
        let Some(mut lease) = self.lease.take() else { return };
        let now = Instant::now();
        lease.settle(end, now);
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
        let slot = cluster.slot(lease.endpoint(), self.key.worker());
        slot.put(self, now, cluster.spec().idle_timeout, &cluster.stats);
    }
}

impl Drop for H1 {
    fn drop(&mut self) {
        if self.lease.is_some() {
            self.flags.abort();
        }
    }
}

/// A request's place on an HTTP/2 connection, as its answer's guard.
struct Held {
    _stream: Stream,
    lease: Lease,
}

impl Guard for Held {
    fn end(mut self: Box<Self>, end: End<'_>, _bytes: u64) {
        self.lease.settle(end, Instant::now());
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
    let (facts, started) = (stream.conn.facts.clone(), lease.started);
    let response = response.map(|incoming| {
        let mut body = Body::incoming(incoming);
        body.guard(Box::new(Held { _stream: stream, lease }));
        body
    });
    Ok(Answer { response, reused, connected_in, started, upgrade: None, facts })
}
