//! Statistics of an HTTP connection manager under Envoy's names, `http.<prefix>.*`. Handles are made once.

use std::time::Duration;

use http::StatusCode;
use metrics::{Counter, Gauge, Histogram};

use crate::telemetry::{Registry, Scope};

macro_rules! stats {
    ($($name:ident)*) => {
        /// Each field is Envoy's name below `http.<prefix>.`.
        #[derive(Debug)]
        pub(super) struct HttpStats {
            $(pub(super) $name: Counter,)*
            pub(super) downstream_cx_active: Gauge,
            pub(super) downstream_rq_active: Gauge,
            pub(super) downstream_rq_time: Histogram,
            /// Below `http.<prefix>.rbac.`.
            pub(super) rbac_allowed: Counter,
            /// Below `http.<prefix>.rbac.`.
            pub(super) rbac_denied: Counter,
            classes: [Counter; 5],
        }

        impl HttpStats {
            pub(super) fn new(prefix: &str, registry: &Registry) -> Self {
                let scope = Scope::http(prefix);
                let rbac = scope.child("rbac");
                Self {
                    $($name: registry.counter(&scope, stringify!($name)),)*
                    downstream_cx_active: registry.gauge(&scope, "downstream_cx_active"),
                    downstream_rq_active: registry.gauge(&scope, "downstream_rq_active"),
                    downstream_rq_time: registry.histogram(&scope, "downstream_rq_time"),
                    rbac_allowed: registry.counter(&rbac, "allowed"),
                    rbac_denied: registry.counter(&rbac, "denied"),
                    classes: ["1xx", "2xx", "3xx", "4xx", "5xx"]
                        .map(|class| registry.counter(&scope, &format!("downstream_rq_{class}"))),
                }
            }
        }
    };
}

stats! {
    downstream_cx_total
    downstream_cx_destroy
    downstream_cx_ssl_total
    downstream_cx_http1_total
    downstream_cx_http2_total
    downstream_cx_protocol_error
    downstream_cx_idle_timeout
    downstream_cx_max_duration_reached
    downstream_cx_drain_close
    downstream_cx_upgrades_total
    downstream_rq_total
    downstream_rq_http1_total
    downstream_rq_http2_total
    downstream_rq_completed
    downstream_rq_rx_reset
    downstream_rq_tx_reset
    downstream_rq_timeout
    downstream_rq_header_timeout
    downstream_rq_idle_timeout
    downstream_rq_max_duration_reached
    downstream_rq_ws_on_non_ws_route
    downstream_rq_panicked
    no_route
    no_cluster
    rq_direct_response
    rq_redirect
}

impl HttpStats {
    /// Counts a status sent.
    pub(super) fn charge(&self, status: StatusCode) {
        self.downstream_rq_completed.increment(1);
        if let Some(class) = usize::from(status.as_u16() / 100).checked_sub(1).and_then(|at| self.classes.get(at)) {
            class.increment(1);
        }
    }

    /// Records the duration of a finished request.
    pub(super) fn finished(&self, duration: Duration) {
        self.downstream_rq_time.record(duration.as_secs_f64() * 1000.0);
    }
}
