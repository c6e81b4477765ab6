//! One watch: list, then follow, again and again, and tell what came.
//!
//! The library resumes after lost connections, follows bookmarks and lists anew when the server has forgotten where we were
//! (410). Here stand the pauses between tries: its own start over with every list, so an API server that is away would be
//! asked again and again without a pause that grows.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch as channel};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use crate::api::{Key, Object, ParseError};

/// What a watch tells.
#[derive(Debug)]
pub(super) struct News {
    /// The kind that is watched.
    pub(super) kind: &'static str,
    /// What the last list of this watch was asked for by.
    pub(super) generation: u64,
    /// What happened.
    pub(super) change: Change,
}

/// What happened.
#[derive(Debug)]
pub(super) enum Change {
    /// A list begins.
    Listing,
    /// An object stands in the list.
    Listed(Taken),
    /// The list is complete: what was not in it is gone.
    AllListed,
    /// An object is new or has changed.
    Applied(Taken),
    /// An object is gone.
    Deleted(Key),
    /// The API server did not answer, or not as wished.
    Failed {
        /// It does not know the kind at all.
        unknown_kind: bool,
        /// What it said.
        reason: String,
    },
}

/// An object as it came, or why it can't be understood.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) key: Key,
    pub(super) object: Result<Object, ParseError>,
}

/// Watches a kind for ever; lists it anew when `generation` changes. Returns when nobody listens any more.
pub(super) async fn watch<K>(
    api: Api<K>,
    kind: &'static str,
    take: impl Fn(K) -> Taken,
    news: mpsc::Sender<News>,
    mut generation: channel::Receiver<u64>,
) where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut pauses = Pauses::default();
    loop {
        let of = *generation.borrow_and_update();
        let mut events = pin!(watcher(api.clone(), config()));
        loop {
            let event = tokio::select! {
                changed = generation.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                event = events.next() => event,
            };
            let Some(event) = event else { break };
            let (change, failed) = match event {
                Ok(event) => (change(event, &take), false),
                Err(error) => (failure(kind, &error), true),
            };
            if !failed && !matches!(change, Change::Listing) {
                pauses.over();
            }
            if news.send(News { kind, generation: of, change }).await.is_err() {
                return;
            }
            if failed {
                sleep(pauses.next(Instant::now())).await;
            }
        }
    }
}

fn change<K: Resource>(event: Event<K>, take: &impl Fn(K) -> Taken) -> Change {
    match event {
        Event::Init => Change::Listing,
        Event::InitApply(object) => Change::Listed(take(object)),
        Event::InitDone => Change::AllListed,
        Event::Apply(object) => Change::Applied(take(object)),
        Event::Delete(object) => Change::Deleted(key(object.meta())),
    }
}

/// The key as it stands in the API: an object without a namespace is cluster-wide.
pub(super) fn key(metadata: &crate::api::core::ObjectMeta) -> Key {
    Key::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

fn failure(kind: &str, error: &watcher::Error) -> Change {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    };
    let code = status.map(|status| status.code);
    let unknown_kind = code == Some(NOT_FOUND);
    let reason = match (code, status) {
        (Some(NOT_FOUND), _) => "the cluster has no such kind (apply the custom resource definitions)".to_owned(),
        (Some(FORBIDDEN), Some(status)) => format!("{} (the controller's ClusterRole must allow it)", status.message),
        _ => error.to_string(),
    };
    match code {
        // The server has forgotten where we were: the library lists anew.
        Some(GONE) => debug!(kind, "the watch starts anew"),
        Some(_) => warn!(kind, reason, "the API server refuses the watch; trying again"),
        None => debug!(kind, reason, "the watch was lost; trying again"),
    }
    Change::Failed { unknown_kind, reason }
}

fn config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS)
}

/// Pauses that grow while nothing but failures comes.
#[derive(Debug, Default)]
struct Pauses {
    failures: u32,
    last: Option<Instant>,
}

impl Pauses {
    fn over(&mut self) {
        self.failures = 0;
    }

    fn next(&mut self, now: Instant) -> Duration {
        if self.last.is_some_and(|last| now.duration_since(last) > FORGIVEN_AFTER) {
            self.failures = 0;
        }
        self.last = Some(now);
        let whole = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures += 1;
        // Replicas and kinds must not come back in step.
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// How long one watch lasts: a connection that died without a word is noticed five seconds after that.
const WATCH_SECONDS: u32 = 60;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const FORGIVEN_AFTER: Duration = Duration::from_secs(30);
const FORBIDDEN: u16 = 403;
const NOT_FOUND: u16 = 404;
const GONE: u16 = 410;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_longest_and_start_over_after_success() {
        let mut pauses = Pauses::default();
        let now = Instant::now();
        let first: Vec<Duration> = (0..12).map(|_| pauses.next(now)).collect();
        assert!(first[0] <= FIRST_PAUSE && first[0] >= FIRST_PAUSE / 2);
        assert!(first.iter().all(|p| *p <= LONGEST_PAUSE) && first[11] >= LONGEST_PAUSE / 2);
        pauses.over();
        assert!(pauses.next(now) <= FIRST_PAUSE);
        pauses.next(now);
        assert!(pauses.next(now + FORGIVEN_AFTER * 2) <= FIRST_PAUSE);
    }
}
