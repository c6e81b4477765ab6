//! A mesh under test.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use oxmesh::{
    mesh::{Session, SessionOptions, StartedPod, plans, read},
    pod::{Binaries, DataPlane, Exempt, Folder, Namespace, Process, Topology, TopologyOptions, User},
};
use oxmesh_controller::{api::Key, settings::Settings};
use tokio::time::{Instant, sleep};

use crate::load::Load;

const START_LIMIT: Duration = Duration::from_secs(60);

/// Which sidecars the pods get, and how they speak to the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planes {
    /// Of pods whose name begins with `client` or `thief`.
    pub client: DataPlane,
    /// Of all others.
    pub server: DataPlane,
    /// Delta xDS instead of state of the world.
    pub delta: bool,
}

impl Planes {
    /// Our proxy everywhere, state of the world.
    pub const OURS: Self = Self { client: DataPlane::Oxmesh, server: DataPlane::Oxmesh, delta: false };

    /// Whether real Envoy takes part.
    #[must_use]
    pub fn need_envoy(self) -> bool {
        self.client == DataPlane::Envoy || self.server == DataPlane::Envoy
    }
}

/// `target/tools` of the project.
#[must_use]
pub fn tools() -> PathBuf {
    project().join("target/tools")
}

/// The project's root.
#[must_use]
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the project")
}

/// A mesh: controller, pods, and the folder of manifests.
pub struct TestMesh {
    session: Session,
    settings: Settings,
    planes: Planes,
}

/// An HTTP answer as curl saw it.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Head and body together, as printed by `curl -i`.
    pub text: String,
}

impl Answer {
    /// Value of a header, by its lower-case name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().take_while(|l| !l.trim().is_empty()).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl TestMesh {
    /// Starts a mesh of these manifests (file name, text) and waits until every pod is ready.
    ///
    /// # Errors
    /// When it doesn't stand within a minute; says which pod and why, with the last lines of its logs.
    pub async fn start(manifests: &[(&str, String)], planes: Planes) -> Result<Self> {
        Self::start_with(manifests, planes, Settings::default()).await
    }

    /// As [`Self::start`], with settings of the controller.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(manifests: &[(&str, String)], planes: Planes, settings: Settings) -> Result<Self> {
        let binaries = Binaries::beside_self().with_folder(tools().join("bin"));
        let options = TopologyOptions { folder: Folder::temporary()?, binaries, exempt: Exempt::detect() };
        let topology = Topology::new(options).await?;
        let folder = topology.folder().join("manifests");
        fs::create_dir_all(&folder)?;
        for (name, text) in manifests {
            fs::write(folder.join(name), text)?;
        }
        let session = Session::start(SessionOptions {
            topology,
            manifests: folder,
            settings: settings.clone(),
            delta: planes.delta,
        })
        .await?;
        let mut mesh = Self { session, settings, planes };
        mesh.follow().await?;
        Ok(mesh)
    }

    /// Writes a manifest; the controller sees it by itself. Pods follow with [`Self::follow`].
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.session.manifests().join(file);
        let half = path.with_extension("half");
        fs::write(&half, text)?;
        Ok(fs::rename(half, path)?)
    }

    /// Removes a manifest.
    ///
    /// # Errors
    /// When it isn't there.
    pub fn remove(&self, file: &str) -> Result<()> {
        Ok(fs::remove_file(self.session.manifests().join(file))?)
    }

    /// Brings pods and names in line with the manifests and waits until all pods are ready.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn follow(&mut self) -> Result<()> {
        let loaded = read(&[self.session.manifests()], &self.settings);
        let (plans, findings) = plans(&loaded.objects, "osm");
        ensure!(findings.is_empty(), "{findings:?}");
        let planes = self.planes;
        let failed = self
            .session
            .reconcile(plans, false, |key| {
                if key.name.starts_with("client") || key.name.starts_with("thief") {
                    planes.client
                } else {
                    planes.server
                }
            })
            .await;
        ensure!(failed.is_empty(), "{failed:?}");
        let deadline = Instant::now() + START_LIMIT;
        loop {
            self.session.advance().await?;
            self.session.write_hosts()?;
            if self.session.pods().values().all(|pod| pod.state() == "ready") {
                return Ok(());
            }
            if self.session.settled() || Instant::now() >= deadline {
                bail!("the mesh does not stand:\n{}", self.words());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The state of each pod and the last lines of its logs, for failures.
    #[must_use]
    pub fn words(&self) -> String {
        let mut words = String::new();
        for (key, pod) in self.session.pods() {
            words += &format!("{key}: {}\n", pod.state());
            for process in pod.sidecar().into_iter().chain(pod.apps()) {
                words += &format!("  {}: {}\n", process.name(), process.log_tail(8));
            }
        }
        words
    }

    /// The running session.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The running session, to restart parts of it.
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// A pod by namespace and name.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<&StartedPod> {
        self.session.pods().get(&Key::new(namespace, name)).with_context(|| format!("no pod {namespace}/{name}"))
    }

    /// The first replica of a deployment in the shop.
    ///
    /// # Errors
    /// When there is none.
    pub fn shop(&self, deployment: &str) -> Result<&StartedPod> {
        self.pod("shop", &format!("{deployment}-0"))
    }

    /// curl from inside a pod, as its application would: `Ok` is an answer, `Err` has curl's exit status.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn curl(&self, deployment: &str, args: &[&str]) -> Result<Answer> {
        let mut argv = vec!["curl", "-s", "-i", "--max-time", "10"];
        argv.extend(args);
        let text = self.shop(deployment)?.pod().exec(&argv).await?;
        // With a proxy's 100 Continue there may be several heads; the last one counts.
        let status = text
            .lines()
            .filter_map(|l| l.strip_prefix("HTTP/")?.split(' ').nth(1)?.parse().ok())
            .next_back()
            .with_context(|| format!("no status in {text:?}"))?;
        Ok(Answer { status, text })
    }

    /// Waits until a request from a pod is answered 200: ready pods are known to their callers a moment later.
    ///
    /// # Errors
    /// The last answer, after 15 s.
    pub async fn served(&self, deployment: &str, url: &str) -> Result<()> {
        let args = [url];
        crate::eventually(&format!("{deployment} is served by {url}"), Duration::from_secs(15), || async {
            let answer = self.curl(deployment, &args).await?;
            ensure!(answer.status == 200, "answered {}", answer.text);
            Ok(())
        })
        .await
    }

    /// Waits until the shop's client is served by both versions of the store.
    ///
    /// # Errors
    /// As [`Self::served`].
    pub async fn both_versions_serve(&self) -> Result<()> {
        self.served("client", "http://store-v1.shop/").await?;
        self.served("client", "http://store-v2.shop/").await
    }

    /// Steady load from inside a pod, to its end.
    ///
    /// # Errors
    /// When the program fails.
    pub async fn load(&self, deployment: &str, url: &str, rate: u32, seconds: f64) -> Result<Load> {
        let (rate, seconds) = (rate.to_string(), seconds.to_string());
        let program = Binaries::beside_self().find("oxmesh-test-app")?;
        let argv = [
            program.as_os_str(),
            "load".as_ref(),
            url.as_ref(),
            "--rate".as_ref(),
            rate.as_ref(),
            "--seconds".as_ref(),
            seconds.as_ref(),
        ];
        // As root of the pod, who is not the sidecar either: the program may lie where users have no way to.
        Load::parse(&self.shop(deployment)?.pod().namespace().exec(User::Root, &argv).await?)
    }

    /// A statistic of a pod's sidecar by its exact name; absent counts as 0.
    ///
    /// # Errors
    /// When the admin server doesn't answer.
    pub async fn stat(&self, deployment: &str, name: &str) -> Result<u64> {
        let (_, text) = self.shop(deployment)?.pod().admin_get("/stats").await?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ")?.trim().parse().ok());
        Ok(value.unwrap_or(0))
    }

    /// Prometheus text of a pod's sidecar.
    ///
    /// # Errors
    /// When the admin server doesn't answer.
    pub async fn prometheus(&self, deployment: &str) -> Result<String> {
        let (_, text) = self.shop(deployment)?.pod().admin_get("/stats/prometheus").await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The sidecar's access log so far.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn access_log(&self, deployment: &str) -> Result<Vec<serde_json::Value>> {
        let sidecar = self.shop(deployment)?.sidecar().context("the pod has a sidecar")?;
        let text = fs::read_to_string(sidecar.log().context("the sidecar has a log")?)?;
        Ok(text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect())
    }

    /// A Python program of `tests/peers` inside a pod, as its root, with the packages of `target/tools`.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn_python(&self, deployment: &str, script: &str, args: &[&str]) -> Result<Process> {
        let namespace = self.shop(deployment)?.pod().namespace();
        let mut command = python(namespace, script);
        command.args(args);
        Ok(namespace.spawn(script, command)?)
    }

    /// As [`Self::spawn_python`], to its end; gives its output.
    ///
    /// # Errors
    /// When it fails, with its standard error.
    pub async fn run_python(&self, deployment: &str, script: &str, args: &[&str]) -> Result<String> {
        let namespace = self.shop(deployment)?.pod().namespace();
        let mut command = python(namespace, script);
        let output = command.args(args).stdin(std::process::Stdio::null()).output().await?;
        ensure!(
            output.status.success(),
            "{script} {args:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What the controller knows of its clients (`/debug/proxies`).
    ///
    /// # Errors
    /// When its admin server doesn't answer.
    pub async fn controller(&self, path: &str) -> Result<serde_json::Value> {
        let (status, text) = self.session.topology().node().http_get(oxmesh::mesh::CONTROLLER_ADMIN, path).await?;
        ensure!(status == 200, "{path}: {status}");
        Ok(serde_json::from_slice(&text)?)
    }

    /// All sidecars are connected, and none has refused anything that the controller sent.
    ///
    /// # Errors
    /// With what was refused.
    pub async fn no_nacks(&self) -> Result<()> {
        let pods = self.session.pods().values().filter(|pod| pod.plan().meshed).count();
        // Envoy waits up to 30 s before it tries again to reach a control plane that was away.
        let all = crate::eventually("all sidecars are connected", Duration::from_secs(45), || async {
            let proxies = self.controller("/debug/proxies").await?;
            let connected = proxies.as_array().map_or(0, Vec::len);
            ensure!(connected == pods, "{connected} of {pods} sidecars are connected: {proxies:#}");
            Ok(proxies)
        });
        let proxies = all.await?;
        ensure!(nacks(&proxies) == 0, "a sidecar refused something: {proxies:#}");
        Ok(())
    }
}

/// Sums every number called `nacks` in a JSON value.
fn nacks(value: &serde_json::Value) -> u64 {
    match value {
        serde_json::Value::Object(map) => {
            map.iter().map(|(k, v)| if k == "nacks" { v.as_u64().unwrap_or(0) } else { nacks(v) }).sum()
        }
        serde_json::Value::Array(list) => list.iter().map(nacks).sum(),
        _ => 0,
    }
}

fn python(namespace: &Namespace, script: &str) -> tokio::process::Command {
    let mut command = namespace.command(User::Root, "python3");
    command
        .env("PYTHONPATH", tools().join("python"))
        .env("PYTHONUNBUFFERED", "1")
        // Names come from the hosts file; there is no DNS server to ask for more.
        .env("GRPC_DNS_RESOLVER", "native")
        .arg(project().join("tests/peers").join(script));
    command
}
