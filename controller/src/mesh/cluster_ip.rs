//! Addresses for services where no API server gives them out.
//!
//! Pure and stable: an address follows from the service's name, so it stays when other services come and go. Only names
//! that hash to the same address move each other, the later one by name to the next free address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};

use crate::api::core::Service;
use crate::api::{Key, Objects};

/// Gives an address of `cidr` to each of the `services`, avoiding those in `taken`.
/// Services for which no address is left are missing from the result.
#[must_use]
pub fn assign<'a>(
    services: impl IntoIterator<Item = &'a Key>,
    taken: impl IntoIterator<Item = Ipv4Addr>,
    cidr: Ipv4Net,
) -> BTreeMap<Key, Ipv4Addr> {
    let first = u32::from(cidr.network());
    // Neither the network's own nor the broadcast address.
    let room = (u64::from(u32::from(cidr.broadcast()) - first) + 1).saturating_sub(2);
    let mut taken: BTreeSet<Ipv4Addr> = taken.into_iter().collect();
    let names: BTreeSet<&Key> = services.into_iter().collect();
    let mut given = BTreeMap::new();
    for key in names {
        let start = hash(key);
        let candidates = (0..room).map(|i| 1 + (start % room + i) % room);
        let free =
            candidates.map(|offset| Ipv4Addr::from(first.wrapping_add(offset as u32))).find(|ip| taken.insert(*ip));
        if let Some(ip) = free {
            given.insert(key.clone(), ip);
        }
    }
    given
}

/// Gives addresses to the services that have none and are not headless, and writes them into the objects.
/// Returns the services for which no address was left.
pub fn assign_missing(objects: &mut Objects, cidr: Ipv4Net) -> Vec<Key> {
    let needs = |service: &Service| {
        let spec = service.spec.as_ref();
        let ip = spec.and_then(|s| s.cluster_ip.as_deref()).unwrap_or_default();
        ip.is_empty() && spec.and_then(|s| s.type_.as_deref()) != Some("ExternalName")
    };
    let missing: Vec<Key> = objects.services.iter().filter(|(_, s)| needs(s)).map(|(key, _)| key.clone()).collect();
    let ips = objects.services.values().filter_map(|s| s.spec.as_ref());
    let taken: Vec<Ipv4Addr> = ips
        .flat_map(|s| s.cluster_ip.iter().chain(s.cluster_ips.iter().flatten()))
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let given = assign(&missing, taken, cidr);
    for (key, ip) in &given {
        if let Some(spec) = objects.services.get_mut(key).and_then(|s| Arc::make_mut(s).spec.as_mut()) {
            spec.cluster_ip = Some(ip.to_string());
            spec.cluster_ips = Some(vec![ip.to_string()]);
        }
    }
    missing.into_iter().filter(|key| !given.contains_key(key)).collect()
}

fn hash(key: &Key) -> u64 {
    let digest = Sha256::digest(format!("{}/{}", key.namespace, key.name));
    digest.iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(n: usize) -> Vec<Key> {
        (0..n).map(|i| Key::new("ns", format!("service-{i}"))).collect()
    }

    #[test]
    fn an_address_stays_when_other_services_come_and_go() {
        let cidr = "10.96.0.0/16".parse().unwrap();
        let all = assign(&keys(40), [], cidr);
        let few = assign(&keys(5), [], cidr);
        for (key, ip) in &few {
            assert_eq!(all[key], *ip);
        }
        assert!(all.values().all(|ip| cidr.contains(ip)));
    }

    #[test]
    fn addresses_are_never_given_twice_and_a_full_range_leaves_services_without() {
        let cidr = "10.0.0.0/29".parse().unwrap();
        let given = assign(&keys(10), [Ipv4Addr::new(10, 0, 0, 3)], cidr);
        let ips: BTreeSet<_> = given.values().collect();
        assert_eq!((given.len(), ips.len()), (5, 5));
        assert!(!ips.contains(&Ipv4Addr::new(10, 0, 0, 3)));
    }

    #[test]
    fn headless_services_and_those_with_an_address_are_left_alone() {
        let mut objects = Objects::default();
        for (name, ip) in [("a", None), ("b", Some("None")), ("c", Some("10.96.7.7")), ("d", Some(""))] {
            let spec = serde_json::json!({"spec": {"clusterIP": ip}});
            objects.services.insert(Key::new("ns", name), serde_json::from_value(spec).unwrap());
        }
        assert_eq!(assign_missing(&mut objects, "10.96.0.0/16".parse().unwrap()), []);
        let ip = |name| objects.services[&Key::new("ns", name)].spec.as_ref().unwrap().cluster_ip.clone().unwrap();
        assert_eq!((ip("b").as_str(), ip("c").as_str()), ("None", "10.96.7.7"));
        assert!(ip("a").starts_with("10.96.") && ip("d").starts_with("10.96.") && ip("a") != ip("d"));
    }
}
