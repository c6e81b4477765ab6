//! Tries again where the route's policy says so: after a back-off, within the cluster's limit of retries, on another
//! endpoint if asked, with the request's body replayed as far as it fits into the buffer.
//!
//! A request is only ever repeated for a reason that the policy names: the operator knows which requests may be.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll},
    time::Duration,
};

use futures_util::future::Either;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, request::Parts};
use tokio::time::{sleep, timeout};
use tower::{Layer, Service};

use super::{
    exchange::{Context, Exchange},
    replay::Replay,
    reply::GRPC_STATUS,
    step::Outcome,
};
use crate::{
    body::Body,
    config::{
        flags::{Flag, Flags},
        route::RetryPolicy,
    },
    error::{Reason, Refusal},
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct RetryLayer;

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry { inner }
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry<S> {
    inner: S,
}

type BoxFuture = Pin<Box<dyn Future<Output = Outcome> + Send>>;

impl<S> Service<Exchange> for Retry<S>
where
    S: Service<Exchange, Response = Response<Body>, Error = Refusal> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Refusal;
    type Future = Either<S::Future, BoxFuture>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, exchange: Exchange) -> Self::Future {
        match exchange.cx.retry() {
            // A tunnel can't be replayed.
            Some(policy) if exchange.cx.websocket.get().is_none() => {
                Either::Right(Box::pin(run(self.inner.clone(), exchange, policy)))
            }
            _ => Either::Left(self.inner.call(exchange)),
        }
    }
}

async fn run<S>(mut inner: S, exchange: Exchange, policy: Arc<RetryPolicy>) -> Outcome
where
    S: Service<Exchange, Response = Response<Body>, Error = Refusal>,
{
    let Exchange { request, cx, seen, snapshot: _ } = exchange;
    let (parts, body) = request.into_parts();
    let replay = Replay::new(body, MAX_REPLAY_BYTES);
    // Held while a retry is in flight.
    let mut permit = None;
    let mut retries = 0;
    loop {
        let request = Request::from_parts(copy(&parts), replay.body());
        let exchange = Exchange { request, cx: Arc::clone(&cx), seen, snapshot: None };
        let outcome = match policy.per_try_timeout {
            None => inner.call(exchange).await,
            Some(limit) => timeout(limit, inner.call(exchange)).await.unwrap_or_else(|_| {
                cluster_stat(&cx, |s| s.upstream_rq_per_try_timeout.increment(1));
                Err(Refusal { sent: true, ..Reason::PerTryTimeout.into() })
            }),
        };
        drop(permit.take());
        if !wanted(&policy, &outcome) {
            if retries > 0 && outcome.as_ref().is_ok_and(|r| !r.status().is_server_error()) {
                cluster_stat(&cx, |s| s.upstream_rq_retry_success.increment(1));
            }
            return told(outcome, retries);
        }
        if retries >= policy.num_retries {
            cluster_stat(&cx, |s| s.upstream_rq_retry_limit_exceeded.increment(1));
            return given_up(&cx, told(outcome, retries), Flag::UpstreamRetryLimitExceeded);
        }
        if !replay.is_possible() {
            return told(outcome, retries);
        }
        permit = match cx.cluster.get().map(|cluster| cluster.admit_retry()) {
            Some(Ok(permit)) => Some(permit),
            Some(Err(_)) => return given_up(&cx, told(outcome, retries), Flag::UpstreamOverflow),
            None => return told(outcome, retries),
        };
        // The answer's connection is given back before the wait.
        drop(outcome);
        retries += 1;
        cluster_stat(&cx, |s| {
            s.upstream_rq_retry.increment(1);
            s.upstream_rq_retry_backoff_exponential.increment(1);
        });
        sleep(back_off(&policy, retries, fastrand::u32(..))).await;
    }
}

fn cluster_stat(cx: &Context, count: impl FnOnce(&crate::upstream::ClusterStats)) {
    if let Some(cluster) = cx.cluster.get() {
        count(cluster.stats());
    }
}

/// The last outcome, flagged: an answer is passed on, a refusal carries the flag besides its own.
fn given_up(cx: &Context, outcome: Outcome, flag: Flag) -> Outcome {
    match outcome {
        Ok(response) => {
            cx.note(Flags::of(flag), "via_upstream");
            Ok(response)
        }
        Err(refusal) => Err(Refusal { more_flags: refusal.more_flags.union(Flags::of(flag)), ..refusal }),
    }
}

/// The last outcome; the words of a refusal say that there were tries before.
fn told(outcome: Outcome, retries: u32) -> Outcome {
    if retries == 0 {
        return outcome;
    }
    outcome.map_err(|refusal| {
        let body = refusal.body().replace("reset reason:", "retried and the latest reset reason:");
        Refusal { body: Some(body.into()), ..refusal }
    })
}

/// The head of another try. Extensions stay with the first: they hold nothing that goes upstream.
fn copy(parts: &Parts) -> Parts {
    let (mut copy, ()) = Request::new(()).into_parts();
    copy.method = parts.method.clone();
    copy.uri = parts.uri.clone();
    copy.version = parts.version;
    copy.headers = parts.headers.clone();
    copy
}

/// Full jitter in `[0, (2^n - 1) * base)`, capped, for the `n`-th retry.
fn back_off(policy: &RetryPolicy, retry: u32, random: u32) -> Duration {
    let factor = 1_u32.checked_shl(retry).map_or(u32::MAX, |power| power - 1);
    let longest = policy.base_interval.saturating_mul(factor).min(policy.max_interval);
    longest.mul_f64(f64::from(random) / (f64::from(u32::MAX) + 1.0))
}

/// True when the policy names this outcome.
fn wanted(policy: &RetryPolicy, outcome: &Outcome) -> bool {
    match outcome {
        Ok(response) => wants_answer(policy, response.status(), response.headers()),
        Err(refusal) => wants_failure(policy, refusal),
    }
}

fn wants_answer(policy: &RetryPolicy, status: StatusCode, headers: &HeaderMap) -> bool {
    let on = &policy.on;
    if headers.contains_key(&OVERLOADED) {
        return false;
    }
    if headers.contains_key(&RATE_LIMITED) {
        return on.envoy_ratelimited;
    }
    let gateway = matches!(status.as_u16(), 502..=504);
    (on.server_error && status.is_server_error())
        || (on.gateway_error && gateway)
        || (on.retriable_4xx && status == StatusCode::CONFLICT)
        || (on.retriable_status_codes && policy.status_codes.contains(&status))
        || (on.retriable_headers && policy.headers.iter().any(|h| h.matches_response(headers)))
        || wants_grpc(policy, headers)
}

fn wants_grpc(policy: &RetryPolicy, headers: &HeaderMap) -> bool {
    let on = &policy.on;
    match headers.get(&GRPC_STATUS).map(http::HeaderValue::as_bytes) {
        Some(b"1") => on.grpc_cancelled,
        Some(b"4") => on.grpc_deadline_exceeded,
        Some(b"8") => on.grpc_resource_exhausted,
        Some(b"13") => on.grpc_internal,
        Some(b"14") => on.grpc_unavailable,
        _ => false,
    }
}

fn wants_failure(policy: &RetryPolicy, refusal: &Refusal) -> bool {
    let on = &policy.on;
    // What Envoy counts as a reset, of whatever kind.
    let reset = on.server_error || on.gateway_error || on.reset || (on.reset_before_request && !refusal.sent);
    match refusal.reason {
        Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed => reset || on.connect_failure,
        Reason::UpstreamRefusedStream => reset || on.refused_stream,
        Reason::UpstreamClosed | Reason::UpstreamReset | Reason::UpstreamProtocol | Reason::PerTryTimeout => reset,
        _ => false,
    }
}

/// Longest request body kept for another try, in bytes; a longer one is sent once.
const MAX_REPLAY_BYTES: usize = 1 << 20;
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::route::RetryOn, http::testing::retry_policy};

    fn on(words: &str) -> RetryPolicy {
        let has = |word: &str| words.split(',').any(|w| w == word);
        let on = RetryOn {
            server_error: has("5xx"),
            gateway_error: has("gateway-error"),
            reset: has("reset"),
            reset_before_request: has("reset-before-request"),
            connect_failure: has("connect-failure"),
            envoy_ratelimited: has("envoy-ratelimited"),
            retriable_4xx: has("retriable-4xx"),
            refused_stream: has("refused-stream"),
            retriable_status_codes: has("retriable-status-codes"),
            retriable_headers: has("retriable-headers"),
            grpc_cancelled: has("cancelled"),
            grpc_deadline_exceeded: has("deadline-exceeded"),
            grpc_internal: has("internal"),
            grpc_resource_exhausted: has("resource-exhausted"),
            grpc_unavailable: has("unavailable"),
        };
        RetryPolicy { on, status_codes: vec![StatusCode::IM_A_TEAPOT], ..retry_policy() }
    }

    fn answer(policy: &str, status: u16, headers: &[(&'static str, &'static str)]) -> bool {
        let headers =
            headers.iter().map(|(n, v)| (HeaderName::from_static(n), http::HeaderValue::from_static(v))).collect();
        wants_answer(&on(policy), StatusCode::from_u16(status).unwrap(), &headers)
    }

    #[test]
    fn answers_are_retried_by_their_word_only() {
        for (word, status, expected) in [
            ("5xx", 500, true),
            ("5xx", 599, true),
            ("5xx", 404, false),
            ("gateway-error", 500, false),
            ("gateway-error", 502, true),
            ("gateway-error", 504, true),
            ("retriable-4xx", 409, true),
            ("retriable-4xx", 404, false),
            ("retriable-status-codes", 418, true),
            ("retriable-status-codes", 503, false),
            ("connect-failure", 503, false),
            ("", 503, false),
        ] {
            assert_eq!(answer(word, status, &[]), expected, "{word} {status}");
        }
        assert!(!answer("5xx", 503, &[("x-envoy-overloaded", "true")]), "an overloaded server is left alone");
        assert!(!answer("5xx", 503, &[("x-envoy-ratelimited", "true")]));
        assert!(answer("envoy-ratelimited", 429, &[("x-envoy-ratelimited", "true")]));
    }

    #[test]
    fn grpc_statuses_in_headers_are_retried_by_their_word() {
        for (word, status) in [
            ("cancelled", "1"),
            ("deadline-exceeded", "4"),
            ("resource-exhausted", "8"),
            ("internal", "13"),
            ("unavailable", "14"),
        ] {
            assert!(answer(word, 200, &[("grpc-status", status)]), "{word}");
            assert!(!answer(word, 200, &[("grpc-status", "0")]), "{word}");
            assert!(!answer("5xx", 200, &[("grpc-status", status)]), "{word}");
        }
    }

    #[test]
    fn failures_are_retried_by_their_word_and_reset_before_request_only_when_nothing_was_sent() {
        let failure = |reason: Reason, sent| Refusal { sent, ..reason.into() };
        for (word, refusal, expected) in [
            ("connect-failure", failure(Reason::ConnectFailed, false), true),
            ("connect-failure", failure(Reason::UpstreamClosed, true), false),
            ("gateway-error", failure(Reason::ConnectFailed, false), true),
            ("reset", failure(Reason::ConnectFailed, false), true),
            ("reset", failure(Reason::UpstreamReset, true), true),
            ("reset-before-request", failure(Reason::UpstreamReset, true), false),
            ("reset-before-request", failure(Reason::UpstreamClosed, false), true),
            ("refused-stream", failure(Reason::UpstreamRefusedStream, false), true),
            ("refused-stream", failure(Reason::UpstreamReset, true), false),
            ("5xx", failure(Reason::PerTryTimeout, true), true),
            ("connect-failure", failure(Reason::PerTryTimeout, true), false),
            ("5xx", failure(Reason::Overflow, false), false),
            ("5xx", failure(Reason::NoHealthyUpstream, false), false),
            ("5xx", failure(Reason::BodyFailed, true), false),
        ] {
            assert_eq!(wants_failure(&on(word), &refusal), expected, "{word} {refusal:?}");
        }
    }

    #[test]
    fn the_back_off_grows_with_full_jitter_up_to_its_cap() {
        let policy = RetryPolicy {
            base_interval: Duration::from_millis(25),
            max_interval: Duration::from_millis(250),
            ..retry_policy()
        };
        let longest = |n| back_off(&policy, n, u32::MAX).as_millis();
        assert_eq!([1, 2, 3, 4, 5, 40].map(longest), [25, 75, 175, 250, 250, 250]);
        assert_eq!(back_off(&policy, 3, 0), Duration::ZERO);
    }
}
