//! The pod that a token speaks of, as the cluster has it now.
//!
//! Looked for in the source's snapshot, which may be a moment behind a pod that has just started; then in the API.

use std::sync::Arc;
use std::time::Duration;

use kube::api::Api;
use tokio::sync::watch;
use tokio::time::timeout;

use super::token::BoundPod;
use crate::api::core::Pod;
use crate::api::{Key, Objects};
use crate::identity::SidecarIdentity;
use crate::mesh::{PROXY_UUID_LABEL, Workload, is_monitored};
use crate::source::Snapshot;

/// Where pods are looked up.
#[derive(Clone)]
pub struct Pods {
    /// The source's snapshots.
    pub snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// The API, for pods that are not in a snapshot; none = the snapshot alone counts.
    pub api: Option<kube::Client>,
    /// Only pods in namespaces of this mesh count.
    pub mesh_name: String,
    /// Longest wait for a snapshot that has the pod.
    pub patience: Duration,
}

impl std::fmt::Debug for Pods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pods").field("mesh_name", &self.mesh_name).finish_non_exhaustive()
    }
}

/// Why a pod gets no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    /// The control plane has just started and doesn't know the pods yet.
    #[error("the objects of the cluster have not been read yet")]
    NotSynced,
    /// Its namespace is no part of the mesh.
    #[error("namespace {0:?} is no part of the mesh")]
    NamespaceNotInMesh(String),
    /// There is no such pod, or not any more.
    #[error("there is no pod {0} with uid {1}")]
    Unknown(Key, String),
    /// It runs as somebody else, or elsewhere.
    #[error("pod {pod} has {what} {is:?}, the token says {token:?}")]
    Differs {
        /// The pod.
        pod: Key,
        /// Which of its properties.
        what: &'static str,
        /// Its value.
        is: String,
        /// What the token says.
        token: String,
    },
    /// It has ended, or has the node's network: it can't be in the mesh.
    #[error("pod {0} has ended or shares its node's network, so it can't be in the mesh")]
    NoWorkload(Key),
    /// It has no sidecar.
    #[error("pod {0} has no label {PROXY_UUID_LABEL}, so it has no sidecar")]
    NoSidecar(Key),
    /// Its label, or its service account's name, could be read as part of another's name.
    #[error("pod {0}: {1} can't stand in a certificate's name, it could be read as another's")]
    BadName(Key, String),
    /// The API doesn't answer.
    #[error("pod {0} can't be looked up now: {1}")]
    Unavailable(Key, String),
}

impl Pods {
    /// The sidecar of the pod that a token is bound to.
    ///
    /// # Errors
    /// [`PodError`] unless the pod is there, is what the token says, and is in the mesh with a sidecar.
    pub async fn sidecar(&self, token: &BoundPod) -> Result<SidecarIdentity, PodError> {
        let key = Key::new(&token.namespace, &token.pod);
        let mut snapshots = self.snapshots.clone();
        let known = snapshots.wait_for(|snapshot| {
            snapshot
                .as_ref()
                .is_some_and(|s| find(&s.objects, &key, token).is_some() && self.in_mesh(&s.objects, token))
        });
        let in_snapshot = match timeout(self.patience, known).await {
            Ok(Ok(snapshot)) => snapshot.as_ref().and_then(|s| find(&s.objects, &key, token).cloned()),
            // The wait is over, or the source is gone.
            Ok(Err(_)) | Err(_) => None,
        };
        let snapshot = self.snapshots.borrow().clone().ok_or(PodError::NotSynced)?;
        if !self.in_mesh(&snapshot.objects, token) {
            return Err(PodError::NamespaceNotInMesh(token.namespace.clone()));
        }
        let pod = match in_snapshot {
            Some(pod) => Some(pod),
            None => self.ask(&key).await?,
        };
        let pod = pod.filter(|pod| has_uid(pod, token));
        let pod = pod.ok_or_else(|| PodError::Unknown(key.clone(), token.uid.clone()))?;
        check(key, &pod, token)
    }

    fn in_mesh(&self, objects: &Objects, token: &BoundPod) -> bool {
        let namespace = objects.namespaces.get(&Key::new("", &token.namespace));
        namespace.is_some_and(|namespace| is_monitored(namespace, &self.mesh_name))
    }

    async fn ask(&self, key: &Key) -> Result<Option<Pod>, PodError> {
        let Some(client) = &self.api else { return Ok(None) };
        let pods: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
        let answer = timeout(API_TIMEOUT, pods.get_opt(&key.name)).await;
        let answer = answer.map_err(|_| PodError::Unavailable(key.clone(), format!("no answer in {API_TIMEOUT:?}")))?;
        answer.map_err(|error| PodError::Unavailable(key.clone(), error.to_string()))
    }
}

fn find<'a>(objects: &'a Objects, key: &Key, token: &BoundPod) -> Option<&'a Pod> {
    objects.pods.get(key).map(AsRef::as_ref).filter(|pod| has_uid(pod, token))
}

fn has_uid(pod: &Pod, token: &BoundPod) -> bool {
    pod.metadata.uid.as_deref() == Some(token.uid.as_str())
}

fn check(key: Key, pod: &Pod, token: &BoundPod) -> Result<SidecarIdentity, PodError> {
    let Some(workload) = Workload::of(pod) else { return Err(PodError::NoWorkload(key)) };
    let differs = |what, is: &str, says: &str| {
        Err(PodError::Differs { pod: key.clone(), what, is: is.to_owned(), token: says.to_owned() })
    };
    let account = &workload.identity.service_account;
    if *account != token.service_account {
        return differs("service account", account, &token.service_account);
    }
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    if let Some(says) = token.node.as_deref().filter(|says| *says != node) {
        return differs("node", node, says);
    }
    let Some(uuid) = workload.uuid else { return Err(PodError::NoSidecar(key)) };
    if uuid.is_empty() || uuid.len() > MAX_UUID || !uuid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(PodError::BadName(key, format!("label {PROXY_UUID_LABEL}={uuid:?}")));
    }
    let service = workload.identity;
    if service.reads_as_sidecar() {
        return Err(PodError::BadName(key, format!("service account {:?}", service.service_account)));
    }
    Ok(SidecarIdentity { uuid, service })
}

/// Longest label value in Kubernetes.
const MAX_UUID: usize = 63;
const API_TIMEOUT: Duration = Duration::from_secs(5);
