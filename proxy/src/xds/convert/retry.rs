//! Retry policies.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::{RetryPolicy as InPolicy, retry_policy};
use http::StatusCode;

use super::{
    context::{Cx, type_of},
    matcher,
};
use crate::{
    config::route::{RetryOn, RetryPolicy},
    xds::{path::At, schema::short},
};

/// Envoy's default base of the back-off.
const BASE_INTERVAL: Duration = Duration::from_millis(25);
/// The name under which Envoy's older configurations ask for other hosts.
const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";

/// A retry policy; none when there is none.
pub(super) fn policy(policy: Option<&InPolicy>, at: &At<'_>, cx: &mut Cx<'_>) -> Option<RetryPolicy> {
    let policy = policy?;
    let (base_interval, max_interval) = back_off(policy, &at.field("retry_back_off"), cx)?;
    let codes_at = at.field("retriable_status_codes");
    let codes = policy.retriable_status_codes.iter().enumerate().filter_map(|(i, code)| {
        let status = u16::try_from(*code).ok().and_then(|c| StatusCode::from_u16(c).ok());
        if status.is_none() {
            cx.report.error(&codes_at.index(i), format_args!("{code} is no status"));
        }
        status
    });
    let status_codes = codes.collect();
    Some(RetryPolicy {
        on: words(&policy.retry_on, &at.field("retry_on"), cx),
        num_retries: policy.num_retries.as_ref().map_or(1, |n| n.value),
        per_try_timeout: cx.limit(policy.per_try_timeout.as_ref(), &at.field("per_try_timeout")),
        base_interval,
        max_interval,
        status_codes,
        headers: matcher::headers(&policy.retriable_headers, &at.field("retriable_headers"), cx),
        avoid_previous_hosts: avoid_previous_hosts(policy, &at.field("retry_host_predicate"), cx)?,
        host_selection_attempts: attempts(policy, &at.field("host_selection_retry_max_attempts"), cx)?,
    })
}

fn back_off(policy: &InPolicy, at: &At<'_>, cx: &mut Cx<'_>) -> Option<(Duration, Duration)> {
    let Some(back_off) = policy.retry_back_off.as_ref() else { return Some((BASE_INTERVAL, BASE_INTERVAL * 10)) };
    let base = cx.duration(back_off.base_interval.as_ref(), &at.field("base_interval"))?;
    let base = base.max(Duration::from_millis(1));
    let max_at = at.field("max_interval");
    match back_off.max_interval.as_ref() {
        None => Some((base, base * 10)),
        Some(_) => {
            let max = cx.duration(back_off.max_interval.as_ref(), &max_at)?;
            if max < base {
                return cx.refuse(&max_at, "must be greater than or equal to the base_interval");
            }
            Some((base, max))
        }
    }
}

fn attempts(policy: &InPolicy, at: &At<'_>, cx: &mut Cx<'_>) -> Option<u32> {
    match policy.host_selection_retry_max_attempts {
        0 => Some(1),
        n => match u32::try_from(n) {
            Ok(n) => Some(n),
            Err(_) => cx.refuse(at, format_args!("{n} is out of range")),
        },
    }
}

fn avoid_previous_hosts(policy: &InPolicy, at: &At<'_>, cx: &mut Cx<'_>) -> Option<bool> {
    for (i, predicate) in policy.retry_host_predicate.iter().enumerate() {
        let known = match predicate.config_type.as_ref() {
            Some(retry_policy::retry_host_predicate::ConfigType::TypedConfig(any)) => {
                short(type_of(any)) == "PreviousHostsPredicate"
            }
            None => predicate.name == PREVIOUS_HOSTS,
        };
        if !known {
            return cx
                .refuse(&at.index(i), format_args!("{} not supported (supported: {PREVIOUS_HOSTS})", predicate.name));
        }
    }
    Some(!policy.retry_host_predicate.is_empty())
}

/// The words of `retry_on`; an unknown one is dropped with a warning, as Envoy drops it.
fn words(text: &str, at: &At<'_>, cx: &mut Cx<'_>) -> RetryOn {
    let mut on = RetryOn::default();
    for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        let flag = match word {
            "5xx" => &mut on.server_error,
            "gateway-error" => &mut on.gateway_error,
            "reset" => &mut on.reset,
            "reset-before-request" => &mut on.reset_before_request,
            "connect-failure" => &mut on.connect_failure,
            "envoy-ratelimited" => &mut on.envoy_ratelimited,
            "retriable-4xx" => &mut on.retriable_4xx,
            "refused-stream" => &mut on.refused_stream,
            "retriable-status-codes" => &mut on.retriable_status_codes,
            "retriable-headers" => &mut on.retriable_headers,
            "cancelled" => &mut on.grpc_cancelled,
            "deadline-exceeded" => &mut on.grpc_deadline_exceeded,
            "internal" => &mut on.grpc_internal,
            "resource-exhausted" => &mut on.grpc_resource_exhausted,
            "unavailable" => &mut on.grpc_unavailable,
            _ => {
                cx.report.warn(at, format_args!("unknown word {word:?} is ignored"));
                continue;
            }
        };
        *flag = true;
    }
    on
}
