//! What comes to a workload: from the mesh, from ingress, and for its metrics.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch};
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::network::local_ratelimit::v3::LocalRateLimit;

use super::message::{any, cidr, transport_socket, uint};
use super::route::Routes;
use super::{Resources, Scene, cluster, listener, rbac, route as routes, tls};
use crate::mesh::{Ingress, Protocol, Rate, Service};
use crate::xds::Kind;

/// Adds all that the workload's inbound side needs.
pub(super) fn add(scene: &Scene<'_>, resources: &mut Resources) {
    let mut chains = Vec::new();
    let mut configs: BTreeMap<u16, Routes> = BTreeMap::new();
    for service in scene.mesh.services_of(scene.workload) {
        for (target, (protocol, ports)) in targets(scene, service) {
            resources.put(Kind::Cluster, cluster::local_cluster(scene.workload, service, target));
            chains.push(mesh_chain(scene, service, target, protocol));
            if protocol.is_http() {
                let name = format!("rds-inbound.{target}");
                let config = configs.entry(target).or_insert_with(|| Routes::new(&name));
                config.add(routes::inbound_host(scene.mesh, scene.workload, service, target, &ports));
            }
        }
    }
    for (target, mut config) in configs {
        if scene.mesh.config().stats_headers {
            config.say_who_answers(scene.workload);
        }
        resources.put_any(Kind::Route, format!("rds-inbound.{target}"), config.encode());
    }
    add_ingress(scene, resources, &mut chains);
    if !chains.is_empty() {
        tls::own_certificate_secret(scene).into_iter().for_each(|secret| resources.put(Kind::Secret, secret));
        resources.put(Kind::Secret, tls::inbound_roots_secret(scene));
        let mut inbound =
            listener::listener(scene.workload, "inbound-listener", INBOUND_PORT, TrafficDirection::Inbound, &scene.log);
        inbound.filter_chains = chains;
        inbound.listener_filters = vec![
            listener::listener_filter("tls_inspector", any(&TlsInspector::default()), None),
            listener::listener_filter("original_dst", any(&OriginalDst::default()), None),
        ];
        resources.put(Kind::Listener, inbound);
    }
    if scene.workload.scraped {
        add_metrics(scene, resources);
    }
}

/// Ports of the service on this pod, by the pod's own port. Ports that lead to the same one share its protocol.
fn targets(scene: &Scene<'_>, service: &Service) -> BTreeMap<u16, (Protocol, Vec<u16>)> {
    let mut targets: BTreeMap<u16, (Protocol, Vec<u16>)> = BTreeMap::new();
    for port in &service.ports {
        let by_name = port.target_name.as_ref().and_then(|name| scene.workload.named_ports.get(name));
        let target = by_name.copied().unwrap_or(port.target);
        targets.entry(target).or_insert_with(|| (port.protocol, Vec::new())).1.push(port.port);
    }
    targets
}

/// The chain for mesh clients of a service.
fn mesh_chain(scene: &Scene<'_>, service: &Service, target: u16, protocol: Protocol) -> FilterChain {
    let name = format!("inbound_{}_{target}_{}", service.name, protocol.name());
    let mut filters = Vec::new();
    if protocol.is_http() {
        filters.extend(authorization_missing(scene));
    }
    if let Some(access) = scene.mesh.access_to(&scene.workload.identity) {
        let rules = rbac::connections(access, protocol.is_http(), scene.mesh.trust_domain());
        filters.push(listener::filter("l4_rbac", rules));
    }
    filters.extend(rate_limit(scene, service, &name));
    filters.push(if protocol.is_http() {
        listener::inbound_http(&format!("rds-inbound.{target}"), &scene.log)
    } else {
        let local = cluster::local_name(service, target);
        listener::tcp(format!("inbound-mesh-tcp-proxy.{local}"), &[(local, 1)], &scene.log)
    });
    let context = tls::downstream(scene, true);
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: uint(target.into()),
            server_names: vec![service.fqdn()],
            transport_protocol: "tls".to_owned(),
            application_protocols: vec![tls::ALPN.to_owned()],
            ..Default::default()
        }),
        transport_socket: transport_socket(&name, any(&context)),
        ..listener::chain(name, filters)
    }
}

fn rate_limit(scene: &Scene<'_>, service: &Service, stat_prefix: &str) -> Option<Filter> {
    match scene.mesh.limits(&service.name)?.tcp_rate.as_ref()? {
        Rate::Kept(bucket) => {
            let limit = LocalRateLimit {
                stat_prefix: stat_prefix.to_owned(),
                token_bucket: Some(routes::token_bucket(bucket)),
                ..Default::default()
            };
            Some(listener::filter("l4_local_rate_limit", any(&limit)))
        }
        Rate::Nothing => Some(listener::filter("rate_limit_lets_nothing_pass", rbac::no_connection())),
    }
}

/// The chains for clients outside the mesh. Each chain's one virtual host takes all hosts, so where there are several
/// chains each has routes of its own.
fn add_ingress(scene: &Scene<'_>, resources: &mut Resources, chains: &mut Vec<FilterChain>) {
    let ways = scene.mesh.ingresses_of(scene.workload);
    for (service, ingress) in &ways {
        let routes_name = match ways.len() {
            1 => "rds-ingress".to_owned(),
            _ => format!("rds-ingress.{}.{}|{}", ingress.name, service.name, ingress.port),
        };
        chains.push(ingress_chain(scene, service, ingress, &routes_name));
        let mut config = Routes::new(&routes_name);
        config.add(routes::ingress_host(scene.mesh, service, ingress));
        resources.put_any(Kind::Route, routes_name, config.encode());
    }
}

fn ingress_chain(scene: &Scene<'_>, service: &Service, ingress: &Ingress, routes_name: &str) -> FilterChain {
    let protocol = if ingress.tls.is_some() { "https" } else { "http" };
    let name = format!("ingress_{}_{}_{protocol}", service.name, ingress.port);
    let mut matches = FilterChainMatch {
        destination_port: uint(ingress.port.into()),
        source_prefix_ranges: ingress.sources.iter().copied().map(cidr).collect(),
        ..Default::default()
    };
    let mut socket = None;
    if let Some(tls) = &ingress.tls {
        "tls".clone_into(&mut matches.transport_protocol);
        matches.server_names = tls.sni_hosts.iter().cloned().collect();
        let context = tls::downstream(scene, tls.client_certificate);
        socket = transport_socket(&name, any(&context));
    }
    let guards = authorization_missing(scene).into_iter().chain(rate_limit(scene, service, &name));
    let filters = guards.chain([listener::inbound_http(routes_name, &scene.log)]).collect();
    FilterChain { filter_chain_match: Some(matches), transport_socket: socket, ..listener::chain(name, filters) }
}

/// What stands in the place of external authorization that must be obeyed: nobody passes.
fn authorization_missing(scene: &Scene<'_>) -> Option<Filter> {
    let missing = scene.mesh.config().authorization_missing;
    missing.then(|| listener::filter("external_authorization_missing", rbac::no_connection()))
}

/// The port on which Prometheus asks.
fn add_metrics(scene: &Scene<'_>, resources: &mut Resources) {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(METRICS_CLUSTER.to_owned())),
        ..Default::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/stats/prometheus".to_owned())),
            ..Default::default()
        }),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    };
    let host = VirtualHost {
        name: "prometheus-inbound-virtual-host".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..Default::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: "prometheus-http-conn-manager".to_owned(),
        http_filters: vec![listener::router()],
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            virtual_hosts: vec![host],
            ..Default::default()
        })),
        access_log: vec![scene.log.clone()],
        ..Default::default()
    };
    let filters = vec![listener::filter("http_connection_manager", any(&manager))];
    let name = "inbound-prometheus-listener";
    let mut metrics = listener::listener(scene.workload, name, METRICS_PORT, TrafficDirection::Inbound, &scene.log);
    metrics.filter_chains = vec![listener::chain("prometheus".to_owned(), filters)];
    resources.put(Kind::Listener, metrics);
    resources.put(Kind::Cluster, cluster::metrics_cluster(METRICS_CLUSTER, ADMIN_PORT));
}

const INBOUND_PORT: u16 = 15003;
const METRICS_PORT: u16 = 15010;
const ADMIN_PORT: u16 = 15000;
const METRICS_CLUSTER: &str = "envoy-metrics-cluster";
