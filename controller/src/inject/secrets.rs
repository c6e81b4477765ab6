//! The Secret with an Envoy's bootstrap: made when the pod is admitted, owned by the pod once that is there, removed if
//! it never comes.
//!
//! Private keys are written and never read back: what is listed here is metadata alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tracing::{info, warn};

use super::webhook::Injector;
use super::{Injection, PROXY_UUID_LABEL, containers};
use crate::api::Objects;
use crate::bootstrap;
use crate::identity::{Issuer, SidecarIdentity};

/// Why there is no Secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretError {
    #[error("the sidecar's certificate can't be issued: {0}")]
    Issue(#[from] crate::identity::CaError),
    #[error("Secret {name} can't be made: {source}")]
    Create { name: String, source: Box<kube::Error> },
}

/// Makes the Secret of a pod that is being created.
pub(super) async fn create(
    client: &Client,
    injection: &Injection,
    uuid: &str,
    issuer: &Issuer,
    settings: &super::Settings,
) -> Result<(), SecretError> {
    let secret = secret(injection, uuid, issuer, settings)?;
    let api: Api<Secret> = Api::namespaced(client.clone(), &injection.identity.namespace);
    let made = api.create(&PostParams::default(), &secret).await;
    made.map(drop).map_err(|source| SecretError::Create { name: secret.name_any(), source: Box::new(source) })
}

fn secret(
    injection: &Injection,
    uuid: &str,
    issuer: &Issuer,
    settings: &super::Settings,
) -> Result<Secret, crate::identity::CaError> {
    let proxy = SidecarIdentity { uuid: uuid.to_owned(), service: injection.identity.clone() };
    let options = containers::bootstrap_options(injection.data_plane, &injection.probes, settings);
    let files = bootstrap::files(&proxy, issuer, &options)?;
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(containers::secret_name(uuid)),
            namespace: Some(injection.identity.namespace.clone()),
            labels: Some(BTreeMap::from([
                (MESH_LABEL.to_owned(), settings.mesh_name.clone()),
                (PROXY_UUID_LABEL.to_owned(), uuid.to_owned()),
            ])),
            ..ObjectMeta::default()
        },
        data: Some(files.into_iter().map(|(name, text, _)| (name.to_owned(), ByteString(text.into_bytes()))).collect()),
        ..Secret::default()
    })
}

/// Looks after the Secrets for ever.
pub(super) async fn look_after(client: Client, injector: &Injector) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(snapshot) = injector.snapshot() else { continue };
        if let Err(error) = look(&client, &injector.settings().mesh_name, &snapshot.objects).await {
            warn!(%error, "the Secrets of sidecars can't be looked after for a moment");
        }
    }
}

async fn look(client: &Client, mesh: &str, objects: &Objects) -> kube::Result<()> {
    let all: Api<Secret> = Api::all(client.clone());
    let list =
        all.list_metadata(&ListParams::default().labels(&format!("{MESH_LABEL}={mesh},{PROXY_UUID_LABEL}"))).await?;
    for secret in list.items.iter().filter(|secret| secret.owner_references().is_empty()) {
        let namespace = secret.namespace().unwrap_or_default();
        let api: Api<Secret> = Api::namespaced(client.clone(), &namespace);
        let done = match step(secret, objects, std::time::SystemTime::now()) {
            Step::Own(patch) => {
                api.patch_metadata(&secret.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
            }
            Step::Delete => {
                info!(secret = secret.name_any(), %namespace, "a Secret whose pod never came is removed");
                let same = Preconditions { uid: secret.uid(), resource_version: secret.resource_version() };
                api.delete(&secret.name_any(), &DeleteParams { preconditions: Some(same), ..DeleteParams::default() })
                    .await
                    .map(drop)
            }
            Step::Wait => Ok(()),
        };
        match done {
            // Somebody else was faster: fine.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            other => other?,
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq)]
enum Step {
    Own(serde_json::Value),
    Delete,
    Wait,
}

/// What is to be done with a Secret that nobody owns.
fn step(secret: &PartialObjectMeta<Secret>, objects: &Objects, now: std::time::SystemTime) -> Step {
    let uuid = secret.labels().get(PROXY_UUID_LABEL);
    let namespace = secret.namespace().unwrap_or_default();
    let is_its = |pod: &&Arc<Pod>| {
        pod.metadata.namespace.as_ref() == Some(&namespace)
            && pod.metadata.labels.as_ref().and_then(|labels| labels.get(PROXY_UUID_LABEL)) == uuid
    };
    if let Some(pod) = objects.pods.values().find(is_its) {
        let Some(uid) = &pod.metadata.uid else { return Step::Wait };
        let owner = json!({ "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": uid });
        return Step::Own(json!({ "metadata": {
            "resourceVersion": secret.resource_version(),
            "ownerReferences": [owner],
        } }));
    }
    let made = secret.creation_timestamp().map(|time| time.0.as_second()).unwrap_or(i64::MAX);
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let age = i64::try_from(now).unwrap_or(0).saturating_sub(made);
    if age > ORPHAN_AGE { Step::Delete } else { Step::Wait }
}

/// Tells the Secrets of this mesh's sidecars.
const MESH_LABEL: &str = "openservicemesh.io/osm-mesh-name";
const PERIOD: Duration = Duration::from_secs(10);
/// Seconds after which a pod that was admitted is there or never comes.
const ORPHAN_AGE: i64 = 600;

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::api::Key;

    #[test]
    fn a_secret_is_given_to_its_pod_and_an_orphan_goes_when_it_is_old() {
        let secret: PartialObjectMeta<Secret> = serde_json::from_value(json!({
            "metadata": {"name": "envoy-bootstrap-config-u", "namespace": "shop", "resourceVersion": "5",
                "creationTimestamp": "1970-01-01T00:16:40Z", "labels": {PROXY_UUID_LABEL: "u"}},
        }))
        .unwrap();
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(1000 + seconds);
        let mut objects = Objects::default();
        assert_eq!(step(&secret, &objects, at(60)), Step::Wait);
        assert_eq!(step(&secret, &objects, at(601)), Step::Delete);
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "elsewhere", "uid": "1", "labels": {PROXY_UUID_LABEL: "u"}}
        }))
        .unwrap();
        objects.pods.insert(Key::new("elsewhere", "a"), pod.clone().into());
        assert_eq!(step(&secret, &objects, at(601)), Step::Delete, "another namespace's pod owns nothing here");
        pod.metadata.namespace = Some("shop".into());
        objects.pods.insert(Key::new("shop", "a"), pod.into());
        let Step::Own(patch) = step(&secret, &objects, at(601)) else { panic!("not given to its pod") };
        assert_eq!(patch["metadata"]["ownerReferences"][0]["uid"], "1");
        assert_eq!(patch["metadata"]["resourceVersion"], "5");
    }
}
