//! Parts of the control plane go away under load and come back: no request fails, and the mesh is followed again.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    cluster::Cluster,
    eventually,
    installed::{DataPlane, Installed},
};

use crate::{disruptive, scenario, steady::Steady};

const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>) {
    let name = "controllers that start at once agree on one root; when the one that leads is deleted under load, and then \
                all, no request fails, streams and lease move on, changes are followed and statuses written \
                [e2e_controller_restart]";
    scenario(trials, missing, name, controllers);
    let name = "uninstalled and installed again with the old authority under load, the mesh goes on with the same root, and \
                no request fails [e2e_osm_reinstall]";
    scenario(trials, missing, name, reinstalled);
    let name = "while the API server and etcd are killed and come back, no request between sidecars fails, and the mesh is \
                followed again";
    disruptive(trials, name, outage);
}

async fn controllers(cluster: &'static Cluster) -> Result<()> {
    let mesh = Installed::new(cluster, DataPlane::Oxmesh, &["osm.osmController.replicaCount=2"]).await?;
    mesh.ready(LIMIT).await?;
    let first = mesh.controllers().await?;
    ensure!(first.len() == 2, "{first:?}");
    one_root(cluster, &mesh, &first).await?;
    let steady = Steady::start(cluster, &mesh, 40).await?;

    // SIGTERM: the streams go to the other, which leads before the lease would have run out.
    let leading = leader(cluster, &mesh).await?;
    ensure!(first.contains(&leading), "{leading} leads, of {first:?}");
    cluster.kubectl(["-n", mesh.name(), "delete", "pod", &leading, "--wait=false"]).await?;
    eventually("another leads", Duration::from_secs(12), || async {
        let now = leader(cluster, &mesh).await?;
        ensure!(now != leading, "{now} leads");
        Ok(())
    })
    .await?;
    streams(&mesh).await?;
    written(&steady, "one-is-gone").await?;

    for pod in mesh.controllers().await? {
        cluster.kubectl(["-n", mesh.name(), "delete", "pod", &pod, "--wait=false"]).await?;
    }
    eventually("all controllers are new", LIMIT, || async {
        let now = mesh.controllers().await?;
        ensure!(now.len() == 2 && now.is_disjoint(&first), "{now:?}");
        Ok(())
    })
    .await?;
    mesh.ready(LIMIT).await?;
    streams(&mesh).await?;
    written(&steady, "all-are-new").await?;
    steady.all_ok().await?;
    steady.follows(&mesh).await?;
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

/// Exactly one controller has made the authority, and all serve by it.
async fn one_root(cluster: &Cluster, mesh: &Installed, pods: &BTreeSet<String>) -> Result<()> {
    let mut made = 0;
    for pod in pods {
        let log = cluster.kubectl(["-n", mesh.name(), "logs", pod]).await?;
        made += log.matches("made a certificate authority").count();
    }
    ensure!(made == 1, "{made} authorities were made");
    let secret = ["-n", mesh.name(), "get", "secret", "osm-ca-bundle", "-o", "jsonpath={.data.ca\\.crt}"];
    let webhook = format!("osm-webhook-{}", mesh.name());
    let bundle =
        ["get", "mutatingwebhookconfiguration", &webhook, "-o", "jsonpath={.webhooks[*].clientConfig.caBundle}"];
    let (root, trusted) = (cluster.kubectl(secret).await?, cluster.kubectl(bundle).await?);
    ensure!(!root.is_empty() && root == trusted, "the API server trusts another root than the Secret's");
    Ok(())
}

/// The pod that holds the lease.
async fn leader(cluster: &Cluster, mesh: &Installed) -> Result<String> {
    let lease = ["-n", mesh.name(), "get", "lease", "osm-controller", "-o", "jsonpath={.spec.holderIdentity}"];
    let holder = cluster.kubectl(lease).await?;
    let (pod, _) = holder.rsplit_once('-').with_context(|| format!("holder {holder:?}"))?;
    Ok(pod.to_owned())
}

/// Waits until both sidecars of the load are connected.
async fn streams(mesh: &Installed) -> Result<()> {
    eventually("both sidecars are connected", LIMIT, || async {
        let connected = mesh.metric("osm_proxy_connect_count").await?;
        ensure!((connected - 2.0).abs() < 0.1, "{connected}");
        Ok(())
    })
    .await
}

/// A policy that is wrong is told so in its status.
async fn written(steady: &Steady, name: &str) -> Result<()> {
    steady.ns.apply(&include_str!("data/wrong-target.yaml").replace("{{name}}", name)).await?;
    eventually("the status of a wrong policy", LIMIT, || async {
        let target = steady.ns.get(["traffictarget", name]).await?;
        ensure!(target["status"]["currentStatus"] == "error", "{}", target["status"]);
        ensure!(target["status"]["reason"].as_str().is_some_and(|words| words.contains("no-such-route")), "{target}");
        Ok(())
    })
    .await
}

async fn reinstalled(cluster: &'static Cluster) -> Result<()> {
    let mesh = Installed::new(cluster, DataPlane::Oxmesh, &[]).await?;
    let steady = Steady::start(cluster, &mesh, 35).await?;
    let secret = ["-n", mesh.name(), "get", "secret", "osm-ca-bundle", "-o", "jsonpath={.data.ca\\.crt}"];
    let before = cluster.kubectl(secret).await?;
    mesh.oxmesh(["uninstall", "mesh", "-f"]).await?;
    eventually("the control plane is gone", LIMIT, || async {
        let left = mesh.controllers().await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;
    mesh.install(DataPlane::Oxmesh, &[]).await?;
    mesh.ready(LIMIT).await?;
    ensure!(!before.is_empty() && cluster.kubectl(secret).await? == before, "the root has changed");
    streams(&mesh).await?;
    steady.all_ok().await?;
    steady.follows(&mesh).await?;
    // The load's pod, which has ended, may be on its way out still.
    let well = || async {
        let said = mesh.oxmesh(["check", "-o", "short"]).await?;
        ensure!(said.contains("Status: √"), "{said}");
        Ok(())
    };
    eventually("check finds nothing wrong", LIMIT, well).await?;
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

async fn outage(cluster: &'static Cluster) -> Result<()> {
    let mesh = Installed::new(cluster, DataPlane::Oxmesh, &[]).await?;
    let steady = Steady::start(cluster, &mesh, 30).await?;
    for program in ["kube-apiserver", "etcd"] {
        cluster.restart(program)?;
        eventually(&format!("the API server answers after {program} was killed"), LIMIT, || async {
            cluster.kubectl(["get", "--raw", "/readyz", "--request-timeout=5s"]).await
        })
        .await?;
    }
    streams(&mesh).await?;
    written(&steady, "after-outage").await?;
    steady.all_ok().await?;
    steady.follows(&mesh).await?;
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}
