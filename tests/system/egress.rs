//! What leaves the mesh: nothing, everything, or what an Egress names.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use oxmesh::pod::{Process, User};
use oxmesh_tests::{
    eventually,
    mesh::{Planes, TestMesh},
    shop,
};

use crate::matrix;

pub(crate) fn trials(trials: &mut Vec<Trial>) {
    matrix(trials, "egress is off, on for all, and by policy as the objects say", None, egress);
}

const PATIENCE: Duration = Duration::from_secs(15);

/// A server on the node, outside of the mesh.
fn outside(mesh: &TestMesh) -> Result<Process> {
    let node = mesh.session().topology().node();
    let program = mesh.session().topology().binaries().find("oxmesh-test-app")?;
    let mut command = node.command(User::Root, program);
    command.args(["serve", "--identity", "outside", "--http", "8088", "--banner", "3307"]);
    Ok(node.spawn("outside", command)?)
}

async fn reached(mesh: &TestMesh, from: &str, args: &[&str]) -> Result<()> {
    let answer = mesh.curl(from, args).await?;
    ensure!(answer.status == 200 && answer.header("identity") == Some("outside"), "answered {}", answer.text);
    Ok(())
}

async fn not_reached(mesh: &TestMesh, from: &str, args: &[&str]) -> Result<()> {
    if reached(mesh, from, args).await.is_ok() {
        bail!("the outside was reached");
    }
    Ok(())
}

async fn egress(planes: Planes) -> Result<()> {
    let mesh = TestMesh::start(&shop::files(), planes).await?;
    let _outside = outside(&mesh)?;
    let node = mesh.session().topology().addresses().v4();
    let url = format!("http://{node}:8088/");
    let plain = [url.as_str()];
    let by_name = ["-H", "host: outside.example:8088", url.as_str()];
    not_reached(&mesh, "client", &plain).await?;

    mesh.write("config.yaml", &shop::mesh_config(false, true, "24h"))?;
    eventually("with egress on, all may leave", PATIENCE, || reached(&mesh, "client", &plain)).await?;

    mesh.write("config.yaml", &shop::mesh_config(false, false, "24h"))?;
    eventually("with egress off again, nobody may", PATIENCE, || not_reached(&mesh, "client", &plain)).await?;

    mesh.write(
        "egress.yaml",
        &format!(
            "apiVersion: policy.openservicemesh.io/v1alpha1\nkind: Egress\nmetadata: {{ name: raw, namespace: shop }}\nspec:\n  sources: [{{ kind: ServiceAccount, name: client, namespace: shop }}]\n  ipAddresses: [{node}/32]\n  ports: [{{ number: 8088, protocol: tcp }}]\n"
        ),
    )?;
    eventually("by policy the client may", PATIENCE, || reached(&mesh, "client", &by_name)).await?;
    not_reached(&mesh, "thief", &by_name).await?;
    mesh.remove("egress.yaml")?;
    eventually("without the policy the client may not", PATIENCE, || not_reached(&mesh, "client", &by_name)).await?;
    mesh.no_nacks().await
}
