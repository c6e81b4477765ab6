//! What a pod must not have: anything that is the sidecar's own. Pure.
//!
//! The sidecar is told from the application by its user, its ports and its names. A pod that borrows one of them could
//! pass the sidecar by, or break it, so it is refused rather than changed.

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, PodSpec, SecurityContext};

use super::is_our_port;
use super::refusal::quoted;
use super::{BOOTSTRAP_VOLUME, CONTAINERS, IDENTITY_VOLUME, INIT, PROXY_UUID_LABEL, Refusal, SIDECAR, UID, VOLUMES};

/// Whether a pod has been here before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marks {
    /// It has not.
    None,
    /// It has, and got this uuid.
    Ours(String),
}

/// Looks for what injection leaves behind.
///
/// # Errors
/// [`Refusal::Field`] if there is some of it, but not all: half an injection, or another mesh's.
pub fn marks(pod: &Pod) -> Result<Marks, Refusal> {
    let uuid = pod.metadata.labels.as_ref().and_then(|labels| labels.get(PROXY_UUID_LABEL));
    let Some(spec) = &pod.spec else { return none_but(uuid) };
    let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let (init, sidecar) = (all().find(|c| c.name == INIT), all().find(|c| c.name == SIDECAR));
    match (uuid, init, sidecar) {
        (None, None, None) => Ok(Marks::None),
        (Some(uuid), Some(init), Some(sidecar)) if is_uuid(uuid) && is_init(init) && is_sidecar(sidecar, spec) => {
            Ok(Marks::Ours(uuid.clone()))
        }
        (None, Some(container), _) | (None, _, Some(container)) => Err(Refusal::field(
            format!("spec.containers[{}]", container.name),
            "this name is the mesh's own, and the container was not made by this mesh (give it another name, or annotate \
             the pod openservicemesh.io/sidecar-injection: disabled)",
        )),
        _ => none_but(uuid),
    }
}

fn none_but(uuid: Option<&String>) -> Result<Marks, Refusal> {
    match uuid {
        None => Ok(Marks::None),
        Some(uuid) => Err(Refusal::field(
            format!("metadata.labels[{PROXY_UUID_LABEL}]"),
            format!(
                "{} is there, but the pod is not as this mesh makes it (leave out the label, and the containers {INIT} and \
                 {SIDECAR}: they are put in when the pod is created)",
                quoted(uuid)
            ),
        )),
    }
}

/// Whether the text is a uuid in its usual form.
#[must_use]
pub fn is_uuid(text: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| if matches!(i, 8 | 13 | 18 | 23) { b == b'-' } else { hex(b) })
}

fn is_init(container: &Container) -> bool {
    let context = container.security_context.as_ref();
    let added = context.and_then(|c| c.capabilities.as_ref()).and_then(|c| c.add.as_deref());
    context.is_some_and(|c| c.run_as_user == Some(0)) && added == Some(&["NET_ADMIN".to_owned()])
}

fn is_sidecar(container: &Container, spec: &PodSpec) -> bool {
    let own_user = container.security_context.as_ref().is_some_and(|c| c.run_as_user == Some(UID));
    let volumes = || spec.volumes.iter().flatten();
    own_user && volumes().any(|v| v.name == BOOTSTRAP_VOLUME || v.name == IDENTITY_VOLUME)
}

/// Refuses a pod that has no sidecar yet but something of the sidecar's own.
///
/// # Errors
/// [`Refusal::Field`] names it.
pub fn check(pod: &Pod) -> Result<(), Refusal> {
    let Some(spec) = &pod.spec else { return Err(Refusal::field("spec", "the pod has none")) };
    if spec.containers.is_empty() {
        return Err(Refusal::field("spec.containers", "the pod has none"));
    }
    check_linux(spec)?;
    if let Some(context) = &spec.security_context {
        check_pod_user(context)?;
    }
    for volume in spec.volumes.iter().flatten() {
        if VOLUMES.contains(&volume.name.as_str()) {
            return Err(Refusal::field(
                format!("spec.volumes[{}]", volume.name),
                "this name is the mesh's own (give the volume another name)",
            ));
        }
    }
    let init = spec.init_containers.iter().flatten().map(|c| ("initContainers", c));
    init.chain(spec.containers.iter().map(|c| ("containers", c))).try_for_each(|(list, c)| check_container(list, c))
}

fn check_linux(spec: &PodSpec) -> Result<(), Refusal> {
    let os = spec.os.as_ref().map(|os| os.name.as_str());
    let selected = spec.node_selector.as_ref().and_then(|s| s.get("kubernetes.io/os")).map(String::as_str);
    match (os, selected) {
        (Some("windows"), _) => Err(Refusal::field("spec.os.name", ONLY_LINUX)),
        (_, Some("windows")) => Err(Refusal::field("spec.nodeSelector[kubernetes.io/os]", ONLY_LINUX)),
        _ => Ok(()),
    }
}

fn check_pod_user(context: &PodSecurityContext) -> Result<(), Refusal> {
    let fields = [
        ("runAsUser", context.run_as_user == Some(UID)),
        ("runAsGroup", context.run_as_group == Some(UID)),
        ("fsGroup", context.fs_group == Some(UID)),
        ("supplementalGroups", context.supplemental_groups.iter().flatten().any(|group| *group == UID)),
    ];
    refuse_user("spec.securityContext", &fields)
}

fn check_container(list: &str, container: &Container) -> Result<(), Refusal> {
    let path = format!("spec.{list}[{}]", container.name);
    if CONTAINERS.contains(&container.name.as_str()) {
        return Err(Refusal::field(path, "this name is the mesh's own (give the container another name)"));
    }
    if let Some(SecurityContext { run_as_user, run_as_group, .. }) = &container.security_context {
        let fields = [("runAsUser", *run_as_user == Some(UID)), ("runAsGroup", *run_as_group == Some(UID))];
        refuse_user(&format!("{path}.securityContext"), &fields)?;
    }
    let ports = container.ports.iter().flatten().flat_map(|port| [Some(port.container_port), port.host_port]);
    match ports.flatten().find(|port| is_our_port(i64::from(*port))) {
        Some(port) => Err(Refusal::field(
            format!("{path}.ports"),
            format!("port {port} is the sidecar's own (15000, 15001, 15003, 15010 and 15901-15919 are)"),
        )),
        None => Ok(()),
    }
}

fn refuse_user(path: &str, fields: &[(&str, bool)]) -> Result<(), Refusal> {
    match fields.iter().find(|(_, borrowed)| *borrowed) {
        Some((field, _)) => Err(Refusal::field(
            format!("{path}.{field}"),
            "1500 is the sidecar's own, and what runs so would pass the sidecar by (choose another)",
        )),
        None => Ok(()),
    }
}

const ONLY_LINUX: &str =
    "the sidecar runs on Linux alone (annotate the pod openservicemesh.io/sidecar-injection: disabled)";

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value, labels: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"labels": labels}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_pod_that_borrows_what_is_the_sidecars_is_refused_with_the_field() {
        let app = json!([{"name": "app"}]);
        for (spec, path) in [
            (json!({"containers": []}), "spec.containers"),
            (json!({"containers": [{"name": "osm-healthcheck"}]}), "spec.containers[osm-healthcheck]"),
            (json!({"containers": app, "volumes": [{"name": "oxmesh-token"}]}), "spec.volumes[oxmesh-token]"),
            (json!({"containers": app, "securityContext": {"runAsUser": 1500}}), "spec.securityContext.runAsUser"),
            (json!({"containers": app, "securityContext": {"fsGroup": 1500}}), "spec.securityContext.fsGroup"),
            (
                json!({"containers": app, "securityContext": {"supplementalGroups": [1, 1500]}}),
                "spec.securityContext.supplementalGroups",
            ),
            (
                json!({"containers": [{"name": "app", "securityContext": {"runAsUser": 1500}}]}),
                "spec.containers[app].securityContext.runAsUser",
            ),
            (
                json!({"containers": app, "initContainers": [{"name": "i", "securityContext": {"runAsGroup": 1500}}]}),
                "spec.initContainers[i].securityContext.runAsGroup",
            ),
            (
                json!({"containers": [{"name": "app", "ports": [{"containerPort": 15003}]}]}),
                "spec.containers[app].ports",
            ),
            (
                json!({"containers": [{"name": "app", "ports": [{"containerPort": 80, "hostPort": 15901}]}]}),
                "spec.containers[app].ports",
            ),
            (json!({"containers": app, "os": {"name": "windows"}}), "spec.os.name"),
        ] {
            let words = check(&pod(spec, json!({}))).unwrap_err().to_string();
            assert!(words.starts_with(&format!("{path}: ")), "{path}: {words}");
        }
    }

    #[test]
    fn half_an_injection_and_a_foreign_one_are_refused() {
        let app = json!([{"name": "app"}]);
        let foreign = json!({"containers": [{"name": "app"}, {"name": "envoy"}]});
        for (spec, labels, part) in [
            (foreign.clone(), json!({}), "spec.containers[envoy]: this name is the mesh's own"),
            (foreign, json!({PROXY_UUID_LABEL: "8281f730-d0ba-475c-8fa8-4e0dae2b5051"}), "not as this mesh makes it"),
            (json!({"containers": app}), json!({PROXY_UUID_LABEL: "x\ny"}), r#""x\ny" is there"#),
            (json!({"containers": app, "initContainers": [{"name": "osm-init"}]}), json!({}), "osm-init"),
        ] {
            let words = marks(&pod(spec, labels)).unwrap_err().to_string();
            assert!(words.contains(part), "{words}");
        }
        assert_eq!(marks(&pod(json!({"containers": app}), json!({}))), Ok(Marks::None));
    }
}
