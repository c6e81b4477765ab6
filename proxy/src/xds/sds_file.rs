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
    /// True if a secret changed, or what is wrong with the file.
    fn read(&mut self, path: &Path) -> bool {
        match read(path) {
            Ok(secrets) => {
                let changed = secrets != self.secrets;
                self.secrets = secrets;
                changed | self.fault.take().is_some()
            }
            Err(fault) => self.fault.replace(fault.clone()) != Some(fault),
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc, time::Duration};

    use tokio::{sync::Notify, time::timeout};

    use super::Files;
    use crate::config::tls::Secret;

    fn file(name: &str) -> String {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let secret = serde_json::json!({"resources": [{
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            "name": "s",
            "tls_certificate": {
                "certificate_chain": {"inline_string": made.cert.pem()},
                "private_key": {"inline_string": made.signing_key.serialize_pem()},
            },
        }]});
        secret.to_string()
    }

    #[tokio::test]
    async fn a_replaced_file_is_seen_and_a_bad_one_keeps_the_last_good_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sds.json");
        let put = |text: String| {
            let new = directory.path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(&new, &path).unwrap();
        };
        let changed = Arc::new(Notify::new());
        let files = Files::new(Arc::clone(&changed));
        let news = async || timeout(Duration::from_secs(30), changed.notified()).await.unwrap();
        put(file("first"));
        files.want(&BTreeSet::from([path.clone()]));
        let first = files.secret(&path, "s").unwrap();
        assert!(matches!(&*first, Secret::Certificate(_)) && files.secret(&path, "other").is_none());
        let watch = tokio::spawn(files.clone().watch());

        put("resources: [{".to_owned());
        news().await;
        assert_eq!(files.faults().len(), 1, "{:?}", files.faults());
        assert_eq!(files.secret(&path, "s").as_ref(), Some(&first));

        put(file("second"));
        news().await;
        assert!(files.faults().is_empty());
        assert_ne!(files.secret(&path, "s").as_ref(), Some(&first));
        watch.abort();
    }
}
