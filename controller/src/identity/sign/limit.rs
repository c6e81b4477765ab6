//! Token buckets by key: how often one caller may ask.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Buckets that are full at first and fill again with time.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    burst: u32,
    refill: Duration,
    /// When a caller's bucket is full again.
    full_at: Mutex<HashMap<K, Instant>>,
}

impl<K: Eq + Hash + Clone> Buckets<K> {
    /// `burst` at once, then one per `refill`.
    pub(super) fn new(burst: u32, refill: Duration) -> Self {
        Self { burst, refill, full_at: Mutex::default() }
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long to wait for the next, if there is none.
    pub(super) fn take(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let mut all = self.full_at.lock();
        if all.len() >= MAX_KEYS {
            all.retain(|_, full_at| *full_at > now);
        }
        let full_at = all.get(key).copied().unwrap_or(now).max(now) + self.refill;
        let over = full_at.saturating_duration_since(now + self.refill * self.burst);
        if !over.is_zero() {
            return Err(over);
        }
        all.insert(key.clone(), full_at);
        Ok(())
    }
}

/// Callers remembered before those whose bucket is full are forgotten.
const MAX_KEYS: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_a_burst_and_then_waits_and_others_are_not_touched() {
        let buckets = Buckets::new(3, Duration::from_secs(10));
        let t0 = Instant::now();
        for _ in 0..3 {
            buckets.take(&"a", t0).unwrap();
        }
        assert_eq!(buckets.take(&"a", t0), Err(Duration::from_secs(10)));
        buckets.take(&"b", t0).unwrap();
        assert_eq!(buckets.take(&"a", t0 + Duration::from_secs(4)), Err(Duration::from_secs(6)));
        buckets.take(&"a", t0 + Duration::from_secs(10)).unwrap();
        assert!(buckets.take(&"a", t0 + Duration::from_secs(10)).is_err());
    }
}
