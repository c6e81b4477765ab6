//! What leaves a workload: to services of the mesh, and out of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, ListenerFilterChainMatchPredicate,
    listener_filter_chain_match_predicate::{MatchSet, Rule},
};
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::r#type::v3::Int32Range;
use ipnet::IpNet;

use super::message::{any, cidr, host_cidr, uint};
use super::route::Routes;
use super::{Resources, Scene, cluster, listener, rbac, route as routes, tls};
use crate::mesh::{Port, Protocol, Service, TcpEgress};
use crate::xds::Kind;

/// Adds all that the workload's outbound side needs.
pub(super) fn add(scene: &Scene<'_>, resources: &mut Resources) {
    let mut side = Outbound {
        scene,
        chains: Vec::new(),
        dialed: HashSet::new(),
        server_first: BTreeSet::new(),
        opaque: BTreeSet::new(),
        inspected: BTreeSet::new(),
        managers: BTreeMap::new(),
    };
    side.add_mesh(resources);
    side.add_egress(resources);
    side.add_listener(resources);
}

struct Outbound<'a> {
    scene: &'a Scene<'a>,
    chains: Vec<FilterChain>,
    /// Addresses that have a chain already: a proxy refuses the listener if two chains claim one.
    dialed: HashSet<(IpAddr, u16)>,
    server_first: BTreeSet<u16>,
    /// Ports of TCP chains that are chosen by address alone.
    opaque: BTreeSet<u16>,
    /// Ports of chains that are chosen by server name or protocol.
    inspected: BTreeSet<u16>,
    /// HTTP connection managers by port: services on one port share theirs, and making it is the dearest part of a chain.
    managers: BTreeMap<u16, Filter>,
}

impl Outbound<'_> {
    fn add_mesh(&mut self, resources: &mut Resources) {
        let Scene { mesh, workload, .. } = self.scene;
        let own = &workload.identity;
        let mut configs: BTreeMap<u16, Routes> = BTreeMap::new();
        let mut reachable = mesh.reachable_from(own).peekable();
        if reachable.peek().is_some() {
            tls::own_certificate_secret(self.scene).into_iter().for_each(|secret| resources.put(Kind::Secret, secret));
        }
        for service in reachable {
            self.add_cluster_of(service, resources);
            for port in &service.ports {
                self.add_backends(service, port, resources);
                if port.protocol.is_http() {
                    let name = format!("rds-outbound.{}", port.port);
                    let config = configs.entry(port.port).or_insert_with(|| Routes::new(&name));
                    config.add(routes::outbound_host(mesh, own, service, port));
                }
                let chain = self.mesh_chain(service, port);
                self.chains.extend(chain);
            }
        }
        for (port, config) in configs {
            resources.put_any(Kind::Route, format!("rds-outbound.{port}"), config.encode());
        }
    }

    fn add_cluster_of(&self, service: &Service, resources: &mut Resources) {
        for port in &service.ports {
            self.add_cluster(service, port.target, resources);
        }
        if !service.ports.is_empty() {
            resources.put(Kind::Secret, tls::outbound_roots_secret(self.scene, service));
        }
    }

    /// A backend that the workload may not call is there too, without endpoints: its share is refused in words.
    fn add_backends(&self, service: &Service, port: &Port, resources: &mut Resources) {
        let mesh = self.scene.mesh;
        let Some(split) = mesh.split(&service.name) else { return };
        for (backend, target, _) in split.shares(mesh.services(), port.port) {
            self.add_cluster(backend, target, resources);
            resources.put(Kind::Secret, tls::outbound_roots_secret(self.scene, backend));
        }
    }

    fn add_cluster(&self, service: &Service, target: u16, resources: &mut Resources) {
        let Scene { mesh, workload, .. } = self.scene;
        resources.put(Kind::Cluster, cluster::mesh_cluster(self.scene, service, target));
        resources.put(Kind::Endpoint, cluster::endpoints(mesh, &workload.identity, service, target));
    }

    /// The chain for those who dial `port` of `service`.
    fn mesh_chain(&mut self, service: &Service, port: &Port) -> Option<FilterChain> {
        let ips: Vec<IpAddr> =
            service.dialed.iter().copied().filter(|ip| self.dialed.insert((*ip, port.port))).collect();
        if ips.is_empty() {
            return None;
        }
        let name = format!("outbound_{}_{}_{}", service.name, port.port, port.protocol.name());
        let log = &self.scene.log;
        let filter = if port.protocol.is_http() {
            let make = || listener::http(&format!("rds-outbound.{}", port.port), log);
            self.managers.entry(port.port).or_insert_with(make).clone()
        } else {
            listener::tcp(format!("outbound-mesh-tcp-proxy_{name}"), &self.tcp_shares(service, port), log)
        };
        match port.protocol {
            Protocol::TcpServerFirst => self.server_first.insert(port.port),
            _ if !port.protocol.is_http() => self.opaque.insert(port.port),
            _ => false,
        };
        let matches = FilterChainMatch {
            destination_port: uint(port.port.into()),
            prefix_ranges: ips.into_iter().map(host_cidr).collect(),
            ..Default::default()
        };
        Some(FilterChain { filter_chain_match: Some(matches), ..listener::chain(name, vec![filter]) })
    }

    fn tcp_shares(&self, service: &Service, port: &Port) -> Vec<(String, u32)> {
        let mesh = self.scene.mesh;
        // A split of some requests says nothing about opaque bytes.
        let split = mesh.split(&service.name).filter(|split| split.only.is_none());
        let shares = split.map(|s| s.shares(mesh.services(), port.port)).unwrap_or_default();
        if shares.is_empty() {
            return vec![(cluster::name(service, port.target), 1)];
        }
        shares.into_iter().map(|(backend, target, weight)| (cluster::name(backend, target), weight)).collect()
    }

    fn add_egress(&mut self, resources: &mut Resources) {
        let Some(egress) = self.scene.mesh.egress(&self.scene.workload.identity) else { return };
        let limits = |name: &str| egress.limits.get(name).cloned().unwrap_or_default();
        for (port, hosts) in &egress.http {
            let name = format!("rds-egress.{port}");
            let mut config = Routes::new(&name);
            for (host, rules) in hosts {
                config.add(routes::egress_host(host, *port, rules));
                resources.put(Kind::Cluster, cluster::host_cluster(host, *port, &limits(&format!("{host}:{port}"))));
            }
            resources.put_any(Kind::Route, name.clone(), config.encode());
            let matches = FilterChainMatch {
                destination_port: uint((*port).into()),
                application_protocols: ["http/1.0", "http/1.1", "h2c"].map(str::to_owned).to_vec(),
                ..Default::default()
            };
            let filters = vec![listener::http(&name, &self.scene.log)];
            let chain = listener::chain(format!("egress-http.{port}"), filters);
            self.chains.push(FilterChain { filter_chain_match: Some(matches), ..chain });
            self.inspected.insert(*port);
        }
        for (port, tcp) in &egress.tcp {
            let name = port.to_string();
            resources.put(Kind::Cluster, cluster::original_destination(&name, &limits(&name)));
            if tcp.protocol == "tcp-server-first" {
                self.server_first.insert(*port);
            }
            let by_name = tcp.ranges.values().any(|names| !names.is_empty());
            if by_name { &mut self.inspected } else { &mut self.opaque }.insert(*port);
            self.chains.extend(self.tcp_egress_chains(*port, tcp));
        }
    }

    /// One chain for each set of server names, so that no two chains claim the same connection.
    fn tcp_egress_chains(&self, port: u16, tcp: &TcpEgress) -> Vec<FilterChain> {
        let mut by_names: BTreeMap<&BTreeSet<String>, Vec<Option<IpNet>>> = BTreeMap::new();
        // The address of a service is the mesh's: two chains may not claim it.
        let of_mesh =
            |range: &IpNet| range.prefix_len() == range.max_prefix_len() && self.dialed.contains(&(range.addr(), port));
        for (range, names) in tcp.ranges.iter().filter(|(range, _)| !range.as_ref().is_some_and(of_mesh)) {
            by_names.entry(names).or_default().push(*range);
        }
        // A chain for all addresses can't share its match with one for some: no range is the wider match.
        let groups = by_names.into_iter().flat_map(|(names, ranges)| {
            let (all, some): (Vec<_>, Vec<_>) = ranges.into_iter().partition(Option::is_none);
            [all, some].into_iter().filter(|r| !r.is_empty()).map(move |r| (names, r))
        });
        let chain = |(i, (names, ranges)): (usize, (&BTreeSet<String>, Vec<Option<IpNet>>))| {
            let name = format!("egress-{}.{port}", tcp.protocol);
            let name = if i == 0 { name } else { format!("{name}-{}", i + 1) };
            let stat_prefix = format!("egress-tcp-proxy.{port}");
            let filters = vec![listener::tcp(stat_prefix, &[(port.to_string(), 1)], &self.scene.log)];
            let matches = FilterChainMatch {
                destination_port: uint(port.into()),
                prefix_ranges: ranges.into_iter().flatten().map(cidr).collect(),
                server_names: names.iter().cloned().collect(),
                ..Default::default()
            };
            FilterChain { filter_chain_match: Some(matches), ..listener::chain(name, filters) }
        };
        groups.enumerate().map(chain).collect()
    }

    fn add_listener(self, resources: &mut Resources) {
        let Scene { mesh, workload, log, .. } = self.scene;
        let mut outbound =
            listener::listener(workload, "outbound-listener", OUTBOUND_PORT, TrafficDirection::Outbound, log);
        let silent: BTreeSet<u16> = &self.server_first | &(&self.opaque - &self.inspected);
        let opaque = uninspected_ports(&silent);
        outbound.listener_filters = vec![
            listener::listener_filter("original_dst", any(&OriginalDst::default()), None),
            listener::listener_filter("tls_inspector", any(&TlsInspector::default()), opaque.clone()),
            listener::listener_filter("http_inspector", any(&HttpInspector::default()), opaque),
        ];
        outbound.continue_on_listener_filters_timeout = true;
        outbound.filter_chains = self.chains;
        if mesh.config().egress {
            resources.put(Kind::Cluster, cluster::original_destination(cluster::PASSTHROUGH, &Default::default()));
            let stat_prefix = format!("egress-tcp-proxy.{}", cluster::PASSTHROUGH);
            let filters = vec![listener::tcp(stat_prefix, &[(cluster::PASSTHROUGH.to_owned(), 1)], log)];
            outbound.default_filter_chain = Some(listener::chain("outbound-egress-filter-chain".to_owned(), filters));
        } else if outbound.filter_chains.is_empty() {
            outbound.filter_chains.push(nothing_allowed(log));
        }
        resources.put(Kind::Listener, outbound);
    }
}

/// A listener needs a chain. This one can't match, because nobody dials the listener's own port through it; so every
/// connection is refused as one without a chain, which is counted and logged, instead of by a closed port with no word.
fn nothing_allowed(log: &envoy_types::pb::envoy::config::accesslog::v3::AccessLog) -> FilterChain {
    let filters = vec![
        listener::filter("l4_rbac", rbac::no_connection()),
        listener::tcp("outbound-nothing-allowed".to_owned(), &[("outbound-nothing-allowed".to_owned(), 1)], log),
    ];
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: uint(OUTBOUND_PORT.into()),
            ..Default::default()
        }),
        ..listener::chain("outbound-nothing-allowed".to_owned(), filters)
    }
}

/// Where the server speaks first, nothing must wait for the client's first bytes; and where no chain is chosen by them, a client
/// that sends little (less than a request line) would wait for the inspectors' time-out.
fn uninspected_ports(ports: &BTreeSet<u16>) -> Option<ListenerFilterChainMatchPredicate> {
    let one = |port: &u16| {
        let range = Int32Range { start: i32::from(*port), end: i32::from(*port) + 1 };
        ListenerFilterChainMatchPredicate { rule: Some(Rule::DestinationPortRange(range)) }
    };
    let mut rules: Vec<_> = ports.iter().map(one).collect();
    match rules.len() {
        0 | 1 => rules.pop(),
        _ => Some(ListenerFilterChainMatchPredicate { rule: Some(Rule::OrMatch(MatchSet { rules })) }),
    }
}

const OUTBOUND_PORT: u16 = 15001;
