//! Scenarios as trials of the test runner, with reasons for those that can't run.

use std::{future::Future, path::Path, time::Duration};

use anyhow::Result;
use libtest_mimic::{Failed, Trial};
use parking_lot::Mutex;
use tokio::time::Instant;

/// A trial of this process.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its name.
    pub name: String,
    /// Whether it passed, and how long it took; none when it has not run.
    pub ended: Option<(bool, Duration)>,
}

static RUNS: Mutex<Vec<Run>> = Mutex::new(Vec::new());

/// All trials made so far by [`trial`], in their order, and how those ended that have run.
#[must_use]
pub fn runs() -> Vec<Run> {
    RUNS.lock().clone()
}

/// Why scenarios with pods can't run here, if they can't.
#[must_use]
pub fn pods_missing() -> Option<String> {
    if !oxmesh::pod::privilege::is_root() {
        return Some("needs root (network namespaces and iptables)".to_owned());
    }
    for tool in ["ip", "iptables-restore", "ip6tables-restore", "nsenter", "setpriv", "unshare", "curl", "openssl"] {
        let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().any(|dir| Path::new(dir).join(tool).exists());
        if !found {
            return Some(format!("{tool} is not installed"));
        }
    }
    None
}

/// Why scenarios with real Envoy can't run here, if they can't.
#[must_use]
pub fn envoy_missing() -> Option<String> {
    (!crate::mesh::tools().join("bin/envoy").is_file())
        .then(|| "real Envoy is not there (make tools fetches it)".to_owned())
}

/// Why scenarios with Python's gRPC and WebSocket can't run here, if they can't.
#[must_use]
pub fn python_missing() -> Option<String> {
    (!crate::mesh::tools().join("python/.done").is_file())
        .then(|| "Python's gRPC packages are not there (make tools fetches them)".to_owned())
}

/// A trial of an async scenario on a runtime of its own; ignored, with the reason in its name, when `missing` says so.
pub fn trial<F>(
    name: impl Into<String>,
    missing: Option<String>,
    scenario: impl FnOnce() -> F + Send + 'static,
) -> Trial
where
    F: Future<Output = Result<()>>,
{
    let name = name.into();
    let index = {
        let mut runs = RUNS.lock();
        runs.push(Run { name: name.clone(), ended: None });
        runs.len() - 1
    };
    match missing {
        Some(reason) => Trial::test(format!("{name} SKIPPED: {reason}"), || Ok(())).with_ignored_flag(true),
        None => Trial::test(name, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let start = Instant::now();
                let outcome = scenario().await;
                RUNS.lock()[index].ended = Some((outcome.is_ok(), start.elapsed()));
                outcome.map_err(|e| Failed::from(format!("{e:#}")))
            })
        }),
    }
}
