//! The node: the bridge that pods hang on, the addresses, and the folder.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::namespace::Setup;
use super::plan::{LAST, NODE};
use super::process::is_alive;
use super::{Addresses, Binaries, Exempt, Folder, Namespace, Pod, PodError, PodSpec, User};

/// How to build a topology.
#[derive(Debug)]
pub struct TopologyOptions {
    /// Everything on disk.
    pub folder: Folder,
    /// Where our programs are.
    pub binaries: Binaries,
    /// How redirection tells sidecars.
    pub exempt: Exempt,
}

impl TopologyOptions {
    /// A temporary folder, the programs beside this one, and what the user ids allow.
    ///
    /// # Errors
    /// [`PodError::File`].
    pub fn new() -> Result<Self, PodError> {
        Ok(Self { folder: Folder::temporary()?, binaries: Binaries::beside_self(), exempt: Exempt::detect() })
    }
}

/// A node with pods on it.
#[derive(Debug)]
pub struct Topology {
    folder: Folder,
    binaries: Binaries,
    exempt: Exempt,
    node: Namespace,
    addresses: Addresses,
}

/// What another process needs to join: `mesh.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Joinable {
    owner: u32,
    node: u32,
    dual: bool,
}

const JOINABLE: &str = "mesh.json";

impl Topology {
    /// Makes the node's namespace and its bridge.
    ///
    /// # Errors
    /// [`PodError::Namespace`] without the right to; [`PodError::Command`] when `ip` fails.
    pub async fn new(options: TopologyOptions) -> Result<Self, PodError> {
        let TopologyOptions { folder, binaries, exempt } = options;
        let node_folder = folder.join("node");
        super::folder::create(&node_folder)?;
        let oxmesh = binaries.find("oxmesh")?;
        let dual = Path::new("/proc/sys/net/ipv6").exists();
        // Forwarding makes the node answer packets that it knows no way for, so that a connection
        // to nowhere fails at once.
        let all = ["net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1"];
        let setup = Setup {
            name: "node",
            folder: &node_folder,
            oxmesh: &oxmesh,
            binds: &[],
            sysctls: if dual { &all } else { &all[..1] },
        };
        let node = Namespace::create(setup).await?;
        let addresses = Addresses::new(NODE, dual);
        node.exec_with(User::Root, &["ip", "-batch", "-"], &addresses.node_links()).await?;
        let topology = Self { folder, binaries, exempt, node, addresses };
        topology.write_joinable()?;
        Ok(topology)
    }

    /// Joins the mesh that another process runs in `folder`.
    ///
    /// # Errors
    /// [`PodError::NoMesh`] when none runs there.
    pub fn join(folder: Folder, binaries: Binaries, exempt: Exempt) -> Result<Self, PodError> {
        let joinable = read_joinable(folder.path())?;
        let node = Namespace::existing("node", folder.join("node"), joinable.node);
        let addresses = Addresses::new(NODE, joinable.dual);
        Ok(Self { folder, binaries, exempt, node, addresses })
    }

    /// Id of the process that runs the mesh in `folder`, if one does.
    #[must_use]
    pub fn owner(folder: &Path) -> Option<u32> {
        read_joinable(folder).ok().map(|joinable| joinable.owner)
    }

    /// The node's namespace, for the controller.
    #[must_use]
    pub fn node(&self) -> &Namespace {
        &self.node
    }

    /// The node's addresses, where the controller is reached.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The mesh's folder.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The mesh's folder, to keep it.
    pub fn folder_mut(&mut self) -> &mut Folder {
        &mut self.folder
    }

    /// Where our programs are.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// How redirection tells sidecars.
    #[must_use]
    pub fn exempt(&self) -> Exempt {
        self.exempt
    }

    /// Makes a pod: namespaces, addresses, hosts file; redirection unless the spec says no. It
    /// has no sidecar and no application yet.
    ///
    /// # Errors
    /// [`PodError`] of the step that failed; nothing of the pod is left then.
    pub async fn pod(&self, spec: PodSpec) -> Result<Pod, PodError> {
        let addresses = self.reserve()?;
        Pod::create(self, spec, addresses).await
    }

    /// Programs that pods run: each appears at `bin/<name>` of the mesh's folder, so that a
    /// sidecar's user needs no way to where it is installed.
    pub(crate) fn bind_program(&self, program: &Path) -> Result<(PathBuf, PathBuf), PodError> {
        let name = program.file_name().unwrap_or(program.as_os_str());
        let target = self.folder.join("bin").join(name);
        if !target.exists() {
            fs::write(&target, "").map_err(PodError::file("create", &target))?;
        }
        Ok((program.to_owned(), target))
    }

    /// How many pods of other processes run in the mesh.
    #[must_use]
    pub fn guests(&self) -> usize {
        let me = std::process::id().to_string();
        let entries = fs::read_dir(self.folder.join("addresses")).into_iter().flatten().flatten();
        let owners = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        owners.filter(|owner| *owner != me && owner.parse().is_ok_and(is_alive)).count()
    }

    fn reserve(&self) -> Result<Addresses, PodError> {
        for number in NODE + 1..=LAST {
            let file = address_file(&self.folder, number);
            match OpenOptions::new().write(true).create_new(true).open(&file) {
                Ok(mut file) => {
                    // Whose it is, for the owner of the mesh, who waits for the last to leave.
                    let _ = write!(file, "{}", std::process::id());
                    return Ok(Addresses::new(number, self.addresses.v6().is_some()));
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(PodError::File { action: "create", path: file, error }),
            }
        }
        Err(PodError::Full(LAST))
    }

    fn write_joinable(&self) -> Result<(), PodError> {
        let joinable =
            Joinable { owner: std::process::id(), node: self.node.holder(), dual: self.addresses.v6().is_some() };
        let path = self.folder.join(JOINABLE);
        let text = serde_json::to_string(&joinable).expect("numbers can be written as JSON");
        fs::write(&path, text).map_err(PodError::file("write", &path))
    }
}

/// The file whose presence says that an address is in use.
pub(crate) fn address_file(folder: &Folder, number: u16) -> PathBuf {
    folder.join("addresses").join(number.to_string())
}

fn read_joinable(folder: &Path) -> Result<Joinable, PodError> {
    let no_mesh = |reason: String| PodError::NoMesh { folder: folder.to_owned(), reason };
    let text = fs::read_to_string(folder.join(JOINABLE)).map_err(|error| no_mesh(error.to_string()))?;
    let joinable: Joinable = serde_json::from_str(&text).map_err(|error| no_mesh(error.to_string()))?;
    if is_alive(joinable.owner) && is_alive(joinable.node) {
        Ok(joinable)
    } else {
        Err(no_mesh(format!("its process {} is gone", joinable.owner)))
    }
}
