//! The control plane of Kubernetes goes away and comes back.

use std::time::Duration;

use anyhow::Result;
use libtest_mimic::Trial;
use oxmesh_tests::{cluster::Cluster, eventually, load::Load};

use crate::disruptive;

const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn trials(trials: &mut Vec<Trial>) {
    let name = "while etcd and the API server are killed and come back, pods go on reaching a service";
    disruptive(trials, name, outage);
}

/// What tests of the mesh under the same outage rest on: Kubernetes itself loses no request.
async fn outage(cluster: &'static Cluster) -> Result<()> {
    let ns = cluster.namespace("outage").await?;
    let image = cluster.image("app");
    ns.apply(&include_str!("data/outage.yaml").replace("{{app}}", &image)).await?;
    ns.rolled_out("deployment/store", LIMIT).await?;
    ns.wait("pod/client", "condition=Ready", LIMIT).await?;
    for program in ["etcd", "kube-apiserver"] {
        cluster.restart(program)?;
        eventually(&format!("the API server answers after {program} was killed"), LIMIT, || async {
            cluster.kubectl(["get", "--raw", "/readyz", "--request-timeout=5s"]).await
        })
        .await?;
    }
    ns.wait("pod/client", "jsonpath={.status.phase}=Succeeded", LIMIT).await?;
    Load::parse(&ns.logs("client", "app").await?)?.all_ok(900)?;
    // Objects are followed again: a new pod comes up.
    ns.kubectl(["scale", "deployment/store", "--replicas=2"]).await?;
    ns.rolled_out("deployment/store", LIMIT).await
}
