//! The first step: a request whose head has one meaning, or none at all.
//!
//! hyper has parsed the head by then; this refuses what is well-formed but read in different ways by different servers,
//! and brings HTTP/1 and HTTP/2 to one form: URI in origin form, the authority in `host`, no hop-by-hop headers.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header, uri::PathAndQuery};

use super::{
    exchange::Exchange,
    identify::is_internal,
    step::{Step, Stop},
};
use crate::{body::Body, config::http::HttpConnectionManager, error::Reason};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admit;

impl Step for Admit {
    fn request(self, exchange: &mut Exchange) -> Result<(), Stop> {
        let conn = &exchange.cx.conn;
        let config = &conn.http.config;
        // A client that never answers the ping between the two GOAWAYs could else go on under rules that are no more.
        let too_late = exchange.cx.is_http2() && conn.life.is_closing_for(config.drain_timeout);
        let admitted = if too_late { Err(Reason::Draining) } else { admit(&mut exchange.request, config) };
        match admitted {
            Ok(seen) => exchange.seen = seen,
            Err(reason) => {
                exchange.log_request();
                return Err(reason.into());
            }
        }
        Ok(())
    }
}

/// Checks a request's head and brings it to one form.
fn admit(request: &mut Request<Body>, config: &HttpConnectionManager) -> Result<Seen, Reason> {
    if request.version() <= Version::HTTP_10 && !config.accept_http_10 {
        return Err(Reason::LowVersion);
    }
    if request.headers().len() > config.max_headers_count as usize {
        return Err(Reason::TooManyHeaders);
    }
    let seen = look(request.headers())?;
    let host = authority(request)?;
    if request.method() == Method::CONNECT {
        return Err(Reason::RouteNotFound);
    }
    if let Some(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
    to_origin_form(request)?;
    if seen.hop_by_hop {
        remove_hop_by_hop(request.headers_mut());
    }
    if seen.cookies > 1 {
        join_cookies(request.headers_mut())?;
    }
    Ok(seen)
}

/// Kinds of headers that are there; most requests have none of them, and then nothing is looked up one by one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    hop_by_hop: bool,
    cookies: usize,
    /// Headers that only a proxy may set.
    pub(super) internal: bool,
}

/// Looks at each header once. Refuses values that are no text, names that some servers read as framing or forwarding
/// headers, and transfer codings other than `chunked`.
fn look(headers: &HeaderMap) -> Result<Seen, Reason> {
    let mut seen = Seen::default();
    for (name, value) in headers {
        if std::str::from_utf8(value.as_bytes()).is_err() {
            return Err(Reason::BadHeader);
        }
        match *name {
            header::CONNECTION | header::UPGRADE | header::TE | header::EXPECT => seen.hop_by_hop = true,
            // hyper takes numbers that others read as negative.
            header::CONTENT_LENGTH if value.len() > MAX_LENGTH_DIGITS => return Err(Reason::BadHeader),
            header::COOKIE => seen.cookies += 1,
            header::TRANSFER_ENCODING => {
                seen.hop_by_hop = true;
                check_codings(headers)?;
            }
            _ => match name.as_str().as_bytes() {
                [b'k' | b'p' | b'h', ..] if HOP_BY_HOP.contains(name) => seen.hop_by_hop = true,
                [b'x', ..] if is_internal(name) => seen.internal = true,
                bytes if bytes.contains(&b'_') && is_disguised(name) => return Err(Reason::BadHeader),
                _ => {}
            },
        }
    }
    Ok(seen)
}

fn check_codings(headers: &HeaderMap) -> Result<(), Reason> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let chunked = codings.next().is_some_and(|first| first.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if chunked && codings.next().is_none() { Ok(()) } else { Err(Reason::BadTransferEncoding) }
}

/// `transfer_encoding`, `content_length`, `x_forwarded_for`: CGI-like servers read `_` as `-`.
fn is_disguised(name: &HeaderName) -> bool {
    let plain = name.as_str().replace('_', "-");
    plain.starts_with("x-forwarded-")
        || plain.starts_with("x-envoy-")
        || plain.starts_with("x-oxmesh-")
        || matches!(plain.as_str(), "transfer-encoding" | "content-length" | "x-request-id")
}

/// The authority to be written into `host`; none when `host` holds it already.
fn authority(request: &Request<Body>) -> Result<Option<HeaderValue>, Reason> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Reason::BadHost);
    }
    let target = request.uri().authority().map(http::uri::Authority::as_str);
    match (target, host) {
        (None, None) => Err(Reason::MissingHost),
        (None, Some(host)) => check_host(host.as_bytes()).map(|()| None),
        (Some(target), host) => {
            check_host(target.as_bytes())?;
            let http2 = request.version() == Version::HTTP_2;
            match host {
                // RFC 9113 section 8.3.1: they must not differ. RFC 9112 section 3.2.2: the target wins, Host must be there.
                Some(host) if http2 && !host.as_bytes().eq_ignore_ascii_case(target.as_bytes()) => Err(Reason::BadHost),
                Some(host) if host.as_bytes() == target.as_bytes() => Ok(None),
                None if !http2 => Err(Reason::MissingHost),
                _ => HeaderValue::from_str(target).map(Some).map_err(|_| Reason::BadHost),
            }
        }
    }
}

/// A host with or without port: no user information, no bytes that mean something elsewhere.
fn check_host(host: &[u8]) -> Result<(), Reason> {
    if host.is_empty() {
        return Err(Reason::MissingHost);
    }
    let plain = host
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']' | b'~' | b'%'));
    let (name, port) = match host.iter().rposition(|b| *b == b':') {
        Some(colon) if !host[colon..].contains(&b']') => (&host[..colon], Some(&host[colon + 1..])),
        _ => (host, None),
    };
    let port_fits = port.is_none_or(|p| p.len() <= 5 && p.iter().all(u8::is_ascii_digit));
    let bracketed = name.first() == Some(&b'[') && name.last() == Some(&b']');
    let colons = name.contains(&b':');
    let brackets = name.iter().any(|b| matches!(b, b'[' | b']'));
    if plain && port_fits && !name.is_empty() && colons <= bracketed && brackets == bracketed {
        Ok(())
    } else {
        Err(Reason::BadHost)
    }
}

/// `http://host/path` becomes `/path`; anything but a path is refused.
fn to_origin_form(request: &mut Request<Body>) -> Result<(), Reason> {
    let uri = request.uri();
    if !uri.path().starts_with('/') {
        return Err(Reason::AbsolutePathRejected);
    }
    if uri.scheme().is_some() || uri.authority().is_some() {
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
    }
    Ok(())
}

/// Removes what concerns one connection only. `upgrade` stays for the upgrade step when `connection` names it; framing
/// and `host` are never removed by being named there.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let mut upgrade = false;
    if headers.contains_key(header::CONNECTION) {
        let lines: Vec<_> = headers.get_all(header::CONNECTION).iter().cloned().collect();
        for name in lines.iter().filter_map(|l| l.to_str().ok()).flat_map(|l| l.split(',')).map(str::trim) {
            upgrade |= name.eq_ignore_ascii_case("upgrade");
            if let Ok(name) = HeaderName::from_bytes(name.as_bytes())
                && may_be_removed(&name)
            {
                headers.remove(name);
            }
        }
        headers.remove(header::CONNECTION);
    }
    if !upgrade {
        headers.remove(header::UPGRADE);
    }
    headers.remove(header::TRANSFER_ENCODING);
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    // The server sends 100 when the body is asked for; towards the upstream nobody would wait for it.
    if headers.get(header::EXPECT).is_some_and(|e| e.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        headers.remove(header::EXPECT);
    }
    if let Some(te) = headers.get(header::TE) {
        let trailers = te.to_str().is_ok_and(|t| t.split(',').any(|t| t.trim().eq_ignore_ascii_case("trailers")));
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// HTTP/2 may cut cookies into lines; rules and HTTP/1 servers see them as one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) -> Result<(), Reason> {
    let lines: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let joined = HeaderValue::from_bytes(&lines.join(&b"; "[..])).map_err(|_| Reason::BadHeader)?;
    headers.insert(header::COOKIE, joined);
    Ok(())
}

/// Names that `connection` may not take away: framing, routing, identity, credentials.
fn may_be_removed(name: &HeaderName) -> bool {
    !matches!(
        *name,
        header::HOST
            | header::CONTENT_LENGTH
            | header::TRANSFER_ENCODING
            | header::UPGRADE
            | header::TE
            | header::AUTHORIZATION
            | header::COOKIE
    ) && !name.as_str().starts_with("x-forwarded-")
        && name.as_str() != "x-request-id"
}

/// What fits a signed number of 64 bits in any case.
const MAX_LENGTH_DIGITS: usize = 18;

const HOP_BY_HOP: [HeaderName; 3] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::manager;

    fn request(version: Version, target: &str, headers: &[(&str, &[u8])]) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        *request.version_mut() = version;
        *request.uri_mut() = target.parse().unwrap();
        for (name, value) in headers {
            request
                .headers_mut()
                .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
        }
        request
    }

    fn admitted(request: &mut Request<Body>) -> Result<(), Reason> {
        admit(request, &manager()).map(|_| ())
    }

    #[test]
    fn hosts_are_one_and_plain() {
        let (h1, h2) = (Version::HTTP_11, Version::HTTP_2);
        for (version, target, hosts, expected) in [
            (h1, "/", vec!["a"], Ok("a")),
            (h1, "/", vec!["a:80"], Ok("a:80")),
            (h1, "/", vec!["[::1]:80"], Ok("[::1]:80")),
            (h1, "/", vec!["a_b"], Ok("a_b")),
            (h1, "/", vec![], Err(Reason::MissingHost)),
            (h1, "/", vec![""], Err(Reason::MissingHost)),
            (h1, "/", vec!["a", "a"], Err(Reason::BadHost)),
            (h1, "/", vec!["u@a"], Err(Reason::BadHost)),
            (h1, "/", vec!["a/b"], Err(Reason::BadHost)),
            (h1, "/", vec!["a b"], Err(Reason::BadHost)),
            (h1, "/", vec!["a:x"], Err(Reason::BadHost)),
            (h1, "/", vec!["a:123456"], Err(Reason::BadHost)),
            (h1, "/", vec![":80"], Err(Reason::BadHost)),
            (h1, "/", vec!["::1"], Err(Reason::BadHost)),
            (h1, "/", vec!["a]"], Err(Reason::BadHost)),
            (h1, "http://b/x", vec!["a"], Ok("b")),
            (h1, "http://b/x", vec![], Err(Reason::MissingHost)),
            (h1, "http://u@b/x", vec!["b"], Err(Reason::BadHost)),
            (h2, "http://b/x", vec![], Ok("b")),
            (h2, "http://b/x", vec!["B"], Ok("b")),
            (h2, "http://b/x", vec!["a"], Err(Reason::BadHost)),
        ] {
            let lines: Vec<_> = hosts.iter().map(|h| ("host", h.as_bytes())).collect();
            let mut request = request(version, target, &lines);
            let result = admitted(&mut request).map(|()| request.headers()["host"].to_str().unwrap().to_owned());
            assert_eq!(result, expected.map(str::to_owned), "{version:?} {target} {hosts:?}");
            if result.is_ok() {
                assert!(request.uri().authority().is_none(), "origin form");
                assert_eq!(request.headers().get_all("host").iter().count(), 1);
            }
        }
    }

    #[test]
    fn headers_that_servers_read_differently_are_refused() {
        for (name, value, expected) in [
            ("transfer_encoding", &b"chunked"[..], Reason::BadHeader),
            ("content_length", b"1", Reason::BadHeader),
            ("x_forwarded_for", b"1", Reason::BadHeader),
            ("x-forwarded_client_cert", b"1", Reason::BadHeader),
            ("x-a", b"\xff", Reason::BadHeader),
            ("transfer-encoding", b"identity", Reason::BadTransferEncoding),
            ("transfer-encoding", b"gzip, chunked", Reason::BadTransferEncoding),
        ] {
            let mut request = request(Version::HTTP_11, "/", &[("host", b"a"), (name, value)]);
            assert_eq!(admitted(&mut request), Err(expected), "{name}");
        }
        let mut twice = request(
            Version::HTTP_11,
            "/",
            &[("host", b"a"), ("transfer-encoding", b"chunked"), ("transfer-encoding", b"chunked")],
        );
        assert_eq!(admitted(&mut twice), Err(Reason::BadTransferEncoding));
        let mut fine = request(Version::HTTP_11, "/", &[("host", b"a"), ("my_header", b"1"), ("x-a", "é".as_bytes())]);
        assert_eq!(admitted(&mut fine), Ok(()));
    }

    #[test]
    fn versions_targets_and_methods_have_bounds() {
        let mut old = request(Version::HTTP_10, "/", &[("host", b"a")]);
        assert_eq!(admitted(&mut old), Err(Reason::LowVersion));
        let mut star = request(Version::HTTP_11, "*", &[("host", b"a")]);
        *star.method_mut() = Method::OPTIONS;
        assert_eq!(admitted(&mut star), Err(Reason::AbsolutePathRejected));
        let mut connect = request(Version::HTTP_11, "a:443", &[("host", b"a:443")]);
        *connect.method_mut() = Method::CONNECT;
        assert_eq!(admitted(&mut connect), Err(Reason::RouteNotFound));
        let mut many = request(Version::HTTP_11, "/", &[("host", b"a")]);
        for _ in 0..100 {
            many.headers_mut().append("x-a", HeaderValue::from_static("1"));
        }
        assert_eq!(admitted(&mut many), Err(Reason::TooManyHeaders));
    }

    #[test]
    fn cookies_cut_into_lines_become_one() {
        let lines: [(&str, &[u8]); 4] = [("host", b"a"), ("cookie", b"a=1"), ("x-a", b"1"), ("cookie", b"b=2; c=3")];
        let mut crumbs = request(Version::HTTP_2, "/", &lines);
        admitted(&mut crumbs).unwrap();
        let cookies: Vec<_> = crumbs.headers().get_all("cookie").iter().collect();
        assert_eq!(cookies, ["a=1; b=2; c=3"]);
    }

    #[test]
    fn hop_by_hop_headers_end_here() {
        let mut request = request(
            Version::HTTP_11,
            "/",
            &[
                ("host", b"a"),
                ("connection", b"keep-alive, x-mine, host, x-forwarded-for"),
                ("connection", b"authorization"),
                ("keep-alive", b"1"),
                ("x-mine", b"1"),
                ("x-forwarded-for", b"1"),
                ("authorization", b"1"),
                ("transfer-encoding", b"Chunked"),
                ("upgrade", b"h2c"),
                ("http2-settings", b"x"),
                ("te", b"trailers, deflate"),
                ("expect", b"100-Continue"),
                ("x-other", b"1"),
            ],
        );
        admitted(&mut request).unwrap();
        let mut left: Vec<_> = request.headers().iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(left, ["authorization=1", "host=a", "te=trailers", "x-forwarded-for=1", "x-other=1"]);
    }
}
