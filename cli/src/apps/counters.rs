//! What an application counts, as JSON for `/` and for `oxmesh demo`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Counts of an application's own calls and what it served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Name of the application.
    pub app: String,
    /// Whom it calls, `host:port`.
    pub target: String,
    /// Calls that it made.
    pub attempts: u64,
    /// Calls that were answered with 200, or done in full.
    pub ok: u64,
    /// All others.
    pub failed: u64,
    /// Answered calls by the identity that the other side named.
    pub by_identity: BTreeMap<String, u64>,
    /// Failed calls by status or reason.
    pub by_failure: BTreeMap<String, u64>,
    /// Requests that it served.
    pub served: u64,
}

/// Shared counters.
#[derive(Debug)]
pub(super) struct Counters(Mutex<Counts>);

impl Counters {
    pub(super) fn new(app: &str, target: &str) -> Self {
        let counts = Counts { app: app.to_owned(), target: target.to_owned(), ..Counts::default() };
        Self(Mutex::new(counts))
    }

    /// Counts a call: the other side's identity, or the status or reason of its failure.
    pub(super) fn call(&self, outcome: &Result<String, String>) {
        self.change(|counts| {
            counts.attempts += 1;
            match outcome {
                Ok(identity) => {
                    counts.ok += 1;
                    *counts.by_identity.entry(identity.clone()).or_default() += 1;
                }
                Err(reason) => {
                    counts.failed += 1;
                    *counts.by_failure.entry(reason.clone()).or_default() += 1;
                }
            }
        });
    }

    pub(super) fn served(&self) {
        self.change(|counts| counts.served += 1);
    }

    pub(super) fn snapshot(&self) -> Counts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
