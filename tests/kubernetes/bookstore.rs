//! The bookstore from the demo's manifests, nothing else, on a mesh of its own.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    cluster::Cluster,
    installed::{DataPlane, Installed},
};

use crate::scenario;

pub(crate) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>) {
    scenario(trials, missing, "oxmesh check finds nothing wrong with a mesh just installed", just_installed);
}

async fn just_installed(cluster: &'static Cluster) -> Result<()> {
    let mesh = Installed::new(cluster, DataPlane::Oxmesh, &[]).await?;
    let _shop = mesh.namespace("shop").await?;
    let said = mesh.oxmesh(["check", "-o", "short"]).await?;
    ensure!(said.contains("Status: √"), "{said}");
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}
