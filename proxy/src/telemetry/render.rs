//! The admin views of the registry: Envoy's `/stats` text and JSON, and Prometheus' exposition format.

use std::fmt::Write as _;

use regex::Regex;
use serde_json::json;

use super::metrics::{BUCKETS, HistogramValue, Registry, Sample, Value};

/// Output format of `/stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `name: value` lines, sorted.
    Text,
    /// Envoy's JSON.
    Json,
    /// Prometheus' text exposition.
    Prometheus,
}

/// Kind of a series (`/stats?type=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Counters.
    Counters,
    /// Gauges.
    Gauges,
    /// Histograms.
    Histograms,
}

/// Which series are shown.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Found anywhere in the dotted name (in Prometheus: or in the family's name); none = all.
    pub pattern: Option<Regex>,
    /// Only series that were written since the start.
    pub used_only: bool,
    /// Only this kind.
    pub kind: Option<Kind>,
}

/// Quantiles printed for histograms, in percent.
const QUANTILES: [f64; 10] = [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

impl Registry {
    /// Renders the living series.
    #[must_use]
    pub fn render(&self, format: Format, filter: &Filter) -> String {
        let mut samples = self.samples();
        samples.retain(|s| filter.takes(s, format));
        match format {
            Format::Text => text(samples),
            Format::Json => as_json(samples),
            Format::Prometheus => prometheus(samples),
        }
    }
}

impl Filter {
    fn takes(&self, sample: &Sample, format: Format) -> bool {
        let kind = match sample.value {
            Value::Counter(_) => Kind::Counters,
            Value::Gauge(_) => Kind::Gauges,
            Value::Histogram(_) => Kind::Histograms,
        };
        (!self.used_only || sample.used)
            && self.kind.is_none_or(|k| k == kind)
            && self.pattern.as_ref().is_none_or(|p| {
                p.is_match(&sample.text) || (format == Format::Prometheus && p.is_match(&sample.family))
            })
    }
}

fn text(mut samples: Vec<Sample>) -> String {
    // Counters and gauges first, then histograms, each by name, as Envoy prints them.
    samples.sort_by(|a, b| {
        let histogram = |s: &Sample| matches!(s.value, Value::Histogram(_));
        histogram(a).cmp(&histogram(b)).then_with(|| a.text.cmp(&b.text))
    });
    let mut out = String::new();
    for sample in &samples {
        let _ = match &sample.value {
            Value::Counter(v) => writeln!(out, "{}: {v}", sample.text),
            Value::Gauge(v) => writeln!(out, "{}: {v}", sample.text),
            Value::Histogram(h) if !sample.used => {
                debug_assert!(h.count() == 0);
                writeln!(out, "{}: No recorded values", sample.text)
            }
            Value::Histogram(h) => {
                let quantiles: Vec<String> =
                    QUANTILES.iter().map(|q| format!("P{q}(nan,{:.4})", h.quantile(*q))).collect();
                writeln!(out, "{}: {}", sample.text, quantiles.join(" "))
            }
        };
    }
    out
}

fn as_json(mut samples: Vec<Sample>) -> String {
    samples.sort_by(|a, b| a.text.cmp(&b.text));
    let mut stats = Vec::new();
    let mut histograms = Vec::new();
    for sample in &samples {
        match &sample.value {
            Value::Counter(v) => stats.push(json!({"name": &*sample.text, "value": v})),
            Value::Gauge(v) => stats.push(json!({"name": &*sample.text, "value": v})),
            Value::Histogram(h) => {
                let value = |q: &f64| if sample.used { json!(h.quantile(*q)) } else { json!(null) };
                let values: Vec<_> =
                    QUANTILES.iter().map(|q| json!({"interval": null, "cumulative": value(q)})).collect();
                histograms.push(json!({"name": &*sample.text, "values": values}));
            }
        }
    }
    if !histograms.is_empty() {
        stats.push(json!({"histograms": {"supported_quantiles": QUANTILES, "computed_quantiles": histograms}}));
    }
    json!({ "stats": stats }).to_string()
}

fn prometheus(mut samples: Vec<Sample>) -> String {
    samples.sort_by(|a, b| a.family.cmp(&b.family).then_with(|| a.labels.cmp(&b.labels)));
    let mut out = String::new();
    let mut family: &str = "";
    for sample in &samples {
        if *sample.family != *family {
            family = &sample.family;
            let kind = match sample.value {
                Value::Counter(_) => "counter",
                Value::Gauge(_) => "gauge",
                Value::Histogram(_) => "histogram",
            };
            let _ = writeln!(out, "# TYPE {family} {kind}");
        }
        let braces = |out: &mut String| {
            if !sample.labels.is_empty() {
                let _ = write!(out, "{{{}}}", sample.labels);
            }
        };
        match &sample.value {
            Value::Counter(v) => {
                out.push_str(family);
                braces(&mut out);
                let _ = writeln!(out, " {v}");
            }
            Value::Gauge(v) => {
                out.push_str(family);
                braces(&mut out);
                let _ = writeln!(out, " {v}");
            }
            Value::Histogram(h) => {
                let comma = if sample.labels.is_empty() { "" } else { "," };
                let mut sum = 0;
                for (i, count) in h.buckets.iter().enumerate() {
                    sum += count;
                    let bound = BUCKETS.get(i).map_or_else(|| "+Inf".to_owned(), ToString::to_string);
                    let _ = writeln!(out, "{family}_bucket{{{}{comma}le=\"{bound}\"}} {sum}", sample.labels);
                }
                let _ = write!(out, "{family}_sum");
                braces(&mut out);
                let _ = writeln!(out, " {}", h.sum);
                let _ = write!(out, "{family}_count");
                braces(&mut out);
                let _ = writeln!(out, " {sum}");
            }
        }
    }
    out
}

impl HistogramValue {
    fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The quantile as far as the buckets tell: interpolated inside its bucket, the last bound when above all.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn quantile(&self, percent: f64) -> f64 {
        let rank = self.count() as f64 * percent / 100.0;
        let mut below = 0.0;
        let mut last = 0.0;
        for (i, &count) in self.buckets.iter().enumerate() {
            if count == 0 {
                continue;
            }
            let lower = if i == 0 { 0.0 } else { BUCKETS[i - 1] };
            let upper = BUCKETS.get(i).copied().unwrap_or(lower);
            let count = count as f64;
            if below + count >= rank {
                return lower + (upper - lower) * ((rank - below) / count).clamp(0.0, 1.0);
            }
            below += count;
            last = upper;
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Scope;

    fn filled() -> (Registry, Vec<Box<dyn std::any::Any>>) {
        let registry = Registry::default();
        let scope = Scope::cluster("a");
        let (total, unused) =
            (registry.counter(&scope, "upstream_rq_total"), registry.counter(&scope, "upstream_rq_retry"));
        let active = registry.gauge(&scope, "upstream_cx_active");
        let time = registry.histogram(&scope, "upstream_rq_time");
        total.increment(5);
        active.set(2.0);
        for value in [0.2, 3.0, 4.0, 7_000_000.0] {
            time.record(value);
        }
        (registry, vec![Box::new(total), Box::new(unused), Box::new(active), Box::new(time)])
    }

    #[test]
    fn text_lists_counters_and_gauges_then_histograms() {
        let (registry, _keep) = filled();
        let out = registry.render(Format::Text, &Filter::default());
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(
            &lines[..3],
            ["cluster.a.upstream_cx_active: 2", "cluster.a.upstream_rq_retry: 0", "cluster.a.upstream_rq_total: 5"]
        );
        assert!(lines[3].starts_with("cluster.a.upstream_rq_time: P0(nan,"), "{out}");
    }

    #[test]
    fn prometheus_has_types_and_cumulative_buckets() {
        let (registry, _keep) = filled();
        let out = registry.render(Format::Prometheus, &Filter::default());
        for line in [
            "# TYPE envoy_cluster_upstream_rq_total counter",
            "envoy_cluster_upstream_rq_total{envoy_cluster_name=\"a\"} 5",
            "# TYPE envoy_cluster_upstream_cx_active gauge",
            "# TYPE envoy_cluster_upstream_rq_time histogram",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"0.5\"} 1",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"5\"} 3",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"3600000\"} 3",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"+Inf\"} 4",
            "envoy_cluster_upstream_rq_time_sum{envoy_cluster_name=\"a\"} 7000007.2",
            "envoy_cluster_upstream_rq_time_count{envoy_cluster_name=\"a\"} 4",
        ] {
            assert!(out.lines().any(|l| l == line), "no line {line:?} in\n{out}");
        }
    }

    #[test]
    fn one_type_line_for_a_family_with_many_series() {
        let registry = Registry::default();
        let _keep: Vec<_> = ["a", "b"].map(|c| registry.counter(&Scope::cluster(c), "x")).into();
        let out = registry.render(Format::Prometheus, &Filter::default());
        assert_eq!(out.matches("# TYPE envoy_cluster_x counter").count(), 1);
    }

    #[test]
    fn filters_by_name_use_and_kind() {
        let (registry, _keep) = filled();
        let lines = |filter| registry.render(Format::Text, &filter).lines().count();
        let pattern = |p| Some(Regex::new(p).unwrap());
        assert_eq!(lines(Filter { pattern: pattern("rq_t"), ..Filter::default() }), 2);
        assert_eq!(lines(Filter { used_only: true, ..Filter::default() }), 3);
        assert_eq!(lines(Filter { kind: Some(Kind::Gauges), ..Filter::default() }), 1);
        let family = Filter { pattern: pattern("^envoy_cluster_upstream_cx"), ..Filter::default() };
        assert!(registry.render(Format::Prometheus, &family).contains("upstream_cx_active"));
    }

    #[test]
    fn json_is_envoys() {
        let (registry, _keep) = filled();
        let out: serde_json::Value = serde_json::from_str(&registry.render(Format::Json, &Filter::default())).unwrap();
        assert!(out["stats"].as_array().unwrap().contains(&json!({"name": "cluster.a.upstream_rq_total", "value": 5})));
        assert_eq!(out["stats"][3]["histograms"]["computed_quantiles"][0]["name"], "cluster.a.upstream_rq_time");
    }

    #[test]
    fn quantiles_stay_inside_their_bucket() {
        let registry = Registry::default();
        let h = registry.histogram(&Scope::plain("s"), "h");
        (0..100).for_each(|_| h.record(7.0));
        let Some(Value::Histogram(value)) = registry.samples().pop().map(|s| s.value) else { panic!("a histogram") };
        for q in QUANTILES {
            assert!((5.0..=10.0).contains(&value.quantile(q)), "{q}: {}", value.quantile(q));
        }
    }
}
