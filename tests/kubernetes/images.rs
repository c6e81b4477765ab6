//! Our images in pods, without a control plane.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{cluster::Cluster, trial::envoy_missing};

use crate::scenario;

const LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>) {
    let envoy = envoy_missing();
    let with_envoy = missing.or(envoy.as_deref());
    let redirected = "the init image redirects a pod's traffic of both families with NET_ADMIN alone";
    scenario(trials, missing, redirected, redirects);
    let ends = "a Job with the proxy as native sidecar gets its first request answered and ends, all under the restricted profile";
    scenario(trials, missing, ends, |cluster| job(cluster, cluster.image("proxy")));
    scenario(trials, with_envoy, &format!("{ends} (envoy)"), |cluster| job(cluster, cluster.envoy_image()));
}

async fn redirects(cluster: &'static Cluster) -> Result<()> {
    let ns = cluster.namespace("redirects").await?;
    let (init, app) = (cluster.image("init"), cluster.image("app"));
    ns.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: redirected}}
spec:
  terminationGracePeriodSeconds: 0
  initContainers:
    - name: osm-init
      image: {init}
      securityContext: {{privileged: false, capabilities: {{drop: [ALL], add: [NET_ADMIN]}}}}
  containers:
    # In the place of the sidecar's outbound listener, as the user whose own traffic passes.
    - name: sidecar
      image: {app}
      args: [serve, --banner, "15001", --identity, caught]
      securityContext: {{runAsUser: 1500}}
    - {{name: app, image: {app}, command: [sleep, "3600"]}}
"#
    ))
    .await?;
    ns.wait("pod/redirected", "condition=Ready", LIMIT).await?;
    let said = ns.logs("redirected", "osm-init").await?;
    for family in ["IPv4: ", "IPv6: "] {
        ensure!(said.lines().any(|l| l.starts_with(family) && l.ends_with("rules in force")), "{said}");
    }
    // Nobody has these addresses; only a redirected connection is accepted, and greeted.
    for (address, caught) in [("192.0.2.1", true), ("2001:db8::1", true), ("127.0.0.1", false)] {
        let nc = format!("echo | nc -w 3 {address} 7 || true");
        let greeting = ns.kubectl(["exec", "redirected", "-c", "app", "--", "sh", "-c", &nc]).await?;
        ensure!(greeting.contains("caught") == caught, "{address}: {greeting:?}");
    }
    Ok(())
}

/// The sidecar runs by the command `envoy`, as OSM's injector has it, from a bootstrap that both data planes take.
async fn job(cluster: &'static Cluster, sidecar: String) -> Result<()> {
    let ns = cluster.namespace("job").await?;
    cluster.kubectl(["label", "namespace", ns.name(), "pod-security.kubernetes.io/enforce=restricted"]).await?;
    let manifests = include_str!("data/job.yaml").replace("{{sidecar}}", &sidecar);
    ns.apply(&manifests.replace("{{app}}", &cluster.image("app"))).await?;
    ns.wait("job/buy", "condition=Complete", LIMIT).await?;
    let said = ns.logs("job/buy", "app").await?;
    ensure!(said == "hello", "{said}");
    Ok(())
}
