//! Takes off objects what the mesh does not read: less to keep, and fewer changes that change nothing.

use k8s_openapi::api::core::v1::{Container, PodCondition, PodSpec, PodStatus};

use crate::api::core::{EndpointSlice, Namespace, ObjectMeta, Pod, Service, ServiceAccount};

/// Of every object: who wrote which field, how often it was written, and annotations of others.
pub(super) fn metadata(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    metadata.resource_version = None;
    metadata.finalizers = None;
    metadata.self_link = None;
    metadata.generate_name = None;
    metadata.creation_timestamp = None;
    metadata.deletion_grace_period_seconds = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|name, _| ANNOTATIONS.iter().any(|prefix| name.starts_with(prefix)));
    }
    metadata.annotations.take_if(|annotations| annotations.is_empty());
}

pub(super) fn namespace(namespace: &mut Namespace) {
    namespace.spec = None;
    namespace.status = None;
}

pub(super) fn service_account(account: &mut ServiceAccount) {
    *account = ServiceAccount { metadata: std::mem::take(&mut account.metadata), ..ServiceAccount::default() };
    account.metadata.labels = None;
    account.metadata.annotations = None;
    account.metadata.owner_references = None;
}

pub(super) fn service(service: &mut Service) {
    service.status = None;
    service.metadata.owner_references = None;
}

pub(super) fn endpoint_slice(slice: &mut EndpointSlice) {
    slice.metadata.owner_references = None;
    slice.metadata.annotations = None;
    if let Some(labels) = &mut slice.metadata.labels {
        labels.retain(|name, _| name == SERVICE_NAME);
    }
    for endpoint in &mut slice.endpoints {
        endpoint.deprecated_topology = None;
        endpoint.hints = None;
        endpoint.node_name = None;
        endpoint.target_ref = None;
        endpoint.zone = None;
    }
}

/// A pod's labels stay: services select by them.
pub(super) fn pod(pod: &mut Pod) {
    pod.spec = pod.spec.take().map(|spec| PodSpec {
        containers: tight(spec.containers.into_iter().filter_map(ports)),
        host_network: spec.host_network,
        hostname: spec.hostname,
        node_name: spec.node_name,
        service_account_name: spec.service_account_name,
        subdomain: spec.subdomain,
        ..PodSpec::default()
    });
    pod.status = pod.status.take().map(|status| PodStatus {
        conditions: status.conditions.map(|all| tight(all.into_iter().filter(|c| c.type_ == "Ready").map(condition))),
        phase: status.phase,
        pod_ip: status.pod_ip,
        pod_ips: status.pod_ips,
        ..PodStatus::default()
    });
}

/// A list without room to spare: one made of another keeps that one's memory.
fn tight<T>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut list: Vec<T> = items.collect();
    list.shrink_to_fit();
    list
}

/// Containers count for their named ports only.
fn ports(container: Container) -> Option<Container> {
    let ports: Vec<_> = container.ports?.into_iter().filter(|port| port.name.is_some()).collect();
    let name = container.name;
    (!ports.is_empty()).then(|| Container { name, ports: Some(ports), ..Container::default() })
}

fn condition(condition: PodCondition) -> PodCondition {
    PodCondition { type_: condition.type_, status: condition.status, ..PodCondition::default() }
}

/// What annotations that the mesh reads begin with.
const ANNOTATIONS: [&str; 3] = ["openservicemesh.io/", "oxmesh.io/", "prometheus.io/"];
const SERVICE_NAME: &str = "kubernetes.io/service-name";
