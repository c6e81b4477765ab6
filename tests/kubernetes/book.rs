//! `docs/kubernetes.md`, followed word for word: every command of its blocks in the order of the page, and what it says they
//! print.
//!
//! Stand-ins: the cluster under test, its registry and images for those of the page's head; and where meshes of other
//! scenarios are there, the installation is told that they may be.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use oxmesh::pod::Binaries;
use oxmesh_tests::{cluster::Cluster, eventually, mesh::project, trial::trial};
use serde_json::Value;
use tokio::process::Command;

use crate::UNDISTURBED;

/// A command of the page, with what it prints there.
#[derive(Debug, Default)]
struct Step {
    command: String,
    output: Vec<String>,
}

pub(crate) fn trials(trials: &mut Vec<Trial>, missing: Option<&str>) {
    let name = "the page on Kubernetes, followed word for word, from the installation to its removal";
    trials.push(trial(name, missing.map(ToOwned::to_owned), || async { follow(Cluster::shared()?).await }));
}

async fn follow(cluster: &'static Cluster) -> Result<()> {
    let page = std::fs::read_to_string(project().join("docs/kubernetes.md"))?;
    let (_, page) = page.split_once("## Install").context("the page begins with an installation")?;
    let (page, removal) = page.split_once("## Remove it").context("the page ends with a removal")?;
    let reader = Reader::new(cluster).await?;
    let undisturbed = UNDISTURBED.read().await;
    let steps = steps(page);
    ensure!(steps.len() >= 15, "only {} commands were found", steps.len());
    let outcome = reader.go(&steps, &closer(page)).await;
    drop(undisturbed);
    // With -a the kinds go when no mesh is left that needs them; a scenario in the midst of an installation needs them too.
    let _alone = UNDISTURBED.write().await;
    let removed = reader.all(&self::steps(removal)).await;
    outcome.and(removed)?;
    reader.nothing_left(cluster).await
}

/// Somebody at a shell, in the repository's folder.
struct Reader {
    environment: Vec<(&'static str, String)>,
    stand_ins: Vec<(&'static str, String)>,
    alone: bool,
}

impl Reader {
    async fn new(cluster: &Cluster) -> Result<Self> {
        let (registry, tag) = cluster.registry_and_tag();
        let oxmesh = Binaries::beside_self().find("oxmesh")?;
        let helm = cluster.helm_program();
        let folders = [oxmesh.parent(), helm.parent()].into_iter().flatten().map(|p| p.display().to_string());
        let path = folders.chain([std::env::var("PATH")?]).collect::<Vec<_>>().join(":");
        let mut reader = Self {
            environment: vec![
                ("PATH", path),
                ("KUBECONFIG", cluster.kubeconfig().display().to_string()),
                ("REGISTRY", registry.to_owned()),
            ],
            stand_ins: Vec::new(),
            alone: true,
        };
        if tag != VERSION {
            reader.stand_ins.push(("=$REGISTRY", format!("=$REGISTRY --set osm.image.tag={tag}")));
            reader.stand_ins.push(("| kubectl apply", format!("| sed s/:{VERSION}/:{tag}/ | kubectl apply")));
        }
        let meshes = reader.shell("oxmesh mesh list -o json").await?;
        let meshes: Vec<Value> = serde_json::from_slice(&meshes.stdout)?;
        ensure!(!meshes.iter().any(|mesh| mesh["mesh"] == "osm"), "the page's own mesh is there already: {meshes:?}");
        if !meshes.is_empty() {
            reader.alone = false;
            reader.stand_ins.push(("oxmesh install ", "oxmesh install --enforce-single-mesh=false ".to_owned()));
        }
        Ok(reader)
    }

    async fn go(&self, steps: &[Step], closer: &[String]) -> Result<()> {
        // A first check that finds other meshes says so, rightly.
        self.all(&steps[usize::from(!self.alone)..]).await?;
        ensure!(closer.len() >= 5, "{closer:?}");
        for command in closer {
            let output = self.shell(command).await?;
            ensure!(output.status.success() && !output.stdout.is_empty(), "{command}: {output:?}");
        }
        Ok(())
    }

    async fn all(&self, steps: &[Step]) -> Result<()> {
        for step in steps {
            self.step(step).await.with_context(|| format!("$ {}", step.command))?;
            if step.command.contains("demo/split.yaml") {
                self.split(|one, two| one > 5 && two > 5).await.context("half for each version")?;
            } else if step.command.contains("patch trafficsplit") {
                self.split(|one, two| one == 0 && two > 15).await.context("all for version 2")?;
            }
        }
        Ok(())
    }

    /// What only looks may be asked again, until what was done before has come to pass.
    async fn step(&self, step: &Step) -> Result<()> {
        let looks = ["oxmesh top", "oxmesh check", "kubectl get", "oxmesh namespace list"];
        if !looks.iter().any(|look| step.command.contains(look)) {
            return self.once(step).await;
        }
        eventually("the output is as the page has it", Duration::from_secs(45), || self.once(step)).await
    }

    async fn once(&self, step: &Step) -> Result<()> {
        let output = self.shell(&step.command).await?;
        let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).join("\n");
        ensure!(output.status.success(), "{}: {said}", output.status);
        let printed: Vec<String> = said.lines().map(shape).collect();
        for line in &step.output {
            ensure!(printed.contains(&shape(line)), "the page says\n{line}\nbut it was\n{said}");
        }
        Ok(())
    }

    async fn shell(&self, command: &str) -> Result<Output> {
        let mut words = command.to_owned();
        for (from, to) in &self.stand_ins {
            words = words.replace(from, to);
        }
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", &words]).current_dir(project()).stdin(Stdio::null()).kill_on_drop(true);
        for (name, value) in &self.environment {
            shell.env(name, value);
        }
        shell.output().await.context("bash")
    }

    /// Waits for ten seconds in which the buyer's calls all succeed and go to the two versions as `expected`.
    async fn split(&self, expected: fn(u64, u64) -> bool) -> Result<()> {
        eventually("calls go as the split says", Duration::from_secs(60), || async {
            let output = self.shell("oxmesh top -n bookbuyer --once --window 10s -o json").await?;
            let traffic: Value = serde_json::from_slice(&output.stdout)?;
            let edges = traffic["edges"].as_array().context("edges")?;
            let calls = |to: &str| -> u64 {
                edges.iter().filter(|edge| edge["to"] == to).filter_map(|edge| edge["count"].as_u64()).sum()
            };
            ensure!(edges.iter().all(|edge| edge["ok"] == edge["count"] && edge["mtls"] == true), "{traffic}");
            let (one, two) = (calls("bookstore/bookstore-v1"), calls("bookstore/bookstore-v2"));
            if !expected(one, two) {
                bail!("version 1 got {one} calls, version 2 {two}");
            }
            Ok(())
        })
        .await
    }

    async fn nothing_left(&self, cluster: &Cluster) -> Result<()> {
        let left = cluster.kubectl(["get", "namespaces", "-o", "name"]).await?;
        for name in ["osm-system", "bookbuyer", "bookthief", "bookstore", "bookwarehouse", "shop"] {
            ensure!(!left.lines().any(|line| line == format!("namespace/{name}")), "{name} is still there");
        }
        let webhooks = cluster.kubectl(["get", "mutatingwebhookconfigurations", "-o", "name"]).await?;
        ensure!(!webhooks.contains("/osm-webhook-osm\n"), "{webhooks}");
        Ok(())
    }
}

/// The commands of the page's blocks: lines after `$ `, going on behind a backslash, and what is printed below.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut inside, mut goes_on) = (false, false);
    for line in page.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if inside {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step { command: command.to_owned(), output: Vec::new() }),
                (None, Some(step)) if goes_on => step.command = format!("{}\n{line}", step.command),
                (None, Some(step)) if line != "…" && !line.trim().is_empty() => step.output.push(line.to_owned()),
                _ => {}
            }
            goes_on = line.ends_with('\\');
        }
    }
    steps
}

/// The commands of the page's table of further ones.
fn closer(page: &str) -> Vec<String> {
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let commands = cells.map(|(command, _)| command.to_owned());
    commands.filter(|command| command.starts_with("oxmesh ") || command.starts_with("kubectl ")).collect()
}

/// A line without what differs between two runs: numbers, and how wide columns are.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    for word in line.split_whitespace() {
        let mut number = false;
        for character in word.chars() {
            let digit = character.is_ascii_digit() || (number && character == '.');
            if digit && !number {
                shape.push('#');
            } else if !digit {
                shape.push(character);
            }
            number = digit;
        }
        shape.push(' ');
    }
    shape
}

/// The tag of images in the demo's manifests and the chart.
const VERSION: &str = env!("CARGO_PKG_VERSION");
