//! Limits of services, from UpstreamTrafficSettings.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use envoy_types::pb::envoy::r#type::v3::StatusCode;

use super::finding::About;
use super::{Finding, Service, text};
use crate::api::{
    ConnectionSettingsSpec, HttpLocalRateLimitSpec, Key, Objects, RateLimitSpec, TcpLocalRateLimitSpec,
    UpstreamTrafficSetting,
};

/// Limits of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The object.
    pub name: Key,
    /// What clients keep to.
    pub connections: ConnectionLimits,
    /// New connections that the service's proxy takes.
    pub tcp_rate: Option<Bucket>,
    /// Requests that the service's proxy takes.
    pub http_rate: Option<HttpRate>,
    /// The same for single paths, by the path's regular expression.
    pub paths: BTreeMap<String, HttpRate>,
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
    let local = local(spec.rate_limit.as_ref(), about);
    let mut paths = BTreeMap::new();
    for (i, route) in spec.http_routes.iter().enumerate() {
        let field = format!("spec.httpRoutes[{i}]");
        let Some(limit) = &route.rate_limit else {
            about.no_effect(&field, "no rateLimit in it");
            continue;
        };
        if limit.global.is_some() {
            about.no_effect(format!("{field}.rateLimit.global"), GLOBAL);
        }
        if let Err(e) = text::regex(&route.path) {
            about.error(format!("{field}.path"), e);
            continue;
        }
        let rate = limit.local.as_ref().and_then(|l| http_rate(l, &format!("{field}.rateLimit.local"), about));
        if let Some(rate) = rate
            && paths.insert(route.path.clone(), rate).is_some()
        {
            about.error(format!("{field}.path"), format!("{:?} is there twice; the last counts", route.path));
        }
    }
    Limits { name: key.clone(), connections, tcp_rate: local.0, http_rate: local.1, paths }
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

fn local(spec: Option<&RateLimitSpec>, about: &mut About<'_>) -> (Option<Bucket>, Option<HttpRate>) {
    let Some(spec) = spec else { return (None, None) };
    if spec.global.is_some() {
        about.no_effect("spec.rateLimit.global", GLOBAL);
    }
    let Some(local) = &spec.local else { return (None, None) };
    let tcp = local.tcp.as_ref().and_then(|TcpLocalRateLimitSpec { connections, unit, burst }| {
        bucket(*connections, unit, *burst, "spec.rateLimit.local.tcp", about)
    });
    let http = local.http.as_ref().and_then(|http| http_rate(http, "spec.rateLimit.local.http", about));
    (tcp, http)
}

fn http_rate(spec: &HttpLocalRateLimitSpec, field: &str, about: &mut About<'_>) -> Option<HttpRate> {
    let bucket = bucket(spec.requests, &spec.unit, spec.burst, field, about)?;
    let status = spec.response_status_code.filter(|s| *s != 0).unwrap_or(429);
    let known = i32::try_from(status).ok().filter(|s| (400..600).contains(s) && StatusCode::try_from(*s).is_ok());
    if known.is_none() {
        about.error(
            format!("{field}.responseStatusCode"),
            format!("{status} is not an error status that proxies know; 429 is used"),
        );
    }
    let mut headers = Vec::new();
    for (i, header) in spec.response_headers_to_add.iter().enumerate() {
        if text::is_token(&header.name) && !header.value.contains(['\r', '\n', '\0']) {
            // `%` begins a command in the proxy's values.
            headers.push((header.name.to_ascii_lowercase(), header.value.replace('%', "%%")));
        } else {
            about.error(format!("{field}.responseHeadersToAdd[{i}]"), "not a header; it is left out");
        }
    }
    let status = known.and_then(|s| u16::try_from(s).ok()).unwrap_or(429);
    Some(HttpRate { bucket, status, headers })
}

fn bucket(per_period: u32, unit: &str, burst: u32, field: &str, about: &mut About<'_>) -> Option<Bucket> {
    let seconds = match unit {
        "second" => 1,
        "minute" => 60,
        "hour" => 3600,
        other => {
            about.error(format!("{field}.unit"), format!("{other:?} is not second, minute or hour; there is NO limit"));
            return None;
        }
    };
    if per_period == 0 {
        about.error(field, "a limit of 0 is not possible, use a TrafficTarget to forbid; there is NO limit");
        return None;
    }
    Some(Bucket { per_period, max: per_period.saturating_add(burst), period: Duration::from_secs(seconds) })
}

const GLOBAL: &str = "global rate limits are not implemented yet: this limit is NOT kept";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn built(spec: serde_json::Value) -> (Option<Limits>, Vec<Finding>) {
        let mut objects = Objects::default();
        let object = serde_json::from_value(json!({"spec": spec})).unwrap();
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
        assert_eq!(limits.tcp_rate, Some(Bucket { per_period: 10, max: 12, period: Duration::from_secs(60) }));
        let http = limits.http_rate.unwrap();
        assert_eq!((http.status, http.bucket.max), (429, 30));
        assert_eq!(http.headers, [("x-a".to_owned(), "100%%".to_owned())]);
    }

    #[test]
    fn a_status_that_proxies_refuse_becomes_429_and_the_limit_is_kept() {
        let (limits, findings) = built(json!({"host": "echo", "rateLimit": {"local": {
            "http": {"requests": 1, "unit": "hour", "responseStatusCode": 420}}}}));
        assert_eq!(limits.unwrap().http_rate.unwrap().status, 429);
        assert_eq!(findings[0].field, "spec.rateLimit.local.http.responseStatusCode");
    }

    #[test]
    fn a_global_limit_and_a_foreign_host_are_said_aloud() {
        let (_, findings) = built(json!({"host": "echo", "rateLimit": {"global": {"tcp": {
            "rateLimitService": {"host": "rls", "port": 1}, "domain": "d", "descriptors": []}}}}));
        assert_eq!((findings[0].field.as_str(), findings[0].message.as_str()), ("spec.rateLimit.global", GLOBAL));
        let (limits, findings) = built(json!({"host": "echo.other.svc.cluster.local"}));
        assert_eq!(limits, None);
        assert_eq!(findings[0].field, "spec.host");
    }
}
