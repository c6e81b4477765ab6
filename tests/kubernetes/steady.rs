//! A load under which something is done to the mesh, and what must be true when it is over.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use oxmesh_tests::{
    cluster::{Cluster, Namespace},
    eventually,
    installed::Installed,
    load::Load,
};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(90);

/// Two pods of the mesh between which 50 requests a second go over four connections, and one TCP connection is held.
pub(crate) struct Steady {
    /// Their namespace.
    pub(crate) ns: Namespace,
    seconds: u64,
}

impl Steady {
    /// Starts the load, which lasts for `seconds`; returns when the first requests have been answered.
    pub(crate) async fn start(cluster: &'static Cluster, mesh: &Installed, seconds: u64) -> Result<Self> {
        mesh.configure(json!({"traffic": {"enablePermissiveTrafficPolicyMode": true}})).await?;
        let ns = mesh.namespace("steady").await?;
        let manifests = include_str!("data/steady.yaml").replace("{{app}}", &cluster.image("app"));
        ns.apply(&manifests.replace("{{seconds}}", &seconds.to_string())).await?;
        ns.rolled_out("deployment/store", LIMIT).await?;
        ns.wait("pod/client", "condition=Ready", LIMIT).await?;
        eventually("the load has started", LIMIT, || async {
            let said = ns.logs("client", "load").await?;
            ensure!(said.contains("started"), "{said}");
            Ok(())
        })
        .await?;
        Ok(Self { ns, seconds })
    }

    /// Waits for the end: no request has failed, and the held connection has brought every line back.
    pub(crate) async fn all_ok(&self) -> Result<()> {
        let status = |name: &str| {
            format!("jsonpath={{.status.containerStatuses[?(@.name==\"{name}\")].state.terminated.reason}}")
        };
        let limit = LIMIT + Duration::from_secs(self.seconds);
        for container in ["load", "held"] {
            self.ns.wait("pod/client", &format!("{}=Completed", status(container)), limit).await?;
        }
        let said = self.ns.logs("client", "load").await?;
        let last = said.lines().last().context("the load has printed nothing")?;
        Load::parse(last)?.all_ok(self.seconds * 45)?;
        let said = self.ns.logs("client", "held").await?;
        let back = said.lines().filter_map(|line| line.parse::<u64>().ok());
        let expected: Vec<u64> = (0..self.seconds).collect();
        let back: Vec<u64> = back.collect();
        ensure!(back == expected, "the held connection brought back {back:?}");
        Ok(())
    }

    /// Waits until the sidecars do what the mesh is told now: nothing is allowed, then everything.
    pub(crate) async fn follows(&self, mesh: &Installed) -> Result<()> {
        for permissive in [false, true] {
            mesh.configure(json!({"traffic": {"enablePermissiveTrafficPolicyMode": permissive}})).await?;
            eventually(&format!("permissive {permissive} is followed"), LIMIT, || async {
                let ask = "curl -sS -o /dev/null -w %{http_code} --max-time 5 http://store/ 2>&1 || true";
                let said = self.ns.exec("deployment/store", ["sh", "-c", ask]).await?;
                ensure!((said.trim() == "200") == permissive, "{said}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}
