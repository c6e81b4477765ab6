//! Listeners, filter chains, network filters.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{TrafficDirection, TransportSocket, transport_socket},
            listener::v3::{
                Filter as InFilter, FilterChain as InChain, FilterChainMatch as InMatch, Listener as InListener,
                ListenerFilter as InListenerFilter, ListenerFilterChainMatchPredicate as InPredicate, filter,
                filter_chain_match::ConnectionSourceType,
                listener_filter,
                listener_filter_chain_match_predicate::{MatchSet, Rule},
            },
        },
        extensions::filters::network::{
            http_connection_manager::v3::HttpConnectionManager as Manager,
            local_ratelimit::v3::LocalRateLimit,
            rbac::v3::Rbac as RbacFilter,
            tcp_proxy::v3::{TcpProxy as InTcpProxy, tcp_proxy},
        },
    },
    google::protobuf::Any,
};

use super::{
    access_log,
    context::{Cx, type_of},
    http, ratelimit, rbac, tls,
};
use crate::{
    config::{
        chain_index,
        headers::HeaderEdits,
        listener::{
            ChainMatch, Direction, FilterChain, Listener, ListenerFilter, ListenerFilterKind, NetworkFilter,
            PortPredicate, SourceType, TcpProxy, Terminal, TransportProtocol,
        },
        rbac::NetworkRbac,
        route::{PerRouteFilters, Target, WeightedTarget},
        tls::DownstreamTls,
    },
    xds::{path::At, schema::short},
};

const LISTENER_FILTERS_TIMEOUT: Duration = Duration::from_secs(15);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// A listener.
pub(super) fn listener(l: &InListener, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Listener> {
    let address = cx.socket_address(l.address.as_ref(), &at.field("address"));
    let socket = l.address.as_ref().and_then(|a| match a.address.as_ref()? {
        envoy_types::pb::envoy::config::core::v3::address::Address::SocketAddress(s) => Some(s),
        _ => None,
    });
    if l.filter_chains.is_empty() && l.default_filter_chain.is_none() {
        cx.report.error(&at.field("filter_chains"), "no filter chains specified");
    }
    let chains_at = at.field("filter_chains");
    let mut chains = Vec::with_capacity(l.filter_chains.len());
    for (i, chain) in l.filter_chains.iter().enumerate() {
        chains.extend(self::chain(chain, &chains_at.index(i), cx).map(Arc::new));
    }
    // Only with all of them there are the indexes those of the resource.
    if chains.len() == l.filter_chains.len()
        && let Some((first, second)) = chain_index::duplicate(&chains)
    {
        let reason = format_args!("multiple filter chains with overlapping matching rules are defined: like [{first}]");
        cx.report.error(&chains_at.index(second), reason);
    }
    let default_at = at.field("default_filter_chain");
    let default_chain = l.default_filter_chain.as_ref().and_then(|c| {
        if c.filter_chain_match.is_some() {
            cx.report.warn(&default_at.field("filter_chain_match"), "has no effect on the default chain");
        }
        chain(c, &default_at, cx).map(|c| Arc::new(FilterChain { matcher: ChainMatch::default(), ..c }))
    });
    let timeout = cx.duration(l.listener_filters_timeout.as_ref(), &at.field("listener_filters_timeout"));
    Some(Listener {
        name: l.name.as_str().into(),
        address: address?,
        ipv4_compat: socket.is_some_and(|s| s.ipv4_compat),
        direction: match l.traffic_direction() {
            TrafficDirection::Unspecified => Direction::Unspecified,
            TrafficDirection::Inbound => Direction::Inbound,
            TrafficDirection::Outbound => Direction::Outbound,
        },
        listener_filters: listener_filters(l, &chains, at, cx),
        listener_filters_timeout: timeout.unwrap_or(LISTENER_FILTERS_TIMEOUT),
        continue_on_timeout: l.continue_on_listener_filters_timeout,
        chains,
        default_chain,
        access_log: access_log::logs(&l.access_log, &at.field("access_log"), cx),
        stat_prefix: (!l.stat_prefix.is_empty()).then(|| l.stat_prefix.as_str().into()),
        backlog: l.tcp_backlog_size.as_ref().map(|b| b.value),
    })
}

/// The listener filters; where a chain asks for what only the TLS inspector finds, it is added, as Envoy does.
fn listener_filters(l: &InListener, chains: &[Arc<FilterChain>], at: &At<'_>, cx: &mut Cx<'_>) -> Vec<ListenerFilter> {
    let filters_at = at.field("listener_filters");
    let mut filters = Vec::with_capacity(l.listener_filters.len());
    for (i, filter) in l.listener_filters.iter().enumerate() {
        filters.extend(listener_filter(filter, &filters_at.index(i), cx));
    }
    let needs = |m: &ChainMatch| match m.transport_protocol {
        Some(TransportProtocol::Tls) => true,
        Some(TransportProtocol::RawBuffer) => false,
        None => !m.server_names.is_empty() || !m.application_protocols.is_empty(),
    };
    let has = filters.iter().any(|f| f.kind == ListenerFilterKind::TlsInspector);
    if !has && chains.iter().any(|c| needs(&c.matcher)) {
        cx.report.warn(&filters_at, "filter chains need the TLS inspector, which is not listed: it is added");
        filters.push(ListenerFilter { kind: ListenerFilterKind::TlsInspector, disabled: None });
    }
    filters
}

fn listener_filter(filter: &InListenerFilter, at: &At<'_>, cx: &mut Cx<'_>) -> Option<ListenerFilter> {
    let Some(listener_filter::ConfigType::TypedConfig(any)) = filter.config_type.as_ref() else {
        return cx.refuse(&at.field("typed_config"), "is required");
    };
    let kind = match short(type_of(any)) {
        "OriginalDst" => ListenerFilterKind::OriginalDst,
        "TlsInspector" => ListenerFilterKind::TlsInspector,
        "HttpInspector" => ListenerFilterKind::HttpInspector,
        other => return cx.refuse(&at.field("typed_config"), format_args!("{other} not supported")),
    };
    let disabled = match filter.filter_disabled.as_ref() {
        Some(p) => Some(predicate(p, &at.field("filter_disabled"), cx)?),
        None => None,
    };
    Some(ListenerFilter { kind, disabled })
}

fn predicate(p: &InPredicate, at: &At<'_>, cx: &mut Cx<'_>) -> Option<PortPredicate> {
    Some(match p.rule.as_ref() {
        Some(Rule::AnyMatch(_)) => PortPredicate::Any,
        Some(Rule::OrMatch(set)) => PortPredicate::Or(predicates(set, &at.field("or_match"), cx)?),
        Some(Rule::AndMatch(set)) => PortPredicate::And(predicates(set, &at.field("and_match"), cx)?),
        Some(Rule::NotMatch(not)) => PortPredicate::Not(Box::new(predicate(not, &at.field("not_match"), cx)?)),
        Some(Rule::DestinationPortRange(range)) => match (u16::try_from(range.start), u32::try_from(range.end)) {
            (Ok(start), Ok(end)) if end <= 65_536 && u32::from(start) < end => PortPredicate::Range(start, end),
            _ => {
                let reason = format_args!("[{}, {}) is no range of ports", range.start, range.end);
                return cx.refuse(&at.field("destination_port_range"), reason);
            }
        },
        None => return cx.refuse(at, "needs a rule"),
    })
}

fn predicates(set: &MatchSet, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Vec<PortPredicate>> {
    let at = at.field("rules");
    set.rules.iter().enumerate().map(|(i, p)| predicate(p, &at.index(i), cx)).collect()
}

fn chain(c: &InChain, at: &At<'_>, cx: &mut Cx<'_>) -> Option<FilterChain> {
    let matcher = match c.filter_chain_match.as_ref() {
        Some(m) => matcher(m, &at.field("filter_chain_match"), cx),
        None => Some(ChainMatch::default()),
    };
    let tls = match c.transport_socket.as_ref() {
        Some(socket) => downstream(socket, &at.field("transport_socket"), cx),
        None => Some(None),
    };
    let timeout_at = at.field("transport_socket_connect_timeout");
    let timeout = cx.duration(c.transport_socket_connect_timeout.as_ref(), &timeout_at);
    if timeout.is_some_and(|t| t.is_zero()) {
        cx.report.error(&timeout_at, "zero (no limit) is not supported");
    }
    let filters = filters(&c.filters, &at.field("filters"), cx);
    let (filters, terminal) = filters?;
    Some(FilterChain {
        name: c.name.as_str().into(),
        matcher: matcher?,
        tls: tls?,
        handshake_timeout: timeout.unwrap_or(HANDSHAKE_TIMEOUT),
        filters,
        terminal,
    })
}

fn matcher(m: &InMatch, at: &At<'_>, cx: &mut Cx<'_>) -> Option<ChainMatch> {
    let port = |value: u32, at: &At<'_>, cx: &mut Cx<'_>| match u16::try_from(value) {
        Ok(port) => Some(port),
        Err(_) => cx.refuse(at, format_args!("{value} is no port")),
    };
    let port_at = at.field("destination_port");
    let destination_port = match m.destination_port.as_ref() {
        Some(p) => Some(port(p.value, &port_at, cx)?),
        None => None,
    };
    let ports_at = at.field("source_ports");
    let source_ports = m.source_ports.iter().enumerate();
    let source_ports = source_ports.filter_map(|(i, p)| port(*p, &ports_at.index(i), cx)).collect();
    let names_at = at.field("server_names");
    let names = m.server_names.iter().enumerate();
    let server_names = names.filter_map(|(i, n)| server_name(n, &names_at.index(i), cx)).collect();
    let transport_protocol = match m.transport_protocol.as_str() {
        "" => None,
        "tls" => Some(TransportProtocol::Tls),
        "raw_buffer" => Some(TransportProtocol::RawBuffer),
        other => {
            let reason = format_args!("{other:?} not supported (supported: tls, raw_buffer)");
            return cx.refuse(&at.field("transport_protocol"), reason);
        }
    };
    Some(ChainMatch {
        destination_port,
        prefix_ranges: cx.networks(&m.prefix_ranges, &at.field("prefix_ranges")),
        server_names,
        transport_protocol,
        application_protocols: m.application_protocols.clone(),
        direct_source_prefix_ranges: cx
            .networks(&m.direct_source_prefix_ranges, &at.field("direct_source_prefix_ranges")),
        source_type: match m.source_type() {
            ConnectionSourceType::Any => SourceType::Any,
            ConnectionSourceType::SameIpOrLoopback => SourceType::SameIpOrLoopback,
            ConnectionSourceType::External => SourceType::External,
        },
        source_prefix_ranges: cx.networks(&m.source_prefix_ranges, &at.field("source_prefix_ranges")),
        source_ports,
    })
}

fn server_name(name: &str, at: &At<'_>, cx: &mut Cx<'_>) -> Option<String> {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if rest.is_empty() || rest.contains('*') {
        let reason = format_args!("{name:?}: partial wildcards are not supported in server_names");
        return cx.refuse(at, reason);
    }
    Some(name.to_ascii_lowercase())
}

/// None inside = plaintext.
fn downstream(socket: &TransportSocket, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Option<DownstreamTls>> {
    let at = at.field("typed_config");
    let Some(transport_socket::ConfigType::TypedConfig(any)) = socket.config_type.as_ref() else {
        return cx.refuse(&at, "is required");
    };
    match short(type_of(any)) {
        "DownstreamTlsContext" => {
            let context = cx.decode(any, &at)?;
            tls::downstream(&context, &at.inside(&any.type_url), cx).map(Some)
        }
        "RawBuffer" => Some(None),
        other => cx.refuse(&at, format_args!("{other} is not for listeners")),
    }
}

/// The filters before the last, and the last, which must be terminal.
fn filters(list: &[InFilter], at: &At<'_>, cx: &mut Cx<'_>) -> Option<(Vec<NetworkFilter>, Terminal)> {
    let Some((last, before)) = list.split_last() else { return Some((Vec::new(), Terminal::Close)) };
    let mut filters = Vec::with_capacity(before.len());
    let mut complete = true;
    for (i, filter) in before.iter().enumerate() {
        let converted = any(filter, &at.index(i), cx).and_then(|a| network_filter(filter, a, &at.index(i), cx));
        complete &= converted.is_some();
        filters.extend(converted);
    }
    let last_at = at.index(before.len());
    let terminal = terminal(last, any(last, &last_at, cx)?, &last_at, cx)?;
    complete.then_some((filters, terminal))
}

fn any<'f>(filter: &'f InFilter, at: &At<'_>, cx: &mut Cx<'_>) -> Option<&'f Any> {
    match filter.config_type.as_ref() {
        Some(filter::ConfigType::TypedConfig(any)) => Some(any),
        _ => cx.refuse(&at.field("typed_config"), "is required"),
    }
}

fn network_filter(filter: &InFilter, any: &Any, at: &At<'_>, cx: &mut Cx<'_>) -> Option<NetworkFilter> {
    let config_at = at.field("typed_config");
    let inside = config_at.inside(&any.type_url);
    match short(type_of(any)) {
        "RBAC" => {
            let config: RbacFilter = cx.decode(any, &config_at)?;
            let rules = match config.rules.as_ref() {
                Some(rules) => Some(rbac::connection_rules(rules, &inside.field("rules"), cx)?),
                None => None,
            };
            Some(NetworkFilter::Rbac(Arc::new(NetworkRbac { stat_prefix: config.stat_prefix.as_str().into(), rules })))
        }
        "LocalRateLimit" => {
            let config: LocalRateLimit = cx.decode(any, &config_at)?;
            Some(NetworkFilter::LocalRateLimit(Arc::new(ratelimit::network(&config, &inside, cx)?)))
        }
        other => {
            let reason = format_args!("terminal filter named {} of type {other} must be the last filter", filter.name);
            cx.refuse(at, reason)
        }
    }
}

fn terminal(filter: &InFilter, any: &Any, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Terminal> {
    let config_at = at.field("typed_config");
    let inside = config_at.inside(&any.type_url);
    match short(type_of(any)) {
        "HttpConnectionManager" => {
            let config: Manager = cx.decode(any, &config_at)?;
            http::manager(&config, &inside, cx).map(|m| Terminal::Http(Arc::new(m)))
        }
        "TcpProxy" => {
            let config: InTcpProxy = cx.decode(any, &config_at)?;
            tcp(&config, &inside, cx).map(|t| Terminal::Tcp(Arc::new(t)))
        }
        other => {
            let reason = format_args!(
                "non-terminal filter named {} of type {other} is the last filter in a network filter chain",
                filter.name
            );
            cx.refuse(at, reason)
        }
    }
}

fn tcp(t: &InTcpProxy, at: &At<'_>, cx: &mut Cx<'_>) -> Option<TcpProxy> {
    let target = match t.cluster_specifier.as_ref() {
        Some(tcp_proxy::ClusterSpecifier::Cluster(name)) => Target::Cluster(cx.name(name, &at.field("cluster"))?),
        Some(tcp_proxy::ClusterSpecifier::WeightedClusters(w)) => weighted(w, &at.field("weighted_clusters"), cx)?,
        None => return cx.refuse(at, "needs a cluster"),
    };
    let idle_timeout = match t.idle_timeout.as_ref() {
        Some(_) => cx.limit(t.idle_timeout.as_ref(), &at.field("idle_timeout")),
        None => Some(TCP_IDLE_TIMEOUT),
    };
    let duration_at = at.field("max_downstream_connection_duration");
    Some(TcpProxy {
        stat_prefix: t.stat_prefix.as_str().into(),
        target,
        access_log: access_log::logs(&t.access_log, &at.field("access_log"), cx),
        idle_timeout,
        max_connect_attempts: t.max_connect_attempts.as_ref().map_or(1, |m| m.value),
        max_duration: cx.limit(t.max_downstream_connection_duration.as_ref(), &duration_at),
    })
}

fn weighted(clusters: &tcp_proxy::WeightedCluster, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Target> {
    let at = at.field("clusters");
    let mut targets = Vec::with_capacity(clusters.clusters.len());
    for (i, share) in clusters.clusters.iter().enumerate() {
        let cluster = cx.name(&share.name, &at.index(i).field("name"))?;
        targets.push(WeightedTarget {
            cluster,
            weight: share.weight,
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
            filters: PerRouteFilters::default(),
        });
    }
    let sum: u64 = targets.iter().map(|t| u64::from(t.weight)).sum();
    if sum == 0 || sum > u64::from(u32::MAX) {
        return cx.refuse(&at, format_args!("the sum of weights is {sum}"));
    }
    Some(Target::Weighted(targets))
}
