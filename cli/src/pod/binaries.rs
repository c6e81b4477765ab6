//! Where the programs are that run in pods.

use std::env;
use std::path::{Path, PathBuf};

use super::PodError;

/// Paths of our programs and of real Envoy.
#[derive(Debug, Clone)]
pub struct Binaries {
    folders: Vec<PathBuf>,
}

impl Binaries {
    /// Looks beside this program (for tests: beside the folder `deps`), then in PATH.
    #[must_use]
    pub fn beside_self() -> Self {
        let mut folders = Vec::new();
        if let Some(folder) = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned)) {
            if folder.ends_with("deps") {
                folders.extend(folder.parent().map(Path::to_owned));
            }
            folders.push(folder);
        }
        folders.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
        Self { folders }
    }

    /// Looks in `folder` before anywhere else.
    #[must_use]
    pub fn with_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.insert(0, folder.into());
        self
    }

    /// The path of a program.
    ///
    /// # Errors
    /// [`PodError::Spawn`] with where it was looked for.
    pub fn find(&self, program: &str) -> Result<PathBuf, PodError> {
        self.folders.iter().map(|folder| folder.join(program)).find(|path| path.is_file()).ok_or_else(|| {
            PodError::Spawn {
                program: program.to_owned(),
                error: std::io::ErrorKind::NotFound.into(),
                hint: match program {
                    "envoy" => "put envoy into PATH, or use --data-plane oxmesh".into(),
                    _ => format!(
                        "looked beside oxmesh and in PATH; install {program}, or in the source tree: cargo build"
                    ),
                },
            }
        })
    }
}
