//! The registry of series: counters, gauges and histograms with fixed buckets.
//!
//! Callers keep handles (of the crate `metrics`); the registry keeps weak references, so a series lives exactly as long as
//! its last handle and vanishes with the cluster, listener or chain that it described. Two requests for the same name
//! share one series.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use ::metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn};
use parking_lot::Mutex;

use super::scope::{Scope, SeriesName};

/// Upper bounds of the histogram buckets, in the histogram's unit (milliseconds as a rule); Envoy's defaults.
pub const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// All series of the process. Cheap to clone; clones share the series.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    series: Arc<Mutex<Series>>,
}

#[derive(Debug, Default)]
struct Series {
    by_text: HashMap<Arc<str>, Entry>,
    /// Map size at which dead entries are swept out.
    sweep_at: usize,
}

#[derive(Debug)]
struct Entry {
    family: Arc<str>,
    labels: Arc<str>,
    cell: WeakCell,
}

#[derive(Debug)]
enum WeakCell {
    Counter(Weak<CounterCell>),
    Gauge(Weak<GaugeCell>),
    Histogram(Weak<HistogramCell>),
}

/// A living series, taken out for rendering.
pub(super) struct Sample {
    pub(super) text: Arc<str>,
    pub(super) family: Arc<str>,
    pub(super) labels: Arc<str>,
    pub(super) value: Value,
    pub(super) used: bool,
}

/// Value of a [`Sample`].
pub(super) enum Value {
    Counter(u64),
    Gauge(i64),
    Histogram(HistogramValue),
}

/// Counts per bucket (not cumulative; the last is above all bounds) and the sum of all values.
pub(super) struct HistogramValue {
    pub(super) buckets: [u64; BUCKETS.len() + 1],
    pub(super) sum: f64,
}

impl Registry {
    /// A counter. Hold on to the handle: the series lives as long as the last one.
    pub fn counter(&self, scope: &Scope, name: &str) -> Counter {
        Counter::from_arc(self.counter_cell(scope.series(name)))
    }

    /// A counter whose last name part is a label in Prometheus: `ssl.versions` with (`envoy_ssl_version`, `TLSv1.3`).
    /// `value` must come from a small fixed set, never from a peer.
    pub fn counter_with(&self, scope: &Scope, name: &str, label: &'static str, value: &str) -> Counter {
        Counter::from_arc(self.counter_cell(scope.series_with(name, label, value)))
    }

    /// A gauge of whole numbers (fractions are cut off).
    pub fn gauge(&self, scope: &Scope, name: &str) -> Gauge {
        let cell = self.cell(
            scope.series(name),
            |entry| if let WeakCell::Gauge(weak) = entry { weak.upgrade() } else { None },
            WeakCell::Gauge,
        );
        Gauge::from_arc(cell)
    }

    /// A histogram over [`BUCKETS`].
    pub fn histogram(&self, scope: &Scope, name: &str) -> Histogram {
        Histogram::from_arc(self.histogram_cell(scope.series(name)))
    }

    /// A counter with a Prometheus name of its own (`osm_request_total`) and its labels in the given order.
    pub fn native_counter(&self, family: &str, labels: &[(&str, &str)]) -> Counter {
        Counter::from_arc(self.counter_cell(SeriesName::native(family, labels)))
    }

    /// A histogram with a Prometheus name of its own.
    pub fn native_histogram(&self, family: &str, labels: &[(&str, &str)]) -> Histogram {
        Histogram::from_arc(self.histogram_cell(SeriesName::native(family, labels)))
    }

    /// The value of a counter or gauge by its dotted name; none when no such series lives. For tests and the admin page.
    #[must_use]
    pub fn value(&self, text: &str) -> Option<i64> {
        let series = self.series.lock();
        match &series.by_text.get(text)?.cell {
            WeakCell::Counter(weak) => weak.upgrade().map(|c| i64::try_from(c.value.load(Relaxed)).unwrap_or(i64::MAX)),
            WeakCell::Gauge(weak) => weak.upgrade().map(|g| g.value.load(Relaxed)),
            WeakCell::Histogram(weak) => weak
                .upgrade()
                .map(|h| i64::try_from(h.buckets.iter().map(|b| b.load(Relaxed)).sum::<u64>()).unwrap_or(i64::MAX)),
        }
    }

    /// Number of living series.
    #[must_use]
    pub fn len(&self) -> usize {
        self.series.lock().by_text.values().filter(|e| e.cell.alive()).count()
    }

    /// True when no series lives.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sets all counters and histograms to zero (`POST /reset_counters`).
    pub fn reset_counters(&self) {
        for entry in self.series.lock().by_text.values() {
            match &entry.cell {
                WeakCell::Counter(weak) => {
                    if let Some(cell) = weak.upgrade() {
                        cell.value.store(0, Relaxed);
                    }
                }
                WeakCell::Histogram(weak) => {
                    if let Some(cell) = weak.upgrade() {
                        cell.buckets.iter().for_each(|b| b.store(0, Relaxed));
                        cell.sum_thousandths.store(0, Relaxed);
                    }
                }
                WeakCell::Gauge(_) => {}
            }
        }
    }

    /// All living series, in no order.
    pub(super) fn samples(&self) -> Vec<Sample> {
        let series = self.series.lock();
        let sample = |(text, entry): (&Arc<str>, &Entry)| {
            let (value, used) = entry.cell.read()?;
            Some(Sample {
                text: Arc::clone(text),
                family: Arc::clone(&entry.family),
                labels: Arc::clone(&entry.labels),
                value,
                used,
            })
        };
        series.by_text.iter().filter_map(sample).collect()
    }

    fn counter_cell(&self, name: SeriesName) -> Arc<CounterCell> {
        self.cell(
            name,
            |entry| if let WeakCell::Counter(weak) = entry { weak.upgrade() } else { None },
            WeakCell::Counter,
        )
    }

    fn histogram_cell(&self, name: SeriesName) -> Arc<HistogramCell> {
        self.cell(
            name,
            |entry| if let WeakCell::Histogram(weak) = entry { weak.upgrade() } else { None },
            WeakCell::Histogram,
        )
    }

    fn cell<C: Default>(
        &self,
        name: SeriesName,
        same: impl Fn(&WeakCell) -> Option<Arc<C>>,
        weak: impl Fn(Weak<C>) -> WeakCell,
    ) -> Arc<C> {
        let mut series = self.series.lock();
        if let Some(living) = series.by_text.get(name.text.as_str()).and_then(|e| same(&e.cell)) {
            return living;
        }
        if series.by_text.len() >= series.sweep_at {
            series.by_text.retain(|_, e| e.cell.alive());
            series.sweep_at = (series.by_text.len() * 2).max(1024);
        }
        let cell = Arc::new(C::default());
        let entry = Entry { family: name.family.into(), labels: name.labels.into(), cell: weak(Arc::downgrade(&cell)) };
        series.by_text.insert(name.text.into(), entry);
        cell
    }
}

impl WeakCell {
    fn alive(&self) -> bool {
        match self {
            Self::Counter(w) => w.strong_count() > 0,
            Self::Gauge(w) => w.strong_count() > 0,
            Self::Histogram(w) => w.strong_count() > 0,
        }
    }

    /// Value, and whether it was ever written.
    fn read(&self) -> Option<(Value, bool)> {
        match self {
            Self::Counter(weak) => {
                let value = weak.upgrade()?.value.load(Relaxed);
                Some((Value::Counter(value), value > 0))
            }
            Self::Gauge(weak) => {
                let cell = weak.upgrade()?;
                Some((Value::Gauge(cell.value.load(Relaxed)), cell.touched.load(Relaxed)))
            }
            Self::Histogram(weak) => {
                let cell = weak.upgrade()?;
                let buckets = std::array::from_fn(|i| cell.buckets[i].load(Relaxed));
                let used = buckets.iter().any(|b| *b > 0);
                #[expect(clippy::cast_precision_loss, reason = "a sum above 2^53 thousandths may lose its last digits")]
                let sum = cell.sum_thousandths.load(Relaxed) as f64 / 1000.0;
                Some((Value::Histogram(HistogramValue { buckets, sum }), used))
            }
        }
    }
}

/// One counter on a cache line of its own, so that workers that count different things don't slow each other.
#[derive(Debug, Default)]
#[repr(align(64))]
struct CounterCell {
    value: AtomicU64,
}

impl CounterFn for CounterCell {
    fn increment(&self, value: u64) {
        self.value.fetch_add(value, Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.value.fetch_max(value, Relaxed);
    }
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct GaugeCell {
    value: AtomicI64,
    touched: AtomicBool,
}

impl GaugeCell {
    fn touch(&self) {
        if !self.touched.load(Relaxed) {
            self.touched.store(true, Relaxed);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "gauges are whole numbers; fractions are cut off by contract")]
impl GaugeFn for GaugeCell {
    fn increment(&self, value: f64) {
        self.touch();
        self.value.fetch_add(value as i64, Relaxed);
    }

    fn decrement(&self, value: f64) {
        self.touch();
        self.value.fetch_sub(value as i64, Relaxed);
    }

    fn set(&self, value: f64) {
        self.touch();
        self.value.store(value as i64, Relaxed);
    }
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct HistogramCell {
    buckets: [AtomicU64; BUCKETS.len() + 1],
    /// Whole numbers, because they can be added atomically.
    sum_thousandths: AtomicU64,
}

impl HistogramFn for HistogramCell {
    fn record(&self, value: f64) {
        let value = value.max(0.0);
        let bucket = BUCKETS.iter().position(|bound| value <= *bound).unwrap_or(BUCKETS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; saturates")]
        self.sum_thousandths.fetch_add((value * 1000.0) as u64, Relaxed);
    }
}

/// Counts one in a gauge for as long as it lives (`downstream_cx_active`).
#[derive(Debug)]
pub struct Active(Gauge);

impl Active {
    /// Adds one now, takes it away at drop.
    #[must_use]
    pub fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_of_one_name_share_a_series() {
        let registry = Registry::default();
        let scope = Scope::cluster("a");
        let (one, two) = (registry.counter(&scope, "upstream_rq_total"), registry.counter(&scope, "upstream_rq_total"));
        one.increment(2);
        two.increment(3);
        assert_eq!(registry.value("cluster.a.upstream_rq_total"), Some(5));
        assert_eq!(registry.len(), 1);
    }

    #[test]
    fn a_series_dies_with_its_last_handle_and_starts_at_zero_again() {
        let registry = Registry::default();
        let scope = Scope::cluster("a");
        let one = registry.counter(&scope, "x");
        let two = one.clone();
        one.increment(1);
        drop(one);
        assert_eq!(registry.value("cluster.a.x"), Some(1));
        drop(two);
        assert_eq!(registry.value("cluster.a.x"), None);
        let again = registry.counter(&scope, "x");
        again.increment(1);
        assert_eq!(registry.value("cluster.a.x"), Some(1));
    }

    #[test]
    fn dead_entries_are_swept_so_that_churn_does_not_grow_the_map() {
        let registry = Registry::default();
        for i in 0..50_000 {
            registry.counter(&Scope::cluster(&format!("c{i}")), "x").increment(1);
        }
        assert!(registry.series.lock().by_text.len() <= 1024);
        assert!(registry.is_empty());
    }

    #[test]
    fn an_active_guard_counts_while_it_lives() {
        let registry = Registry::default();
        let gauge = registry.gauge(&Scope::listener("a"), "downstream_cx_active");
        let guard = Active::new(&gauge);
        assert_eq!(registry.value("listener.a.downstream_cx_active"), Some(1));
        drop(guard);
        assert_eq!(registry.value("listener.a.downstream_cx_active"), Some(0));
    }

    #[test]
    fn reset_zeroes_counters_and_histograms_and_keeps_gauges() {
        let registry = Registry::default();
        let scope = Scope::plain("server");
        let (c, g, h) = (registry.counter(&scope, "c"), registry.gauge(&scope, "g"), registry.histogram(&scope, "h"));
        c.increment(1);
        g.set(4.0);
        h.record(3.0);
        registry.reset_counters();
        assert_eq!(registry.value("server.c"), Some(0));
        assert_eq!(registry.value("server.g"), Some(4));
        assert_eq!(registry.value("server.h"), Some(0));
    }
}
