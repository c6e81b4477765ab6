//! Who calls whom, as the sidecars and the applications tell it. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::prometheus::Sample;
use crate::apps::Counts;

/// Everything that `oxmesh demo` shows. Its JSON form has a version, which rises when a field
/// changes its meaning.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Picture {
    /// 1.
    pub version: u32,
    /// Folder of the manifests; changes in it take effect at once.
    pub manifests: String,
    /// The pods.
    pub pods: Vec<PodRow>,
    /// Calls that sidecars sent on, since the mesh stood.
    pub edges: Vec<Edge>,
    /// What the bookstore's applications counted, since the mesh stood.
    pub apps: Apps,
    /// Calls that did not get through, since the mesh stood; while it runs live, those of which
    /// there were more in the last ten seconds.
    pub refused: Vec<Refused>,
    /// What is wrong with the manifests, or can't be run here.
    pub findings: Vec<String>,
    /// Whether the bookstore does what it should, and what it doesn't; with `--once` alone, and
    /// absent for other meshes.
    pub expected: Option<Expected>,
}

/// A pod.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PodRow {
    /// Namespace and name.
    pub name: String,
    /// Its first address.
    pub ip: String,
    /// `oxmesh-proxy`, `envoy` or `none`.
    pub sidecar: String,
    /// `ready`, `starting`, or how it failed.
    pub state: String,
}

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

/// The comparison with what should be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// Whether all is as it should be.
    pub met: bool,
    /// What isn't.
    pub unmet: Vec<String>,
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
pub(super) fn edges(from: &str, samples: &[Sample]) -> Vec<Edge> {
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
    (count > 0.0 && service.contains('/')).then(|| Edge {
        from: from.to_owned(),
        to: service.to_owned(),
        port,
        protocol: if http { "http" } else { "tcp" },
        count: whole(count),
        ok: whole(ok),
        rps: None,
        recent: whole(count),
        share: None,
        p50_ms: median(&cluster.buckets),
        // A connection that is being made counts before its handshake does.
        mtls: cluster.handshakes > 0.0
            && cluster.handshakes + cluster.connect_failures + cluster.active >= cluster.connections,
    })
}

/// Fills in each edge's share of its split: `splits` are the backends of each TrafficSplit, as
/// `namespace/service`.
pub(super) fn add_shares(edges: &mut [Edge], splits: &[Vec<String>]) {
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

/// The bookstore's expected picture, by what its applications counted since the mesh stood.
pub(super) fn compare(since: &Apps) -> Expected {
    let mut unmet = Vec::new();
    let since = |app: &str| since.get(app);
    let mut check = |holds: bool, words: String| {
        if !holds {
            unmet.push(words);
        }
    };
    match since("bookbuyer") {
        Some(buyer) => {
            check(buyer.ok > 0, "bookbuyer bought nothing".into());
            check(buyer.failed == 0, format!("bookbuyer failed {} times: {:?}", buyer.failed, buyer.by_failure));
            for version in ["bookstore-v1", "bookstore-v2"] {
                let share = ratio(buyer.by_identity.get(version).copied().unwrap_or(0), buyer.ok);
                check(
                    (share - 0.5).abs() <= tolerance(buyer.ok),
                    format!("{version} got {:.0} % of {} purchases, not half", share * 100.0, buyer.ok),
                );
            }
        }
        None => check(false, "bookbuyer can't be asked".into()),
    }
    match since("bookthief") {
        Some(thief) => {
            check(thief.attempts > 0, "bookthief tried nothing".into());
            check(thief.ok == 0, format!("bookthief stole {} books", thief.ok));
        }
        None => check(false, "bookthief can't be asked".into()),
    }
    for (app, reaches) in [("bookstore", "bookwarehouse"), ("bookwarehouse", "bookdb")] {
        match since(app) {
            Some(counts) => check(
                counts.by_identity.get(reaches).is_some_and(|count| *count > 0) && counts.failed == 0,
                format!(
                    "{app} reached {reaches} {} times and failed {} times: {:?}",
                    counts.ok, counts.failed, counts.by_failure
                ),
            ),
            None => check(false, format!("{app} can't be asked")),
        }
    }
    Expected { met: unmet.is_empty(), unmet }
}

/// Counts of the bookstore's applications by application, summed over pods.
pub type Apps = BTreeMap<String, Counts>;

/// Adds a pod's counts to its application's.
pub(super) fn add(apps: &mut Apps, counts: &Counts) {
    let sum = apps.entry(counts.app.clone()).or_default();
    sum.app.clone_from(&counts.app);
    sum.target.clone_from(&counts.target);
    sum.attempts += counts.attempts;
    sum.ok += counts.ok;
    sum.failed += counts.failed;
    sum.served += counts.served;
    for (key, count) in &counts.by_identity {
        *sum.by_identity.entry(key.clone()).or_default() += count;
    }
    for (key, count) in &counts.by_failure {
        *sum.by_failure.entry(key.clone()).or_default() += count;
    }
}

/// What the applications counted between two moments.
pub(super) fn since(base: &Apps, now: &Apps) -> Apps {
    now.iter().map(|(app, counts)| (app.clone(), difference(base.get(app), counts))).collect()
}

fn difference(base: Option<&Counts>, now: &Counts) -> Counts {
    let Some(base) = base else { return now.clone() };
    let maps = |now: &BTreeMap<String, u64>, base: &BTreeMap<String, u64>| {
        let since = |key: &String, count: u64| grown(base.get(key).copied().unwrap_or(0), count);
        let changed = now.iter().map(|(key, count)| (key.clone(), since(key, *count)));
        changed.filter(|(_, count)| *count > 0).collect()
    };
    Counts {
        app: now.app.clone(),
        target: now.target.clone(),
        attempts: grown(base.attempts, now.attempts),
        ok: grown(base.ok, now.ok),
        failed: grown(base.failed, now.failed),
        by_identity: maps(&now.by_identity, &base.by_identity),
        by_failure: maps(&now.by_failure, &base.by_failure),
        served: grown(base.served, now.served),
    }
}

/// What a counter grew by; one that fell began anew with its process.
fn grown(base: u64, now: u64) -> u64 {
    now.checked_sub(base).unwrap_or(now)
}

/// Takes off what was counted before the mesh stood.
pub(super) fn edges_since(base: &[Edge], edges: &mut Vec<Edge>) {
    for edge in edges.iter_mut() {
        let same = |other: &&Edge| (&other.from, &other.to, other.port) == (&edge.from, &edge.to, edge.port);
        if let Some(before) = base.iter().find(same) {
            edge.count = grown(before.count, edge.count);
            edge.ok = grown(before.ok, edge.ok);
            edge.recent = edge.count;
        }
    }
    edges.retain(|edge| edge.count > 0);
}

/// Four standard deviations of a fair coin's share; never so much that one side may get nothing.
fn tolerance(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of a demo are small")]
    let deviation = 0.5 / (count.max(1) as f64).sqrt();
    (4.0 * deviation).min(0.49)
}

fn ratio(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of a demo are small")]
    let ratio = part as f64 / whole.max(1) as f64;
    ratio
}

fn whole(value: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are whole and not negative")]
    let whole = value as u64;
    whole
}

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
    use super::super::prometheus::parse;
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

    fn counts(app: &str, ok: &[(&str, u64)], failed: &[(&str, u64)]) -> Counts {
        let sum = |pairs: &[(&str, u64)]| pairs.iter().map(|(_, count)| count).sum::<u64>();
        let map = |pairs: &[(&str, u64)]| pairs.iter().map(|(key, count)| ((*key).to_owned(), *count)).collect();
        Counts {
            app: app.to_owned(),
            target: String::new(),
            attempts: sum(ok) + sum(failed),
            ok: sum(ok),
            failed: sum(failed),
            by_identity: map(ok),
            by_failure: map(failed),
            served: 0,
        }
    }

    fn bookstore() -> Apps {
        let mut apps = Apps::new();
        for counts in [
            counts("bookbuyer", &[("bookstore-v1", 52), ("bookstore-v2", 48)], &[]),
            counts("bookthief", &[], &[("403", 100)]),
            counts("bookstore", &[("bookwarehouse", 50)], &[]),
            counts("bookwarehouse", &[("bookdb", 50)], &[]),
        ] {
            add(&mut apps, &counts);
        }
        apps
    }

    #[test]
    fn the_expected_picture_is_met_or_says_what_is_wrong() {
        assert_eq!(compare(&bookstore()), Expected { met: true, unmet: vec![] });
        let cases = [
            (counts("bookbuyer", &[("bookstore-v1", 90), ("bookstore-v2", 10)], &[]), "not half"),
            (counts("bookbuyer", &[("bookstore-v1", 50), ("bookstore-v2", 50)], &[("503", 1)]), "failed 1"),
            (counts("bookthief", &[("bookstore-v1", 1)], &[("403", 1)]), "stole 1"),
            (counts("bookthief", &[], &[]), "tried nothing"),
            (counts("bookstore", &[], &[("connection refused", 3)]), "failed 3"),
            (counts("bookwarehouse", &[], &[]), "reached bookdb 0 times"),
        ];
        for (wrong, part) in cases {
            let mut apps = bookstore();
            apps.insert(wrong.app.clone(), wrong);
            let unmet = compare(&apps).unmet.join("; ");
            assert!(unmet.contains(part), "`{part}` not in `{unmet}`");
        }
    }

    #[test]
    fn failures_before_the_mesh_stood_do_not_count() {
        let mut base = Apps::new();
        add(&mut base, &counts("bookbuyer", &[], &[("connection refused", 3)]));
        let mut now = bookstore();
        let late = counts("bookbuyer", &[("bookstore-v1", 5), ("bookstore-v2", 5)], &[("connection refused", 3)]);
        now.insert("bookbuyer".into(), late);
        assert!(compare(&since(&base, &now)).met);
        // A restarted application counts from zero.
        add(&mut base, &counts("bookthief", &[], &[("403", 1000)]));
        assert_eq!(since(&base, &now)["bookthief"].failed, 100);

        let edge = |count, ok| Edge { from: "a".into(), to: "b".into(), count, ok, recent: count, ..Edge::default() };
        let mut edges = vec![edge(30, 28), Edge { to: "c".into(), ..edge(5, 5) }];
        edges_since(&[edge(10, 8), Edge { to: "c".into(), ..edge(5, 5) }], &mut edges);
        assert_eq!(edges, [edge(20, 20)]);
    }
}
