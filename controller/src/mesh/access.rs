//! Who may call whom: TrafficTargets, as one union per destination.
//!
//! Targets only ever add up, in whatever order they come, and an absent or broken rule allows nothing. A rule for HTTP
//! says nothing about opaque TCP: a TCP port is open only to a TCPRoute.

use std::collections::{BTreeMap, BTreeSet};

use super::finding::About;
use super::http_match::{HttpRule, RouteGroups};
use super::{Finding, Workload};
use crate::api::{IdentityRef, Key, Objects, TrafficTarget, TrafficTargetRule};
use crate::identity::ServiceIdentity;

/// What one TrafficTarget allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The object.
    pub name: Key,
    /// Who may call.
    pub sources: BTreeSet<ServiceIdentity>,
    /// Which requests.
    pub http: BTreeSet<HttpRule>,
    /// Which TCP ports; empty means all, `None` that no rule is for TCP.
    pub tcp: Option<BTreeSet<u16>>,
}

/// All that may be done to one destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// By object.
    pub targets: Vec<Target>,
    /// By kind of request: who may make it.
    pub http: BTreeMap<HttpRule, BTreeSet<ServiceIdentity>>,
}

/// All access policies.
#[derive(Clone, Debug, Default)]
pub(super) struct AccessPolicies {
    /// By destination.
    pub(super) to: BTreeMap<ServiceIdentity, Access>,
    /// By source: the destinations that it may call in some way.
    pub(super) from: BTreeMap<ServiceIdentity, BTreeSet<ServiceIdentity>>,
}

/// Reads all TrafficTargets.
pub(super) fn access(
    objects: &Objects,
    groups: &RouteGroups,
    workloads: &BTreeMap<Key, Workload>,
    permissive: bool,
    findings: &mut Vec<Finding>,
) -> AccessPolicies {
    let running: BTreeSet<&ServiceIdentity> = workloads.values().map(|w| &w.identity).collect();
    let mut all = AccessPolicies::default();
    for (key, object) in &objects.traffic_targets {
        let mut about = About::new("TrafficTarget", key, findings);
        if permissive {
            about.no_effect("spec", "permissive mode allows all traffic; this counts when it is turned off");
        }
        let reader = Reader { key, objects, groups, running: &running };
        let Some((destination, target)) = reader.read(object, &mut about) else { continue };
        for source in &target.sources {
            all.from.entry(source.clone()).or_default().insert(destination.clone());
        }
        let access = all.to.entry(destination).or_default();
        for rule in &target.http {
            access.http.entry(rule.clone()).or_default().extend(target.sources.iter().cloned());
        }
        access.targets.push(target);
    }
    for key in objects.udp_routes.keys() {
        About::new("UDPRoute", key, findings).no_effect("spec", "the mesh carries no UDP");
    }
    all
}

struct Reader<'a> {
    key: &'a Key,
    objects: &'a Objects,
    groups: &'a RouteGroups,
    running: &'a BTreeSet<&'a ServiceIdentity>,
}

impl Reader<'_> {
    fn read(&self, object: &TrafficTarget, about: &mut About<'_>) -> Option<(ServiceIdentity, Target)> {
        let spec = &object.spec;
        let destination = self.identity(&spec.destination, "spec.destination", about)?;
        if destination.namespace != self.key.namespace {
            about.error(
                "spec.destination.namespace",
                format!(
                    "a TrafficTarget allows calls to its own namespace only: move it to {:?}, or name a service account of {:?}",
                    destination.namespace, self.key.namespace
                ),
            );
            return None;
        }
        let sources: Vec<_> = (0..).zip(&spec.sources).map(|(i, s)| (format!("spec.sources[{i}]"), s)).collect();
        let sources: BTreeSet<_> =
            sources.into_iter().filter_map(|(field, source)| self.identity(source, &field, about)).collect();
        if sources.is_empty() {
            about.error("spec.sources", "no source, so nobody is allowed anything");
        }
        let mut target = Target { name: self.key.clone(), sources, http: BTreeSet::new(), tcp: None };
        if spec.rules.is_empty() {
            about.error("spec.rules", "no rule, so nothing is allowed; name an HTTPRouteGroup or a TCPRoute");
        }
        for (i, rule) in spec.rules.iter().enumerate() {
            self.rule(rule, &format!("spec.rules[{i}]"), &mut target, about);
        }
        let allows = !target.sources.is_empty() && (!target.http.is_empty() || target.tcp.is_some());
        allows.then_some((destination, target))
    }

    fn rule(&self, rule: &TrafficTargetRule, field: &str, target: &mut Target, about: &mut About<'_>) {
        let name = Key::new(&self.key.namespace, &rule.name);
        match rule.kind.as_str() {
            "HTTPRouteGroup" => {
                let (rules, missing) = self.groups.chosen(&name, rule.matches.as_deref());
                for message in missing {
                    about.error(field, format!("{message}; it allows nothing"));
                }
                target.http.extend(rules);
            }
            "TCPRoute" => {
                let Some(route) = self.objects.tcp_routes.get(&name) else {
                    about.error(format!("{field}.name"), format!("there is no TCPRoute {name}; it allows nothing"));
                    return;
                };
                if rule.matches.as_ref().is_some_and(|m| !m.is_empty()) {
                    about.no_effect(
                        format!("{field}.matches"),
                        "a TCPRoute has no matches to choose from; all its ports count",
                    );
                }
                let ports = &route.spec.matches.ports;
                let all = target.tcp.as_ref().is_some_and(BTreeSet::is_empty) || ports.is_empty();
                let known = target.tcp.get_or_insert_with(BTreeSet::new);
                known.extend(ports);
                if all {
                    known.clear();
                }
            }
            "UDPRoute" => about.no_effect(field, "the mesh carries no UDP"),
            other => about.error(
                format!("{field}.kind"),
                format!("{other:?} is neither HTTPRouteGroup nor TCPRoute; it allows nothing"),
            ),
        }
    }

    fn identity(&self, reference: &IdentityRef, field: &str, about: &mut About<'_>) -> Option<ServiceIdentity> {
        if reference.kind != "ServiceAccount" {
            about.error(format!("{field}.kind"), format!("{:?} is not ServiceAccount; it is left out", reference.kind));
            return None;
        }
        let namespace = reference.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(&self.key.namespace);
        let account = Key::new(namespace, &reference.name);
        let identity = ServiceIdentity::new(namespace, &reference.name);
        if !self.objects.service_accounts.contains_key(&account) && !self.running.contains(&identity) {
            about.warning(format!("{field}.name"), format!("there is no service account {account} yet"));
        }
        Some(identity)
    }
}
