//! Statistics of a cluster under Envoy's names. Handles are made once per cluster; the hot path only adds.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::StatusCode;
use metrics::{Counter, Gauge, Histogram};
use parking_lot::Mutex;

use crate::{
    telemetry::{Registry, Scope},
    tls::{Handshake, HandshakeError},
};

macro_rules! stats {
    (counters { $($c:ident),* $(,)? } gauges { $($g:ident),* $(,)? } histograms { $($h:ident),* $(,)? }) => {
        /// Handles of one cluster's series. Each field is Envoy's name below `cluster.<name>.`.
        #[allow(missing_docs, reason = "each is Envoy's statistic of the same name")]
        pub struct ClusterStats {
            $(pub $c: Counter,)*
            $(pub $g: Gauge,)*
            $(pub $h: Histogram,)*
            codes: Codes,
            ssl: OnceLock<Ssl>,
            registry: Registry,
            scope: Scope,
        }

        impl ClusterStats {
            pub(super) fn new(registry: &Registry, scope: Scope) -> Arc<Self> {
                Arc::new(Self {
                    $($c: registry.counter(&scope, stringify!($c)),)*
                    $($g: registry.gauge(&scope, stringify!($g)),)*
                    $($h: registry.histogram(&scope, stringify!($h)),)*
                    codes: Codes::default(),
                    ssl: OnceLock::new(),
                    registry: registry.clone(),
                    scope,
                })
            }
        }
    };
}

stats! {
    counters {
        membership_change,
        update_attempt,
        update_success,
        update_failure,
        update_empty,
        upstream_cx_total,
        upstream_cx_http1_total,
        upstream_cx_http2_total,
        upstream_cx_connect_fail,
        upstream_cx_connect_timeout,
        upstream_cx_overflow,
        upstream_cx_destroy,
        upstream_cx_destroy_local,
        upstream_cx_destroy_remote,
        upstream_cx_destroy_with_active_rq,
        upstream_cx_destroy_local_with_active_rq,
        upstream_cx_destroy_remote_with_active_rq,
        upstream_cx_close_notify,
        upstream_cx_idle_timeout,
        upstream_cx_max_requests,
        upstream_cx_none_healthy,
        upstream_cx_protocol_error,
        upstream_cx_rx_bytes_total,
        upstream_cx_tx_bytes_total,
        upstream_rq_total,
        upstream_rq_completed,
        upstream_rq_pending_total,
        upstream_rq_pending_overflow,
        upstream_rq_pending_failure_eject,
        upstream_rq_cancelled,
        upstream_rq_timeout,
        upstream_rq_per_try_timeout,
        upstream_rq_rx_reset,
        upstream_rq_tx_reset,
        upstream_rq_retry,
        upstream_rq_retry_success,
        upstream_rq_retry_overflow,
        upstream_rq_retry_limit_exceeded,
        upstream_rq_retry_backoff_exponential,
        upstream_rq_drop_overload,
    }
    gauges {
        membership_total,
        membership_healthy,
        membership_degraded,
        upstream_cx_active,
        upstream_rq_active,
        upstream_rq_pending_active,
    }
    histograms {
        upstream_cx_connect_ms,
        upstream_cx_length_ms,
        upstream_rq_time,
    }
}

/// Milliseconds as histograms take them.
pub(super) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Counters per status class and code, made when the first answer of their kind comes.
#[derive(Default)]
struct Codes {
    classes: [OnceLock<Counter>; 5],
    /// From 100 to 599.
    codes: OnceLock<Box<[OnceLock<Counter>]>>,
}

impl ClusterStats {
    /// Counts an answer: the upstream's, or our own in its place (Envoy charges both to the cluster).
    pub fn charge_code(&self, status: StatusCode) {
        self.upstream_rq_completed.increment(1);
        let code = usize::from(status.as_u16());
        let Some(at) = code.checked_sub(100).filter(|at| *at < 500) else { return };
        let class = self.codes.classes[at / 100].get_or_init(|| self.counter(&format!("upstream_rq_{}xx", code / 100)));
        class.increment(1);
        let codes = self.codes.codes.get_or_init(|| (0..500).map(|_| OnceLock::new()).collect());
        codes[at].get_or_init(|| self.counter(&format!("upstream_rq_{code}"))).increment(1);
    }

    /// TLS counters; made at the first handshake, so that plaintext clusters have none.
    pub(super) fn ssl(&self) -> &Ssl {
        self.ssl.get_or_init(|| Ssl::new(&self.registry, self.scope.child("ssl")))
    }

    fn counter(&self, name: &str) -> Counter {
        self.registry.counter(&self.scope, name)
    }
}

impl std::fmt::Debug for ClusterStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterStats").field("scope", &self.scope).finish_non_exhaustive()
    }
}

/// `cluster.<name>.ssl.*`.
pub(super) struct Ssl {
    handshake: Counter,
    connection_error: Counter,
    fail_verify_error: Counter,
    fail_verify_san: Counter,
    /// `versions.*` and `ciphers.*`, by name: a handful.
    agreed: Mutex<Vec<(&'static str, Counter)>>,
    registry: Registry,
    scope: Scope,
}

impl Ssl {
    fn new(registry: &Registry, scope: Scope) -> Self {
        let counter = |name: &str| registry.counter(&scope, name);
        Self {
            handshake: counter("handshake"),
            connection_error: counter("connection_error"),
            fail_verify_error: counter("fail_verify_error"),
            fail_verify_san: counter("fail_verify_san"),
            agreed: Mutex::default(),
            registry: registry.clone(),
            scope,
        }
    }

    pub(super) fn done(&self, handshake: &Handshake) {
        self.handshake.increment(1);
        self.agreed("versions", "envoy_ssl_version", handshake.version_word());
        if let Some(cipher) = handshake.cipher.and_then(|c| c.suite().as_str()) {
            self.agreed("ciphers", "envoy_ssl_cipher", cipher);
        }
    }

    fn agreed(&self, name: &str, label: &'static str, value: &'static str) {
        let mut agreed = self.agreed.lock();
        if let Some((_, counter)) = agreed.iter().find(|(known, _)| *known == value) {
            return counter.increment(1);
        }
        let counter = self.registry.counter_with(&self.scope, name, label, value);
        counter.increment(1);
        agreed.push((value, counter));
    }

    pub(super) fn failed(&self, error: &HandshakeError) {
        match error {
            HandshakeError::PeerRefused { wrong_name: true, .. } => self.fail_verify_san.increment(1),
            HandshakeError::PeerRefused { .. } => self.fail_verify_error.increment(1),
            HandshakeError::Alert(_) | HandshakeError::Protocol(_) => self.connection_error.increment(1),
            HandshakeError::Io(_) => {}
        }
    }
}
