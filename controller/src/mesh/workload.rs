//! Workloads: pods that have, or may get, a sidecar.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::api::Key;
use crate::api::core::Pod;
use crate::identity::ServiceIdentity;

/// Label that ties a pod to its sidecar's certificate.
pub const PROXY_UUID_LABEL: &str = "osm-proxy-uuid";

/// A pod, as far as the mesh cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The pod's namespace and name.
    pub pod: Key,
    /// The value of the label `osm-proxy-uuid`: set if the pod has a sidecar.
    pub uuid: Option<String>,
    /// The pod's service account.
    pub identity: ServiceIdentity,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// The pod's addresses, the main one first; empty while it has none.
    pub ips: Vec<IpAddr>,
    /// Whether the pod takes requests.
    pub ready: bool,
    /// Name by which a headless service calls this pod, and that service's name.
    pub host: Option<(String, String)>,
    /// Ports that have a name.
    pub named_ports: BTreeMap<String, u16>,
    /// Kind of what runs the pod, such as `Deployment`; `Pod` if nothing does.
    pub owner_kind: String,
    /// Name of what runs the pod.
    pub owner_name: String,
    /// Whether the pod asks to be scraped by Prometheus (annotation `prometheus.io/scrape: "true"`).
    pub scraped: bool,
}

impl Workload {
    /// Reads a pod. Pods that have ended, or share the node's network, are no workloads.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let status = pod.status.as_ref();
        let phase = status.and_then(|s| s.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) || spec.host_network == Some(true) {
            return None;
        }
        let key = Key::of(&pod.metadata);
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let account = spec.service_account_name.as_deref().filter(|a| !a.is_empty()).unwrap_or("default");
        let ips = pod_ips(pod);
        let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let not_ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status != "True");
        let ready = !ips.is_empty() && !not_ready && pod.metadata.deletion_timestamp.is_none();
        let named_ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            Some((port.name.clone()?, number))
        });
        let (owner_kind, owner_name) = owner(pod).unwrap_or_else(|| ("Pod".to_owned(), key.name.clone()));
        let annotations = pod.metadata.annotations.as_ref();
        Some(Self {
            uuid: labels.get(PROXY_UUID_LABEL).cloned(),
            identity: ServiceIdentity::new(&key.namespace, account),
            ips,
            ready,
            host: spec.hostname.clone().zip(spec.subdomain.clone()),
            named_ports: named_ports.collect(),
            owner_kind,
            owner_name,
            scraped: annotations.and_then(|a| a.get("prometheus.io/scrape")).is_some_and(|v| v == "true"),
            labels,
            pod: key,
        })
    }

    /// Whether the pod's labels have all that `selector` asks for. An empty selector takes no pod.
    #[must_use]
    pub fn is_selected(&self, selector: &BTreeMap<String, String>) -> bool {
        !selector.is_empty() && selector.iter().all(|(key, value)| self.labels.get(key) == Some(value))
    }
}

fn pod_ips(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = pod.status.as_ref() else { return Vec::new() };
    let list = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut ips: Vec<IpAddr> = Vec::new();
    for ip in status.pod_ip.as_deref().into_iter().chain(list).filter_map(|ip| ip.parse().ok()) {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    ips
}

/// Kind and name of what runs the pod, if anything does. A replica set named after its pod template's hash stands for a
/// deployment.
pub(crate) fn owner(pod: &Pod) -> Option<(String, String)> {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let owner = owners.iter().find(|o| o.controller == Some(true)).or(owners.first())?;
    if owner.kind == "ReplicaSet" {
        let hash = pod.metadata.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
        let name = hash.and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-'));
        if let Some(name) = name {
            return Some(("Deployment".to_owned(), name.to_owned()));
        }
    }
    Some((owner.kind.clone(), owner.name.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn workload(pod: serde_json::Value) -> Option<Workload> {
        Workload::of(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_of_a_replica_set_belongs_to_its_deployment() {
        let pod = json!({
            "metadata": {"name": "echo-74b8-jgjv8", "namespace": "apps",
                "labels": {"osm-proxy-uuid": "u", "pod-template-hash": "74b8"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "echo-74b8", "uid": "1", "controller": true}]},
            "spec": {"serviceAccountName": "echo", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        });
        let w = workload(pod).unwrap();
        assert_eq!((w.owner_kind.as_str(), w.owner_name.as_str()), ("Deployment", "echo"));
        assert_eq!(w.ips, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(w.uuid.as_deref(), Some("u"));
        assert_eq!(w.named_ports["web"], 8080);
        assert!(w.ready);
    }

    #[test]
    fn a_pod_without_account_runs_as_default_and_an_ended_or_host_network_pod_is_no_workload() {
        let pod = |extra: serde_json::Value, phase: &str| {
            let mut spec = json!({"containers": []});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            json!({"metadata": {"name": "a", "namespace": "b"}, "spec": spec, "status": {"phase": phase}})
        };
        assert_eq!(workload(pod(json!({}), "Running")).unwrap().identity, ServiceIdentity::new("b", "default"));
        assert_eq!(workload(pod(json!({}), "Succeeded")), None);
        assert_eq!(workload(pod(json!({"hostNetwork": true}), "Running")), None);
    }

    #[test]
    fn a_pod_that_is_not_ready_or_is_being_deleted_takes_no_requests() {
        let pod = |metadata: serde_json::Value, ready: &str| {
            let mut all = json!({"name": "a", "namespace": "b"});
            all.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
            json!({"metadata": all, "spec": {"containers": []},
                "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": ready}]}})
        };
        assert!(workload(pod(json!({}), "True")).unwrap().ready);
        assert!(!workload(pod(json!({}), "False")).unwrap().ready);
        assert!(!workload(pod(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), "True")).unwrap().ready);
    }
}
