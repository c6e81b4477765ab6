//! Who gets through to a pod with a sidecar, and where such a pod gets to past it.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    cluster::{Cluster, Namespace},
    eventually,
    installed::DataPlane,
};
use serde_json::Value;

use super::{Form, LIMIT, mesh, mesh_of, namespace};
use crate::scenario;

pub(super) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>) {
    let strangers = "who has no sidecar gets no byte from a pod that has one, over IPv4 and IPv6, but at excluded ports \
                     [e2e_port_exclusion, e2e_permissive]";
    scenario(trials, missing, strangers, excluded_and_strangers);
    let stateful = "each pod of a StatefulSet is reached by its own name, with mTLS [e2e_statefulsets]";
    scenario(trials, missing, stateful, stateful_set);
}

/// As `printf` takes it.
const REQUEST: &str = "GET / HTTP/1.0\\r\\n\\r\\n";
const CURL: [&str; 4] = ["curl", "-sS", "--max-time", "5"];

fn client(name: &str, image: &str, annotations: &str) -> String {
    format!(
        r#"
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, annotations: {{{annotations}}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{name: app, image: {image}, command: [sleep, "3600"]}}]
"#
    )
}

/// A server of 8080 and 8081 behind a service of both families.
fn store(image: &str, annotations: &str) -> String {
    format!(
        r#"
---
apiVersion: v1
kind: Service
metadata: {{name: store}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: store}}
  ports: [{{name: http, port: 8080}}, {{name: http-open, port: 8081}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: store, labels: {{app: store}}, annotations: {{{annotations}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: app
      image: {image}
      args: [serve, --http, "8080", --http, "8081", --identity, the-store]
      readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1, timeoutSeconds: 10}}
"#
    )
}

async fn excluded_and_strangers(cluster: &'static Cluster) -> Result<()> {
    let mesh = mesh(cluster).await?;
    let ns = namespace(&mesh, "reach", DataPlane::Oxmesh).await?;
    let outside = cluster.namespace("outside").await?;
    let image = cluster.image("app");
    let open = r#"openservicemesh.io/inbound-port-exclusion-list: "8081""#;
    let past = r#"openservicemesh.io/outbound-port-exclusion-list: "8081""#;
    ns.apply(
        &[
            store(&image, open),
            client("buyer", &image, ""),
            client("past", &image, past),
            client("opted-out", &image, "openservicemesh.io/sidecar-injection: disabled"),
        ]
        .concat(),
    )
    .await?;
    outside.apply(&[store(&image, ""), client("stranger", &image, "")].concat()).await?;
    for (ns, pod) in
        [(&ns, "store"), (&ns, "buyer"), (&ns, "past"), (&ns, "opted-out"), (&outside, "store"), (&outside, "stranger")]
    {
        ns.wait(&format!("pod/{pod}"), "condition=Ready", LIMIT).await?;
    }
    // In the mesh: both families, by the service's name.
    for family in ["-4", "-6"] {
        answered(&ns, "buyer", &[family, &format!("http://store.{}:8080/", ns.name())]).await?;
    }
    // Not in the mesh: no byte from the meshed port, all from the excluded one.
    let addresses = addresses(&ns, "store").await?;
    ensure!(addresses.len() == 2, "{addresses:?}");
    for (ns, pod) in [(&outside, "stranger"), (&ns, "opted-out")] {
        for address in &addresses {
            answered(ns, pod, &[&format!("http://{address}:8081/")]).await?;
            // What asks in vain at the other port gets an answer at this one.
            let open = raw(ns, pod, address, 8081, REQUEST).await?;
            ensure!(open.contains("the-store"), "{open}");
            for request in [REQUEST, ""] {
                silent(ns, pod, address, request).await?;
            }
        }
    }
    // Past the sidecar to where the mesh does not let its pods: egress is off.
    for address in self::addresses(&outside, "store").await? {
        answered(&ns, "past", &[&format!("http://{address}:8081/")]).await?;
        for (pod, port) in [("past", 8080), ("buyer", 8081)] {
            let url = format!("http://{address}:{port}/");
            let got = ns.exec(pod, CURL.into_iter().chain([url.as_str()])).await;
            ensure!(got.is_err(), "{pod} reached {url}, which is not in the mesh: {got:?}");
        }
    }
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

/// The answer of the store.
async fn answered(ns: &Namespace, pod: &str, what: &[&str]) -> Result<()> {
    let ask = || async {
        let said = ns.exec(pod, CURL.into_iter().chain(["-f"]).chain(what.iter().copied())).await?;
        ensure!(said.contains("the-store"), "{said}");
        Ok(())
    };
    eventually(&format!("{pod} is answered: {what:?}"), LIMIT, ask).await
}

/// Connects, sends, and gets nothing at all back.
async fn silent(ns: &Namespace, pod: &str, address: &str, request: &str) -> Result<()> {
    let got = raw(ns, pod, address, 8080, request).await?;
    ensure!(got.is_empty(), "{pod} got {got:?} from {address}");
    Ok(())
}

/// All that comes back on a connection within two seconds.
async fn raw(ns: &Namespace, pod: &str, address: &str, port: u16, request: &str) -> Result<String> {
    let address = address.trim_matches(['[', ']']);
    let script = format!("(printf '{request}'; sleep 2) | nc -w 2 {address} {port}; true");
    ns.exec(pod, ["sh", "-c", &script]).await
}

/// As they stand in URLs.
async fn addresses(ns: &Namespace, pod: &str) -> Result<Vec<String>> {
    let object = ns.get(["pod", pod]).await?;
    let all = object["status"]["podIPs"].as_array().context("no addresses")?;
    let text =
        |ip: &Value| ip["ip"].as_str().map(|ip| if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() });
    Ok(all.iter().filter_map(text).collect())
}

/// A pod with a sidecar is reached by one with a sidecar, in turn, and gives no byte to who has none.
pub(super) async fn each_other(cluster: &'static Cluster, plane: DataPlane, form: Form) -> Result<()> {
    let mesh = mesh_of(cluster, form).await?;
    let ns = namespace(&mesh, "mutual", plane).await?;
    let image = cluster.image("app");
    let stranger = client("stranger", &image, "openservicemesh.io/sidecar-injection: disabled");
    ns.apply(&[store(&image, ""), client("buyer", &image, ""), stranger].concat()).await?;
    for pod in ["pod/store", "pod/buyer", "pod/stranger"] {
        ns.wait(pod, "condition=Ready", LIMIT).await?;
    }
    for family in ["-4", "-6"] {
        answered(&ns, "buyer", &[family, &format!("http://store.{}:8080/", ns.name())]).await?;
    }
    for address in addresses(&ns, "store").await? {
        silent(&ns, "stranger", &address, REQUEST).await?;
    }
    let pod = ns.get(["pod", "store"]).await?;
    for state in pod["status"]["containerStatuses"].as_array().context("no statuses")? {
        ensure!(state["ready"] == true && state["restartCount"] == 0, "{state}");
    }
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

async fn stateful_set(cluster: &'static Cluster) -> Result<()> {
    let mesh = mesh(cluster).await?;
    let ns = namespace(&mesh, "stateful", DataPlane::Oxmesh).await?;
    let outside = cluster.namespace("outside").await?;
    let image = cluster.image("app");
    let set = format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: db}}
spec:
  clusterIP: None
  ipFamilyPolicy: RequireDualStack
  selector: {{app: db}}
  ports: [{{name: http, port: 8080}}, {{name: tcp-peer, port: 7000}}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db}}
spec:
  serviceName: db
  replicas: 2
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: app
          image: {image}
          args: [serve, --http, "8080", --banner, "7000", --identity, $(POD)]
          env: [{{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
          readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1, timeoutSeconds: 10}}
"#
    );
    ns.apply(&[set, client("buyer", &image, "")].concat()).await?;
    outside.apply(&client("stranger", &image, "")).await?;
    ns.rolled_out("statefulset/db", LIMIT).await?;
    ns.wait("pod/buyer", "condition=Ready", LIMIT).await?;
    outside.wait("pod/stranger", "condition=Ready", LIMIT).await?;
    for pod in ["db-0", "db-1"] {
        let host = format!("{pod}.db.{}.svc.cluster.local", ns.name());
        for from in ["buyer", "db-0", "db-1"] {
            let (url, what) = (format!("http://{host}:8080/"), format!("{from} reaches {pod} by name"));
            let ask = || async {
                let said = ns.exec(from, ["curl", "-fsS", "--max-time", "30", &url]).await?;
                ensure!(said.contains(&format!("\"identity\":\"{pod}\"")), "{said}");
                Ok(())
            };
            eventually(&what, LIMIT, ask).await?;
            for _ in 0..5 {
                ask().await.with_context(|| what.clone())?;
            }
        }
        let greeting = ns.exec("buyer", ["sh", "-c", &format!("sleep 1 | nc -w 3 {host} 7000")]).await?;
        ensure!(greeting.trim() == pod, "{greeting:?} from {host}:7000");
        for address in addresses(&ns, pod).await? {
            silent(&outside, "stranger", &address, REQUEST).await?;
        }
    }
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}
