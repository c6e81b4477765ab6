//! The HTTP connection manager as data.

use std::{sync::Arc, time::Duration};

use super::{
    Name, Wanted,
    access_log::{AccessLog, LogFilter},
    headers::HeaderEdits,
    ratelimit::HttpLocalRateLimit,
    rbac::Rbac,
    route::RouteTable,
};

/// Envoy's `HttpConnectionManager`, as far as supported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConnectionManager {
    /// Prefix of its statistics (`http.<prefix>.*`).
    pub stat_prefix: Name,
    /// HTTP version spoken with clients.
    pub codec: Codec,
    /// Where routes come from.
    pub routes: RouteSource,
    /// Filters in order, without the router, which is always last.
    pub filters: Vec<HttpFilter>,
    /// WebSocket upgrades are allowed (`upgrade_configs`).
    pub websocket: bool,
    /// Access logs.
    pub access_log: Vec<AccessLog>,
    /// Makes an `x-request-id` where there is none; true by default.
    pub generate_request_id: bool,
    /// Keeps the client's `x-request-id` at the edge.
    pub preserve_external_request_id: bool,
    /// The peer's address is the client's; appends `x-forwarded-for`. False by default.
    pub use_remote_address: bool,
    /// `local_reply_config.mappers`: header edits of our own replies.
    pub local_replies: Vec<LocalReplyMapper>,
    /// Longest silence of a stream; 5 min, zero = off.
    pub stream_idle_timeout: Duration,
    /// Whole request received within; zero = off (default).
    pub request_timeout: Duration,
    /// Request headers received within; zero = off (default of Envoy; ours is bounded by the listener's limits).
    pub request_headers_timeout: Duration,
    /// Idle connection closed after; 1 h, zero = off.
    pub idle_timeout: Duration,
    /// Longest life of a connection; none = no limit.
    pub max_connection_duration: Option<Duration>,
    /// Requests that an HTTP/2 client still sends this long after it was told to go are refused; 5 s.
    pub drain_timeout: Duration,
    /// Longest life of a stream; none = no limit.
    pub max_stream_duration: Option<Duration>,
    /// Requests per connection; none = no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Header bytes of one request in KiB; 60.
    pub max_request_headers_kb: u32,
    /// Header lines of one request; 100.
    pub max_headers_count: u32,
    /// Path rules.
    pub path: PathRules,
    /// HTTP/1.0 is answered (`accept_http_10`); else 426.
    pub accept_http_10: bool,
    /// HTTP/2 concurrent streams; 1024.
    pub max_concurrent_streams: u32,
    /// Value of `server` on responses, and how it is set.
    pub server_header: ServerHeader,
}

/// `codec_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// By ALPN, else by the connection's first bytes.
    Auto,
    /// HTTP/1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
}

/// Where routes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteSource {
    /// RDS over ADS, by name.
    Rds(Wanted),
    /// In place.
    Inline(Arc<RouteTable>),
}

/// One HTTP filter of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpFilter {
    /// Instance name, the key of per-route settings.
    pub name: Name,
    /// What it does.
    pub kind: HttpFilterKind,
    /// Off unless a route turns it on (`disabled`).
    pub disabled: bool,
}

/// The closed set of filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpFilterKind {
    /// Access control; none = only where a route says so.
    Rbac(Option<Arc<Rbac>>),
    /// Local rate limit.
    LocalRateLimit(Arc<HttpLocalRateLimit>),
}

/// Header edits of our own replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalReplyMapper {
    /// Which replies; the first mapper whose filter matches is used.
    pub filter: LogFilter,
    /// Edits.
    pub headers: HeaderEdits,
}

/// Path normalisation. Ours is on by default, for policy, routing and upstream alike (see the book's differences).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathRules {
    /// RFC 3986 normalisation of `.`/`..` segments and unreserved escapes.
    pub normalize: bool,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
    /// What is done with `%2f`, `%5c`.
    pub escaped_slashes: EscapedSlashes,
}

/// `path_with_escaped_slashes_action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// Left as they are.
    Keep,
    /// 400.
    Reject,
    /// Unescaped, then the request goes on.
    UnescapeAndForward,
    /// Unescaped, and the client is redirected there (307).
    UnescapeAndRedirect,
}

/// `server_header_transformation`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerHeader {
    /// Always this name (default, `envoy`).
    Overwrite(String),
    /// Only where the upstream sent none.
    AppendIfAbsent(String),
    /// As it is.
    PassThrough,
}
