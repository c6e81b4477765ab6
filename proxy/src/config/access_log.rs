//! Access logs as data: where lines go, which lines, and the compiled format.
//!
//! The operators are Envoy's command operators (`%REQ(X?Y):Z%`, …); [`Template::parse`] refuses one it doesn't know.

use std::{path::PathBuf, sync::LazyLock};

use http::HeaderName;
use regex::Regex;

use super::{
    flags::{Flag, Flags},
    route::RequestView,
};

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

/// What a [`LogFilter`] looks at.
#[derive(Clone, Copy, Debug)]
pub struct FilterView<'a> {
    /// Status; 0 when there is none.
    pub status: u16,
    /// Whole duration so far in milliseconds.
    pub duration_ms: u64,
    /// Flags.
    pub flags: Flags,
    /// The request; none on a raw connection.
    pub request: Option<RequestView<'a>>,
}

impl LogFilter {
    /// True when the record is to be written.
    #[must_use]
    pub fn matches(&self, view: &FilterView<'_>) -> bool {
        match self {
            // Only Envoy's health check filter marks requests as such, and that filter is not supported.
            Self::NotHealthCheck => true,
            Self::StatusCode(comparison) => comparison.holds(u64::from(view.status)),
            Self::Duration(comparison) => comparison.holds(view.duration_ms),
            Self::ResponseFlag(names) if names.is_empty() => !view.flags.is_empty(),
            Self::ResponseFlag(names) => {
                names.iter().filter_map(|name| Flag::parse(name)).any(|flag| view.flags.contains(flag))
            }
            Self::Header(header) => view.request.as_ref().is_some_and(|request| header.matches(request)),
            Self::And(filters) => filters.iter().all(|f| f.matches(view)),
            Self::Or(filters) => filters.iter().any(|f| f.matches(view)),
        }
    }
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

impl Comparison {
    /// True when `value` compares so.
    #[must_use]
    pub fn holds(self, value: u64) -> bool {
        match self {
            Self::Eq(n) => value == u64::from(n),
            Self::Ge(n) => value >= u64::from(n),
            Self::Le(n) => value <= u64::from(n),
            Self::Ne(n) => value != u64::from(n),
        }
    }
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

/// Envoy's command operators that we know. One that is added here needs its name in [`Template::parse`] and its value in the
/// renderer (`telemetry::access_log`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `START_TIME(format)`; none = ISO 8601 with milliseconds, UTC.
    StartTime(Option<String>),
    /// `REQ(X?Y)`: request header X, else Y.
    Req(Field, Option<Field>),
    /// `REQ_WITHOUT_QUERY(X?Y)`.
    ReqWithoutQuery(Field, Option<Field>),
    /// `RESP(X?Y)`.
    Resp(Field, Option<Field>),
    /// `TRAILER(X?Y)`.
    Trailer(Field, Option<Field>),
    /// An operator without arguments, by its name.
    Simple(SimpleOperator),
}

/// A header or pseudo-header that an operator names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `:method`.
    Method,
    /// `:path`, with query.
    Path,
    /// `:authority`.
    Authority,
    /// `:scheme`.
    Scheme,
    /// `:status`.
    Status,
    /// `:protocol`; nothing here has it.
    Protocol,
    /// An ordinary header.
    Header(HeaderName),
}

impl Field {
    fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" => Self::Authority,
            ":scheme" => Self::Scheme,
            ":status" => Self::Status,
            ":protocol" => Self::Protocol,
            name => Self::Header(HeaderName::from_bytes(name.as_bytes()).ok()?),
        })
    }

    /// The header's name; none for a pseudo-header.
    #[must_use]
    pub fn header(&self) -> Option<&HeaderName> {
        match self {
            Self::Header(name) => Some(name),
            _ => None,
        }
    }
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

/// Why a format string is refused; the words are for the operator who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A `%` that begins no operator.
    #[error("`%` at byte {0} begins no operator (write `%%` for a percent sign)")]
    Stray(usize),
    /// An operator that we don't have.
    #[error("operator %{0}% is not supported")]
    Unknown(String),
    /// An operator that takes no arguments got some, or one that needs them got none.
    #[error("operator %{operator}%: {what}")]
    Arguments {
        /// The operator.
        operator: String,
        /// What is wrong.
        what: String,
    },
}

impl Template {
    /// Compiles an Envoy format string: text, `%%`, and operators `%NAME%`, `%NAME(arguments)%`, `%NAME(arguments):length%`.
    ///
    /// # Errors
    /// [`TemplateError`] for a stray `%`, an unknown operator, wrong arguments or a time format that we can't print.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = source;
        while let Some(at) = rest.find('%') {
            literal.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("%%") {
                literal.push('%');
                rest = after;
                continue;
            }
            let Some(found) = OPERATOR.captures(rest) else {
                return Err(TemplateError::Stray(source.len() - rest.len()));
            };
            let operator = operator(&found[1], found.get(2).map(|m| m.as_str()))?;
            // A number too long to parse is longer than any line: no limit.
            let length = found.get(3).and_then(|m| m.as_str().parse().ok());
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(Part::Operator(operator, length));
            rest = &rest[found[0].len()..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self { parts })
    }
}

/// `%NAME%` with optional arguments (up to the next `)`) and optional length, as Envoy's own parser takes it.
static OPERATOR: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^%([A-Z0-9_]+)(?:\(([^)]*)\))?(?::([0-9]+))?%").expect("a constant expression"));

fn operator(name: &str, arguments: Option<&str>) -> Result<Operator, TemplateError> {
    let wrong = |what: String| TemplateError::Arguments { operator: name.to_owned(), what };
    let headers = || header_pair(arguments.ok_or("needs a header name in brackets")?);
    let pair = || headers().map_err(|what| wrong(what.to_owned()));
    Ok(match name {
        "START_TIME" => {
            let format = arguments.filter(|f| !f.is_empty());
            if let Some(format) = format {
                check_time_format(format).map_err(wrong)?;
            }
            Operator::StartTime(format.map(ToOwned::to_owned))
        }
        "REQ" => pair().map(|(x, y)| Operator::Req(x, y))?,
        "REQ_WITHOUT_QUERY" => pair().map(|(x, y)| Operator::ReqWithoutQuery(x, y))?,
        "RESP" => pair().map(|(x, y)| Operator::Resp(x, y))?,
        "TRAILER" => pair().map(|(x, y)| Operator::Trailer(x, y))?,
        _ => {
            let known = SIMPLE.iter().find(|(n, _)| *n == name).map(|(_, o)| *o);
            let simple = known.ok_or_else(|| TemplateError::Unknown(name.to_owned()))?;
            if arguments.is_some_and(|a| !a.is_empty()) {
                return Err(wrong("takes no arguments".to_owned()));
            }
            Operator::Simple(simple)
        }
    })
}

/// `X?Y`: each a header name or one of the request's pseudo-headers, in any case.
fn header_pair(arguments: &str) -> Result<(Field, Option<Field>), &'static str> {
    let mut names = arguments.split('?').map(|name| Field::parse(name).ok_or("needs a valid header name in brackets"));
    let (first, second) = (names.next(), names.next());
    if names.next().is_some() {
        return Err("takes one alternative header at most");
    }
    Ok((first.ok_or("needs a header name in brackets")??, second.transpose()?))
}

/// Refuses a conversion that the renderer of `%START_TIME(…)%` does not have.
fn check_time_format(format: &str) -> Result<(), String> {
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        rest = &rest[at + 1..];
        let Some(len) = time_conversion(rest) else {
            return Err(format!("time conversion `%{}` is not supported", rest.chars().next().unwrap_or_default()));
        };
        rest = &rest[len..];
    }
    Ok(())
}

/// Length of the conversion at the start of `text` (without its `%`), if it is one we print: `strftime`'s, Envoy's
/// `f`, `1f`-`9f` (fraction of the second), and Abseil's `E1S`-`E9S`, `E1f`-`E9f`, `Ez`.
#[must_use]
pub fn time_conversion(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    match bytes {
        [b'E', b'1'..=b'9', b'S' | b'f', ..] => Some(3),
        [b'E', b'z', ..] | [b'1'..=b'9', b'f', ..] => Some(2),
        [c, ..] if b"YmdHMSsfyjebBhaAuwzZTFDRpIntGCkl%".contains(c) => Some(1),
        _ => None,
    }
}

const SIMPLE: [(&str, SimpleOperator); 33] = {
    use SimpleOperator as S;
    [
        ("PROTOCOL", S::Protocol),
        ("RESPONSE_CODE", S::ResponseCode),
        ("RESPONSE_CODE_DETAILS", S::ResponseCodeDetails),
        ("RESPONSE_DURATION", S::ResponseDuration),
        ("RESPONSE_FLAGS", S::ResponseFlags),
        ("RESPONSE_FLAGS_LONG", S::ResponseFlagsLong),
        ("BYTES_RECEIVED", S::BytesReceived),
        ("BYTES_SENT", S::BytesSent),
        ("DURATION", S::Duration),
        ("REQUEST_DURATION", S::RequestDuration),
        ("UPSTREAM_CLUSTER", S::UpstreamCluster),
        ("UPSTREAM_HOST", S::UpstreamHost),
        ("UPSTREAM_LOCAL_ADDRESS", S::UpstreamLocalAddress),
        ("UPSTREAM_REMOTE_ADDRESS", S::UpstreamRemoteAddress),
        ("UPSTREAM_TRANSPORT_FAILURE_REASON", S::UpstreamTransportFailureReason),
        ("UPSTREAM_REQUEST_ATTEMPT_COUNT", S::UpstreamRequestAttemptCount),
        ("REQUESTED_SERVER_NAME", S::RequestedServerName),
        ("ROUTE_NAME", S::RouteName),
        ("FILTER_CHAIN_NAME", S::FilterChainName),
        ("CONNECTION_TERMINATION_DETAILS", S::ConnectionTerminationDetails),
        ("DOWNSTREAM_REMOTE_ADDRESS", S::DownstreamRemoteAddress),
        ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", S::DownstreamRemoteAddressWithoutPort),
        ("DOWNSTREAM_REMOTE_PORT", S::DownstreamRemotePort),
        ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", S::DownstreamDirectRemoteAddress),
        ("DOWNSTREAM_LOCAL_ADDRESS", S::DownstreamLocalAddress),
        ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", S::DownstreamLocalAddressWithoutPort),
        ("DOWNSTREAM_LOCAL_PORT", S::DownstreamLocalPort),
        ("DOWNSTREAM_PEER_URI_SAN", S::DownstreamPeerUriSan),
        ("DOWNSTREAM_PEER_DNS_SAN", S::DownstreamPeerDnsSan),
        ("DOWNSTREAM_PEER_SUBJECT", S::DownstreamPeerSubject),
        ("DOWNSTREAM_TLS_VERSION", S::DownstreamTlsVersion),
        ("GRPC_STATUS", S::GrpcStatus),
        ("HOSTNAME", S::Hostname),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    fn operators(source: &str) -> Vec<Part> {
        Template::parse(source).unwrap().parts
    }

    #[test]
    fn text_and_operators_are_told_apart() {
        let original = HeaderName::from_static("x-envoy-original-path");
        assert_eq!(
            operators("[%START_TIME%] \"%REQ(:METHOD)%\" 100%% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH):20%\n"),
            [
                Part::Literal("[".into()),
                Part::Operator(Operator::StartTime(None), None),
                Part::Literal("] \"".into()),
                Part::Operator(Operator::Req(Field::Method, None), None),
                Part::Literal("\" 100% ".into()),
                Part::Operator(Operator::Req(Field::Header(original), Some(Field::Path)), Some(20)),
                Part::Literal("\n".into()),
            ]
        );
    }

    #[test]
    fn a_time_format_may_hold_percent_signs() {
        assert_eq!(
            operators("%START_TIME(%Y/%m/%dT%H:%M:%S.%3f%z)%"),
            [Part::Operator(Operator::StartTime(Some("%Y/%m/%dT%H:%M:%S.%3f%z".into())), None)]
        );
    }

    #[test]
    fn what_is_not_known_is_refused_with_words() {
        for (source, words) in [
            ("%NOPE%", "%NOPE% is not supported"),
            ("%CEL(request.path)%", "%CEL% is not supported"),
            ("100 %", "byte 4"),
            ("%REQ(%", "begins no operator"),
            ("%REQ%", "needs a header name"),
            ("%REQ()%", "valid header name"),
            ("%REQ(a?b?c)%", "one alternative"),
            ("%REQ(a b)%", "valid header name"),
            ("%BYTES_SENT(x)%", "takes no arguments"),
            ("%START_TIME(%Q)%", "`%Q` is not supported"),
            ("%start_time%", "begins no operator"),
        ] {
            let error = Template::parse(source).unwrap_err().to_string();
            assert!(error.contains(words), "{source}: {error}");
        }
    }

    #[test]
    fn osms_fields_parse() {
        for source in [
            "%START_TIME%",
            "%REQ(:METHOD)%",
            "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
            "%PROTOCOL%",
            "%RESPONSE_CODE%",
            "%RESPONSE_CODE_DETAILS%",
            "%RESPONSE_DURATION%",
            "%UPSTREAM_CLUSTER%",
            "%RESPONSE_FLAGS%",
            "%BYTES_RECEIVED%",
            "%BYTES_SENT%",
            "%DURATION%",
            "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
            "%REQ(X-FORWARDED-FOR)%",
            "%REQ(USER-AGENT)%",
            "%REQ(X-REQUEST-ID)%",
            "%REQUESTED_SERVER_NAME%",
            "%REQ(:AUTHORITY)%",
            "%UPSTREAM_HOST%",
        ] {
            assert!(matches!(operators(source)[..], [Part::Operator(_, None)]), "{source}");
        }
    }
}
