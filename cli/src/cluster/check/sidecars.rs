//! The mesh's namespaces and pods: who has no sidecar, an old one, or one that isn't well.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Container, Namespace, Pod};
use k8s_openapi::jiff::{Timestamp, ToSpan as _};
use kube::{Api, ResourceExt as _};
use serde_json::Value;

use super::super::connect::Cluster;
use super::super::forward;
use super::super::labels::{INJECTION, PROXY_IMAGE, PROXY_UUID, SIDECAR};
use super::super::proxy::ADMIN;
use super::Outcome;
use super::control_plane::{argument, trouble};
use crate::traffic::prometheus;

/// A pod and its namespace.
pub(super) type Member<'a> = (&'a Namespace, Pod);

/// Images that sidecars should have.
pub(super) struct Images(Vec<String>);

impl Images {
    /// As the control plane injects them.
    pub(super) fn of(deployment: &Deployment) -> Self {
        Self(["--proxy-image=", "--envoy-image="].iter().filter_map(|flag| argument(deployment, flag)).collect())
    }
}

/// Namespaces of the mesh, and those that ask for no sidecars.
pub(super) fn namespaces(namespaces: &[Namespace]) -> Outcome {
    if namespaces.is_empty() {
        return Outcome::warning("injection", "namespaces", "no namespace belongs to the mesh")
            .hint("oxmesh namespace add NAME");
    }
    let without: Vec<String> = namespaces
        .iter()
        .filter(|namespace| !wants(namespace.annotations().get(INJECTION)))
        .map(|n| n.name_any())
        .collect();
    let all = namespaces.len();
    if without.is_empty() {
        return Outcome::ok("injection", "namespaces", format!("{all} of the mesh"));
    }
    Outcome::warning(
        "injection",
        "namespaces",
        format!("{} of {all} are watched, but pods get no sidecar: {}", without.len(), some(&without)),
    )
    .hint(format!("oxmesh namespace add {}", without[0]))
}

/// OSM's words for yes.
fn wants(annotation: Option<&String>) -> bool {
    annotation.is_some_and(|value| matches!(value.to_lowercase().as_str(), "enabled" | "yes" | "true"))
}

/// Pods without sidecar that should have one, with an old one, or whose sidecar isn't ready.
pub(super) fn judge(members: &[Member<'_>], images: &Images) -> Vec<Outcome> {
    let live = members.iter().filter(|(_, pod)| runs(pod));
    let (with, without): (Vec<_>, Vec<_>) = live.partition(|(_, pod)| pod.labels().contains_key(PROXY_UUID));
    let missing: Vec<String> = without.iter().filter(|member| should(member)).map(|(_, pod)| full_name(pod)).collect();
    let old: Vec<String> =
        with.iter().filter(|(_, pod)| outdated(pod, images)).map(|(_, pod)| full_name(pod)).collect();
    let ill: Vec<String> = with.iter().filter_map(|(_, pod)| ill(pod)).collect();
    let missing =
        verdict("missing", &missing, Outcome::warning, "pods run without sidecar, outside of the mesh", with.len());
    if with.is_empty() {
        return vec![missing];
    }
    vec![
        missing,
        verdict("outdated", &old, Outcome::warning, "pods have a sidecar of another version", with.len()),
        verdict("ready", &ill, Outcome::error, "pods have a sidecar that isn't ready", with.len()),
    ]
}

fn verdict(
    name: &'static str,
    found: &[String],
    bad: fn(&'static str, &'static str, String) -> Outcome,
    words: &str,
    all: usize,
) -> Outcome {
    let Some(first) = found.first() else {
        let message =
            if all == 0 { "there is no pod in the mesh yet".to_owned() } else { format!("none of {all} pods") };
        return Outcome::ok("sidecars", name, message);
    };
    let namespace = first.split('/').next().unwrap_or_default();
    let hint = if name == "ready" {
        format!("kubectl -n {namespace} logs {} -c {SIDECAR}", first.split(['/', ' ']).nth(1).unwrap_or_default())
    } else {
        format!("kubectl -n {namespace} rollout restart deploy")
    };
    bad("sidecars", name, format!("{} {words}: {}", found.len(), some(found))).hint(hint)
}

fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn serves(pod: &Pod) -> bool {
    runs(pod) && pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

/// True for a pod that the injector would have given a sidecar.
fn should((namespace, pod): &Member<'_>) -> bool {
    if pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true) {
        return false;
    }
    let own = pod.annotations().get(INJECTION);
    if own.is_some() { wants(own) } else { wants(namespace.annotations().get(INJECTION)) }
}

fn sidecar(pod: &Pod) -> Option<&Container> {
    let spec = pod.spec.as_ref()?;
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers.find(|container| container.name == SIDECAR)
}

fn outdated(pod: &Pod, images: &Images) -> bool {
    let image = sidecar(pod).and_then(|container| container.image.as_ref());
    !pod.annotations().contains_key(PROXY_IMAGE) && image.is_some_and(|image| !images.0.contains(image))
}

fn ill(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let mut containers =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let ready = containers.find(|container| container.name == SIDECAR).is_some_and(|container| container.ready);
    (!ready).then(|| trouble(pod).map_or_else(|| full_name(pod), |why| format!("{} ({why})", full_name(pod))))
}

/// Pods that the API server refuses, which is where a broken webhook shows.
pub(super) fn refused(sets: &[ReplicaSet]) -> Outcome {
    let why = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        let failure =
            conditions.iter().find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")?;
        let name = format!("{}/{}", set.namespace().unwrap_or_default(), set.name_any());
        Some(format!("{name}: {}", failure.message.as_deref().unwrap_or("no reason given")))
    };
    let found: Vec<String> = sets.iter().filter_map(why).collect();
    if found.is_empty() {
        return Outcome::ok("injection", "pods", "the API server takes all that are asked for");
    }
    Outcome::error("injection", "pods", format!("can't be made: {}", some(&found)))
        .hint("the reason is the webhook's or the API server's own; the control plane's log has more")
}

/// Certificates that end within a tenth of a day are not being renewed. Asks at most 20 sidecars.
pub(super) async fn certificates(cluster: &Cluster, members: &[Member<'_>]) -> Option<Outcome> {
    let with =
        members.iter().filter(|(_, pod)| runs(pod) && pod.labels().contains_key(PROXY_UUID) && ill(pod).is_none());
    let (mut asked, mut bad) = (0, Vec::new());
    for (namespace, pod) in with.take(SAMPLE) {
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace.name_any());
        asked += 1;
        match forward::get(&pods, &pod.name_any(), ADMIN, "/certs").await {
            Ok((_, page)) => {
                bad.extend(ending(&page, Timestamp::now()).map(|when| format!("{} ({when})", full_name(pod))))
            }
            Err(error) => bad.push(format!("{} ({error:#})", full_name(pod))),
        }
    }
    if asked == 0 {
        return None;
    }
    if bad.is_empty() {
        let message = format!("valid in the {asked} sidecars that were asked");
        return Some(Outcome::ok("sidecars", "certificates", message));
    }
    let message = format!("{} of {asked} sidecars: {}", bad.len(), some(&bad));
    let hint = "is the control plane reached? kubectl logs of the sidecar's container envoy";
    Some(Outcome::error("sidecars", "certificates", message).hint(hint))
}

/// When the first certificate of the page ends, if that is soon or past, or there is none.
fn ending(page: &[u8], now: Timestamp) -> Option<String> {
    let Ok(page) = serde_json::from_slice::<Value>(page) else { return Some("no list of certificates".to_owned()) };
    let all = page["certificates"].as_array().into_iter().flatten();
    let leaves = all.flat_map(|entry| entry["cert_chain"].as_array().into_iter().flatten());
    let ends = leaves.filter_map(|leaf| leaf["expiration_time"].as_str()?.parse::<Timestamp>().ok());
    match ends.min() {
        None => Some("no certificate".to_owned()),
        Some(first) if first < now => Some(format!("expired {first}")),
        Some(first) if first < now + SOON_MINUTES.minutes() => Some(format!("expires {first} and isn't renewed")),
        Some(_) => None,
    }
}

/// Configuration that sidecars refused, as the control plane counts it.
pub(super) async fn nacks(pods: &Api<Pod>, own: &[Pod]) -> Outcome {
    let mut refused = 0.0;
    for pod in own.iter().filter(|pod| serves(pod)) {
        match forward::get(pods, &pod.name_any(), METRICS_PORT, "/metrics").await {
            Ok((_, page)) => refused += count(&String::from_utf8_lossy(&page)),
            Err(error) => {
                return Outcome::warning(
                    "sidecars",
                    "configuration",
                    format!("can't ask the control plane: {error:#}"),
                );
            }
        }
    }
    if refused > 0.0 {
        return Outcome::error(
            "sidecars",
            "configuration",
            format!("sidecars refused {refused} updates since the control plane started"),
        )
        .hint("its log names each refused resource and field");
    }
    Outcome::ok("sidecars", "configuration", "no sidecar refused an update")
}

fn count(page: &str) -> f64 {
    let samples = prometheus::parse(page);
    samples.iter().filter(|sample| sample.name == NACKS).map(|sample| sample.value).sum()
}

fn full_name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// The first few of many.
fn some(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

const SHOWN: usize = 5;
const SAMPLE: usize = 20;
const SOON_MINUTES: i64 = 5;
const METRICS_PORT: u16 = 9091;
const NACKS: &str = "oxmesh_proxy_nack_count";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::State;
    use super::*;

    fn namespace(injection: &Value) -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": "shop", "annotations": {INJECTION: injection}}})).unwrap()
    }

    fn pod(labels: &Value, annotations: &Value, image: &str, ready: bool) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "shop", "labels": labels, "annotations": annotations},
            "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": SIDECAR, "image": image, "restartPolicy": "Always"}]},
            "status": {"phase": "Running", "initContainerStatuses": [
                {"name": SIDECAR, "ready": ready, "image": image, "imageID": "", "restartCount": 0}]},
        }))
        .unwrap()
    }

    fn states(injection: &Value, pod: Pod) -> [State; 3] {
        let namespace = namespace(injection);
        let images = Images(vec!["oxmesh/proxy:1".to_owned(), "envoy:1".to_owned()]);
        let found = judge(&[(&namespace, pod)], &images);
        let state = |name| found.iter().find(|outcome| outcome.name == name).map_or(State::Ok, |outcome| outcome.state);
        ["missing", "outdated", "ready"].map(state)
    }

    #[test]
    fn pods_are_told_apart_by_what_the_injector_would_do() {
        use State::{Error, Ok, Warning};
        let (on, meshed) = (json!("enabled"), json!({PROXY_UUID: "u"}));
        let none = json!({});
        assert_eq!(states(&on, pod(&none, &none, "", true)), [Warning, Ok, Ok]);
        assert_eq!(states(&json!("disabled"), pod(&none, &none, "", true)), [Ok, Ok, Ok]);
        assert_eq!(states(&on, pod(&none, &json!({INJECTION: "no"}), "", true)), [Ok, Ok, Ok]);
        assert_eq!(states(&on, pod(&meshed, &none, "oxmesh/proxy:1", true)), [Ok, Ok, Ok]);
        assert_eq!(states(&on, pod(&meshed, &none, "envoy:1", true)), [Ok, Ok, Ok]);
        assert_eq!(states(&on, pod(&meshed, &none, "oxmesh/proxy:0", true)), [Ok, Warning, Ok]);
        assert_eq!(states(&on, pod(&meshed, &json!({PROXY_IMAGE: "x"}), "x", true)), [Ok, Ok, Ok]);
        assert_eq!(states(&on, pod(&meshed, &none, "oxmesh/proxy:1", false)), [Ok, Ok, Error]);
    }

    #[test]
    fn finished_and_host_network_pods_need_no_sidecar() {
        let mut done = pod(&json!({}), &json!({}), "", true);
        done.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
        assert_eq!(states(&json!("enabled"), done)[0], State::Ok);
        let mut host = pod(&json!({}), &json!({}), "", true);
        host.spec.as_mut().unwrap().host_network = Some(true);
        assert_eq!(states(&json!("enabled"), host)[0], State::Ok);
    }

    #[test]
    fn namespaces_without_injection_are_told() {
        assert_eq!(namespaces(&[]).state, State::Warning);
        assert_eq!(namespaces(&[namespace(&json!("enabled"))]).state, State::Ok);
        let watched = namespaces(&[namespace(&json!("disabled"))]);
        assert!(watched.state == State::Warning && watched.message.contains("shop"), "{watched:?}");
    }

    #[test]
    fn pods_that_can_not_be_made_are_told_with_the_reason() {
        let set = |status: &str| -> ReplicaSet {
            serde_json::from_value(
                json!({"metadata": {"name": "web-1", "namespace": "shop"}, "status": {"replicas": 0, "conditions": [
                {"type": "ReplicaFailure", "status": status, "message": "failed calling webhook"}]}}),
            )
            .unwrap()
        };
        assert_eq!(refused(&[set("False")]).state, State::Ok);
        let found = refused(&[set("True")]);
        assert_eq!(found.state, State::Error);
        assert_eq!(found.message, "can't be made: shop/web-1: failed calling webhook");
    }

    #[test]
    fn certificates_that_end_soon_or_are_not_there_are_told() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let page = |when: &str| json!({"certificates": [{"cert_chain": [{"expiration_time": when}]}]}).to_string();
        assert_eq!(ending(page("2026-01-01T12:00:00Z").as_bytes(), now), None);
        assert!(ending(page("2026-01-01T00:02:00Z").as_bytes(), now).unwrap().contains("isn't renewed"));
        assert!(ending(page("2025-12-31T00:00:00Z").as_bytes(), now).unwrap().contains("expired"));
        assert_eq!(ending(b"{}", now).unwrap(), "no certificate");
    }

    #[test]
    fn refused_updates_are_summed_over_kinds() {
        let page = "oxmesh_proxy_nack_count{type=\"CDS\"} 2\noxmesh_proxy_nack_count{type=\"LDS\"} 1\nosm_other 7\n";
        assert!((count(page) - 3.0).abs() < f64::EPSILON);
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..7).map(|n| n.to_string()).collect();
        assert_eq!(some(&names), "0, 1, 2, 3, 4 and 2 more");
    }
}
