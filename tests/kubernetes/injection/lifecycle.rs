//! How pods with a sidecar begin and end: the first request, the last one, Jobs, and rollouts under load.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    cluster::{Cluster, Namespace},
    installed::DataPlane,
    load::Load,
};

use super::{Form, LIMIT, mesh, mesh_of, namespace};
use crate::scenario;

pub(super) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>, with_envoy: Option<&str>) {
    let name = "an application's first request and its last after SIGTERM succeed, and a Job ends by itself";
    scenario(trials, missing, name, |cluster| first_and_last(cluster, DataPlane::Oxmesh, Form::Native));
    let envoy = format!("{name} (envoy)");
    scenario(trials, with_envoy, &envoy, |cluster| first_and_last(cluster, DataPlane::Envoy, Form::Native));
    scenario(trials, missing, "a rollout of 20 pods under load loses no request", rollout);
}

/// Answers as `$IDENTITY`; a new value is a new revision. Lasts for so many seconds after it was deleted: time for its
/// callers to hear of that.
fn store(image: &str, replicas: u32, lasts: u32) -> String {
    format!(
        r#"
---
apiVersion: v1
kind: Service
metadata: {{name: store}}
spec: {{selector: {{app: store}}, ports: [{{name: http, port: 8080}}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: store}}
spec:
  replicas: {replicas}
  strategy: {{rollingUpdate: {{maxSurge: 4, maxUnavailable: 0}}}}
  selector: {{matchLabels: {{app: store}}}}
  template:
    metadata: {{labels: {{app: store}}}}
    spec:
      terminationGracePeriodSeconds: 24
      containers:
        - name: app
          image: {image}
          args: [serve, --http, "8080", --identity, $(IDENTITY)]
          env: [{{name: IDENTITY, value: before}}]
          lifecycle: {{preStop: {{sleep: {{seconds: {lasts}}}}}}}
          readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1, timeoutSeconds: 10}}
"#
    )
}

/// The application asks at once, in an init container and in its first container, without a second try; on SIGTERM it asks
/// again, later than any other container would be told to end. Where the sidecar stands among the ordinary containers, the
/// application's init containers run before there is a mesh, and a Job has to end it.
fn asking(image: &str, form: Form) -> String {
    let ask = "curl -fsS --max-time 5 http://store:8080/";
    let (early, end) = match form {
        Form::Native => (ask, ""),
        Form::First => ("true", " && curl -fsS -X POST http://127.0.0.1:15000/quitquitquit"),
    };
    format!(
        r#"
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: buyer}}
spec:
  replicas: 4
  selector: {{matchLabels: {{app: buyer}}}}
  template:
    metadata: {{labels: {{app: buyer}}}}
    spec:
      terminationGracePeriodSeconds: 20
      initContainers:
        - {{name: early, image: {image}, command: [sh, -c, "{early}"]}}
      containers:
        - name: app
          image: {image}
          command: [sh, -c, "{ask} || exit 7; trap 'sleep 3; {ask} && echo LAST-ANSWERED; exit' TERM; echo FIRST-ANSWERED; sleep 3600 & wait"]
---
apiVersion: batch/v1
kind: Job
metadata: {{name: buy}}
spec:
  completions: 2
  parallelism: 2
  backoffLimit: 0
  template:
    metadata: {{labels: {{app: buy}}}}
    spec:
      restartPolicy: Never
      containers: [{{name: app, image: {image}, command: [sh, -c, "{ask}{end}"]}}]
"#
    )
}

pub(super) async fn first_and_last(cluster: &'static Cluster, plane: DataPlane, form: Form) -> Result<()> {
    let mesh = mesh_of(cluster, form).await?;
    let ns = namespace(&mesh, "ends", plane).await?;
    let image = cluster.image("app");
    ns.apply(&store(&image, 1, 4)).await?;
    ns.rolled_out("deployment/store", LIMIT).await?;
    ns.apply(&asking(&image, form)).await?;
    ns.rolled_out("deployment/buyer", LIMIT).await?;
    ns.wait("job/buy", "condition=Complete", LIMIT).await?;

    let pods = ns.get(["pods", "-l", "app in (buyer,buy)"]).await?;
    let items = pods["items"].as_array().context("items")?;
    ensure!(items.len() == 6, "{} pods", items.len());
    let mut followed = Vec::new();
    for pod in items {
        let name = pod["metadata"]["name"].as_str().context("name")?;
        let statuses = &pod["status"];
        let of_app = ["containerStatuses", "initContainerStatuses"].map(|l| statuses[l].as_array());
        for status in of_app.into_iter().flatten().flatten() {
            ensure!(status["restartCount"] == 0, "a request of {name} failed, or its sidecar did: {statuses}");
        }
        if pod["metadata"]["labels"]["app"] == "buyer" {
            followed.push(follow(&ns, name));
        } else {
            let said = ns.logs(name, "app").await?;
            ensure!(said.contains("\"identity\":\"before\""), "{said}");
        }
    }
    let end = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        ns.kubectl(["delete", "deployment", "buyer"]).await
    };
    let (logs, _) = tokio::try_join!(futures_util::future::try_join_all(followed), end)?;
    ensure!(logs.len() == 4);
    for said in logs {
        ensure!(said.contains("FIRST-ANSWERED") && said.contains("LAST-ANSWERED"), "{said}");
    }
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}

/// What the application says until its end.
async fn follow(ns: &Namespace, pod: &str) -> Result<String> {
    ns.kubectl(["logs", "-f", pod, "-c", "app"]).await
}

async fn rollout(cluster: &'static Cluster) -> Result<()> {
    let mesh = mesh(cluster).await?;
    let ns = namespace(&mesh, "rollout", DataPlane::Oxmesh).await?;
    let image = cluster.image("app");
    let load = format!(
        r#"
---
apiVersion: v1
kind: Pod
metadata: {{name: load}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
    - name: app
      image: {image}
      args: [load, "http://store:8080/", --rate, "40", --seconds, "600", --connections, "8", --until, /dev/shm/end]
"#
    );
    let slow = Duration::from_secs(180);
    ns.apply(&store(&image, 20, 12)).await?;
    ns.rolled_out("deployment/store", slow).await?;
    ns.apply(&load).await?;
    ns.wait("pod/load", "condition=Ready", LIMIT).await?;
    ns.kubectl(["set", "env", "deployment/store", "IDENTITY=after"]).await?;
    ns.rolled_out("deployment/store", slow).await?;
    // The last of the old pods end now, after their grace period.
    ns.exec("load", ["sh", "-c", "sleep 26; echo > /dev/shm/end"]).await?;
    ns.wait("pod/load", "jsonpath={.status.phase}=Succeeded", slow).await?;
    let load = Load::parse(&ns.logs("load", "app").await?)?;
    load.all_ok(800)?;
    ensure!(load.from("before") > 100 && load.from("after") > 100, "{load:?}");
    ensure!(mesh.nacks().await? == 0);
    Ok(())
}
