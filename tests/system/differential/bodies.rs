//! Framing, bodies, HTTP/1.0, connections kept and closed, upgrades.

use super::{
    row::{Row, get, lines, raw},
    upstream::Step::{Last, Say},
};

fn post(name: &'static str, lines: &str, body: &str) -> Row {
    raw(name, format!("POST /x HTTP/1.1\r\nhost: h\r\n{lines}\r\n\r\n{body}"))
}

pub(super) fn rows() -> Vec<Row> {
    let long = "a".repeat(200_000);
    vec![
        post("a body by length", "content-length: 5", "hello"),
        post("an empty body by length", "content-length: 0", ""),
        post("a long body by length", "content-length: 200000", &long),
        post("a body in chunks", "transfer-encoding: chunked", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
        post("an empty body in chunks", "transfer-encoding: chunked", "0\r\n\r\n"),
        post("chunks with extensions", "transfer-encoding: chunked", "5;a=b\r\nhello\r\n0\r\n\r\n"),
        post("trailers", "transfer-encoding: chunked\r\ntrailer: x-t", "2\r\nhi\r\n0\r\nx-t: 1\r\n\r\n"),
        post("chunks in capitals", "Transfer-Encoding: Chunked", "A\r\n0123456789\r\n0\r\n\r\n"),
        post("length and chunks", "content-length: 5\r\ntransfer-encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        post("two equal lengths", "content-length: 5\r\ncontent-length: 5", "hello"),
        post("two lengths", "content-length: 5\r\ncontent-length: 6", "hello"),
        post("no length", "x-a: 1", ""),
        post("a length of nonsense", "content-length: five", "hello"),
        post("an unknown coding", "transfer-encoding: gzip, chunked", "0\r\n\r\n"),
        post("a broken chunk", "transfer-encoding: chunked", "xyz\r\nhello\r\n"),
        post("Expect: 100-continue", "expect: 100-continue\r\ncontent-length: 5", "hello"),
        post("Expect of something else", "expect: a-miracle\r\ncontent-length: 5", "hello"),
        raw("a GET with a body", "GET /x HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello"),
        raw("a body for an answer of the proxy's own", "POST /direct HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello"),
        // Answers.
        get("an answer in chunks", "/x").up(&[Say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")]),
        get("an answer with trailers", "/x").up(&[Say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-t: 1\r\n\r\n")]),
        get("an answer that the end ends", "/x").up(&[Last("HTTP/1.1 200 OK\r\n\r\nok")]),
        get("204", "/x").up(&[Say("HTTP/1.1 204 No Content\r\n\r\n")]),
        get("204 with a length", "/x").up(&[Last("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n")]),
        get("304 with a length", "/x").up(&[Say("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\netag: a\r\n\r\n")]),
        get("an empty answer", "/x").up(&[Say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")]),
        get("a status nobody knows", "/x").up(&[Say("HTTP/1.1 599 Odd\r\ncontent-length: 0\r\n\r\n")]),
        get("an answer without words", "/x").up(&[Say("HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nok")]),
        get("100 before the answer", "/x").up(&[Say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")]),
        get("103 before the answer", "/x").up(&[Say("HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")]),
        get("an answer of HTTP/1.0", "/x").up(&[Last("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok")]),
        get("connection: close from the server", "/x").up(&[Last("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")]),
        raw("HEAD with a length", "HEAD /x HTTP/1.1\r\nhost: h\r\n\r\n").up(&[Say("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n")]),
        raw("HEAD in chunks", "HEAD /x HTTP/1.1\r\nhost: h\r\n\r\n").up(&[Last("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")]),
        raw("HEAD without either", "HEAD /x HTTP/1.1\r\nhost: h\r\n\r\n").up(&[Last("HTTP/1.1 200 OK\r\n\r\n")]),
        raw("HEAD of the proxy's own", "HEAD /direct HTTP/1.1\r\nhost: h\r\n\r\n"),
        // Versions and connections.
        raw("HTTP/1.0 where it is not served", "GET /x HTTP/1.0\r\nhost: h\r\n\r\n"),
        raw("HTTP/1.0", "GET /x HTTP/1.0\r\nhost: h\r\n\r\n").edge(),
        raw("HTTP/1.0 that keeps the connection", "GET /x HTTP/1.0\r\nhost: h\r\nconnection: keep-alive\r\n\r\n").edge(),
        raw("HTTP/1.0 without a host", "GET /x HTTP/1.0\r\n\r\n").edge(),
        raw("HTTP/1.0 and an answer in chunks", "GET /x HTTP/1.0\r\nhost: h\r\n\r\n")
            .edge()
            .up(&[Say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")]),
        raw("HTTP/1.2", "GET /x HTTP/1.2\r\nhost: h\r\n\r\n"),
        lines("connection: close", "connection: close"),
        lines("connection: keep-alive", "connection: keep-alive"),
        raw("two requests on a connection", "GET /x/1 HTTP/1.1\r\nhost: h\r\n\r\nGET /x/2 HTTP/1.1\r\nhost: h\r\n\r\n").answers(2),
        raw("two requests with bodies", "POST /x/1 HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nabPOST /x/2 HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\ncd").answers(2),
        raw("a good request and a broken one", "GET /x/1 HTTP/1.1\r\nhost: h\r\n\r\nbroken\r\n\r\n").answers(2),
        raw("empty lines before a request", "\r\n\r\nGET /x HTTP/1.1\r\nhost: h\r\n\r\n"),
        raw("bare line feeds", "GET /x HTTP/1.1\nhost: h\n\n"),
        raw("no HTTP", "hello world\r\n\r\n"),
        // Upgrades.
        lines("an upgrade that is allowed", "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: a")
            .up(&[Say("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")]),
        lines("an upgrade that the server refuses", "connection: upgrade\r\nupgrade: websocket"),
        lines("an upgrade that is not allowed", "connection: upgrade\r\nupgrade: other"),
        lines("an upgrade to HTTP/2", "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk"),
        lines("an upgrade that the connection does not name", "upgrade: websocket"),
    ]
}
