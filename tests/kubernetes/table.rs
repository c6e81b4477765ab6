//! `docs/reference/kubernetes-scenarios.md`: every scenario of this binary, with the test of OSM's that it stands for and how it
//! ended when it last ran. Written by a run with OXMESH_WRITE_DOCS=1; what that run left out keeps its row.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use libtest_mimic::{Failed, Trial};
use oxmesh_tests::{
    mesh::project,
    trial::{Run, runs},
};

/// Adds the trial that the page names what there is.
pub(crate) fn trials(trials: &mut Vec<Trial>) {
    let names: Vec<String> = runs().iter().map(|run| shown(&run.name).0).collect();
    trials.push(Trial::test("the page of scenarios lists each of them once and nothing else", move || {
        current(&names).map_err(|e| Failed::from(format!("{e:#}")))
    }));
}

/// Writes the page when asked to.
pub(crate) fn write() {
    if std::env::var_os("OXMESH_WRITE_DOCS").is_some() {
        let old = fs::read_to_string(path()).unwrap_or_default();
        let today = Timestamp::now().strftime("%Y-%m-%d").to_string();
        fs::write(path(), page(&runs(), &old, &today)).expect("docs/reference is there and can be written");
    }
}

fn current(names: &[String]) -> Result<()> {
    let page = fs::read_to_string(path()).context("the page")?;
    let listed: Vec<String> = page.lines().filter_map(row).map(|[name, ..]| name.to_owned()).collect();
    ensure!(names.len() >= 10, "{names:?}");
    let (mut expected, mut found) = (names.to_vec(), listed);
    expected.sort();
    found.sort();
    let differing = |one: &[String], other: &[String]| -> Vec<String> {
        one.iter().filter(|name| !other.contains(name)).cloned().collect()
    };
    ensure!(
        expected == found,
        "the page is old; run this binary with OXMESH_WRITE_DOCS=1. It lacks {:?}, and names without need {:?}",
        differing(&expected, &found),
        differing(&found, &expected)
    );
    Ok(())
}

/// The scenario's sentence, and OSM's tests.
fn shown(name: &str) -> (String, String) {
    let name = name.split(" SKIPPED: ").next().unwrap_or(name);
    match name.split_once(" [e2e_") {
        Some((before, rest)) => {
            let (tests, after) = rest.split_once(']').unwrap_or((rest, ""));
            (format!("{before}{after}"), format!("e2e_{tests}"))
        }
        None => (name.to_owned(), String::new()),
    }
}

/// The cells of a row of the table.
fn row(line: &str) -> Option<[&str; 4]> {
    let cells: Vec<&str> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").map(str::trim).collect();
    let cells: [&str; 4] = cells.try_into().ok()?;
    (!cells[0].starts_with("Scenario")).then_some(cells)
}

fn page(runs: &[Run], old: &str, today: &str) -> String {
    let mut page = HEAD.to_owned();
    for run in runs {
        let (name, tests) = shown(&run.name);
        let (ended, when) = match &run.ended {
            Some((true, took)) => (format!("√ in {} s", took.as_secs().max(1)), today),
            Some((false, took)) => (format!("× after {} s", took.as_secs()), today),
            None => old
                .lines()
                .filter_map(row)
                .find(|cells| cells[0] == name)
                .map_or_else(|| ("not run".to_owned(), "-"), |[_, _, ended, when]| (ended.to_owned(), when)),
        };
        let tests = if tests.is_empty() { "-" } else { &tests };
        writeln!(page, "| {name} | {tests} | {ended} | {when} |").expect("a string takes all");
    }
    page
}

fn path() -> PathBuf {
    project().join("docs/reference/kubernetes-scenarios.md")
}

const HEAD: &str = "\
# Scenarios on Kubernetes

What `tests/kubernetes` shows on a real cluster ([the test cluster](../test-cluster.md), or the one of `KUBECONFIG`), and how each
ended when it last ran: `OXMESH_WRITE_DOCS=1 cargo test -p oxmesh-tests --test kubernetes` writes this page. A test holds
that it names all scenarios. The second column is the test of Open Service Mesh that shows the same.

| Scenario | OSM's test | ended | when |
|---|---|---|---|
";
