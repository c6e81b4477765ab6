//! The node's controller, and the pods' way from a plan to readiness.
//!
//! A pod goes: namespaces and redirection → its object, not ready → sidecar → the sidecar has
//! its configuration → applications → a port answers → its object, ready. Each step is polled, so
//! a pod that hangs holds up no other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use http::StatusCode;
use oxmesh_controller::api::Key;
use oxmesh_controller::identity::Issuer;
use oxmesh_controller::settings::Settings;
use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout};

use super::plan::PodPlan;
use super::{identity, names};
use crate::pod::{DataPlane, Pod, PodSpec, Process, Topology, User, until};

const ADS_PORT: u16 = 15128;
/// The controller's admin interface, in the node's namespace.
pub const CONTROLLER_ADMIN: &str = "127.0.0.1:9092";
const CONTROLLER_LIMIT: Duration = Duration::from_secs(20);
const PROBE_LIMIT: Duration = Duration::from_millis(500);
/// What sidecars log beside the access log.
const QUIET: [&str; 2] = ["-l", "warning"];
/// Time in which the controller hears of a change and tells all sidecars.
const TURN_AWAY: Duration = Duration::from_millis(500);
/// A sidecar gives open requests 5 s.
const GRACE: Duration = Duration::from_secs(6);
/// At the end of all, nobody waits for an answer any more.
const LAST_GRACE: Duration = Duration::from_secs(1);

/// How to run a mesh.
#[derive(Debug)]
pub struct SessionOptions {
    /// The node.
    pub topology: Topology,
    /// The folder with the user's objects.
    pub manifests: PathBuf,
    /// What the controller is told, and names are made of.
    pub settings: Settings,
    /// Sidecars ask for changes only (delta xDS) instead of the state of the world.
    pub delta: bool,
}

/// A mesh: node, controller (unless another process runs it) and pods.
#[derive(Debug)]
pub struct Session {
    // Fields drop in this order: applications first, the node last.
    pods: BTreeMap<Key, StartedPod>,
    controller: Option<Process>,
    issuer: Issuer,
    topology: Topology,
    manifests: PathBuf,
    settings: Settings,
    delta: bool,
}

/// A pod on its way to readiness, or there.
#[derive(Debug)]
pub struct StartedPod {
    // Fields drop in this order.
    apps: Vec<Process>,
    sidecar: Option<Process>,
    pod: Pod,
    plan: PodPlan,
    phase: Phase,
}

/// How far a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Configuring,
    Starting,
    Ready,
    Failed(String),
}

impl Session {
    /// Starts the controller in the node and waits until sidecars can connect.
    ///
    /// # Errors
    /// When the controller isn't found, ends, or doesn't listen in time; with its last words.
    pub async fn start(options: SessionOptions) -> anyhow::Result<Self> {
        let SessionOptions { topology, manifests, settings, delta } = options;
        let issuer = identity::authority(&topology, &settings)?;
        let controller = start_controller(&topology, &manifests, &settings).await?;
        Ok(Self { pods: BTreeMap::new(), controller: Some(controller), issuer, topology, manifests, settings, delta })
    }

    /// Uses the controller that another process runs.
    ///
    /// # Errors
    /// When the mesh's certificate authority can't be read.
    pub fn join(options: SessionOptions) -> anyhow::Result<Self> {
        let SessionOptions { topology, manifests, settings, delta } = options;
        let issuer = identity::authority(&topology, &settings)?;
        Ok(Self { pods: BTreeMap::new(), controller: None, issuer, topology, manifests, settings, delta })
    }

    /// The node.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The node, to keep its folder.
    pub fn topology_mut(&mut self) -> &mut Topology {
        &mut self.topology
    }

    /// The folder with the user's objects.
    #[must_use]
    pub fn manifests(&self) -> &Path {
        &self.manifests
    }

    /// The pods by namespace and name.
    #[must_use]
    pub fn pods(&self) -> &BTreeMap<Key, StartedPod> {
        &self.pods
    }

    /// Whether all pods are ready, or have failed.
    #[must_use]
    pub fn settled(&self) -> bool {
        let settled = |pod: &StartedPod| matches!(pod.phase, Phase::Ready | Phase::Failed(_));
        self.pods.values().all(settled)
    }

    /// Makes a pod and starts its sidecar. The rest comes with [`Session::advance`].
    ///
    /// # Errors
    /// When a step failed; nothing is left of the pod then.
    pub async fn start_pod(&mut self, plan: PodPlan, data_plane: DataPlane) -> anyhow::Result<()> {
        let spec = PodSpec {
            name: plan.key.name.clone(),
            namespace: plan.key.namespace.clone(),
            service_account: plan.service_account.clone(),
            labels: plan.labels.clone(),
            annotations: plan.annotations.clone(),
            owner: Some(plan.owner.clone()),
            subdomain: plan.subdomain.clone(),
            ports: plan.containers.iter().flat_map(|container| container.ports.clone()).collect(),
            data_plane: plan.meshed.then_some(data_plane),
            redirect: plan.redirect.clone(),
            programs: self.programs(&plan),
        };
        let pod = self.topology.pod(spec).await?;
        pod.write_object(&self.state(), false)?;
        let mut started = StartedPod { apps: Vec::new(), sidecar: None, pod, plan, phase: Phase::Configuring };
        if started.plan.meshed {
            let folder = started.pod.namespace().folder().join("bootstrap");
            let address = (self.topology.addresses().v4(), ADS_PORT);
            identity::write_bootstrap(&self.issuer, &started.pod, &folder, address, &self.settings, self.delta)?;
            started.sidecar = Some(started.pod.spawn_sidecar(&folder, &QUIET.map(str::to_owned))?);
        }
        self.pods.insert(started.plan.key.clone(), started);
        Ok(())
    }

    /// Programs of the containers that lie beside ours and not where every user finds them.
    fn programs(&self, plan: &PodPlan) -> Vec<PathBuf> {
        let names = plan.containers.iter().filter_map(|container| container.argv.first());
        let bare = names.filter(|name| !name.contains('/') && *name != "oxmesh");
        bare.filter_map(|name| self.topology.binaries().find(name).ok()).collect()
    }

    /// Kills the controller, as a crash would.
    ///
    /// # Errors
    /// When it isn't ours, or its end can't be awaited.
    pub async fn kill_controller(&mut self) -> anyhow::Result<()> {
        let mut controller = self.controller.take().context("another process runs the controller")?;
        controller.signal(Signal::KILL);
        controller.wait().await?;
        Ok(())
    }

    /// Starts a controller on the same folders, after [`Session::kill_controller`].
    ///
    /// # Errors
    /// As [`Session::start`].
    pub async fn start_controller(&mut self) -> anyhow::Result<()> {
        self.controller = Some(start_controller(&self.topology, &self.manifests, &self.settings).await?);
        Ok(())
    }

    /// Waits until the sidecar of a pod has ended by itself.
    ///
    /// # Errors
    /// When there is no such sidecar, or it still runs after `limit`.
    pub async fn wait_sidecar(&mut self, key: &Key, limit: Duration) -> anyhow::Result<ExitStatus> {
        let sidecar = self.pods.get_mut(key).and_then(|pod| pod.sidecar.as_mut());
        let sidecar = sidecar.with_context(|| format!("pod {key} has no sidecar"))?;
        Ok(timeout(limit, sidecar.wait()).await.with_context(|| format!("the sidecar of {key} runs on"))??)
    }

    /// Ends pods: their objects go first, and callers get time to turn away before they are gone.
    pub async fn stop_pods(&mut self, keys: &[Key]) {
        let state = self.state();
        let mut ending: Vec<StartedPod> = keys.iter().filter_map(|key| self.pods.remove(key)).collect();
        for pod in &ending {
            // Gone already is as good.
            let _ = pod.pod.remove_object(&state);
        }
        if !ending.is_empty() {
            sleep(TURN_AWAY).await;
        }
        for process in ending.iter_mut().flat_map(|pod| pod.apps.iter_mut().chain(&mut pod.sidecar)) {
            process.stop(GRACE).await;
        }
    }

    /// Brings the pods in line with the plans: starts, stops, and restarts what changed. Gives
    /// what could not be started. With `keep`, no pod is stopped for having no plan.
    pub async fn reconcile(
        &mut self,
        plans: Vec<PodPlan>,
        keep: bool,
        mut data_plane: impl FnMut(&Key) -> DataPlane,
    ) -> Vec<String> {
        let mut findings = Vec::new();
        let wanted: BTreeMap<Key, PodPlan> = plans.into_iter().map(|plan| (plan.key.clone(), plan)).collect();
        let obsolete: Vec<Key> = self
            .pods
            .iter()
            .filter(|(key, pod)| match wanted.get(*key) {
                Some(plan) => *plan != pod.plan,
                None => !keep,
            })
            .map(|(key, _)| key.clone())
            .collect();
        self.stop_pods(&obsolete).await;
        for (key, plan) in wanted {
            if !self.pods.contains_key(&key) {
                let data_plane = data_plane(&key);
                if let Err(error) = self.start_pod(plan, data_plane).await {
                    findings.push(format!("pod {key}: {error:#}"));
                }
            }
        }
        findings
    }

    /// Names resolve as the objects in both folders say, in all pods of this process.
    ///
    /// # Errors
    /// When a hosts file can't be written.
    pub fn write_hosts(&self) -> anyhow::Result<()> {
        let snapshot = super::read(&[&self.manifests, &self.state()], &self.settings);
        let services = names::services(&snapshot.objects, &self.settings);
        for pod in self.pods.values() {
            pod.pod.write_hosts(&services)?;
        }
        Ok(())
    }

    /// Takes each pod one step further if it can go.
    ///
    /// # Errors
    /// When the controller has ended: nothing works any more. A pod's failure is its state.
    pub async fn advance(&mut self) -> anyhow::Result<()> {
        if let Some(controller) = &mut self.controller
            && let Some(status) = controller.ended()
        {
            return Err(controller.failure(status).into());
        }
        let state = self.state();
        for pod in self.pods.values_mut() {
            if let Err(error) = pod.advance(&state).await {
                pod.phase = Phase::Failed(format!("{error:#}"));
                // Nobody should be sent to it; the failure above is the one to tell.
                let _ = pod.pod.write_object(&state, false);
            }
        }
        Ok(())
    }

    /// The folder of objects that we write.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.topology.folder().join("state")
    }

    /// Ends all: pods first, then the controller.
    pub async fn stop(mut self) {
        for pod in self.pods.values() {
            // All at once; below each is waited for.
            for process in pod.apps.iter().chain(&pod.sidecar) {
                process.signal(Signal::TERM);
            }
        }
        for pod in self.pods.values_mut() {
            for process in pod.apps.iter_mut().chain(&mut pod.sidecar) {
                process.stop(LAST_GRACE).await;
            }
        }
        if let Some(controller) = &mut self.controller {
            controller.stop(LAST_GRACE).await;
        }
    }
}

impl StartedPod {
    /// What it was started from.
    #[must_use]
    pub fn plan(&self) -> &PodPlan {
        &self.plan
    }

    /// Its namespaces.
    #[must_use]
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Its sidecar, if it has one.
    #[must_use]
    pub fn sidecar(&self) -> Option<&Process> {
        self.sidecar.as_ref()
    }

    /// Its applications, once started.
    #[must_use]
    pub fn apps(&self) -> &[Process] {
        &self.apps
    }

    /// Whether the sidecar has its configuration, so that the application may start.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Ready)
    }

    /// How far it is, in words.
    #[must_use]
    pub fn state(&self) -> &str {
        match &self.phase {
            Phase::Configuring => "the sidecar waits for its configuration",
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Failed(reason) => reason,
        }
    }

    async fn advance(&mut self, state: &Path) -> anyhow::Result<()> {
        if matches!(self.phase, Phase::Failed(_)) {
            return Ok(());
        }
        for process in self.sidecar.iter_mut().chain(&mut self.apps) {
            if let Some(status) = process.ended() {
                return Err(process.failure(status).into());
            }
        }
        if self.phase == Phase::Configuring && self.configured().await {
            self.start_apps()?;
            self.phase = Phase::Starting;
        }
        if self.phase == Phase::Starting && self.answers().await {
            self.pod.write_object(state, true)?;
            self.phase = Phase::Ready;
        }
        Ok(())
    }

    async fn configured(&self) -> bool {
        if self.sidecar.is_none() {
            return true;
        }
        let ready = timeout(PROBE_LIMIT, self.pod.admin_get("/ready")).await;
        matches!(ready, Ok(Ok((StatusCode::OK, _))))
    }

    fn start_apps(&mut self) -> anyhow::Result<()> {
        for container in self.plan.containers.iter().filter(|container| !container.argv.is_empty()) {
            let app = self.pod.spawn_app(&container.name, &container.argv, &container.env)?;
            self.apps.push(app);
        }
        Ok(())
    }

    /// Whether the first port takes connections; an application without ports is ready at once.
    async fn answers(&self) -> bool {
        let mut ports = self.plan.containers.iter().flat_map(|container| &container.ports);
        let Some((_, port)) = ports.next() else { return true };
        for ip in ["127.0.0.1".to_owned(), self.pod.ip().to_string()] {
            let target = format!("{ip}:{port}");
            let dial = self.pod.namespace().dial(&target);
            if matches!(timeout(PROBE_LIMIT, dial).await, Ok(Ok(_))) {
                return true;
            }
        }
        false
    }
}

async fn start_controller(topology: &Topology, manifests: &Path, settings: &Settings) -> anyhow::Result<Process> {
    let node = topology.node();
    let xds = format!("{}:{ADS_PORT}", topology.addresses().v4());
    let mut command = node.command(User::Root, topology.binaries().find("oxmesh-controller")?);
    command
        .arg("--folder")
        .arg(manifests)
        .arg("--folder")
        .arg(topology.folder().join("state"))
        .arg("--state")
        .arg(topology.folder().join("ca"))
        .args(["--xds-addr", &xds, "--admin-addr", CONTROLLER_ADMIN])
        .args(["--mesh-name", &settings.mesh_name, "--osm-namespace", &settings.osm_namespace])
        .args(["--trust-domain", &settings.trust_domain])
        .args(["--service-cidr", &settings.service_cidr.to_string()]);
    let mut controller = node.spawn("controller", command)?;
    let deadline = Instant::now() + CONTROLLER_LIMIT;
    until("the controller's start", CONTROLLER_LIMIT, async || {
        if let Some(status) = controller.ended() {
            // No use to wait on: give the deadline's error at once by its own words.
            return Ok(Err(controller.failure(status)));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match timeout(left.min(PROBE_LIMIT), node.dial(&xds)).await {
            Ok(Ok(_)) => Ok(Ok(())),
            Ok(Err(error)) => Err(format!("{error}; {}", controller.log_tail(3))),
            Err(_) => Err("no answer".to_owned()),
        }
    })
    .await??;
    Ok(controller)
}

/// The files of a folder, when they were last changed, and their length.
pub(crate) type Edition = Vec<(PathBuf, SystemTime, u64)>;

/// What a folder's files are now: differs after every edit.
pub(crate) fn edition(folder: &Path) -> anyhow::Result<Edition> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        // Gone between listing and looking: the next look sees it.
        if let Ok(meta) = entry.metadata()
            && let Ok(modified) = meta.modified()
        {
            files.push((entry.path(), modified, meta.len()));
        }
    }
    files.sort();
    Ok(files)
}
