//! Splits: the traffic to one service, its root, goes to several by weight.
//!
//! A backend counts for the root's ports that it has itself. Where no backend is left with a weight, the port is not
//! split and the root's own pods get the traffic, which is said.

use std::collections::{BTreeMap, BTreeSet};

use super::finding::About;
use super::http_match::{HttpRule, RouteGroups};
use super::{Finding, Service, text};
use crate::api::{Key, Objects, TrafficSplit};

/// A split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The object.
    pub name: Key,
    /// Services and their weights, sorted; the same service may be the root.
    pub backends: BTreeMap<Key, u32>,
    /// Only these requests are split; `None` means all traffic.
    pub only: Option<BTreeSet<HttpRule>>,
}

impl Split {
    /// The backends that have `port`, with the targets there and their weights; empty if the port is not split.
    #[must_use]
    pub fn shares<'a>(&'a self, services: &'a BTreeMap<Key, Service>, port: u16) -> Vec<(&'a Service, u16, u32)> {
        let shares: Vec<_> = self
            .backends
            .iter()
            .filter_map(|(key, weight)| {
                let service = services.get(key)?;
                Some((service, service.port(port)?.target, *weight))
            })
            .collect();
        if shares.iter().any(|(_, _, weight)| *weight > 0) { shares } else { Vec::new() }
    }
}

/// Reads all splits, by root.
pub(super) fn splits(
    objects: &Objects,
    services: &BTreeMap<Key, Service>,
    groups: &RouteGroups,
    findings: &mut Vec<Finding>,
) -> BTreeMap<Key, Split> {
    let mut all: BTreeMap<Key, Split> = BTreeMap::new();
    for (key, object) in &objects.traffic_splits {
        let mut about = About::new("TrafficSplit", key, findings);
        let root = match text::service_in(&key.namespace, &object.spec.service) {
            Ok(root) => root,
            Err(e) => {
                about.error("spec.service", format!("{e}; nothing is split"));
                continue;
            }
        };
        if let Some(first) = all.get(&root) {
            about.error("spec.service", format!("{} already splits {root}; this one does not count", first.name));
            continue;
        }
        let Some(split) = read(key, object, groups, &mut about) else { continue };
        check(&root, &split, services, &mut about);
        all.insert(root, split);
    }
    all
}

fn read(key: &Key, object: &TrafficSplit, groups: &RouteGroups, about: &mut About<'_>) -> Option<Split> {
    let mut backends = BTreeMap::new();
    for (i, backend) in object.spec.backends.iter().enumerate() {
        let field = format!("spec.backends[{i}].service");
        match text::service_in(&key.namespace, &backend.service) {
            Ok(service) if backends.contains_key(&service) => {
                about.error(field, format!("{service} is there twice; the first counts"))
            }
            Ok(service) => {
                backends.insert(service, backend.weight);
            }
            Err(e) => about.error(field, format!("{e}; it is left out")),
        }
    }
    let sum = backends.values().try_fold(0u32, |sum, weight| sum.checked_add(*weight));
    if sum.is_none_or(|sum| sum == 0) {
        about.error("spec.backends", "the weights must add up to 1 at least and 4294967295 at most; nothing is split");
        return None;
    }
    if object.spec.matches.is_empty() {
        return Some(Split { name: key.clone(), backends, only: None });
    }
    let mut only = BTreeSet::new();
    for (i, reference) in object.spec.matches.iter().enumerate() {
        let field = format!("spec.matches[{i}]");
        if reference.kind != "HTTPRouteGroup" {
            about.error(format!("{field}.kind"), format!("{:?} is not HTTPRouteGroup; it is left out", reference.kind));
            continue;
        }
        if let Some(problem) = text::wrong_group(reference) {
            about.error(format!("{field}.apiGroup"), format!("{problem}; it is left out"));
            continue;
        }
        let (rules, missing) = groups.chosen(&Key::new(&key.namespace, &reference.name), None);
        for message in missing {
            about.error(&field, message);
        }
        only.extend(rules);
    }
    if only.is_empty() {
        about.error("spec.matches", "they match no request, so nothing is split");
        return None;
    }
    Some(Split { name: key.clone(), backends, only: Some(only) })
}

/// Says which parts have no effect, as things are now.
fn check(root: &Key, split: &Split, services: &BTreeMap<Key, Service>, about: &mut About<'_>) {
    let Some(service) = services.get(root) else {
        about.warning("spec.service", format!("there is no service {root} (yet)"));
        return;
    };
    for backend in split.backends.keys() {
        let Some(leaf) = services.get(backend) else {
            about.error("spec.backends", format!("there is no service {backend}; the others get its share"));
            continue;
        };
        let missing: Vec<u16> =
            service.ports.iter().map(|p| p.port).filter(|port| leaf.port(*port).is_none()).collect();
        if !missing.is_empty() {
            about.error(
                "spec.backends",
                format!("service {backend} has not the root's ports {missing:?}; there the others get its share"),
            );
        }
    }
    for port in &service.ports {
        if split.shares(services, port.port).is_empty() {
            about.error("spec.backends", format!("no backend with a weight has port {}; it is not split", port.port));
        }
        if split.only.is_some() && !port.protocol.is_http() {
            about.no_effect("spec.matches", format!("port {} is not HTTP; it is not split", port.port));
        }
    }
}
