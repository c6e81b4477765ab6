//! Names and origins: request id, forwarding headers, and the removal of what only a proxy may set.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    exchange::{Conn, Exchange},
    step::{Step, Stop},
};
use crate::config::http::HttpConnectionManager;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identify;

impl Step for Identify {
    fn request(self, exchange: &mut Exchange) -> Result<(), Stop> {
        let cx = &exchange.cx;
        if exchange.seen.internal {
            remove_internal(exchange.request.headers_mut());
        }
        identify(exchange.request.headers_mut(), &cx.conn);
        if cx.conn.http.keeps_head {
            exchange.keep_head();
        }
        Ok(())
    }
}

fn identify(headers: &mut HeaderMap, conn: &Conn) {
    let config = &conn.http.config;
    request_id(headers, config);
    forwarded(headers, config, conn.info.peer.ip().to_canonical(), conn.scheme());
}

/// Removes the headers that steer or describe proxies, wherever they come from. Those that the next sidecar is meant to
/// read are let through (and overwritten by us where we know better).
fn remove_internal(headers: &mut HeaderMap) {
    let names: Vec<_> = headers.keys().filter(|name| is_internal(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// True for what only a proxy may say.
pub(super) fn is_internal(name: &HeaderName) -> bool {
    let text = name.as_str();
    *name == XFCC || (text.starts_with("x-envoy-") && !PASSED.contains(&text)) || text.starts_with("x-oxmesh-")
}

fn request_id(headers: &mut HeaderMap, config: &HttpConnectionManager) {
    let keep = !config.use_remote_address || config.preserve_external_request_id;
    if config.generate_request_id && !(keep && headers.contains_key(&REQUEST_ID)) {
        let mut id = uuid4();
        // Never seen again: it must not push what is useful out of HPACK's table.
        id.set_sensitive(true);
        headers.insert(REQUEST_ID, id);
    }
}

/// With `use_remote_address` the peer is the client: it is appended to `x-forwarded-for` and the scheme is ours. Without,
/// what came before us is believed.
fn forwarded(headers: &mut HeaderMap, config: &HttpConnectionManager, peer: IpAddr, scheme: &'static str) {
    if config.use_remote_address {
        let mut chain = String::new();
        // Several lines are one list (RFC 9110 section 5.3).
        for before in headers.get_all(&FORWARDED_FOR).iter().filter_map(|line| line.to_str().ok()) {
            chain.push_str(before);
            chain.push(',');
        }
        chain.push_str(&peer.to_string());
        if let Ok(chain) = HeaderValue::from_str(&chain) {
            headers.insert(FORWARDED_FOR, chain);
        }
        headers.remove(&ORIGINAL_PATH);
    }
    if config.use_remote_address || !headers.contains_key(&FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
}

/// A random UUID of version 4 (RFC 9562 section 5.4).
fn uuid4() -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut random = fastrand::u128(..).to_be_bytes();
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (position, byte) in random.into_iter().enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Our request header of that name; kept by callers that set it.
pub(super) const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Of `x-envoy-*`, what may pass: set by the client's sidecar for the server's.
const PASSED: [&str; 3] = ["x-envoy-expected-rq-timeout-ms", "x-envoy-original-path", "x-envoy-attempt-count"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::manager;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn a_request_id_is_a_uuid_of_version_4_and_kept_if_there() {
        let mut without = HeaderMap::new();
        request_id(&mut without, &manager());
        let id = without[REQUEST_ID].to_str().unwrap().to_owned();
        assert_eq!((id.len(), &id[14..15]), (36, "4"), "{id}");
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
        assert_ne!(uuid4(), uuid4());
        let mut with = headers(&[("x-request-id", "mine")]);
        request_id(&mut with, &manager());
        assert_eq!(with[REQUEST_ID], "mine");
        let mut edge = manager();
        edge.use_remote_address = true;
        request_id(&mut with, &edge);
        assert_ne!(with[REQUEST_ID], "mine");
        edge.generate_request_id = false;
        let mut off = HeaderMap::new();
        request_id(&mut off, &edge);
        assert!(off.is_empty());
    }

    #[test]
    fn what_only_a_proxy_may_say_is_removed() {
        let mut all = headers(&[
            ("x-forwarded-client-cert", "By=me"),
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-max-retries", "9"),
            ("x-envoy-internal", "true"),
            ("x-oxmesh-why", "x"),
            ("x-envoy-original-path", "/"),
            ("x-other", "1"),
        ]);
        remove_internal(&mut all);
        let mut left: Vec<_> = all.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["x-envoy-original-path", "x-other"]);
    }

    #[test]
    fn forwarding_headers_are_believed_unless_the_peer_is_the_client() {
        let peer = "10.0.0.1".parse().unwrap();
        let mut inner = headers(&[("x-forwarded-proto", "https"), ("x-forwarded-for", "1.2.3.4")]);
        forwarded(&mut inner, &manager(), peer, "http");
        assert_eq!(
            (&inner[FORWARDED_PROTO], &inner[FORWARDED_FOR]),
            (&"https".parse().unwrap(), &"1.2.3.4".parse().unwrap())
        );
        let mut edge = manager();
        edge.use_remote_address = true;
        forwarded(&mut inner, &edge, peer, "http");
        assert_eq!(inner[FORWARDED_PROTO], "http");
        assert_eq!(inner[FORWARDED_FOR], "1.2.3.4,10.0.0.1");
        let mut lines = headers(&[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "5.6.7.8")]);
        forwarded(&mut lines, &edge, peer, "http");
        assert_eq!(lines[FORWARDED_FOR], "1.2.3.4,5.6.7.8,10.0.0.1");
        assert_eq!(lines.get_all(FORWARDED_FOR).iter().count(), 1);
        let mut bare = HeaderMap::new();
        forwarded(&mut bare, &manager(), peer, "https");
        assert_eq!(bare[FORWARDED_PROTO], "https");
        assert!(!bare.contains_key(FORWARDED_FOR));
    }
}
