//! Services: what clients address, on which ports, and who answers.
//!
//! A headless service whose pods have host names is also one service per pod (`<pod>.<service>`), which owns the pod's
//! address; the service as a whole is then found by its HTTP host name alone.
//! Identities come from the pods that the selector takes, ready or not: policy does not hang on readiness. Without a selector
//! they come from the pods of the namespace that the endpoint slices list.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::finding::About;
use super::protocol::{Protocol, protocol};
use super::{Finding, Workload};
use crate::api::core::{EndpointSlice, Service as KubeService};
use crate::api::{Key, Objects};
use crate::identity::ServiceIdentity;

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Port that clients address.
    pub port: u16,
    /// Port on which pods listen.
    pub target: u16,
    /// Name of the container port that `target` came from, if it was given by name: pods may differ in its number.
    pub target_name: Option<String>,
    /// How its bytes are understood.
    pub protocol: Protocol,
}

/// One address that answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Address.
    pub ip: IpAddr,
    /// Who answers there; `None` if no pod is known at this address.
    pub identity: Option<ServiceIdentity>,
}

/// A service, or one pod of a headless service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name; the name is `<pod>.<service>` for one pod of a headless service.
    pub name: Key,
    /// Addresses that clients dial: cluster IPs, or the pods' own if headless.
    pub dialed: Vec<IpAddr>,
    /// TCP ports.
    pub ports: Vec<Port>,
    /// Ready addresses of the main address family.
    pub endpoints: Vec<Endpoint>,
    /// Service accounts of the pods.
    pub identities: BTreeSet<ServiceIdentity>,
    /// Whether the namespace is in the mesh.
    pub in_mesh: bool,
}

impl Service {
    /// `<service>.<namespace>.svc.cluster.local`.
    #[must_use]
    pub fn fqdn(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.name.name, self.name.namespace)
    }

    /// Host names by which clients in `namespace` call the service on `port`, each also with the port.
    #[must_use]
    pub fn hosts(&self, namespace: &str, port: u16) -> Vec<String> {
        let Key { namespace: own, name } = &self.name;
        let mut hosts = Vec::with_capacity(10);
        if namespace == own {
            hosts.push(name.clone());
        }
        for suffix in ["", ".svc", ".svc.cluster", ".svc.cluster.local"] {
            hosts.push(format!("{name}.{own}{suffix}"));
        }
        hosts.into_iter().flat_map(|host| [host.clone(), format!("{host}:{port}")]).collect()
    }

    /// The port with this number.
    #[must_use]
    pub fn port(&self, port: u16) -> Option<&Port> {
        self.ports.iter().find(|p| p.port == port)
    }
}

/// All services, and which of them each pod answers for.
#[derive(Debug, Default)]
pub(super) struct Services {
    pub(super) services: BTreeMap<Key, Service>,
    pub(super) of_pod: BTreeMap<Key, Vec<Key>>,
}

/// Reads all services.
pub(super) fn services(
    objects: &Objects,
    workloads: &BTreeMap<Key, Workload>,
    in_mesh: &BTreeSet<String>,
    findings: &mut Vec<Finding>,
) -> Services {
    let pods = PodIndex::new(workloads);
    let mut slices: HashMap<Key, Vec<&EndpointSlice>> = HashMap::new();
    for slice in objects.endpoint_slices.values() {
        let service = slice.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
        if let Some(service) = service {
            slices.entry(Key::new(Key::of(&slice.metadata).namespace, service)).or_default().push(slice);
        }
    }
    let mut all = Services::default();
    for (key, object) in &objects.services {
        let mut ignored = Vec::new();
        let in_mesh = in_mesh.contains(&key.namespace);
        // Nobody wants to read about the services of namespaces that are no part of the mesh.
        let mut about = About::new("Service", key, if in_mesh { &mut *findings } else { &mut ignored });
        let slices = slices.get(key).map(Vec::as_slice).unwrap_or_default();
        let found = Found { key, object, slices, pods: &pods, in_mesh };
        for (service, pods) in found.services(&mut about) {
            for pod in pods {
                all.of_pod.entry(pod).or_default().push(service.name.clone());
            }
            all.services.insert(service.name.clone(), service);
        }
    }
    all
}

/// A Kubernetes service with all that belongs to it.
struct Found<'a> {
    key: &'a Key,
    object: &'a KubeService,
    slices: &'a [&'a EndpointSlice],
    pods: &'a PodIndex<'a>,
    in_mesh: bool,
}

impl Found<'_> {
    fn services(&self, about: &mut About<'_>) -> Vec<(Service, Vec<Key>)> {
        let Some(spec) = &self.object.spec else {
            about.error("spec", "missing");
            return Vec::new();
        };
        if spec.type_.as_deref() == Some("ExternalName") {
            about.no_effect("spec.type", "an ExternalName service is no part of the mesh; use an Egress policy");
            return Vec::new();
        }
        let selector = spec.selector.clone().unwrap_or_default();
        let pods = if selector.is_empty() { self.listed() } else { self.pods.selected(&self.key.namespace, &selector) };
        let ports = self.ports(&pods, about);
        let headless = spec.cluster_ip.as_deref() == Some("None");
        let cluster_ips = cluster_ips(spec);
        if !headless && cluster_ips.is_empty() {
            about.warning("spec.clusterIP", "the service has no address yet, so nobody can call it");
        }
        let named: Vec<&Workload> = if headless { self.with_host_names(&pods) } else { Vec::new() };
        let dialed = if headless { self.addresses_without_name(&pods) } else { cluster_ips };
        let itself = self.service(self.key.name.clone(), dialed, ports.clone(), &pods, about);
        let of_pods = named.into_iter().map(|pod| {
            let host = pod.host.as_ref().map_or(pod.pod.name.as_str(), |(host, _)| host);
            let name = format!("{host}.{}", self.key.name);
            self.service(name, pod.ips.clone(), ports.clone(), &[pod], about)
        });
        of_pods.chain([itself]).collect()
    }

    /// Pods of a service without selector: those at the addresses of its endpoint slices. Pods of other namespaces are not
    /// this one's to publish: a port of theirs would open to whoever may write slices here.
    fn listed(&self) -> Vec<&Workload> {
        let addresses = self.slices.iter().flat_map(|s| &s.endpoints).flat_map(|e| &e.addresses);
        let pods = addresses.filter_map(|address| self.pods.at(&address.parse().ok()?));
        let ours = pods.filter(|pod| pod.pod.namespace == self.key.namespace);
        ours.map(|pod| (&pod.pod, pod)).collect::<BTreeMap<_, _>>().into_values().collect()
    }

    fn service(
        &self,
        name: String,
        mut dialed: Vec<IpAddr>,
        ports: Vec<Port>,
        pods: &[&Workload],
        about: &mut About<'_>,
    ) -> (Service, Vec<Key>) {
        dialed.sort_unstable();
        dialed.dedup();
        let of_one_pod = name != self.key.name;
        let mut endpoints = self.endpoints(pods, of_one_pod);
        keep_main_family(&mut endpoints, self.object);
        let identities: BTreeSet<_> = pods.iter().map(|p| p.identity.clone()).collect();
        if self.in_mesh {
            let all = endpoints.len();
            endpoints.retain(|e| e.identity.as_ref().is_some_and(|identity| identities.contains(identity)));
            if endpoints.len() < all {
                about.warning(
                    "spec.selector",
                    "some endpoints are no pods of the mesh in this namespace: they cannot prove who they are and get no traffic",
                );
            }
        }
        let service = Service {
            name: Key::new(&self.key.namespace, name),
            dialed,
            ports,
            endpoints,
            identities,
            in_mesh: self.in_mesh,
        };
        (service, pods.iter().map(|p| p.pod.clone()).collect())
    }

    /// Addresses that are dialed for the headless service as a whole: those of pods with a name belong to these.
    fn addresses_without_name(&self, pods: &[&Workload]) -> Vec<IpAddr> {
        let named = self.with_host_names(pods);
        let unnamed = pods.iter().filter(|pod| !named.iter().any(|n| n.pod == pod.pod));
        unnamed.flat_map(|pod| pod.ips.iter().copied()).collect()
    }

    /// Pods that the headless service calls by name.
    fn with_host_names<'p>(&self, pods: &[&'p Workload]) -> Vec<&'p Workload> {
        let ours = |p: &&&Workload| p.host.as_ref().is_some_and(|(_, service)| *service == self.key.name);
        pods.iter().filter(ours).copied().collect()
    }

    /// Ready addresses: of the endpoint slices if there are any, else of the pods.
    fn endpoints(&self, pods: &[&Workload], of_one_pod: bool) -> Vec<Endpoint> {
        let spec = self.object.spec.as_ref();
        let unready = spec.and_then(|s| s.publish_not_ready_addresses) == Some(true);
        let mut endpoints: Vec<Endpoint> = if self.slices.is_empty() {
            let ready = pods.iter().filter(|p| p.ready || unready);
            ready
                .flat_map(|p| p.ips.iter().map(|ip| Endpoint { ip: *ip, identity: Some(p.identity.clone()) }))
                .collect()
        } else {
            let listed = self.slices.iter().flat_map(|s| &s.endpoints);
            let ready = listed.filter(|e| unready || e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
            let ips = ready.flat_map(|e| &e.addresses).filter_map(|a| a.parse::<IpAddr>().ok());
            ips.map(|ip| Endpoint { ip, identity: self.pods.at(&ip).map(|p| p.identity.clone()) }).collect()
        };
        if of_one_pod {
            endpoints.retain(|e| pods.iter().any(|p| p.ips.contains(&e.ip)));
        }
        endpoints.sort_unstable();
        endpoints.dedup();
        endpoints
    }

    fn ports(&self, pods: &[&Workload], about: &mut About<'_>) -> Vec<Port> {
        let mut ports: Vec<Port> = Vec::new();
        let spec = self.object.spec.as_ref();
        for (i, port) in spec.and_then(|s| s.ports.as_deref()).unwrap_or_default().iter().enumerate() {
            let field = format!("spec.ports[{i}]");
            if port.protocol.as_deref().is_some_and(|p| p != "TCP") {
                about.no_effect(format!("{field}.protocol"), "the mesh carries TCP only");
                continue;
            }
            let Some(number) = u16::try_from(port.port).ok().filter(|p| *p != 0) else {
                about.error(format!("{field}.port"), format!("{} is not a port", port.port));
                continue;
            };
            let name = port.name.as_deref().unwrap_or_default();
            let (protocol, note) = protocol(port.app_protocol.as_deref(), name);
            if let Some(note) = note {
                about.no_effect(format!("{field}.appProtocol"), note);
            }
            let target_name = match &port.target_port {
                Some(IntOrString::String(name)) if name.parse::<u16>().is_err() => Some(name.clone()),
                _ => None,
            };
            let fixed = match &port.target_port {
                Some(IntOrString::Int(target)) if *target != 0 => u16::try_from(*target).ok(),
                Some(IntOrString::String(target)) => target.parse().ok(),
                _ => Some(number),
            };
            let by_name = || {
                let target_name = target_name.as_deref()?;
                self.slice_port(name).or_else(|| named_port(pods, target_name, &field, about))
            };
            let target = fixed.or_else(by_name).unwrap_or(number);
            ports.push(Port { port: number, target, target_name, protocol });
        }
        ports
    }

    fn slice_port(&self, name: &str) -> Option<u16> {
        let ports = self.slices.iter().flat_map(|s| s.ports.iter().flatten());
        let port = ports.filter(|p| p.name.as_deref().unwrap_or_default() == name).find_map(|p| p.port)?;
        u16::try_from(port).ok()
    }
}

/// The number that the pods give to a port's name. Until a pod has it, the service's own port stands in.
fn named_port(pods: &[&Workload], name: &str, field: &str, about: &mut About<'_>) -> Option<u16> {
    let numbers: BTreeSet<u16> = pods.iter().filter_map(|p| p.named_ports.get(name).copied()).collect();
    if numbers.len() > 1 {
        about.warning(format!("{field}.targetPort"), format!("pods give {name:?} different numbers: {numbers:?}"));
    }
    if numbers.is_empty() && !pods.is_empty() {
        about.warning(format!("{field}.targetPort"), format!("no container has a port named {name:?}"));
    }
    numbers.first().copied()
}

fn cluster_ips(spec: &k8s_openapi::api::core::v1::ServiceSpec) -> Vec<IpAddr> {
    let one = spec.cluster_ip.iter();
    one.chain(spec.cluster_ips.iter().flatten()).filter_map(|ip| ip.parse().ok()).collect()
}

/// A pod with two addresses would count twice, so a service speaks one family: its first.
fn keep_main_family(endpoints: &mut Vec<Endpoint>, service: &KubeService) {
    let spec = service.spec.as_ref();
    let first = spec.and_then(|s| s.ip_families.as_ref()).and_then(|f| f.first()).map(|f| f == "IPv6");
    let v6 = first.unwrap_or_else(|| {
        let dialed = spec.map(cluster_ips).unwrap_or_default();
        dialed.first().map_or_else(|| !endpoints.iter().any(|e| e.ip.is_ipv4()), IpAddr::is_ipv6)
    });
    if endpoints.iter().any(|e| e.ip.is_ipv6() == v6) {
        endpoints.retain(|e| e.ip.is_ipv6() == v6);
    }
}

/// Finds pods by label and by address without looking at each.
struct PodIndex<'a> {
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<&'a Workload>>,
    by_ip: HashMap<IpAddr, &'a Workload>,
}

impl<'a> PodIndex<'a> {
    fn new(workloads: &'a BTreeMap<Key, Workload>) -> Self {
        let mut index = Self { by_label: HashMap::new(), by_ip: HashMap::new() };
        for workload in workloads.values() {
            let namespace = workload.pod.namespace.as_str();
            for (key, value) in &workload.labels {
                index.by_label.entry((namespace, key, value)).or_default().push(workload);
            }
            index.by_ip.extend(workload.ips.iter().map(|ip| (*ip, workload)));
        }
        index
    }

    fn selected(&self, namespace: &str, selector: &BTreeMap<String, String>) -> Vec<&'a Workload> {
        let lists = selector.iter().map(|(key, value)| self.by_label.get(&(namespace, key.as_str(), value.as_str())));
        let shortest = lists.map(|list| list.map(Vec::as_slice).unwrap_or_default()).min_by_key(|list| list.len());
        shortest.unwrap_or_default().iter().filter(|w| w.is_selected(selector)).copied().collect()
    }

    fn at(&self, ip: &IpAddr) -> Option<&'a Workload> {
        self.by_ip.get(ip).copied()
    }
}
