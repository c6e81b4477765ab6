//! The choice of a filter chain, compiled once per listener.
//!
//! Envoy's rule: port, address, server name, transport, application protocols, direct source, kind of source, source,
//! source port, in this order. Each step keeps those of the remaining chains whose condition is the most specific one that
//! matches, and none goes back: a connection that fails a later step has no chain, though a less specific one would take it.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use smallvec::SmallVec;

use super::listener::{ChainMatch, ConnectionView, FilterChain, SourceType, TransportProtocol};

/// Positions of chains that are still in the running.
type Candidates = SmallVec<[usize; 8]>;

/// A listener's chains, ready to be chosen from. Knows them by position; the default chain is the caller's business.
#[derive(Clone, Debug, Default)]
pub struct ChainIndex {
    matchers: Vec<ChainMatch>,
    /// Port and address narrow most: many chains differ in nothing else.
    by_port: HashMap<u16, ByAddress>,
    any_port: ByAddress,
}

/// Chains by destination prefix, the longest first.
#[derive(Clone, Debug, Default)]
struct ByAddress {
    v4: Vec<(u8, HashMap<IpNet, Vec<usize>>)>,
    v6: Vec<(u8, HashMap<IpNet, Vec<usize>>)>,
}

impl ChainIndex {
    /// Compiles the choice among `chains`, which it will name by position.
    #[must_use]
    pub fn new(chains: &[Arc<FilterChain>]) -> Self {
        let mut index = Self::default();
        for (at, chain) in chains.iter().enumerate() {
            let matcher = chain.matcher.clone();
            let group = match matcher.destination_port {
                Some(port) => index.by_port.entry(port).or_default(),
                None => &mut index.any_port,
            };
            for prefix in prefixes(&matcher.prefix_ranges) {
                group.insert(prefix, at);
            }
            index.matchers.push(matcher);
        }
        for group in index.by_port.values_mut().chain([&mut index.any_port]) {
            group.v4.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
            group.v6.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        }
        index
    }

    /// The position of the chain for a connection; none when no chain takes it.
    #[must_use]
    pub fn find(&self, view: &ConnectionView<'_>) -> Option<usize> {
        let destination = canonical(view.destination);
        let source = canonical(view.source);
        let group = self.by_port.get(&destination.port()).unwrap_or(&self.any_port);
        let mut left: Candidates = group.find(destination.ip())?.iter().copied().collect();
        self.by_server_name(&mut left, view.server_name);
        self.by_transport(&mut left, view.transport.unwrap_or(TransportProtocol::RawBuffer));
        self.by_application(&mut left, view.application_protocols);
        self.by_prefix(&mut left, source.ip(), |m| &m.direct_source_prefix_ranges);
        let local = source.ip().is_loopback() || source.ip() == destination.ip();
        self.by_source_type(&mut left, local);
        self.by_prefix(&mut left, source.ip(), |m| &m.source_prefix_ranges);
        self.narrow(&mut left, |m| m.source_ports.contains(&source.port()), |m| m.source_ports.is_empty());
        left.first().copied()
    }

    /// Keeps those with the condition met, else those without a condition.
    fn narrow(
        &self,
        left: &mut Candidates,
        met: impl Fn(&ChainMatch) -> bool,
        unconditional: impl Fn(&ChainMatch) -> bool,
    ) {
        let any_met = left.iter().any(|at| met(&self.matchers[*at]));
        left.retain(|at| if any_met { met(&self.matchers[*at]) } else { unconditional(&self.matchers[*at]) });
    }

    fn by_server_name(&self, left: &mut Candidates, name: Option<&str>) {
        let name = name.map(str::to_ascii_lowercase).unwrap_or_default();
        let best = left.iter().filter_map(|at| name_rank(&self.matchers[*at].server_names, &name)).max();
        left.retain(|at| {
            let names = &self.matchers[*at].server_names;
            // Equal ranks mean the same name or suffix: both are the tail of one server name.
            if best.is_some() { name_rank(names, &name) == best } else { names.is_empty() }
        });
    }

    fn by_transport(&self, left: &mut Candidates, transport: TransportProtocol) {
        self.narrow(left, |m| m.transport_protocol == Some(transport), |m| m.transport_protocol.is_none());
    }

    /// The client's order decides, not the chains'.
    fn by_application(&self, left: &mut Candidates, offered: &[String]) {
        let wanted = |m: &ChainMatch, protocol: &String| m.application_protocols.contains(protocol);
        let first = offered.iter().find(|protocol| left.iter().any(|at| wanted(&self.matchers[*at], protocol)));
        self.narrow(left, |m| first.is_some_and(|p| wanted(m, p)), |m| m.application_protocols.is_empty());
    }

    fn by_prefix(&self, left: &mut Candidates, ip: IpAddr, ranges: impl Fn(&ChainMatch) -> &Vec<IpNet>) {
        let rank = |at: &usize| prefix_rank(ranges(&self.matchers[*at]), ip);
        let best = left.iter().filter_map(rank).max();
        left.retain(|at| rank(&*at).is_some() && rank(&*at) == best);
    }

    fn by_source_type(&self, left: &mut Candidates, local: bool) {
        let met = if local { SourceType::SameIpOrLoopback } else { SourceType::External };
        self.narrow(left, |m| m.source_type == met, |m| m.source_type == SourceType::Any);
    }
}

impl ByAddress {
    fn insert(&mut self, prefix: IpNet, at: usize) {
        let family = if prefix.addr().is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let length = prefix.prefix_len();
        let slot = match family.iter().position(|(l, _)| *l == length) {
            Some(slot) => slot,
            None => {
                family.push((length, HashMap::new()));
                family.len() - 1
            }
        };
        family[slot].1.entry(prefix).or_default().push(at);
    }

    fn find(&self, ip: IpAddr) -> Option<&Vec<usize>> {
        let family = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        family.iter().find_map(|(length, by_prefix)| by_prefix.get(&IpNet::new(ip, *length).ok()?.trunc()))
    }
}

/// The first pair of chains that one connection could match alike, which Envoy refuses; none when all differ.
#[must_use]
pub fn duplicate(chains: &[Arc<FilterChain>]) -> Option<(usize, usize)> {
    let mut groups: HashMap<(Option<u16>, IpNet), Vec<usize>> = HashMap::new();
    for (at, chain) in chains.iter().enumerate() {
        for prefix in prefixes(&chain.matcher.prefix_ranges) {
            let group = groups.entry((chain.matcher.destination_port, prefix)).or_default();
            if let Some(other) = group.iter().find(|o| **o != at && alike(&chains[**o].matcher, &chain.matcher)) {
                return Some((*other, at));
            }
            group.push(at);
        }
    }
    None
}

/// True when both hold one and the same combination of conditions (port and address apart).
fn alike(a: &ChainMatch, b: &ChainMatch) -> bool {
    fn share<T: PartialEq>(a: &[T], b: &[T]) -> bool {
        (a.is_empty() && b.is_empty()) || a.iter().any(|x| b.contains(x))
    }
    share(&a.server_names, &b.server_names)
        && a.transport_protocol == b.transport_protocol
        && share(&a.application_protocols, &b.application_protocols)
        && share(&prefixes(&a.direct_source_prefix_ranges), &prefixes(&b.direct_source_prefix_ranges))
        && a.source_type == b.source_type
        && share(&prefixes(&a.source_prefix_ranges), &prefixes(&b.source_prefix_ranges))
        && share(&a.source_ports, &b.source_ports)
}

/// The ranges with host bits masked; no range at all is the whole of both families.
fn prefixes(ranges: &[IpNet]) -> Vec<IpNet> {
    if ranges.is_empty() {
        return vec![IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())];
    }
    ranges.iter().map(IpNet::trunc).collect()
}

/// Length of the longest range that holds `ip`; no range at all holds everything with length 0.
fn prefix_rank(ranges: &[IpNet], ip: IpAddr) -> Option<u8> {
    if ranges.is_empty() {
        return Some(0);
    }
    ranges.iter().filter(|range| range.contains(&ip)).map(IpNet::prefix_len).max()
}

/// How specific the best of `names` that takes `name` is: exact above all, then by the suffix's length.
fn name_rank(names: &[String], name: &str) -> Option<usize> {
    let rank = |pattern: &String| match pattern.strip_prefix('*') {
        Some(suffix) => (name.len() > suffix.len() && name.ends_with(suffix)).then_some(suffix.len()),
        None => (!name.is_empty() && pattern == name).then_some(usize::MAX),
    };
    names.iter().filter_map(rank).max()
}

/// IPv4 peers of a dual-stack socket are IPv4 for every rule.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::listener::Terminal;

    fn chain(matcher: ChainMatch) -> Arc<FilterChain> {
        Arc::new(FilterChain {
            name: "".into(),
            matcher,
            tls: None,
            handshake_timeout: Duration::ZERO,
            filters: Vec::new(),
            terminal: Terminal::Close,
        })
    }

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|n| n.parse().unwrap()).collect()
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[derive(Clone)]
    struct Conn {
        to: &'static str,
        from: &'static str,
        sni: Option<&'static str>,
        transport: Option<TransportProtocol>,
        alpn: Vec<&'static str>,
    }

    const PLAIN: Conn =
        Conn { to: "10.0.0.1:80", from: "10.0.9.9:40000", sni: None, transport: None, alpn: Vec::new() };

    fn find(chains: &[ChainMatch], conn: &Conn) -> Option<usize> {
        let chains: Vec<_> = chains.iter().cloned().map(chain).collect();
        ChainIndex::new(&chains).find(&ConnectionView {
            destination: conn.to.parse().unwrap(),
            source: conn.from.parse().unwrap(),
            server_name: conn.sni,
            transport: conn.transport,
            application_protocols: &words(&conn.alpn),
        })
    }

    fn any() -> ChainMatch {
        ChainMatch::default()
    }
    fn port(port: u16) -> ChainMatch {
        ChainMatch { destination_port: Some(port), ..any() }
    }
    fn ip(ranges: &[&str]) -> ChainMatch {
        ChainMatch { prefix_ranges: nets(ranges), ..any() }
    }
    fn sni(names: &[&str]) -> ChainMatch {
        ChainMatch { server_names: words(names), ..any() }
    }
    fn alpn(protocols: &[&str]) -> ChainMatch {
        ChainMatch { application_protocols: words(protocols), ..any() }
    }
    fn transport(transport: TransportProtocol) -> ChainMatch {
        ChainMatch { transport_protocol: Some(transport), ..any() }
    }

    #[test]
    fn the_most_specific_address_wins() {
        let chains = [any(), ip(&["10.0.0.0/8"]), ip(&["10.0.0.1/32", "10.0.0.7/32"]), ip(&["fd00::/8"])];
        for (to, expected) in [
            ("10.0.0.1:1", Some(2)),
            ("10.0.0.2:1", Some(1)),
            ("11.0.0.1:1", Some(0)),
            ("[fd00::1]:1", Some(3)),
            ("[fe80::1]:1", Some(0)),
            ("[::ffff:10.0.0.7]:1", Some(2)),
        ] {
            assert_eq!(find(&chains, &Conn { to, ..PLAIN }), expected, "{to}");
        }
    }

    #[test]
    fn host_bits_of_a_range_are_masked() {
        assert_eq!(find(&[ip(&["10.0.0.77/24"])], &PLAIN), Some(0));
    }

    #[test]
    fn a_port_that_fails_later_does_not_fall_back() {
        let chains = [ChainMatch { destination_port: Some(80), ..sni(&["x"]) }, any()];
        assert_eq!(find(&chains, &Conn { sni: Some("x"), ..PLAIN }), Some(0));
        assert_eq!(find(&chains, &Conn { sni: Some("y"), ..PLAIN }), None);
        assert_eq!(find(&chains, &Conn { to: "10.0.0.1:81", sni: Some("y"), ..PLAIN }), Some(1));
    }

    #[test]
    fn an_address_that_fails_later_does_not_fall_back() {
        let chains = [ChainMatch { prefix_ranges: nets(&["10.0.0.1/32"]), ..alpn(&["h2"]) }, ip(&["10.0.0.0/8"])];
        assert_eq!(find(&chains, &PLAIN), None);
        assert_eq!(find(&chains, &Conn { to: "10.0.0.2:80", ..PLAIN }), Some(1));
    }

    #[test]
    fn an_exact_server_name_that_fails_later_does_not_fall_back() {
        let exact = ChainMatch { application_protocols: words(&["h2"]), ..sni(&["a.example.com"]) };
        let chains = [exact, sni(&["*.example.com"]), any()];
        assert_eq!(find(&chains, &Conn { sni: Some("a.example.com"), ..PLAIN }), None);
        assert_eq!(find(&chains, &Conn { sni: Some("b.example.com"), ..PLAIN }), Some(1));
    }

    #[test]
    fn server_names_go_exact_then_longest_suffix_then_none_in_any_case() {
        let chains = [any(), sni(&["*.com"]), sni(&["*.example.com"]), sni(&["www.example.com", "*.org"])];
        for (name, expected) in [
            (Some("www.example.com"), 3),
            (Some("WWW.Example.COM"), 3),
            (Some("a.example.com"), 2),
            (Some("a.b.example.com"), 2),
            (Some("example.com"), 1),
            (Some("x.org"), 3),
            (Some("org"), 0),
            (None, 0),
        ] {
            assert_eq!(find(&chains, &Conn { sni: name, ..PLAIN }), Some(expected), "{name:?}");
        }
    }

    #[test]
    fn transport_beats_application_protocol() {
        let chains = [alpn(&["h2"]), transport(TransportProtocol::Tls)];
        let client = Conn { transport: Some(TransportProtocol::Tls), alpn: vec!["h2"], ..PLAIN };
        assert_eq!(find(&chains, &client), Some(1));
        assert_eq!(find(&chains, &Conn { alpn: vec!["h2"], ..PLAIN }), Some(0));
    }

    #[test]
    fn without_an_inspector_the_transport_is_raw() {
        let chains = [transport(TransportProtocol::RawBuffer), any()];
        assert_eq!(find(&chains, &PLAIN), Some(0));
        assert_eq!(find(&chains, &Conn { transport: Some(TransportProtocol::Tls), ..PLAIN }), Some(1));
    }

    #[test]
    fn the_clients_order_of_protocols_decides() {
        let chains = [alpn(&["h2"]), alpn(&["osm", "http/1.1"]), any()];
        for (offered, expected) in [
            (vec!["http/1.1", "h2"], 1),
            (vec!["h2", "http/1.1"], 0),
            (vec!["spdy", "osm"], 1),
            (vec!["spdy"], 2),
            (vec![], 2),
        ] {
            assert_eq!(find(&chains, &Conn { alpn: offered.clone(), ..PLAIN }), Some(expected), "{offered:?}");
        }
    }

    #[test]
    fn a_local_source_is_tried_before_the_sources_address() {
        let local = ChainMatch { source_type: SourceType::SameIpOrLoopback, ..any() };
        let external = ChainMatch { source_type: SourceType::External, ..any() };
        let range = ChainMatch { source_prefix_ranges: nets(&["127.0.0.1/32", "10.0.9.0/24"]), ..any() };
        let chains = [range.clone(), local, any()];
        assert_eq!(find(&chains, &Conn { from: "127.0.0.1:5", ..PLAIN }), Some(1));
        assert_eq!(find(&chains, &Conn { from: "10.0.0.1:5", ..PLAIN }), Some(1), "same address as the destination");
        assert_eq!(find(&chains, &PLAIN), Some(0));
        assert_eq!(find(&[range, external], &PLAIN), Some(1));
    }

    #[test]
    fn direct_source_comes_before_kind_and_source_and_its_longest_range_wins() {
        let direct = |ranges| ChainMatch { direct_source_prefix_ranges: nets(ranges), ..any() };
        let external = ChainMatch { source_type: SourceType::External, ..any() };
        let chains = [direct(&["10.0.0.0/8"]), direct(&["10.0.9.0/24"]), external];
        assert_eq!(find(&chains, &PLAIN), Some(1));
        assert_eq!(find(&chains, &Conn { from: "10.1.0.1:5", ..PLAIN }), Some(0));
        assert_eq!(find(&chains, &Conn { from: "11.1.0.1:5", ..PLAIN }), Some(2));
    }

    #[test]
    fn source_range_then_source_port() {
        let source = |ranges, ports: &[u16]| ChainMatch {
            source_prefix_ranges: nets(ranges),
            source_ports: ports.to_vec(),
            ..any()
        };
        let chains =
            [source(&["10.0.9.9/32"], &[40_000]), source(&["10.0.9.9/32"], &[]), source(&["10.0.0.0/8"], &[1])];
        assert_eq!(find(&chains, &PLAIN), Some(0));
        assert_eq!(find(&chains, &Conn { from: "10.0.9.9:1", ..PLAIN }), Some(1), "the range was chosen first");
        assert_eq!(find(&chains, &Conn { from: "10.0.8.8:1", ..PLAIN }), Some(2));
        assert_eq!(find(&chains, &Conn { from: "10.0.8.8:2", ..PLAIN }), None);
        assert_eq!(find(&chains, &Conn { from: "11.0.8.8:1", ..PLAIN }), None);
    }

    #[test]
    fn no_chains_match_nothing() {
        assert_eq!(find(&[], &PLAIN), None);
    }

    #[test]
    fn chains_that_share_a_whole_combination_are_duplicates() {
        let check = |chains: &[ChainMatch]| duplicate(&chains.iter().cloned().map(chain).collect::<Vec<_>>());
        assert_eq!(check(&[port(80), port(81), any()]), None);
        assert_eq!(check(&[any(), port(80), any()]), Some((0, 2)));
        assert_eq!(check(&[sni(&["a", "b"]), sni(&["b", "c"])]), Some((0, 1)));
        assert_eq!(check(&[sni(&["a"]), sni(&["*.a"]), any()]), None);
        assert_eq!(check(&[ip(&["10.0.0.5/24"]), ip(&["10.0.0.9/24", "10.1.0.0/16"])]), Some((0, 1)));
        assert_eq!(check(&[ip(&["10.0.0.0/24"]), ip(&["10.0.0.0/25"])]), None);
        assert_eq!(check(&[ip(&["0.0.0.0/0"]), any()]), Some((0, 1)), "no range is the whole range");
        let both = ChainMatch { source_ports: vec![1], ..alpn(&["h2"]) };
        assert_eq!(check(&[both.clone(), alpn(&["h2"])]), None);
        assert_eq!(check(&[both.clone(), both]), Some((0, 1)));
        assert_eq!(check(&[ip(&["10.0.0.0/24", "10.0.0.0/24"])]), None, "a chain is no duplicate of itself");
    }

    #[test]
    fn thousands_of_chains_by_address_are_found_by_hash() {
        let chains: Vec<_> = (0..5_000_u32)
            .map(|i| {
                let range = format!("10.{}.{}.0/24", i / 250, i % 250);
                ChainMatch { destination_port: Some(80), ..ip(&[range.as_str()]) }
            })
            .collect();
        assert_eq!(find(&chains, &Conn { to: "10.19.249.3:80", ..PLAIN }), Some(4_999));
        assert_eq!(find(&chains, &Conn { to: "10.20.0.3:80", ..PLAIN }), None);
    }
}
