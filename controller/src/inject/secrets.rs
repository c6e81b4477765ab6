//! The Secret with an Envoy's bootstrap: made when the pod is admitted, owned by the pod once that is there, removed if
//! it never comes.
//!
//! Secrets are never read, nor listed: their names follow from the pods. Until the pod is there, what makes the pod
//! (a ReplicaSet, a Job) owns its Secret, so that none outlives both.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tracing::{info, warn};

use super::guard::is_uuid;
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

/// The Secrets that this replica made and whose pods have not been seen yet.
#[derive(Debug)]
pub(super) struct Made {
    waiting: Mutex<BTreeMap<String, Waiting>>,
    /// How long each is left alone.
    patience: Duration,
}

#[derive(Debug, Clone)]
struct Waiting {
    namespace: String,
    since: Instant,
}

impl Made {
    pub(super) fn new(patience: Duration) -> Self {
        Self { waiting: Mutex::default(), patience }
    }

    fn add(&self, uuid: &str, namespace: &str) {
        let waiting = Waiting { namespace: namespace.to_owned(), since: Instant::now() };
        self.waiting.lock().insert(uuid.to_owned(), waiting);
    }

    /// Those whose pods should long be there, by uuid with their namespaces; forgets those whose pods are.
    fn overdue(&self, seen: &BTreeMap<&str, &Pod>, now: Instant) -> Vec<(String, String)> {
        let mut made = self.waiting.lock();
        made.retain(|uuid, _| !seen.contains_key(uuid.as_str()));
        let old = made.iter().filter(|(_, waiting)| now.duration_since(waiting.since) > self.patience);
        old.map(|(uuid, waiting)| (uuid.clone(), waiting.namespace.clone())).collect()
    }

    fn forget(&self, uuid: &str) {
        self.waiting.lock().remove(uuid);
    }
}

/// Makes the Secret of a pod that is being created.
pub(super) async fn create(
    client: &Client,
    injection: &Injection,
    uuid: &str,
    issuer: &Issuer,
    settings: &super::Settings,
    made: &Made,
) -> Result<(), SecretError> {
    let secret = secret(injection, uuid, issuer, settings)?;
    let api: Api<Secret> = Api::namespaced(client.clone(), &injection.identity.namespace);
    // Before the call: one whose answer is lost may have been made all the same.
    made.add(uuid, &injection.identity.namespace);
    let outcome = api.create(&PostParams::default(), &secret).await;
    outcome.map(drop).map_err(|source| SecretError::Create { name: secret.name_any(), source: Box::new(source) })
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
            owner_references: maker(&injection.pod).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(files.into_iter().map(|(name, text, _)| (name.to_owned(), ByteString(text.into_bytes()))).collect()),
        ..Secret::default()
    })
}

/// What makes the pod, as an owner of something else.
fn maker(pod: &serde_json::Value) -> Option<OwnerReference> {
    let owners =
        serde_json::from_value::<Vec<OwnerReference>>(pod.pointer("/metadata/ownerReferences")?.clone()).ok()?;
    let maker = owners.into_iter().find(|owner| owner.controller == Some(true))?;
    // To hold up its deletion would need a right of our own on its kind.
    Some(OwnerReference { controller: None, block_owner_deletion: None, ..maker })
}

/// Looks after the Secrets for ever.
pub(super) async fn look_after(client: Client, injector: &Injector) {
    let mut settled = BTreeSet::new();
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(snapshot) = injector.snapshot() else { continue };
        let pods = pods(&snapshot.objects);
        if injector.is_leader() {
            settled.retain(|uuid: &String| pods.contains_key(uuid.as_str()));
            own(&client, &pods, &mut settled).await;
        } else {
            settled.clear();
        }
        remove_orphans(&client, injector.made(), &pods).await;
    }
}

/// Pods with a sidecar, by uuid.
fn pods(objects: &Objects) -> BTreeMap<&str, &Pod> {
    let pods = objects.pods.values().filter_map(|pod| {
        let uuid = pod.metadata.labels.as_ref()?.get(PROXY_UUID_LABEL)?;
        is_uuid(uuid).then_some((uuid.as_str(), &**pod))
    });
    pods.collect()
}

/// Gives each pod its Secret, once. Those of our own proxy have none.
async fn own(client: &Client, pods: &BTreeMap<&str, &Pod>, settled: &mut BTreeSet<String>) {
    for (uuid, pod) in pods {
        if settled.contains(*uuid) {
            continue;
        }
        let (Some(namespace), Some(owner)) = (&pod.metadata.namespace, owner(pod)) else { continue };
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let name = containers::secret_name(uuid);
        match api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(owner)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                warn!(%error, secret = name, %namespace, "a Secret can't be given to its pod for a moment");
                continue;
            }
        }
        settled.insert((*uuid).to_owned());
    }
}

fn owner(pod: &Pod) -> Option<serde_json::Value> {
    let (name, uid) = (pod.metadata.name.as_ref()?, pod.metadata.uid.as_ref()?);
    Some(
        json!({ "metadata": { "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid }] } }),
    )
}

/// Removes what this replica made for pods that never came. The API server has the last word about that.
async fn remove_orphans(client: &Client, made: &Made, pods: &BTreeMap<&str, &Pod>) {
    for (uuid, namespace) in made.overdue(pods, Instant::now()) {
        let name = containers::secret_name(&uuid);
        match remove(client, &namespace, &uuid, &name).await {
            Ok(()) => made.forget(&uuid),
            Err(error) => {
                warn!(%error, secret = name, %namespace, "a Secret whose pod never came can't be removed yet")
            }
        }
    }
}

async fn remove(client: &Client, namespace: &str, uuid: &str, name: &str) -> kube::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let its = ListParams::default().labels(&format!("{PROXY_UUID_LABEL}={uuid}")).limit(1);
    if !pods.list_metadata(&its).await?.items.is_empty() {
        return Ok(());
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    match secrets.delete(name, &DeleteParams::default()).await {
        Ok(_) => info!(secret = name, %namespace, "a Secret whose pod never came is removed"),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Tells the Secrets of this mesh's sidecars.
const MESH_LABEL: &str = "openservicemesh.io/osm-mesh-name";
const PERIOD: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Key;

    const UUID: &str = "8281f730-d0ba-475c-8fa8-4e0dae2b5051";

    fn objects(namespace: &str, uuid: &str) -> Objects {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": namespace, "uid": "1", "labels": {PROXY_UUID_LABEL: uuid}}
        }));
        let mut objects = Objects::default();
        objects.pods.insert(Key::new(namespace, "a"), pod.unwrap());
        objects
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_is_overdue_when_its_pod_has_not_come_in_ten_minutes() {
        let made = Made::new(Duration::from_secs(600));
        made.add(UUID, "shop");
        let (none, with) = (Objects::default(), objects("shop", UUID));
        tokio::time::advance(Duration::from_secs(599)).await;
        assert!(made.overdue(&pods(&none), Instant::now()).is_empty());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(made.overdue(&pods(&none), Instant::now()), [(UUID.to_owned(), "shop".to_owned())]);
        assert!(made.overdue(&pods(&with), Instant::now()).is_empty());
        assert!(
            made.overdue(&pods(&none), Instant::now()).is_empty(),
            "what had a pod once is the pod's to take along"
        );
    }

    #[test]
    fn a_pod_owns_its_secret_and_before_it_what_makes_the_pod() {
        let with = objects("shop", UUID);
        let pods = pods(&with);
        assert_eq!(owner(pods[UUID]).unwrap()["metadata"]["ownerReferences"][0]["uid"], "1");
        assert!(super::pods(&objects("shop", "../x")).is_empty(), "a label that is no uuid names no Secret");

        let reference = |controller: bool| {
            json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web",
                "uid": "7", "controller": controller, "blockOwnerDeletion": true}]}})
        };
        let made = serde_json::to_value(maker(&reference(true))).unwrap();
        assert_eq!(made, json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "7"}));
        assert_eq!(maker(&reference(false)), None);
        assert_eq!(maker(&json!({"metadata": {}})), None);
    }
}
