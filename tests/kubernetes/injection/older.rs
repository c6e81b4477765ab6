//! Sidecars as the first of the ordinary containers, as pods get them where the cluster has no native ones
//! (`osm.injector.nativeSidecars=never`): what holds there all the same.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{cluster::Cluster, installed::DataPlane};

use super::{Form, LIMIT, container, lifecycle, mesh_of, names, namespace, probes, reach};
use crate::scenario;

pub(super) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>, with_envoy: Option<&str>) {
    let name = "without native sidecars, an application's first request and its last after SIGTERM succeed, and a Job ends \
                its sidecar";
    scenario(trials, missing, name, |cluster| lifecycle::first_and_last(cluster, DataPlane::Oxmesh, Form::First));
    let name = "without native sidecars, kubectl means the application where no container is named";
    scenario(trials, missing, name, default_container);
    let name = "without native sidecars, pods reach each other with mTLS";
    scenario(trials, missing, name, |cluster| reach::each_other(cluster, DataPlane::Oxmesh, Form::First));
    let envoy = format!("{name} (envoy)");
    scenario(trials, with_envoy, &envoy, |cluster| reach::each_other(cluster, DataPlane::Envoy, Form::First));
    let name = "without native sidecars, probes of each kind tell kubelet of the application";
    scenario(trials, missing, name, |cluster| probes::each_kind(cluster, DataPlane::Oxmesh, Form::First));
    let envoy = format!("{name} (envoy)");
    scenario(trials, with_envoy, &envoy, |cluster| probes::each_kind(cluster, DataPlane::Envoy, Form::First));
}

async fn default_container(cluster: &'static Cluster) -> Result<()> {
    let mesh = mesh_of(cluster, Form::First).await?;
    let ns = namespace(&mesh, "default", DataPlane::Oxmesh).await?;
    let image = cluster.image("app");
    ns.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: two}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {{name: app, image: {image}, command: [sh, -c, "echo of-the-application; exec sleep 4000"]}}
    - {{name: second, image: {image}, command: [sleep, "3600"]}}
"#
    ))
    .await?;
    let pod = ns.get(["pod", "two"]).await?;
    ensure!(names(&pod["spec"]["initContainers"]) == ["osm-init"], "{}", pod["spec"]["initContainers"]);
    ensure!(names(&pod["spec"]["containers"]) == ["envoy", "app", "second"], "{}", pod["spec"]["containers"]);
    let sidecar = container(&pod, "containers", "envoy")?;
    ensure!(sidecar.get("restartPolicy").is_none() && sidecar["image"] == cluster.image("proxy"), "{sidecar}");
    ns.wait("pod/two", "condition=Ready", LIMIT).await?;
    let said = ns.kubectl(["logs", "two"]).await?;
    ensure!(said.trim() == "of-the-application", "{said}");
    let said = ns.kubectl(["exec", "two", "--", "cat", "/proc/1/cmdline"]).await?;
    ensure!(said.contains("4000"), "{said}");
    let pod = ns.get(["pod", "two"]).await?;
    let states = pod["status"]["containerStatuses"].as_array().context("no statuses")?;
    ensure!(states.iter().all(|state| state["restartCount"] == 0), "{states:?}");
    Ok(())
}
