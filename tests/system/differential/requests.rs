//! Methods, hosts and header fields.

use super::row::{Row, lines, raw, with};

pub(super) fn rows() -> Vec<Row> {
    let mut rows = vec![
        lines("a plain GET", "user-agent: t"),
        raw("HEAD", "HEAD /x HTTP/1.1\r\nhost: h\r\n\r\n"),
        raw("DELETE", "DELETE /x HTTP/1.1\r\nhost: h\r\n\r\n"),
        raw("a method nobody knows", "BREW /x HTTP/1.1\r\nhost: h\r\n\r\n"),
        raw("a method in lower case", "get /x HTTP/1.1\r\nhost: h\r\n\r\n"),
        raw("OPTIONS *", "OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n"),
        raw("TRACE", "TRACE /x HTTP/1.1\r\nhost: h\r\n\r\n"),
        raw("CONNECT", "CONNECT h:80 HTTP/1.1\r\nhost: h:80\r\n\r\n"),
        raw("no host", "GET /x HTTP/1.1\r\n\r\n"),
        raw("an empty host", "GET /x HTTP/1.1\r\nhost:\r\n\r\n"),
        raw("two hosts", "GET /x HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
        raw("a host in capitals, with a port", "GET /x HTTP/1.1\r\nhost: KNOWN.Example:8080\r\n\r\n"),
        raw("a host of the table", "GET /x HTTP/1.1\r\nhost: known.example\r\n\r\n"),
        raw("a host by suffix", "GET /x HTTP/1.1\r\nhost: a.wild.example\r\n\r\n"),
        raw("a host by prefix", "GET /x HTTP/1.1\r\nhost: pre.anything\r\n\r\n"),
        raw("a host of IPv6", "GET /x HTTP/1.1\r\nhost: [::1]:80\r\n\r\n"),
        raw("a target in absolute form", "GET http://known.example/x?q=1 HTTP/1.1\r\nhost: other\r\n\r\n"),
        raw("a target in absolute form without path", "GET http://h HTTP/1.1\r\nhost: h\r\n\r\n"),
        raw("a target in absolute form of https", "GET https://h/x HTTP/1.1\r\nhost: h\r\n\r\n"),
        lines("a field twice", "x-a: 1\r\nx-a: 2"),
        lines("cookies twice", "cookie: a=1\r\ncookie: b=2"),
        lines("white space round a value", "x-a: \t padded \t"),
        lines("an empty value", "x-a:"),
        lines("names in capitals", "X-A: One\r\nX-b: Two"),
        lines("an underscore in a name", "x_a: 1"),
        lines("odd characters in a name", "x!#$%&'*+-.^`|~: 1"),
        lines("bytes above 127 in a value, as UTF-8", "x-a: \u{e9}"),
        lines("quotes and commas in a value", "x-a: \"a, b\", c;d=\"e\""),
        lines("a field of 8 kB", &format!("x-a: {}", "a".repeat(8000))),
        lines("a head of 70 kB", &format!("x-a: {}", "a".repeat(70_000))),
        lines("90 fields", (0..90).map(|n| format!("x-{n}: {n}\r\n")).collect::<String>().trim_end()),
        lines("120 fields", (0..120).map(|n| format!("x-{n}: {n}\r\n")).collect::<String>().trim_end()),
        lines("a space before the colon", "x-a : 1"),
        lines("a folded line", "x-a: 1\r\n 2"),
        lines("a NUL in a value", "x-a: a\0b"),
        lines("a line without a colon", "nothing"),
        lines("fields that the connection names", "connection: x-a, keep-alive\r\nx-a: 1\r\nkeep-alive: 3"),
        lines("framing that the connection names", "connection: host, x-forwarded-for\r\nx-forwarded-for: 9.9.9.9"),
        lines("TE: trailers", "te: trailers"),
        lines("TE: trailers and more", "te: trailers, gzip;q=0.5"),
        lines("TE: gzip", "te: gzip"),
        lines(
            "hop-by-hop fields of proxies",
            "proxy-connection: keep-alive\r\nproxy-authorization: x\r\nkeep-alive: 1",
        ),
        lines("Via, Forwarded and Date", "via: 1.1 a\r\nforwarded: for=1.2.3.4\r\ndate: then"),
        lines("X-Forwarded-For on the inside", "x-forwarded-for: 1.2.3.4, 5.6.7.8\r\nx-forwarded-proto: https"),
        lines("X-Forwarded-For at the edge", "x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https").edge(),
        lines("X-Forwarded-Proto of nonsense", "x-forwarded-proto: gopher"),
        lines("X-Forwarded-Host and -Port", "x-forwarded-host: other\r\nx-forwarded-port: 1"),
        lines("an own request id inside", "x-request-id: mine"),
        lines("an own request id at the edge", "x-request-id: mine").edge(),
        lines("X-Forwarded-Client-Cert", "x-forwarded-client-cert: forged"),
        lines("X-Envoy fields from outside, at the edge", ENVOY_FIELDS).edge(),
        lines("X-Envoy fields on the inside", ENVOY_FIELDS),
        lines("X-Envoy fields of one hop to the next", "x-envoy-original-path: /o\r\nx-envoy-attempt-count: 3"),
        lines("a time-out told by the client", "x-envoy-expected-rq-timeout-ms: 5000"),
        lines("a user agent and a referer", "user-agent: curl/8\r\nreferer: http://r/"),
        lines("Max-Forwards", "max-forwards: 0"),
        with("gRPC that no route takes", "/none", "content-type: application/grpc"),
        with("a route that takes gRPC only", "/m/grpc", "content-type: application/grpc+proto"),
        with("a route that takes gRPC only, plain", "/m/grpc", "content-type: application/json"),
    ];
    // The server's own fields are passed on, but for those of one connection.
    rows.push(lines("fields of an answer", "x-a: 1").up(&[super::upstream::Step::Say(
        "HTTP/1.1 299 Own Words\r\ncontent-length: 0\r\nX-Up: a\r\nx-up: b\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n\
         server: theirs\r\nvia: 1.1 u\r\nkeep-alive: 5\r\nx-request-id: up\r\nx-envoy-upstream-service-time: 77\r\n\
         x-envoy-immediate-health-check-fail: 1\r\n\r\n",
    )]));
    rows
}

const ENVOY_FIELDS: &str = "x-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 3\r\nx-envoy-upstream-rq-timeout-ms: 5000\r\n\
                            x-envoy-internal: true\r\nx-envoy-force-trace: 1\r\nx-envoy-decorator-operation: a\r\n\
                            x-envoy-downstream-service-cluster: a\r\nx-envoy-external-address: 1.1.1.1\r\nx-envoy-peer-metadata: a\r\n\
                            x-envoy-upstream-alt-stat-name: a";
