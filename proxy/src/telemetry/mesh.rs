//! OSM's request metrics: `osm_request_total` and `osm_request_duration_ms`, recorded by the client's sidecar.
//!
//! The source is this pod, told by its environment: `POD_NAMESPACE`, `POD_NAME`, and `WORKLOAD_KIND`, `WORKLOAD_NAME` (the
//! owner: `Deployment`, `bookbuyer`). The destination is what the server's sidecar says in the response headers
//! `osm-stats-namespace|kind|name|pod`, which must not reach the application. What is not told is `unknown`.
//! As those headers come from a peer, the number of destinations is bounded; further ones are counted as `other`.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use metrics::{Counter, Histogram};
use parking_lot::{Mutex, RwLock};

use super::Registry;

/// Response headers that name the destination, in label order.
pub const DESTINATION_HEADERS: [HeaderName; 4] = [
    HeaderName::from_static("osm-stats-namespace"),
    HeaderName::from_static("osm-stats-kind"),
    HeaderName::from_static("osm-stats-name"),
    HeaderName::from_static("osm-stats-pod"),
];

const SOURCE_LABELS: [&str; 4] = ["source_namespace", "source_kind", "source_name", "source_pod"];
const DESTINATION_LABELS: [&str; 4] =
    ["destination_namespace", "destination_kind", "destination_name", "destination_pod"];
const UNKNOWN: &str = "unknown";
const UNKNOWN_VALUE: HeaderValue = HeaderValue::from_static(UNKNOWN);
/// Kubernetes names are at most 253 bytes; a longer value is not one.
const MAX_VALUE_BYTES: usize = 253;
/// Series after which no further destination or status code gets one of its own. Each destination known by then may still
/// add one for its other codes, so there are never more than twice as many.
const MAX_SERIES: usize = 1_000;
/// Stands for the status codes that got no series of their own.
const OTHER_CODE: u16 = 0;

/// A workload as the labels name it: namespace, kind, name, pod. Values of headers, so that a request's is had without a copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload([HeaderValue; 4]);

impl Workload {
    /// This pod, from the environment variables named in the module's head, by way of `env` (`std::env::var` in
    /// production).
    pub fn from_env(env: impl Fn(&str) -> Option<String>) -> Self {
        let keys = ["POD_NAMESPACE", "WORKLOAD_KIND", "WORKLOAD_NAME", "POD_NAME"];
        let value = |key| HeaderValue::from_str(&env(key)?).ok().filter(|value| !value.is_empty());
        Self(keys.map(|key| value(key).unwrap_or(UNKNOWN_VALUE)))
    }

    /// Takes what a response says of its origin out of it. Values that are too long or not visible ASCII count as unknown.
    #[must_use]
    pub fn take(headers: &mut HeaderMap) -> Self {
        let fits = |value: &HeaderValue| (1..=MAX_VALUE_BYTES).contains(&value.len()) && value.to_str().is_ok();
        Self(DESTINATION_HEADERS.map(|name| headers.remove(name).filter(fits).unwrap_or(UNKNOWN_VALUE)))
    }

    /// A destination that said nothing: our own reply, or a server outside the mesh.
    #[must_use]
    pub fn unknown() -> Self {
        Self([UNKNOWN_VALUE; 4])
    }

    /// With memory of its own: a header's value is a part of the buffer that it was read into, and holds all of it.
    fn detached(&self) -> Self {
        Self(self.0.each_ref().map(|value| HeaderValue::from_bytes(value.as_bytes()).unwrap_or(UNKNOWN_VALUE)))
    }
}

/// The mesh's request series of this process.
#[derive(Debug)]
pub struct MeshStats {
    registry: Registry,
    source: Workload,
    destinations: RwLock<HashMap<Workload, Arc<Destination>>>,
    other: Workload,
    series: AtomicUsize,
}

#[derive(Debug)]
struct Destination {
    name: Workload,
    duration: Histogram,
    codes: Mutex<HashMap<u16, Counter>>,
}

impl MeshStats {
    /// Series of requests that come from `source`.
    #[must_use]
    pub fn new(registry: Registry, source: Workload) -> Self {
        Self {
            registry,
            source,
            destinations: RwLock::default(),
            other: Workload([const { HeaderValue::from_static("other") }; 4]),
            series: AtomicUsize::new(0),
        }
    }

    /// Counts one finished request of this pod.
    pub fn record(&self, destination: &Workload, status: StatusCode, duration: Duration) {
        let destination = self.destination(destination);
        destination.duration.record(duration.as_secs_f64() * 1000.0);
        let mut codes = destination.codes.lock();
        let code = if codes.contains_key(&status.as_u16()) || !self.full() { status.as_u16() } else { OTHER_CODE };
        codes.entry(code).or_insert_with(|| self.counter(&destination.name, code)).increment(1);
    }

    fn destination(&self, wanted: &Workload) -> Arc<Destination> {
        if let Some(found) = self.destinations.read().get(wanted) {
            return Arc::clone(found);
        }
        let mut all = self.destinations.write();
        let key = if self.full() { self.other.clone() } else { wanted.detached() };
        let entry = all.entry(key.clone()).or_insert_with(|| {
            self.series.fetch_add(1, Relaxed);
            Arc::new(Destination {
                name: key.clone(),
                duration: self.registry.native_histogram("osm_request_duration_ms", &self.labels(&key)),
                codes: Mutex::default(),
            })
        });
        Arc::clone(entry)
    }

    fn full(&self) -> bool {
        self.series.load(Relaxed) >= MAX_SERIES
    }

    fn counter(&self, destination: &Workload, code: u16) -> Counter {
        self.series.fetch_add(1, Relaxed);
        let code = if code == OTHER_CODE { "other".to_owned() } else { code.to_string() };
        let mut labels = vec![("response_code", code.as_str())];
        labels.extend(self.labels(destination));
        self.registry.native_counter("osm_request_total", &labels)
    }

    fn labels<'a>(&'a self, destination: &'a Workload) -> Vec<(&'static str, &'a str)> {
        let pairs = |keys: [&'static str; 4], w: &'a Workload| {
            keys.into_iter().zip(w.0.iter().map(|v| v.to_str().unwrap_or(UNKNOWN)))
        };
        pairs(SOURCE_LABELS, &self.source).chain(pairs(DESTINATION_LABELS, destination)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Filter, Format};

    fn stats(registry: &Registry) -> MeshStats {
        let env = |key: &str| match key {
            "POD_NAMESPACE" => Some("bookbuyer".to_owned()),
            "POD_NAME" => Some("bookbuyer-5f".to_owned()),
            "WORKLOAD_KIND" => Some("Deployment".to_owned()),
            "WORKLOAD_NAME" => Some("bookbuyer".to_owned()),
            _ => None,
        };
        MeshStats::new(registry.clone(), Workload::from_env(env))
    }

    #[test]
    fn five_requests_count_five_with_osms_labels() {
        let registry = Registry::default();
        let stats = stats(&registry);
        let mut headers = HeaderMap::new();
        for (name, value) in
            DESTINATION_HEADERS.iter().zip(["bookstore", "Deployment", "bookstore-v1", "bookstore-v1-0"])
        {
            headers.insert(name, value.parse().unwrap());
        }
        let destination = Workload::take(&mut headers);
        (0..5).for_each(|_| stats.record(&destination, StatusCode::OK, Duration::from_millis(3)));
        let out = registry.render(Format::Prometheus, &Filter::default());
        let labels = "source_namespace=\"bookbuyer\",source_kind=\"Deployment\",source_name=\"bookbuyer\",\
            source_pod=\"bookbuyer-5f\",destination_namespace=\"bookstore\",destination_kind=\"Deployment\",\
            destination_name=\"bookstore-v1\",destination_pod=\"bookstore-v1-0\"";
        for line in [
            format!("osm_request_total{{response_code=\"200\",{labels}}} 5"),
            format!("osm_request_duration_ms_bucket{{{labels},le=\"+Inf\"}} 5"),
            format!("osm_request_duration_ms_bucket{{{labels},le=\"1\"}} 0"),
        ] {
            assert!(out.lines().any(|l| l == line), "no line {line} in\n{out}");
        }
    }

    #[test]
    fn hostile_destinations_do_not_grow_the_number_of_series() {
        let registry = Registry::default();
        let stats = stats(&registry);
        for i in 0..20_000_u32 {
            let mut headers = HeaderMap::new();
            headers.insert("osm-stats-pod", format!("pod-{i}").parse().unwrap());
            let code = StatusCode::from_u16(200 + u16::try_from(i % 700).unwrap()).unwrap();
            stats.record(&Workload::take(&mut headers), code, Duration::ZERO);
        }
        assert!(registry.len() < 2_000, "{} series", registry.len());
    }

    #[test]
    fn a_reply_of_our_own_has_an_unknown_destination() {
        assert_eq!(Workload::take(&mut HeaderMap::new()), Workload::unknown());
    }
}
