//! The innermost service: one try. Takes a place among the cluster's requests, picks an endpoint, sends, and gives back
//! the answer's head with a body that streams.

use std::{
    borrow::Cow,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use smallvec::SmallVec;
use tokio::time::Instant;
use tower::Service;

use super::{
    exchange::{Context, Exchange},
    step::Outcome,
};
use crate::{
    body::Body,
    error::{Reason, Refusal, WHY},
    upstream::{Cluster, Endpoint, ErrorKind, NoEndpoint, PickContext, SendOptions, UpstreamError, Version},
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt;

impl Service<Exchange> for Attempt {
    type Response = Response<Body>;
    type Error = Refusal;
    type Future = Pin<Box<dyn Future<Output = Outcome> + Send>>;

    fn poll_ready(&mut self, _: &mut Task<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, exchange: Exchange) -> Self::Future {
        // One box per try keeps the futures of all layers around it small.
        Box::pin(attempt(exchange))
    }
}

async fn attempt(exchange: Exchange) -> Outcome {
    let Exchange { mut request, cx, .. } = exchange;
    let Some(cluster) = cx.cluster.get() else { return Err(Reason::ClusterNotFound.into()) };
    let permit = cluster.admit_request().map_err(|_| our_fault(cluster, Reason::Overflow))?;
    let endpoint = pick(&cx, cluster).map_err(|none| our_fault(cluster, of_no_endpoint(none)))?;
    let options = options(&cx, cluster);
    shape(&mut request, &cx, options.version);
    let answer = cluster.send(&endpoint, request, permit, options).await.map_err(|e| of_error(&cx, cluster, e))?;
    let now = Instant::now();
    cx.log(|entry| {
        entry.response_began(now);
        entry.upstream_local = answer.local_addr();
    });
    let mut response = answer.response;
    // The upstream's version is its own business: an HTTP/1.0 server must not end our client's connection.
    *response.version_mut() = http::Version::HTTP_11;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        *cx.tunnel.lock() = answer.upgrade;
        response.headers_mut().remove(&WHY);
    } else {
        remove_hop_by_hop(response.headers_mut());
    }
    let took = u64::try_from((now - answer.started).as_millis()).unwrap_or(u64::MAX);
    response.headers_mut().insert(SERVICE_TIME, number(took));
    Ok(response)
}

fn options(cx: &Context, cluster: &Cluster) -> SendOptions {
    let upgrade = cx.websocket.get().is_some();
    // A WebSocket needs a connection of its own.
    let version = if upgrade { Version::Http1 } else { cluster.version(cx.is_http2()) };
    SendOptions { version, worker: cx.conn.info.worker, upgrade }
}

/// Picks an endpoint and notes it. Endpoints tried before are avoided as the retry policy says.
fn pick(cx: &Context, cluster: &Arc<Cluster>) -> Result<Arc<Endpoint>, NoEndpoint> {
    let mut notes = cx.notes.lock();
    let more_picks = match cx.matched.get().and_then(|m| m.retry()) {
        Some(policy) if policy.avoid_previous_hosts => policy.host_selection_attempts,
        _ => 0,
    };
    let original_dst = cx.conn.info.original_destination;
    let endpoint = cluster.pick(&PickContext { original_dst, previous: &notes.tried, more_picks })?;
    notes.attempts += 1;
    let attempts = notes.attempts;
    notes.tried.push(Arc::clone(&endpoint));
    if let Some(entry) = &mut notes.entry {
        entry.attempts = attempts;
        entry.upstream_host = Some(endpoint.address());
    }
    Ok(endpoint)
}

/// What only this try's request carries.
fn shape(request: &mut Request<Body>, cx: &Context, version: Version) {
    if cx.matched.get().is_some_and(|m| m.host().include_attempt_count) {
        let attempts = cx.notes.lock().attempts;
        request.headers_mut().insert(ATTEMPT_COUNT, HeaderValue::from(attempts));
    }
    if cx.websocket.get().is_some() {
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    // hyper takes a GET or HEAD of unknown length as one without body, unless told.
    let bodiless = matches!(*request.method(), Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS);
    if version == Version::Http1
        && bodiless
        && !request.body().is_end_stream()
        && !request.headers().contains_key(header::CONTENT_LENGTH)
    {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

fn of_no_endpoint(none: NoEndpoint) -> Reason {
    match none {
        NoEndpoint::NoneHealthy | NoEndpoint::NoOriginalDestination => Reason::NoHealthyUpstream,
        NoEndpoint::Dropped => Reason::DroppedOverload,
        NoEndpoint::Loop => Reason::Loop,
    }
}

/// A refusal in place of an answer, charged to the cluster.
fn our_fault(cluster: &Cluster, reason: Reason) -> Refusal {
    let refusal = Refusal::from(reason);
    cluster.stats().charge_code(refusal.status());
    refusal
}

fn of_error(cx: &Context, cluster: &Cluster, error: UpstreamError) -> Refusal {
    let reason = match &error.kind {
        ErrorKind::Connect(_) => Reason::ConnectFailed,
        ErrorKind::ConnectTimeout(_) => Reason::ConnectTimeout,
        ErrorKind::Tls(_) => Reason::TlsFailed,
        ErrorKind::Overflow(_) => Reason::Overflow,
        ErrorKind::Closed(_) => Reason::UpstreamClosed,
        ErrorKind::Reset(_) => Reason::UpstreamReset,
        ErrorKind::Refused => Reason::UpstreamRefusedStream,
        ErrorKind::Protocol(_) => Reason::UpstreamProtocol,
        ErrorKind::RequestBody(_) => Reason::BodyFailed,
    };
    let words = match &error.kind {
        ErrorKind::Connect(words) | ErrorKind::Tls(words) => Some(words.clone()),
        _ => None,
    };
    let details = words.as_deref().and_then(|words| {
        let base = reason.row().details.strip_suffix('}')?;
        Some(Cow::Owned(format!("{base}|{words}}}")))
    });
    if let Some(words) = words {
        cx.log(|entry| entry.upstream_failure = Some(Cow::Owned(words)));
    }
    Refusal { sent: error.sent, details, ..our_fault(cluster, reason) }
}

/// Removes what concerns the upstream's connection only, and what only this proxy says.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let own = |name: &HeaderName| match *name {
        header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE => true,
        _ => *name == KEEP_ALIVE || *name == PROXY_CONNECTION || *name == WHY,
    };
    if !headers.keys().any(own) {
        return;
    }
    let lines: SmallVec<[HeaderValue; 1]> = headers.get_all(header::CONNECTION).iter().cloned().collect();
    for name in lines.iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')) {
        if let Ok(name) = HeaderName::from_bytes(name.trim().as_bytes())
            && !matches!(name, header::CONTENT_LENGTH | header::SET_COOKIE | header::CONTENT_TYPE)
        {
            headers.remove(name);
        }
    }
    // Our own word on why a request was refused is nobody else's to say.
    for name in
        [&header::CONNECTION, &header::TRANSFER_ENCODING, &header::UPGRADE, &KEEP_ALIVE, &PROXY_CONNECTION, &WHY]
    {
        headers.remove(name);
    }
}

/// A header value; small numbers, the common case, cost no allocation.
fn number(n: u64) -> HeaderValue {
    const SMALL: [&str; 16] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15"];
    let small = usize::try_from(n).ok().and_then(|n| SMALL.get(n));
    small.map_or_else(|| HeaderValue::from(n), |text| HeaderValue::from_static(text))
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
