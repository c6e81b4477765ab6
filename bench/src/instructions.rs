//! User instructions and allocations per request, by callgrind: two runs of different length, subtracted.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{
    RunArgs,
    measure::{self, Process},
    peers::{self, Peer, Ports, Topology},
};

/// Instructions and allocator calls of one request through our proxy (of a pair: through both).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Instructions {
    /// User instructions.
    pub(crate) instructions: f64,
    /// Calls of the allocator's allocating functions.
    pub(crate) allocations: f64,
}

const SHORT: u32 = 500;
const LONG: u32 = 2500;

/// Nothing (and a line that says so) where valgrind is not installed.
pub(crate) fn count(args: &RunArgs, ports: Ports, dir: &Path, body: &Path) -> Result<Vec<(Topology, Instructions)>> {
    if measure::output("which", &["valgrind"]).is_err() {
        println!("SKIPPED: instructions per request: valgrind is not installed");
        return Ok(Vec::new());
    }
    let per = f64::from(LONG - SHORT);
    let mut counted = Vec::new();
    for topology in Topology::ALL {
        let body = (topology == Topology::Grpc).then_some(body);
        let short = one(args, topology, ports, dir, body, SHORT)?;
        let long = one(args, topology, ports, dir, body, LONG)?;
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let difference = |long: i64, short: i64| (long - short) as f64 / per;
        let (instructions, allocations) = (difference(long.0, short.0), difference(long.1, short.1));
        println!("callgrind: {}: {instructions:.0} instructions, {allocations:.1} allocations", topology.name());
        counted.push((topology, Instructions { instructions, allocations }));
    }
    Ok(counted)
}

fn one(
    args: &RunArgs,
    topology: Topology,
    ports: Ports,
    dir: &Path,
    body: Option<&Path>,
    requests: u32,
) -> Result<(i64, i64)> {
    let commands = peers::commands(Peer::Oxmesh, topology, ports, dir, (&args.proxy, &args.envoy), args.lean)?;
    let mut running = Vec::new();
    for (index, command) in commands.into_iter().enumerate() {
        let out = dir.join(format!("callgrind.{requests}.{index}"));
        let mut words: Vec<String> =
            ["valgrind", "--tool=callgrind", &format!("--callgrind-out-file={}", out.display())]
                .map(str::to_owned)
                .to_vec();
        words.extend(command);
        running.push((Process::start(0, &words, &dir.join(format!("callgrind-{index}.log")))?, out));
    }
    if topology == Topology::MtlsPair {
        measure::wait_for_port(ports.middle)?;
    }
    measure::wait_for_port(ports.front)?;
    measure::nap(1000);
    measure::exactly(ports.front, requests, body)?;
    let mut sum = (0, 0);
    for (process, out) in running {
        process.stop()?;
        let (instructions, allocations) = read(&out)?;
        sum = (sum.0 + instructions, sum.1 + allocations);
    }
    Ok(sum)
}

/// Total instructions, and calls into allocating functions, of a callgrind file.
fn read(out: &Path) -> Result<(i64, i64)> {
    let text = fs::read_to_string(out).with_context(|| format!("read {}", out.display()))?;
    let total = text
        .lines()
        .find_map(|l| l.strip_prefix("summary: ").or_else(|| l.strip_prefix("totals: "))?.trim().parse().ok())
        .context("no totals in callgrind's output")?;
    Ok((total, allocator_calls(&text)))
}

/// Sums `calls=` lines whose callee is an allocating function. Callees are named by `cfn=(id) name` once, later by id alone.
fn allocator_calls(text: &str) -> i64 {
    let mut names = std::collections::HashMap::new();
    let mut callee = "";
    let mut sum = 0;
    for line in text.lines() {
        let reference = line.strip_prefix("cfn=").or_else(|| line.strip_prefix("fn="));
        if let Some(reference) = reference {
            let (id, name) = reference.split_once(' ').unwrap_or((reference, ""));
            if !name.is_empty() {
                names.insert(id, name);
            }
            if line.starts_with("cfn=") {
                callee = names.get(id).copied().unwrap_or("");
            }
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let allocates = [
                "rjem_malloc",
                "rjem_mallocx",
                "rjem_calloc",
                "rjem_rallocx",
                "rjem_realloc",
                "mi_malloc",
                "mi_realloc",
            ]
            .iter()
            .any(|f| callee.contains(f))
                || matches!(callee, "malloc" | "calloc" | "realloc");
            if allocates && !callee.contains("default") {
                sum += calls.split(' ').next().and_then(|n| n.parse::<i64>().ok()).unwrap_or(0);
            }
        }
    }
    sum
}

/// Version line of a program, for the report.
pub(crate) fn version(program: &Path) -> String {
    Command::new(program)
        .arg("--version")
        .output()
        .ok()
        .and_then(|o| String::from_utf8(o.stdout).ok())
        .and_then(|t| t.lines().find(|l| !l.trim().is_empty()).map(|l| l.trim().to_owned()))
        .unwrap_or_else(|| "unknown".to_owned())
}
