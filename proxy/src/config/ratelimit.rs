//! Local rate limits as data (Envoy's `LocalRateLimit`, HTTP and network).

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use http::StatusCode;

use super::{Name, headers::HeaderEdits};

/// A token bucket: starts full; `fill` tokens come at once every `interval`, up to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// Most tokens held.
    pub max: u32,
    /// Tokens per fill; Envoy's default 1.
    pub fill: u32,
    /// At least 50 ms.
    pub interval: Duration,
}

/// HTTP local rate limit, of the listener or of a virtual host or route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpLocalRateLimit {
    /// Prefix of its statistics (`<prefix>.http_local_rate_limit.*`).
    pub stat_prefix: Name,
    /// None = the filter does nothing here.
    pub bucket: Option<TokenBucket>,
    /// Status of the refusal; 429 by default, never below 400.
    pub status: StatusCode,
    /// Headers added to refusals (`response_headers_to_add`).
    pub response_headers: HeaderEdits,
    /// Share of requests checked at all, in parts of a million (`filter_enabled`; 0 by default).
    pub enabled_ppm: u32,
    /// Share of checked and over-limit requests that are refused, in parts of a million (`filter_enforced`; 0 by default).
    pub enforced_ppm: u32,
}

/// Network local rate limit: one token per connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkLocalRateLimit {
    /// Prefix of its statistics (`local_rate_limit.<prefix>.rate_limited`).
    pub stat_prefix: Name,
    /// The bucket, shared by all connections of the chain.
    pub bucket: TokenBucket,
}

/// The state of a [`TokenBucket`]. Shared by threads without a lock; the clock is passed in.
#[derive(Debug)]
pub struct Bucket {
    spec: TokenBucket,
    started: Instant,
    /// Fills so far in the high half, tokens left in the low half.
    state: AtomicU64,
}

impl Bucket {
    /// A full bucket whose fills are counted from `now`.
    #[must_use]
    pub fn new(spec: TokenBucket, now: Instant) -> Self {
        Self { spec, started: now, state: AtomicU64::new(u64::from(spec.max)) }
    }

    /// The rule that it keeps.
    #[must_use]
    pub fn spec(&self) -> &TokenBucket {
        &self.spec
    }

    /// Takes one token; false when there is none.
    pub fn take(&self, now: Instant) -> bool {
        let fills = self.fills(now);
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let (seen, left) = ((state >> 32) as u32, state as u32);
            // Another thread may have seen a later clock; its fills stand.
            let fresh = fills.saturating_sub(seen);
            let gained = u64::from(fresh) * u64::from(self.spec.fill);
            let tokens = (u64::from(left) + gained).min(u64::from(self.spec.max));
            let next = (u64::from(seen + fresh) << 32) | tokens.saturating_sub(1);
            match self.state.compare_exchange_weak(state, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return tokens > 0,
                Err(now) => state = now,
            }
        }
    }

    /// Whole intervals since the start.
    fn fills(&self, now: Instant) -> u32 {
        let interval = self.spec.interval.as_nanos().max(1);
        let elapsed = now.saturating_duration_since(self.started).as_nanos();
        u32::try_from(elapsed / interval).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: TokenBucket = TokenBucket { max: 3, fill: 2, interval: Duration::from_secs(1) };

    fn taken(bucket: &Bucket, now: Instant) -> usize {
        (0..10).filter(|_| bucket.take(now)).count()
    }

    #[test]
    fn it_starts_full_and_fills_at_once_after_each_interval() {
        let start = Instant::now();
        let bucket = Bucket::new(SPEC, start);
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(taken(&bucket, at(0)), 3);
        assert_eq!(taken(&bucket, at(999)), 0);
        assert_eq!(taken(&bucket, at(1000)), 2);
        assert_eq!(taken(&bucket, at(1999)), 0);
        assert_eq!(taken(&bucket, at(60_000)), 3, "never above its size");
        assert_eq!(taken(&bucket, at(59_000)), 0, "a clock read earlier gives nothing back");
    }

    #[test]
    fn an_empty_try_does_not_lose_the_next_fill() {
        let start = Instant::now();
        let bucket = Bucket::new(TokenBucket { max: 1, fill: 1, ..SPEC }, start);
        for second in 0..5 {
            assert_eq!(taken(&bucket, start + Duration::from_secs(second)), 1, "{second}");
        }
    }

    #[test]
    fn threads_take_no_more_than_there_is() {
        let start = Instant::now();
        let bucket = Bucket::new(TokenBucket { max: 1000, ..SPEC }, start);
        let total: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..400).filter(|_| bucket.take(start)).count())).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(total, 1000);
    }
}
