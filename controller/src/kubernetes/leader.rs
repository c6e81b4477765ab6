//! The lease: which replica writes what only one may write.
//!
//! Whoever holds it writes things that are the same whoever writes them, so two holders for a moment, after a partition,
//! do no harm.

use std::time::Duration;

use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The lease's name, in the control plane's namespace.
pub(super) const LEASE: &str = "osm-controller";

/// Tells in `leader` whether this replica holds the lease. Returns when stopped, having given it back.
pub(super) async fn lead(client: Client, namespace: &str, leader: &watch::Sender<bool>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let manager = tokio::select! {
            () = stop.cancelled() => return,
            manager = manager(client.clone(), namespace) => manager,
        };
        match manager {
            Ok(manager) => hold(manager, leader, &stop).await,
            Err(error) => warn!(lease = LEASE, %error, "the lease can't be had; trying again"),
        }
        leader.send_replace(false);
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(RETRY_PAUSE) => {}
        }
    }
}

async fn manager(client: Client, namespace: &str) -> kube_lease_manager::Result<LeaseManager> {
    let pod = std::env::var("POD_NAME").or_else(|_| std::env::var("HOSTNAME")).unwrap_or_else(|_| LEASE.to_owned());
    let identity = format!("{pod}-{:08x}", fastrand::u32(..));
    LeaseManagerBuilder::new(client, LEASE)
        .with_namespace(namespace)
        .with_identity(identity)
        .with_duration(LEASE_SECONDS)
        .with_grace(GRACE_SECONDS)
        .build()
        .await
}

async fn hold(manager: LeaseManager, leader: &watch::Sender<bool>, stop: &CancellationToken) {
    let (mut state, task) = manager.watch().await;
    loop {
        let held = *state.borrow_and_update();
        if leader.send_replace(held) != held {
            info!(lease = LEASE, held, "who writes to the cluster has changed");
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = state.changed() => if changed.is_err() { break },
        }
    }
    leader.send_replace(false);
    // The task gives the lease back when nobody listens any more, so that another needn't wait for it to run out.
    drop(state);
    match timeout(RELEASE_TIME, task).await {
        Ok(Ok(Ok(_))) => {}
        Ok(Ok(Err(error))) => warn!(lease = LEASE, %error, "the lease is not given back; it runs out by itself"),
        Ok(Err(_)) | Err(_) => warn!(lease = LEASE, "the lease is not given back in time; it runs out by itself"),
    }
}

const LEASE_SECONDS: u64 = 15;
/// How long before its end the lease is renewed.
const GRACE_SECONDS: u64 = 5;
const RETRY_PAUSE: Duration = Duration::from_secs(2);
const RELEASE_TIME: Duration = Duration::from_secs(3);
