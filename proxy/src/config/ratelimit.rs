//! Local rate limits as data (Envoy's `LocalRateLimit`, HTTP and network).

use std::time::Duration;

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
