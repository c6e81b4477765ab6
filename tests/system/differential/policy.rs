//! Access rules and limits of routes.

use super::row::{Row, get, raw, with};

pub(super) fn rows() -> Vec<Row> {
    vec![
        get("an allowed request", "/p/allow"),
        raw("a method that no rule allows", "POST /p/allow HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nab"),
        with("a field that a rule excludes", "/p/allow", "x-evil: 1"),
        with("a path that a second rule allows", "/p/allow/any?q=1", "x-evil: 1"),
        get("rules that allow nobody", "/p/nobody"),
        with("a denied request of gRPC", "/p/nobody", "content-type: application/grpc"),
        raw("a denied HEAD", "HEAD /p/nobody HTTP/1.1\r\nhost: h\r\n\r\n"),
        raw("a denied request asks to close", "GET /p/nobody HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"),
        raw(
            "a denied request before a good one",
            "GET /p/nobody HTTP/1.1\r\nhost: h\r\n\r\nGET /x HTTP/1.1\r\nhost: h\r\n\r\n",
        )
        .answers(2),
        with("a rule that denies", "/p/deny", "x-evil: yes"),
        with("a rule that denies something else", "/p/deny", "x-evil: no"),
        get("a rule that denies, without its field", "/p/deny"),
        get("a request within the limit", "/p/limited"),
        get("a request beyond the limit", "/p/limited"),
        with("a request of gRPC beyond the limit", "/p/limited", "content-type: application/grpc"),
        get("a request within a limit of another status", "/p/limited503"),
        get("a request beyond a limit of another status", "/p/limited503"),
    ]
}
