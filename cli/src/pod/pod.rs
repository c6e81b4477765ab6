//! One pod: its namespaces, redirection, sidecar and application.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::hosts::{self, ServiceName};
use super::namespace::Setup;
use super::privilege::{APP_UID, PROXY_MARK, PROXY_UID};
use super::topology::address_file;
use super::{Addresses, Exempt, Namespace, PodError, Process, Topology, User};

const ADMIN: &str = "127.0.0.1:15000";
const RESOLVER: &str = "/etc/resolv.conf";

/// Which program is the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPlane {
    /// Our own proxy.
    Oxmesh,
    /// Real Envoy, from PATH.
    Envoy,
}

impl DataPlane {
    /// The program's file name.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Oxmesh => "oxmesh-proxy",
            Self::Envoy => "envoy",
        }
    }
}

/// What a pod is.
#[derive(Debug, Clone, Default)]
pub struct PodSpec {
    /// Name, unique in its namespace.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// ServiceAccount, which is its identity.
    pub service_account: String,
    /// Labels that Services select by.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Kind and name of what runs it, such as a Deployment's.
    pub owner: Option<(String, String)>,
    /// Name of the headless Service that gives it a name of its own.
    pub subdomain: Option<String>,
    /// Ports of its containers; Services' `targetPort` may refer to a name.
    pub ports: Vec<(Option<String>, u16)>,
    /// Sidecar to be; `None` for a pod outside of the mesh, which gets no redirection either.
    pub data_plane: Option<DataPlane>,
    /// Further options of the init program (`--inbound-ports-exclude` …).
    pub redirect: Vec<String>,
    /// Further programs, by path, that the pod must be able to run.
    pub programs: Vec<PathBuf>,
}

/// A pod. Dropping it ends all of its processes and removes it.
#[derive(Debug)]
pub struct Pod {
    spec: PodSpec,
    uid: String,
    proxy_uuid: String,
    addresses: Addresses,
    exempt: Exempt,
    bin: PathBuf,
    namespace: Namespace,
    // Last: the address is free only when the namespace is gone.
    _address: Reserved,
}

#[derive(Debug)]
struct Reserved(PathBuf);

impl Drop for Reserved {
    fn drop(&mut self) {
        // The folder may be gone before.
        let _ = fs::remove_file(&self.0);
    }
}

impl Pod {
    pub(crate) async fn create(topology: &Topology, spec: PodSpec, addresses: Addresses) -> Result<Self, PodError> {
        let reserved = Reserved(address_file(topology.folder(), addresses.number()));
        let folder = topology.folder().join("pods").join(format!("{}.{}", spec.namespace, spec.name));
        if folder.exists() {
            // An earlier pod of this name.
            fs::remove_dir_all(&folder).map_err(PodError::file("clear", &folder))?;
        }
        super::folder::create(&folder)?;
        let hosts = folder.join("hosts");
        let own = hosts::render(&spec.name, &spec.namespace, &addresses.all(), &[]);
        fs::write(&hosts, own).map_err(PodError::file("write", &hosts))?;

        let oxmesh = topology.binaries().find("oxmesh")?;
        let mut binds = vec![(hosts, PathBuf::from("/etc/hosts")), topology.bind_program(&oxmesh)?];
        if Path::new(RESOLVER).exists() {
            // No name server is reached from here: a name that isn't in the hosts file is refused at once.
            let resolver = folder.join("resolv.conf");
            fs::write(&resolver, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
                .map_err(PodError::file("write", &resolver))?;
            binds.push((resolver, PathBuf::from(RESOLVER)));
        }
        for program in &spec.programs {
            binds.push(topology.bind_program(program)?);
        }
        if let Some(data_plane) = spec.data_plane {
            binds.push(topology.bind_program(&topology.binaries().find(data_plane.program())?)?);
        }
        let setup = Setup {
            name: &format!("{}/{}", spec.namespace, spec.name),
            folder: &folder,
            oxmesh: &oxmesh,
            binds: &binds,
            // As container runtimes do: an application needn't be root for port 80.
            sysctls: &["net/ipv4/ip_unprivileged_port_start=0"],
        };
        let namespace = Namespace::create(setup).await?;
        let node = topology.node();
        let batch = ["ip", "-batch", "-"];
        node.exec_with(User::Root, &batch, &addresses.join_links(namespace.holder())).await?;
        let links = addresses.pod_links(topology.addresses());
        namespace.exec_with(User::Root, &batch, &links).await?;
        let pod = Self {
            uid: random_uuid()?,
            proxy_uuid: random_uuid()?,
            exempt: topology.exempt(),
            bin: topology.folder().join("bin"),
            spec,
            addresses,
            namespace,
            _address: reserved,
        };
        if pod.spec.data_plane.is_some() {
            pod.redirect(&topology.binaries().find("oxmesh-iptables-init")?).await?;
        }
        Ok(pod)
    }

    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        IpAddr::V4(self.addresses.v4())
    }

    /// All of its addresses, IPv4 first.
    #[must_use]
    pub fn ips(&self) -> Vec<IpAddr> {
        self.addresses.all()
    }

    /// The id that ties its sidecar to it: the label `osm-proxy-uuid`, and part of the
    /// certificate's name.
    #[must_use]
    pub fn proxy_uuid(&self) -> &str {
        &self.proxy_uuid
    }

    /// Its namespaces: to run commands, to connect.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Writes its hosts file anew if it changes; names resolve at once.
    ///
    /// # Errors
    /// [`PodError::File`].
    pub fn write_hosts(&self, services: &[ServiceName]) -> Result<(), PodError> {
        let path = self.namespace.folder().join("hosts");
        let text = hosts::render(&self.spec.name, &self.spec.namespace, &self.ips(), services);
        if fs::read_to_string(&path).is_ok_and(|before| before == text) {
            return Ok(());
        }
        // In place, since a renamed file would not be seen through the mount; and cut to length
        // last, since a reader of an empty file would find no name and ask a server that isn't there.
        let write = || {
            let mut file = OpenOptions::new().write(true).open(&path)?;
            file.write_all(text.as_bytes())?;
            file.set_len(text.len() as u64)
        };
        write().map_err(PodError::file("write", &path))
    }

    /// How redirection tells its sidecar.
    #[must_use]
    pub fn exempt(&self) -> Exempt {
        self.exempt
    }

    /// Starts the sidecar with the bootstrap in `folder`, which the user [`PROXY_UID`] must be able
    /// to read where [`Pod::exempt`] says so.
    ///
    /// # Errors
    /// [`PodError::Spawn`], [`PodError::File`].
    pub fn spawn_sidecar(&self, folder: &Path, args: &[String]) -> Result<Process, PodError> {
        let data_plane = self.spec.data_plane.unwrap_or(DataPlane::Oxmesh);
        let user = match self.exempt {
            Exempt::Uid => User::Id(PROXY_UID),
            Exempt::Mark => User::Root,
        };
        let mut command = self.namespace.command(user, self.bin.join(data_plane.program()));
        command
            .arg("-c")
            .arg(folder.join("bootstrap.yaml"))
            .args(["--service-cluster", &format!("{}.{}", self.spec.service_account, self.spec.namespace)])
            .args(args)
            .env("POD_UID", &self.uid)
            .env("POD_NAME", &self.spec.name)
            .env("POD_NAMESPACE", &self.spec.namespace)
            .env("POD_IP", self.ip().to_string())
            .env("SERVICE_ACCOUNT", &self.spec.service_account);
        if let Some((kind, name)) = &self.spec.owner {
            command.env("WORKLOAD_KIND", kind).env("WORKLOAD_NAME", name);
        }
        if data_plane == DataPlane::Envoy {
            // Its default flushes access logs every 10 s.
            command.args(["--disable-hot-restart", "--file-flush-interval-msec", "100"]);
        } else if self.exempt == Exempt::Mark {
            command.args(["--upstream-mark", &PROXY_MARK.to_string()]);
        }
        self.namespace.spawn("sidecar", command)
    }

    /// Starts an application as a user that isn't the sidecar's; its output goes to `<name>.log`.
    /// A program that the spec lists, and `oxmesh`, are found by file name; others by their path.
    ///
    /// # Errors
    /// [`PodError::Spawn`], [`PodError::File`].
    pub fn spawn_app<S: AsRef<OsStr>>(
        &self,
        name: &str,
        argv: &[S],
        env: &[(String, String)],
    ) -> Result<Process, PodError> {
        let (program, args) = argv.split_first().expect("a command has a program");
        let mut command = self.namespace.command(self.app_user(), self.program(program.as_ref()));
        command.args(args).envs(env.iter().map(|(name, value)| (name, value)));
        self.namespace.spawn(name, command)
    }

    /// The user that applications run as.
    #[must_use]
    pub fn app_user(&self) -> User {
        match self.exempt {
            Exempt::Uid => User::Id(APP_UID),
            Exempt::Mark => User::Powerless,
        }
    }

    /// Runs a command as an application would, to its end.
    ///
    /// # Errors
    /// [`PodError::Command`] when it fails.
    pub async fn exec<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<String, PodError> {
        self.namespace.exec(self.app_user(), argv).await
    }

    /// `GET` from the sidecar's admin server.
    ///
    /// # Errors
    /// [`PodError::Unreachable`].
    pub async fn admin_get(&self, path: &str) -> Result<(StatusCode, Bytes), PodError> {
        self.namespace.http_get(ADMIN, path).await
    }

    /// The Pod as the cluster's API would show it.
    #[must_use]
    pub fn object(&self, ready: bool) -> Value {
        let mut labels = self.spec.labels.clone();
        if self.spec.data_plane.is_some() {
            labels.insert("osm-proxy-uuid".into(), self.proxy_uuid.clone());
        }
        let ports: Vec<Value> = self
            .spec
            .ports
            .iter()
            .map(|(name, port)| match name {
                Some(name) => json!({"name": name, "containerPort": port}),
                None => json!({"containerPort": port}),
            })
            .collect();
        let ips: Vec<Value> = self.ips().iter().map(|ip| json!({"ip": ip})).collect();
        let owners: Vec<Value> = self.spec.owner.iter().map(|(kind, name)| {
            json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": self.uid, "controller": true})
        }).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.spec.name,
                "namespace": self.spec.namespace,
                "uid": self.uid,
                "labels": labels,
                "annotations": self.spec.annotations,
                "ownerReferences": owners,
            },
            "spec": {
                "hostname": self.spec.name,
                "subdomain": self.spec.subdomain,
                "serviceAccountName": self.spec.service_account,
                "containers": [{"name": "app", "ports": ports}],
            },
            "status": {
                "phase": "Running",
                "podIP": self.ip(),
                "podIPs": ips,
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        })
    }

    /// Writes the Pod into a folder that the controller watches.
    ///
    /// # Errors
    /// [`PodError::File`].
    pub fn write_object(&self, state: &Path, ready: bool) -> Result<(), PodError> {
        let path = self.object_file(state);
        // JSON is YAML. Renamed into place: a watcher never reads half a file.
        let half = path.with_extension("half");
        let text = format!("{:#}\n", self.object(ready));
        fs::write(&half, text).map_err(PodError::file("write", &half))?;
        fs::rename(&half, &path).map_err(PodError::file("write", &path))
    }

    /// Removes what [`Pod::write_object`] wrote.
    ///
    /// # Errors
    /// [`PodError::File`].
    pub fn remove_object(&self, state: &Path) -> Result<(), PodError> {
        let path = self.object_file(state);
        fs::remove_file(&path).map_err(PodError::file("remove", &path))
    }

    fn object_file(&self, state: &Path) -> PathBuf {
        state.join(format!("pod-{}.{}.yaml", self.spec.namespace, self.spec.name))
    }

    async fn redirect(&self, init: &Path) -> Result<(), PodError> {
        let mut argv: Vec<OsString> = vec![init.into()];
        if self.exempt == Exempt::Mark {
            argv.extend(["--proxy-mark".into(), PROXY_MARK.to_string().into()]);
        }
        argv.extend(self.spec.redirect.iter().map(OsString::from));
        self.namespace.exec(User::Root, &argv).await?;
        Ok(())
    }

    fn program(&self, name: &OsStr) -> PathBuf {
        let bound = self.bin.join(name);
        let plain = Path::new(name).components().count() == 1;
        if plain && bound.exists() { bound } else { name.into() }
    }
}

fn random_uuid() -> Result<String, PodError> {
    let path = "/proc/sys/kernel/random/uuid";
    let text = fs::read_to_string(path).map_err(PodError::file("read", path))?;
    Ok(text.trim().to_owned())
}
