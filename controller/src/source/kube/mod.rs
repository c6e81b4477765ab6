//! The API server as a source: one watch per kind, all of them feeding one store.
//!
//! Nothing is published before every kind has been listed once. From then on what is known stays in force while the API
//! server is away. Objects of namespaces that the mesh does not watch over are passed over as they come in; when one more
//! namespace is watched over, all kinds are listed again, and it counts when that is done.

mod kinds;
mod slim;
mod store;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::store::Store;
use super::Snapshot;
use crate::settings::Settings;

/// Watches the API server until stopped. The receiver holds `None` until everything was listed once, then always the
/// newest snapshot. Until then `awaited` has the kinds that were not listed yet, each with the reason if there is one.
pub fn watch_cluster(
    client: Client,
    settings: Settings,
    awaited: channel::Sender<Vec<String>>,
    stop: CancellationToken,
) -> channel::Receiver<Option<Arc<Snapshot>>> {
    let (sender, receiver) = channel::channel(None);
    tokio::spawn(async move {
        let follow_for_ever = async {
            loop {
                follow(&client, &settings, &sender, &awaited).await;
                error!("a watch of the API server has failed for good; everything is listed anew");
                sleep(RESTART_PAUSE).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow_for_ever => {}
        }
    });
    receiver
}

/// Returns when a watch ends, which only a bug brings about.
async fn follow(
    client: &Client,
    settings: &Settings,
    sender: &channel::Sender<Option<Arc<Snapshot>>>,
    awaited: &channel::Sender<Vec<String>>,
) {
    let (news, mut received) = mpsc::channel(QUEUE);
    let generation = channel::Sender::new(0);
    let mut watches = JoinSet::new();
    kinds::watch_namespaces(client, &news, &mut watches);
    let mut store = Store::new(settings.clone(), kinds::NAMES);
    let mut started = false;
    loop {
        let first = tokio::select! {
            first = timeout(CHECK_INTERVAL, received.recv()) => first,
            _ = watches.join_next() => return,
        };
        // Changes seldom come alone: wait for a pause, but not for ever.
        if let Ok(Some(first)) = first {
            store.take(first);
            let last = Instant::now() + DEBOUNCE_MAX;
            while let Ok(Some(next)) = timeout_at(last.min(Instant::now() + DEBOUNCE_IDLE), received.recv()).await {
                store.take(next);
            }
        }
        awaited.send_replace(store.awaited());
        generation.send_if_modified(|g| std::mem::replace(g, store.generation()) != store.generation());
        // The others can only be taken in when it is known which namespaces count.
        if !started && store.knows_namespaces() {
            kinds::watch_others(client, &news, &generation, &mut watches);
            started = true;
        }
        if let Some(snapshot) = store.due(Instant::now()) {
            info!(objects = snapshot.objects.len(), findings = snapshot.findings.len(), "read the API server");
            sender.send_replace(Some(snapshot));
        }
    }
}

const DEBOUNCE_IDLE: Duration = Duration::from_millis(100);
const DEBOUNCE_MAX: Duration = Duration::from_secs(1);
/// How often it is looked at whether watches are failing.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const QUEUE: usize = 1024;
