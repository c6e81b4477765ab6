//! Access logs as data: where lines go, which lines, and the compiled format.
//!
//! The operators are Envoy's command operators (`%REQ(X?Y):Z%`, …); [`Template::parse`] refuses one it doesn't know.

use std::path::PathBuf;

/// One configured access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// Where the lines go.
    pub sink: Sink,
    /// How a line looks.
    pub format: Format,
    /// Which records are written; none = all.
    pub filter: Option<LogFilter>,
}

/// Destination of log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to; reopened on SIGUSR1.
    File(PathBuf),
}

/// Envoy's `AccessLogFilter`, as far as supported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFilter {
    /// Not a health check request.
    NotHealthCheck,
    /// Status code compared with a number.
    StatusCode(Comparison),
    /// Duration in milliseconds compared with a number.
    Duration(Comparison),
    /// Any response flag, or one of these short names.
    ResponseFlag(Vec<String>),
    /// A request header matches.
    Header(super::route::HeaderMatch),
    /// All match.
    And(Vec<LogFilter>),
    /// Any matches.
    Or(Vec<LogFilter>),
}

/// Comparison with a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Eq(u32),
    /// Greater or equal.
    Ge(u32),
    /// Less or equal.
    Le(u32),
    /// Not equal.
    Ne(u32),
}

/// The line's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// One text line (with its own line end).
    Text(Template),
    /// One JSON object a line, keys sorted as Envoy does.
    Json(Vec<(String, JsonValue)>),
}

/// A value of a JSON log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonValue {
    /// A template; a number when the template is a single numeric operator.
    Template(Template),
    /// A nested object.
    Object(Vec<(String, JsonValue)>),
}

/// A compiled format string.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// Pieces in order.
    pub parts: Vec<Part>,
}

/// One piece of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text as it is.
    Literal(String),
    /// An operator, with the longest output in bytes (`:Z`).
    Operator(Operator, Option<usize>),
}

/// Envoy's command operators that we know (`xds.md` 5.6). Helpers that add one add it to `parse` and to the renderer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `START_TIME(format)`; none = ISO 8601 with milliseconds, UTC.
    StartTime(Option<String>),
    /// `REQ(X?Y)`: request header X, else Y. Pseudo-headers allowed.
    Req(String, Option<String>),
    /// `REQ_WITHOUT_QUERY(X?Y)`.
    ReqWithoutQuery(String, Option<String>),
    /// `RESP(X?Y)`.
    Resp(String, Option<String>),
    /// `TRAILER(X?Y)`.
    Trailer(String, Option<String>),
    /// An operator without arguments, by its name.
    Simple(SimpleOperator),
}

/// Operators without arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is Envoy's operator of the same name in upper case")]
pub enum SimpleOperator {
    Protocol,
    ResponseCode,
    ResponseCodeDetails,
    ResponseDuration,
    ResponseFlags,
    ResponseFlagsLong,
    BytesReceived,
    BytesSent,
    Duration,
    RequestDuration,
    UpstreamCluster,
    UpstreamHost,
    UpstreamLocalAddress,
    UpstreamRemoteAddress,
    UpstreamTransportFailureReason,
    UpstreamRequestAttemptCount,
    RequestedServerName,
    RouteName,
    FilterChainName,
    ConnectionTerminationDetails,
    DownstreamRemoteAddress,
    DownstreamRemoteAddressWithoutPort,
    DownstreamRemotePort,
    DownstreamDirectRemoteAddress,
    DownstreamLocalAddress,
    DownstreamLocalAddressWithoutPort,
    DownstreamLocalPort,
    DownstreamPeerUriSan,
    DownstreamPeerDnsSan,
    DownstreamPeerSubject,
    DownstreamTlsVersion,
    GrpcStatus,
    Hostname,
}
