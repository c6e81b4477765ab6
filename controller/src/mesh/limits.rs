//! Limits of services, from UpstreamTrafficSettings.
//!
//! A rate limit that can't be kept is never dropped: what it was to limit is refused, unless the object itself says that
//! traffic may pass then (`failOpen`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use envoy_types::pb::envoy::r#type::v3::StatusCode;

use super::finding::About;
use super::{Finding, Service, expression, text};
use crate::api::{
    ConnectionSettingsSpec, HttpHeaderValue, HttpLocalRateLimitSpec, Key, Objects, RateLimitSpec,
    TcpLocalRateLimitSpec, UpstreamTrafficSetting, UpstreamTrafficSettingSpec,
};

/// Limits of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The object.
    pub name: Key,
    /// What clients keep to.
    pub connections: ConnectionLimits,
    /// New connections that the service's proxy takes.
    pub tcp_rate: Option<Rate<Bucket>>,
    /// Requests that the service's proxy takes.
    pub http_rate: Option<Rate<HttpRate>>,
    /// The same for single paths, by the path's regular expression.
    pub paths: BTreeMap<String, Rate<HttpRate>>,
}

/// A rate limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rate<T> {
    /// As much as this passes.
    Kept(T),
    /// It can't be kept, or is 0: nothing passes.
    Nothing,
}

/// What a client keeps to; `None` means no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Most connections.
    pub max_connections: Option<u32>,
    /// Longest wait for a connection; the proxy's 5 s if `None`.
    pub connect_timeout: Option<Duration>,
    /// Most requests at a time.
    pub max_requests: Option<u32>,
    /// Most requests of one connection.
    pub max_requests_per_connection: Option<u32>,
    /// Most requests that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Most retries at a time.
    pub max_retries: Option<u32>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens that come each `period`.
    pub per_period: u32,
    /// Most tokens.
    pub max: u32,
    /// A second, a minute or an hour.
    pub period: Duration,
}

/// A limit of requests, and what the refused ones get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRate {
    /// The limit.
    pub bucket: Bucket,
    /// Status of refused requests.
    pub status: u16,
    /// Headers of refused requests.
    pub headers: Vec<(String, String)>,
}

/// Reads the settings of services. `of_egress` are those that an Egress policy refers to: their host is outside.
pub(super) fn limits(
    objects: &Objects,
    services: &BTreeMap<Key, Service>,
    of_egress: &BTreeSet<Key>,
    findings: &mut Vec<Finding>,
) -> BTreeMap<Key, Limits> {
    let mut all = BTreeMap::new();
    for (key, object) in &objects.upstream_traffic_settings {
        if of_egress.contains(key) {
            continue;
        }
        let mut about = About::new("UpstreamTrafficSetting", key, findings);
        let service = match text::service_in(&key.namespace, &object.spec.host) {
            Ok(service) => service,
            Err(e) => {
                about.error("spec.host", format!("{e}; nothing in this object counts"));
                continue;
            }
        };
        if !services.contains_key(&service) {
            about.warning("spec.host", format!("there is no service {service} (yet)"));
        }
        let read = read(key, object, &mut about);
        match all.entry(service) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(read);
            }
            std::collections::btree_map::Entry::Occupied(_) => {
                about.error(
                    "spec.host",
                    "another UpstreamTrafficSetting, earlier by name, has this host; this one does not count",
                );
            }
        }
    }
    all
}

fn read(key: &Key, object: &UpstreamTrafficSetting, about: &mut About<'_>) -> Limits {
    let spec = &object.spec;
    let connections = spec.connection_settings.as_ref().map(|c| connections(c, about)).unwrap_or_default();
    let (tcp_rate, http_rate) = rates(spec, about);
    let mut paths = BTreeMap::new();
    let global = spec.rate_limit.as_ref().and_then(|r| r.global.as_ref()?.http.as_ref());
    for (i, route) in spec.http_routes.iter().enumerate() {
        let field = format!("spec.httpRoutes[{i}]");
        let Some(limit) = &route.rate_limit else {
            about.no_effect(&field, "no rateLimit in it");
            continue;
        };
        if let Err(e) = expression::check(&route.path) {
            about.error(format!("{field}.path"), format!("{e}; there is NO limit"));
            continue;
        }
        let mut rate = limit.local.as_ref().map(|l| http_rate_of(l, &format!("{field}.rateLimit.local"), about));
        if limit.global.is_some() {
            let field = format!("{field}.rateLimit.global");
            match global {
                Some(global) if refuses_without(global.fail_open, &field, about) => rate = Some(Rate::Nothing),
                Some(_) => {}
                None => about.no_effect(field, "spec.rateLimit.global.http names no service that could be asked"),
            }
        }
        if let Some(rate) = rate
            && paths.insert(route.path.clone(), rate).is_some()
        {
            about.error(format!("{field}.path"), format!("{:?} is there twice; the last counts", route.path));
        }
    }
    Limits { name: key.clone(), connections, tcp_rate, http_rate, paths }
}

/// Reads the limits that clients keep to.
pub(super) fn connections(spec: &ConnectionSettingsSpec, about: &mut About<'_>) -> ConnectionLimits {
    let tcp = spec.tcp.clone().unwrap_or_default();
    let http = spec.http.clone().unwrap_or_default();
    let mut connect_timeout = None;
    if let Some(text) = &tcp.connect_timeout {
        match text::duration(text) {
            Ok(timeout) if !timeout.is_zero() => connect_timeout = Some(timeout),
            Ok(_) => about.error("spec.connectionSettings.tcp.connectTimeout", "must not be 0; 5s is used"),
            Err(e) => about.error("spec.connectionSettings.tcp.connectTimeout", format!("{e}; 5s is used")),
        }
    }
    ConnectionLimits {
        max_connections: tcp.max_connections,
        connect_timeout,
        max_requests: http.max_requests,
        max_requests_per_connection: http.max_requests_per_connection,
        max_pending_requests: http.max_pending_requests,
        max_retries: http.max_retries,
    }
}

/// Limits of the service as a whole: of connections and of requests.
fn rates(spec: &UpstreamTrafficSettingSpec, about: &mut About<'_>) -> (Option<Rate<Bucket>>, Option<Rate<HttpRate>>) {
    let Some(RateLimitSpec { local, global }) = &spec.rate_limit else { return (None, None) };
    let (mut tcp, mut http) = (None, None);
    if let Some(local) = local {
        tcp = local.tcp.as_ref().map(|TcpLocalRateLimitSpec { connections, unit, burst }| {
            bucket(*connections, unit, *burst, "spec.rateLimit.local.tcp", about)
        });
        http = local.http.as_ref().map(|http| http_rate_of(http, "spec.rateLimit.local.http", about));
    }
    if let Some(global) = global {
        let asked = global.tcp.as_ref();
        if asked.is_some_and(|tcp| refuses_without(tcp.fail_open, "spec.rateLimit.global.tcp", about)) {
            tcp = Some(Rate::Nothing);
        }
        // Without descriptors it only says for single paths whom to ask.
        let asked = global.http.as_ref().filter(|http| !http.descriptors.is_empty() || spec.http_routes.is_empty());
        if asked.is_some_and(|http| refuses_without(http.fail_open, "spec.rateLimit.global.http", about)) {
            http = Some(Rate::Nothing);
        }
    }
    (tcp, http)
}

/// Whether traffic is refused because no rate limit service is asked: `failOpen`, whose default is true, says so.
fn refuses_without(fail_open: Option<bool>, field: &str, about: &mut About<'_>) -> bool {
    const MISSING: &str = "global rate limits are not implemented yet";
    if fail_open == Some(false) {
        about.error(
            field,
            format!("{MISSING}, and failOpen is false: what it limits is refused; remove it, or set failOpen: true"),
        );
        return true;
    }
    about.warning(field, format!("{MISSING}: this limit is NOT kept, as failOpen (default true) allows"));
    false
}

fn http_rate_of(spec: &HttpLocalRateLimitSpec, field: &str, about: &mut About<'_>) -> Rate<HttpRate> {
    let bucket = match bucket(spec.requests, &spec.unit, spec.burst, field, about) {
        Rate::Kept(bucket) => bucket,
        Rate::Nothing => return Rate::Nothing,
    };
    let status = spec.response_status_code.filter(|s| *s != 0).unwrap_or(429);
    let known = i32::try_from(status).ok().filter(|s| (400..600).contains(s) && StatusCode::try_from(*s).is_ok());
    if known.is_none() {
        about.error(
            format!("{field}.responseStatusCode"),
            format!("{status} is not an error status that proxies know; 429 is used"),
        );
    }
    let status = known.and_then(|s| u16::try_from(s).ok()).unwrap_or(429);
    let headers = response_headers(spec, &format!("{field}.responseHeadersToAdd"), about);
    Rate::Kept(HttpRate { bucket, status, headers })
}

/// Headers that every proxy takes: with one more of them, or one that it does not set, it refuses all routes.
fn response_headers(spec: &HttpLocalRateLimitSpec, field: &str, about: &mut About<'_>) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    for (i, HttpHeaderValue { name, value }) in spec.response_headers_to_add.iter().enumerate() {
        let field = format!("{field}[{i}]");
        // `%` begins a command in the proxy's values.
        let (lower, escaped) = (name.to_ascii_lowercase(), value.replace('%', "%%"));
        if !text::is_token(name) || value.contains(['\r', '\n', '\0']) || lower == "host" {
            about.error(field, "not a header of responses; it is left out");
        } else if lower.len().max(escaped.len()) > MAX_HEADER_BYTES {
            about.error(field, format!("longer than {MAX_HEADER_BYTES} bytes; it is left out"));
        } else if headers.len() == MAX_HEADERS {
            about.error(field, format!("proxies take {MAX_HEADERS} headers at most; it is left out"));
        } else {
            headers.push((lower, escaped));
        }
    }
    headers
}

fn bucket(per_period: u32, unit: &str, burst: u32, field: &str, about: &mut About<'_>) -> Rate<Bucket> {
    let seconds = match unit {
        "second" => 1,
        "minute" => 60,
        "hour" => 3600,
        other => {
            about.error(
                format!("{field}.unit"),
                format!("{other:?} is not second, minute or hour; what it limits is refused"),
            );
            return Rate::Nothing;
        }
    };
    if per_period == 0 {
        about.warning(field, "a limit of 0 refuses everything");
        return Rate::Nothing;
    }
    Rate::Kept(Bucket { per_period, max: per_period.saturating_add(burst), period: Duration::from_secs(seconds) })
}

const MAX_HEADERS: usize = 10;
const MAX_HEADER_BYTES: usize = 16_384;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn built(spec: serde_json::Value) -> (Option<Limits>, Vec<Finding>) {
        let mut objects = Objects::default();
        let object = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
        objects.upstream_traffic_settings.insert(Key::new("apps", "u"), object);
        let mut findings = Vec::new();
        let limits = limits(&objects, &BTreeMap::new(), &BTreeSet::new(), &mut findings);
        findings.retain(|f| !f.message.starts_with("there is no service"));
        (limits.get(&Key::new("apps", "echo")).cloned(), findings)
    }

    #[test]
    fn buckets_hold_the_burst_and_fill_by_the_rate() {
        let (limits, findings) = built(json!({"host": "echo.apps.svc.cluster.local", "rateLimit": {"local": {
            "tcp": {"connections": 10, "unit": "minute", "burst": 2},
            "http": {"requests": 30, "unit": "second", "responseHeadersToAdd": [{"name": "X-A", "value": "100%"}]}}}}));
        let limits = limits.unwrap();
        assert_eq!(findings, []);
        let bucket = Bucket { per_period: 10, max: 12, period: Duration::from_secs(60) };
        assert_eq!(limits.tcp_rate, Some(Rate::Kept(bucket)));
        let Some(Rate::Kept(http)) = limits.http_rate else { panic!("{limits:?}") };
        assert_eq!((http.status, http.bucket.max), (429, 30));
        assert_eq!(http.headers, [("x-a".to_owned(), "100%%".to_owned())]);
    }

    #[test]
    fn a_status_that_proxies_refuse_becomes_429_and_the_limit_is_kept() {
        let (limits, findings) = built(json!({"host": "echo", "rateLimit": {"local": {
            "http": {"requests": 1, "unit": "hour", "responseStatusCode": 420}}}}));
        let Some(Rate::Kept(http)) = limits.unwrap().http_rate else { panic!("no limit") };
        assert_eq!(http.status, 429);
        assert_eq!(findings[0].field, "spec.rateLimit.local.http.responseStatusCode");
    }

    #[test]
    fn a_foreign_host_is_said_aloud() {
        let (limits, findings) = built(json!({"host": "echo.other.svc.cluster.local"}));
        assert_eq!(limits, None);
        assert_eq!(findings[0].field, "spec.host");
    }

    #[test]
    fn a_limit_that_cannot_be_kept_refuses_unless_the_object_says_otherwise() {
        let global = |fail_open: serde_json::Value, descriptors: serde_json::Value| json!({"rateLimitService": {"host": "rls", "port": 1}, "domain": "d", "descriptors": descriptors, "failOpen": fail_open});
        let some = json!([{"entries": []}]);
        let local = |n: u32, unit: &str| json!({"requests": n, "connections": n, "unit": unit});
        let only = |mut limit: serde_json::Value, field: &str| {
            limit.as_object_mut().unwrap().remove(field);
            limit
        };
        let table = [
            (json!({"global": {"http": global(json!(null), some.clone())}}), false),
            (json!({"global": {"http": global(json!(true), some.clone())}}), false),
            (json!({"global": {"http": global(json!(false), some.clone())}}), true),
            (json!({"global": {"tcp": global(json!(false), some.clone())}}), true),
            (json!({"global": {"tcp": global(json!(true), some)}}), false),
            (json!({"local": {"http": only(local(1, "week"), "connections")}}), true),
            (json!({"local": {"tcp": only(local(1, "Second"), "requests")}}), true),
            (json!({"local": {"http": only(local(0, "second"), "connections")}}), true),
        ];
        for (limit, refuses) in table {
            let (limits, findings) = built(json!({"host": "echo", "rateLimit": limit}));
            let limits = limits.unwrap();
            let nothing = limits.tcp_rate == Some(Rate::Nothing) || limits.http_rate == Some(Rate::Nothing);
            assert_eq!(nothing, refuses, "{limit}");
            assert_eq!(findings.len(), 1, "{limit}: {findings:?}");
        }
    }

    #[test]
    fn a_global_limit_of_a_path_refuses_that_path_alone() {
        let (limits, findings) = built(json!({"host": "echo",
            "rateLimit": {"global": {"http": {"rateLimitService": {"host": "rls", "port": 1}, "domain": "d", "failOpen": false}}},
            "httpRoutes": [{"path": "/a", "rateLimit": {"global": {"descriptors": []}}},
                           {"path": "/b", "rateLimit": {"local": {"requests": 1, "unit": "second"}}}]}));
        let limits = limits.unwrap();
        assert_eq!((limits.http_rate, &limits.paths["/a"]), (None, &Rate::Nothing));
        assert!(matches!(limits.paths["/b"], Rate::Kept(_)));
        assert_eq!(
            findings.iter().map(|f| f.field.as_str()).collect::<Vec<_>>(),
            ["spec.httpRoutes[0].rateLimit.global"]
        );
    }

    #[test]
    fn headers_for_which_a_proxy_would_refuse_all_routes_are_left_out() {
        let header = |name: &str, value: &str| json!({"name": name, "value": value});
        let mut headers =
            vec![header("Host", "x"), header("a b", "x"), header("a", "x\r\n"), header("a", &"%".repeat(9000))];
        headers.extend((0..12).map(|i| header(&format!("x-{i}"), "v")));
        let (limits, findings) = built(json!({"host": "echo", "rateLimit": {"local": {
            "http": {"requests": 1, "unit": "second", "responseHeadersToAdd": headers}}}}));
        let Some(Rate::Kept(http)) = limits.unwrap().http_rate else { panic!("no limit") };
        assert_eq!((http.headers.len(), findings.len()), (10, 6));
        assert!(http.headers.iter().all(|(name, _)| name.starts_with("x-")));
    }
}
