//! Access control rules as data, and their decision (Envoy's `config.rbac.v3`).

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{Name, matcher::StringMatch, route::HeaderMatch};

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
