//! Ways in from outside the mesh: IngressBackends, by the service that they open.
//!
//! A backend is opened only if something limits who may come: a source range for http, a principal (or the explicit
//! choice to take any client) for https. Otherwise it stays shut, and the finding says what is missing.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::finding::About;
use super::{Finding, Service, text};
use crate::api::{BackendSpec, IngressBackend, Key, Objects, TlsSpec};

/// One way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// The object.
    pub name: Key,
    /// Target port of the service.
    pub port: u16,
    /// TLS; `None` is plain HTTP.
    pub tls: Option<IngressTls>,
    /// Where clients come from; empty means anywhere.
    pub sources: BTreeSet<IpNet>,
    /// Names in clients' certificates; `None` means that any client may come.
    pub principals: Option<BTreeSet<String>>,
}

/// TLS towards clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressTls {
    /// Whether clients need a certificate.
    pub client_certificate: bool,
    /// Server names; empty means any.
    pub sni_hosts: BTreeSet<String>,
}

/// Reads all IngressBackends, by service.
pub(super) fn ingresses(
    objects: &Objects,
    services: &BTreeMap<Key, Service>,
    enabled: bool,
    findings: &mut Vec<Finding>,
) -> BTreeMap<Key, Vec<Ingress>> {
    let mut all: BTreeMap<Key, Vec<Ingress>> = BTreeMap::new();
    for (key, object) in &objects.ingress_backends {
        let mut about = About::new("IngressBackend", key, findings);
        if !enabled {
            about.no_effect("spec", "featureFlags.enableIngressBackendPolicy in MeshConfig is off");
            continue;
        }
        if !object.spec.matches.is_empty() {
            about.error(
                "spec.matches",
                "not implemented, and without them more requests would come in than meant: all its backends stay shut; \
                 remove matches to open them to all requests",
            );
            continue;
        }
        let Some(sources) = sources(key, object, services, &mut about) else { continue };
        for (i, backend) in object.spec.backends.iter().enumerate() {
            let field = format!("spec.backends[{i}]");
            let service = Key::new(&key.namespace, &backend.name);
            let Some(found) = services.get(&service) else {
                about.error(format!("{field}.name"), format!("there is no service {service}; it stays shut"));
                continue;
            };
            if !has_target(found, backend, &field, &mut about) {
                continue;
            }
            if let Some(ingress) = ingress(key, backend, &sources, &field, &mut about) {
                let ways = all.entry(service).or_default();
                if ways.iter().any(|way| overlap(way, &ingress)) {
                    about.error(field, "another IngressBackend, earlier by name, opens the same port in the same way; this one does not count");
                } else {
                    ways.push(ingress);
                }
            }
        }
    }
    all
}

/// Who may come.
#[derive(Default)]
struct Sources {
    ranges: BTreeSet<IpNet>,
    principals: BTreeSet<String>,
    /// A source that limits addresses was given, even if it was wrong or is empty.
    by_address: bool,
}

/// `None` if a source is of a kind that is not known: it may have been meant to limit who comes.
fn sources(
    key: &Key,
    object: &IngressBackend,
    services: &BTreeMap<Key, Service>,
    about: &mut About<'_>,
) -> Option<Sources> {
    let mut sources = Sources::default();
    let mut all_known = true;
    for (i, source) in object.spec.sources.iter().enumerate() {
        let field = format!("spec.sources[{i}]");
        match source.kind.as_str() {
            "IPRange" => {
                sources.by_address = true;
                match source.name.parse::<IpNet>() {
                    Ok(range) => {
                        sources.ranges.insert(range.trunc());
                    }
                    Err(_) => about.error(
                        format!("{field}.name"),
                        format!("{:?} is not a CIDR such as 10.0.0.0/8; it is left out", source.name),
                    ),
                }
            }
            "Service" => {
                sources.by_address = true;
                let namespace = if source.namespace.is_empty() { &key.namespace } else { &source.namespace };
                let name = Key::new(namespace, &source.name);
                match services.get(&name) {
                    Some(service) if !service.endpoints.is_empty() => {
                        sources.ranges.extend(service.endpoints.iter().map(|e| IpNet::from(e.ip)));
                    }
                    Some(_) => {
                        about.warning(&field, format!("service {name} has no endpoints now, so nobody comes from it"))
                    }
                    None => about.error(&field, format!("there is no service {name}, so nobody comes from it")),
                }
            }
            "AuthenticatedPrincipal" => {
                sources.principals.insert(source.name.clone());
            }
            other => {
                all_known = false;
                about.error(
                    format!("{field}.kind"),
                    format!("{other:?} is not Service, IPRange or AuthenticatedPrincipal; all the backends stay shut"),
                );
            }
        }
        if source.kind != "Service" && !source.namespace.is_empty() {
            about.no_effect(format!("{field}.namespace"), format!("a source of kind {} has none", source.kind));
        }
    }
    all_known.then_some(sources)
}

fn has_target(service: &Service, backend: &BackendSpec, field: &str, about: &mut About<'_>) -> bool {
    let number = backend.port.number;
    if service.ports.iter().any(|p| p.target == number && p.protocol.is_http()) {
        return true;
    }
    let hint = match service.port(number) {
        Some(port) if port.target != number => format!(" (the number is the target port: write {})", port.target),
        _ => String::new(),
    };
    about.error(
        format!("{field}.port.number"),
        format!("service {} has no HTTP port with target {number}{hint}; it stays shut", service.name),
    );
    false
}

fn ingress(key: &Key, backend: &BackendSpec, sources: &Sources, field: &str, about: &mut About<'_>) -> Option<Ingress> {
    if sources.by_address && sources.ranges.is_empty() {
        about.warning("spec.sources", "no source has an address, so nobody comes in");
        return None;
    }
    let any = Ingress {
        name: key.clone(),
        port: backend.port.number,
        tls: None,
        sources: sources.ranges.clone(),
        principals: None,
    };
    match backend.port.protocol.to_ascii_lowercase().as_str() {
        "http" => {
            if sources.ranges.is_empty() {
                about.error(
                    "spec.sources",
                    "http needs a Service or an IPRange: nothing else limits who comes; it stays shut",
                );
                return None;
            }
            if !sources.principals.is_empty() {
                about.no_effect("spec.sources", "a principal can't be seen in http; the addresses count");
            }
            if backend.tls != TlsSpec::default() {
                about.no_effect(format!("{field}.tls"), "the protocol is http: there is no TLS");
            }
            Some(any)
        }
        "https" => {
            let skip = backend.tls.skip_client_cert_validation;
            let open = skip || sources.principals.contains("*");
            if !open && sources.principals.is_empty() {
                about.error(
                    "spec.sources",
                    "https needs an AuthenticatedPrincipal (or \"*\", or skipClientCertValidation): it stays shut",
                );
                return None;
            }
            let names_somebody = sources.principals.iter().any(|name| name != "*");
            if skip && sources.ranges.is_empty() && (names_somebody || sources.principals.is_empty()) {
                about.error(
                    "spec.sources",
                    "no source limits who comes, for skipClientCertValidation leaves principals unseen; it stays shut",
                );
                return None;
            }
            if skip && names_somebody {
                let words = "no principal is looked at, for tls.skipClientCertValidation is set; the addresses count";
                about.warning("spec.sources", words);
            }
            let mut sni_hosts = BTreeSet::new();
            for host in &backend.tls.sni_hosts {
                if text::is_host(host, true) {
                    sni_hosts.insert(host.to_ascii_lowercase());
                } else {
                    about.error(
                        format!("{field}.tls.sniHosts"),
                        format!("{host:?} is not a host's name; it is left out"),
                    );
                }
            }
            if sni_hosts.is_empty() && !backend.tls.sni_hosts.is_empty() {
                return None;
            }
            let tls = Some(IngressTls { client_certificate: !skip, sni_hosts });
            Some(Ingress { tls, principals: (!open).then(|| sources.principals.clone()), ..any })
        }
        other => {
            about
                .error(format!("{field}.port.protocol"), format!("{other:?} is neither http nor https; it stays shut"));
            None
        }
    }
}

/// Whether a proxy could not tell which of the two a connection is for.
pub(super) fn overlap(a: &Ingress, b: &Ingress) -> bool {
    if a.port != b.port {
        return false;
    }
    let names = |i: &Ingress| i.tls.as_ref().map(|t| t.sni_hosts.clone());
    let same_names = match (names(a), names(b)) {
        (None, None) => true,
        (Some(a), Some(b)) => (a.is_empty() && b.is_empty()) || !a.is_disjoint(&b),
        _ => false,
    };
    let same_sources = (a.sources.is_empty() && b.sources.is_empty()) || !a.sources.is_disjoint(&b.sources);
    same_names && same_sources
}
