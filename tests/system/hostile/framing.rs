//! HTTP/1 requests that servers read in different ways: refused and the connection closed, or of one meaning upstream.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{alone::talk, eventually, witness::Witness};

use super::{Failures, Front, add};

pub(super) fn trials(trials: &mut Vec<Trial>) {
    add(trials, "requests of doubtful framing are refused, and what follows them is never read", refused);
    add(trials, "broken chunked bodies never end upstream, and what follows them is never read", broken_chunks);
    add(trials, "requests of one meaning arrive upstream once and plainly", served);
    add(trials, "trailers bring no framing, no host and no credentials upstream", trailers);
    add(trials, "a line of the access log is a line, whatever a client sends", log_lines);
}

const QUIET: Duration = Duration::from_millis(700);
const NEXT: &str = "GET /next HTTP/1.1\r\nhost: h\r\n\r\n";

/// A request with one more header line.
fn with(line: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: h\r\n{line}\r\n\r\n")
}

async fn refused() -> Result<()> {
    let up = Witness::ok().await?;
    let mut front = Front::before(&up).await?;
    let mut failures = Failures::default();
    let mut rows: Vec<String> = [
        // Lengths.
        "content-length: 0\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5, 6",
        "content-length: +5",
        "content-length: -5",
        "content-length: 0x5",
        "content-length: 5 5",
        "content-length: 5;",
        "content-length: \"5\"",
        "content-length: 18446744073709551616",
        "content-length: 9223372036854775808",
        "content-length:",
        "content-length: a",
        "content-length: 1_0",
        "content_length: 5",
        // Codings.
        "transfer-encoding: identity",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: x\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked;q=1",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked,",
        "transfer-encoding:\u{b}chunked",
        "transfer-encoding: \u{1}chunked",
        "transfer-encoding: chun ked",
        "transfer-encoding:",
        "transfer_encoding: chunked",
        // Lines.
        "transfer-encoding : chunked",
        "content-length\t: 5",
        "x: 1\r\n folded",
        "x: 1\r\n\tfolded: 2",
        ": no name",
        "no colon",
        "x: \0",
        "x: a\u{1}b",
        "x: a\u{7f}b",
        "x\0: 1",
        "x y: 1",
        "x: a\rb",
        "x: a\rtransfer-encoding: chunked",
        "x: a\ntransfer-encoding: chunked",
        "x[]: 1",
        "x\u{e9}: 1",
        // Other names of headers that proxies set.
        "x_forwarded_for: 1.2.3.4",
        "x_forwarded_proto: https",
        "x_request_id: 1",
        // Hosts.
        "host: other",
        "host: h",
    ]
    .map(with)
    .to_vec();
    rows.extend(
        [
            // Requests whose host is doubtful.
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nhost:\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: user@h\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: h/path\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a, b\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: h:99999999\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: h:8o\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: [::1\r\n\r\n",
            "GET http://user@h/ HTTP/1.1\r\nhost: h\r\n\r\n",
            " GET / HTTP/1.1\r\nhost: h\r\n\r\n",
            // Request lines.
            "GET /\r\n",
            "GET /\r\n\r\n",
            "GET / HTTP/0.9\r\nhost: h\r\n\r\n",
            "GET / HTTP/1.0\r\nhost: h\r\n\r\n",
            "POST / HTTP/1.0\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.2\r\nhost: h\r\n\r\n",
            "GET / HTTP/2.0\r\nhost: h\r\n\r\n",
            "GET / HTTP/11\r\nhost: h\r\n\r\n",
            "GET / http/1.1\r\nhost: h\r\n\r\n",
            "GET / HTTP/1.1 x\r\nhost: h\r\n\r\n",
            "GET /a b HTTP/1.1\r\nhost: h\r\n\r\n",
            "GET  / HTTP/1.1\r\nhost: h\r\n\r\n",
            "GET\t/ HTTP/1.1\r\nhost: h\r\n\r\n",
            "GET /\tHTTP/1.1\r\nhost: h\r\n\r\n",
            "G(T / HTTP/1.1\r\nhost: h\r\n\r\n",
            "GET\0 / HTTP/1.1\r\nhost: h\r\n\r\n",
            "GET /\0 HTTP/1.1\r\nhost: h\r\n\r\n",
            "GET /\u{1} HTTP/1.1\r\nhost: h\r\n\r\n",
            "GET /\u{7f} HTTP/1.1\r\nhost: h\r\n\r\n",
            "GET / HTTP/1.1\r\n host: h\r\n\r\n",
            "GET / HTTP/1.1\r\n\thost: h\r\nx: 1\r\n\r\n",
            "GET / HTTP/1.1\r\rhost: h\r\r",
            "\u{16}\u{3}\u{1}\0\0",
            "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        ]
        .map(str::to_owned),
    );
    for row in rows {
        let came = talk(front.front, format!("{row}{NEXT}").as_bytes(), QUIET).await?;
        let (requests, rest) = up.take();
        let answer = came.text();
        let status = answer.split(' ').nth(1).unwrap_or("none").to_owned();
        failures
            .check(requests.is_empty() && rest.is_empty(), || format!("{row:?} went upstream: {requests:?} {rest:?}"));
        let refused = matches!(status.as_bytes(), [b'4', _, _] | b"501" | b"505");
        failures.check(refused, || format!("{row:?} was answered {answer:?}"));
        failures.check(answer.matches("HTTP/1.").count() == 1, || format!("{row:?}: more than one answer {answer:?}"));
        failures.check(came.ended, || format!("{row:?} left the connection open"));
    }
    front.proxy.healthy()?;
    failures.none()
}

async fn broken_chunks() -> Result<()> {
    let up = Witness::ok().await?;
    let mut front = Front::before(&up).await?;
    let mut failures = Failures::default();
    let long_extension = format!("2;{}\r\nab\r\n0\r\n\r\n", "x".repeat(64 << 10));
    for row in [
        "0x2\r\nab\r\n0\r\n\r\n",
        "+2\r\nab\r\n0\r\n\r\n",
        "-2\r\nab\r\n0\r\n\r\n",
        "2_\r\nab\r\n0\r\n\r\n",
        "2g\r\nab\r\n0\r\n\r\n",
        " 2\r\nab\r\n0\r\n\r\n",
        "\r\n2\r\nab\r\n0\r\n\r\n",
        "2\nab\n0\n\n",
        "2\r\nab\n0\r\n\r\n",
        "2\rab\r\n0\r\n\r\n",
        "2\r\nabc\r\n0\r\n\r\n",
        "2\r\na\r\n0\r\n\r\n",
        "2\r\nab0\r\n\r\n",
        "fffffffffffffffff\r\nab\r\n0\r\n\r\n",
        "10000000000000002\r\nab\r\n0\r\n\r\n",
        "2;\nx\r\nab\r\n0\r\n\r\n",
        "2;a\rb\r\nab\r\n0\r\n\r\n",
        "0\r\nx\r\n\r\n",
        "0\r\n x: 1\r\n\r\n",
        "0\r\nx: \0\r\n\r\n",
        "0\r\nx: 1\nGET /next HTTP/1.1\n\n",
        "0\nGET /next HTTP/1.1\r\n\r\n",
        &long_extension,
    ] {
        let request = format!("{}{row}{NEXT}", with("transfer-encoding: chunked"));
        let came = talk(front.front, request.as_bytes(), QUIET).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let (requests, rest) = up.take();
        let (row, answer) = (&row[..row.len().min(60)], came.text());
        failures.check(requests.is_empty(), || format!("{row:?} was whole upstream: {requests:?}"));
        failures.check(!rest.contains("/next"), || format!("{row:?} brought upstream {rest:?}"));
        failures.check(answer.matches("HTTP/1.1 ").count() <= 1 && !answer.contains(" 200 "), || {
            format!("{row:?} was answered {answer:?}")
        });
        failures.check(came.ended, || format!("{row:?} left the connection open"));
    }
    front.proxy.healthy()?;
    failures.none()
}

async fn served() -> Result<()> {
    let up = Witness::ok().await?;
    let mut front = Front::before(&up).await?;
    let mut failures = Failures::default();
    let chunks = "transfer-encoding: chunked";
    // What is sent; what must be in the request upstream; what must not.
    let rows: Vec<(String, Vec<&str>, Vec<&str>)> = vec![
        (format!("{}hello", with("content-length: 5")), vec!["\r\ncontent-length: 5\r\n", "hello"], vec![]),
        (format!("{}5\r\nhello\r\n0\r\n\r\n", with(chunks)), vec!["hello\r\n0\r\n\r\n"], vec!["content-length"]),
        (format!("{}5;ext=1;\"x\"\r\nhello\r\n0\r\n\r\n", with(chunks)), vec!["hello\r\n0\r\n\r\n"], vec!["ext"]),
        (
            format!("{}5\r\nhello\r\n0\r\n\r\n", with(&format!("content-length: 5\r\n{chunks}"))),
            vec!["transfer-encoding: chunked", "hello\r\n0\r\n\r\n"],
            vec!["content-length"],
        ),
        (
            format!("{}5\r\nhello\r\n0\r\n\r\n", with(&format!("{chunks}\r\ncontent-length: 0"))),
            vec!["transfer-encoding: chunked", "hello\r\n0\r\n\r\n"],
            vec!["content-length"],
        ),
        (
            with("connection: content-length, transfer-encoding, host, x-mine\r\nx-mine: 1\r\ncontent-length: 0"),
            vec!["host: h"],
            vec!["x-mine", "\r\nconnection:"],
        ),
        (
            with(
                "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\ncontent-length: 0",
            ),
            vec!["host: h"],
            vec!["h2c", "http2-settings", "upgrade"],
        ),
        (with("te: trailers, gzip\r\ncontent-length: 0"), vec!["te: trailers\r\n"], vec!["gzip"]),
        (with("keep-alive: 300\r\nproxy-connection: close\r\ncontent-length: 0"), vec![], vec!["keep-alive", "proxy-"]),
        (
            "GET http://h/abs?q HTTP/1.1\r\nhost: other\r\n\r\n".to_owned(),
            vec!["GET /abs?q HTTP/1.1", "host: h"],
            vec!["other"],
        ),
        ("GET / HTTP/1.1\r\nhost: H.Example:80\r\n\r\n".to_owned(), vec!["GET / HTTP/1.1"], vec![]),
        // RFC 9112 section 2.2 lets a bare LF end a line; what goes on has CRLF, so that nobody reads it otherwise.
        (
            "GET / HTTP/1.1\nhost: h\nx: 1\n\n".to_owned(),
            vec!["GET / HTTP/1.1\r\nhost: h\r\nx: 1\r\n"],
            vec!["\n\n", "h\nx"],
        ),
        (format!("{}2;a\0\r\nab\r\n0\r\n\r\n", with(chunks)), vec!["\r\n2\r\nab\r\n0\r\n\r\n"], vec!["\0"]),
        (format!("{}2;a=\"\r\nab\r\n0\r\n\r\n", with(chunks)), vec!["\r\n2\r\nab\r\n0\r\n\r\n"], vec!["a=\""]),
        ("\r\nGET / HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(), vec!["GET / HTTP/1.1"], vec![]),
        ("get / HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(), vec!["get / HTTP/1.1"], vec![]),
        ("GET / HTTP/1.1\r\nhost: h\r\nx: \t padded \t\r\n\r\n".to_owned(), vec!["\r\nx: padded\r\n"], vec![]),
        (
            "GET / HTTP/1.1\r\nhost: h\r\nx-envoy-retry-on: 5xx\r\nx-forwarded-client-cert: forged\r\n\r\n".to_owned(),
            vec![],
            vec!["retry-on", "forged"],
        ),
    ];
    for (row, has, has_not) in rows {
        // Framed twice, the connection must not be used again; else the next request is the next request.
        let twice = row.contains("content-length") && row.contains("\r\ntransfer-encoding");
        let came = talk(front.front, format!("{row}{NEXT}").as_bytes(), Duration::from_millis(250)).await?;
        let (requests, rest) = up.take();
        let answer = came.text();
        let expected = if twice { 1 } else { 2 };
        failures.check(requests.len() == expected && rest.is_empty(), || {
            format!("{row:?} upstream: {requests:?} {rest:?}")
        });
        failures
            .check(answer.matches("HTTP/1.1 200 ").count() == expected, || format!("{row:?} was answered {answer:?}"));
        failures.check(came.ended == twice, || format!("{row:?}: the connection's end is wrong: {answer:?}"));
        let first = requests.first().cloned().unwrap_or_default();
        for part in has {
            failures.check(first.contains(part), || format!("{row:?}: {part:?} is not in {first:?}"));
        }
        for part in has_not {
            failures.check(!first.to_lowercase().contains(part), || format!("{row:?}: {part:?} is in {first:?}"));
        }
    }
    front.proxy.healthy()?;
    failures.none()
}

async fn trailers() -> Result<()> {
    let up = Witness::ok().await?;
    let mut front = Front::before(&up).await?;
    let mut failures = Failures::default();
    for name in [
        "content-length: 5",
        "transfer-encoding: chunked",
        "host: other",
        "authorization: forged",
        "connection: close",
        "x-forwarded-client-cert: forged",
        "x-envoy-retry-on: 5xx",
        "cookie: forged",
    ] {
        let request = format!(
            "{}2\r\nab\r\n0\r\n{name}\r\nx-fine: 1\r\n\r\n",
            with("te: trailers\r\ntrailer: x-fine\r\ntransfer-encoding: chunked")
        );
        let came = talk(front.front, request.as_bytes(), Duration::from_millis(250)).await?;
        let (requests, rest) = up.take();
        let seen = format!("{requests:?} {rest:?}");
        let body = seen.split("\\r\\n\\r\\n").nth(1).unwrap_or_default().to_owned();
        failures.check(!body.contains(name), || format!("{name:?} came upstream: {seen}"));
        failures.check(requests.len() <= 1, || format!("{name:?} made more requests: {seen}"));
        let answer = came.text();
        failures.check(answer.matches("HTTP/1.").count() == 1, || format!("{name:?} was answered {answer:?}"));
    }
    for many in ["x: 1\r\n".repeat(5000), format!("x: {}\r\n", "a".repeat(100 << 10))] {
        let request = format!("{}2\r\nab\r\n0\r\n{many}\r\n", with("transfer-encoding: chunked"));
        talk(front.front, request.as_bytes(), QUIET).await?;
        let (requests, _) = up.take();
        failures.check(requests.is_empty(), || format!("trailers of {} bytes came upstream", many.len()));
    }
    front.proxy.healthy()?;
    failures.none()
}

async fn log_lines() -> Result<()> {
    let up = Witness::ok().await?;
    let front = Front::before(&up).await?;
    let values = ["a\u{85}200 b", "\u{9b}31m", "\"quoted\" \\n \\u000a", "\u{e9}\u{fffd}", "%0d%0a200", "\t200\t"];
    for (number, value) in values.iter().enumerate() {
        let request = format!("GET /{number} HTTP/1.1\r\nhost: h\r\nuser-agent: {value}\r\nconnection: close\r\n\r\n");
        talk(front.front, request.as_bytes(), QUIET).await?;
    }
    let requests = up.requests();
    eventually("each request has its line", Duration::from_secs(5), || async {
        let log = front.proxy.file("access.log");
        ensure!(log.lines().count() == requests.len() && !requests.is_empty(), "{log:?}");
        for line in log.lines() {
            ensure!(line.starts_with("200 - ") && !line.contains(char::is_control), "{line:?}");
        }
        Ok(())
    })
    .await
}
