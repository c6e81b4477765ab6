//! The cluster itself: what every other scenario takes for granted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    cluster::{Cluster, own_missing},
    eventually,
};

use crate::scenario;

const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>) {
    scenario(trials, missing, "a pod reaches a service by name over IPv4 and IPv6", by_name);
    let own = own_missing();
    let own = missing.or(own.as_deref());
    scenario(trials, own, "this machine reaches pods and services of both families", from_outside);
}

/// A server `store` behind a service of both families, and `client`, which has curl.
fn shop(cluster: &Cluster) -> String {
    let image = cluster.image("app");
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: store}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: store}}
  ports: [{{port: 80, targetPort: web}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: store, labels: {{app: store}}}}
spec:
  containers:
    - name: app
      image: {image}
      args: [serve, --http, "8080", --identity, the-store]
      ports: [{{name: web, containerPort: 8080}}]
      readinessProbe: {{httpGet: {{path: /, port: web}}, periodSeconds: 1, timeoutSeconds: 10}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{name: app, image: {image}, command: [sleep, "3600"]}}]
"#
    )
}

async fn by_name(cluster: &'static Cluster) -> Result<()> {
    let ready = cluster.kubectl(["wait", "node", "--all", "--for=condition=Ready", "--timeout=10s"]).await?;
    ensure!(ready.contains("condition met"), "{ready}");
    let shop_ns = cluster.namespace("by-name").await?;
    shop_ns.apply(&shop(cluster)).await?;
    shop_ns.wait("pod/store", "condition=Ready", LIMIT).await?;
    shop_ns.wait("pod/client", "condition=Ready", LIMIT).await?;
    let full = format!("http://store.{}.svc.cluster.local/", shop_ns.name());
    for (family, url) in [("-4", "http://store/"), ("-6", "http://store/"), ("-4", &full), ("-6", &full)] {
        // kube-proxy hears of the endpoint a moment after the pod is ready.
        let what = format!("{url} answers curl {family}");
        let ask = || shop_ns.exec("client", ["curl", "-fsS", "--max-time", "5", family, url]);
        let answer = eventually(&what, Duration::from_secs(10), ask).await?;
        ensure!(answer.contains("the-store"), "{family} {url}: {answer}");
    }
    Ok(())
}

async fn from_outside(cluster: &'static Cluster) -> Result<()> {
    let shop_ns = cluster.namespace("outside").await?;
    shop_ns.apply(&shop(cluster)).await?;
    shop_ns.wait("pod/store", "condition=Ready", LIMIT).await?;
    let pod = shop_ns.get(["pod", "store"]).await?;
    let service = shop_ns.get(["service", "store"]).await?;
    let pods = pod["status"]["podIPs"].as_array().context("podIPs")?.iter().map(|ip| (&ip["ip"], 8080));
    let services = service["spec"]["clusterIPs"].as_array().context("clusterIPs")?.iter().map(|ip| (ip, 80));
    let addresses: Vec<_> = pods.chain(services).collect();
    ensure!(addresses.len() == 4, "{addresses:?}");
    for (ip, port) in addresses {
        let address = std::net::SocketAddr::new(ip.as_str().context("an address")?.parse()?, port);
        eventually(&format!("{address} accepts"), Duration::from_secs(10), || async {
            Ok(tokio::net::TcpStream::connect(address).await?)
        })
        .await?;
    }
    Ok(())
}
