//! The folder of a mesh on disk, and the removal of folders that dead runs left.
//!
//! Layout: `manifests/` (the user's), `state/` (pods as objects, ours), `ca/`, `pods/<name>/`,
//! `bin/` (mount points), `addresses/` (numbers in use), `mesh.json` (what is needed to join).

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::PodError;
use super::process::is_alive;

/// A mesh's folder. One that we made in the temporary folder is removed on drop.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    remove: bool,
}

const PREFIX: &str = "oxmesh-run-";
const KEEP: &str = ".keep";

impl Folder {
    /// A new folder in the temporary folder, named after this process, removed on drop. Folders
    /// of this user whose process is dead are removed first.
    ///
    /// # Errors
    /// [`PodError::File`].
    pub fn temporary() -> Result<Self, PodError> {
        let parent = std::env::temp_dir();
        remove_leftovers(&parent);
        let temporary = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", std::process::id()))
            .tempdir_in(&parent)
            .map_err(PodError::file("create a folder in", &parent))?;
        let folder = Self { path: temporary.keep(), remove: true };
        folder.lay_out()?;
        Ok(folder)
    }

    /// A folder of the user's choice, made when it isn't there; stays.
    ///
    /// # Errors
    /// [`PodError::File`].
    pub fn at(path: &Path) -> Result<Self, PodError> {
        fs::create_dir_all(path).map_err(PodError::file("create", path))?;
        let path = path.canonicalize().map_err(PodError::file("find", path))?;
        let folder = Self { path, remove: false };
        folder.lay_out()?;
        Ok(folder)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, part: impl AsRef<Path>) -> PathBuf {
        self.path.join(part)
    }

    /// Keeps the folder beyond this process.
    ///
    /// # Errors
    /// [`PodError::File`].
    pub fn keep(&mut self) -> Result<(), PodError> {
        self.remove = false;
        let marker = self.join(KEEP);
        fs::write(&marker, "").map_err(PodError::file("write", &marker))
    }

    /// Folders that others may pass through but not list: sidecars and applications reach what
    /// is theirs.
    pub(crate) fn lay_out(&self) -> Result<(), PodError> {
        let passable = fs::Permissions::from_mode(0o711);
        fs::set_permissions(&self.path, passable).map_err(PodError::file("open", &self.path))?;
        for part in ["manifests", "state", "pods", "bin", "addresses"] {
            let path = self.join(part);
            create(&path)?;
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.remove {
            // A leftover is removed by the next run.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Makes a folder (mode 0711) unless it is there.
pub(crate) fn create(path: &Path) -> Result<(), PodError> {
    match fs::DirBuilder::new().mode(0o711).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(PodError::File { action: "create", path: path.to_owned(), error })
        }
        _ => Ok(()),
    }
}

fn remove_leftovers(parent: &Path) {
    let me = rustix::process::geteuid().as_raw();
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(owner_pid) else { continue };
        // The entry's own metadata: a symbolic link is not a folder of ours.
        let ours = entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == me);
        let dead = !is_alive(owner);
        if ours && dead && !entry.path().join(KEEP).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn owner_pid(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_dead_runs_alone_are_removed() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let dead = parent.path().join(format!("{PREFIX}4294967294-x"));
        let kept = parent.path().join(format!("{PREFIX}4294967293-x"));
        let alive = parent.path().join(format!("{PREFIX}{}-x", std::process::id()));
        let foreign = parent.path().join("other-4294967294-x");
        for path in [&dead, &kept, &alive, &foreign] {
            fs::create_dir(path).expect("a folder");
        }
        fs::write(kept.join(KEEP), "").expect("a file");
        remove_leftovers(parent.path());
        assert!(!dead.exists());
        assert!(kept.exists() && alive.exists() && foreign.exists());
    }
}
