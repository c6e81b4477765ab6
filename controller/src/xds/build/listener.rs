//! What listeners have in common: filters, the HTTP connection manager, addresses.

use envoy_types::pb::envoy::config::accesslog::v3::AccessLog as LogEntry;
use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, Listener, ListenerFilter, ListenerFilterChainMatchPredicate, filter, listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds,
    http_connection_manager::{RouteSpecifier, UpgradeConfig},
    http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy,
    tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
};
use envoy_types::pb::google::protobuf::{Any, BoolValue};

use super::message::{ads, any, socket_address};
use super::{rbac, route};
use crate::mesh::Workload;

/// A listener on all addresses of the pod.
pub(super) fn listener(
    workload: &Workload,
    name: &str,
    port: u16,
    direction: TrafficDirection,
    log: &LogEntry,
) -> Listener {
    let v6 = workload.ips.iter().any(std::net::IpAddr::is_ipv6);
    Listener {
        name: name.to_owned(),
        address: socket_address(if v6 { "::" } else { "0.0.0.0" }, port, v6),
        traffic_direction: direction.into(),
        access_log: vec![log.clone()],
        ..Default::default()
    }
}

pub(super) fn listener_filter(
    name: &str,
    config: Any,
    filter_disabled: Option<ListenerFilterChainMatchPredicate>,
) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        filter_disabled,
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
    }
}

pub(super) fn chain(name: String, filters: Vec<Filter>) -> FilterChain {
    FilterChain { name, filters, ..Default::default() }
}

pub(super) fn filter(name: &str, config: Any) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) }
}

/// HTTP that leaves, with the routes named `routes`.
pub(super) fn http(routes: &str, log: &LogEntry) -> Filter {
    filter("http_connection_manager", any(&manager(routes, log)))
}

/// HTTP that comes in. Rules speak of paths, so a path has one form before they see it: `/public/../admin` is no public path.
pub(super) fn inbound_http(routes: &str, log: &LogEntry) -> Filter {
    let normal = HttpConnectionManager {
        normalize_path: Some(BoolValue { value: true }),
        merge_slashes: true,
        ..manager(routes, log)
    };
    filter("http_connection_manager", any(&normal))
}

fn manager(routes: &str, log: &LogEntry) -> HttpConnectionManager {
    let stat_prefix = format!("mesh-http-conn-manager.{routes}");
    HttpConnectionManager {
        http_filters: vec![
            http_filter(rbac::HTTP_FILTER, any(&Rbac::default())),
            http_filter(
                route::RATE_LIMIT_FILTER,
                any(&LocalRateLimit { stat_prefix: stat_prefix.clone(), ..Default::default() }),
            ),
            router(),
        ],
        route_specifier: Some(RouteSpecifier::Rds(Rds { config_source: ads(), route_config_name: routes.to_owned() })),
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() }],
        access_log: vec![log.clone()],
        stat_prefix,
        ..Default::default()
    }
}

pub(super) fn router() -> HttpFilter {
    http_filter("http_router", any(&Router::default()))
}

fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

/// Opaque bytes to clusters by weight; clusters without a weight are left out, for a proxy refuses them here.
pub(super) fn tcp(stat_prefix: String, shares: &[(String, u32)], log: &LogEntry) -> Filter {
    let shares: Vec<&(String, u32)> = shares.iter().filter(|(_, weight)| *weight > 0).collect();
    let specifier = match shares.as_slice() {
        [(cluster, _)] => ClusterSpecifier::Cluster(cluster.clone()),
        many => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: many
                .iter()
                .map(|(name, weight)| ClusterWeight { name: name.clone(), weight: *weight, ..Default::default() })
                .collect(),
        }),
    };
    let proxy = TcpProxy {
        stat_prefix,
        cluster_specifier: Some(specifier),
        access_log: vec![log.clone()],
        ..Default::default()
    };
    filter("tcp_proxy", any(&proxy))
}
