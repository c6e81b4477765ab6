//! The mesh on a real Kubernetes, each scenario named after what it shows.
//!
//! `cargo test -p oxmesh-tests --test kubernetes -- NAME` runs those whose name holds NAME. The cluster is that of
//! `tests/cluster`, or the one of KUBECONFIG (`oxmesh_tests::cluster`). What can't run is listed as SKIPPED with the reason.

mod images;
mod node;

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};
use oxmesh_tests::{
    cluster::{Cluster, cluster_missing},
    trial::trial,
};

fn main() {
    let arguments = Arguments::from_args();
    let missing = cluster_missing();
    let mut trials = Vec::new();
    images::trials(&mut trials, missing.as_deref());
    node::trials(&mut trials, missing.as_deref());
    libtest_mimic::run(&arguments, trials).exit();
}

/// Adds a scenario on the shared cluster.
fn scenario<F>(trials: &mut Vec<Trial>, missing: Option<&str>, name: &str, scenario: fn(&'static Cluster) -> F)
where
    F: Future<Output = Result<()>> + 'static,
{
    trials.push(trial(name, missing.map(ToOwned::to_owned), move || async move { scenario(Cluster::shared()?).await }));
}
