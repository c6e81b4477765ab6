//! A running mesh: the node with its controller, and pods that come and go with the manifests.

mod identity;
mod names;
mod plan;
mod session;

use std::path::Path;

use oxmesh_controller::settings::Settings;
use oxmesh_controller::source::{Folder, Snapshot};

pub use plan::{Container, PodPlan, plans};
pub use session::{CONTROLLER_ADMIN, Session, SessionOptions, StartedPod};
pub(crate) use session::{Edition, edition};

/// Reads the objects of folders as they stand, as the controller reads them.
#[must_use]
pub fn read(folders: &[&Path], settings: &Settings) -> Snapshot {
    let roots = folders.iter().map(|folder| (*folder).to_owned()).collect();
    Folder::new(roots, settings.service_cidr).read_once()
}
