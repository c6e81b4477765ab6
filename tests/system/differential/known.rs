//! Every difference between real Envoy and our proxy that is meant: under which heading of the book, in which rows, in which
//! fields.
//!
//! A field that ends in `*` stands for all that begin so. One with `?` in front need not differ; all others must, so that a
//! difference that went away leaves this list.

/// One difference.
pub(super) struct Known {
    /// The heading in `docs/differences.md`.
    pub(super) why: &'static str,
    pub(super) rows: &'static [&'static str],
    pub(super) fields: &'static [&'static str],
}

impl Known {
    pub(super) fn covers(&self, field: &str) -> bool {
        self.fields.iter().any(|pattern| matches(pattern.trim_start_matches('?'), field))
    }
}

/// True when `field` is meant by `pattern`, which may end in `*`.
pub(super) fn matches(pattern: &str, field: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == field, |begin| field.starts_with(begin))
}

const fn known(why: &'static str, rows: &'static [&'static str], fields: &'static [&'static str]) -> Known {
    Known { why, rows, fields }
}

/// One refuses what the other serves.
const WHOLE: &[&str] = &["1.*", "log.1.*", "?up*", "?closed"];

/// The fields of a reply by hyper's parser.
const BELOW: &[&str] = &[
    "1.body",
    "1.header.content-length",
    "1.header.content-type",
    "1.header.server",
    "log.1.bytes_sent",
    "log.1.protocol",
    "?log.1.response_code_details",
];

/// All of them.
pub(super) const KNOWN: &[Known] = &[
    known(
        "What is refused below the policies",
        &[
            "two lengths",
            "a length of nonsense",
            "a space before the colon",
            "a line without a colon",
            "a head of 70 kB",
            "120 fields",
            "a NUL in a value",
            "a space in the target",
            "no HTTP",
        ],
        BELOW,
    ),
    known("What is refused below the policies", &["HTTP/1.2"], &["1.*", "log.1.*"]),
    known("What is refused below the policies", &["a good request and a broken one"], &["2.*", "log.2.*"]),
    known(
        "What is refused below the policies",
        &["an unknown coding"],
        &["log.1.authority", "log.1.method", "log.1.path"],
    ),
    known(
        "What is refused below the policies",
        &["HTTP/1.0 where it is not served"],
        &["1.line", "log.1.authority", "log.1.method", "log.1.path", "log.1.protocol"],
    ),
    known(
        "What Envoy's parser refuses",
        &[
            "a method nobody knows",
            "a method in lower case",
            "length and chunks",
            "two equal lengths",
            "bytes above 127",
            "a target without a slash",
        ],
        WHOLE,
    ),
    known(
        "Requests that other servers would read otherwise",
        &[
            "an empty host",
            "two hosts",
            "a folded line",
            "framing that the connection names",
            "characters outside of URIs",
            "characters outside of URIs, normalised",
        ],
        WHOLE,
    ),
    known(
        "One form of the path",
        &[
            "dot segments",
            "a dot segment at the end",
            "escaped dots",
            "escapes in lower case",
            "escapes in lower case, normalised",
            "an escaped slash",
            "an escaped backslash",
            "a backslash",
            "two slashes",
        ],
        &["log.1.path", "up.1.line"],
    ),
    known(
        "One form of the path",
        &[
            "dot segments to the root and beyond",
            "escaped letters",
            "two slashes in front",
            "a fragment",
            "a fragment, normalised",
            "half an escape",
            "half an escape, normalised",
            "an escape of nonsense",
            "an escape of nonsense, normalised",
            "an escaped NUL",
            "double escapes",
            "double escapes, normalised",
            "HTTP/2: a path with dots",
        ],
        WHOLE,
    ),
    known(
        "One form of the path",
        &["an escaped NUL, normalised"],
        &["1.header.connection", "closed", "log.1.request_id"],
    ),
    known(
        "WebSocket over HTTP/1 only",
        &["CONNECT"],
        &["1.header.connection", "closed", "log.1.path", "log.1.request_id"],
    ),
    known("Cookies go on in one line", &["cookies twice"], &["up.1.header.cookie"]),
    known("Internal headers", &["X-Envoy fields from outside, at the edge"], &["up.1.header.x-envoy-peer-metadata"]),
    known(
        "Internal headers",
        &["X-Envoy fields on the inside"],
        &[
            "up.1.header.x-envoy-decorator-operation",
            "up.1.header.x-envoy-downstream-service-cluster",
            "up.1.header.x-envoy-external-address",
            "up.1.header.x-envoy-peer-metadata",
        ],
    ),
    known(
        "The server's own words stay",
        &[
            "fields of an answer",
            "a status nobody knows",
            "an answer without words",
            "an answer without body, with an added field",
        ],
        &["1.line"],
    ),
    known("Trailers of HTTP/1 go on", &["trailers"], &["up.1.body"]),
    known("Framing of answers without a body", &["304 with a length"], &["1.header.content-length"]),
    known(
        "Framing of answers without a body",
        &["HEAD in chunks", "HEAD without either"],
        &["1.body", "1.header.transfer-encoding"],
    ),
    known(
        "Framing of answers without a body",
        &["HTTP/1.0", "HTTP/1.0 and an answer in chunks"],
        &["1.header.connection"],
    ),
    known(
        "An early answer keeps the connection",
        &[
            "a body for an answer of the proxy's own",
            "a method that no rule allows",
            "a redirect of a POST with a body",
        ],
        &["1.header.connection", "closed"],
    ),
    known(
        "A tunnel that ends is no disconnect",
        &["an upgrade that is allowed"],
        &[
            "1.header.x-envoy-upstream-service-time",
            "log.1.response_code_details",
            "log.1.response_flags",
            "log.1.upstream_service_time",
        ],
    ),
    known(
        "A refused upgrade is an ordinary answer",
        &["an upgrade that the server refuses"],
        &["1.*", "closed", "log.1.*"],
    ),
    known(
        "Failures name the endpoint",
        &[
            "a refused connection",
            "a refused connection for gRPC",
            "a refused connection for a POST",
            "connect-failure",
            "HTTP/2: a refused connection for gRPC",
        ],
        &["log.1.response_code_details"],
    ),
    known("Failures name the endpoint", &["a refused connection for a POST"], &["log.1.bytes_received"]),
    known(
        "Failures name the endpoint",
        &["a cluster that takes no requests", "a cluster that lets nobody wait"],
        &["log.1.upstream_host"],
    ),
    known(
        "Answers that break off or were not asked for",
        &["half a head", "an upgrade nobody asked for"],
        &["1.*", "log.1.*"],
    ),
    known("Fields of one connection end with it", &["HTTP/2: fields of a connection in the answer"], &["1.header.x-a"]),
];

/// What differs in every request to the listener `edge` that gets through.
pub(super) const EDGE: Known = known(
    "The address of a client",
    &[],
    &["?up.1.header.x-envoy-external-address", "?up.1.header.x-forwarded-for", "?log.1.x_forwarded_for"],
);
