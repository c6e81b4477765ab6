//! Whether a pod gets a sidecar: OSM's table. Pure.

use k8s_openapi::api::core::v1::{Namespace, Pod};

use super::annotations::{Annotations, INJECTION, of_namespace, of_pod};
use super::{Refusal, Settings};

/// Label of a namespace that belongs to a mesh; its value is the mesh's name.
pub const MONITORED_BY: &str = "openservicemesh.io/monitored-by";
/// Label of a namespace or a pod that a mesh leaves alone, whatever the value.
pub const IGNORE: &str = "openservicemesh.io/ignore";

/// Whether a pod gets a sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It does.
    Inject,
    /// It does not.
    Leave(Why),
}

/// Why a pod gets no sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Kubernetes' own namespace, or the control plane's.
    SystemNamespace,
    /// The namespace is not in this mesh.
    NotMonitored,
    /// The namespace or the pod has the label `openservicemesh.io/ignore`.
    Ignored,
    /// The pod shares the node's network.
    HostNetwork,
    /// Its annotation says so, or the namespace's.
    Disabled,
    /// Neither has the annotation.
    NotAsked,
}

impl Why {
    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::SystemNamespace => "its namespace is Kubernetes' own or the control plane's",
            Self::NotMonitored => "its namespace is not in this mesh",
            Self::Ignored => "it has, or its namespace has, the label openservicemesh.io/ignore",
            Self::HostNetwork => "it shares the node's network (hostNetwork)",
            Self::Disabled => "openservicemesh.io/sidecar-injection disables it",
            Self::NotAsked => "neither it nor its namespace has the annotation openservicemesh.io/sidecar-injection",
        }
    }
}

/// Decides. The pod's annotation wins over the namespace's.
///
/// # Errors
/// [`Refusal::Annotation`] for a value that says neither yes nor no: guessing could let traffic pass unprotected.
pub fn decide(pod: &Pod, namespace: &Namespace, settings: &Settings) -> Result<Decision, Refusal> {
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    if name == settings.osm_namespace || SYSTEM.contains(&name) {
        return Ok(Decision::Leave(Why::SystemNamespace));
    }
    let label = |key| namespace.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    if label(MONITORED_BY) != Some(&settings.mesh_name) {
        return Ok(Decision::Leave(Why::NotMonitored));
    }
    if label(IGNORE).is_some() || pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(IGNORE)) {
        return Ok(Decision::Leave(Why::Ignored));
    }
    if pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
        return Ok(Decision::Leave(Why::HostNetwork));
    }
    let asked = match answer(&of_pod(pod))? {
        Some(asked) => Some(asked),
        None => answer(&of_namespace(namespace))?,
    };
    Ok(match asked {
        Some(true) => Decision::Inject,
        Some(false) => Decision::Leave(Why::Disabled),
        None => Decision::Leave(Why::NotAsked),
    })
}

fn answer(annotations: &Annotations<'_>) -> Result<Option<bool>, Refusal> {
    let Some(text) = annotations.get(INJECTION) else { return Ok(None) };
    match text.trim().to_ascii_lowercase().as_str() {
        "enabled" | "yes" | "true" => Ok(Some(true)),
        "disabled" | "no" | "false" => Ok(Some(false)),
        _ => Err(annotations.refuse(INJECTION, text, "is neither enabled, yes, true nor disabled, no, false")),
    }
}

const SYSTEM: [&str; 2] = ["kube-system", "kube-public"];

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::inject::patch::tests::settings;

    fn decide_for(pod: Value, namespace: Value) -> Result<Decision, String> {
        let (pod, namespace) = (serde_json::from_value(pod).unwrap(), serde_json::from_value(namespace).unwrap());
        decide(&pod, &namespace, &settings()).map_err(|refusal| refusal.to_string())
    }

    fn shop(annotation: Option<&str>) -> Value {
        let mut namespace = json!({"metadata": {"name": "shop", "labels": {MONITORED_BY: "osm"}, "annotations": {}}});
        if let Some(value) = annotation {
            namespace["metadata"]["annotations"][INJECTION] = json!(value);
        }
        namespace
    }

    #[test]
    fn the_pods_annotation_wins_over_the_namespaces() {
        let (yes, no) = (Ok(Decision::Inject), Ok(Decision::Leave(Why::Disabled)));
        let not_asked = Ok(Decision::Leave(Why::NotAsked));
        for (pod, namespace, expected) in [
            (None, None, &not_asked),
            (None, Some("enabled"), &yes),
            (None, Some("YES"), &yes),
            (None, Some("no"), &no),
            (Some("true"), None, &yes),
            (Some("true"), Some("disabled"), &yes),
            (Some("false"), Some("enabled"), &no),
            (Some("disabled"), None, &no),
        ] {
            let mut object = json!({"metadata": {"annotations": {}}});
            if let Some(value) = pod {
                object["metadata"]["annotations"][INJECTION] = json!(value);
            }
            assert_eq!(&decide_for(object, shop(namespace)), expected, "{pod:?} {namespace:?}");
        }
    }

    #[test]
    fn a_value_that_says_neither_yes_nor_no_is_refused_with_its_place() {
        let pod = json!({"metadata": {"annotations": {INJECTION: "maybe\n"}}});
        let words = decide_for(pod, shop(None)).unwrap_err();
        assert!(words.contains(INJECTION) && words.contains("of the pod") && words.contains(r#""maybe\n""#), "{words}");
        assert!(decide_for(json!({}), shop(Some(""))).unwrap_err().contains("of the namespace"));
    }

    #[test]
    fn some_pods_never_get_a_sidecar() {
        let asks = json!({INJECTION: "enabled"});
        let pod = json!({"metadata": {"annotations": asks}});
        for name in ["kube-system", "kube-public", "osm-system"] {
            let namespace = json!({"metadata": {"name": name, "labels": {MONITORED_BY: "osm"}}});
            assert_eq!(decide_for(pod.clone(), namespace), Ok(Decision::Leave(Why::SystemNamespace)));
        }
        for labels in [json!({}), json!({MONITORED_BY: "another"})] {
            let namespace = json!({"metadata": {"name": "shop", "labels": labels}});
            assert_eq!(decide_for(pod.clone(), namespace), Ok(Decision::Leave(Why::NotMonitored)));
        }
        let ignored = json!({"metadata": {"name": "shop", "labels": {MONITORED_BY: "osm", IGNORE: "true"}}});
        assert_eq!(decide_for(pod.clone(), ignored), Ok(Decision::Leave(Why::Ignored)));
        let mut alone = pod.clone();
        alone["metadata"]["labels"] = json!({IGNORE: ""});
        assert_eq!(decide_for(alone, shop(None)), Ok(Decision::Leave(Why::Ignored)));
        let mut host = pod;
        host["spec"] = json!({"containers": [], "hostNetwork": true});
        assert_eq!(decide_for(host, shop(None)), Ok(Decision::Leave(Why::HostNetwork)));
    }
}
