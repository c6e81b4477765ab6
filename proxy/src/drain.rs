//! Graceful ends: of the process, of a listener, of one filter chain.
//!
//! A [`Drain`] is a node of a tree. What begins on a node is seen on all nodes below it and on none above: the process
//! owns the root, each listener a child, each chain a child of its listener's. Work that must be waited for holds a
//! [`Running`] guard; the guards of the whole tree are counted together.

use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// A graceful end that can begin, turn into a cut, and be waited for. Clones are the same node.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    soft: CancellationToken,
    hard: CancellationToken,
    running: TaskTracker,
}

/// Held by a connection (or a stream) for as long as the process should wait for it.
#[derive(Debug)]
#[must_use = "dropping it says that the work is over"]
pub struct Running {
    _token: TaskTrackerToken,
}

impl Drain {
    /// A root.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A node below: ends with this one, or alone. Running work counts for the whole tree.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { soft: self.soft.child_token(), hard: self.hard.child_token(), running: self.running.clone() }
    }

    /// Begins the graceful end: idle connections close, busy ones say so to their client and close after the last answer.
    pub fn begin(&self) {
        self.soft.cancel();
    }

    /// Ends what still runs, now. Implies [`Self::begin`].
    pub fn cut(&self) {
        self.soft.cancel();
        self.hard.cancel();
    }

    /// Has the graceful end begun?
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.soft.is_cancelled()
    }

    /// Ready once the graceful end has begun. Cancel safe.
    pub async fn draining(&self) {
        self.soft.cancelled().await;
    }

    /// Ready once what still runs must end at once. Cancel safe.
    pub async fn cut_off(&self) {
        self.hard.cancelled().await;
    }

    /// Counts one piece of work until the guard is dropped.
    pub fn running(&self) -> Running {
        Running { _token: self.running.token() }
    }

    /// How many guards are alive in the tree.
    #[must_use]
    pub fn count(&self) -> usize {
        self.running.len()
    }

    /// Ready when no guard is alive; to be called after [`Self::begin`] on the root, when nothing new comes in. Cancel
    /// safe.
    pub async fn finished(&self) {
        self.running.close();
        self.running.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::Drain;

    #[tokio::test]
    async fn a_child_ends_with_its_parent_but_not_the_parent_with_its_child() {
        let root = Drain::new();
        let (a, b) = (root.child(), root.child());
        a.begin();
        assert!(a.is_draining() && !b.is_draining() && !root.is_draining());
        root.cut();
        timeout(Duration::from_secs(5), async { tokio::join!(b.draining(), b.cut_off(), a.cut_off()) }).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_every_guard_of_the_tree() {
        let root = Drain::new();
        let guard = root.child().child().running();
        root.begin();
        assert_eq!(root.count(), 1);
        assert!(timeout(Duration::from_secs(60), root.finished()).await.is_err(), "work still runs");
        drop(guard);
        timeout(Duration::from_secs(1), root.finished()).await.unwrap();
    }
}
