//! Counters of the control plane in Prometheus' text format, under OSM's names where it has them.
//!
//! The control plane counts events, not requests, so one lock over everything is cheap. Series of a
//! proxy go when it goes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use parking_lot::Mutex;

/// All counters and gauges.
#[derive(Debug, Default)]
pub struct Metrics {
    values: Mutex<BTreeMap<&'static str, BTreeMap<String, f64>>>,
}

/// Label names with their values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Metrics {
    /// Adds to a counter.
    pub fn add(&self, name: &'static str, labels: Labels<'_>, n: f64) {
        let mut values = self.values.lock();
        *values.entry(name).or_default().entry(render_labels(labels)).or_default() += n;
    }

    /// Counts one.
    pub fn count(&self, name: &'static str, labels: Labels<'_>) {
        self.add(name, labels, 1.0);
    }

    /// Adds a duration to a summary (`<name>_sum` and `<name>_count`).
    pub fn took(&self, summary: &'static Summary, labels: Labels<'_>, time: std::time::Duration) {
        self.add(summary.sum, labels, time.as_secs_f64());
        self.count(summary.count, labels);
    }

    /// Sets a gauge.
    pub fn set(&self, name: &'static str, labels: Labels<'_>, value: f64) {
        self.values.lock().entry(name).or_default().insert(render_labels(labels), value);
    }

    /// Removes all series that have this label with this value.
    pub fn forget(&self, label: &str, value: &str) {
        let part = render_label(label, value);
        for series in self.values.lock().values_mut() {
            series.retain(|labels, _| !labels.split_inclusive(',').any(|l| l.trim_end_matches(',') == part));
        }
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        let values = self.values.lock();
        let mut text = String::new();
        for (name, series) in values.iter().filter(|(_, series)| !series.is_empty()) {
            if let Some((_, kind, help)) = DESCRIPTIONS.iter().find(|(n, _, _)| n == name) {
                let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            }
            for (labels, value) in series {
                let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
                let _ = writeln!(text, "{name}{braces} {value}");
            }
        }
        text
    }
}

fn render_labels(labels: Labels<'_>) -> String {
    let all: Vec<String> = labels.iter().map(|(label, value)| render_label(label, value)).collect();
    all.join(",")
}

fn render_label(label: &str, value: &str) -> String {
    let escaped = value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n").replace(',', "_");
    format!(r#"{label}="{escaped}""#)
}

/// The two names of a summary without quantiles.
#[derive(Debug)]
pub struct Summary {
    sum: &'static str,
    count: &'static str,
}

/// How long it took to work out the resources of a proxy.
pub const CONFIG_UPDATE_TIME: Summary =
    Summary { sum: "osm_proxy_config_update_time_sum", count: "osm_proxy_config_update_time_count" };

/// How long the injector took to answer a review.
pub const INJECTOR_REQUEST_TIME: Summary =
    Summary { sum: "osm_injector_injector_rq_time_sum", count: "osm_injector_injector_rq_time_count" };

/// Names with their Prometheus type and explanation.
const DESCRIPTIONS: &[(&str, &str, &str)] = &[
    ("osm_proxy_connect_count", "gauge", "Streams of proxies that are open now"),
    ("osm_proxy_reconnect_count", "counter", "Streams that a proxy opened after it had one before"),
    ("osm_proxy_xds_request_count", "counter", "Requests of a proxy, by kind of resource"),
    ("osm_proxy_response_send_success_count", "counter", "Responses sent to a proxy, by kind of resource"),
    ("osm_proxy_response_send_error_count", "counter", "Responses that could not be sent to a proxy"),
    ("osm_proxy_max_connections_rejected", "counter", "Streams refused because there were too many"),
    ("osm_proxy_broadcast_event_count", "counter", "Changes of the mesh told to all proxies"),
    ("osm_cert_issued_count", "counter", "Leaf certificates issued"),
    ("osm_injector_injector_sidecar_count", "counter", "Pods that got a sidecar"),
    ("oxmesh_injector_refused_count", "counter", "Pods that were refused, with words, at their creation"),
    ("osm_version_info", "gauge", "The version of the control plane"),
    ("oxmesh_proxy_nack_count", "counter", "Responses that a proxy refused, by kind of resource"),
    ("oxmesh_proxy_denied_count", "counter", "Streams refused for the proxy's identity, by reason"),
    ("oxmesh_cert_failed_count", "counter", "Leaf certificates that could not be issued"),
    ("oxmesh_csr_signed_count", "counter", "Certificate requests of pods that were signed"),
    ("oxmesh_csr_refused_count", "counter", "Certificate requests of pods that were refused, by reason"),
    ("oxmesh_ca_expiry_seconds", "gauge", "Seconds until the authority's certificate runs out"),
    ("oxmesh_cert_first_expiry_seconds", "gauge", "Seconds until the first leaf certificate runs out"),
    ("oxmesh_findings", "gauge", "What there is to say about the objects, by severity"),
    ("oxmesh_objects", "gauge", "Objects read"),
    ("oxmesh_mesh_generation", "counter", "How often the mesh was worked out"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_rendered_with_escaped_labels_and_go_with_their_proxy() {
        let metrics = Metrics::default();
        metrics.count("osm_proxy_xds_request_count", &[("proxy_uuid", "u1"), ("type", "CDS")]);
        metrics.count("osm_proxy_xds_request_count", &[("proxy_uuid", "u1"), ("type", "CDS")]);
        metrics.count("osm_proxy_xds_request_count", &[("proxy_uuid", "u10"), ("type", "a\"b")]);
        metrics.set("oxmesh_objects", &[], 3.0);
        assert_eq!(
            metrics.render(),
            "# HELP osm_proxy_xds_request_count Requests of a proxy, by kind of resource\n\
             # TYPE osm_proxy_xds_request_count counter\n\
             osm_proxy_xds_request_count{proxy_uuid=\"u1\",type=\"CDS\"} 2\n\
             osm_proxy_xds_request_count{proxy_uuid=\"u10\",type=\"a\\\"b\"} 1\n\
             # HELP oxmesh_objects Objects read\n\
             # TYPE oxmesh_objects gauge\n\
             oxmesh_objects 3\n"
        );
        metrics.forget("proxy_uuid", "u1");
        assert!(!metrics.render().contains("\"u1\""));
        assert!(metrics.render().contains("\"u10\""));
    }
}
