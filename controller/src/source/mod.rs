//! Where objects come from. A source turns whatever it watches into whole snapshots of typed
//! objects; it knows nothing of what they mean.

mod dir;
mod document;
mod files;
mod kube;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::api::{Key, Objects};
use crate::lint::Finding;

pub use self::kube::watch_cluster;
pub use dir::Folder;
pub use watch::watch_folders;

/// Everything that a source knows at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// The objects in force.
    pub objects: Objects,
    /// Where each object stands, by kind and name; objects of an API server stand nowhere else.
    pub origins: BTreeMap<(&'static str, Key), Origin>,
    /// What the source has to say.
    pub findings: Vec<Finding>,
}

/// Where an object stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: PathBuf,
    /// Which document in it, counted from 1.
    pub document: usize,
}
