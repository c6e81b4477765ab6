//! Secrets in files (`path`, `path_config_source`): read, watched, read again.
//!
//! A file that turns bad keeps its last good secrets in force, and the fault is told. Besides the file system's news
//! there is a slow poll: it sees what no news comes for, such as a certificate in another directory that the file
//! refers to.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep},
};

use super::secrets;
use crate::{
    bootstrap,
    config::{Name, tls::Secret},
};

/// The files and what they hold. Clones share.
#[derive(Clone, Debug)]
pub struct Files {
    state: Arc<Mutex<BTreeMap<PathBuf, Held>>>,
    news: Arc<Notify>,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Held {
    secrets: HashMap<Name, Arc<Secret>>,
    fault: Option<String>,
}

impl Files {
    /// No files yet. `changed` is told when a secret changed.
    #[must_use]
    pub fn new(changed: Arc<Notify>) -> Self {
        Self { state: Arc::default(), news: Arc::default(), changed }
    }

    /// Sets which files are of interest; new ones are read at once. Blocks for as long as small files take to read.
    pub fn want(&self, paths: &BTreeSet<PathBuf>) {
        let mut state = self.state.lock();
        let before = state.len();
        state.retain(|path, _| paths.contains(path));
        let mut changed = state.len() != before;
        for path in paths {
            if !state.contains_key(path) {
                let mut held = Held::default();
                held.read(path);
                state.insert(path.clone(), held);
                changed = true;
            }
        }
        if changed {
            self.news.notify_one();
        }
    }

    /// A secret by file and name.
    #[must_use]
    pub fn secret(&self, path: &Path, name: &str) -> Option<Arc<Secret>> {
        self.state.lock().get(path)?.secrets.get(name).cloned()
    }

    /// What is wrong now, by file.
    #[must_use]
    pub fn faults(&self) -> Vec<(PathBuf, String)> {
        let state = self.state.lock();
        state.iter().filter_map(|(path, held)| Some((path.clone(), held.fault.clone()?))).collect()
    }

    /// Reads all files again; used before a new connection that needs them.
    pub fn reload(&self) {
        let mut changed = false;
        for (path, held) in self.state.lock().iter_mut() {
            changed |= held.read(path);
        }
        if changed {
            self.changed.notify_one();
        }
    }

    /// Watches for ever. Runs on the control runtime.
    pub async fn watch(self) {
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watcher = self.watcher();
        loop {
            tokio::select! {
                () = self.news.notified() => {
                    // News come in bursts: a swap of a mounted directory is several renames.
                    sleep(BURST).await;
                    watcher = self.watcher();
                }
                _ = poll.tick() => {}
            }
            if !self.state.lock().is_empty() {
                self.reload();
            }
            // Kept alive until the next set of directories is watched.
            let _ = &watcher;
        }
    }

    /// Watches the directories, since files are replaced by renames. None: the poll has to do.
    fn watcher(&self) -> Option<RecommendedWatcher> {
        let directories: BTreeSet<PathBuf> = {
            let state = self.state.lock();
            state.keys().map(|path| directory(path)).collect()
        };
        if directories.is_empty() {
            return None;
        }
        let news = Arc::clone(&self.news);
        let told = move |event: notify::Result<notify::Event>| {
            // Reading is not news, and would be made by our own reload.
            if event.map_or(true, |event| !event.kind.is_access()) {
                news.notify_one();
            }
        };
        let made = notify::recommended_watcher(told).and_then(|mut watcher| {
            for directory in &directories {
                watcher.watch(directory, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        });
        made.inspect_err(|error| tracing::warn!(%error, "secret files can't be watched, they are polled")).ok()
    }
}

impl Held {
    /// True if a secret changed.
    fn read(&mut self, path: &Path) -> bool {
        match read(path) {
            Ok(secrets) => {
                if self.fault.take().is_some() {
                    tracing::info!(path = %path.display(), "secret file is good again");
                }
                let changed = secrets != self.secrets;
                self.secrets = secrets;
                changed
            }
            Err(fault) => {
                if self.fault.as_ref() != Some(&fault) {
                    tracing::error!(path = %path.display(), error = fault, "secret file is no good, last good stays");
                }
                self.fault = Some(fault);
                false
            }
        }
    }
}

fn read(path: &Path) -> Result<HashMap<Name, Arc<Secret>>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let secrets = bootstrap::secrets_file(&text, Path::new(".")).map_err(|rejected| rejected.to_string())?;
    for (name, secret) in &secrets {
        secrets::check(name, secret)?;
    }
    Ok(secrets.into_iter().collect())
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Time between polls.
const POLL: Duration = Duration::from_secs(10);
/// Time for a burst of changes to end.
const BURST: Duration = Duration::from_millis(50);
