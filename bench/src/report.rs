//! The report: a table in Markdown, a bar plot in SVG, the raw figures in JSON.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::Result;
use serde_json::json;

use crate::{
    RunArgs,
    idle::PerConnection,
    instructions::{self, Instructions},
    measure::Load,
    peers::{Peer, Topology},
};

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    /// CPU microseconds of the proxies per request.
    pub(crate) cpu_us: f64,
    /// What the loader saw.
    pub(crate) load: Load,
    /// Resident KiB per proxy process before load.
    pub(crate) idle_kib: u64,
    /// Resident KiB per proxy process after load.
    pub(crate) loaded_kib: u64,
}

/// All measurements, by topology and peer, in the order of the rounds.
#[derive(Default)]
pub(crate) struct Results {
    cells: BTreeMap<(usize, usize), Vec<Cell>>,
    /// Resident KiB of proxies without configuration.
    pub(crate) empty: Vec<(Peer, u64)>,
    /// What resting connections cost.
    pub(crate) idle: Vec<(Peer, PerConnection)>,
    /// Instructions and allocations of our proxy.
    pub(crate) instructions: Vec<(Topology, Instructions)>,
}

const PEERS: [Peer; 4] = [Peer::Oxmesh, Peer::Envoy, Peer::Nginx, Peer::Haproxy];

impl Results {
    /// Files a measurement.
    pub(crate) fn add(&mut self, topology: Topology, peer: Peer, cell: Cell) {
        self.cells.entry((index(&Topology::ALL, topology), index(&PEERS, peer))).or_default().push(cell);
    }

    fn get(&self, topology: Topology, peer: Peer) -> &[Cell] {
        self.cells.get(&(index(&Topology::ALL, topology), index(&PEERS, peer))).map_or(&[], Vec::as_slice)
    }

    /// CPU ratios to Envoy, round by round.
    fn ratios(&self, topology: Topology, peer: Peer) -> Vec<f64> {
        self.get(topology, peer).iter().zip(self.get(topology, Peer::Envoy)).map(|(a, e)| a.cpu_us / e.cpu_us).collect()
    }
}

fn index<T: PartialEq>(all: &[T], one: T) -> usize {
    all.iter().position(|x| *x == one).unwrap_or(usize::MAX)
}

/// Writes `report.md`, `report.svg` and `report.json` into `dir`, and prints the table.
pub(crate) fn write(results: &Results, dir: &Path, args: &RunArgs) -> Result<()> {
    let table = markdown(results, args);
    fs::write(dir.join("report.md"), &table)?;
    fs::write(dir.join("report.svg"), svg(results))?;
    fs::write(dir.join("report.json"), serde_json::to_string_pretty(&raw(results))?)?;
    println!("\n{table}\nwritten to {}", dir.display());
    Ok(())
}

fn markdown(results: &Results, args: &RunArgs) -> String {
    let mut out = format!(
        "# Bench\n\nOne worker each, proxies on CPU 0, load and upstream on CPU 1, {} interleaved rounds of {} s; \
         HTTP/1.1 answers of {} bytes; \
         `median [min-max]`; ratios are of CPU time per request in the same round. {}\n\nEnvoy: {}\n",
        args.rounds,
        args.seconds,
        args.body,
        if args.lean {
            "Lean configuration."
        } else {
            "Our proxy and Envoy run the same file: access log (OSM's 19 fields), access control, rate limit, metrics on; nginx and HAProxy without them."
        },
        instructions::version(&args.envoy),
    );
    for topology in Topology::ALL {
        let _ = write!(
            out,
            "\n## {}\n\n| proxy | CPU us/request | x Envoy | requests/s | p50 us | idle RSS MiB | RSS MiB after load |\n|---|---|---|---|---|---|---|\n",
            topology.name()
        );
        for peer in PEERS {
            let cells = results.get(topology, peer);
            if cells.is_empty() {
                continue;
            }
            let column = |f: &dyn Fn(&Cell) -> f64| cells.iter().map(f).collect::<Vec<_>>();
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} |",
                peer.name(),
                spread(&column(&|c| c.cpu_us), 1),
                spread(&results.ratios(topology, peer), 2),
                spread(&column(&|c| c.load.rate), 0),
                spread(&column(&|c| c.load.p50_us), 0),
                spread(&column(&|c| mib(c.idle_kib)), 1),
                spread(&column(&|c| mib(c.loaded_kib)), 1),
            );
        }
    }
    if !results.empty.is_empty() {
        out.push_str("\n## Idle, with nothing but an admin address\n\n");
        for (peer, kib) in &results.empty {
            let _ = writeln!(out, "- {}: {:.1} MiB resident", peer.name(), mib(*kib));
        }
    }
    if !results.idle.is_empty() {
        out.push_str("\n## Resting connections\n\n| proxy | KiB each, plaintext | KiB each, mTLS |\n|---|---|---|\n");
        for (peer, each) in &results.idle {
            let _ = writeln!(out, "| {} | {:.1} | {:.1} |", peer.name(), each.plaintext, each.mtls);
        }
    }
    if !results.instructions.is_empty() {
        out.push_str(
            "\n## Our proxy by callgrind, per request (a pair: both proxies)\n\n| | user instructions | allocations |\n|---|---|---|\n",
        );
        for (topology, i) in &results.instructions {
            let _ = writeln!(out, "| {} | {:.0} | {:.1} |", topology.name(), i.instructions, i.allocations);
        }
    }
    out
}

fn mib(kib: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let kib = kib as f64;
    kib / 1024.0
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: &[f64], digits: usize) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{:.digits$} [{min:.digits$}-{max:.digits$}]", median(values))
}

fn raw(results: &Results) -> serde_json::Value {
    let mut out = serde_json::Map::new();
    for topology in Topology::ALL {
        let mut of = serde_json::Map::new();
        for peer in PEERS {
            let cells = results.get(topology, peer).iter().map(|c| {
                json!({"cpu_us": c.cpu_us, "rate": c.load.rate, "p50_us": c.load.p50_us, "requests": c.load.requests,
                       "failed": c.load.failed, "idle_kib": c.idle_kib, "loaded_kib": c.loaded_kib})
            });
            of.insert(peer.name().to_owned(), cells.collect());
        }
        out.insert(topology.name().to_owned(), of.into());
    }
    for (peer, kib) in &results.empty {
        out.insert(format!("empty {}", peer.name()), json!({"idle_kib": kib}));
    }
    for (peer, each) in &results.idle {
        let each = json!({"plaintext_kib": each.plaintext, "mtls_kib": each.mtls});
        out.insert(format!("connection {}", peer.name()), each);
    }
    for (topology, i) in &results.instructions {
        let counts = json!({"instructions": i.instructions, "allocations": i.allocations});
        out.insert(format!("callgrind {}", topology.name()), counts);
    }
    out.into()
}

/// Bars of CPU time per request, as ratio to Envoy, with the spread of the rounds.
fn svg(results: &Results) -> String {
    let (left, width, row) = (230.0, 420.0, 22.0);
    let mut body = String::new();
    let mut y = 40.0;
    for topology in Topology::ALL {
        let _ = writeln!(body, "<text x='10' y='{y}' font-weight='bold'>{}</text>", topology.name());
        y += 8.0;
        for peer in PEERS {
            let ratios = results.ratios(topology, peer);
            if ratios.is_empty() {
                continue;
            }
            let min = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let max = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let scale = |v: f64| v.min(1.5) / 1.5 * width;
            let colour = if peer == Peer::Oxmesh { "#d9541e" } else { "#8899aa" };
            let _ = writeln!(
                body,
                "<text x='{}' y='{}' text-anchor='end'>{}</text><rect x='{left}' y='{}' width='{:.1}' height='14' fill='{colour}'/>\
                 <line x1='{:.1}' x2='{:.1}' y1='{}' y2='{}' stroke='#222'/><text x='{:.1}' y='{}'>{:.2}</text>",
                left - 8.0,
                y + 13.0,
                peer.name(),
                y + 2.0,
                scale(median(&ratios)),
                left + scale(min),
                left + scale(max),
                y + 9.0,
                y + 9.0,
                left + scale(max) + 6.0,
                y + 13.0,
                median(&ratios),
            );
            y += row;
        }
        y += 20.0;
    }
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='720' height='{y}' font-family='sans-serif' font-size='13'>\
         <rect width='100%' height='100%' fill='white'/><text x='10' y='18' font-size='15'>CPU time per request, Envoy = 1 (less is better)</text>\n{body}</svg>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_names_median_and_range() {
        assert_eq!(spread(&[3.0, 1.0, 2.0], 1), "2.0 [1.0-3.0]");
        assert_eq!(spread(&[], 1), "-");
    }
}
