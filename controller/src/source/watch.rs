//! Watching folders: the kernel says when something changes, and a slow look catches what it
//! doesn't say (network file systems, links that are turned elsewhere, too many folders).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use notify::{RecursiveMode, Watcher as _};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Folder, Snapshot};

/// Watches folders until stopped. The receiver holds `None` until everything was read once, then
/// always the newest snapshot.
pub fn watch_folders(
    roots: Vec<PathBuf>,
    service_cidr: Ipv4Net,
    stop: CancellationToken,
) -> watch::Receiver<Option<Arc<Snapshot>>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow(roots, service_cidr, sender) => {}
        }
    });
    receiver
}

async fn follow(roots: Vec<PathBuf>, service_cidr: Ipv4Net, sender: watch::Sender<Option<Arc<Snapshot>>>) {
    let events = Arc::new(Notify::new());
    let mut watching = watch(&roots, &events);
    let mut folder = Folder::new(roots.clone(), service_cidr);
    loop {
        let is_first = sender.borrow().is_none();
        let looked = tokio::task::spawn_blocking(move || {
            let look = folder.look();
            // The first state must be whole; later, what is complete need not wait for the rest.
            let is_due = if is_first { !look.again } else { look.changed };
            let snapshot = is_due.then(|| folder.snapshot());
            (folder, look, snapshot)
        });
        let Ok((back, look, snapshot)) = looked.await else {
            error!("reading the folders failed; they are read anew");
            folder = Folder::new(roots.clone(), service_cidr);
            sleep(POLL_INTERVAL).await;
            continue;
        };
        folder = back;
        if let Some(snapshot) = snapshot {
            publish(&sender, snapshot);
        }
        if look.again {
            sleep(SETTLE_INTERVAL).await;
            continue;
        }
        if timeout(POLL_INTERVAL, events.notified()).await.is_err() {
            // Folders that came, or came back, since then are watched from now on.
            if watching.as_ref().is_none_or(|w| w.incomplete) {
                watching = watch(&roots, &events);
            }
            continue;
        }
        // Changes seldom come alone: wait for a pause, but not for ever.
        let last = Instant::now() + DEBOUNCE_MAX;
        while timeout_at(last.min(Instant::now() + DEBOUNCE_IDLE), events.notified()).await.is_ok()
            && Instant::now() < last
        {}
    }
}

fn publish(sender: &watch::Sender<Option<Arc<Snapshot>>>, snapshot: Snapshot) {
    sender.send_if_modified(|current| {
        if current.as_deref() == Some(&snapshot) {
            return false;
        }
        info!(objects = snapshot.objects.len(), findings = snapshot.findings.len(), "read the folders");
        *current = Some(Arc::new(snapshot));
        true
    });
}

struct Watching {
    _watcher: notify::RecommendedWatcher,
    incomplete: bool,
}

fn watch(roots: &[PathBuf], events: &Arc<Notify>) -> Option<Watching> {
    let events = Arc::clone(events);
    let on_event = move |event: notify::Result<notify::Event>| {
        // That somebody read a file, ourselves included, is no news.
        if !matches!(&event, Ok(event) if event.kind.is_access()) {
            events.notify_one();
        }
    };
    let mut watcher = notify::recommended_watcher(on_event)
        .inspect_err(|error| warn!(%error, "folders can't be watched; they are looked at every few seconds"))
        .ok()?;
    let mut incomplete = false;
    for root in roots {
        if let Err(error) = watcher.watch(root, RecursiveMode::Recursive) {
            warn!(folder = %root.display(), %error, "a folder can't be watched; it is looked at every few seconds");
            incomplete = true;
        }
    }
    Some(Watching { _watcher: watcher, incomplete })
}

/// How often folders are looked at without being told to.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How soon a file that is being written is looked at again.
const SETTLE_INTERVAL: Duration = Duration::from_millis(20);
const DEBOUNCE_IDLE: Duration = Duration::from_millis(20);
const DEBOUNCE_MAX: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::settings::Settings;

    async fn wait_for(
        receiver: &mut watch::Receiver<Option<Arc<Snapshot>>>,
        what: &str,
        holds: impl Fn(&Snapshot) -> bool,
    ) {
        let found = receiver.wait_for(|snapshot| snapshot.as_deref().is_some_and(&holds));
        assert!(timeout(Duration::from_secs(4), found).await.is_ok(), "{what}");
    }

    fn namespace(name: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
    }

    #[tokio::test]
    async fn changes_of_every_kind_are_seen_without_the_slow_look() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), namespace("a")).unwrap();
        let stop = CancellationToken::new();
        let cidr = Settings::default().service_cidr;
        let mut receiver = watch_folders(vec![dir.path().to_owned()], cidr, stop.clone());
        let count = |n| move |s: &Snapshot| s.objects.namespaces.len() == n;
        wait_for(&mut receiver, "the first read", count(1)).await;

        fs::create_dir(dir.path().join("new")).unwrap();
        fs::write(dir.path().join("new/b.yaml"), namespace("b")).unwrap();
        wait_for(&mut receiver, "a file in a new folder", count(2)).await;

        // As editors save: a new file takes the old one's name.
        fs::write(dir.path().join(".a.tmp"), format!("{}---\n{}", namespace("a"), namespace("c"))).unwrap();
        fs::rename(dir.path().join(".a.tmp"), dir.path().join("a.yaml")).unwrap();
        wait_for(&mut receiver, "a file that was replaced", count(3)).await;

        fs::remove_file(dir.path().join("a.yaml")).unwrap();
        wait_for(&mut receiver, "a file that was removed", count(1)).await;
        stop.cancel();
    }
}
