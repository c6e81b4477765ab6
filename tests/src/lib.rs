//! The harness of the system's tests: a mesh of real programs in real network namespaces, and ways to ask it questions.
//!
//! What can't run here is ignored with a reason that begins with `SKIPPED:`, never counted as passed.

pub mod alone;
pub mod cluster;
pub mod frames;
pub mod installed;
pub mod load;
pub mod mesh;
pub mod shop;
pub mod trial;
pub mod witness;

use std::{future::Future, time::Duration};

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};

/// Asks again and again until the answer is good; the last failure is the error.
///
/// # Errors
/// The last answer's words after `limit`.
pub async fn eventually<T, F>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + limit;
    loop {
        match probe().await {
            Ok(answer) => return Ok(answer),
            Err(e) if Instant::now() >= deadline => {
                return Err(e).with_context(|| format!("{what}: not within {limit:?}"));
            }
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}
