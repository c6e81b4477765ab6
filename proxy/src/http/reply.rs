//! Our own replies: from a row of the table of refusals to a response.
//!
//! gRPC clients get what they can read: status 200 with `grpc-status` and `grpc-message` in a response that is nothing but
//! headers ("trailers-only").

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::exchange::Context;
use crate::{
    body::Body,
    config::{access_log::FilterView, flags::Flag, listener::Direction},
    error::{Refusal, WHY},
};

/// The reply to a refused request. Notes its flags and details.
pub(super) fn make(cx: &Context, refusal: &Refusal) -> Response<Body> {
    let row = refusal.reason.row();
    cx.note(refusal.flags(), refusal.details());
    let mut response = if cx.grpc { grpc(refusal) } else { plain(refusal) };
    let headers = response.headers_mut();
    if row.close && !cx.is_http2() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if refusal.flags().contains(Flag::UpstreamOverflow) {
        headers.insert(OVERLOADED, HeaderValue::from_static("true"));
    }
    if cx.conn.http.direction == Direction::Outbound {
        headers.insert(WHY, HeaderValue::from_static(row.code));
    }
    if let Some(limiter) = cx.limiter.get() {
        apply(cx, &limiter.config.response_headers, headers);
    }
    map(cx, refusal, headers);
    response
}

fn plain(refusal: &Refusal) -> Response<Body> {
    let body = refusal.body();
    let mut response = Response::new(match body {
        std::borrow::Cow::Borrowed(text) => Body::full(text),
        std::borrow::Cow::Owned(text) => Body::full(text),
    });
    *response.status_mut() = refusal.status();
    if !refusal.body().is_empty() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

fn grpc(refusal: &Refusal) -> Response<Body> {
    trailers_only(refusal.grpc(), refusal.body().as_bytes())
}

/// A route's own answer for a gRPC client: the status of gRPC that stands for `status` (as Envoy maps it), the body as words.
pub(super) fn grpc_answer(status: StatusCode, body: &[u8]) -> Response<Body> {
    let code = match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    };
    trailers_only(code, body)
}

fn trailers_only(status: u8, words: &[u8]) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(status)));
    if !words.is_empty()
        && let Ok(message) = HeaderValue::from_str(&percent_encoded(words))
    {
        headers.insert(GRPC_MESSAGE, message);
    }
    response
}

/// `grpc-message` holds visible ASCII except `%`; the rest is percent-encoded (gRPC over HTTP/2, "Responses").
fn percent_encoded(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for &byte in text {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

/// The first mapper whose filter takes the reply edits its headers.
fn map(cx: &Context, refusal: &Refusal, headers: &mut HeaderMap) {
    let mappers = &cx.conn.http.config.local_replies;
    if mappers.is_empty() {
        return;
    }
    let view = FilterView {
        status: refusal.status().as_u16(),
        duration_ms: u64::try_from(cx.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        flags: refusal.flags(),
        request: cx.head.get().map(|head| head.view(cx.conn.scheme())),
    };
    if let Some(mapper) = mappers.iter().find(|mapper| mapper.filter.matches(&view)) {
        apply(cx, &mapper.headers, headers);
    }
}

fn apply(cx: &Context, edits: &crate::config::headers::HeaderEdits, headers: &mut HeaderMap) {
    if edits.is_empty() {
        return;
    }
    let request = cx.head.get().map(|head| head.view(cx.conn.scheme()));
    let before = headers.clone();
    edits.apply(headers, |template| cx.render(template, request.as_ref(), &before));
}

const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
