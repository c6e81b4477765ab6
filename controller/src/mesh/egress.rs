//! What may leave the mesh: Egress policies, as one union per source.
//!
//! Ports are kept by address range and host, so that the chains made of them never overlap: a proxy takes the
//! narrowest range that fits and looks at nothing else, so a narrow range also has what every wider one allows.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::finding::About;
use super::http_match::{HttpRule, RouteGroups};
use super::limits::{self, ConnectionLimits};
use super::{Finding, text};
use crate::api::{Egress as EgressObject, Key, Objects};
use crate::identity::ServiceIdentity;

/// What one service account may reach outside the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    /// By port and host: which requests.
    pub http: BTreeMap<u16, BTreeMap<String, BTreeSet<HttpRule>>>,
    /// By port: connections of other kinds.
    pub tcp: BTreeMap<u16, TcpEgress>,
    /// Limits by cluster name, `<host>:<port>` or `<port>`.
    pub limits: BTreeMap<String, ConnectionLimits>,
}

/// Connections that may leave on one port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpEgress {
    /// The protocol as the policy has it: https, tcp or tcp-server-first.
    pub protocol: String,
    /// By address range, `None` for all addresses: the TLS server names, empty for any bytes.
    pub ranges: BTreeMap<Option<IpNet>, BTreeSet<String>>,
}

/// What is read of the egress policies.
#[derive(Debug, Default)]
pub(super) struct Egresses {
    pub(super) from: BTreeMap<ServiceIdentity, Egress>,
    /// Settings that belong to egress, not to a service.
    pub(super) settings: BTreeSet<Key>,
}

/// Reads all Egress policies.
pub(super) fn egresses(objects: &Objects, groups: &RouteGroups, global: bool, findings: &mut Vec<Finding>) -> Egresses {
    let mut all = Egresses::default();
    for (key, object) in &objects.egresses {
        let mut about = About::new("Egress", key, findings);
        let reader = Reader { key, objects, groups };
        let matches = reader.matches(object, &mut about, &mut all.settings);
        if global {
            about.no_effect(
                "spec",
                "traffic.enableEgress in MeshConfig lets everything out; turn it off for this to count",
            );
            continue;
        }
        for source in reader.sources(object, &mut about) {
            reader.add(object, &matches, all.from.entry(source).or_default(), &mut about);
        }
    }
    for egress in all.from.values_mut() {
        for tcp in egress.tcp.values_mut() {
            widen(&mut tcp.ranges);
        }
    }
    // The same words come once per source.
    findings.sort();
    findings.dedup();
    all
}

/// What the policy's references add.
struct Matches {
    rules: BTreeSet<HttpRule>,
    /// Only some requests are allowed.
    narrowed: bool,
    limits: Option<ConnectionLimits>,
}

struct Reader<'a> {
    key: &'a Key,
    objects: &'a Objects,
    groups: &'a RouteGroups,
}

impl Reader<'_> {
    fn sources(&self, object: &EgressObject, about: &mut About<'_>) -> BTreeSet<ServiceIdentity> {
        let mut sources = BTreeSet::new();
        for (i, source) in object.spec.sources.iter().enumerate() {
            let namespace = if source.namespace.is_empty() { &self.key.namespace } else { &source.namespace };
            if source.kind != "ServiceAccount" {
                about.error(
                    format!("spec.sources[{i}].kind"),
                    format!("{:?} is not ServiceAccount; it is left out", source.kind),
                );
            } else if *namespace != self.key.namespace {
                about.error(
                    format!("spec.sources[{i}].namespace"),
                    format!("an Egress speaks for its own namespace {:?} only; it is left out", self.key.namespace),
                );
            } else {
                sources.insert(ServiceIdentity::new(namespace, &source.name));
            }
        }
        sources
    }

    fn matches(&self, object: &EgressObject, about: &mut About<'_>, settings: &mut BTreeSet<Key>) -> Matches {
        let mut matches = Matches { rules: BTreeSet::new(), narrowed: false, limits: None };
        for (i, reference) in object.spec.matches.iter().enumerate() {
            let field = format!("spec.matches[{i}]");
            let name = Key::new(&self.key.namespace, &reference.name);
            if let Some(problem) = text::wrong_group(reference) {
                matches.narrowed = true;
                about.error(format!("{field}.apiGroup"), format!("{problem}; it allows nothing"));
                continue;
            }
            match reference.kind.as_str() {
                "HTTPRouteGroup" => {
                    matches.narrowed = true;
                    let (rules, missing) = self.groups.chosen(&name, None);
                    matches.rules.extend(rules);
                    for message in missing {
                        about.error(&field, format!("{message}; it allows nothing"));
                    }
                }
                "UpstreamTrafficSetting" => {
                    match self.objects.upstream_traffic_settings.get(&name) {
                        Some(_) if matches.limits.is_some() => {
                            about.error(field, "one UpstreamTrafficSetting at most; the first counts")
                        }
                        Some(setting) => {
                            settings.insert(name);
                            let spec = &setting.spec;
                            if spec.rate_limit.is_some() || !spec.http_routes.is_empty() {
                                about.no_effect(&field, "rate limits are for inbound traffic; of this setting only connectionSettings count");
                            }
                            let of_egress = spec.connection_settings.as_ref().map(|c| limits::connections(c, about));
                            matches.limits = Some(of_egress.unwrap_or_default());
                        }
                        None => about.error(field, format!("there is no UpstreamTrafficSetting {name}")),
                    }
                }
                other => {
                    matches.narrowed = true;
                    about.error(
                        format!("{field}.kind"),
                        format!("{other:?} is neither HTTPRouteGroup nor UpstreamTrafficSetting; it allows nothing"),
                    );
                }
            }
        }
        if !matches.narrowed {
            matches.rules.insert(HttpRule::any());
        }
        matches
    }

    fn add(&self, object: &EgressObject, matches: &Matches, egress: &mut Egress, about: &mut About<'_>) {
        let spec = &object.spec;
        let mut ranges: BTreeSet<Option<IpNet>> = BTreeSet::new();
        for (i, text) in spec.ip_addresses.iter().enumerate() {
            match text.parse::<IpNet>() {
                Ok(range) => {
                    ranges.insert(Some(range.trunc()));
                }
                Err(_) => about.error(
                    format!("spec.ipAddresses[{i}]"),
                    format!("{text:?} is not a CIDR such as 10.0.0.0/8; it is left out"),
                ),
            }
        }
        if spec.ip_addresses.is_empty() {
            ranges.insert(None);
        }
        for (i, port) in spec.ports.iter().enumerate() {
            let field = format!("spec.ports[{i}]");
            if port.number == 0 {
                about.error(format!("{field}.number"), "0 is not a port");
                continue;
            }
            let protocol = port.protocol.to_ascii_lowercase();
            if matches.narrowed && matches!(protocol.as_str(), "https" | "tcp" | "tcp-server-first") {
                about.error(
                    &field,
                    format!(
                        "requests can't be seen in {protocol}, so spec.matches can't be kept: nothing is allowed on this port; \
                         give it an Egress of its own without matches"
                    ),
                );
                continue;
            }
            match protocol.as_str() {
                "http" => {
                    if !spec.ip_addresses.is_empty() {
                        about.no_effect("spec.ipAddresses", "http goes to the addresses that its host's name has");
                    }
                    self.http(spec.hosts.iter(), port.number, matches, egress, about);
                }
                "https" => self.https(&spec.hosts, port.number, &ranges, matches, egress, about),
                protocol @ ("tcp" | "tcp-server-first") => {
                    if !spec.hosts.is_empty() && spec.ip_addresses.is_empty() {
                        about.error(
                            &field,
                            "a host can't be seen in TCP: give ipAddresses; nothing is allowed on this port",
                        );
                        continue;
                    }
                    if !spec.hosts.is_empty() {
                        about.no_effect(
                            "spec.hosts",
                            format!("a host can't be seen in {protocol}; ipAddresses count there"),
                        );
                    }
                    self.tcp(protocol, port.number, &ranges, &BTreeSet::new(), matches, egress);
                }
                other => about.error(
                    format!("{field}.protocol"),
                    format!("{other:?} is not http, https, tcp or tcp-server-first; nothing is allowed on this port"),
                ),
            }
        }
    }

    fn http<'h>(
        &self,
        hosts: impl Iterator<Item = &'h String>,
        port: u16,
        matches: &Matches,
        egress: &mut Egress,
        about: &mut About<'_>,
    ) {
        let mut any = false;
        for host in hosts {
            any = true;
            if !text::is_host(host, false) {
                about.error("spec.hosts", format!("{host:?} is not a host's name for http; it is left out"));
                continue;
            }
            let host = host.to_ascii_lowercase();
            if let Some(limits) = &matches.limits {
                egress.limits.entry(format!("{host}:{port}")).or_insert_with(|| limits.clone());
            }
            egress.http.entry(port).or_default().entry(host).or_default().extend(matches.rules.iter().cloned());
        }
        if !any {
            about.error("spec.hosts", "http needs hosts; nothing is allowed on its ports");
        }
    }

    fn https(
        &self,
        hosts: &[String],
        port: u16,
        ranges: &BTreeSet<Option<IpNet>>,
        matches: &Matches,
        egress: &mut Egress,
        about: &mut About<'_>,
    ) {
        let names: BTreeSet<String> =
            hosts.iter().filter(|h| text::is_host(h, true)).map(|h| h.to_ascii_lowercase()).collect();
        for host in hosts.iter().filter(|h| !text::is_host(h, true)) {
            about.error("spec.hosts", format!("{host:?} is not a host's name; it is left out"));
        }
        if names.is_empty() && !hosts.is_empty() {
            return;
        }
        self.tcp("https", port, ranges, &names, matches, egress);
    }

    fn tcp(
        &self,
        protocol: &str,
        port: u16,
        ranges: &BTreeSet<Option<IpNet>>,
        names: &BTreeSet<String>,
        matches: &Matches,
        egress: &mut Egress,
    ) {
        if let Some(limits) = &matches.limits {
            egress.limits.entry(port.to_string()).or_insert_with(|| limits.clone());
        }
        let tcp = egress.tcp.entry(port).or_default();
        // Where policies differ, the one that needs the least of the bytes wins: it works for the other too.
        if tcp.protocol.is_empty() || protocol == "tcp-server-first" {
            protocol.clone_into(&mut tcp.protocol);
        }
        for range in ranges {
            match tcp.ranges.get_mut(range) {
                Some(known) if known.is_empty() || names.is_empty() => known.clear(),
                Some(known) => known.extend(names.iter().cloned()),
                None => {
                    tcp.ranges.insert(*range, names.clone());
                }
            }
        }
    }
}

/// Gives each range the server names of the wider ones around it.
fn widen(ranges: &mut BTreeMap<Option<IpNet>, BTreeSet<String>>) {
    let all = ranges.clone();
    for (range, names) in ranges.iter_mut() {
        let Some(range) = range else { continue };
        for (_, wider) in all.iter().filter(|(other, _)| other.is_none_or(|o| o != *range && o.contains(range))) {
            if names.is_empty() || wider.is_empty() {
                names.clear();
                break;
            }
            names.extend(wider.iter().cloned());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn built(specs: &[serde_json::Value]) -> (Egress, Vec<Finding>) {
        let mut objects = Objects::default();
        for (i, spec) in specs.iter().enumerate() {
            let mut spec = spec.clone();
            spec["sources"] = json!([{"kind": "ServiceAccount", "name": "client", "namespace": "apps"}]);
            let object = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            objects.egresses.insert(Key::new("apps", format!("e{i}")), object);
        }
        let mut findings = Vec::new();
        let all = egresses(&objects, &RouteGroups::default(), false, &mut findings);
        (all.from.get(&ServiceIdentity::new("apps", "client")).cloned().unwrap_or_default(), findings)
    }

    #[test]
    fn a_narrow_range_has_what_the_wider_one_allows() {
        let https = |ip: &str, host: &str| json!({"ipAddresses": [ip], "hosts": [host], "ports": [{"number": 443, "protocol": "https"}]});
        let (egress, findings) = built(&[https("10.0.0.0/8", "a.org"), https("10.1.0.0/16", "b.org")]);
        assert_eq!(findings, []);
        let ranges = &egress.tcp[&443].ranges;
        let names = |range: &str| ranges[&Some(range.parse().unwrap())].iter().cloned().collect::<Vec<_>>();
        assert_eq!(names("10.0.0.0/8"), ["a.org"]);
        assert_eq!(names("10.1.0.0/16"), ["a.org", "b.org"]);
    }

    #[test]
    fn a_host_alone_does_not_open_a_tcp_port_to_all_addresses() {
        let (egress, findings) = built(&[json!({"hosts": ["db.org"], "ports": [{"number": 5432, "protocol": "tcp"}]})]);
        assert!(egress.tcp.is_empty());
        assert_eq!(
            (findings[0].field.as_str(), findings[0].severity),
            ("spec.ports[0]", super::super::Severity::Error)
        );
    }

    #[test]
    fn an_address_that_is_no_cidr_does_not_become_all_addresses() {
        let (egress, findings) =
            built(&[json!({"ipAddresses": ["10.0.0.1"], "ports": [{"number": 5432, "protocol": "tcp"}]})]);
        assert!(egress.tcp.get(&5432).is_none_or(|t| t.ranges.is_empty()));
        assert_eq!(findings[0].field, "spec.ipAddresses[0]");
    }

    #[test]
    fn requests_that_cannot_be_seen_are_not_all_allowed_where_some_are_asked_for() {
        for (protocol, reference) in [
            ("https", json!({"kind": "HTTPRouteGroup", "name": "g"})),
            ("tcp", json!({"kind": "HTTPRouteGroup", "name": "g"})),
            ("http", json!({"kind": "TCPRoute", "name": "g"})),
            ("http", json!({"kind": "HTTPRouteGroup", "name": "g", "apiGroup": "gateway.networking.k8s.io/v1"})),
        ] {
            let (egress, findings) = built(&[json!({"hosts": ["a.org"], "ipAddresses": ["192.0.2.0/24"],
                "ports": [{"number": 443, "protocol": protocol}], "matches": [reference]})]);
            assert!(egress.tcp.is_empty(), "{protocol}");
            assert!(egress.http.values().flat_map(|hosts| hosts.values()).all(BTreeSet::is_empty), "{protocol}");
            assert!(findings.iter().any(|f| f.severity == super::super::Severity::Error), "{protocol}");
        }
    }

    #[test]
    fn a_missing_route_group_allows_no_request() {
        let (egress, findings) = built(&[json!({"hosts": ["a.org"], "ports": [{"number": 80, "protocol": "http"}],
            "matches": [{"kind": "HTTPRouteGroup", "name": "none"}]})]);
        assert!(egress.http[&80]["a.org"].is_empty());
        assert_eq!(findings[0].message, "there is no HTTPRouteGroup apps/none; it allows nothing");
    }
}
