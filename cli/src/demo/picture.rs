//! What `oxmesh demo` shows: the pods, the calls, and what the applications say of them. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::apps::Counts;
use crate::traffic::{Edge, Refused, grown, ratio};

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

/// The comparison with what should be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// Whether all is as it should be.
    pub met: bool,
    /// What isn't.
    pub unmet: Vec<String>,
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

/// Four standard deviations of a fair coin's share; never so much that one side may get nothing.
fn tolerance(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of a demo are small")]
    let deviation = 0.5 / (count.max(1) as f64).sqrt();
    (4.0 * deviation).min(0.49)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
