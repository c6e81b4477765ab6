//! Who calls whom, as the sidecars count it: one way of reading their metrics, for a mesh in a folder (`oxmesh demo`) and
//! one on a cluster (`oxmesh top`). Pure; who asks the sidecars, and how, is the callers' business.

pub(crate) mod prometheus;
pub(crate) mod table;

use std::collections::BTreeMap;

use serde::Serialize;

use self::prometheus::Sample;

/// Calls from the pods of one owner to one service.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Edge {
    /// The caller's `namespace/owner`.
    pub from: String,
    /// The service's `namespace/name`.
    pub to: String,
    /// Port of the service's pods.
    pub port: u16,
    /// `http` or `tcp`.
    pub protocol: &'static str,
    /// Requests, or for TCP connections.
    pub count: u64,
    /// Answered with a status below 400; for TCP, connected.
    pub ok: u64,
    /// TCP connections open now.
    pub open: u64,
    /// What became of calls that are not ok: `3 answered 5xx, 1 not connected`; empty when all are.
    pub why: String,
    /// The same as counts: answered 5xx, answered 4xx, not connected.
    #[serde(skip)]
    pub failures: [u64; 3],
    /// Calls per second in the last ten seconds.
    pub rps: Option<f64>,
    /// Calls that rate and share are made of.
    #[serde(skip)]
    pub recent: u64,
    /// Share of the traffic split that the service is a backend of, 0-1, in the last ten seconds.
    pub share: Option<f64>,
    /// Median time of answers in milliseconds.
    pub p50_ms: Option<f64>,
    /// Whether every connection had mutual TLS.
    pub mtls: bool,
}

/// Calls that did not get through, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// The caller.
    pub from: String,
    /// Whom it called, as far as is known.
    pub to: String,
    /// How often.
    pub count: u64,
    /// Why, in the words of the sidecar or of the application's error.
    pub why: String,
}

/// What one cluster's series say.
#[derive(Debug, Default)]
struct Cluster {
    requests: BTreeMap<String, f64>,
    connections: f64,
    connect_failures: f64,
    active: f64,
    handshakes: f64,
    buckets: Vec<(f64, f64)>,
}

/// The calls that the metrics of an owner's sidecars tell of: one edge per service that was called.
pub(crate) fn edges(from: &str, samples: &[Sample]) -> Vec<Edge> {
    let mut clusters: BTreeMap<&str, Cluster> = BTreeMap::new();
    for sample in samples {
        let cluster = sample.label("envoy_cluster_name");
        if cluster.is_empty() {
            continue;
        }
        let entry = clusters.entry(cluster).or_default();
        match sample.name.as_str() {
            "envoy_cluster_upstream_rq_xx" => {
                let class = sample.label("envoy_response_code_class").to_owned();
                *entry.requests.entry(class).or_default() += sample.value;
            }
            "envoy_cluster_upstream_cx_total" => entry.connections += sample.value,
            "envoy_cluster_upstream_cx_connect_fail" => entry.connect_failures += sample.value,
            "envoy_cluster_upstream_cx_active" => entry.active += sample.value,
            "envoy_cluster_ssl_handshake" => entry.handshakes += sample.value,
            "envoy_cluster_upstream_rq_time_bucket" => {
                let bound: f64 = sample.label("le").parse().unwrap_or(f64::INFINITY);
                // Of several pods: cumulative counts of one bound add up.
                match entry.buckets.iter_mut().find(|(known, _)| known.total_cmp(&bound).is_eq()) {
                    Some((_, count)) => *count += sample.value,
                    None => entry.buckets.push((bound, sample.value)),
                }
            }
            _ => {}
        }
    }
    clusters.into_iter().filter_map(|(name, cluster)| edge(from, name, &cluster)).collect()
}

/// Mesh services alone: `namespace/service|port`. A sidecar's way to its own application ends in
/// `|local`.
fn edge(from: &str, name: &str, cluster: &Cluster) -> Option<Edge> {
    let (service, port) = name.split_once('|')?;
    let port = port.parse().ok()?;
    let requests: f64 = cluster.requests.values().sum();
    let http = requests > 0.0;
    let failed: f64 = ["4", "5"].iter().filter_map(|class| cluster.requests.get(*class)).sum();
    let (count, ok) = if http {
        (requests, requests - failed)
    } else {
        (cluster.connections, cluster.connections - cluster.connect_failures)
    };
    let class = |class: &str| whole(cluster.requests.get(class).copied().unwrap_or(0.0));
    let failures = [class("5"), class("4"), whole(cluster.connect_failures)];
    (count > 0.0 && service.contains('/')).then(|| Edge {
        from: from.to_owned(),
        to: service.to_owned(),
        port,
        protocol: if http { "http" } else { "tcp" },
        count: whole(count),
        ok: whole(ok),
        open: whole(cluster.active),
        why: why(&failures),
        failures,
        rps: None,
        recent: whole(count),
        share: None,
        p50_ms: median(&cluster.buckets),
        // A connection that is being made counts before its handshake does.
        mtls: cluster.handshakes > 0.0
            && cluster.handshakes + cluster.connect_failures + cluster.active >= cluster.connections,
    })
}

fn why(failures: &[u64; 3]) -> String {
    let kinds = failures.iter().zip(["answered 5xx", "answered 4xx", "not connected"]);
    let words = kinds.filter(|(count, _)| **count > 0).map(|(count, words)| format!("{count} {words}"));
    words.collect::<Vec<_>>().join(", ")
}

/// Connections that the sidecars of an owner turned away because no policy has a way to where they were addressed.
pub(crate) fn refused(from: &str, samples: &[Sample]) -> Option<Refused> {
    let outbound = |sample: &&Sample| {
        sample.name == "envoy_listener_no_filter_chain_match"
            && sample.label("envoy_listener_address").ends_with(OUTBOUND)
    };
    let count = whole(samples.iter().filter(outbound).map(|sample| sample.value).sum());
    (count > 0).then(|| Refused {
        from: from.to_owned(),
        to: "-".to_owned(),
        count,
        why: "no policy lets it call there (oxmesh check, kubectl get traffictargets -A)".to_owned(),
    })
}

/// What a sidecar counted between two looks at its metrics; gauges are as they are now. Without an earlier look, all.
pub(crate) fn since(base: &[Sample], now: &[Sample]) -> Vec<Sample> {
    let known: BTreeMap<(&str, &BTreeMap<String, String>), f64> =
        base.iter().map(|sample| ((sample.name.as_str(), &sample.labels), sample.value)).collect();
    now.iter()
        .map(|sample| {
            let before = known.get(&(sample.name.as_str(), &sample.labels)).copied().unwrap_or(0.0);
            let gauge = sample.name.ends_with("_active");
            // A counter that fell began anew with its process.
            let value = if gauge || before > sample.value { sample.value } else { sample.value - before };
            Sample { value, ..sample.clone() }
        })
        .collect()
}

/// The calls of a time, of which `all` are those since the sidecars started: those tell the protocol and mutual TLS of
/// connections made before, and of TCP connections that stay open.
pub(crate) fn recent(all: &[Edge], window: Vec<Edge>) -> Vec<Edge> {
    let mut window: BTreeMap<(String, String, u16), Edge> =
        window.into_iter().map(|edge| ((edge.from.clone(), edge.to.clone(), edge.port), edge)).collect();
    all.iter()
        .filter_map(|edge| {
            let known = window.remove(&(edge.from.clone(), edge.to.clone(), edge.port));
            match known.filter(|known| known.protocol == edge.protocol) {
                Some(known) => Some(Edge { mtls: edge.mtls, ..known }),
                None if edge.protocol == "tcp" && edge.open > 0 => {
                    Some(Edge { count: 0, ok: 0, recent: 0, p50_ms: None, why: String::new(), ..edge.clone() })
                }
                None => None,
            }
        })
        .collect()
}

/// Fills in each edge's share of its split: `splits` are the backends of each TrafficSplit, as
/// `namespace/service`.
pub(crate) fn add_shares(edges: &mut [Edge], splits: &[Vec<String>]) {
    for backends in splits {
        let mut totals: BTreeMap<String, u64> = BTreeMap::new();
        for edge in edges.iter().filter(|edge| backends.contains(&edge.to)) {
            *totals.entry(edge.from.clone()).or_default() += edge.recent;
        }
        for edge in edges.iter_mut().filter(|edge| backends.contains(&edge.to)) {
            edge.share = totals.get(&edge.from).map(|total| ratio(edge.recent, *total));
        }
    }
}

/// What a counter grew by; one that fell began anew with its process.
pub(crate) fn grown(base: u64, now: u64) -> u64 {
    now.checked_sub(base).unwrap_or(now)
}

/// Takes off what was counted before the mesh stood.
pub(crate) fn edges_since(base: &[Edge], edges: &mut Vec<Edge>) {
    for edge in edges.iter_mut() {
        let same = |other: &&Edge| (&other.from, &other.to, other.port) == (&edge.from, &edge.to, edge.port);
        if let Some(before) = base.iter().find(same) {
            edge.count = grown(before.count, edge.count);
            edge.ok = grown(before.ok, edge.ok);
            edge.recent = edge.count;
            for (now, before) in edge.failures.iter_mut().zip(before.failures) {
                *now = grown(before, *now);
            }
            edge.why = why(&edge.failures);
        }
    }
    edges.retain(|edge| edge.count > 0);
}

/// 0 of nothing.
pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of a demo are small")]
    let ratio = part as f64 / whole.max(1) as f64;
    ratio
}

fn whole(value: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are whole and not negative")]
    let whole = value as u64;
    whole
}

/// Ends the name of the listener to which a pod's own connections are led.
const OUTBOUND: &str = "_15001";

/// The median by linear interpolation within its bucket, as Prometheus' `histogram_quantile`.
fn median(buckets: &[(f64, f64)]) -> Option<f64> {
    let mut buckets = buckets.to_vec();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total = buckets.last()?.1;
    if total <= 0.0 {
        return None;
    }
    let half = total / 2.0;
    let (mut lower, mut before) = (0.0, 0.0);
    for (upper, count) in buckets {
        if count >= half {
            let within = if count > before { (half - before) / (count - before) } else { 1.0 };
            return Some(if upper.is_finite() { lower + (upper - lower) * within } else { lower });
        }
        (lower, before) = (upper, count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::prometheus::parse;
    use super::*;

    #[test]
    fn a_sidecars_metrics_become_edges_to_mesh_services() {
        let text = r#"
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="bookstore/bookstore-v1|14001"} 29
envoy_cluster_upstream_rq_xx{envoy_response_code_class="5",envoy_cluster_name="bookstore/bookstore-v1|14001"} 1
envoy_cluster_upstream_cx_total{envoy_cluster_name="bookstore/bookstore-v1|14001"} 2
envoy_cluster_ssl_handshake{envoy_cluster_name="bookstore/bookstore-v1|14001"} 2
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="bookstore/bookstore-v1|14001",le="1"} 0
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="bookstore/bookstore-v1|14001",le="5"} 20
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="bookstore/bookstore-v1|14001",le="+Inf"} 30
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="bookstore/bookstore-v2|14001"} 10
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="bookbuyer/bookbuyer|14001|local"} 10
envoy_cluster_upstream_cx_total{envoy_cluster_name="db/bookdb|3306"} 4
envoy_cluster_upstream_cx_total{envoy_cluster_name="osm-controller"} 1
"#;
        let mut edges = edges("bookbuyer/bookbuyer", &parse(text));
        add_shares(&mut edges, &[vec!["bookstore/bookstore-v1".into(), "bookstore/bookstore-v2".into()]]);
        let to: Vec<_> = edges.iter().map(|edge| (edge.to.as_str(), edge.protocol, edge.count, edge.ok)).collect();
        assert_eq!(
            to,
            [
                ("bookstore/bookstore-v1", "http", 30, 29),
                ("bookstore/bookstore-v2", "http", 10, 10),
                ("db/bookdb", "tcp", 4, 4),
            ]
        );
        assert_eq!((edges[0].share, edges[1].share, edges[2].share), (Some(0.75), Some(0.25), None));
        assert!(edges[0].mtls && !edges[2].mtls);
        let p50 = edges[0].p50_ms.expect("a median");
        assert!((p50 - 4.0).abs() < 0.01, "{p50}");
    }

    #[test]
    fn what_was_counted_before_does_not_count() {
        let edge = |count, ok| Edge { from: "a".into(), to: "b".into(), count, ok, recent: count, ..Edge::default() };
        let mut edges = vec![edge(30, 28), Edge { to: "c".into(), ..edge(5, 5) }];
        edges_since(&[edge(10, 8), Edge { to: "c".into(), ..edge(5, 5) }], &mut edges);
        assert_eq!(edges, [edge(20, 20)]);
        let failed = |count, failures| Edge { why: why(&failures), failures, ..edge(count, 0) };
        let mut edges = vec![failed(30, [4, 0, 3])];
        edges_since(&[failed(10, [4, 0, 1])], &mut edges);
        assert_eq!(edges[0].why, "2 not connected");
    }

    #[test]
    fn calls_of_a_time_are_told_apart_from_those_before() {
        let page = |requests: u32, failed: u32, connections: u32, turned_away: u32| {
            parse(&format!(
                r#"
envoy_cluster_upstream_rq_xx{{envoy_response_code_class="2",envoy_cluster_name="s/store|80"}} {requests}
envoy_cluster_upstream_rq_xx{{envoy_response_code_class="5",envoy_cluster_name="s/store|80"}} {failed}
envoy_cluster_upstream_cx_total{{envoy_cluster_name="s/store|80"}} {connections}
envoy_cluster_ssl_handshake{{envoy_cluster_name="s/store|80"}} {connections}
envoy_cluster_upstream_cx_total{{envoy_cluster_name="s/db|3306"}} 1
envoy_cluster_upstream_cx_active{{envoy_cluster_name="s/db|3306"}} 1
envoy_listener_no_filter_chain_match{{envoy_listener_address="[__]_15001"}} {turned_away}
envoy_listener_no_filter_chain_match{{envoy_listener_address="[__]_15003"}} 9
"#
            ))
        };
        let (before, now) = (page(10, 1, 2, 3), page(18, 3, 2, 8));
        let (all, samples) = (edges("c/client", &now), since(&before, &now));
        let shown = recent(&all, edges("c/client", &samples));
        let rows: Vec<_> =
            shown.iter().map(|edge| (edge.to.as_str(), edge.count, edge.ok, edge.why.as_str(), edge.mtls)).collect();
        // The database's connection was made before and is still open; nothing new was connected to the store.
        assert_eq!(rows, [("s/db", 0, 0, "", false), ("s/store", 10, 8, "2 answered 5xx", true)]);
        assert_eq!(refused("c/client", &samples).map(|refused| refused.count), Some(5));
        assert_eq!(refused("c/client", &since(&now, &now)), None);
        // Quiet services are no calls, a process that began anew counts in full.
        assert_eq!(recent(&all, edges("c/client", &since(&now, &now))).len(), 1);
        assert_eq!(edges("c/client", &since(&now, &before))[0].count, 11);
    }
}
