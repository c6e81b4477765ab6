//! From a record to a line: compiled once per log, rendered per record.
//!
//! One record is one line whatever peers put into it: control characters in values are escaped.

use std::{
    borrow::Cow,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
    time::SystemTime,
};

use http::{HeaderName, Version};

use super::{
    Needs, clock,
    record::{Kept, Record, millis},
};
use crate::config::access_log::{Field, JsonValue, Operator, Part, SimpleOperator, Template};

/// A compiled line.
#[derive(Debug)]
pub(super) struct Line {
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    /// Goes out as it is.
    Raw(String),
    /// A value in text; `-` when missing.
    Text(Operator, Option<usize>),
    /// A whole JSON value: number, string or null.
    Json(Operator, Option<usize>),
    /// A JSON string of several parts; `-` for what is missing.
    JsonText(Vec<Part>),
}

/// A value that an operator gives.
enum Value<'a> {
    Missing,
    Number(u64),
    /// Nothing in it needs to be escaped.
    Plain(&'a str),
    Text(Cow<'a, str>),
    Address(SocketAddr),
    Time(SystemTime, Option<&'a str>),
}

/// What a value becomes part of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// A text line; `-` when missing.
    Text,
    /// A whole JSON value: number, string or null.
    Json,
    /// A JSON string; `-` when missing.
    JsonPart,
    /// A header's value; left out when missing.
    Header,
}

static HOSTNAME: LazyLock<String> = LazyLock::new(|| {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|h| h.trim().to_owned()).unwrap_or_default()
});

impl Line {
    /// A text line; ends as its template does.
    pub(super) fn text(template: &Template, needs: &mut Needs) -> Self {
        let piece = |part: &Part| match part {
            Part::Literal(literal) => Piece::Raw(literal.clone()),
            Part::Operator(operator, length) => {
                needs.of_operator(operator);
                Piece::Text(operator.clone(), *length)
            }
        };
        Self { pieces: template.parts.iter().map(piece).collect() }
    }

    /// A JSON object and a line end.
    pub(super) fn json(fields: &[(String, JsonValue)], needs: &mut Needs) -> Self {
        let mut pieces = Vec::new();
        object(fields, &mut pieces, needs);
        pieces.push(Piece::Raw("\n".to_owned()));
        // Neighbouring raw pieces become one.
        let mut merged: Vec<Piece> = Vec::new();
        for piece in pieces {
            match (merged.last_mut(), piece) {
                (Some(Piece::Raw(before)), Piece::Raw(raw)) => before.push_str(&raw),
                (_, piece) => merged.push(piece),
            }
        }
        Self { pieces: merged }
    }

    /// Appends the line for `record`.
    pub(super) fn render(&self, record: &Record, out: &mut String) {
        for piece in &self.pieces {
            match piece {
                Piece::Raw(raw) => out.push_str(raw),
                Piece::Text(operator, length) => put(out, value(operator, record), *length, Style::Text),
                Piece::Json(operator, length) => put(out, value(operator, record), *length, Style::Json),
                Piece::JsonText(parts) => json_text(out, parts, record),
            }
        }
    }
}

/// The text of a header value: as in a line, but what is missing is left out (Envoy's `omit_empty_values`).
#[must_use]
pub fn render(template: &Template, record: &Record) -> String {
    let mut out = String::new();
    for part in &template.parts {
        match part {
            Part::Literal(literal) => out.push_str(literal),
            Part::Operator(operator, length) => put(&mut out, value(operator, record), *length, Style::Header),
        }
    }
    out
}

fn put(out: &mut String, value: Value<'_>, length: Option<usize>, style: Style) {
    match value {
        Value::Missing => out.push_str(match style {
            Style::Text | Style::JsonPart => "-",
            Style::Json => "null",
            Style::Header => "",
        }),
        Value::Number(n) => number(out, n),
        value => {
            if style == Style::Json {
                out.push('"');
            }
            put_text(out, value, length, style);
            if style == Style::Json {
                out.push('"');
            }
        }
    }
}

/// Values that are ours and go out whole need no copy and no escapes.
fn put_text(out: &mut String, value: Value<'_>, length: Option<usize>, style: Style) {
    match (value, length) {
        (Value::Plain(text), None) => out.push_str(text),
        (Value::Address(address), None) => print_address(out, address),
        (Value::Time(at, None), None) => clock::print(out, at, None),
        (value, length) => {
            let text = text_of(value);
            let text = cut(&text, length);
            match style {
                Style::Text => escape_text(out, text),
                Style::Json | Style::JsonPart => escape_json(out, text),
                Style::Header => out.push_str(text),
            }
        }
    }
}

fn text_of(value: Value<'_>) -> Cow<'_, str> {
    let mut out = String::new();
    match value {
        Value::Missing => {}
        Value::Plain(text) => return text.into(),
        Value::Text(text) => return text,
        Value::Number(n) => number(&mut out, n),
        Value::Address(address) => print_address(&mut out, address),
        Value::Time(at, format) => clock::print(&mut out, at, format),
    }
    out.into()
}

fn object(fields: &[(String, JsonValue)], pieces: &mut Vec<Piece>, needs: &mut Needs) {
    for (at, (key, field)) in fields.iter().enumerate() {
        let mut raw = String::from(if at == 0 { "{\"" } else { ",\"" });
        escape_json(&mut raw, key);
        raw.push_str("\":");
        pieces.push(Piece::Raw(raw));
        match field {
            JsonValue::Object(fields) => object(fields, pieces, needs),
            JsonValue::Template(template) => {
                for part in &template.parts {
                    if let Part::Operator(operator, _) = part {
                        needs.of_operator(operator);
                    }
                }
                pieces.push(match template.parts.as_slice() {
                    [Part::Operator(operator, length)] => Piece::Json(operator.clone(), *length),
                    parts => Piece::JsonText(parts.to_vec()),
                });
            }
        }
    }
    pieces.push(Piece::Raw(if fields.is_empty() { "{}" } else { "}" }.to_owned()));
}

fn json_text(out: &mut String, parts: &[Part], record: &Record) {
    out.push('"');
    for part in parts {
        match part {
            Part::Literal(literal) => escape_json(out, literal),
            Part::Operator(operator, length) => put(out, value(operator, record), *length, Style::JsonPart),
        }
    }
    out.push('"');
}

fn value<'a>(operator: &'a Operator, record: &'a Record) -> Value<'a> {
    match operator {
        Operator::StartTime(format) => Value::Time(record.start, format.as_deref()),
        Operator::Req(field, other) => either(field, other.as_ref(), |field| request_field(record, field)),
        Operator::ReqWithoutQuery(field, other) => {
            match either(field, other.as_ref(), |field| request_field(record, field)) {
                Value::Text(text) => Value::Text(without_query(text)),
                value => value,
            }
        }
        Operator::Resp(field, other) => either(field, other.as_ref(), |field| match field {
            Field::Status => record.status.as_ref().map(|status| Value::Plain(status.as_str())),
            field => header(&record.response_headers, field.header()?),
        }),
        Operator::Trailer(field, other) => {
            either(field, other.as_ref(), |field| header(&record.response_trailers, field.header()?))
        }
        Operator::Simple(operator) => simple(*operator, record),
    }
}

fn either<'a>(field: &'a Field, other: Option<&'a Field>, get: impl Fn(&'a Field) -> Option<Value<'a>>) -> Value<'a> {
    get(field).or_else(|| get(other?)).unwrap_or(Value::Missing)
}

fn request_field<'a>(record: &'a Record, field: &Field) -> Option<Value<'a>> {
    let method = record.method.as_ref()?;
    match field {
        // A method is a token (RFC 9110 section 5.6.2): no quotes, no control characters.
        Field::Method => Some(Value::Plain(method.as_str())),
        Field::Path => Some(Value::Text(record.path.as_str().into())),
        Field::Scheme => Some(Value::Plain(record.scheme)),
        Field::Header(name) if *name != http::header::HOST => header(&record.request_headers, name),
        Field::Authority | Field::Header(_) => {
            (!record.authority.is_empty()).then(|| Value::Text(record.authority.as_str().into()))
        }
        Field::Status | Field::Protocol => None,
    }
}

fn without_query(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => text.split('?').next().unwrap_or(text).into(),
        Cow::Owned(text) => text.split('?').next().unwrap_or_default().to_owned().into(),
    }
}

fn header<'a>(headers: &'a Kept, name: &HeaderName) -> Option<Value<'a>> {
    let bytes = headers.get(name)?.as_bytes();
    // Nearly every value is text; the lossy way is slow.
    let text = std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed);
    Some(Value::Text(text))
}

fn text(text: Option<&str>) -> Value<'_> {
    text.filter(|text| !text.is_empty()).map_or(Value::Missing, |text| Value::Text(text.into()))
}

fn simple(operator: SimpleOperator, record: &Record) -> Value<'_> {
    use SimpleOperator as S;
    let connection = &record.connection;
    let address = |address: Option<SocketAddr>| address.map_or(Value::Missing, Value::Address);
    let ip = |ip: IpAddr| Value::Text(ip.to_string().into());
    let joined = |names: &[String]| match names {
        [] => Value::Missing,
        names => Value::Text(names.join(",").into()),
    };
    let number = |n: Option<u64>| n.map_or(Value::Missing, Value::Number);
    match operator {
        S::Protocol => record.protocol.map_or(Value::Missing, |version| Value::Plain(protocol(version))),
        S::ResponseCode => Value::Number(record.status.map_or(0, |s| s.as_u16().into())),
        // As Envoy prints them, so that a line can be split at spaces.
        S::ResponseCodeDetails => match record.details.as_deref() {
            Some(details) if details.contains(char::is_whitespace) => {
                Value::Text(details.replace(char::is_whitespace, "_").into())
            }
            Some(details) => Value::Text(details.into()),
            None => Value::Missing,
        },
        S::ResponseDuration => number(record.response_duration.map(millis)),
        S::RequestDuration => number(record.request_duration.map(millis)),
        S::Duration => number(Some(millis(record.elapsed()))),
        S::ResponseFlags if record.flags.is_empty() => Value::Plain("-"),
        S::ResponseFlags => Value::Text(record.flags.to_string().into()),
        S::ResponseFlagsLong => {
            let mut names = String::new();
            // Writing to a string can't fail.
            let _ = record.flags.write(&mut names, true);
            Value::Text(names.into())
        }
        S::BytesReceived => Value::Number(record.bytes_received),
        S::BytesSent => Value::Number(record.bytes_sent),
        S::UpstreamCluster => text(record.upstream_cluster.as_deref()),
        S::UpstreamHost | S::UpstreamRemoteAddress => address(record.upstream_host),
        S::UpstreamLocalAddress => address(record.upstream_local),
        S::UpstreamTransportFailureReason => text(record.upstream_failure.as_deref()),
        S::UpstreamRequestAttemptCount => Value::Number(record.attempts.into()),
        S::RequestedServerName => text(connection.server_name.as_deref()),
        S::RouteName => text(record.route.as_deref()),
        S::FilterChainName => text(Some(&connection.chain)),
        S::ConnectionTerminationDetails => text(record.termination.as_deref()),
        S::DownstreamRemoteAddress | S::DownstreamDirectRemoteAddress => address(Some(connection.peer)),
        S::DownstreamRemoteAddressWithoutPort => ip(connection.peer.ip()),
        S::DownstreamRemotePort => Value::Number(connection.peer.port().into()),
        S::DownstreamLocalAddress => address(Some(connection.local)),
        S::DownstreamLocalAddressWithoutPort => ip(connection.local.ip()),
        S::DownstreamLocalPort => Value::Number(connection.local.port().into()),
        S::DownstreamPeerUriSan => joined(&connection.peer_uri_sans),
        S::DownstreamPeerDnsSan => joined(&connection.peer_dns_sans),
        S::DownstreamPeerSubject => text(connection.peer_subject.as_deref()),
        S::DownstreamTlsVersion => text(connection.tls_version),
        S::GrpcStatus => grpc_status(record),
        S::Hostname => text(Some(&HOSTNAME)),
    }
}

/// As its `Display`, for IPv4 without the formatting machinery: it stands in every line.
fn print_address(out: &mut String, address: SocketAddr) {
    match address {
        SocketAddr::V4(v4) => {
            for (at, octet) in v4.ip().octets().into_iter().enumerate() {
                if at > 0 {
                    out.push('.');
                }
                number(out, octet.into());
            }
            out.push(':');
            number(out, v4.port().into());
        }
        SocketAddr::V6(v6) => drop(write!(out, "{v6}")),
    }
}

fn number(out: &mut String, n: u64) {
    out.push_str(itoa::Buffer::new().format(n));
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

fn grpc_status(record: &Record) -> Value<'_> {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    let found =
        header(&record.response_trailers, &GRPC_STATUS).or_else(|| header(&record.response_headers, &GRPC_STATUS));
    let Some(code) = found.map(text_of) else { return Value::Missing };
    match code.parse::<usize>().ok().and_then(|c| NAMES.get(c)) {
        Some(name) => Value::Plain(name),
        None => Value::Text(code),
    }
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

impl Needs {
    fn of_operator(&mut self, operator: &Operator) {
        let (headers, field, other) = match operator {
            Operator::Req(field, other) | Operator::ReqWithoutQuery(field, other) => (&mut self.request, field, other),
            Operator::Resp(field, other) => (&mut self.response, field, other),
            Operator::Trailer(field, other) => (&mut self.trailers, field, other),
            Operator::Simple(SimpleOperator::GrpcStatus) => {
                need(&mut self.response, &GRPC_STATUS);
                need(&mut self.trailers, &GRPC_STATUS);
                return;
            }
            Operator::Simple(_) | Operator::StartTime(_) => return,
        };
        // Pseudo-headers are always kept.
        std::iter::once(field).chain(other).filter_map(Field::header).for_each(|name| need(headers, name));
    }
}

/// Adds a name, once.
pub(super) fn need(names: &mut Vec<HeaderName>, name: &HeaderName) {
    if !names.contains(name) {
        names.push(name.clone());
    }
}

/// The first `length` bytes, less where that would split a character.
fn cut(text: &str, length: Option<usize>) -> &str {
    let Some(length) = length.filter(|length| *length < text.len()) else { return text };
    let whole = (0..=length).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..whole]
}

/// Escapes control characters: line ends would forge lines, ESC would drive the reader's terminal.
fn escape_text(out: &mut String, text: &str) {
    if is_plain(text) {
        out.push_str(text);
        return;
    }
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => drop(write!(out, "\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
}

/// True for printable ASCII without quotes and backslashes: nearly every text. It looks at all bytes whatever it finds, so
/// that the compiler can take many at once.
fn is_plain(text: &str) -> bool {
    text.bytes().fold(true, |plain, b| plain & (b' '..=b'~').contains(&b) & (b != b'"') & (b != b'\\'))
}

fn escape_json(out: &mut String, text: &str) {
    if is_plain(text) {
        out.push_str(text);
        return;
    }
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use http::{HeaderMap, HeaderValue, Method, StatusCode};
    use tokio::time::Instant;

    use super::super::record::{Connection, Request};
    use super::*;
    use crate::config::flags::Flag;

    fn connection() -> Arc<Connection> {
        Arc::new(Connection {
            peer: "10.0.0.9:4000".parse().unwrap(),
            local: "10.0.0.1:14001".parse().unwrap(),
            server_name: Some("store.apps".into()),
            tls_version: Some("TLSv1.3"),
            peer_uri_sans: vec!["spiffe://a/b".into()],
            peer_dns_sans: vec!["a.b".into(), "c".into()],
            peer_subject: None,
            listener: "in".into(),
            chain: "".into(),
        })
    }

    fn record(headers: &[(&'static str, &'static [u8])], needs: &Needs) -> Record {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        let mut record = Record::new(connection(), Instant::now());
        let (method, version) = (&Method::GET, Version::HTTP_11);
        let head = Request { method, version, scheme: "http", authority: "store", path: "/a?b=c", headers: &map };
        record.request(head, &needs.request);
        record.status = Some(StatusCode::OK);
        record.details = Some("via upstream".into());
        record.response_duration = Some(Duration::from_micros(3_999));
        record.duration = Some(Duration::from_millis(7));
        record.bytes_sent = 12;
        record
    }

    fn rendered(line: &Line, record: &Record) -> String {
        let mut out = String::new();
        line.render(record, &mut out);
        out
    }

    fn text(format: &str, headers: &[(&'static str, &'static [u8])]) -> String {
        let mut needs = Needs::default();
        let line = Line::text(&Template::parse(format).unwrap(), &mut needs);
        rendered(&line, &record(headers, &needs))
    }

    fn json(fields: &[(&str, &str)], edit: impl FnOnce(&mut Record)) -> String {
        let fields: Vec<_> =
            fields.iter().map(|(k, v)| ((*k).to_owned(), JsonValue::Template(Template::parse(v).unwrap()))).collect();
        let mut needs = Needs::default();
        let line = Line::json(&fields, &mut needs);
        let mut record = record(&[("user-agent", b"curl")], &needs);
        edit(&mut record);
        rendered(&line, &record)
    }

    #[test]
    fn text_values_are_those_of_envoy() {
        for (format, expected) in [
            ("%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%", "GET /a?b=c HTTP/1.1"),
            ("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):3%|%REQ_WITHOUT_QUERY(:PATH)%", "/a?|/a"),
            ("%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS%", "200 via_upstream -"),
            ("%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESPONSE_DURATION% %REQUEST_DURATION%", "0 12 7 3 -"),
            ("%UPSTREAM_HOST% %UPSTREAM_CLUSTER% %RESP(X)% %TRAILER(X)% %ROUTE_NAME%", "- - - - -"),
            ("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "10.0.0.9:4000 10.0.0.1"),
            (
                "%DOWNSTREAM_PEER_DNS_SAN% %DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_TLS_VERSION%",
                "a.b,c spiffe://a/b TLSv1.3",
            ),
            ("%REQ(user-agent)% %REQ(nope?host)% %REQUESTED_SERVER_NAME% 100%%", "curl store store.apps 100%"),
        ] {
            assert_eq!(text(format, &[("user-agent", b"curl")]), expected, "{format}");
        }
    }

    #[test]
    fn a_peer_cannot_forge_lines_or_drive_a_terminal() {
        let hostile: &[(&str, &[u8])] = &[("x", b"a\tb \xc2\x9b1m \xff")];
        assert_eq!(text("<%REQ(x)%>", hostile), "<a\\tb \\x9b1m \u{fffd}>");
        let mut needs = Needs::default();
        let line = Line::text(&Template::parse("%REQ(:PATH)% %REQ(:AUTHORITY)%\n").unwrap(), &mut needs);
        let mut record = record(&[], &needs);
        record.path = "/a\r\n[forged] line".into();
        record.authority = "\u{1b}[31mred".into();
        let out = rendered(&line, &record);
        assert_eq!(out, "/a\\r\\n[forged] line \\x1b[31mred\n");
        let fields =
            [("p".to_owned(), JsonValue::Template(Template::parse("%REQ(:PATH)% \"%REQ(:AUTHORITY)%\"").unwrap()))];
        let out = rendered(&Line::json(&fields, &mut needs), &record);
        assert_eq!(out.lines().count(), 1);
        let parsed: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(parsed["p"], "/a\r\n[forged] line \"\u{1b}[31mred\"");
    }

    #[test]
    fn json_has_numbers_nulls_and_strings_as_envoy_writes_them() {
        let fields = [
            ("authority", "%REQ(:AUTHORITY)%"),
            ("both", "%BYTES_SENT%/%DURATION% %RESP(x)%"),
            ("bytes_sent", "%BYTES_SENT%"),
            ("response_code", "%RESPONSE_CODE%"),
            ("response_flags", "%RESPONSE_FLAGS%"),
            ("time_to_first_byte", "%RESPONSE_DURATION%"),
            ("upstream_host", "%UPSTREAM_HOST%"),
            ("user_agent", "%REQ(USER-AGENT)%"),
        ];
        assert_eq!(
            json(&fields, |r| r.flags.set(Flag::UpstreamConnectionTermination)),
            "{\"authority\":\"store\",\"both\":\"12/7 -\",\"bytes_sent\":12,\"response_code\":200,\
             \"response_flags\":\"UC\",\"time_to_first_byte\":3,\"upstream_host\":null,\"user_agent\":\"curl\"}\n"
        );
    }

    #[test]
    fn osms_line_for_a_connection_without_a_chain() {
        let fields = [
            ("bytes_received", "%BYTES_RECEIVED%"),
            ("method", "%REQ(:METHOD)%"),
            ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
            ("protocol", "%PROTOCOL%"),
            ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
            ("response_code", "%RESPONSE_CODE%"),
            ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
            ("response_flags", "%RESPONSE_FLAGS%"),
        ];
        let out = json(&fields, |record| {
            *record = Record::new(connection(), Instant::now());
            record.flags.set(Flag::NoRouteFound);
            record.details = Some("filter_chain_not_found".into());
        });
        assert_eq!(
            out,
            "{\"bytes_received\":0,\"method\":null,\"path\":null,\"protocol\":null,\"requested_server_name\":\
             \"store.apps\",\"response_code\":0,\"response_code_details\":\"filter_chain_not_found\",\
             \"response_flags\":\"NR\"}\n"
        );
    }

    #[test]
    fn grpc_status_comes_from_trailers_by_name() {
        let out = json(&[("g", "%GRPC_STATUS%")], |record| {
            let trailers = [(GRPC_STATUS, HeaderValue::from_static("14"))].into_iter().collect();
            record.response_trailers = Kept::all(&trailers);
        });
        assert_eq!(out, "{\"g\":\"Unavailable\"}\n");
    }

    #[test]
    fn only_what_a_line_needs_is_kept_of_a_request() {
        let mut needs = Needs::default();
        let _line = Line::text(&Template::parse("%REQ(x-a?x-b)%").unwrap(), &mut needs);
        let record = record(&[("x-b", b"1"), ("cookie", b"secret")], &needs);
        assert!(record.request_headers.get(&HeaderName::from_static("x-b")).is_some());
        assert!(record.request_headers.get(&http::header::COOKIE).is_none());
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        assert_eq!(cut("aé", Some(2)), "a");
        assert_eq!(cut("aé", Some(3)), "aé");
    }
}
