//! Matchers, redirects, answers without a server, rewrites and header edits.

use super::{
    row::{Row, get, raw, with},
    upstream::Step::Say,
};

pub(super) fn rows() -> Vec<Row> {
    let mut rows = vec![
        get("an answer of the route's own", "/direct"),
        get("an answer without body, with an added field", "/teapot"),
        get("no route", "/none"),
        get("a redirect to https", "/r/https?q=1"),
        get("a redirect to a host", "/r/host?q=1"),
        get("a redirect to a port", "/r/port?q=1"),
        get("a redirect to a path", "/r/path?q=1"),
        get("a redirect to a path with a query", "/r/path-query?q=1"),
        get("a redirect of a prefix", "/r/prefix/a?q=1"),
        get("a redirect without the query", "/r/strip?q=1"),
        get("a redirect of everything", "/r/all/a/b?q=1"),
        raw("a redirect keeps the host's port", "GET /r/https HTTP/1.1\r\nhost: h:80\r\n\r\n"),
        raw("a redirect to a port of a host with one", "GET /r/port HTTP/1.1\r\nhost: h:80\r\n\r\n"),
        raw("a redirect of a POST with a body", "POST /r/path HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nab"),
        get("an exact path", "/m/exact"),
        get("an exact path with a query", "/m/exact?a"),
        get("an exact path and more", "/m/exact/"),
        get("a path of any case", "/m/nOcAsE"),
        get("a path by segments", "/m/sep/a"),
        get("a path by segments, whole", "/m/sep"),
        get("a path that only begins so", "/m/separate"),
        get("a path by expression", "/m/re/42?a"),
        get("a path that holds the expression", "/m/re/42/a"),
        get("a route for nobody", "/m/zero"),
        raw("a method", "PUT /h/put HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n"),
        get("another method", "/h/put"),
        raw("an authority", "GET /h/authority HTTP/1.1\r\nhost: h.example\r\n\r\n"),
        get("a query parameter", "/q/exact?b=2&a=1"),
        get("a query parameter's other value", "/q/exact?a=2"),
        get("a query parameter escaped", "/q/exact?%61=1"),
        get("a query parameter twice", "/q/exact?a=2&a=1"),
        get("a query parameter without value", "/q/present?a"),
        get("no query parameter", "/q/present"),
        get("a rewritten prefix", "/w/old/a?q=1"),
        get("a rewritten prefix, whole", "/w/old"),
        get("a rewritten prefix that only begins so", "/w/older"),
        get("a prefix rewritten to the root", "/w/root/a"),
        get("a rewritten host", "/w/host"),
        get("weights", "/w/weights"),
        with("added fields", "/w/edits", "user-agent: t").up(&[Say(EDITED)]),
        with(
            "added fields that are there",
            "/w/edits",
            "x-append: a\r\nx-absent: a\r\nx-over: a\r\nx-over: b\r\nx-only: a\r\nx-gone: a\r\nx-empty: a\r\naccept-encoding: gzip",
        )
        .up(&[Say(EDITED)]),
    ];
    let values: [(&str, &str); 8] = [
        ("its value", "x-a: One"),
        ("its value in another case", "x-a: one"),
        ("another value", "x-a: Two"),
        ("no field", "x-b: 1"),
        ("two fields", "x-a: Two\r\nx-a: One"),
        ("a number", "x-a: -5"),
        ("a number too large", "x-a: 10"),
        ("an empty value", "x-a:"),
    ];
    for matcher in
        ["exact", "nocase", "prefix", "suffix", "contains", "regex", "range", "present", "absent", "not", "empty"]
    {
        for (name, line) in values {
            let name: &'static str = Box::leak(format!("matcher {matcher}: {name}").into_boxed_str());
            rows.push(with(name, &format!("/h/{matcher}"), line));
        }
    }
    rows
}

const EDITED: &str =
    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-up: server\r\nx-mine: server\r\nx-secret: server\r\n\r\nok";
