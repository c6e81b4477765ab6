//! Keeps the webhook configuration's `caBundle` right: without it the API server trusts no answer of ours.
//!
//! The object is the chart's; only this one field is ours. It is written by a JSON patch that names the version of the
//! object, so that nobody's change is ever undone; after a conflict the object is read again.

use std::time::Duration;

use futures_util::StreamExt as _;
use json_patch::Patch as JsonPatch;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tracing::{debug, info, warn};

use super::webhook::Injector;
use crate::readiness::{Part, Readiness};

/// The webhook's name in the configuration.
pub(super) const WEBHOOK: &str = "osm-inject.k8s.io";

fn name_in(mesh_name: &str) -> String {
    format!("osm-webhook-{mesh_name}")
}

/// Until it is right for the first time, the control plane is not ready: pods would come up without a sidecar, or not at
/// all.
pub(crate) fn await_it(readiness: &Readiness, mesh_name: &str) {
    let name = name_in(mesh_name);
    let words = format!(
        "MutatingWebhookConfiguration {name} has not our caBundle yet (the chart makes the object, the controller writes \
         the field)"
    );
    readiness.wait(Part::CaBundle, words);
}

/// Follows the configuration for ever.
pub(super) async fn keep(client: Client, injector: &Injector) {
    let name = name_in(&injector.settings().mesh_name);
    let api: Api<MutatingWebhookConfiguration> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = watcher(api.clone(), config).default_backoff().applied_objects().boxed();
    loop {
        match changes.next().await {
            Some(Ok(object)) => settle(&api, object, injector).await,
            Some(Err(error)) => {
                warn!(%error, webhook = name, "the webhook configuration can't be watched for a moment");
                explain(injector, format!("MutatingWebhookConfiguration {name} can't be watched: {error}"));
            }
            None => return,
        }
    }
}

/// Writes until it is right. A later change comes as an event of its own.
async fn settle(
    api: &Api<MutatingWebhookConfiguration>,
    mut object: MutatingWebhookConfiguration,
    injector: &Injector,
) {
    let name = object.name_any();
    let mut pause = FIRST_PAUSE;
    loop {
        let Some(patch) = patch(&object, injector.trust_bundle().as_bytes()) else {
            return injector.readiness().done(Part::CaBundle);
        };
        match api.patch(&name, &PatchParams::default(), &Patch::Json::<()>(patch)).await {
            Ok(_) => {
                info!(webhook = name, "caBundle of the webhook configuration is written");
                return injector.readiness().done(Part::CaBundle);
            }
            // The version has gone on.
            Err(kube::Error::Api(status)) if matches!(status.code, 409 | 422) => debug!(webhook = name, "conflict"),
            Err(error) => {
                warn!(%error, webhook = name, "caBundle can't be written (no pod gets a sidecar until it is)");
                explain(injector, format!("caBundle of MutatingWebhookConfiguration {name} can't be written: {error}"));
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        match api.get_opt(&name).await {
            Ok(Some(now)) => object = now,
            Ok(None) => return,
            Err(error) => warn!(%error, webhook = name, "the webhook configuration can't be read"),
        }
    }
}

fn explain(injector: &Injector, words: String) {
    injector.readiness().explain(Part::CaBundle, words);
}

/// What makes it right; none if it is.
fn patch(object: &MutatingWebhookConfiguration, bundle: &[u8]) -> Option<JsonPatch> {
    let ours = |w: &k8s_openapi::api::admissionregistration::v1::MutatingWebhook| {
        w.name == WEBHOOK && w.client_config.ca_bundle.as_ref().map(|b| b.0.as_slice()) != Some(bundle)
    };
    let wrong = object.webhooks.iter().flatten().enumerate().filter(|(_, webhook)| ours(webhook));
    let mut operations: Vec<serde_json::Value> = wrong
        .map(|(at, _)| {
            let value = ByteString(bundle.to_vec());
            json!({ "op": "add", "path": format!("/webhooks/{at}/clientConfig/caBundle"), "value": value })
        })
        .collect();
    if operations.is_empty() {
        return None;
    }
    if let Some(version) = &object.metadata.resource_version {
        operations.insert(0, json!({ "op": "test", "path": "/metadata/resourceVersion", "value": version }));
    }
    serde_json::from_value(json!(operations)).ok()
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_webhooks_bundle_is_written_and_only_when_it_is_wrong() {
        let mut object: MutatingWebhookConfiguration = serde_json::from_value(json!({
            "metadata": {"name": "osm-webhook-osm", "resourceVersion": "7"},
            "webhooks": [
                {"name": "other", "admissionReviewVersions": ["v1"], "clientConfig": {}, "sideEffects": "None"},
                {"name": WEBHOOK, "admissionReviewVersions": ["v1"], "clientConfig": {}, "sideEffects": "None"},
            ],
        }))
        .unwrap();
        let written = serde_json::to_value(patch(&object, b"pem").unwrap()).unwrap();
        assert_eq!(
            written,
            json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
                {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": "cGVt"},
            ])
        );
        object.webhooks.as_mut().unwrap()[1].client_config.ca_bundle = Some(ByteString(b"pem".to_vec()));
        assert!(patch(&object, b"pem").is_none());
        assert!(patch(&object, b"another").is_some());
    }
}
