//! Why an upstream could not be used, with what the caller needs to decide about a retry, a status and a log line.

use crate::body;

/// A failed attempt.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct UpstreamError {
    /// What happened.
    pub kind: ErrorKind,
    /// Bytes of this request may have reached the upstream. False: trying again cannot repeat an effect.
    pub sent: bool,
    /// The connection had served other requests before.
    pub reused: bool,
}

/// What happened to an attempt.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ErrorKind {
    /// No TCP connection. Envoy: flag UF, `remote connection failure`.
    #[error("connect failed: {0}")]
    Connect(String),
    /// No connection, TLS included, within the cluster's `connect_timeout`. Envoy: flag UF, `connection timeout`.
    #[error("connect timed out after {0:?}")]
    ConnectTimeout(std::time::Duration),
    /// The TLS handshake failed; the words go to `UPSTREAM_TRANSPORT_FAILURE_REASON`. Envoy: flag UF.
    #[error("{0}")]
    Tls(String),
    /// A circuit breaker is open. Envoy: flag UO.
    #[error("{0}")]
    Overflow(#[from] Overflow),
    /// The connection ended before the response. Envoy: flag UC, `connection termination`.
    #[error("connection closed before the response: {0}")]
    Closed(String),
    /// The stream was reset, by HTTP/2 error code. Envoy: flag UR, `remote reset`.
    #[error("stream reset by the upstream ({0})")]
    Reset(String),
    /// The upstream told that it did not process the request (REFUSED_STREAM, GOAWAY). Envoy: `remote refused stream reset`.
    #[error("stream refused by the upstream")]
    Refused,
    /// The answer is not valid HTTP, or too large. Envoy: flag UPE, status 502, `protocol error`.
    #[error("upstream broke the protocol: {0}")]
    Protocol(String),
    /// The request's own body failed: the downstream is at fault, not the upstream.
    #[error("request body failed: {0}")]
    RequestBody(String),
}

impl ErrorKind {
    /// True when the upstream told that it did not process the request.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self, Self::Refused)
    }
}

/// Which limit was reached (Envoy's circuit breakers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overflow {
    /// `max_requests`.
    #[error("the cluster's limit of requests in flight is reached")]
    Requests,
    /// `max_pending_requests`.
    #[error("the cluster's limit of requests waiting for a connection is reached")]
    Pending,
    /// `max_connections`.
    #[error("the cluster's limit of connections is reached")]
    Connections,
    /// `max_retries` or the retry budget.
    #[error("the cluster's limit of retries in flight is reached")]
    Retries,
}

/// Why no endpoint could be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    /// The cluster has none that may be used. Envoy: flag UH, `no healthy upstream`.
    #[error("no healthy upstream")]
    NoneHealthy,
    /// The control plane asked to drop this share of requests (`drop_overloads`). Envoy: flag DO.
    #[error("dropped by the control plane's overload policy")]
    Dropped,
    /// An original-destination cluster without an original destination.
    #[error("the connection was not redirected, so it has no original destination")]
    NoOriginalDestination,
    /// The original destination is a listener of this proxy: the request would come back for ever.
    #[error("the original destination is this proxy itself")]
    Loop,
}

impl UpstreamError {
    pub(super) fn unsent(kind: ErrorKind) -> Self {
        Self { kind, sent: false, reused: false }
    }

    pub(super) fn protocol(why: impl Into<String>, reused: bool) -> Self {
        Self { kind: ErrorKind::Protocol(why.into()), sent: true, reused }
    }

    /// Reads hyper's error.
    pub(super) fn of(error: &hyper::Error, sent: bool, reused: bool) -> Self {
        Self { kind: kind_of(error), sent, reused }
    }
}

/// Cause and its causes in one line, without repetition.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !out.contains(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        next = cause.source();
    }
    out
}

fn kind_of(error: &hyper::Error) -> ErrorKind {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(h2) = e.downcast_ref::<h2::Error>() {
            return kind_of_h2(h2);
        }
        if let Some(body) = e.downcast_ref::<body::Error>() {
            return ErrorKind::RequestBody(body.to_string());
        }
        cause = e.source();
    }
    let text = words(error);
    if error.is_parse() {
        return ErrorKind::Protocol(text);
    }
    if error.is_user() {
        return ErrorKind::RequestBody(text);
    }
    ErrorKind::Closed(text)
}

fn kind_of_h2(error: &h2::Error) -> ErrorKind {
    use h2::Reason;
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => ErrorKind::Refused,
        Some(Reason::NO_ERROR) if error.is_go_away() => ErrorKind::Refused,
        Some(reason) if error.is_reset() && error.is_remote() => ErrorKind::Reset(reason.description().to_owned()),
        Some(reason) if error.is_remote() => ErrorKind::Closed(format!("GOAWAY, {}", reason.description())),
        Some(reason) => ErrorKind::Protocol(reason.description().to_owned()),
        None => ErrorKind::Closed(error.to_string()),
    }
}
