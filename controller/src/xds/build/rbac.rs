//! Access rules, on connections and on requests.
//!
//! A proxy takes the first route that matches and asks that route's rules alone. So that overlapping routes still add up,
//! a route also has the callers of later ones, each under the condition that the request matches there too.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, permission, principal, principal::Authenticated,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::RbacPerRoute;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkFilter;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, StringMatcher, path_matcher, string_matcher};
use envoy_types::pb::google::protobuf::Any;

use super::message::{any_as, exact, header, regex};
use super::sorted::{self, HttpRbac, NetworkRbac, Rules};
use crate::identity::ServiceIdentity;
use crate::mesh::{Access, HttpRule, Target};

/// Name of the HTTP filter to which rules of routes belong.
pub(super) const HTTP_FILTER: &str = "envoy.filters.http.rbac";

/// The connections that may come to a port: by its own protocol, HTTP or opaque.
pub(super) fn connections(access: &Access, http: bool, trust_domain: &str) -> Any {
    let policies = access.targets.iter().filter_map(|target| {
        let permissions = connection_permissions(target, http)?;
        let policy =
            Policy { permissions, principals: principals(&target.sources, trust_domain), ..Default::default() };
        Some((target.name.to_string(), policy))
    });
    network(policies.collect())
}

/// A filter that lets no connection through.
pub(super) fn no_connection() -> Any {
    network(BTreeMap::new())
}

fn network(policies: BTreeMap<String, Policy>) -> Any {
    let filter = NetworkRbac { rules: Some(Rules { policies }), stat_prefix: "network-".to_owned() };
    any_as::<NetworkFilter>(&filter)
}

/// Requests are judged by the routes, so a target with HTTP rules passes here. Opaque ports need a TCPRoute.
fn connection_permissions(target: &Target, http: bool) -> Option<Vec<Permission>> {
    if http && !target.http.is_empty() {
        return Some(vec![any_permission()]);
    }
    let ports = target.tcp.as_ref()?;
    if ports.is_empty() {
        return Some(vec![any_permission()]);
    }
    let port = |port: &u16| Permission { rule: Some(permission::Rule::DestinationPort((*port).into())) };
    Some(ports.iter().map(port).collect())
}

/// The rules of a route that anybody of the mesh may use.
pub(super) fn anybody() -> Any {
    route(vec![any_policy(vec![Principal { identifier: Some(principal::Identifier::Any(true)) }])])
}

/// The rules of a route that nobody may use.
pub(super) fn nobody() -> Any {
    route(Vec::new())
}

/// The rules of a route for `rule` that is none of the access rules: their callers, where the request matches them.
pub(super) fn callers(rule: &HttpRule, access: &Access, trust_domain: &str) -> Any {
    requests(rule, &BTreeSet::new(), access.http.iter(), trust_domain)
}

/// The rules of an ingress route that clients with these names may use.
pub(super) fn named(names: &BTreeSet<String>) -> Any {
    route(vec![any_policy(names.iter().map(|name| authenticated(name)).collect())])
}

/// The rules of the route for `rule`, which comes before the routes for `later`.
pub(super) fn requests<'a>(
    rule: &HttpRule,
    sources: &BTreeSet<ServiceIdentity>,
    later: impl Iterator<Item = (&'a HttpRule, &'a BTreeSet<ServiceIdentity>)>,
    trust_domain: &str,
) -> Any {
    let mut policies = Vec::new();
    if !sources.is_empty() {
        policies.push(any_policy(principals(sources, trust_domain)));
    }
    // Without the look at overlaps, many rules would make a list of their number squared.
    for (rule, more) in later.filter(|(other, _)| rule.may_overlap(other)) {
        let new: BTreeSet<ServiceIdentity> = more.difference(sources).cloned().collect();
        if new.is_empty() {
            continue;
        }
        let permissions = vec![request_permission(rule)];
        policies.push(Policy { permissions, principals: principals(&new, trust_domain), ..Default::default() });
    }
    route(policies)
}

fn request_permission(rule: &HttpRule) -> Permission {
    let path = StringMatcher {
        match_pattern: Some(string_matcher::MatchPattern::SafeRegex(regex(&rule.path))),
        ..Default::default()
    };
    let path = permission::Rule::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(path)) });
    let method = permission::Rule::Header(header(":method", &rule.method));
    let headers = rule.headers.iter().map(|(name, value)| permission::Rule::Header(header(name, value)));
    let rules = [path, method].into_iter().chain(headers).map(|rule| Permission { rule: Some(rule) }).collect();
    Permission { rule: Some(permission::Rule::AndRules(permission::Set { rules })) }
}

fn route(policies: Vec<Policy>) -> Any {
    let named = policies.into_iter().enumerate().map(|(i, policy)| match i {
        0 => (FIRST_POLICY.to_owned(), policy),
        i => (format!("{FIRST_POLICY}-or-{i}"), policy),
    });
    let rules = Rules { policies: named.collect() };
    any_as::<RbacPerRoute>(&sorted::RbacPerRoute { rbac: Some(HttpRbac { rules: Some(rules) }) })
}

fn any_policy(principals: Vec<Principal>) -> Policy {
    Policy { permissions: vec![any_permission()], principals, ..Default::default() }
}

fn any_permission() -> Permission {
    Permission { rule: Some(permission::Rule::Any(true)) }
}

fn principals(identities: &BTreeSet<ServiceIdentity>, trust_domain: &str) -> Vec<Principal> {
    identities.iter().map(|id| authenticated(&id.principal(trust_domain))).collect()
}

fn authenticated(name: &str) -> Principal {
    let name = Authenticated { principal_name: Some(exact(name)) };
    Principal { identifier: Some(principal::Identifier::Authenticated(name)) }
}

const FIRST_POLICY: &str = "rbac-for-route";
