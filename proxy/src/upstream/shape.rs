//! The forms of heads: what a request must look like for its version, and what is wrong with an answer.

use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri::Scheme};
use hyper::body::Incoming;

use super::{
    error::{ErrorKind, UpstreamError},
    io::Flags,
};
use crate::body::Body;

/// What is wrong with the head of an answer, if anything.
pub(super) fn fault_http1(response: &Response<Incoming>, upgrade: bool, flags: &Flags) -> Option<&'static str> {
    if flags.too_many_interim() {
        return Some("too many interim answers");
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !upgrade {
        return Some("status 101 that nobody asked for");
    }
    let headers = response.headers();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (Some(_), Some(_)) => Some("both Content-Length and Transfer-Encoding"),
        (Some(coding), None) if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            Some("a transfer coding other than chunked")
        }
        (Some(_), None) if codings.next().is_some() => Some("several Transfer-Encoding fields"),
        (None, Some(_)) if lengths.next().is_some() => Some("several Content-Length fields"),
        _ => None,
    }
}

/// Origin form, with a `Host` field, and a length where servers ask for one.
pub(super) fn shape_http1(request: &mut Request<Body>) -> Result<(), UpstreamError> {
    *request.version_mut() = http::Version::HTTP_11;
    // RFC 9110 section 8.6: of methods that want a body, its absence is said.
    let wants_body = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
    if wants_body && request.body().is_end() && !request.headers().contains_key(header::TRANSFER_ENCODING) {
        request.headers_mut().entry(header::CONTENT_LENGTH).or_insert(HeaderValue::from_static("0"));
    }
    let Some(authority) = request.uri().authority() else { return Ok(()) };
    if !request.headers().contains_key(header::HOST) {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| no_host())?;
        request.headers_mut().insert(header::HOST, host);
    }
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    Ok(())
}

/// Scheme and authority in the URI, no `Host` field.
pub(super) fn shape_http2(request: &mut Request<Body>, tls: bool) -> Result<(), UpstreamError> {
    *request.version_mut() = http::Version::HTTP_2;
    let host = request.headers_mut().remove(header::HOST);
    if request.uri().authority().is_some() && request.uri().scheme().is_some() {
        return Ok(());
    }
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    if parts.authority.is_none() {
        let host = host.ok_or_else(no_host)?;
        parts.authority = Some(host.as_bytes().try_into().map_err(|_| no_host())?);
    }
    parts.scheme.get_or_insert(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    parts.path_and_query.get_or_insert_with(|| http::uri::PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| no_host())?;
    Ok(())
}

fn no_host() -> UpstreamError {
    UpstreamError::unsent(ErrorKind::RequestBody("the request names no valid host".to_owned()))
}
