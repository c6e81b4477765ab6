//! `listener.<prefix>.*`: connections of one listener and their TLS handshakes.

use std::sync::{Arc, OnceLock};

use metrics::{Counter, Gauge, Histogram};
use parking_lot::Mutex;

use super::{Registry, Scope};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Handles of one listener's series; each field is Envoy's name below `listener.<prefix>.` unless it says otherwise.
        #[derive(Debug)]
        pub struct ListenerStats {
            $($(#[$doc])* pub $name: Counter,)*
            /// Connections open now.
            pub downstream_cx_active: Gauge,
            /// Connections that have no chain yet.
            pub downstream_pre_cx_active: Gauge,
            /// Life of connections.
            pub downstream_cx_length_ms: Histogram,
            ssl: OnceLock<SslStats>,
            registry: Registry,
            scope: Scope,
        }

        impl ListenerStats {
            /// Registers the series of a listener, by its `stat_prefix` or its address.
            #[must_use]
            pub fn new(registry: &Registry, prefix_or_address: &str) -> Arc<Self> {
                let scope = Scope::listener(prefix_or_address);
                Arc::new(Self {
                    $($name: registry.counter(&scope, stringify!($name)),)*
                    downstream_cx_active: registry.gauge(&scope, "downstream_cx_active"),
                    downstream_pre_cx_active: registry.gauge(&scope, "downstream_pre_cx_active"),
                    downstream_cx_length_ms: registry.histogram(&scope, "downstream_cx_length_ms"),
                    ssl: OnceLock::new(),
                    registry: registry.clone(),
                    scope,
                })
            }
        }
    };
}

stats! {
    /// Connections accepted.
    downstream_cx_total,
    /// Connections that ended.
    downstream_cx_destroy,
    /// Connections closed because too many waited for detection or a handshake (the oldest go first).
    downstream_cx_overflow,
    /// `accept` failed for want of file descriptors or memory.
    downstream_global_cx_overflow,
    /// Detection took too long.
    downstream_pre_cx_timeout,
    /// The peer went away during detection.
    downstream_listener_filter_remote_close,
    /// Detection refused the first bytes.
    downstream_listener_filter_error,
    /// The TLS handshake took too long.
    downstream_cx_transport_socket_connect_timeout,
    /// No chain, and no default chain.
    no_filter_chain_match,
    /// Ours: connections whose task hit a fault of the proxy.
    downstream_cx_panicked,
}

impl ListenerStats {
    /// TLS counters; made when first asked for, so that plaintext listeners have none.
    pub fn ssl(&self) -> &SslStats {
        self.ssl.get_or_init(|| {
            let scope = self.scope.child("ssl");
            let counter = |name| self.registry.counter(&scope, name);
            SslStats {
                handshake: counter("handshake"),
                connection_error: counter("connection_error"),
                fail_verify_error: counter("fail_verify_error"),
                fail_verify_no_cert: counter("fail_verify_no_cert"),
                fail_verify_san: counter("fail_verify_san"),
                no_certificate: counter("no_certificate"),
                secrets_not_ready: self
                    .registry
                    .counter(&self.scope, "server_ssl_socket_factory.downstream_context_secrets_not_ready"),
                agreed: Mutex::default(),
                registry: self.registry.clone(),
                scope,
            }
        })
    }
}

/// `listener.<prefix>.ssl.*`.
#[derive(Debug)]
pub struct SslStats {
    /// Handshakes done.
    pub handshake: Counter,
    /// Handshakes broken by either side.
    pub connection_error: Counter,
    /// The peer's certificate is not trusted.
    pub fail_verify_error: Counter,
    /// The peer presented none though it must.
    pub fail_verify_no_cert: Counter,
    /// The peer's certificate has none of the names asked for.
    pub fail_verify_san: Counter,
    /// Handshakes done without a client certificate.
    pub no_certificate: Counter,
    /// Connections closed because the chain's secrets have not come.
    pub secrets_not_ready: Counter,
    /// `versions.*` and `ciphers.*`, by name: a handful.
    agreed: Mutex<Vec<(&'static str, Counter)>>,
    registry: Registry,
    scope: Scope,
}

impl SslStats {
    /// Counts what a handshake agreed on: `versions.TLSv1.3`, `ciphers.TLS13_AES_128_GCM_SHA256`.
    pub fn agreed(&self, version: &'static str, cipher: Option<&'static str>) {
        self.count("versions", "envoy_ssl_version", version);
        if let Some(cipher) = cipher {
            self.count("ciphers", "envoy_ssl_cipher", cipher);
        }
    }

    fn count(&self, name: &str, label: &'static str, value: &'static str) {
        let mut agreed = self.agreed.lock();
        if let Some((_, counter)) = agreed.iter().find(|(known, _)| *known == value) {
            return counter.increment(1);
        }
        let counter = self.registry.counter_with(&self.scope, name, label, value);
        counter.increment(1);
        agreed.push((value, counter));
    }
}
