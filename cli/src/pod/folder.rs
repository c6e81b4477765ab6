//! The folder of a mesh on disk, and the removal of folders that dead runs left.
//!
//! Layout: `manifests/` (the user's), `state/` (pods as objects, ours), `ca/`, `pods/<name>/`,
//! `bin/` (mount points), `addresses/` (numbers in use), `mesh.json` (what is needed to join).

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::PodError;

/// A mesh's folder. One that we made in the temporary folder is removed on drop.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    remove: bool,
    /// Locked as long as this process lives; the kernel lets go of it, however the process ends.
    _lock: Option<File>,
}

const PREFIX: &str = "oxmesh-run-";
const KEEP: &str = ".keep";
const LOCK: &str = ".lock";
/// Between its making and its locking a folder is nobody's; nobody takes this long.
const UNLOCKED: Duration = Duration::from_secs(60);

impl Folder {
    /// A new folder in the temporary folder, removed on drop. Folders of this user that nobody
    /// holds any more are removed first.
    ///
    /// # Errors
    /// [`PodError::File`].
    pub fn temporary() -> Result<Self, PodError> {
        let parent = std::env::temp_dir();
        remove_leftovers(&parent);
        let temporary = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&parent)
            .map_err(PodError::file("create a folder in", &parent))?;
        let path = temporary.keep();
        let lock = lock(&path).map_err(PodError::file("lock", &path))?;
        let folder = Self { path, remove: true, _lock: Some(lock) };
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
        let folder = Self { path, remove: false, _lock: None };
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

fn lock(folder: &Path) -> std::io::Result<File> {
    let file = File::create(folder.join(LOCK))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

fn remove_leftovers(parent: &Path) {
    let me = rustix::process::geteuid().as_raw();
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        // The entry's own metadata: a symbolic link is not a folder of ours.
        let Ok(meta) = entry.metadata() else { continue };
        let ours = meta.is_dir() && meta.uid() == me;
        if ours && !entry.path().join(KEEP).exists() && is_left(&entry.path(), &meta) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether nobody holds the folder. Process ids can't tell: its holder may live in another process namespace.
fn is_left(folder: &Path, meta: &fs::Metadata) -> bool {
    match File::open(folder.join(LOCK)) {
        Ok(file) => flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(_) => meta.modified().is_ok_and(|made| made.elapsed().is_ok_and(|age| age > UNLOCKED)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_that_nobody_holds_alone_are_removed() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let make = |name: &str| {
            let path = parent.path().join(name);
            fs::create_dir(&path).expect("a folder");
            path
        };
        let [left, kept, held, young] = ["left", "kept", "held", "young"].map(|name| make(&format!("{PREFIX}{name}")));
        let foreign = make("other");
        drop(lock(&left).expect("a lock"));
        drop(lock(&kept).expect("a lock"));
        fs::write(kept.join(KEEP), "").expect("a file");
        let holder = lock(&held).expect("a lock");
        remove_leftovers(parent.path());
        assert!(!left.exists());
        assert!(kept.exists() && held.exists() && young.exists() && foreign.exists());
        drop(holder);
        remove_leftovers(parent.path());
        assert!(!held.exists());
    }
}
