//! The control plane's own objects. Pure.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt as _;
use serde_json::Value;

use super::super::labels::{CONTROLLER, VERSION};
use super::Outcome;

const CATEGORY: &str = "control plane";

/// The same version as this program.
pub(super) fn version(deployment: &Deployment) -> Outcome {
    let own = env!("CARGO_PKG_VERSION");
    let found = deployment.labels().get(VERSION).map_or("unknown", String::as_str);
    if found == own {
        return Outcome::ok(CATEGORY, "version", found);
    }
    Outcome::warning(CATEGORY, "version", format!("the control plane is {found}, this program {own}"))
        .hint("use the program of the same release")
}

/// Enough replicas that serve.
pub(super) fn replicas(deployment: &Deployment) -> Outcome {
    let home = deployment.namespace().unwrap_or_default();
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let message = format!("{ready} of {wanted} replicas are ready");
    let hint = format!("kubectl -n {home} describe pods -l app={CONTROLLER}");
    match ready {
        0 => Outcome::error(CATEGORY, "replicas", message).hint(hint),
        _ if ready < wanted => Outcome::warning(CATEGORY, "replicas", message).hint(hint),
        _ => Outcome::ok(CATEGORY, "replicas", message),
    }
}

/// What keeps pods of the control plane from serving.
pub(super) fn troubles(pods: &[Pod]) -> Vec<Outcome> {
    let found = pods.iter().filter_map(|pod| trouble(pod).map(|why| format!("pod {}: {why}", pod.name_any())));
    found.map(|message| Outcome::error(CATEGORY, "pods", message)).collect()
}

/// Why a pod doesn't run, if the kubelet says so.
pub(crate) fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        return Some(format!("not scheduled: {}", condition.message.clone().unwrap_or_default()));
    }
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    containers.filter(|container| !container.ready).find_map(|container| {
        let state = container.state.as_ref()?;
        let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        let waiting = state.waiting.as_ref().filter(|waiting| {
            !matches!(waiting.reason.as_deref(), None | Some("ContainerCreating" | "PodInitializing"))
        });
        if let Some(waiting) = waiting {
            let mut why = waiting.reason.clone().unwrap_or_default();
            if let Some(last) = last {
                why = format!("{why}, exit status {}", last.exit_code);
            } else if let Some(message) = &waiting.message {
                why = format!("{why}: {message}");
            }
            return Some(format!("{}: {why}", container.name));
        }
        let ended = state.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
        Some(format!("{}: ended with status {}", container.name, ended.exit_code))
    })
}

/// A Service that leads to a ready pod.
pub(super) fn endpoints(service: &str, slices: &[EndpointSlice]) -> Outcome {
    let ready = |slice: &EndpointSlice| {
        let serving = slice
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false)));
        serving.map(|endpoint| endpoint.addresses.len()).sum::<usize>()
    };
    match slices.iter().map(ready).sum::<usize>() {
        0 => Outcome::error(CATEGORY, "services", format!("Service {service} has no endpoint")).hint(match service {
            CONTROLLER => "running pods keep their configuration, new ones get none; see the replicas above",
            _ => "no pod can be made in the mesh's namespaces; see the replicas above",
        }),
        count => Outcome::ok(CATEGORY, "services", format!("{service} leads to {count} ready addresses")),
    }
}

/// What the settings allow, in one line; what the controller refused of them.
pub(super) fn settings(object: &Value) -> Outcome {
    let flag = |name: &str, default: bool| object["spec"]["traffic"][name].as_bool().unwrap_or(default);
    let who = if flag("enablePermissiveTrafficPolicyMode", true) {
        "everybody in the mesh may call everybody"
    } else {
        "only what policies allow may be called"
    };
    let out = if flag("enableEgress", true) { "everything" } else { "only what Egress policies allow" };
    let message = format!("{who}; {out} may leave the mesh");
    let refused = object["status"]["currentStatus"].as_str().filter(|status| *status == "error");
    match refused {
        Some(_) => {
            let reason = object["status"]["reason"].as_str().unwrap_or("see its status");
            Outcome::error(CATEGORY, "settings", format!("MeshConfig is refused: {reason}"))
        }
        None => Outcome::ok(CATEGORY, "settings", message),
    }
}

/// The value of the container's argument that begins with `flag`.
pub(super) fn argument(deployment: &Deployment, flag: &str) -> Option<String> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    let container = pod.containers.iter().find(|container| container.name == CONTROLLER)?;
    container.args.iter().flatten().find_map(|argument| argument.strip_prefix(flag)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::State;
    use super::*;

    fn deployment(replicas: i32, ready: i32) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": CONTROLLER, "namespace": "osm-system", "labels": {VERSION: env!("CARGO_PKG_VERSION")}},
            "spec": {"replicas": replicas, "selector": {}, "template": {"spec": {"containers": [
                {"name": CONTROLLER, "args": ["--kubernetes", "--ca-secret=mine"]}]}}},
            "status": {"readyReplicas": ready},
        }))
        .unwrap()
    }

    #[test]
    fn a_control_plane_without_replicas_is_broken_and_with_too_few_weak() {
        for (replicas_, ready, state) in [(1, 0, State::Error), (2, 1, State::Warning), (2, 2, State::Ok)] {
            assert_eq!(replicas(&deployment(replicas_, ready)).state, state, "{ready} of {replicas_}");
        }
        assert_eq!(version(&deployment(1, 1)).state, State::Ok);
        assert_eq!(argument(&deployment(1, 1), "--ca-secret=").as_deref(), Some("mine"));
    }

    #[test]
    fn a_pod_that_does_not_run_says_why() {
        let pod = |status: Value| -> Pod { serde_json::from_value(json!({"status": status})).unwrap() };
        let container = |state: Value| json!({"name": "c", "ready": false, "image": "", "imageID": "", "restartCount": 0, "state": state});
        let pull = json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}});
        let why = trouble(&pod(json!({"containerStatuses": [container(pull)]}))).unwrap();
        assert_eq!(why, "c: ImagePullBackOff: no such image");
        let pending =
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "insufficient cpu"}]});
        assert_eq!(trouble(&pod(pending)).unwrap(), "not scheduled: insufficient cpu");
        let starting = json!({"containerStatuses": [container(json!({"waiting": {"reason": "ContainerCreating"}}))]});
        assert_eq!(trouble(&pod(starting)), None);
    }

    #[test]
    fn a_service_needs_a_ready_endpoint() {
        let slice = |ready: bool| -> EndpointSlice {
            serde_json::from_value(json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]}))
                .unwrap()
        };
        assert_eq!(endpoints(CONTROLLER, &[]).state, State::Error);
        assert_eq!(endpoints(CONTROLLER, &[slice(false)]).state, State::Error);
        assert_eq!(endpoints(CONTROLLER, &[slice(true)]).state, State::Ok);
    }

    #[test]
    fn settings_are_told_in_words() {
        assert!(settings(&json!({})).message.starts_with("everybody"));
        let strict = json!({"spec": {"traffic": {"enablePermissiveTrafficPolicyMode": false, "enableEgress": false}}});
        assert!(settings(&strict).message.contains("only what policies allow"));
    }
}
