//! What the counting load of `oxmesh-test-app` saw.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

/// Answers by status and by who answered, and errors by their words.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Answers by status code.
    pub status: BTreeMap<String, u64>,
    /// Answers by the header `identity`.
    pub identity: BTreeMap<String, u64>,
    /// Requests without an answer.
    pub errors: BTreeMap<String, u64>,
    /// What answers other than 200 said, and when.
    pub words: BTreeMap<String, u64>,
}

impl Load {
    /// Reads what the program printed.
    ///
    /// # Errors
    /// When it isn't JSON.
    pub fn parse(text: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(text)?;
        let map = |key: &str| -> BTreeMap<String, u64> {
            let entries = value[key].as_object().into_iter().flatten();
            entries.map(|(k, v)| (k.clone(), v.as_u64().unwrap_or(0))).collect()
        };
        Ok(Self { status: map("status"), identity: map("identity"), errors: map("errors"), words: map("words") })
    }

    /// Requests sent.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.status.values().sum::<u64>() + self.errors.values().sum::<u64>()
    }

    /// Answers from `identity`.
    #[must_use]
    pub fn from(&self, identity: &str) -> u64 {
        self.identity.get(identity).copied().unwrap_or(0)
    }

    /// Every request was answered 200, and there were at least `least`.
    ///
    /// # Errors
    /// With all that was seen.
    pub fn all_ok(&self, least: u64) -> Result<()> {
        let ok = self.status.get("200").copied().unwrap_or(0);
        ensure!(ok == self.total(), "not all requests were answered 200: {self:?}");
        ensure!(ok >= least, "only {ok} of {least} requests were sent: {self:?}");
        Ok(())
    }
}
