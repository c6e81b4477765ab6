//! The MeshConfig of a new mesh: made of the ConfigMap that the chart installs, if there is none yet.
//!
//! Done once each time the lease comes to this replica. A MeshConfig that is there is never touched, and one that somebody
//! deletes is not made anew while the same replica holds the lease: uninstalling must be possible.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DynamicObject, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::api::{custom_resources, parse};
use crate::mesh::MESH_CONFIG;
use crate::shared::Shared;

/// The ConfigMap's name, in the control plane's namespace.
const PRESET: &str = "preset-mesh-config";
/// Its key: a MeshConfig's `spec` as JSON.
const PRESET_KEY: &str = "preset-mesh-config.json";

/// Does it whenever the lease comes to this replica, for ever.
pub(super) async fn make(client: &Client, shared: &Shared) {
    let mut leader = shared.leader.subscribe();
    loop {
        // The sender lives as long as `shared`.
        let _ = leader.wait_for(|leader| *leader).await;
        while *leader.borrow_and_update() {
            match make_once(client, &shared.settings.osm_namespace).await {
                Ok(()) => break,
                Err(error) => warn!(%error, "the preset MeshConfig can't be made yet; trying again"),
            }
            sleep(RETRY_PAUSE).await;
        }
        let _ = leader.wait_for(|leader| !*leader).await;
    }
}

async fn make_once(client: &Client, namespace: &str) -> Result<(), kube::Error> {
    let Some(resource) = custom_resources().into_iter().find(|r| r.kind == "MeshConfig") else { return Ok(()) };
    let configs: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    if configs.get_opt(MESH_CONFIG).await?.is_some() {
        return Ok(());
    }
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let Some(preset) = maps.get_opt(PRESET).await? else {
        info!(namespace, name = PRESET, "no preset MeshConfig: the defaults are in force until there is a MeshConfig");
        return Ok(());
    };
    let document = match document(&preset, namespace, &resource.api_version) {
        Ok(document) => document,
        Err(reason) => {
            error!(namespace, name = PRESET, reason, "the preset MeshConfig is not used; the defaults are in force");
            return Ok(());
        }
    };
    let object: DynamicObject = serde_json::from_value(document).map_err(kube::Error::SerdeError)?;
    match configs.create(&PostParams::default(), &object).await {
        Ok(_) => info!(namespace, name = MESH_CONFIG, "made the MeshConfig of the preset"),
        // Somebody was faster: theirs counts.
        Err(kube::Error::Api(status)) if status.code == CONFLICT => {}
        Err(kube::Error::Api(status)) if status.code == INVALID => {
            error!(namespace, name = PRESET, reason = status.message, "the API server refuses the preset MeshConfig");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// The MeshConfig that the preset asks for, understood by our own rules before the API server is asked.
fn document(preset: &ConfigMap, namespace: &str, api_version: &str) -> Result<Value, String> {
    let text =
        preset.data.as_ref().and_then(|data| data.get(PRESET_KEY)).ok_or(format!("it has no key {PRESET_KEY}"))?;
    let spec: Value = serde_json::from_str(text).map_err(|error| format!("{PRESET_KEY} is no JSON: {error}"))?;
    let document = json!({"apiVersion": api_version, "kind": "MeshConfig",
        "metadata": {"name": MESH_CONFIG, "namespace": namespace}, "spec": spec});
    parse(document.clone()).map_err(|error| error.to_string())?;
    Ok(document)
}

const RETRY_PAUSE: Duration = Duration::from_secs(5);
const CONFLICT: u16 = 409;
const INVALID: u16 = 422;
