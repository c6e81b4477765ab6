//! `oxmesh top`: who calls whom on a cluster, as the sidecars count it.

use std::collections::{BTreeMap, VecDeque};
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, ResourceExt as _};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::connect::{Cluster, ClusterArgs, is_absent};
use super::forward;
use super::labels::PROXY_UUID;
use super::proxy::ADMIN;
use crate::output::{self, Format};
use crate::signals::Shutdown;
use crate::traffic::prometheus::{self, Sample};
use crate::traffic::{self, Edge, Refused, table};

/// Options of `oxmesh top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Namespace of the callers.
    #[arg(short, long, value_name = "NAME", default_value = "default", conflicts_with = "all_namespaces")]
    namespace: String,
    /// Callers of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Measure for one window, print, and end.
    #[arg(long)]
    once: bool,
    /// How far back calls count.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    window: Duration,
    /// Form of the output.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Format,
}

/// What is shown. The version rises when a field changes its meaning.
#[derive(Debug, Default, Serialize)]
struct Traffic {
    version: u32,
    /// The time that was measured.
    seconds: f64,
    /// Who called whom.
    edges: Vec<Edge>,
    /// Connections that callers' sidecars turned away.
    refused: Vec<Refused>,
    /// Pods whose sidecars did not answer, with the reason.
    unanswered: BTreeMap<String, String>,
}

/// One look at all sidecars, by `namespace/pod`.
type Look = BTreeMap<String, Pages>;

/// A sidecar's metrics.
struct Pages {
    owner: String,
    samples: Result<Vec<Sample>, String>,
}

/// Runs the command until Ctrl-C, or once.
///
/// # Errors
/// When the cluster can't be asked, or no pod there has a sidecar.
pub async fn run(args: TopArgs) -> anyhow::Result<ExitCode> {
    let mut shutdown = Shutdown::new()?;
    let cluster = args.cluster.connect().await?;
    let mut looks: VecDeque<(Instant, Look)> = VecDeque::new();
    let screen = args.output == Format::Table && !args.once && std::io::stdout().is_terminal();
    loop {
        let now = Instant::now();
        let look = look(&cluster, &args).await?;
        // One look that is older than the window stays: what is shown covers the whole of it.
        while looks.get(1).is_some_and(|(then, _)| now - *then >= args.window) {
            looks.pop_front();
        }
        if let Some((then, base)) = looks.front() {
            let covered = now - *then;
            if !args.once || covered >= args.window {
                let mut traffic = compare(base, &look, covered);
                traffic::add_shares(&mut traffic.edges, &splits(&cluster).await?);
                if screen {
                    // Home, and clear what stood there.
                    print!("\x1b[H\x1b[J");
                    std::io::stdout().flush()?;
                }
                output::print(args.output, &traffic, render)?;
                if args.once {
                    return Ok(ExitCode::SUCCESS);
                }
            }
        }
        looks.push_back((now, look));
        let pause = if args.once { args.window } else { REFRESH };
        tokio::select! {
            () = sleep(pause) => {}
            () = shutdown.wait() => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// Asks the sidecars of all running pods, several at a time.
async fn look(cluster: &Cluster, args: &TopArgs) -> anyhow::Result<Look> {
    let client = cluster.client.clone();
    let api: Api<Pod> = if args.all_namespaces { Api::all(client) } else { Api::namespaced(client, &args.namespace) };
    let params = ListParams::default().labels(PROXY_UUID).fields("status.phase=Running");
    let mut pods = cluster.all(&api, params, "pods").await?.into_iter();
    let (mut asked, mut look) = (JoinSet::new(), Look::new());
    loop {
        while asked.len() < AT_A_TIME
            && let Some(pod) = pods.next()
        {
            let client = cluster.client.clone();
            asked.spawn(async move { ask(client, &pod).await });
        }
        match asked.join_next().await {
            Some(answer) => look.extend([answer?]),
            None => break,
        }
    }
    if look.is_empty() {
        let place = if args.all_namespaces { "any namespace" } else { &args.namespace };
        bail!(
            "no running pod of {place} has a sidecar; another namespace by -n, all by -A; who belongs to the mesh: oxmesh \
             namespace list"
        );
    }
    Ok(look)
}

async fn ask(client: kube::Client, pod: &Pod) -> (String, Pages) {
    let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
    let api: Api<Pod> = Api::namespaced(client, &namespace);
    let samples = match timeout(ASK, forward::get(&api, &name, ADMIN, "/stats/prometheus")).await {
        Ok(Ok((StatusCode::OK, body))) => Ok(prometheus::parse(&String::from_utf8_lossy(&body))),
        Ok(Ok((status, _))) => Err(format!("the sidecar answers {status}")),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err(format!("no answer in {} s", ASK.as_secs())),
    };
    (format!("{namespace}/{name}"), Pages { owner: owner(pod), samples })
}

/// `namespace/name` of what made the pod: the Deployment for that of a ReplicaSet.
fn owner(pod: &Pod) -> String {
    let controller = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
    let name = controller.map_or_else(|| pod.name_any(), |owner| owner.name.clone());
    let hash = pod.labels().get("pod-template-hash");
    let name = hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-')).unwrap_or(&name);
    format!("{}/{name}", pod.namespace().unwrap_or_default())
}

/// What was called between two looks.
fn compare(base: &Look, now: &Look, covered: Duration) -> Traffic {
    let seconds = covered.as_secs_f64().max(0.001);
    let mut traffic = Traffic { version: 1, seconds, ..Traffic::default() };
    let mut owners: BTreeMap<&str, (Vec<Sample>, Vec<Sample>)> = BTreeMap::new();
    for (pod, pages) in now {
        match &pages.samples {
            Err(why) => {
                traffic.unanswered.insert(pod.clone(), why.clone());
            }
            Ok(samples) => {
                let before = match base.get(pod).map(|pages| &pages.samples) {
                    Some(Ok(before)) => before.as_slice(),
                    // What it counted before it could be asked is not of this time.
                    Some(Err(_)) => samples.as_slice(),
                    None => &[],
                };
                let (all, window) = owners.entry(&pages.owner).or_default();
                window.extend(traffic::since(before, samples));
                all.extend(samples.iter().cloned());
            }
        }
    }
    for (owner, (all, window)) in owners {
        let recent = traffic::recent(&traffic::edges(owner, &all), traffic::edges(owner, &window));
        let rate = |edge: Edge| {
            let calls = u32::try_from(edge.count).unwrap_or(u32::MAX);
            Edge { rps: Some(f64::from(calls) / seconds), ..edge }
        };
        traffic.edges.extend(recent.into_iter().map(rate));
        traffic.refused.extend(traffic::refused(owner, &window));
    }
    traffic
}

/// The backends of each TrafficSplit, as `namespace/service`; none when the cluster has no such kind.
async fn splits(cluster: &Cluster) -> anyhow::Result<Vec<Vec<String>>> {
    let kind = GroupVersionKind::gvk("split.smi-spec.io", "v1alpha2", "TrafficSplit");
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &ApiResource::from_gvk(&kind));
    match api.list(&ListParams::default()).await {
        Ok(found) => Ok(found.items.iter().map(backends).collect()),
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(cluster.failed("list TrafficSplits", error)),
    }
}

fn backends(split: &DynamicObject) -> Vec<String> {
    let namespace = split.namespace().unwrap_or_default();
    let backends = split.data["spec"]["backends"].as_array().into_iter().flatten();
    backends.filter_map(|backend| Some(format!("{namespace}/{}", backend["service"].as_str()?))).collect()
}

fn render(traffic: &Traffic) -> String {
    let mut parts = Vec::new();
    if traffic.edges.is_empty() {
        parts.push(format!("no calls in {:.0} s", traffic.seconds));
    } else {
        parts.push(table::edges(&traffic.edges));
    }
    if !traffic.refused.is_empty() {
        parts.push(table::refused(&traffic.refused));
    }
    parts.extend(traffic.unanswered.iter().map(|(pod, why)| format!("‼ {pod}: {why}")));
    parts.join("\n\n")
}

const REFRESH: Duration = Duration::from_secs(1);
/// The longest wait for one sidecar; the others' answers are shown meanwhile.
const ASK: Duration = Duration::from_secs(5);
/// Sidecars asked at once, each through a connection of the API server's.
const AT_A_TIME: usize = 16;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(owner: &str, requests: u32) -> Pages {
        let text = format!(
            "envoy_cluster_upstream_rq_xx{{envoy_response_code_class=\"2\",envoy_cluster_name=\"s/store|80\"}} {requests}\n"
        );
        Pages { owner: owner.to_owned(), samples: Ok(prometheus::parse(&text)) }
    }

    #[test]
    fn pods_of_one_owner_add_up_and_one_that_is_replaced_counts_nothing_twice() {
        let base = Look::from([("c/a-1".into(), page("c/a", 1000)), ("c/a-2".into(), page("c/a", 5))]);
        let now = Look::from([("c/a-2".into(), page("c/a", 15)), ("c/a-3".into(), page("c/a", 10))]);
        let traffic = compare(&base, &now, Duration::from_secs(5));
        let [edge] = traffic.edges.as_slice() else { panic!("{traffic:?}") };
        assert_eq!((edge.from.as_str(), edge.to.as_str(), edge.count, edge.rps), ("c/a", "s/store", 20, Some(4.0)));
    }

    #[test]
    fn a_sidecar_that_does_not_answer_is_named_and_hides_nobody() {
        let silent = Pages { owner: "c/b".into(), samples: Err("nothing listens there".into()) };
        let base = Look::from([("c/a-1".into(), page("c/a", 0))]);
        let now = Look::from([("c/a-1".into(), page("c/a", 3)), ("c/b-1".into(), silent)]);
        let text = render(&compare(&base, &now, Duration::from_secs(5)));
        assert!(text.contains("s/store") && text.contains("‼ c/b-1: nothing listens there"), "{text}");
        // Once it answers, what it counted unseen is not of this time.
        let later = Look::from([("c/b-1".into(), page("c/b", 500))]);
        assert!(compare(&now, &later, Duration::from_secs(5)).edges.is_empty());
    }

    #[test]
    fn callers_are_named_by_what_made_their_pods() {
        let pod = |owner: serde_json::Value, labels: serde_json::Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "p", "namespace": "n", "labels": labels, "ownerReferences": owner}}),
            )
            .unwrap()
        };
        let of = |kind: &str, name: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "", "controller": true}]);
        assert_eq!(owner(&pod(of("ReplicaSet", "web-59d4"), json!({"pod-template-hash": "59d4"}))), "n/web");
        assert_eq!(owner(&pod(of("StatefulSet", "db"), json!({}))), "n/db");
        assert_eq!(owner(&pod(json!([]), json!({}))), "n/p");
    }
}
