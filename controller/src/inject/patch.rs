//! From a pod to the same pod with its sidecar, as a JSON patch. Pure.
//!
//! The change is made on the typed pod and then carried over to the pod as it came, so that fields which this program's
//! Kubernetes types don't know stay where they are: lists of named things are matched by name, everything that the
//! change doesn't touch is the original.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value};

use super::annotations::{METRICS, of_namespace, of_pod};
use super::refusal::quoted;
use super::rewrite::Rewritten;
use super::{Injection, PROXY_UUID_LABEL, Refusal, Request, Settings, containers, exclusions, rewrite};
use crate::identity::ServiceIdentity;

/// Puts the sidecar in.
///
/// # Errors
/// [`Refusal`] for an annotation, a MeshConfig value or a probe that can't be honoured.
pub(super) fn build(
    raw: &Value,
    before: Pod,
    request: &Request<'_>,
    settings: &Settings,
) -> Result<Injection, Refusal> {
    let mut after = before.clone();
    let namespace = request.namespace.metadata.name.as_deref().unwrap_or_default();
    let spec = after.spec.as_mut().ok_or_else(|| Refusal::field("spec", "the pod has none"))?;
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    let identity = ServiceIdentity::new(namespace, account);
    if identity.reads_as_sidecar() {
        let words = format!(
            "{} reads as another's sidecar in a certificate's name (choose a name whose second part isn't `sidecar`)",
            quoted(account)
        );
        return Err(Refusal::field("spec.serviceAccountName", words));
    }
    let excluded = exclusions::merge(request.mesh_config.map(|spec| &spec.traffic), &of_pod(&before))?;
    let choice = containers::choose(&before, request, settings)?;
    let warnings = rewrite::unreachable_hooks(spec, &excluded.inbound_ports);
    let rewritten = rewrite::probes(spec)?;

    let init = containers::init(&choice, &excluded, &rewritten);
    let sidecar = containers::sidecar(&choice, &identity, &rewritten, request, settings);
    let healthcheck = containers::healthcheck(&choice, &rewritten, settings);
    let inits = spec.init_containers.get_or_insert_default();
    if settings.native_sidecars {
        let native = std::iter::once(sidecar).chain(healthcheck).map(containers::native);
        inits.splice(0..0, std::iter::once(init).chain(native));
    } else {
        // The application's init containers run before the redirection: behind it they would have no network.
        inits.push(init);
        let grace = spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE);
        let first_of_app = spec.containers.first().map(|container| container.name.clone());
        spec.containers.splice(0..0, std::iter::once(containers::first(sidecar, &choice, grace)).chain(healthcheck));
        let annotations = after.metadata.annotations.get_or_insert_default();
        if let Some(name) = first_of_app {
            annotations.entry(DEFAULT_CONTAINER.to_owned()).or_insert(name);
        }
    }
    spec.volumes.get_or_insert_default().extend(containers::volumes(choice.data_plane, request.uuid));
    after.metadata.labels.get_or_insert_default().insert(PROXY_UUID_LABEL.to_owned(), request.uuid.to_owned());
    if of_namespace(request.namespace).get(METRICS) == Some("enabled") {
        scrape(&mut after);
    }

    let pod = carry_over(raw, &before, &after)?;
    let Rewritten { probes, .. } = rewritten;
    Ok(Injection { patch: json_patch::diff(raw, &pod), pod, data_plane: choice.data_plane, identity, probes, warnings })
}

/// Tells Prometheus where the sidecar's metrics are, unless the application has told it something already.
fn scrape(pod: &mut Pod) {
    let annotations = pod.metadata.annotations.get_or_insert_default();
    if annotations.keys().any(|name| name.starts_with("prometheus.io/")) {
        return;
    }
    for (name, value) in [("scrape", "true"), ("port", "15010"), ("path", "/stats/prometheus")] {
        annotations.insert(format!("prometheus.io/{name}"), value.to_owned());
    }
}

fn carry_over(raw: &Value, before: &Pod, after: &Pod) -> Result<Value, Refusal> {
    let value = |pod: &Pod| serde_json::to_value(pod).map_err(|error| Refusal::Malformed(error.to_string()));
    Ok(overlay(raw, &value(before)?, &value(after)?))
}

/// `raw` with the change from `before` to `after`, where `before` is what is known of `raw`.
fn overlay(raw: &Value, before: &Value, after: &Value) -> Value {
    if before == after {
        return raw.clone();
    }
    match (raw, before, after) {
        (Value::Object(raw), Value::Object(before), Value::Object(after)) => overlay_object(raw, before, after),
        (Value::Array(raw), Value::Array(before), Value::Array(after))
            if raw.len() == before.len() && after.iter().all(|item| name(item).is_some()) =>
        {
            let kept = |item: &Value| {
                let at = before.iter().position(|known| name(known) == name(item))?;
                Some(overlay(&raw[at], &before[at], item))
            };
            Value::Array(after.iter().map(|item| kept(item).unwrap_or_else(|| item.clone())).collect())
        }
        _ => after.clone(),
    }
}

fn overlay_object(raw: &Map<String, Value>, before: &Map<String, Value>, after: &Map<String, Value>) -> Value {
    let mut result = raw.clone();
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        result.remove(key);
    }
    for (key, value) in after {
        match (raw.get(key), before.get(key)) {
            // The typed pod has defaults of its own, such as an empty list, for what isn't there.
            (_, Some(known)) if known == value => {}
            (Some(raw), Some(known)) => {
                result.insert(key.clone(), overlay(raw, known, value));
            }
            _ => {
                result.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(result)
}

fn name(item: &Value) -> Option<&str> {
    item.get("name").and_then(Value::as_str)
}

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// Kubernetes' own default, in seconds.
const DEFAULT_GRACE: i64 = 30;

#[cfg(test)]
#[path = "tests.rs"]
pub(super) mod tests;
