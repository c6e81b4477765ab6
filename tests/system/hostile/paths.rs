//! Spellings of a path that a rule denies: whatever a lenient server makes of what it gets, it is not the denied path.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    alone::{message_end, talk},
    frames::{END_HEADERS, END_STREAM, HEADERS, frame, get, preface},
    witness::Witness,
};

use super::{Failures, Front, add};

pub(super) fn trials(trials: &mut Vec<Trial>) {
    add(trials, "no spelling of a denied path reaches it on a lenient server", denied);
    add(trials, "a header that denies does so on any of its lines", marked);
}

/// Ways to write `/admin`, and ways to come there.
fn spellings() -> Vec<String> {
    let names = [
        "admin",
        "%61dmin",
        "adm%69n",
        "%61%64%6d%69%6e",
        "%61%64%6D%69%6E",
        "%2561dmin",
        "%25%36%31dmin",
        "%u0061dmin",
        "a%64min",
        "admin;x",
        "admin;x=1;y=2",
        "admin%3bx",
        "admin%00",
        "admin%00.png",
        "admin%0d",
        "admin%20",
        "admin.",
        "admin%2e",
        "%c1%a1dmin",
        "%e0%81%a1dmin",
        "admin#x",
        "admin%23x",
        "admin?x",
        "admin%3fx",
        "admin/",
        "admin//",
        "admin/.",
        "admin%2f",
        "admin%5c",
        "admin\\",
        "admin/x/..",
        "admin/%2e%2e/admin",
    ];
    let ways = [
        "/",
        "//",
        "///",
        "/./",
        "/.//",
        "//./",
        "/../",
        "/x/../",
        "/x/y/../../",
        "/x//../",
        "/x/./../",
        "/%2e/",
        "/%2E/",
        "/x/%2e%2e/",
        "/x/%2e./",
        "/x/.%2e/",
        "/%2f",
        "/%2F",
        "/%2f%2f",
        "/x%2f..%2f",
        "/x/..%2f",
        "/x%2f../",
        "/\\",
        "\\",
        "/x\\..\\",
        "/x/..\\",
        "/%5c",
        "/x%5c..%5c",
        "/x/..%5c",
        "/;/",
        "/;x/",
        "/;x=1/",
        "/.;/",
        "/.;x/",
        "/x/..;/",
        "/x/..;a=b/",
        "/x;y/../",
        "/x/;/../",
        "/x/%2e%2e;/",
        "/x/..%3b/",
        "/x/%252e%252e/",
        "/%252f",
        "/x/%252e%252e%252f",
        "/x/%c0%ae%c0%ae/",
        "/%c0%af",
        "/x/%e0%80%ae%e0%80%ae/",
        "/%e0%80%af",
        "/%f0%80%80%af",
        "/x/%u002e%u002e/",
        "/%uff0f",
        "/x/..%00/",
        "/x/..%0d/",
        "/x/%00../",
        "/x%23/../",
        "/x/..%252f",
        "/%09/",
        "/%20/../",
        "/x/...//../../",
        "/.%00/",
        "/%25%32%66",
        "/x/%25%32%65%25%32%65/",
        "http://h/",
        "http://h//",
        "http://h/x/../",
        "http://h/%2e/",
    ];
    let mut all: Vec<String> = ways.iter().map(|way| format!("{way}admin/secret")).collect();
    all.extend(names.iter().map(|name| format!("/{name}")));
    all.extend(names.iter().map(|name| format!("/x/../{name}/secret")));
    all
}

/// What the most lenient servers together would take `target` for; every reading.
fn readings(target: &str) -> Vec<String> {
    let mut found = Vec::new();
    for decodings in 0..=3 {
        for early_parameters in [false, true] {
            let path = target.split(['?', '#']).next().unwrap_or_default();
            let mut path = path.as_bytes().to_vec();
            if early_parameters {
                path = without_parameters(&path);
            }
            for _ in 0..decodings {
                path = decoded(&path);
            }
            let text = String::from_utf8_lossy(&path).replace('\\', "/");
            for text in [text.clone(), String::from_utf8_lossy(&without_parameters(text.as_bytes())).into_owned()] {
                let cut = text.split(['\0', '?', '#']).next().unwrap_or_default().to_owned();
                let dropped: String = text.chars().filter(|c| !c.is_control()).collect();
                found.extend([resolved(&text), resolved(&cut), resolved(&dropped)]);
            }
        }
    }
    found
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    let segments = path.split(|b| *b == b'/').map(|s| s.split(|b| *b == b';').next().unwrap_or_default());
    segments.collect::<Vec<_>>().join(&b'/')
}

/// One round of decoding, with overlong UTF-8 and `%uXXXX` taken at their worst.
fn decoded(path: &[u8]) -> Vec<u8> {
    let hex = |bytes: Option<&[u8]>| {
        bytes.and_then(|b| std::str::from_utf8(b).ok()).and_then(|text| u32::from_str_radix(text, 16).ok())
    };
    let mut out = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let rest = &path[at..];
        if rest.starts_with(b"%u")
            && let Some(code) = hex(rest.get(2..6))
        {
            out.push(if code > 0xff00 { (code - 0xfee0) as u8 } else { code as u8 });
            at += 6;
        } else if rest[0] == b'%'
            && let Some(code) = hex(rest.get(1..3))
        {
            out.push(code as u8);
            at += 3;
        } else {
            out.push(rest[0]);
            at += 1;
        }
    }
    let mut plain = Vec::new();
    let mut rest = out.as_slice();
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (0xc0 | 0xc1, [second, after @ ..]) => {
                plain.push((first & 1) << 6 | second & 0x3f);
                after
            }
            (0xe0, [second @ 0x80..=0x9f, third, after @ ..]) => {
                plain.push((second & 1) << 6 | third & 0x3f);
                after
            }
            (0xf0, [0x80..=0x8f, third, fourth, after @ ..]) => {
                plain.push((third & 1) << 6 | fourth & 0x3f);
                after
            }
            _ => {
                plain.push(*first);
                after
            }
        };
    }
    plain
}

fn resolved(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment.trim() {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other.trim_end_matches('.')),
        }
    }
    format!("/{}", segments.join("/"))
}

async fn denied() -> Result<()> {
    let up = Witness::ok().await?;
    let mut front = Front::before(&up).await?;
    let mut failures = Failures::default();
    let mut counts = [0; 3];
    for target in spellings() {
        let over_http1 = format!("GET {target} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").into_bytes();
        let over_http2 = [preface(&[]), frame(HEADERS, END_HEADERS | END_STREAM, 1, &get(&target))].concat();
        for bytes in [over_http1, over_http2] {
            // HTTP/2 keeps the connection, so that the answer is all there is to wait for.
            let http2 = message_end(&bytes, true).is_none_or(|end| end < bytes.len());
            let came = talk(front.front, &bytes, Duration::from_millis(if http2 { 120 } else { 3_000 })).await?;
            let (requests, _) = up.take();
            counts[if requests.is_empty() { 0 } else { 1 }] += 1;
            for request in &requests {
                counts[2] += 1;
                let seen = request.split(' ').nth(1).unwrap_or_default();
                let reached = readings(seen).into_iter().find(|reading| reading.starts_with("/admin"));
                failures.check(reached.is_none(), || {
                    format!("{target:?} went upstream as {seen:?}, which may be {reached:?}")
                });
            }
            failures.check(http2 || came.ended, || format!("{target:?}: no answer"));
        }
    }
    let answer = |target: &'static str| {
        let request = format!("GET {target} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
        async move { Ok::<_, anyhow::Error>(talk(front.front, request.as_bytes(), Duration::from_secs(3)).await?.text()) }
    };
    ensure!(answer("/admin").await?.starts_with("HTTP/1.1 403 "), "the rule does not work");
    ensure!(answer("/x/../fine;x=1/a%20b").await?.starts_with("HTTP/1.1 200 "), "what is not denied is not served");
    let (requests, _) = up.take();
    ensure!(requests[0].starts_with("GET /fine;x=1/a%20b "), "not the canonical form upstream: {requests:?}");
    front.proxy.healthy()?;
    failures.none()
}

async fn marked() -> Result<()> {
    let up = Witness::ok().await?;
    let front = Front::before(&up).await?;
    for lines in ["x-mark: evil", "x-mark: evil\r\nx-mark: fine", "x-mark: fine\r\nX-MARK: evil", "x-mark:\tevil "] {
        let request = format!("GET / HTTP/1.1\r\nhost: h\r\n{lines}\r\nconnection: close\r\n\r\n");
        let answer = talk(front.front, request.as_bytes(), Duration::from_secs(3)).await?.text();
        ensure!(answer.starts_with("HTTP/1.1 403 "), "{lines:?} was answered {answer:?}");
    }
    ensure!(up.requests().is_empty(), "upstream saw {:?}", up.requests());
    Ok(())
}
