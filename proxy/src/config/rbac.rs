//! Access control rules as data, and their decision (Envoy's `config.rbac.v3`).

use std::{collections::BTreeMap, net::SocketAddr};

use ipnet::IpNet;

use super::{
    Name,
    matcher::StringMatch,
    route::{HeaderMatch, RequestView},
    route_match::Lines,
};

/// Compiled rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rbac {
    /// What a match means.
    pub action: Action,
    /// Policies by name, tried in name order.
    pub policies: BTreeMap<String, Policy>,
}

/// Envoy's `RBAC.Action`. `LOG` is refused in conversion until it has an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Requests that match a policy pass, all others are denied.
    Allow,
    /// Requests that match a policy are denied.
    Deny,
}

/// Matches when any permission and any principal match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Any of these.
    pub permissions: Vec<Permission>,
    /// Any of these.
    pub principals: Vec<Principal>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Everything.
    Any,
    /// All of them.
    And(Vec<Permission>),
    /// Any of them.
    Or(Vec<Permission>),
    /// Not this.
    Not(Box<Permission>),
    /// A request header (HTTP only; never matches on a raw connection).
    Header(HeaderMatch),
    /// The path without query (HTTP only).
    UrlPath(StringMatch),
    /// The address the connection was sent to.
    DestinationIp(IpNet),
    /// The port the connection was sent to: the original destination's.
    DestinationPort(u16),
    /// The server name asked for in TLS.
    RequestedServerName(StringMatch),
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Everybody.
    Any,
    /// All of them.
    And(Vec<Principal>),
    /// Any of them.
    Or(Vec<Principal>),
    /// Not this.
    Not(Box<Principal>),
    /// A TLS peer. With a name: any URI SAN, any DNS SAN or the RFC 2253 subject matches.
    /// Without: any TLS connection. Plaintext never matches.
    Authenticated(Option<StringMatch>),
    /// The peer's address.
    DirectRemoteIp(IpNet),
    /// The remote address (as we take no address from headers: the peer's).
    RemoteIp(IpNet),
    /// A request header (HTTP only).
    Header(HeaderMatch),
    /// The path without query (HTTP only).
    UrlPath(StringMatch),
}

/// RBAC as a network filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRbac {
    /// Prefix of its statistics (`<prefix>rbac.allowed`).
    pub stat_prefix: Name,
    /// None = everything passes.
    pub rules: Option<Rbac>,
}

/// What a decision looks at.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The request; none for a raw connection, on which no rule about requests matches.
    pub request: Option<&'a RequestView<'a>>,
    /// The peer's address.
    pub peer: SocketAddr,
    /// Where the connection was sent to: original destination, else local address.
    pub destination: SocketAddr,
    /// The server name asked for in TLS.
    pub server_name: Option<&'a str>,
    /// The TLS peer; none for plaintext.
    pub tls: Option<PeerNames<'a>>,
}

/// Names in the peer's certificate; all empty when it sent none.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerNames<'a> {
    /// URI subject alternative names.
    pub uri_sans: &'a [String],
    /// DNS subject alternative names.
    pub dns_sans: &'a [String],
    /// Subject in RFC 2253 form; none without a certificate.
    pub subject: Option<&'a str>,
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// It may pass.
    pub allowed: bool,
    /// The policy that matched, if any.
    pub policy: Option<&'a str>,
}

impl Rbac {
    /// Decides on a request or a raw connection. The first policy that matches, in name order, is named.
    ///
    /// Repeated header lines are read against the asker: a rule that allows wants each line to match, a rule that
    /// denies is content with one (Envoy is content with one both ways).
    #[must_use]
    pub fn decide(&self, view: &View<'_>) -> Verdict<'_> {
        let lines = match self.action {
            Action::Allow => Lines::All,
            Action::Deny => Lines::Any,
        };
        let matched = self.policies.iter().find(|(_, policy)| policy.matches(view, lines));
        let allowed = matched.is_some() == (self.action == Action::Allow);
        Verdict { allowed, policy: matched.map(|(name, _)| name.as_str()) }
    }
}

impl Policy {
    fn matches(&self, view: &View<'_>, lines: Lines) -> bool {
        self.permissions.iter().any(|p| p.matches(view, lines))
            && self.principals.iter().any(|p| p.matches(view, lines))
    }
}

impl Permission {
    fn matches(&self, view: &View<'_>, lines: Lines) -> bool {
        match self {
            Self::Any => true,
            Self::And(all) => all.iter().all(|p| p.matches(view, lines)),
            Self::Or(any) => any.iter().any(|p| p.matches(view, lines)),
            Self::Not(inner) => !inner.matches(view, lines.flipped()),
            Self::Header(header) => view.request.is_some_and(|r| header.matches_lines(r, lines)),
            Self::UrlPath(path) => view.request.is_some_and(|r| path.matches(r.path)),
            Self::DestinationIp(net) => net.contains(&view.destination.ip().to_canonical()),
            Self::DestinationPort(port) => view.destination.port() == *port,
            Self::RequestedServerName(name) => name.matches(view.server_name.unwrap_or_default()),
        }
    }
}

impl Principal {
    fn matches(&self, view: &View<'_>, lines: Lines) -> bool {
        match self {
            Self::Any => true,
            Self::And(all) => all.iter().all(|p| p.matches(view, lines)),
            Self::Or(any) => any.iter().any(|p| p.matches(view, lines)),
            Self::Not(inner) => !inner.matches(view, lines.flipped()),
            Self::Authenticated(None) => view.tls.is_some(),
            Self::Authenticated(Some(name)) => view.tls.is_some_and(|peer| peer.any(|n| name.matches(n))),
            Self::DirectRemoteIp(net) | Self::RemoteIp(net) => net.contains(&view.peer.ip().to_canonical()),
            Self::Header(header) => view.request.is_some_and(|r| header.matches_lines(r, lines)),
            Self::UrlPath(path) => view.request.is_some_and(|r| path.matches(r.path)),
        }
    }
}

impl PeerNames<'_> {
    fn any(&self, mut matches: impl FnMut(&str) -> bool) -> bool {
        self.uri_sans.iter().any(|n| matches(n))
            || self.dns_sans.iter().any(|n| matches(n))
            || self.subject.is_some_and(matches)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::config::{
        matcher::StringMatchKind,
        route::{HeaderKey, HeaderMatchKind},
    };

    fn rules(action: Action, policies: &[(&str, Permission, Principal)]) -> Rbac {
        let policies = policies
            .iter()
            .map(|(name, permission, principal)| {
                let policy = Policy { permissions: vec![permission.clone()], principals: vec![principal.clone()] };
                ((*name).to_owned(), policy)
            })
            .collect();
        Rbac { action, policies }
    }

    fn named(name: &str) -> Principal {
        Principal::Authenticated(Some(StringMatch::exact(name)))
    }

    fn raw<'a>(tls: Option<PeerNames<'a>>) -> View<'a> {
        View {
            request: None,
            peer: "10.0.0.1:4000".parse().unwrap(),
            destination: "10.0.0.2:8080".parse().unwrap(),
            server_name: Some("a.b"),
            tls,
        }
    }

    fn request<'a>(headers: &'a HeaderMap) -> RequestView<'a> {
        RequestView { method: &Method::GET, authority: "h", path: "/p", query: None, scheme: "http", headers }
    }

    fn denied_when(permission: Permission, view: &View<'_>) -> bool {
        !rules(Action::Deny, &[("p", permission, Principal::Any)]).decide(view).allowed
    }

    #[test]
    fn nothing_matches_means_denied_by_allow_rules_and_allowed_by_deny_rules() {
        let view = raw(None);
        assert_eq!(rules(Action::Allow, &[]).decide(&view), Verdict { allowed: false, policy: None });
        assert_eq!(rules(Action::Deny, &[]).decide(&view), Verdict { allowed: true, policy: None });
    }

    #[test]
    fn the_first_policy_in_name_order_is_named() {
        let any = |name| (name, Permission::Any, Principal::Any);
        let verdict = Verdict { allowed: false, policy: Some("a") };
        assert_eq!(rules(Action::Deny, &[any("b"), any("a")]).decide(&raw(None)), verdict);
    }

    #[test]
    fn any_san_or_the_rfc_2253_subject_is_a_name() {
        let uri = ["spiffe://d/ns/n/sa/a".to_owned()];
        let dns = ["a.n.cluster.local".to_owned()];
        let peer = PeerNames { uri_sans: &uri, dns_sans: &dns, subject: Some("CN=a.n,O=org") };
        for (name, expected) in [
            ("spiffe://d/ns/n/sa/a", true),
            ("a.n.cluster.local", true),
            ("CN=a.n,O=org", true),
            ("a.n", false),
            ("A.n.cluster.local", false),
        ] {
            let rules = rules(Action::Allow, &[("p", Permission::Any, named(name))]);
            assert_eq!(rules.decide(&raw(Some(peer))).allowed, expected, "{name}");
            assert!(!rules.decide(&raw(None)).allowed, "plaintext has no name");
        }
    }

    #[test]
    fn a_peer_without_certificate_is_tls_but_has_no_name() {
        let everything = StringMatch { kind: StringMatchKind::Prefix(String::new()), ignore_case: false };
        let by_name = rules(Action::Allow, &[("p", Permission::Any, Principal::Authenticated(Some(everything)))]);
        let any_tls = rules(Action::Allow, &[("p", Permission::Any, Principal::Authenticated(None))]);
        let view = raw(Some(PeerNames::default()));
        assert!(!by_name.decide(&view).allowed);
        assert!(any_tls.decide(&view).allowed);
        assert!(!any_tls.decide(&raw(None)).allowed);
    }

    #[test]
    fn addresses_ports_and_server_names_match_on_raw_connections() {
        let view = raw(None);
        for (permission, expected) in [
            (Permission::DestinationPort(8080), true),
            (Permission::DestinationPort(80), false),
            (Permission::DestinationIp("10.0.0.0/30".parse().unwrap()), true),
            (Permission::DestinationIp("10.0.1.0/24".parse().unwrap()), false),
            (Permission::RequestedServerName(StringMatch::exact("a.b")), true),
            (Permission::UrlPath(StringMatch::exact("/p")), false),
            (Permission::And(vec![Permission::Any, Permission::DestinationPort(80)]), false),
            (Permission::Or(vec![Permission::DestinationPort(1), Permission::DestinationPort(8080)]), true),
            (Permission::Not(Box::new(Permission::DestinationPort(80))), true),
        ] {
            assert_eq!(denied_when(permission.clone(), &view), expected, "{permission:?}");
        }
        let near = Principal::DirectRemoteIp("10.0.0.1/32".parse().unwrap());
        assert!(rules(Action::Allow, &[("p", Permission::Any, near)]).decide(&view).allowed);
    }

    #[test]
    fn an_ipv4_peer_on_an_ipv6_socket_matches_ipv4_ranges() {
        let view = View { peer: "[::ffff:10.0.0.1]:1".parse().unwrap(), ..raw(None) };
        let near = Principal::RemoteIp("10.0.0.0/8".parse().unwrap());
        assert!(rules(Action::Allow, &[("p", Permission::Any, near)]).decide(&view).allowed);
    }

    #[test]
    fn repeated_header_lines_never_widen_access() {
        let is_a = Permission::Header(HeaderMatch {
            name: HeaderKey::Name("x".parse().unwrap()),
            kind: HeaderMatchKind::Value(StringMatch::exact("a")),
            invert: false,
            missing_as_empty: false,
        });
        let not_a = Permission::Not(Box::new(is_a.clone()));
        let headers = ["a", "b"].map(|v| ("x".parse().unwrap(), v.parse().unwrap()));
        let headers: HeaderMap = headers.into_iter().collect();
        let request = request(&headers);
        let view = View { request: Some(&request), ..raw(None) };
        for permission in [is_a, not_a] {
            let policy = [("p", permission, Principal::Any)];
            assert!(!rules(Action::Allow, &policy).decide(&view).allowed, "allow {policy:?}");
            assert!(!rules(Action::Deny, &policy).decide(&view).allowed, "deny {policy:?}");
        }
    }

    #[test]
    fn request_rules_see_path_and_headers() {
        let headers = HeaderMap::new();
        let request = request(&headers);
        let view = View { request: Some(&request), ..raw(None) };
        assert!(denied_when(Permission::UrlPath(StringMatch::exact("/p")), &view));
        let policy = ("p", Permission::Any, Principal::UrlPath(StringMatch::exact("/other")));
        assert!(!rules(Action::Allow, &[policy]).decide(&view).allowed);
    }
}
