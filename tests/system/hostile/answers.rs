//! Servers whose answers are broken, cut or more than was asked.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    alone::talk,
    witness::{Witness, say, say_last},
};

use super::{Failures, Front, add};

pub(super) fn trials(trials: &mut Vec<Trial>) {
    add(trials, "answers without one meaning are 502 and their connection is not used again", refused);
    add(trials, "answers that are cut are cut for the client", cut);
    add(trials, "what a server sends beyond its answer reaches nobody", beyond);
}

const QUIET: Duration = Duration::from_secs(3);

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").into_bytes()
}

/// A server that answers `/N` with row N and keeps the connection, and all else with 200.
async fn server(rows: Vec<String>, close: bool) -> Result<Witness> {
    Witness::start(move |asked, stream| {
        let row = asked.path[1..].parse().ok().and_then(|n: usize| rows.get(n).cloned());
        async move {
            match row {
                Some(row) if close => say_last(stream, row.into_bytes()).await,
                Some(row) => say(stream, row.into_bytes()).await,
                None => say(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec()).await,
            }
        }
    })
    .await
}

async fn refused() -> Result<()> {
    let with = |line: &str| format!("HTTP/1.1 200 OK\r\n{line}\r\n\r\nhello");
    let chunked = |line: &str| format!("HTTP/1.1 200 OK\r\n{line}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    let rows = vec![
        chunked("content-length: 5\r\ntransfer-encoding: chunked"),
        chunked("transfer-encoding: chunked\r\ncontent-length: 0"),
        chunked("transfer-encoding: gzip, chunked"),
        chunked("transfer-encoding: chunked, gzip"),
        chunked("transfer-encoding: chunked\r\ntransfer-encoding: chunked"),
        chunked("transfer-encoding: xchunked"),
        chunked("transfer-encoding: chunked;x"),
        with("transfer-encoding: identity\r\ncontent-length: 5"),
        with("content-length: 5\r\ncontent-length: 6"),
        with("content-length: 5, 6"),
        with("content-length: +5"),
        with("content-length: -5"),
        with("content-length: 0x5"),
        with("content-length: 99999999999999999999"),
        with("content-length:"),
        with("content-length : 5"),
        with("x: \0\r\ncontent-length: 5"),
        with("x: a\u{1}\r\ncontent-length: 5"),
        with("x: a\rb\r\ncontent-length: 5"),
        with("x: a\r\n folded\r\ncontent-length: 5"),
        with("no colon\r\ncontent-length: 5"),
        with(": no name\r\ncontent-length: 5"),
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nhello".to_owned(),
        "HTTP/2.0 200 OK\r\ncontent-length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 20 OK\r\ncontent-length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 099 No\r\ncontent-length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 2000 OK\r\ncontent-length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 2x0 OK\r\ncontent-length: 5\r\n\r\nhello".to_owned(),
        "ICY 200 OK\r\ncontent-length: 5\r\n\r\nhello".to_owned(),
        "220 smtp.example.com ESMTP\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{3}\0\u{2}\u{2}(".repeat(4),
        format!(
            "{}HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 103 Early Hints\r\nx: 1\r\n\r\n".repeat(9)
        ),
        with(&format!("x: {}\r\ncontent-length: 5", "a".repeat(65 << 10))),
        with(&format!("{}content-length: 5", "x: 1\r\n".repeat(101))),
    ];
    let up = server(rows.clone(), false).await?;
    let mut front = Front::before(&up).await?;
    let mut failures = Failures::default();
    for (number, row) in rows.iter().enumerate() {
        let row = &row[..row.len().min(120)];
        let came = talk(front.front, &get(&format!("/{number}")), QUIET).await?;
        let answer = came.text();
        failures.check(answer.starts_with("HTTP/1.1 502 "), || format!("{row:?} was answered {answer:?}"));
        failures.check(!answer.contains("hello"), || format!("{row:?} came to the client: {answer:?}"));
        let before = up.connections();
        let next = talk(front.front, &get("/next"), QUIET).await?.text();
        failures
            .check(next.starts_with("HTTP/1.1 200 ") && next.ends_with("ok"), || format!("after {row:?}: {next:?}"));
        failures
            .check(up.connections() > before || next.is_empty(), || format!("{row:?}: its connection was used again"));
    }
    let eight = vec![format!(
        "{}HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(8)
    )];
    let up = server(eight, false).await?;
    let front_of_eight = Front::before(&up).await?;
    let answer = talk(front_of_eight.front, &get("/0"), QUIET).await?.text();
    failures.check(answer.contains("HTTP/1.1 200 ") && answer.ends_with("hello"), || {
        format!("eight interim answers: {answer:?}")
    });
    front.proxy.healthy()?;
    failures.none()
}

async fn cut() -> Result<()> {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let rows = vec![
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello".to_owned(),
        format!("{chunked}5\r\nhello\r\n"),
        format!("{chunked}5\r\nhel"),
        format!("{chunked}5\r\nhello\r\n0\r\n"),
        format!("{chunked}5\r\nhello\r\n-1\r\n\r\n"),
        format!("{chunked}5\r\nhello!\r\n0\r\n\r\n"),
        format!("{chunked}5\r\nhello\r\nfffffffffffffffff\r\nx"),
        format!("{chunked}5\r\nhello\r\n0\r\nx: \0\r\n\r\n"),
    ];
    let up = server(rows.clone(), true).await?;
    let mut front = Front::before(&up).await?;
    let mut failures = Failures::default();
    for (number, row) in rows.iter().enumerate() {
        let answer = talk(front.front, &get(&format!("/{number}")), QUIET).await?;
        let text = answer.text();
        let whole = text.ends_with("0\r\n\r\n") || text.contains("content-length: 5\r\n");
        // Where the fault comes at once, 502 is as good as half an answer.
        failures.check(text.starts_with("HTTP/1.1 502") || !whole, || format!("{row:?} looks whole: {text:?}"));
        failures.check(answer.ended, || format!("{row:?}: the connection was not ended: {text:?}"));
    }
    // Over HTTP/2 the stream is reset.
    for (number, row) in rows.iter().enumerate() {
        use oxmesh_tests::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, frame, get, parse, preface};
        let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &get(&format!("/{number}")));
        let came = talk(front.front, &[preface(&[]), head].concat(), Duration::from_millis(500)).await?;
        let frames = parse(&came.bytes);
        let clean =
            frames.iter().any(|f| f.stream == 1 && matches!(f.kind, DATA | HEADERS) && f.flags & END_STREAM != 0);
        let refused = frames.iter().any(|f| f.status() == Some(502));
        failures.check(refused || !clean, || format!("{row:?} looks whole over HTTP/2: {frames:?}"));
    }
    front.proxy.healthy()?;
    failures.none()
}

async fn beyond() -> Result<()> {
    let poison = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    let rows = vec![
        format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok{poison}"),
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{poison}"),
        format!("HTTP/1.1 204 No Content\r\n\r\n{poison}"),
        format!("HTTP/1.1 204 No Content\r\ncontent-length: 6\r\n\r\npoison{poison}"),
        format!("HTTP/1.1 304 Not Modified\r\ncontent-length: 6\r\n\r\npoison{poison}"),
        format!("HTTP/1.1 205 Reset\r\ncontent-length: 0\r\n\r\n{poison}"),
    ];
    let up = server(rows.clone(), false).await?;
    let mut front = Front::before(&up).await?;
    let mut failures = Failures::default();
    for (number, row) in rows.iter().enumerate() {
        for round in 0..5 {
            let answer = talk(front.front, &get(&format!("/{number}")), QUIET).await?.text();
            failures.check(!answer.contains("poison"), || format!("{row:?} as a whole came to the client: {answer:?}"));
            let next = talk(front.front, &get("/next"), QUIET).await?.text();
            let fine = next.starts_with("HTTP/1.1 200 ") && next.ends_with("ok");
            failures.check(fine, || format!("round {round}: after {row:?} the next client got {next:?}"));
        }
    }
    // An answer to HEAD has no body, whatever comes.
    let head = b"HEAD /0 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let answer = talk(front.front, head, QUIET).await?.text();
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "HEAD got {answer:?}");
    let next = talk(front.front, &get("/next"), QUIET).await?.text();
    failures.check(next.ends_with("ok"), || format!("after HEAD: {next:?}"));
    front.proxy.healthy()?;
    failures.none()
}
