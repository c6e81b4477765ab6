//! The mesh on a real Kubernetes, each scenario named after what it shows.
//!
//! `cargo test -p oxmesh-tests --test kubernetes -- NAME` runs those whose name holds NAME. The cluster is that of
//! `tests/cluster`, or the one of KUBECONFIG (`oxmesh_tests::cluster`). What can't run is listed as SKIPPED with the reason.

mod book;
mod bookstore;
mod commands;
mod control_plane;
mod faults;
mod identity;
mod images;
mod injection;
mod node;
mod permissions;
mod privilege;
mod steady;
mod table;
mod traffic;

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};
use oxmesh_tests::{
    cluster::{Cluster, cluster_missing, own_missing},
    trial::trial,
};
use tokio::sync::RwLock;

fn main() {
    let arguments = Arguments::from_args();
    let missing = cluster_missing();
    let mut trials = Vec::new();
    book::trials(&mut trials, missing.as_deref());
    commands::trials(&mut trials, missing.as_deref());
    bookstore::trials(&mut trials, missing.as_deref());
    control_plane::trials(&mut trials);
    faults::trials(&mut trials, missing.as_deref());
    identity::trials(&mut trials, missing.as_deref());
    images::trials(&mut trials, missing.as_deref());
    injection::trials(&mut trials, missing.as_deref());
    node::trials(&mut trials, missing.as_deref());
    permissions::trials(&mut trials, missing.as_deref());
    privilege::trials(&mut trials, missing.as_deref());
    traffic::trials(&mut trials, missing.as_deref());
    table::trials(&mut trials);
    let conclusion = libtest_mimic::run(&arguments, trials);
    table::write();
    conclusion.exit();
}

/// Held for reading by scenarios that want the control plane to be there, for writing by those that take it away.
static UNDISTURBED: RwLock<()> = RwLock::const_new(());

/// Adds a scenario on the shared cluster.
fn scenario<F>(trials: &mut Vec<Trial>, missing: Option<&str>, name: &str, scenario: fn(&'static Cluster) -> F)
where
    F: Future<Output = Result<()>> + 'static,
{
    let missing = missing.map(ToOwned::to_owned);
    trials.push(trial(name, missing, move || async move {
        let cluster = Cluster::shared()?;
        let _undisturbed = UNDISTURBED.read().await;
        scenario(cluster).await
    }));
}

/// Adds a scenario that has the test cluster for itself, and may stop parts of it.
fn disruptive<F>(trials: &mut Vec<Trial>, name: &str, scenario: fn(&'static Cluster) -> F)
where
    F: Future<Output = Result<()>> + 'static,
{
    trials.push(trial(name, own_missing(), move || async move {
        let cluster = Cluster::shared()?;
        let _alone = UNDISTURBED.write().await;
        scenario(cluster).await
    }));
}
