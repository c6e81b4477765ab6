//! Clusters.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster as InCluster, LoadBalancingPolicy,
                cluster::{
                    ClusterDiscoveryType, CustomClusterType, DiscoveryType, DnsLookupFamily, LbConfig, LbPolicy,
                },
            },
            core::v3::{TransportSocket, transport_socket},
            endpoint::v3::ClusterLoadAssignment,
        },
        extensions::{
            clusters::{common::dns::v3::DnsLookupFamily as ExtensionFamily, dns::v3::DnsCluster},
            load_balancing_policies::least_request::v3::LeastRequest,
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
                },
            },
        },
    },
    google::protobuf::Any,
};

use super::{
    context::{Cx, percent_ppm, type_of},
    endpoint, source, tls,
};
use crate::{
    config::{
        Name,
        cluster::{
            ClusterSpec, Discovery, DnsFamily, DnsPolicy, Http2Keepalive, Limits, LoadBalancing, RetryBudget,
            TcpKeepalive, UpstreamHttp,
        },
        tls::UpstreamTls,
    },
    xds::{path::At, schema::short},
};

/// Envoy's default bound of buffers, in bytes.
const BUFFER_LIMIT: u32 = 1 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const DNS_REFRESH: Duration = Duration::from_secs(5);
/// A record of a shorter life is looked up again after this where nothing else is configured.
const DNS_MIN_TTL: Duration = Duration::from_secs(1);
/// The key of the HTTP settings in `typed_extension_protocol_options`.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A cluster.
pub(super) fn cluster(c: &InCluster, at: &At<'_>, cx: &mut Cx<'_>) -> Option<ClusterSpec> {
    let name = cx.name(&c.name, &at.field("name"))?;
    let discovery = discovery(c, &name, at, cx);
    let lb = load_balancing(c, at, cx);
    if let (Some(discovery), Some(lb)) = (&discovery, lb) {
        fitting(discovery, lb, at, cx);
    }
    let connect_timeout = cx.duration(c.connect_timeout.as_ref(), &at.field("connect_timeout"));
    let http = http(c, at, cx);
    let tls = match c.transport_socket.as_ref() {
        Some(socket) => upstream(socket, &at.field("transport_socket"), cx),
        None => Some(None),
    };
    let limits = limits(c.circuit_breakers.as_ref(), &at.field("circuit_breakers").field("thresholds"), cx);
    let http = http?;
    Some(ClusterSpec {
        stat_name: if c.alt_stat_name.is_empty() { name.clone() } else { c.alt_stat_name.as_str().into() },
        name,
        discovery: discovery?,
        connect_timeout: connect_timeout.unwrap_or(CONNECT_TIMEOUT),
        lb: lb?,
        limits: limits?,
        max_requests_per_connection: http.max_requests.or(max_requests(c)),
        http: http.version,
        http2_keepalive: http.keepalive,
        idle_timeout: http.idle_timeout,
        tls: tls?,
        tcp_keepalive: keepalive(c, at, cx),
        buffer_limit_bytes: c.per_connection_buffer_limit_bytes.as_ref().map_or(BUFFER_LIMIT, |b| b.value),
    })
}

fn max_requests(c: &InCluster) -> Option<u32> {
    c.max_requests_per_connection.as_ref().map(|m| m.value).filter(|m| *m > 0)
}

fn discovery(c: &InCluster, name: &Name, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Discovery> {
    let kind = match c.cluster_discovery_type.as_ref() {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind).ok(),
        None => Some(DiscoveryType::Static),
        Some(ClusterDiscoveryType::ClusterType(custom)) => return self::custom(c, custom, at, cx),
    };
    let load_at = at.field("load_assignment");
    let load = c.load_assignment.as_ref();
    let empty = ClusterLoadAssignment::default();
    let in_place = load.unwrap_or(&empty);
    if c.eds_cluster_config.is_some() && kind != Some(DiscoveryType::Eds) {
        cx.report.error(&at.field("eds_cluster_config"), "only an EDS cluster has one");
    }
    match kind {
        Some(DiscoveryType::Eds) => {
            if load.is_some() {
                cx.report.error(&load_at, "an EDS cluster has none");
            }
            eds(c, name, at, cx)
        }
        Some(DiscoveryType::OriginalDst) => {
            if load.is_some() {
                return cx.refuse(&load_at, "ORIGINAL_DST clusters must have no load assignment configured");
            }
            Some(Discovery::OriginalDst)
        }
        Some(DiscoveryType::Static) => {
            endpoint::no_policy(in_place, &load_at, cx);
            Some(Discovery::Static(endpoint::addresses(in_place, &load_at, cx)))
        }
        Some(DiscoveryType::StrictDns) => strict_dns(in_place, &load_at, dns_policy(c, at, cx)?, cx),
        Some(DiscoveryType::LogicalDns) => logical_dns(in_place, &load_at, dns_policy(c, at, cx)?, cx),
        None => cx.refuse(&at.field("type"), "is required"),
    }
}

fn strict_dns(load: &ClusterLoadAssignment, at: &At<'_>, policy: DnsPolicy, cx: &mut Cx<'_>) -> Option<Discovery> {
    endpoint::no_policy(load, at, cx);
    Some(Discovery::StrictDns(endpoint::names(load, at, cx), policy))
}

fn logical_dns(load: &ClusterLoadAssignment, at: &At<'_>, policy: DnsPolicy, cx: &mut Cx<'_>) -> Option<Discovery> {
    endpoint::no_policy(load, at, cx);
    let single = load.endpoints.len() == 1 && load.endpoints[0].lb_endpoints.len() == 1;
    if !single {
        let reason = "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint";
        return cx.refuse(at, reason);
    }
    Some(Discovery::LogicalDns(endpoint::names(load, at, cx).pop()?, policy))
}

/// A cluster type of its own message: that of names is the only one.
fn custom(c: &InCluster, custom: &CustomClusterType, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Discovery> {
    let any_at = at.field("cluster_type");
    let any_at = any_at.field("typed_config");
    let Some(any) = custom.typed_config.as_ref() else { return cx.refuse(&any_at, "is required") };
    let dns: DnsCluster = cx.decode(any, &any_at)?;
    let policy = extension_policy(&dns, &any_at.inside(&any.type_url), cx)?;
    if c.eds_cluster_config.is_some() {
        cx.report.error(&at.field("eds_cluster_config"), "only an EDS cluster has one");
    }
    for (set, field) in [
        (c.dns_refresh_rate.is_some(), "dns_refresh_rate"),
        (c.dns_failure_refresh_rate.is_some(), "dns_failure_refresh_rate"),
        (c.dns_jitter.is_some(), "dns_jitter"),
        (c.respect_dns_ttl, "respect_dns_ttl"),
        (c.dns_lookup_family != 0, "dns_lookup_family"),
    ] {
        if set {
            cx.report.warn(&at.field(field), "has no effect: cluster_type has one of its own");
        }
    }
    let (load_at, empty) = (at.field("load_assignment"), ClusterLoadAssignment::default());
    let load = c.load_assignment.as_ref().unwrap_or(&empty);
    match dns.all_addresses_in_single_endpoint {
        true => logical_dns(load, &load_at, policy, cx),
        false => strict_dns(load, &load_at, policy, cx),
    }
}

fn eds(c: &InCluster, name: &Name, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Discovery> {
    let at = at.field("eds_cluster_config");
    let Some(eds) = c.eds_cluster_config.as_ref() else {
        return cx.refuse(&at, "cannot create an EDS cluster without an EDS config");
    };
    let service = if eds.service_name.is_empty() { name.clone() } else { eds.service_name.as_str().into() };
    Some(Discovery::Eds(source::over_ads(service, eds.eds_config.as_ref(), &at.field("eds_config"), cx)?))
}

fn dns_policy(c: &InCluster, at: &At<'_>, cx: &mut Cx<'_>) -> Option<DnsPolicy> {
    let refresh = cx.duration(c.dns_refresh_rate.as_ref(), &at.field("dns_refresh_rate")).unwrap_or(DNS_REFRESH);
    let failure_at = at.field("dns_failure_refresh_rate");
    let failure = c.dns_failure_refresh_rate.as_ref().and_then(|f| f.base_interval.as_ref());
    let failure_refresh = cx.duration(failure, &failure_at.field("base_interval")).unwrap_or(refresh);
    Some(DnsPolicy {
        family: match c.dns_lookup_family() {
            DnsLookupFamily::Auto => DnsFamily::Auto,
            DnsLookupFamily::V4Only => DnsFamily::V4Only,
            DnsLookupFamily::V6Only => DnsFamily::V6Only,
            DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
            DnsLookupFamily::All => DnsFamily::All,
        },
        refresh,
        respect_ttl: c.respect_dns_ttl,
        min_ttl: DNS_MIN_TTL,
        failure_refresh,
        jitter: cx.duration(c.dns_jitter.as_ref(), &at.field("dns_jitter")).unwrap_or_default(),
    })
}

/// The same settings in the message of the extension.
fn extension_policy(dns: &DnsCluster, at: &At<'_>, cx: &mut Cx<'_>) -> Option<DnsPolicy> {
    let refresh = cx.duration(dns.dns_refresh_rate.as_ref(), &at.field("dns_refresh_rate")).unwrap_or(DNS_REFRESH);
    let failure_at = at.field("dns_failure_refresh_rate");
    let failure = dns.dns_failure_refresh_rate.as_ref().and_then(|f| f.base_interval.as_ref());
    let failure_refresh = cx.duration(failure, &failure_at.field("base_interval")).unwrap_or(refresh);
    let min_ttl = cx.duration(dns.dns_min_refresh_rate.as_ref(), &at.field("dns_min_refresh_rate"));
    Some(DnsPolicy {
        family: match dns.dns_lookup_family() {
            ExtensionFamily::Unspecified | ExtensionFamily::Auto => DnsFamily::Auto,
            ExtensionFamily::V4Only => DnsFamily::V4Only,
            ExtensionFamily::V6Only => DnsFamily::V6Only,
            ExtensionFamily::V4Preferred => DnsFamily::V4Preferred,
            ExtensionFamily::All => DnsFamily::All,
        },
        refresh,
        respect_ttl: dns.respect_dns_ttl,
        min_ttl: min_ttl.unwrap_or(DNS_MIN_TTL),
        failure_refresh,
        jitter: cx.duration(dns.dns_jitter.as_ref(), &at.field("dns_jitter")).unwrap_or_default(),
    })
}

fn load_balancing(c: &InCluster, at: &At<'_>, cx: &mut Cx<'_>) -> Option<LoadBalancing> {
    if let Some(policy) = c.load_balancing_policy.as_ref() {
        return typed_policy(policy, &at.field("load_balancing_policy").field("policies"), cx);
    }
    let config = match c.lb_config.as_ref() {
        Some(LbConfig::LeastRequestLbConfig(config)) => config.choice_count.as_ref().map(|n| n.value),
        _ => None,
    };
    Some(match c.lb_policy() {
        LbPolicy::RoundRobin => LoadBalancing::RoundRobin,
        LbPolicy::LeastRequest => LoadBalancing::LeastRequest { choices: config.unwrap_or(2) },
        LbPolicy::Random => LoadBalancing::Random,
        LbPolicy::ClusterProvided => LoadBalancing::Provided,
        other => return cx.refuse(&at.field("lb_policy"), format_args!("{} not supported", other.as_str_name())),
    })
}

/// The first entry counts of those that we have, as in Envoy; the walk has refused a list without any.
fn typed_policy(policy: &LoadBalancingPolicy, at: &At<'_>, cx: &mut Cx<'_>) -> Option<LoadBalancing> {
    let configs = policy.policies.iter().map(|p| p.typed_extension_config.as_ref()?.typed_config.as_ref());
    let known = |any: &Any| {
        Some(match short(type_of(any)) {
            "RoundRobin" => LoadBalancing::RoundRobin,
            "LeastRequest" => LoadBalancing::LeastRequest { choices: 2 },
            "Random" => LoadBalancing::Random,
            "ClusterProvided" => LoadBalancing::Provided,
            _ => return None,
        })
    };
    let first = configs.enumerate().find_map(|(i, any)| Some((i, any?, known(any?)?)));
    let Some((i, any, lb)) = first else { return cx.refuse(at, "needs a policy") };
    if !matches!(lb, LoadBalancing::LeastRequest { .. }) {
        return Some(lb);
    }
    let at = at.index(i);
    let at = at.field("typed_extension_config");
    let config: LeastRequest = cx.decode(any, &at.field("typed_config"))?;
    Some(LoadBalancing::LeastRequest { choices: config.choice_count.as_ref().map_or(2, |n| n.value) })
}

fn fitting(discovery: &Discovery, lb: LoadBalancing, at: &At<'_>, cx: &mut Cx<'_>) {
    let original = *discovery == Discovery::OriginalDst;
    match (original, lb == LoadBalancing::Provided) {
        (true, false) => cx.report.error(
            &at.field("lb_policy"),
            "cluster type ORIGINAL_DST may only be used with LB policy CLUSTER_PROVIDED",
        ),
        (false, true) => {
            cx.report.error(&at.field("lb_policy"), "CLUSTER_PROVIDED may only be used with type ORIGINAL_DST");
        }
        _ => {}
    }
}

fn limits(breakers: Option<&CircuitBreakers>, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Limits> {
    let thresholds = breakers.map_or(&[][..], |b| b.thresholds.as_slice());
    let Some(t) = thresholds.first() else { return Some(Limits::default()) };
    if thresholds.len() > 1 {
        return cx.refuse(&at.index(1), "there is one for priority DEFAULT before");
    }
    let default = Limits::default();
    Some(Limits {
        max_connections: t.max_connections.as_ref().map_or(default.max_connections, |m| m.value),
        max_pending_requests: t.max_pending_requests.as_ref().map_or(default.max_pending_requests, |m| m.value),
        max_requests: t.max_requests.as_ref().map_or(default.max_requests, |m| m.value),
        max_retries: t.max_retries.as_ref().map_or(default.max_retries, |m| m.value),
        retry_budget: t.retry_budget.as_ref().map(|b| RetryBudget {
            ppm: percent_ppm(b.budget_percent.as_ref().map_or(20.0, |p| p.value)),
            min_concurrency: b.min_retry_concurrency.as_ref().map_or(3, |m| m.value),
        }),
        track_remaining: t.track_remaining,
    })
}

struct Http {
    version: UpstreamHttp,
    keepalive: Option<Http2Keepalive>,
    idle_timeout: Duration,
    max_requests: Option<u32>,
}

fn http(c: &InCluster, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Http> {
    let default =
        Http { version: UpstreamHttp::Http1, keepalive: None, idle_timeout: IDLE_TIMEOUT, max_requests: None };
    let options_at = at.field("typed_extension_protocol_options");
    let mut options = None;
    for (key, any) in &c.typed_extension_protocol_options {
        if key != HTTP_OPTIONS {
            return cx.refuse(&options_at.key(key), format_args!("not supported (supported: {HTTP_OPTIONS})"));
        }
        options = Some(any);
    }
    let Some(any) = options else { return Some(default) };
    let at = options_at.key(HTTP_OPTIONS);
    let config: HttpProtocolOptions = cx.decode(any, &at)?;
    let at = at.inside(&any.type_url);
    let (version, keepalive) = match config.upstream_protocol_options.as_ref() {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            explicit_version(explicit, &at.field("explicit_http_config"), cx)?
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
            let at = at.field("use_downstream_protocol_config");
            h1_defaults(config.http_protocol_options.as_ref(), &at, cx);
            (UpstreamHttp::UseDownstream, h2(config.http2_protocol_options.as_ref(), &at, cx))
        }
        _ => return cx.refuse(&at, "needs explicit_http_config or use_downstream_protocol_config"),
    };
    let common_at = at.field("common_http_protocol_options");
    let common = config.common_http_protocol_options.unwrap_or_default();
    for (set, field) in [
        (common.max_connection_duration.is_some(), "max_connection_duration"),
        (common.max_headers_count.is_some(), "max_headers_count"),
        (common.max_stream_duration.is_some(), "max_stream_duration"),
    ] {
        if set {
            cx.report.error(&common_at.field(field), "not supported for clusters");
        }
    }
    let idle = cx.duration(common.idle_timeout.as_ref(), &common_at.field("idle_timeout"));
    let max_requests = common.max_requests_per_connection.as_ref().map(|m| m.value).filter(|m| *m > 0);
    Some(Http { version, keepalive, idle_timeout: idle.unwrap_or(IDLE_TIMEOUT), max_requests })
}

fn explicit_version(
    explicit: &ExplicitHttpConfig,
    at: &At<'_>,
    cx: &mut Cx<'_>,
) -> Option<(UpstreamHttp, Option<Http2Keepalive>)> {
    match explicit.protocol_config.as_ref() {
        Some(ProtocolConfig::HttpProtocolOptions(options)) => {
            h1_defaults(Some(options), at, cx);
            Some((UpstreamHttp::Http1, None))
        }
        Some(ProtocolConfig::Http2ProtocolOptions(options)) => Some((UpstreamHttp::Http2, h2(Some(options), at, cx))),
        _ => cx.refuse(at, "needs http_protocol_options or http2_protocol_options"),
    }
}

/// What the connection manager has and a cluster doesn't.
fn h1_defaults(
    options: Option<&envoy_types::pb::envoy::config::core::v3::Http1ProtocolOptions>,
    at: &At<'_>,
    cx: &mut Cx<'_>,
) {
    if options.is_some_and(|o| o.accept_http_10) {
        let at = at.field("http_protocol_options");
        cx.report.error(&at.field("accept_http_10"), "not supported for clusters");
    }
}

/// The pings that are asked for; the rest is the connection manager's.
fn h2(
    options: Option<&envoy_types::pb::envoy::config::core::v3::Http2ProtocolOptions>,
    at: &At<'_>,
    cx: &mut Cx<'_>,
) -> Option<Http2Keepalive> {
    let (options, at) = (options?, at.field("http2_protocol_options"));
    if options.max_concurrent_streams.is_some() {
        cx.report.error(&at.field("max_concurrent_streams"), "not supported for clusters");
    }
    let keepalive = options.connection_keepalive.as_ref()?;
    let at = at.field("connection_keepalive");
    let interval = cx.duration(keepalive.interval.as_ref(), &at.field("interval"));
    let timeout = cx.duration(keepalive.timeout.as_ref(), &at.field("timeout"));
    match (interval, timeout) {
        (Some(interval), Some(timeout)) => Some(Http2Keepalive { interval, timeout }),
        _ => cx.refuse(&at, "needs interval and timeout"),
    }
}

/// None inside = plaintext.
fn upstream(socket: &TransportSocket, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Option<UpstreamTls>> {
    let at = at.field("typed_config");
    let Some(transport_socket::ConfigType::TypedConfig(any)) = socket.config_type.as_ref() else {
        return cx.refuse(&at, "is required");
    };
    match short(type_of(any)) {
        "UpstreamTlsContext" => {
            let context = cx.decode(any, &at)?;
            tls::upstream(&context, &at.inside(&any.type_url), cx).map(Some)
        }
        "RawBuffer" => Some(None),
        other => cx.refuse(&at, format_args!("{other} is not for clusters")),
    }
}

fn keepalive(c: &InCluster, at: &At<'_>, cx: &mut Cx<'_>) -> Option<TcpKeepalive> {
    let keepalive = c.upstream_connection_options.as_ref()?.tcp_keepalive.as_ref()?;
    let seconds = |s: &Option<envoy_types::pb::google::protobuf::UInt32Value>| {
        s.as_ref().map(|s| Duration::from_secs(u64::from(s.value)))
    };
    let options_at = at.field("upstream_connection_options");
    let at = options_at.field("tcp_keepalive");
    let (time, interval) = (seconds(&keepalive.keepalive_time), seconds(&keepalive.keepalive_interval));
    for (value, field) in [(time, "keepalive_time"), (interval, "keepalive_interval")] {
        if value.is_some_and(|v| v.is_zero()) {
            cx.report.error(&at.field(field), "zero is no time between probes");
        }
    }
    Some(TcpKeepalive { probes: keepalive.keepalive_probes.as_ref().map(|p| p.value), time, interval })
}
