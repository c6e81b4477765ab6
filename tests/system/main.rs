//! The system's scenarios, each named after what it shows, over real programs, namespaces and iptables.
//!
//! `cargo test -p oxmesh-tests -- NAME` runs those whose name holds NAME. Where a scenario is listed with "envoy", real
//! Envoy stands in for the client's sidecar, the server's, or both, in both xDS modes.

mod access;
mod differential;
mod egress;
mod hostile;
mod lifecycle;
mod limits;
mod metrics;
mod osm_golden;
mod protocols;
mod split;
mod standalone;

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};
use oxmesh::pod::DataPlane::{Envoy, Oxmesh};
use oxmesh_tests::{
    mesh::Planes,
    trial::{envoy_missing, pods_missing, trial},
};

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    access::trials(&mut trials);
    differential::trials(&mut trials);
    egress::trials(&mut trials);
    hostile::trials(&mut trials);
    lifecycle::trials(&mut trials);
    limits::trials(&mut trials);
    metrics::trials(&mut trials);
    osm_golden::trials(&mut trials);
    protocols::trials(&mut trials);
    split::trials(&mut trials);
    standalone::trials(&mut trials);
    libtest_mimic::run(&arguments, trials).exit();
}

/// Every place that real Envoy can take, and ours alone, in both modes of xDS.
const MATRIX: [(&str, Planes); 8] = [
    ("", Planes { client: Oxmesh, server: Oxmesh, delta: false }),
    (" (delta)", Planes { client: Oxmesh, server: Oxmesh, delta: true }),
    (" (envoy as client)", Planes { client: Envoy, server: Oxmesh, delta: false }),
    (" (envoy as client, delta)", Planes { client: Envoy, server: Oxmesh, delta: true }),
    (" (envoy as server)", Planes { client: Oxmesh, server: Envoy, delta: false }),
    (" (envoy as server, delta)", Planes { client: Oxmesh, server: Envoy, delta: true }),
    (" (envoy as both)", Planes { client: Envoy, server: Envoy, delta: false }),
    (" (envoy as both, delta)", Planes { client: Envoy, server: Envoy, delta: true }),
];

/// Adds the scenario once for each row of the matrix.
fn matrix<F>(trials: &mut Vec<Trial>, name: &str, missing: Option<String>, scenario: fn(Planes) -> F)
where
    F: Future<Output = Result<()>> + 'static,
{
    for (suffix, planes) in MATRIX {
        let missing =
            missing.clone().or_else(pods_missing).or_else(|| planes.need_envoy().then(envoy_missing).flatten());
        trials.push(trial(format!("{name}{suffix}"), missing, move || scenario(planes)));
    }
}

/// Adds a scenario with our proxy alone.
fn ours<F>(trials: &mut Vec<Trial>, name: &str, missing: Option<String>, scenario: fn(Planes) -> F)
where
    F: Future<Output = Result<()>> + 'static,
{
    trials.push(trial(name, missing.or_else(pods_missing), move || scenario(Planes::OURS)));
}
