//! Every refusal of the data path, in one table: status, gRPC code, Envoy's response flags, details and body, and our
//! own code and words.
//!
//! The code goes to the response header `x-oxmesh-why` (towards the local application only: outbound listeners; a remote
//! client learns nothing of the mesh), the code, words and what to do to the book's page `docs/reference/codes.md`, which
//! [`markdown`] writes. Nothing else in the proxy makes up a status or a body.

use std::{borrow::Cow, fmt::Write as _};

use http::StatusCode;

use crate::config::flags::{Flag, Flags};

/// Response header with the code of our own reply, on outbound listeners.
pub const WHY: http::HeaderName = http::HeaderName::from_static("x-oxmesh-why");

/// Whose fault a refusal is, as far as the proxy can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The client sent something that cannot be served.
    Client,
    /// A rule of the mesh says no.
    Policy,
    /// The mesh's configuration has a hole.
    Configuration,
    /// The server, or the way to it.
    Upstream,
    /// The proxy itself.
    Proxy,
}

impl Fault {
    fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Policy => "policy",
            Self::Configuration => "configuration",
            Self::Upstream => "upstream",
            Self::Proxy => "proxy",
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Our code, in kebab case. Never renamed once released.
    pub code: &'static str,
    /// Status of the reply; 0 where none is sent any more (the stream is cut).
    pub status: u16,
    /// Status for gRPC clients.
    pub grpc: u8,
    /// Envoy's flags.
    pub flags: Flags,
    /// Envoy's `RESPONSE_CODE_DETAILS`.
    pub details: &'static str,
    /// Body, `text/plain`.
    pub body: &'static str,
    /// The connection (HTTP/1) is closed after the reply.
    pub close: bool,
    /// Whose fault.
    pub fault: Fault,
    /// What happened, in a sentence.
    pub words: &'static str,
    /// What to do.
    pub hint: &'static str,
}

macro_rules! table {
    ($($name:ident {
        $code:literal, $status:literal, $grpc:literal, [$($flag:ident)*], $details:literal, $body:literal, $close:literal,
        $fault:ident, $words:literal, $hint:literal
    })*) => {
        /// Why a request is refused or cut.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $(#[doc = $words] $name,)* }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The row of this reason.
            #[must_use]
            pub const fn row(self) -> &'static Row {
                match self {
                    $(Self::$name => const { &Row {
                        code: $code, status: $status, grpc: $grpc,
                        flags: Flags::NONE $(.union(Flags::of(Flag::$flag)))*,
                        details: $details, body: $body, close: $close, fault: Fault::$fault,
                        words: $words, hint: $hint,
                    } },)*
                }
            }
        }
    };
}

table! {
    RouteNotFound { "no-route", 404, 12, [NoRouteFound], "route_not_found", "", false, Configuration,
        "No virtual host or route takes this request.",
        "Check the host and path, and that a route to the service exists (TrafficSplit, HTTPRouteGroup, Egress)." }
    ClusterNotFound { "no-cluster", 503, 14, [NoClusterFound], "cluster_not_found", "", false, Configuration,
        "The route names a cluster that the proxy does not have.",
        "Look whether the control plane had an error, or the service was just deleted." }
    NoHealthyUpstream { "no-endpoint", 503, 14, [NoHealthyUpstream], "no_healthy_upstream", "no healthy upstream",
        false, Upstream,
        "The cluster has no endpoint that can be used.",
        "Look whether the service's pods run and are ready." }
    DroppedOverload { "dropped-overload", 503, 14, [DropOverload], "drop_overload", "drop overload", false, Policy,
        "The control plane asked to drop a share of the requests to this cluster.",
        "Wait, or look at drop_overloads of the cluster's endpoints." }
    Loop { "loop", 503, 14, [NoHealthyUpstream], "no_healthy_upstream", "no healthy upstream", false, Configuration,
        "The request's destination is this proxy itself; sending it on would loop for ever.",
        "Look at the redirection rules and the original destination." }
    ConnectFailed { "connect-failed", 503, 14, [UpstreamConnectionFailure],
        "upstream_reset_before_response_started{remote_connection_failure}",
        "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        false, Upstream,
        "The connection to the endpoint could not be made.",
        "Look whether the server listens on that port and no NetworkPolicy stands between." }
    ConnectTimeout { "connect-timeout", 503, 14, [UpstreamConnectionFailure],
        "upstream_reset_before_response_started{connection_timeout}",
        "upstream connect error or disconnect/reset before headers. reset reason: connection timeout",
        false, Upstream,
        "The endpoint did not answer the connection in time.",
        "Look whether the pod is alive, and whether a NetworkPolicy or a full accept queue drops packets." }
    TlsFailed { "tls-failed", 503, 14, [UpstreamConnectionFailure],
        "upstream_reset_before_response_started{remote_connection_failure}",
        "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        false, Upstream,
        "The TLS handshake with the endpoint failed.",
        "Look whether the server is in the mesh and its certificate names the expected service account." }
    UpstreamClosed { "upstream-closed", 503, 14, [UpstreamConnectionTermination],
        "upstream_reset_before_response_started{connection_termination}",
        "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        false, Upstream,
        "The server closed the connection before it answered.",
        "Look for a crash, or a keep-alive time-out of the server shorter than the proxy's idle time-out." }
    UpstreamReset { "upstream-reset", 503, 14, [UpstreamRemoteReset],
        "upstream_reset_before_response_started{remote_reset}",
        "upstream connect error or disconnect/reset before headers. reset reason: remote reset",
        false, Upstream,
        "The server reset the stream before it answered.",
        "Look into the server's log." }
    UpstreamRefusedStream { "upstream-refused-stream", 503, 14, [UpstreamRemoteReset],
        "upstream_reset_before_response_started{remote_refused_stream_reset}",
        "upstream connect error or disconnect/reset before headers. reset reason: remote refused stream reset",
        false, Upstream,
        "The server refused the stream without working on it.",
        "It has too many streams or is shutting down; a retry is safe." }
    UpstreamProtocol { "upstream-not-http", 502, 14, [UpstreamProtocolError],
        "upstream_reset_before_response_started{protocol_error}",
        "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
        false, Upstream,
        "The server's answer is not valid HTTP, or switches protocols although nobody asked.",
        "Check the service port's appProtocol: it must be tcp if the server does not speak HTTP." }
    CutInBody { "upstream-cut-in-body", 0, 14, [UpstreamProtocolError],
        "upstream_reset_after_response_started{protocol_error}", "", true, Upstream,
        "The server broke off in the middle of its answer; the client's message is cut as well.",
        "Look for a crash of the server." }
    Overflow { "overflow", 503, 14, [UpstreamOverflow],
        "upstream_reset_before_response_started{overflow}",
        "upstream connect error or disconnect/reset before headers. reset reason: overflow",
        false, Policy,
        "A circuit breaker of the cluster is full.",
        "Raise the limits in UpstreamTrafficSetting, or give the service more replicas." }
    RouteTimeout { "timeout", 504, 14, [UpstreamRequestTimeout], "response_timeout", "upstream request timeout",
        false, Upstream,
        "The server did not answer within the route's time-out.",
        "Look into the server's latency; raise the route's time-out if the work needs it." }
    PerTryTimeout { "per-try-timeout", 504, 14, [UpstreamRequestTimeout], "upstream_per_try_timeout",
        "upstream request timeout", false, Upstream,
        "The last try took longer than the per-try time-out.",
        "Raise perTryTimeout in the Retry policy, or look into the server's latency." }
    MaxStreamDuration { "stream-too-long", 504, 4, [], "max_duration_timeout", "downstream duration timeout",
        false, Policy,
        "The stream lasted longer than max_stream_duration allows.",
        "Raise the limit or make the stream shorter." }
    IdleRequest { "idle-request", 408, 14, [StreamIdleTimeout], "stream_idle_timeout", "stream timeout", true, Client,
        "The client sent nothing more of its request for the stream's idle time-out.",
        "Look for a stuck client." }
    IdleResponse { "idle-response", 504, 14, [StreamIdleTimeout], "stream_idle_timeout", "stream timeout", true,
        Upstream,
        "The stream was silent for its idle time-out while the server's answer was awaited.",
        "Look for a stuck server; raise the route's idle_timeout for long polls." }
    IdleBody { "idle-body", 0, 14, [StreamIdleTimeout], "stream_idle_timeout", "", true, Upstream,
        "The stream was silent for its idle time-out in the middle of the answer, and was cut.",
        "Raise the route's idle_timeout for streams that are silent for long." }
    TimeoutInBody { "timeout-in-body", 0, 14, [UpstreamRequestTimeout], "response_timeout", "", true, Upstream,
        "The route's time-out passed in the middle of the answer, and it was cut.",
        "Raise the route's time-out; 0 turns it off for streams." }
    StreamTooLongInBody { "stream-too-long-in-body", 0, 4, [], "max_duration_timeout", "", true, Policy,
        "The stream lasted longer than max_stream_duration allows, and was cut in the middle of the answer.",
        "Raise the limit or make the stream shorter." }
    RequestTimeout { "request-timeout", 408, 14, [], "request_overall_timeout", "request timeout", true, Client,
        "The request was not received as a whole within request_timeout.",
        "Look for a slow client, or raise the limit." }
    RateLimited { "rate-limited", 429, 14, [RateLimited], "local_rate_limited", "local_rate_limited", false, Policy,
        "The local rate limit is used up.",
        "Slow down, or raise the limit in UpstreamTrafficSetting." }
    AccessDenied { "access-denied", 403, 7, [], "rbac_access_denied_matched_policy[none]", "RBAC: access denied",
        false, Policy,
        "Access control does not let this client in.",
        "Add a TrafficTarget from the client's service account to the server's, with a rule that takes this request." }
    PathRefused { "bad-path", 400, 13, [], "path_normalization_failed", "", false, Client,
        "The path has no single meaning: double encoding, control bytes, overlong UTF-8, a dot segment with parameters.",
        "Encode the path once and plainly." }
    AbsolutePathRejected { "bad-target", 404, 12, [], "absolute_path_rejected", "", false, Client,
        "The request's target is not a path.",
        "Send an absolute path; OPTIONS * is not proxied." }
    MissingHost { "no-host", 400, 13, [], "missing_host_header", "", true, Client,
        "The request has no host.",
        "Send Host or :authority." }
    BadHost { "bad-host", 400, 13, [DownstreamProtocolError], "invalid_host", "Bad Request", true, Client,
        "The host is malformed, given twice, differs between :authority and Host, or holds user information.",
        "Send one plain host." }
    BadHeader { "bad-header", 400, 13, [DownstreamProtocolError], "http1.codec_error", "Bad Request", true, Client,
        "A header is malformed: bytes that are not UTF-8, or a name that other servers read as a framing header.",
        "Use plain names and UTF-8 values; no underscores in place of dashes." }
    BadTransferEncoding { "bad-transfer-encoding", 501, 12, [DownstreamProtocolError],
        "http1.invalid_transfer_encoding", "Not Implemented", true, Client,
        "Transfer-Encoding is anything but `chunked`, once.",
        "Send chunked or Content-Length." }
    TooManyHeaders { "too-many-headers", 431, 8, [DownstreamProtocolError], "http1.too_many_headers",
        "Request Header Fields Too Large", true, Client,
        "The request has more header lines than allowed.",
        "Send fewer headers." }
    LowVersion { "http-1.0", 426, 2, [DownstreamProtocolError], "low_version", "Upgrade Required", true, Client,
        "HTTP/1.0 is not served.",
        "Use HTTP/1.1 or HTTP/2." }
    UpgradeRefused { "upgrade-refused", 403, 7, [], "upgrade_failed", "", true, Policy,
        "The protocol upgrade is not allowed here.",
        "Only WebSocket can be upgraded to, where the listener or route allows it." }
    Draining { "draining", 503, 14, [], "connection_draining", "", true, Client,
        "The client was told that this connection ends, and sent the request over it all the same, much later.",
        "Open a new connection after GOAWAY, and answer HTTP/2 pings." }
    BodyFailed { "request-broken", 400, 13, [DownstreamProtocolError], "http1.codec_error", "Bad Request", true, Client,
        "The client's request body broke off.",
        "Look for a client that goes away early or sends bad chunks." }
    Panicked { "internal", 500, 13, [], "internal_error", "Internal Server Error", true, Proxy,
        "The proxy hit a fault of its own; only this request is hurt.",
        "Please report it, with the proxy's log." }
}

/// A refusal of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// Takes the place of the row's status (`cluster_not_found_response_code`, the rate limit's `status`).
    pub status: Option<StatusCode>,
    /// Takes the place of the row's details.
    pub details: Option<Cow<'static, str>>,
    /// Takes the place of the row's body.
    pub body: Option<Cow<'static, str>>,
    /// Flags besides the row's (`URX`).
    pub more_flags: Flags,
    /// The request may have reached the upstream, so that another try may repeat its effects.
    pub sent: bool,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, status: None, details: None, body: None, more_flags: Flags::NONE, sent: false }
    }
}

impl Refusal {
    /// Status of the reply to a client that does not speak gRPC.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status.or_else(|| StatusCode::from_u16(self.reason.row().status).ok()).unwrap_or(StatusCode::BAD_GATEWAY)
    }

    /// Flags to record.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.more_flags.union(self.reason.row().flags)
    }

    /// Details to record.
    #[must_use]
    pub fn details(&self) -> Cow<'static, str> {
        self.details.clone().unwrap_or(Cow::Borrowed(self.reason.row().details))
    }

    /// Body of the reply.
    #[must_use]
    pub fn body(&self) -> Cow<'static, str> {
        self.body.clone().unwrap_or(Cow::Borrowed(self.reason.row().body))
    }

    /// gRPC status of the reply.
    #[must_use]
    pub fn grpc(&self) -> u8 {
        self.reason.row().grpc
    }
}

/// The book's page on codes.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(HEAD);
    for reason in Reason::ALL {
        let row = reason.row();
        let status = if row.status == 0 { "cut".to_owned() } else { row.status.to_string() };
        let fault = row.fault.word();
        let _ = writeln!(
            out,
            "| `{}` | {status} | {} | {} | `{}` | {fault} | {} {} |",
            row.code, row.grpc, row.flags, row.details, row.words, row.hint
        );
    }
    out
}

const HEAD: &str = "# Codes of refused requests

Each reply that the proxy makes by itself has one code. It stands in the response header `x-oxmesh-why` (on outbound
listeners only, so that only the local application sees it); flags and details stand in the access log
(`%RESPONSE_FLAGS%`, `%RESPONSE_CODE_DETAILS%`). gRPC clients get status 200 with `grpc-status` instead of the HTTP
status. *cut* means that the answer had begun and its message was broken off.

This page is generated from the proxy's table; a test keeps it current.

| Code | Status | gRPC | Flags | Details | Whose fault | What happened, what to do |
| --- | --- | --- | --- | --- | --- | --- |
";

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_page_of_codes_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/codes.md");
        if std::env::var_os("OXMESH_WRITE_DOCS").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap();
        assert!(page == markdown(), "docs/reference/codes.md is old: run this test with OXMESH_WRITE_DOCS=1");
    }

    #[test]
    fn codes_are_unique_and_statuses_valid() {
        let mut seen = HashSet::new();
        for reason in Reason::ALL {
            let row = reason.row();
            assert!(seen.insert(row.code), "{} occurs twice", row.code);
            assert!(row.status == 0 || (400..600).contains(&row.status), "{}", row.code);
            assert!(row.grpc <= 16 && row.grpc > 0, "{}", row.code);
            assert!(http::HeaderValue::from_str(row.code).is_ok());
        }
    }

    #[test]
    fn a_refusal_may_replace_parts_of_its_row() {
        let refusal = Refusal {
            status: Some(StatusCode::IM_A_TEAPOT),
            details: Some("x".into()),
            more_flags: Flags::of(Flag::UpstreamRetryLimitExceeded),
            ..Reason::ConnectFailed.into()
        };
        assert_eq!(refusal.status(), StatusCode::IM_A_TEAPOT);
        assert_eq!(refusal.details(), "x");
        assert_eq!(refusal.flags().to_string(), "URX,UF", "as Envoy orders them");
    }
}
