//! Pods on one machine: a network namespace each, joined by a bridge, with redirection and a
//! sidecar as in a cluster.
//!
//! [`Topology`] owns the node: the namespace with the bridge (and the controller), and the folder
//! with everything on disk. [`Pod`] owns one pod. Both are held by processes that die with this
//! one, even when it is killed, and a namespace without processes is removed by the kernel with
//! its interfaces, rules and mounts: there is nothing to clean up but the folder. The namespaces
//! of the machine itself are never touched.
//!
//! Built from `unshare`, `nsenter`, `setpriv` and `ip`. Needs root, or a user namespace (see
//! [`privilege`]). Processes are tied to the thread that spawned them: use a current-thread
//! runtime, or one whose workers live as long as the topology.

pub mod agent;
mod binaries;
mod error;
mod folder;
pub mod hosts;
mod namespace;
mod plan;
#[allow(clippy::module_inception)]
mod pod;
pub mod privilege;
mod process;
mod topology;

pub use binaries::Binaries;
pub use error::PodError;
pub use folder::Folder;
pub use namespace::{Namespace, User};
pub use plan::Addresses;
pub use pod::{DataPlane, Pod, PodSpec};
pub use privilege::Exempt;
pub use process::{Process, until};
pub use topology::{Topology, TopologyOptions};
