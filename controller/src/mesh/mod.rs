//! The mesh as a value: services, workloads, identities and policies, made of objects and nothing else.
//!
//! Pure: no clock, no network, no order of events. The same objects give the same mesh, whichever way they came.
//! All of OSM's rules live here, and so does every place where we differ on purpose. Nothing in an object is dropped in
//! silence: what is wrong or has no effect is a [`Finding`], and one bad object never changes what another one means.

mod finding;
mod workload;

use std::collections::BTreeMap;

pub use finding::{Finding, Severity};
pub use workload::{PROXY_UUID_LABEL, Workload};

use crate::api::{Key, Objects};
use crate::identity::SidecarIdentity;
use crate::settings::Settings;

/// Everything that rendering needs to know, immutable.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    workloads: BTreeMap<Key, Workload>,
    by_uuid: BTreeMap<String, Key>,
}

/// A mesh, and what there is to say about the objects that it was made of.
#[derive(Clone, Debug, Default)]
pub struct Built {
    /// The mesh.
    pub mesh: Mesh,
    /// What is wrong or has no effect, sorted.
    pub findings: Vec<Finding>,
}

impl Mesh {
    /// Makes a mesh of objects.
    #[must_use]
    pub fn build(objects: &Objects, settings: &Settings) -> Built {
        let _ = settings;
        let workloads: BTreeMap<Key, Workload> =
            objects.pods.values().filter_map(Workload::of).map(|w| (w.pod.clone(), w)).collect();
        let by_uuid = workloads.values().filter_map(|w| Some((w.uuid.clone()?, w.pod.clone()))).collect();
        Built { mesh: Self { workloads, by_uuid }, findings: Vec::new() }
    }

    /// All workloads of the mesh's namespaces.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.workloads.values()
    }

    /// The workload whose sidecar is `proxy`: its pod must carry the uuid and run as the service account.
    #[must_use]
    pub fn workload_of(&self, proxy: &SidecarIdentity) -> Option<&Workload> {
        let workload = self.workloads.get(self.by_uuid.get(&proxy.uuid)?)?;
        (workload.identity == proxy.service).then_some(workload)
    }
}
