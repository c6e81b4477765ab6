//! Local rate limits.

use std::time::Duration;

use envoy_types::pb::envoy::{
    config::core::v3::RuntimeFractionalPercent,
    extensions::filters::{http::local_ratelimit::v3 as http_limit, network::local_ratelimit::v3 as network_limit},
    r#type::v3::TokenBucket as InBucket,
};
use http::StatusCode;

use super::{
    context::{Cx, parts_per_million},
    headers,
};
use crate::{
    config::ratelimit::{HttpLocalRateLimit, NetworkLocalRateLimit, TokenBucket},
    xds::path::At,
};

/// Shortest interval between fills, as in Envoy.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// The HTTP filter; on a route a bucket is needed.
pub(super) fn http(
    limit: &http_limit::LocalRateLimit,
    per_route: bool,
    at: &At<'_>,
    cx: &mut Cx<'_>,
) -> Option<HttpLocalRateLimit> {
    let bucket = match limit.token_bucket.as_ref() {
        Some(b) => Some(bucket(b, &at.field("token_bucket"), cx)?),
        None if per_route => return cx.refuse(&at.field("token_bucket"), "must be set for per filter configs"),
        None => None,
    };
    let share = |f: &Option<RuntimeFractionalPercent>| {
        f.as_ref().and_then(|f| f.default_value.as_ref()).map_or(0, parts_per_million)
    };
    let code = limit.status.as_ref().map_or(0, |s| s.code);
    let status = u16::try_from(code).ok().and_then(|c| StatusCode::from_u16(c).ok()).filter(|s| s.as_u16() >= 400);
    let response_headers = headers::additions(&limit.response_headers_to_add, &at.field("response_headers_to_add"), cx);
    Some(HttpLocalRateLimit {
        stat_prefix: limit.stat_prefix.as_str().into(),
        bucket,
        status: status.unwrap_or(StatusCode::TOO_MANY_REQUESTS),
        response_headers,
        enabled_ppm: share(&limit.filter_enabled),
        enforced_ppm: share(&limit.filter_enforced),
    })
}

/// The network filter.
pub(super) fn network(
    limit: &network_limit::LocalRateLimit,
    at: &At<'_>,
    cx: &mut Cx<'_>,
) -> Option<NetworkLocalRateLimit> {
    let at = at.field("token_bucket");
    let Some(bucket) = limit.token_bucket.as_ref() else { return cx.refuse(&at, "is required") };
    Some(NetworkLocalRateLimit {
        stat_prefix: limit.stat_prefix.as_str().into(),
        bucket: self::bucket(bucket, &at, cx)?,
    })
}

fn bucket(bucket: &InBucket, at: &At<'_>, cx: &mut Cx<'_>) -> Option<TokenBucket> {
    let at_interval = at.field("fill_interval");
    let interval = cx.duration(bucket.fill_interval.as_ref(), &at_interval)?;
    if interval < MIN_INTERVAL {
        return cx.refuse(&at_interval, "local rate limit token bucket fill timer must be >= 50ms");
    }
    let fill = bucket.tokens_per_fill.as_ref().map_or(1, |t| t.value);
    Some(TokenBucket { max: bucket.max_tokens, fill, interval })
}
