//! What can go wrong with namespaces and processes, each with what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

/// A failure to build or use a pod.
#[derive(Debug, Error)]
pub enum PodError {
    /// A tool is missing or can't be started.
    #[error("can't run `{program}`: {error} ({hint})")]
    Spawn {
        /// The program.
        program: String,
        /// The system's error.
        error: io::Error,
        /// What to install or set.
        hint: String,
    },
    /// A tool failed.
    #[error("`{command}` failed with {status}: {stderr}")]
    Command {
        /// Command with its arguments.
        command: String,
        /// Exit status in words.
        status: String,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// A file could not be read, written or removed.
    #[error("can't {action} {}: {error}", path.display())]
    File {
        /// A verb: read, write, create.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A namespace could not be made.
    #[error(
        "can't make namespaces for {name}: {reason} (run as root, or allow user namespaces: sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns=0)"
    )]
    Namespace {
        /// The pod, or `node`.
        name: String,
        /// What the agent or `unshare` said.
        reason: String,
    },
    /// A process in a pod could not be reached over its agent.
    #[error("{name}: can't reach {target}: {reason}")]
    Unreachable {
        /// The pod, or `node`.
        name: String,
        /// Address in the pod.
        target: String,
        /// Why.
        reason: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {limit:?}{detail}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// The last error or log line, with its own separator; may be empty.
        detail: String,
    },
    /// No address is left.
    #[error("the pod network is full: {0} pods run already")]
    Full(u16),
    /// A mesh folder belongs to no running mesh.
    #[error("no mesh runs in {}: {reason}", folder.display())]
    NoMesh {
        /// The folder.
        folder: PathBuf,
        /// Why it is none.
        reason: String,
    },
}

impl PodError {
    /// Wraps an error of the file system with the path that it is about.
    pub fn file(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |error| Self::File { action, path, error }
    }
}
