//! Listeners and filter chains as data, and the choice of a chain.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ipnet::IpNet;

pub use super::chain_index::ChainIndex;
use super::{
    Name, access_log::AccessLog, http::HttpConnectionManager, ratelimit::NetworkLocalRateLimit, rbac::NetworkRbac,
    tls::DownstreamTls,
};

/// A listener (Envoy's `Listener`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Unique name.
    pub name: Name,
    /// Where it listens.
    pub address: SocketAddr,
    /// An IPv6 wildcard takes IPv4 as well (`ipv4_compat`).
    pub ipv4_compat: bool,
    /// Direction, for drains and logs.
    pub direction: Direction,
    /// Listener filters in order.
    pub listener_filters: Vec<ListenerFilter>,
    /// Longest time for the listener filters; 15 s, zero = no limit.
    pub listener_filters_timeout: Duration,
    /// On that time-out go on without their findings instead of closing.
    pub continue_on_timeout: bool,
    /// Filter chains; no two match alike.
    pub chains: Vec<Arc<FilterChain>>,
    /// Used when no chain matches.
    pub default_chain: Option<Arc<FilterChain>>,
    /// Logs connections that got no chain.
    pub access_log: Vec<AccessLog>,
    /// Prefix of its statistics, else the address.
    pub stat_prefix: Option<Name>,
    /// Accept backlog; none = the system's.
    pub backlog: Option<u32>,
}

/// Traffic direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Not told.
    Unspecified,
    /// Towards the local application.
    Inbound,
    /// From the local application.
    Outbound,
}

/// One listener filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerFilter {
    /// Which.
    pub kind: ListenerFilterKind,
    /// Connections for which it is skipped.
    pub disabled: Option<PortPredicate>,
}

/// The listener filters that we have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerFilterKind {
    /// Reads the redirected connection's original destination.
    OriginalDst,
    /// Peeks at a TLS ClientHello.
    TlsInspector,
    /// Peeks at the first HTTP bytes.
    HttpInspector,
}

/// Envoy's `ListenerFilterChainMatchPredicate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortPredicate {
    /// Every connection.
    Any,
    /// Destination port in `[start, end)`.
    Range(u16, u32),
    /// Any of them.
    Or(Vec<PortPredicate>),
    /// All of them.
    And(Vec<PortPredicate>),
    /// Not this.
    Not(Box<PortPredicate>),
}

impl PortPredicate {
    /// True when a connection to `port` is meant.
    #[must_use]
    pub fn matches(&self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Range(start, end) => *start <= port && u32::from(port) < *end,
            Self::Or(any) => any.iter().any(|p| p.matches(port)),
            Self::And(all) => all.iter().all(|p| p.matches(port)),
            Self::Not(not) => !not.matches(port),
        }
    }
}

/// A filter chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterChain {
    /// Name; may be empty.
    pub name: Name,
    /// Which connections.
    pub matcher: ChainMatch,
    /// TLS is terminated here.
    pub tls: Option<DownstreamTls>,
    /// Longest TLS handshake; 10 s unless `transport_socket_connect_timeout` says otherwise.
    pub handshake_timeout: Duration,
    /// Network filters in order, without the last.
    pub filters: Vec<NetworkFilter>,
    /// The last filter.
    pub terminal: Terminal,
}

/// Envoy's `FilterChainMatch`; an empty part is the least specific.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainMatch {
    /// Destination port.
    pub destination_port: Option<u16>,
    /// Destination address, host bits masked.
    pub prefix_ranges: Vec<IpNet>,
    /// Lower-cased server names: exact or `*.suffix`.
    pub server_names: Vec<String>,
    /// `tls` or `raw_buffer`.
    pub transport_protocol: Option<TransportProtocol>,
    /// ALPN or detected protocols (`h2`, `http/1.1`, `h2c`, `osm`, …).
    pub application_protocols: Vec<String>,
    /// Peer address, before any proxy protocol.
    pub direct_source_prefix_ranges: Vec<IpNet>,
    /// Kind of peer.
    pub source_type: SourceType,
    /// Peer address.
    pub source_prefix_ranges: Vec<IpNet>,
    /// Peer port.
    pub source_ports: Vec<u16>,
}

/// Detected transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransportProtocol {
    /// TLS.
    Tls,
    /// Anything else.
    RawBuffer,
}

/// Envoy's `ConnectionSourceType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceType {
    /// Any.
    #[default]
    Any,
    /// From the same address or loopback.
    SameIpOrLoopback,
    /// From elsewhere.
    External,
}

/// A network filter that is not last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkFilter {
    /// Access control.
    Rbac(Arc<NetworkRbac>),
    /// One token per connection.
    LocalRateLimit(Arc<NetworkLocalRateLimit>),
}

/// The last network filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// HTTP.
    Http(Arc<HttpConnectionManager>),
    /// Opaque bytes.
    Tcp(Arc<TcpProxy>),
    /// No filters: the connection is closed.
    Close,
}

/// Envoy's `TcpProxy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpProxy {
    /// Prefix of its statistics (`tcp.<prefix>.*`).
    pub stat_prefix: Name,
    /// Where to; chosen by weight for each connection.
    pub target: super::route::Target,
    /// Access logs.
    pub access_log: Vec<AccessLog>,
    /// Closed after this much silence; 1 h, none = never.
    pub idle_timeout: Option<Duration>,
    /// Tries to connect; 1.
    pub max_connect_attempts: u32,
    /// Longest life of a connection; none = no limit.
    pub max_duration: Option<Duration>,
}

/// What the chain choice looks at.
#[derive(Clone, Debug)]
pub struct ConnectionView<'a> {
    /// Where the connection was sent to: original destination, else local address.
    pub destination: SocketAddr,
    /// The peer.
    pub source: SocketAddr,
    /// SNI as sent, if any.
    pub server_name: Option<&'a str>,
    /// Detected transport, if a TLS inspector ran.
    pub transport: Option<TransportProtocol>,
    /// The client's ALPN list, or what the HTTP inspector found, in the client's order.
    pub application_protocols: &'a [String],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_exclude_their_end() {
        let mysql = PortPredicate::Range(3306, 3307);
        let web = PortPredicate::Range(80, 81);
        for (predicate, port, expected) in [
            (mysql.clone(), 3306, true),
            (mysql.clone(), 3307, false),
            (PortPredicate::Range(1, 65_536), 65_535, true),
            (PortPredicate::Or(vec![mysql.clone(), web.clone()]), 80, true),
            (PortPredicate::And(vec![mysql, web.clone()]), 80, false),
            (PortPredicate::Not(Box::new(web)), 80, false),
            (PortPredicate::Any, 1, true),
        ] {
            assert_eq!(predicate.matches(port), expected, "{predicate:?} {port}");
        }
    }
}
