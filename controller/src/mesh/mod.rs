//! The mesh as a value: services, workloads, identities and policies, made of objects and nothing else.
//!
//! Pure: no clock, no network, no order of events. The same objects give the same mesh, whichever way they came.
//! All of OSM's rules live here, and so does every place where we differ on purpose. Nothing in an object is dropped in
//! silence: what is wrong or has no effect is a [`Finding`], and one bad object never changes what another one means.

mod access;
pub mod cluster_ip;
mod config;
mod egress;
mod expression;
mod finding;
mod http_match;
mod ingress;
mod limits;
mod log_format;
mod protocol;
mod retry;
mod service;
mod split;
mod telemetry;
mod text;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

pub use access::{Access, Target};
pub use config::{Config, MESH_CONFIG, Tls, TlsVersion};
pub use egress::{Egress, TcpEgress};
pub use finding::{Finding, Severity};
pub use http_match::HttpRule;
pub use ingress::{Ingress, IngressTls};
pub use limits::{Bucket, ConnectionLimits, HttpRate, Limits, Rate};
pub use protocol::Protocol;
pub use retry::Retry;
pub use service::{Endpoint, Port, Service};
pub use split::Split;
pub use telemetry::AccessLog;
pub(crate) use workload::owner;
pub use workload::{PROXY_UUID_LABEL, Workload};

use crate::api::core::Namespace;
use crate::api::{Key, Objects};
use crate::identity::{ServiceIdentity, SidecarIdentity};
use crate::settings::Settings;
use finding::About;

/// Label of the namespaces that are in a mesh; its value is the mesh's name.
pub const MONITORED_BY_LABEL: &str = "openservicemesh.io/monitored-by";

/// Label of the namespaces that are in no mesh, whatever else they are labelled.
pub const IGNORE_LABEL: &str = "openservicemesh.io/ignore";

/// Whether the mesh of this name watches over `namespace`.
#[must_use]
pub fn is_monitored(namespace: &Namespace, mesh_name: &str) -> bool {
    let labels = namespace.metadata.labels.as_ref();
    labels.is_some_and(|l| {
        l.get(MONITORED_BY_LABEL).is_some_and(|name| name == mesh_name) && !l.contains_key(IGNORE_LABEL)
    })
}

/// Everything that rendering needs to know, immutable.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    config: Config,
    trust_domain: String,
    workloads: BTreeMap<Key, Workload>,
    sidecars: BTreeMap<(String, ServiceIdentity), Key>,
    services: BTreeMap<Key, Service>,
    services_of_pod: BTreeMap<Key, Vec<Key>>,
    access: access::AccessPolicies,
    splits: BTreeMap<Key, Split>,
    retries: BTreeMap<(ServiceIdentity, Key), Retry>,
    limits: BTreeMap<Key, Limits>,
    egresses: BTreeMap<ServiceIdentity, Egress>,
    ingresses: BTreeMap<Key, Vec<Ingress>>,
    access_logs: telemetry::AccessLogs,
}

/// A mesh, and what there is to say about the objects that it was made of.
#[derive(Clone, Debug, Default)]
pub struct Built {
    /// The mesh.
    pub mesh: Mesh,
    /// What is wrong or has no effect, sorted.
    pub findings: Vec<Finding>,
}

impl Mesh {
    /// Makes a mesh of objects.
    #[must_use]
    pub fn build(objects: &Objects, settings: &Settings) -> Built {
        let mut findings = Vec::new();
        let config = config::config(objects, settings, &mut findings);
        let in_mesh = namespaces(objects, settings);
        let workloads: BTreeMap<Key, Workload> =
            objects.pods.values().filter_map(|pod| Workload::of(pod)).map(|w| (w.pod.clone(), w)).collect();
        let sidecars = sidecars(&workloads, &in_mesh, &mut findings);
        let service::Services { services, of_pod } = service::services(objects, &workloads, &in_mesh, &mut findings);
        let groups = http_match::RouteGroups::new(&objects.http_route_groups, &mut findings);
        let access = access::access(objects, &groups, &workloads, config.permissive, &mut findings);
        let splits = split::splits(objects, &services, &groups, &mut findings);
        let retries = retry::retries(objects, &services, config.retries, &mut findings);
        let egresses = egress::egresses(objects, &groups, config.egress, &mut findings);
        let limits = limits::limits(objects, &services, &egresses.settings, &mut findings);
        let ingresses = ingress::ingresses(objects, &services, config.ingress, &mut findings);
        let access_logs = telemetry::access_logs(objects, settings, &mut findings);
        outside(objects, &in_mesh, settings, &mut findings);
        let mesh = Self {
            config,
            trust_domain: settings.trust_domain.clone(),
            workloads,
            sidecars,
            services,
            services_of_pod: of_pod,
            access,
            splits,
            retries,
            limits,
            egresses: egresses.from,
            ingresses,
            access_logs,
        };
        mesh.ingress_conflicts(&mut findings);
        mesh.egress_into_mesh(objects, &mut findings);
        findings.sort();
        findings.dedup();
        Built { mesh, findings }
    }

    /// Mesh-wide settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The last part of every identity.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// All pods, in the mesh or not.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.workloads.values()
    }

    /// The workload whose sidecar is `proxy`: its pod must carry the uuid, run as the service account, and its namespace
    /// be in the mesh.
    #[must_use]
    pub fn workload_of(&self, proxy: &SidecarIdentity) -> Option<&Workload> {
        let pod = self.sidecars.get(&(proxy.uuid.clone(), proxy.service.clone()))?;
        self.workloads.get(pod)
    }

    /// All services, in the mesh or not, by namespace and name.
    #[must_use]
    pub fn services(&self) -> &BTreeMap<Key, Service> {
        &self.services
    }

    /// The services that `workload` answers for.
    pub fn services_of(&self, workload: &Workload) -> impl Iterator<Item = &Service> {
        let names = self.services_of_pod.get(&workload.pod).into_iter().flatten();
        names.filter_map(|name| self.services.get(name)).filter(|s| s.in_mesh)
    }

    /// What may be done to workloads of this account; `None` in permissive mode, where everything may.
    #[must_use]
    pub fn access_to(&self, account: &ServiceIdentity) -> Option<&Access> {
        static NOTHING: Access = Access { targets: Vec::new(), http: BTreeMap::new() };
        (!self.config.permissive).then(|| self.access.to.get(account).unwrap_or(&NOTHING))
    }

    /// Whether `source` may call workloads of `destination` in some way.
    #[must_use]
    pub fn may_call(&self, source: &ServiceIdentity, destination: &ServiceIdentity) -> bool {
        self.config.permissive || self.access.from.get(source).is_some_and(|to| to.contains(destination))
    }

    /// The services that `source` can address, by name: those of which it may call some pod, and the roots of splits with
    /// such a backend.
    pub fn reachable_from(&self, source: &ServiceIdentity) -> impl Iterator<Item = &Service> {
        let open = |service: &Service| service.identities.iter().any(|id| self.may_call(source, id));
        let by_split = move |service: &Service| {
            let backends = self.splits.get(&service.name).into_iter().flat_map(|split| split.backends.keys());
            backends.filter_map(|key| self.services.get(key)).any(open)
        };
        let permissive = self.config.permissive;
        self.services.values().filter(move |s| s.in_mesh && (permissive || open(s) || by_split(s)))
    }

    /// Addresses of `service` that `source` may call.
    pub fn endpoints_for<'a>(
        &'a self,
        service: &'a Service,
        source: &'a ServiceIdentity,
    ) -> impl Iterator<Item = &'a Endpoint> {
        let may = |e: &&Endpoint| e.identity.as_ref().is_some_and(|id| self.may_call(source, id));
        service.endpoints.iter().filter(may)
    }

    /// The split of a service's traffic.
    #[must_use]
    pub fn split(&self, root: &Key) -> Option<&Split> {
        self.splits.get(root)
    }

    /// How `source` retries requests to `service`.
    #[must_use]
    pub fn retry(&self, source: &ServiceIdentity, service: &Key) -> Option<&Retry> {
        self.retries.get(&(source.clone(), service.clone()))
    }

    /// The limits of a service.
    #[must_use]
    pub fn limits(&self, service: &Key) -> Option<&Limits> {
        self.limits.get(service)
    }

    /// What `source` may reach outside the mesh by policy.
    #[must_use]
    pub fn egress(&self, source: &ServiceIdentity) -> Option<&Egress> {
        self.egresses.get(source)
    }

    /// Ways into a workload from outside the mesh, with the service that each opens. Of two that a proxy could not tell
    /// apart, the first by the service's name counts.
    #[must_use]
    pub fn ingresses_of(&self, workload: &Workload) -> Vec<(&Service, &Ingress)> {
        let mut ways: Vec<(&Service, &Ingress)> = Vec::new();
        for way in self.all_ingresses_of(workload) {
            if !ways.iter().any(|(_, other)| ingress::overlap(other, way.1)) {
                ways.push(way);
            }
        }
        ways
    }

    fn all_ingresses_of(&self, workload: &Workload) -> impl Iterator<Item = (&Service, &Ingress)> {
        self.services_of(workload).flat_map(|service| {
            self.ingresses.get(&service.name).into_iter().flatten().map(move |ingress| (service, ingress))
        })
    }

    /// The access log of a workload.
    #[must_use]
    pub fn access_log(&self, workload: &Workload) -> &AccessLog {
        self.access_logs.of(workload)
    }

    /// Several services over one pod, opened to the same clients on one port.
    fn ingress_conflicts(&self, findings: &mut Vec<Finding>) {
        for workload in self.workloads.values() {
            let kept = self.ingresses_of(workload);
            for (service, lost) in self.all_ingresses_of(workload).filter(|way| !kept.contains(way)) {
                let message = format!(
                    "another service over the pods of {} is opened to the same clients on port {}; this way does not count",
                    service.name, lost.port
                );
                About::new("IngressBackend", &lost.name, findings).error("spec.backends", message);
            }
        }
    }

    /// Egress to the address of a service: the mesh's own way there counts.
    fn egress_into_mesh(&self, objects: &Objects, findings: &mut Vec<Finding>) {
        let services = self.services.values().filter(|s| s.in_mesh);
        let addresses: BTreeMap<IpAddr, &Key> =
            services.flat_map(|s| s.dialed.iter().map(move |ip| (*ip, &s.name))).collect();
        for (key, object) in &objects.egresses {
            let ips = object.spec.ip_addresses.iter().filter_map(|text| text.parse::<IpNet>().ok());
            for net in ips.filter(|net| net.prefix_len() == net.max_prefix_len()) {
                if let Some(service) = addresses.get(&net.addr()) {
                    let message = format!("{net} is service {service}: calls to its ports go through the mesh");
                    About::new("Egress", key, findings).warning("spec.ipAddresses", message);
                }
            }
        }
    }
}

/// The namespaces of the mesh.
fn namespaces(objects: &Objects, settings: &Settings) -> BTreeSet<String> {
    let labelled = objects.namespaces.iter().filter(|(_, namespace)| is_monitored(namespace, &settings.mesh_name));
    labelled.map(|(key, _)| key.name.clone()).collect()
}

/// Pods by what their sidecars' certificates name. A pod may label itself with a uuid that it has seen elsewhere: that
/// touches nobody but pods of its own service account, of which none is served while two carry the same uuid.
fn sidecars(
    workloads: &BTreeMap<Key, Workload>,
    in_mesh: &BTreeSet<String>,
    findings: &mut Vec<Finding>,
) -> BTreeMap<(String, ServiceIdentity), Key> {
    let mut pods: BTreeMap<(String, ServiceIdentity), Vec<&Key>> = BTreeMap::new();
    for workload in workloads.values().filter(|w| in_mesh.contains(&w.pod.namespace)) {
        if let Some(uuid) = &workload.uuid {
            if workload.identity.reads_as_sidecar() {
                let account = &workload.identity.service_account;
                let message = format!(
                    "{account:?} reads as another's sidecar in a certificate's name, so the pod gets no certificate and no \
                     configuration (choose a name whose second part isn't `sidecar`)"
                );
                About::new("Pod", &workload.pod, findings).error("spec.serviceAccountName", message);
                continue;
            }
            pods.entry((uuid.clone(), workload.identity.clone())).or_default().push(&workload.pod);
        }
    }
    let mut sidecars = BTreeMap::new();
    for (sidecar, pods) in pods {
        if let [pod] = pods.as_slice() {
            sidecars.insert(sidecar, (*pod).clone());
            continue;
        }
        for pod in pods {
            About::new("Pod", pod, findings).error(
                format!("metadata.labels.{PROXY_UUID_LABEL}"),
                format!("another pod of its service account has the uuid {} too; neither is served", sidecar.0),
            );
        }
    }
    sidecars
}

/// Policies in namespaces that are no part of the mesh.
fn outside(objects: &Objects, in_mesh: &BTreeSet<String>, settings: &Settings, findings: &mut Vec<Finding>) {
    let targets = objects.traffic_targets.keys().map(|k| ("TrafficTarget", k));
    let splits = objects.traffic_splits.keys().map(|k| ("TrafficSplit", k));
    let retries = objects.retries.keys().map(|k| ("Retry", k));
    let egresses = objects.egresses.keys().map(|k| ("Egress", k));
    let ingresses = objects.ingress_backends.keys().map(|k| ("IngressBackend", k));
    let limits = objects.upstream_traffic_settings.keys().map(|k| ("UpstreamTrafficSetting", k));
    let all = targets.chain(splits).chain(retries).chain(egresses).chain(ingresses).chain(limits);
    for (kind, key) in all.filter(|(_, key)| !in_mesh.contains(&key.namespace)) {
        let label = format!("label it {MONITORED_BY_LABEL}={}", settings.mesh_name);
        About::new(kind, key, findings)
            .warning("metadata.namespace", format!("namespace {:?} is no part of the mesh; {label}", key.namespace));
    }
    for key in objects.mesh_root_certificates.keys() {
        About::new("MeshRootCertificate", key, findings)
            .no_effect("spec", "not implemented yet: the controller's built-in authority signs");
    }
}
