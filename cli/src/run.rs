//! `oxmesh run`: a program of the user's as a pod of a mesh on this machine, and `oxmesh exec`:
//! a command inside of such a pod.
//!
//! The first `run` in a folder makes the mesh and its controller; further ones join it. The mesh
//! ends with its maker, who waits for the others to leave.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use oxmesh_controller::api::Key;
use oxmesh_controller::settings::Settings;
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use crate::mesh::{Container, PodPlan, Session, SessionOptions, read};
use crate::pod::{
    Binaries, DataPlane, Exempt, Folder, Namespace, Pod, PodError, Process, Topology, TopologyOptions, User, agent,
};
use crate::signals::Shutdown;

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// HTTP/1 or HTTP/2.
    Http,
    /// gRPC.
    Grpc,
    /// Anything whose client speaks first.
    Tcp,
    /// Anything whose server speaks first.
    TcpServerFirst,
}

/// Options of `oxmesh run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name of the pod and of its Service; others call it by this name.
    #[arg(long)]
    name: String,
    /// Port that the program listens on. Without it the program only calls others.
    #[arg(long)]
    port: Option<u16>,
    /// What the port speaks.
    #[arg(long, value_name = "KIND", default_value = "http")]
    protocol: Protocol,
    /// ServiceAccount, which is the program's identity. By default its name.
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
    /// Namespace of pod and Service.
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// Folder of the mesh to join or to make. By default one per user in the temporary folder.
    #[arg(long, value_name = "FOLDER")]
    mesh: Option<PathBuf>,
    /// Sidecar of the pod.
    #[arg(long, value_name = "KIND", default_value = "oxmesh")]
    data_plane: Sidecar,
    /// Port of this machine's loopback that leads to the program's port, past the mesh.
    #[arg(long, value_name = "PORT")]
    publish: Option<u16>,
    /// The program and its arguments.
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

/// Which sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sidecar {
    /// Ours.
    Oxmesh,
    /// Real Envoy.
    Envoy,
}

/// Options of `oxmesh exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Folder of the mesh. By default that of `oxmesh run`.
    #[arg(long, value_name = "FOLDER")]
    mesh: Option<PathBuf>,
    /// The pod, `namespace/name`.
    pod: String,
    /// The command and its arguments.
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

const START_LIMIT: Duration = Duration::from_secs(30);
const FOLLOW: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(50);
const GRACE: Duration = Duration::from_secs(10);

/// The mesh that the arguments mean, running or not.
#[must_use]
pub fn mesh_folder(given: Option<&Path>) -> PathBuf {
    given.map_or_else(default_folder, Path::to_owned)
}

impl RunArgs {
    /// The folder of the mesh to join or to make.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        mesh_folder(self.mesh.as_deref())
    }
}

impl ExecArgs {
    /// The folder of the mesh.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        mesh_folder(self.mesh.as_deref())
    }
}

/// Runs the program and gives its exit status.
///
/// # Errors
/// When the mesh or the pod can't be made, or the program can't be started.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let mut shutdown = Shutdown::new()?;
    let settings = Settings::default();
    let mut session = open(&args.folder(), &settings).await?;
    let objects = write_objects(&session, &args, &settings)?;
    let result = serve(&mut session, &args, &mut shutdown).await;
    for file in objects {
        // Ours alone; gone already is as good.
        let _ = fs::remove_file(file);
    }
    wait_for_guests(&session, &mut shutdown).await;
    session.stop().await;
    result
}

/// Runs a command in a pod as its application would, on this terminal.
///
/// # Errors
/// When there is no such mesh or pod.
pub async fn exec(args: ExecArgs) -> anyhow::Result<ExitCode> {
    let pod = args.pod.replacen('/', ".", 1);
    let folder = args.folder().join("pods").join(&pod);
    let Some(holder) = agent::holder(&folder) else {
        let running = running_pods(&args.folder()).join(", ");
        bail!("no pod {} in the mesh {} (there are: {running})", args.pod, args.folder().display());
    };
    let namespace = Namespace::existing(&args.pod, folder, holder);
    let (program, rest) = args.command.split_first().context("no command")?;
    let mut command = namespace.command(User::Powerless, program);
    command.args(rest);
    let mut process = namespace.spawn_attached("command", command)?;
    Ok(code(process.wait().await?))
}

/// Makes the mesh, or joins the one that runs in the folder. A lock keeps two from making it.
async fn open(folder: &Path, settings: &Settings) -> anyhow::Result<Session> {
    let folder = Folder::at(folder)?;
    let lock = fs::File::create(folder.join("lock")).context("creating the mesh's lock")?;
    flock(&lock, FlockOperation::LockExclusive).context("locking the mesh")?;
    let manifests = folder.join("manifests");
    let binaries = Binaries::beside_self();
    let exempt = Exempt::detect();
    if let Some(owner) = Topology::owner(folder.path()) {
        eprintln!("joining the mesh {} of process {owner}", folder.path().display());
        let topology = Topology::join(folder, binaries, exempt)?;
        return Session::join(SessionOptions { topology, manifests, settings: settings.clone(), delta: false });
    }
    clear(&folder)?;
    write_mesh_config(&manifests)?;
    eprintln!("mesh {}, {}", folder.path().display(), exempt.describe());
    let topology = Topology::new(TopologyOptions { folder, binaries, exempt }).await?;
    Session::start(SessionOptions { topology, manifests, settings: settings.clone(), delta: false }).await
}

/// What a mesh that ran here before left behind: its pods and addresses. The user's manifests and
/// the certificate authority stay.
fn clear(folder: &Folder) -> Result<(), PodError> {
    for part in ["state", "pods", "addresses"] {
        let path = folder.join(part);
        fs::remove_dir_all(&path).map_err(PodError::file("clear", &path))?;
    }
    folder.lay_out()
}

/// Starts the pod, waits for the program's end.
async fn serve(session: &mut Session, args: &RunArgs, shutdown: &mut Shutdown) -> anyhow::Result<ExitCode> {
    let key = Key::new(&args.namespace, &args.name);
    let data_plane = match args.data_plane {
        Sidecar::Oxmesh => DataPlane::Oxmesh,
        Sidecar::Envoy => DataPlane::Envoy,
    };
    session.start_pod(plan(args), data_plane).await?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        session.advance().await?;
        let pod = session.pods().get(&key).context("the pod is gone")?;
        if pod.is_configured() {
            break;
        }
        if Instant::now() >= deadline {
            bail!("pod {key} did not get ready within {START_LIMIT:?}: {}", pod.state());
        }
        tokio::select! {
            () = shutdown.wait() => return Ok(ExitCode::FAILURE),
            () = sleep(POLL) => {}
        }
    }
    session.write_hosts()?;
    let pod = session.pods().get(&key).context("the pod is gone")?.pod();
    eprintln!("pod {key} at {}: sidecar ready, starting {}", pod.ip(), args.command[0].display());
    let mut app = spawn(pod, &args.command)?;
    let published = publish(pod.namespace().folder().to_owned(), args);
    tokio::pin!(published);
    let mut edition = Vec::new();
    loop {
        tokio::select! {
            status = app.wait() => return Ok(code(status?)),
            error = &mut published => return Err(error),
            () = shutdown.wait() => return Ok(app.stop(GRACE).await.map_or(ExitCode::FAILURE, code)),
            () = sleep(FOLLOW) => {}
        }
        session.advance().await?;
        let mut now = crate::mesh::edition(session.manifests())?;
        now.extend(crate::mesh::edition(&session.state())?);
        if now != edition {
            edition = now;
            session.write_hosts()?;
        }
    }
}

/// The program, in the folder that the user called from.
fn spawn(pod: &Pod, argv: &[OsString]) -> anyhow::Result<Process> {
    let namespace = pod.namespace();
    let mut command = namespace.command(app_user(), "/bin/sh");
    command
        .args(["-c", "cd -- \"$1\" && shift && exec \"$@\"", "sh"])
        .arg(std::env::current_dir().context("finding the current folder")?)
        .args(argv);
    Ok(namespace.spawn_attached("the program", command)?)
}

/// Who called `sudo`, or else the caller without the powers that root has over the pod.
fn app_user() -> User {
    let sudo = std::env::var("SUDO_UID").ok().and_then(|id| id.parse().ok());
    match sudo {
        Some(id) if Exempt::detect() == Exempt::Uid => User::Id(id),
        _ => User::Powerless,
    }
}

/// Copies connections from the machine's loopback to the program. Ends with an error alone.
async fn publish(folder: PathBuf, args: &RunArgs) -> anyhow::Error {
    let (Some(published), Some(port)) = (args.publish, args.port) else {
        return std::future::pending().await;
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, published));
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => return anyhow::anyhow!("--publish: listening on {address}: {error}"),
    };
    eprintln!("http://{address} leads to {}:{port}", args.name);
    loop {
        match listener.accept().await {
            Ok((mut client, _)) => {
                let folder = folder.clone();
                tokio::spawn(async move {
                    match agent::dial(&folder, &format!("127.0.0.1:{port}")).await {
                        Ok(mut server) => {
                            // Either side may end it as it likes.
                            let _ = copy_bidirectional(&mut client, &mut server).await;
                        }
                        Err(error) => eprintln!("--publish: port {port}: {error}"),
                    }
                });
            }
            Err(error) => return anyhow::anyhow!("--publish: accepting: {error}"),
        }
    }
}

async fn wait_for_guests(session: &Session, shutdown: &mut Shutdown) {
    let topology = session.topology();
    let ours = Topology::owner(topology.folder().path()) == Some(std::process::id());
    if !ours || topology.guests() == 0 {
        return;
    }
    eprintln!("{} other programs still run in this mesh: waiting for them (Ctrl-C ends the mesh)", topology.guests());
    while topology.guests() > 0 {
        tokio::select! {
            () = shutdown.wait() => return,
            () = sleep(Duration::from_secs(1)) => {}
        }
    }
}

fn plan(args: &RunArgs) -> PodPlan {
    PodPlan {
        key: Key::new(&args.namespace, &args.name),
        owner: ("Deployment".to_owned(), args.name.clone()),
        service_account: account(args),
        labels: BTreeMap::from([("app".to_owned(), args.name.clone())]),
        annotations: BTreeMap::new(),
        subdomain: None,
        meshed: true,
        redirect: Vec::new(),
        // The program itself is started on the user's terminal, when the sidecar is configured.
        containers: vec![Container {
            name: args.name.clone(),
            argv: Vec::new(),
            env: Vec::new(),
            ports: args.port.map(|port| (None, port)).into_iter().collect(),
        }],
    }
}

fn account(args: &RunArgs) -> String {
    args.service_account.clone().unwrap_or_else(|| args.name.clone())
}

/// Writes the objects that the pod needs and nobody wrote yet. Gives the files.
fn write_objects(session: &Session, args: &RunArgs, settings: &Settings) -> anyhow::Result<Vec<PathBuf>> {
    let objects = read(&[session.manifests(), &session.state()], settings).objects;
    let key = Key::new(&args.namespace, &args.name);
    let account = Key::new(&args.namespace, account(args));
    let known_namespace = objects.namespaces.keys().any(|key| key.name == args.namespace);
    let mut files = Vec::new();
    let mut write = |name: String, object: Value| -> anyhow::Result<()> {
        let path = session.state().join(format!("{name}.yaml"));
        fs::write(&path, format!("{object:#}\n")).with_context(|| format!("writing {}", path.display()))?;
        files.push(path);
        Ok(())
    };
    if !known_namespace {
        write(format!("namespace-{}", args.namespace), namespace_object(&args.namespace))?;
    }
    if !objects.service_accounts.contains_key(&account) {
        write(
            format!("account-{}.{}", args.namespace, account.name),
            json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": account.name, "namespace": args.namespace}}),
        )?;
    }
    if let Some(port) = args.port
        && !objects.services.contains_key(&key)
    {
        write(format!("service-{}.{}", args.namespace, args.name), service_object(args, port))?;
    }
    Ok(files)
}

fn namespace_object(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name,
        "labels": {"openservicemesh.io/monitored-by": "osm"},
        "annotations": {"openservicemesh.io/sidecar-injection": "enabled"}}})
}

fn service_object(args: &RunArgs, port: u16) -> Value {
    let protocol = match args.protocol {
        Protocol::Http => "http",
        Protocol::Grpc => "grpc",
        Protocol::Tcp => "tcp",
        Protocol::TcpServerFirst => "tcp-server-first",
    };
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": args.name, "namespace": args.namespace},
        "spec": {"selector": {"app": args.name},
            "ports": [{"name": "app", "port": port, "appProtocol": protocol}]}})
}

/// A new mesh lets everybody call everybody, so that the first two programs find each other.
fn write_mesh_config(manifests: &Path) -> anyhow::Result<()> {
    let path = manifests.join("mesh-config.yaml");
    if path.exists() {
        return Ok(());
    }
    fs::write(&path, MESH_CONFIG).with_context(|| format!("writing {}", path.display()))
}

const MESH_CONFIG: &str = "\
# The mesh as a whole. While enablePermissiveTrafficPolicyMode is true, every program may call every
# other; set it to false and write TrafficTargets into this folder to say who may call whom.
# Changes take effect at once.
apiVersion: config.openservicemesh.io/v1alpha2
kind: MeshConfig
metadata: {name: osm-mesh-config, namespace: osm-system}
spec:
  traffic: {enablePermissiveTrafficPolicyMode: true}
";

fn default_folder() -> PathBuf {
    // Inside of a user namespace the user is root; the folder is the real user's all the same.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let outer = map.split_whitespace().nth(1).unwrap_or("0");
    std::env::temp_dir().join(format!("oxmesh-mesh-{}", real_user(outer)))
}

fn real_user(outer: &str) -> String {
    let me = rustix::process::geteuid();
    if me.is_root() { outer.to_owned() } else { me.as_raw().to_string() }
}

fn running_pods(mesh: &Path) -> Vec<String> {
    let entries = fs::read_dir(mesh.join("pods")).into_iter().flatten().flatten();
    let running = entries.filter(|entry| agent::holder(&entry.path()).is_some());
    running.filter_map(|entry| Some(entry.file_name().to_str()?.replacen('.', "/", 1))).collect()
}

/// The status as a shell gives it: 128 and the signal's number for a program that was killed.
fn code(status: ExitStatus) -> ExitCode {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    number.and_then(|number| u8::try_from(number).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
