//! A Kubernetes cluster under test, by way of `kubectl` and `helm`.
//!
//! It is the node of `tests/cluster`, started on first use with our images and left running for the next test binary
//! (`make cluster-down` ends it), or the user's own when KUBECONFIG is set: its nodes then must be able to pull our images
//! from OXMESH_REGISTRY. Each test works in namespaces of its own, which go when it ends.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command as Blocking, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::mesh::{project, tools};

/// A cluster that answers.
#[derive(Debug)]
pub struct Cluster {
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    helm: PathBuf,
    registry: String,
    tag: String,
    ours: bool,
}

/// Why scenarios on a cluster can't run here, if they can't.
#[must_use]
pub fn cluster_missing() -> Option<String> {
    if env::var_os("KUBECONFIG").is_some() {
        return env::var_os("OXMESH_REGISTRY").is_none().then(|| {
            "KUBECONFIG is set, but not OXMESH_REGISTRY, from which that cluster's nodes get our images".to_owned()
        });
    }
    let said = Blocking::new(script()).arg("missing").output();
    let said = said.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    (!said.is_empty()).then_some(said)
}

/// Why scenarios can't run that restart parts of the control plane or go to pods from this machine, if they can't.
#[must_use]
pub fn own_missing() -> Option<String> {
    let user = env::var_os("KUBECONFIG").is_some();
    cluster_missing().or_else(|| user.then(|| "needs the test cluster's own node, not that of KUBECONFIG".to_owned()))
}

impl Cluster {
    /// The one that all tests of this run share. The first call starts it, which takes about ten seconds; blocks meanwhile.
    ///
    /// # Errors
    /// When it doesn't start; with what the failing step said. The same for every later call.
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Cluster, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| Self::find_or_start().map_err(|e| format!("{e:#}")));
        shared.as_ref().map_err(|e| anyhow::anyhow!("no cluster: {e}"))
    }

    fn find_or_start() -> Result<Self> {
        let tag = env::var("OXMESH_TAG").unwrap_or_else(|_| env!("CARGO_PKG_VERSION").to_owned());
        if let Some(kubeconfig) = env::var_os("KUBECONFIG") {
            let registry = env::var("OXMESH_REGISTRY").context("OXMESH_REGISTRY")?;
            let (kubectl, helm) = (program("kubectl"), program("helm"));
            return Ok(Self { kubeconfig: kubeconfig.into(), kubectl, helm, registry, tag, ours: false });
        }
        step(Blocking::new(project().join("tests/tools/image.sh")).arg("test").env("PROFILE", "dev"))?;
        step(Blocking::new(script()).arg("up"))?;
        step(Blocking::new(script()).arg("images"))?;
        let name = env::var("OXMESH_CLUSTER").unwrap_or_else(|_| "cluster".to_owned());
        let kubeconfig = project().join("target").join(name).join("kubeconfig");
        let registry = "oxmesh.test".to_owned();
        Ok(Self { kubeconfig, kubectl: program("kubectl"), helm: program("helm"), registry, tag, ours: true })
    }

    /// The name of one of our images (`proxy`, `controller`, `init`, `app`) as the cluster's nodes know it.
    #[must_use]
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}:{}", self.registry, self.tag)
    }

    /// Registry and tag of our images, as the chart takes them.
    #[must_use]
    pub fn registry_and_tag(&self) -> (&str, &str) {
        (&self.registry, &self.tag)
    }

    /// The `helm` to use.
    #[must_use]
    pub fn helm_program(&self) -> &Path {
        &self.helm
    }

    /// The name of real Envoy's image: OXMESH_ENVOY_IMAGE, else the one made of what `make tools` has fetched.
    #[must_use]
    pub fn envoy_image(&self) -> String {
        env::var("OXMESH_ENVOY_IMAGE").unwrap_or_else(|_| format!("{}/envoy:v{ENVOY_VERSION}", self.registry))
    }

    /// For a client of the API server: this machine reaches it, as it does pods and services.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The key with which the API server signs service accounts' tokens, PEM; none where the cluster is the user's own.
    #[must_use]
    pub fn accounts_key(&self) -> Option<PathBuf> {
        let name = env::var("OXMESH_CLUSTER").unwrap_or_else(|_| "oxmesh-cluster".to_owned());
        self.ours.then(|| Path::new("/tmp").join(name).join("pki/accounts.key"))
    }

    /// Stops one of the control plane's programs hard and starts it again: `etcd`, `kube-apiserver`, ….
    ///
    /// # Errors
    /// When the cluster isn't ours, or it doesn't run.
    pub fn restart(&self, program: &str) -> Result<()> {
        ensure!(self.ours, "the programs of the user's own cluster are not ours to restart");
        step(Blocking::new(script()).args(["restart", program]))
    }

    /// What `kubectl` prints.
    ///
    /// # Errors
    /// When it fails; with its words.
    pub async fn kubectl<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        self.run(&self.kubectl, arguments, "").await
    }

    /// What `helm` prints.
    ///
    /// # Errors
    /// When it fails; with its words.
    pub async fn helm<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        self.run(&self.helm, arguments, "").await
    }

    /// Applies manifests that name their own namespaces.
    ///
    /// # Errors
    /// When the API server refuses one; with its words.
    pub async fn apply(&self, manifests: &str) -> Result<String> {
        self.run(&self.kubectl, ["apply", "-f", "-"], manifests).await
    }

    /// A new namespace whose name begins with `prefix`.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn namespace(&'static self, prefix: &str) -> Result<Namespace> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        self.kubectl(["create", "namespace", &name]).await?;
        Ok(Namespace { cluster: self, name })
    }

    async fn run<S: AsRef<OsStr>>(
        &self,
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
        input: &str,
    ) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig).kill_on_drop(true);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        // A program that has failed reads no further; its words follow.
        let _closed = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output().await?;
        let shown = command.as_std().get_args().map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
        if !output.status.success() {
            let said = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).trim().to_owned());
            bail!("{} {shown}: {}: {}", program.display(), output.status, said.join("\n"));
        }
        String::from_utf8(output.stdout).with_context(|| format!("output of {shown}"))
    }
}

/// A namespace of one test; deleted, with all that is in it, when dropped.
#[derive(Debug)]
pub struct Namespace {
    cluster: &'static Cluster,
    name: String,
}

impl Namespace {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `kubectl -n <this>` prints.
    ///
    /// # Errors
    /// When it fails; with its words.
    pub async fn kubectl<'a>(&'a self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        self.cluster.kubectl(["-n", &self.name].into_iter().chain(arguments)).await
    }

    /// Applies manifests to this namespace.
    ///
    /// # Errors
    /// When the API server refuses one; with its words.
    pub async fn apply(&self, manifests: &str) -> Result<String> {
        self.cluster.run(&self.cluster.kubectl, ["-n", &self.name, "apply", "-f", "-"], manifests).await
    }

    /// Objects as JSON: `["pod", "client"]`, `["pods", "-l", "app=store"]`.
    ///
    /// # Errors
    /// When there is no such object.
    pub async fn get<'a>(&'a self, what: impl IntoIterator<Item = &'a str>) -> Result<Value> {
        let text = self.kubectl(["get", "-o", "json"].into_iter().chain(what)).await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits for a condition: `("pod/client", "condition=Ready")`, `("job/buy", "condition=Complete")`.
    ///
    /// # Errors
    /// When it doesn't come true within `limit`; with the namespace's pods and latest events.
    pub async fn wait(&self, what: &str, condition: &str, limit: Duration) -> Result<()> {
        let (condition, limit) = (format!("--for={condition}"), format!("--timeout={}s", limit.as_secs()));
        self.explained(self.kubectl(["wait", what, &condition, &limit]).await).await
    }

    /// Waits until a Deployment, DaemonSet or StatefulSet has all its pods, up to date and ready.
    ///
    /// # Errors
    /// When that takes longer than `limit`; with the namespace's pods and latest events.
    pub async fn rolled_out(&self, what: &str, limit: Duration) -> Result<()> {
        let limit = format!("--timeout={}s", limit.as_secs());
        self.explained(self.kubectl(["rollout", "status", what, &limit]).await).await
    }

    /// What a command prints in a pod (or `deployment/NAME`); in its first container, or the one that the annotation
    /// `kubectl.kubernetes.io/default-container` names.
    ///
    /// # Errors
    /// When it fails; with its words.
    pub async fn exec<'a>(&'a self, pod: &'a str, command: impl IntoIterator<Item = &'a str>) -> Result<String> {
        self.kubectl(["exec", pod, "--"].into_iter().chain(command)).await
    }

    /// What a container of a pod (or `deployment/NAME`) has printed.
    ///
    /// # Errors
    /// When there is no such container, or it has not started.
    pub async fn logs(&self, pod: &str, container: &str) -> Result<String> {
        self.kubectl(["logs", pod, "-c", container, "--tail=-1"]).await
    }

    async fn explained(&self, outcome: Result<String>) -> Result<()> {
        let Err(e) = outcome else { return Ok(()) };
        let pods = self.kubectl(["get", "pods", "-o", "wide"]).await.unwrap_or_default();
        let events = self.kubectl(["get", "events", "--sort-by=.lastTimestamp"]).await.unwrap_or_default();
        let latest: Vec<_> = events.lines().rev().take(20).collect();
        Err(e.context(format!("pods:\n{pods}\nlatest events first:\n{}", latest.join("\n"))))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nobody waits for the end, which the pods' grace periods may put off.
        let _unheard = Blocking::new(&self.cluster.kubectl)
            .args(["delete", "namespace", "--wait=false", &self.name])
            .env("KUBECONFIG", &self.cluster.kubeconfig)
            .output();
    }
}

fn script() -> PathBuf {
    project().join("tests/cluster/cluster.sh")
}

/// The one in `target/tools`, else that of the path.
fn program(name: &str) -> PathBuf {
    Some(tools().join("bin").join(name)).filter(|p| p.is_file()).unwrap_or_else(|| name.into())
}

fn step(command: &mut Blocking) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    let said = [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b).trim().to_owned()).join("\n");
    ensure!(output.status.success(), "{command:?}: {}: {said}", output.status);
    Ok(())
}

/// As in `tests/tools/install.sh`.
const ENVOY_VERSION: &str = "1.40.0";
