//! What came of a row, as fields by name, so that two proxies can be compared field by field.
//!
//! Only what differs from run to run is replaced by a word: times, random ids, ports.

use std::collections::BTreeMap;

use oxmesh_tests::alone::{Came, find, message_end};
use serde_json::Value;

/// Field → value.
pub(super) type Fields = BTreeMap<String, String>;

/// The answers in what came over a connection.
pub(super) fn answers(fields: &mut Fields, came: &Came, head: bool) {
    let mut rest = came.bytes.as_slice();
    let mut number = 0;
    while !rest.is_empty() {
        number += 1;
        // Without a length the body ends with the connection.
        let end = message_end(rest, !head).unwrap_or(rest.len());
        message(fields, &number.to_string(), &rest[..end]);
        rest = &rest[end..];
    }
    fields.insert("answers".into(), number.to_string());
    fields.insert("closed".into(), came.ended.to_string());
}

/// How many whole answers there are, interim ones aside.
pub(super) fn whole(mut bytes: &[u8], head: bool) -> usize {
    let mut count = 0;
    while let Some(end) = message_end(bytes, !head) {
        let switching = bytes.starts_with(b"HTTP/1.1 101");
        count += usize::from(switching || !bytes.starts_with(b"HTTP/1.1 1"));
        bytes = &bytes[end..];
    }
    count
}

/// The whole requests that the server saw.
pub(super) fn upstream(fields: &mut Fields, requests: &[String]) {
    fields.insert("up".into(), requests.len().to_string());
    for (number, request) in requests.iter().enumerate() {
        message(fields, &format!("up.{}", number + 1), request.as_bytes());
    }
}

/// Lines of the access log.
pub(super) fn log(fields: &mut Fields, lines: &[&str]) {
    fields.insert("log".into(), lines.len().to_string());
    for (number, line) in lines.iter().enumerate() {
        let Ok(Value::Object(object)) = serde_json::from_str(line) else {
            fields.insert(format!("log.{}.broken", number + 1), (*line).to_owned());
            continue;
        };
        for (name, value) in object {
            let value = match (name.as_str(), &value) {
                (_, Value::Null) => "null".to_owned(),
                ("start_time" | "duration" | "time_to_first_byte" | "upstream_service_time", _) => "TIME".to_owned(),
                ("upstream_host", Value::String(text)) if !text.ends_with(":1") => "UPSTREAM".to_owned(),
                ("request_id", Value::String(text)) => id(text),
                (_, value) => value.to_string(),
            };
            fields.insert(format!("log.{}.{name}", number + 1), value);
        }
    }
}

/// One message: its first line, its headers, its body.
fn message(fields: &mut Fields, prefix: &str, bytes: &[u8]) {
    let Some(head) = find(bytes, b"\r\n\r\n") else {
        fields.insert(format!("{prefix}.broken"), String::from_utf8_lossy(bytes).into_owned());
        return;
    };
    let (text, body) = (String::from_utf8_lossy(&bytes[..head]), &bytes[head + 4..]);
    let mut lines = text.split("\r\n");
    fields.insert(format!("{prefix}.line"), lines.next().unwrap_or_default().to_owned());
    headers(fields, prefix, lines);
    let chunked = fields.get(&format!("{prefix}.header.transfer-encoding")).is_some_and(|v| v.contains("chunked"));
    fields.insert(format!("{prefix}.body"), if chunked { unchunked(body) } else { short(body) });
}

/// Header fields by name; of several, the sorted values.
pub(super) fn headers<'a>(fields: &mut Fields, prefix: &str, lines: impl Iterator<Item = &'a str>) {
    let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let (name, value) = (name.to_ascii_lowercase(), value.trim());
        let value = match name.as_str() {
            "date" => "DATE".to_owned(),
            "x-envoy-upstream-service-time" => "TIME".to_owned(),
            "x-request-id" => id(value),
            // It differs by the time that the first tries took.
            "x-envoy-expected-rq-timeout-ms" if value.len() > 3 => "TIMEOUT".to_owned(),
            _ => value.to_owned(),
        };
        named.entry(name).or_default().push(value);
    }
    for (name, mut values) in named {
        values.sort();
        fields.insert(format!("{prefix}.header.{name}"), values.join(" | "));
    }
}

/// The data of chunks, and trailers.
fn unchunked(mut body: &[u8]) -> String {
    let mut data = Vec::new();
    while let Some(line) = find(body, b"\r\n") {
        let size = std::str::from_utf8(&body[..line]).ok().and_then(|s| usize::from_str_radix(s.trim(), 16).ok());
        match size {
            Some(0) => {
                let trailers = String::from_utf8_lossy(&body[line + 2..]).trim_end().to_ascii_lowercase();
                return if trailers.is_empty() { short(&data) } else { format!("{} [{trailers}]", short(&data)) };
            }
            Some(size) if body.len() >= line + 4 + size => {
                data.extend_from_slice(&body[line + 2..line + 2 + size]);
                body = &body[line + 4 + size..];
            }
            _ => break,
        }
    }
    format!("{} [cut off]", short(&data))
}

/// A body as text; long ones by their length.
pub(super) fn short(body: &[u8]) -> String {
    if body.len() > 300 { format!("{} bytes", body.len()) } else { String::from_utf8_lossy(body).into_owned() }
}

fn id(text: &str) -> String {
    let random = text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if random { "ID".to_owned() } else { text.to_owned() }
}
