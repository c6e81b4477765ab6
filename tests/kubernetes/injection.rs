//! Pods with a sidecar: how they are stored, how kubelet's probes reach the application, who gets through to them, and
//! how they begin and end. The webhook's own life is in [`webhook`].

mod lifecycle;
mod older;
mod probes;
mod reach;
mod stored;
mod webhook;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    cluster::{Cluster, Namespace},
    installed::{DataPlane, Installed},
    trial::envoy_missing,
};
use serde_json::Value;
use tokio::sync::Mutex;

const LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>) {
    let envoy = envoy_missing();
    let with_envoy = missing.or(envoy.as_deref());
    stored::trials(trials, missing, with_envoy);
    probes::trials(trials, missing, with_envoy);
    reach::trials(trials, missing);
    lifecycle::trials(trials, missing, with_envoy);
    older::trials(trials, missing, with_envoy);
    webhook::trials(trials, missing);
}

/// Where sidecars stand in pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Among the init containers, and keep running.
    Native,
    /// The first of the ordinary containers, as in clusters older than 1.29.
    First,
}

/// A permissive mesh of native sidecars, as [`mesh_of`].
async fn mesh(cluster: &'static Cluster) -> Result<Arc<Installed>> {
    mesh_of(cluster, Form::Native).await
}

/// A permissive mesh that scenarios running at the same time share; the last one takes it along.
async fn mesh_of(cluster: &'static Cluster, form: Form) -> Result<Arc<Installed>> {
    static SHARED: [Mutex<Weak<Installed>>; 2] = [const { Mutex::const_new(Weak::new()) }; 2];
    let (shared, native) = match form {
        Form::Native => (&SHARED[0], "auto"),
        Form::First => (&SHARED[1], "never"),
    };
    let mut shared = shared.lock().await;
    if let Some(mesh) = shared.upgrade() {
        return Ok(mesh);
    }
    let values = ["osm.enablePermissiveTrafficPolicy=true", &format!("osm.injector.nativeSidecars={native}")];
    let mesh = Arc::new(Installed::new(cluster, DataPlane::Oxmesh, &values).await?);
    *shared = Arc::downgrade(&mesh);
    Ok(mesh)
}

/// A namespace of the mesh whose sidecars are of this kind.
async fn namespace(mesh: &Installed, prefix: &str, plane: DataPlane) -> Result<Namespace> {
    let ns = mesh.namespace(prefix).await?;
    choose(&ns, plane).await?;
    Ok(ns)
}

async fn choose(ns: &Namespace, plane: DataPlane) -> Result<()> {
    let annotation = match plane {
        DataPlane::Oxmesh => "oxmesh.io/data-plane=oxmesh",
        DataPlane::Envoy => "oxmesh.io/data-plane=envoy",
    };
    ns.kubectl(["annotate", "--overwrite", "namespace", ns.name(), annotation]).await.map(drop)
}

/// A container by name, from any of the pod's lists.
fn container<'a>(pod: &'a Value, list: &str, name: &str) -> Result<&'a Value> {
    let all = pod["spec"][list].as_array().with_context(|| format!("no {list}"))?;
    all.iter().find(|c| c["name"] == name).with_context(|| format!("no {name} in {list}: {pod}"))
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|item| item["name"].as_str()).collect()
}

/// What went wrong with a command that should have failed.
fn refused(outcome: Result<String>, words: &str) -> Result<()> {
    match outcome {
        Ok(said) => anyhow::bail!("not refused: {said}"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains(words), "refused, but not with {words:?}: {said}");
            Ok(())
        }
    }
}
