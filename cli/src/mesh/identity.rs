//! The mesh's certificate authority, and each sidecar's bootstrap with its certificate.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use oxmesh_controller::bootstrap::{self, BOOTSTRAP_FILE, Options};
use oxmesh_controller::identity::{Ca, Issuer, Policy, ServiceIdentity, SidecarIdentity};
use oxmesh_controller::settings::Settings;
use serde_json::{Value, json};

use crate::pod::privilege::{PROXY_MARK, PROXY_UID};
use crate::pod::{DataPlane, Exempt, Pod, Topology};

/// Makes the certificate authority, or opens the one that the mesh has: the controller's own.
pub(super) fn authority(topology: &Topology, settings: &Settings) -> anyhow::Result<Issuer> {
    let ca = Ca::open_or_create(&topology.folder().join("ca"))?;
    Ok(Issuer::new(Arc::new(ca), Policy::new(&settings.trust_domain)))
}

/// Writes what the sidecar of a pod starts with.
pub(super) fn write_bootstrap(
    issuer: &Issuer,
    pod: &Pod,
    folder: &Path,
    controller: (Ipv4Addr, u16),
    settings: &Settings,
    delta: bool,
) -> anyhow::Result<()> {
    let spec = pod.spec();
    let proxy = SidecarIdentity {
        uuid: pod.proxy_uuid().to_owned(),
        service: ServiceIdentity::new(&spec.namespace, &spec.service_account),
    };
    let options = Options {
        controller_host: controller.0.to_string(),
        controller_port: controller.1,
        read_dir: folder.to_owned(),
        delta,
        owner: (pod.exempt() == Exempt::Uid).then_some((PROXY_UID, PROXY_UID)),
        ..Options::new(&settings.osm_namespace)
    };
    bootstrap::write(folder, &proxy, issuer, &options)?;
    if pod.exempt() == Exempt::Mark && spec.data_plane == Some(DataPlane::Envoy) {
        add_mark(&folder.join(BOOTSTRAP_FILE))?;
    }
    Ok(())
}

/// Real Envoy marks its connections when its bootstrap says so; our proxy has an option for it.
fn add_mark(file: &Path) -> anyhow::Result<()> {
    const SOL_SOCKET: u32 = 1;
    const SO_MARK: u32 = 36;
    let mut bootstrap: Value = serde_json::from_str(&fs::read_to_string(file)?)?;
    let option = json!({"level": SOL_SOCKET, "name": SO_MARK, "int_value": PROXY_MARK, "state": "STATE_PREBIND"});
    bootstrap["cluster_manager"] = json!({"upstream_bind_config": {"socket_options": [option]}});
    // In place: owner and mode stay.
    let mut file = OpenOptions::new().write(true).truncate(true).open(file)?;
    Ok(write!(file, "{bootstrap:#}")?)
}
