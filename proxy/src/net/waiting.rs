//! A bound on connections that are still being made out: detection and TLS handshake.
//!
//! When too many wait, the one that waits longest is closed. So a flood of stalled handshakes costs bounded memory and
//! neither refuses nor delays a client that goes on as it should.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Connections of the process that wait at once.
pub const MAX_WAITING: usize = 4096;

/// The connections that wait.
#[derive(Debug)]
pub struct Waiting {
    limit: usize,
    queue: Mutex<VecDeque<Weak<Notify>>>,
    count: Arc<AtomicUsize>,
}

/// A place among them; left when dropped.
#[derive(Debug)]
pub struct Place {
    pushed_out: Arc<Notify>,
    count: Arc<AtomicUsize>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self::new(MAX_WAITING)
    }
}

impl Waiting {
    /// At most `limit` wait.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, queue: Mutex::default(), count: Arc::default() }
    }

    /// Takes a place; the longest waiting connection loses its own when all are taken.
    pub fn enter(&self) -> Place {
        let place = Place { pushed_out: Arc::default(), count: Arc::clone(&self.count) };
        let waiting = self.count.fetch_add(1, Relaxed) + 1;
        let mut queue = self.queue.lock();
        queue.push_back(Arc::downgrade(&place.pushed_out));
        let mut over = waiting.saturating_sub(self.limit);
        while let Some(oldest) = queue.front() {
            match oldest.upgrade() {
                Some(oldest) if over > 0 => {
                    // It may not have begun to listen; the permit stays until it does.
                    oldest.notify_one();
                    over -= 1;
                }
                Some(_) => break,
                None => {}
            }
            queue.pop_front();
        }
        if queue.len() > 4 * self.limit {
            queue.retain(|w| w.strong_count() > 0);
        }
        place
    }

    /// How many wait now.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Relaxed)
    }
}

impl Place {
    /// Ready when the place was lost. Cancel safe.
    pub async fn pushed_out(&self) {
        self.pushed_out.notified().await;
        // Stays lost, whoever asks next.
        self.pushed_out.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn the_one_that_waits_longest_loses_its_place() {
        let waiting = Waiting::new(2);
        let (a, b) = (waiting.enter(), waiting.enter());
        assert!(a.pushed_out().now_or_never().is_none());
        let c = waiting.enter();
        assert!(a.pushed_out().now_or_never().is_some());
        assert!(a.pushed_out().now_or_never().is_some(), "lost for good");
        assert!(b.pushed_out().now_or_never().is_none());
        drop((a, b));
        let d = waiting.enter();
        assert!(c.pushed_out().now_or_never().is_none() && d.pushed_out().now_or_never().is_none());
        assert_eq!(waiting.count(), 2);
    }

    #[test]
    fn places_that_were_left_take_no_memory() {
        let waiting = Waiting::new(10);
        let _longest = waiting.enter();
        for _ in 0..10_000 {
            drop(waiting.enter());
        }
        assert!(waiting.queue.lock().len() <= 41);
    }
}
