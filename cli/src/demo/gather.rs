//! Asks sidecars and applications, and makes the picture of what they say.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use http::StatusCode;
use oxmesh_controller::api::{Key, Objects};
use oxmesh_controller::identity::ServiceIdentity;
use oxmesh_controller::mesh::Mesh;
use oxmesh_controller::settings::Settings;
use tokio::time::{Instant, timeout};

use super::picture::{self, Apps, Picture, PodRow};
use crate::apps::Counts;
use crate::mesh::{Container, Session, StartedPod};
use crate::traffic::prometheus::{self, Sample};
use crate::traffic::{self, Edge, Refused};

/// How far back rates, shares and failures look.
const WINDOW: Duration = Duration::from_secs(10);
const ASK_LIMIT: Duration = Duration::from_secs(1);
/// The port on which the bookstore's applications show their counts.
const COUNTS: &str = "127.0.0.1:14001";

/// Asks, and remembers what rates and differences need.
#[derive(Debug, Default)]
pub(super) struct Gatherer {
    base: Apps,
    base_edges: Vec<Edge>,
    /// Counts of edges at earlier looks, the oldest first.
    looks: VecDeque<(Instant, BTreeMap<Call, u64>)>,
    /// Counts of failures, and when they rose last.
    failures: BTreeMap<(String, String), (u64, Instant)>,
}

/// Caller, service and port.
type Call = (String, String, u16);

impl Gatherer {
    /// What the applications have counted so far.
    pub(super) async fn apps(&self, session: &Session) -> Apps {
        let mut apps = Apps::new();
        for pod in session.pods().values() {
            if let Some(counts) = counts(pod).await {
                picture::add(&mut apps, &counts);
            }
        }
        apps
    }

    /// Counts from now on, of which `apps` are the applications' counts.
    pub(super) async fn rebase(&mut self, session: &Session, apps: Apps) {
        self.base = apps;
        self.base_edges = all_edges(session).await;
        self.looks = VecDeque::from([(Instant::now(), BTreeMap::new())]);
    }

    /// The picture as of now.
    pub(super) async fn picture(&mut self, session: &Session, objects: &Objects) -> Picture {
        let mut edges = all_edges(session).await;
        traffic::edges_since(&self.base_edges, &mut edges);
        self.look_back(&mut edges);
        traffic::add_shares(&mut edges, &splits(objects));
        let apps = picture::since(&self.base, &self.apps(session).await);
        let is_bookstore = apps.contains_key("bookbuyer");
        Picture {
            version: 1,
            manifests: session.manifests().display().to_string(),
            pods: session.pods().values().map(row).collect(),
            refused: refused(session, objects, &apps),
            expected: is_bookstore.then(|| picture::compare(&apps)),
            edges,
            apps,
            findings: Vec::new(),
        }
    }

    /// Fills in what was called in the last ten seconds.
    fn look_back(&mut self, edges: &mut [Edge]) {
        let now = Instant::now();
        let call = |edge: &Edge| (edge.from.clone(), edge.to.clone(), edge.port);
        while self.looks.front().is_some_and(|(then, _)| now - *then > WINDOW) {
            self.looks.pop_front();
        }
        if let Some((then, counts)) = self.looks.front() {
            let seconds = (now - *then).as_secs_f64().max(0.001);
            for edge in edges.iter_mut() {
                let before = counts.get(&call(edge)).copied().unwrap_or(0);
                edge.recent = edge.count.saturating_sub(before);
                let calls = u32::try_from(edge.recent).unwrap_or(u32::MAX);
                edge.rps = Some(f64::from(calls) / seconds);
            }
        }
        self.looks.push_back((now, edges.iter().map(|edge| (call(edge), edge.count)).collect()));
    }

    /// Drops failures that have ceased: their count did not rise in the last ten seconds.
    pub(super) fn drop_ceased(&mut self, refused: &mut Vec<Refused>) {
        let now = Instant::now();
        refused.retain(|row| {
            let seen = self.failures.entry((row.from.clone(), row.why.clone())).or_insert((0, now));
            if seen.0 != row.count {
                *seen = (row.count, now);
            }
            now - seen.1 <= WINDOW
        });
    }
}

async fn all_edges(session: &Session) -> Vec<Edge> {
    let mut edges = Vec::new();
    let mut owners: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    for pod in session.pods().values() {
        owners.entry(owner(pod)).or_default().extend(metrics(pod).await);
    }
    for (owner, samples) in owners {
        edges.extend(traffic::edges(&owner, &samples));
    }
    edges
}

async fn metrics(pod: &StartedPod) -> Vec<Sample> {
    if pod.sidecar().is_none() {
        return Vec::new();
    }
    let page = timeout(ASK_LIMIT, pod.pod().admin_get("/stats/prometheus")).await;
    match page {
        Ok(Ok((StatusCode::OK, body))) => prometheus::parse(&String::from_utf8_lossy(&body)),
        // A sidecar that doesn't answer shows in its pod's state.
        _ => Vec::new(),
    }
}

async fn counts(pod: &StartedPod) -> Option<Counts> {
    let asked = pod.plan().containers.iter().any(is_bookstore);
    if !asked || pod.apps().is_empty() {
        return None;
    }
    let page = timeout(ASK_LIMIT, pod.pod().namespace().http_get(COUNTS, "/")).await;
    let Ok(Ok((StatusCode::OK, body))) = page else { return None };
    serde_json::from_slice(&body).ok()
}

fn is_bookstore(container: &Container) -> bool {
    let words: Vec<&str> = container.argv.iter().map(String::as_str).take(3).collect();
    matches!(words[..], ["oxmesh", "app", app] if app != "bookdb")
}

fn owner(pod: &StartedPod) -> String {
    let plan = pod.plan();
    format!("{}/{}", plan.key.namespace, plan.owner.1)
}

fn row(pod: &StartedPod) -> PodRow {
    let data_plane = pod.pod().spec().data_plane;
    PodRow {
        name: pod.plan().key.to_string(),
        ip: pod.pod().ip().to_string(),
        sidecar: data_plane.map_or("none", |data_plane| data_plane.program()).to_owned(),
        state: pod.state().to_owned(),
    }
}

/// The backends of each split, as `namespace/service`.
fn splits(objects: &Objects) -> Vec<Vec<String>> {
    let splits = objects.traffic_splits.iter();
    splits
        .map(|(key, split)| {
            let backends = split.spec.backends.iter();
            backends.map(|backend| format!("{}/{}", key.namespace, backend.service)).collect()
        })
        .collect()
}

/// Failed calls of the bookstore's applications, with what policy says about them.
fn refused(session: &Session, objects: &Objects, apps: &Apps) -> Vec<Refused> {
    let mesh = Mesh::build(objects, &Settings::default()).mesh;
    let mut rows = Vec::new();
    for counts in apps.values() {
        let caller = session
            .pods()
            .values()
            .find(|pod| pod.plan().containers.iter().any(|c| c.argv.get(2) == Some(&counts.app)));
        let why = caller.and_then(|pod| forbidden(objects, &mesh, pod, &counts.target));
        for (reason, count) in &counts.by_failure {
            let why = why.as_ref().map_or_else(|| reason.clone(), |why| format!("{why} ({reason})"));
            rows.push(Refused {
                from: caller.map_or_else(|| counts.app.clone(), owner),
                to: counts.target.clone(),
                count: *count,
                why,
            });
        }
    }
    rows
}

/// Says so when no policy lets the caller call any backend of the target, `svc.ns:port`.
fn forbidden(objects: &Objects, mesh: &Mesh, caller: &StartedPod, target: &str) -> Option<String> {
    let (name, namespace) = target.split(':').next()?.split_once('.')?;
    if mesh.config().permissive {
        return None;
    }
    let plan = caller.plan();
    let source = ServiceIdentity::new(&plan.key.namespace, &plan.service_account);
    // Pods' objects are not among the manifests: accounts are told by the deployments' labels.
    let service = objects.services.get(&Key::new(namespace, name))?;
    let selector = service.spec.as_ref()?.selector.as_ref()?;
    let accounts: Vec<ServiceIdentity> = objects
        .deployments
        .iter()
        .filter(|(key, _)| key.namespace == namespace)
        .filter_map(|(key, deployment)| {
            let template = &deployment.spec.as_ref()?.template;
            let labels = template.metadata.as_ref()?.labels.as_ref()?;
            let selected = selector.iter().all(|(name, value)| labels.get(name) == Some(value));
            let account = template.spec.as_ref()?.service_account_name.as_deref().unwrap_or("default");
            selected.then(|| ServiceIdentity::new(&key.namespace, account))
        })
        .collect();
    let allowed = accounts.iter().any(|account| mesh.may_call(&source, account));
    (!allowed && !accounts.is_empty()).then(|| {
        format!("no TrafficTarget lets {}/{} call {namespace}/{name}", plan.key.namespace, plan.service_account)
    })
}
