//! The rounds: every peer of a topology in turn, several times over.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use crate::{
    RunArgs, idle, instructions,
    measure::{self, Load, Process},
    peers::{self, Peer, Ports, Topology},
    report::{self, Cell, Results},
};

const PORTS: Ports = Ports { front: 29_001, middle: 29_002, http1: 29_003, http2: 29_004, admin: (29_005, 29_006) };

/// Measures and writes the report.
pub(crate) fn run(args: &RunArgs) -> Result<()> {
    ensure!(
        args.proxy.is_file(),
        "no proxy at {} (build it: cargo build --release -p oxmesh-proxy)",
        args.proxy.display()
    );
    fs::create_dir_all(&args.report)?;
    let dir = args.report.join("work").canonicalize().or_else(|_| {
        fs::create_dir_all(args.report.join("work"))?;
        args.report.join("work").canonicalize()
    })?;
    peers::certificates(&dir)?;
    let body = dir.join("grpc-body");
    fs::write(&body, [0, 0, 0, 0, 32].into_iter().chain([7; 32]).collect::<Vec<u8>>())?;

    let upstream = upstream(&dir, args.body)?;
    let mut results = Results::default();
    for topology in Topology::ALL {
        let peers: Vec<Peer> = present(args).into_iter().filter(|p| topology.has(*p)).collect();
        for round in 0..args.rounds {
            for peer in &peers {
                let cell = measure_once(args, *peer, topology, &dir, &body)
                    .with_context(|| format!("{} with {}", topology.name(), peer.name()))?;
                println!(
                    "round {} of {}: {}: {}: {:.1} us CPU/request, {:.0} requests/s",
                    round + 1,
                    args.rounds,
                    topology.name(),
                    peer.name(),
                    cell.cpu_us,
                    cell.load.rate
                );
                results.add(topology, *peer, cell);
            }
        }
    }
    for peer in [Peer::Oxmesh, Peer::Envoy] {
        if present(args).contains(&peer) {
            results.empty.push((peer, idle_without_config(args, peer, &dir)?));
        }
    }
    for peer in present(args) {
        results.idle.push((peer, idle::per_connection(args, peer, PORTS, &dir).with_context(|| peer.name())?));
    }
    if args.callgrind {
        results.instructions = instructions::count(args, PORTS, &dir, &body)?;
    }
    drop(upstream);
    report::write(&results, &args.report, args)
}

/// Peers that are installed here; the missing ones are named.
fn present(args: &RunArgs) -> Vec<Peer> {
    let installed = |name: &str| measure::output("which", &[name]).is_ok();
    let mut peers = vec![Peer::Oxmesh];
    for (peer, there) in
        [(Peer::Envoy, args.envoy.is_file()), (Peer::Nginx, installed("nginx")), (Peer::Haproxy, installed("haproxy"))]
    {
        if there {
            peers.push(peer);
        } else {
            println!("SKIPPED: {}: not installed", peer.name());
        }
    }
    peers
}

fn upstream(dir: &Path, body: usize) -> Result<Process> {
    let me = std::env::current_exe()?.display().to_string();
    let (http1, http2, size) = (PORTS.http1.to_string(), PORTS.http2.to_string(), body.to_string());
    let words = [me.as_str(), "upstream", "--http1", &http1, "--http2", &http2, "--size", &size].map(str::to_owned);
    let process = Process::start(1, &words, &dir.join("upstream.log"))?;
    measure::wait_for_port(PORTS.http1)?;
    measure::wait_for_port(PORTS.http2)?;
    Ok(process)
}

fn measure_once(args: &RunArgs, peer: Peer, topology: Topology, dir: &Path, body: &Path) -> Result<Cell> {
    let commands = peers::commands(peer, topology, PORTS, dir, (&args.proxy, &args.envoy), args.lean)?;
    let mut processes = Vec::new();
    for (index, words) in commands.iter().enumerate() {
        processes.push(Process::start(0, words, &dir.join(format!("{}-{index}.log", peer.name())))?);
    }
    if topology == Topology::MtlsPair {
        measure::wait_for_port(PORTS.middle)?;
    }
    measure::wait_for_port(PORTS.front)?;
    measure::nap(300);
    let pids: Vec<u32> = processes.iter().flat_map(|p| measure::family(p.id())).collect();
    let idle_kib = measure::rss_kib(&pids) / processes.len() as u64;
    load(topology, 1, body)?; // warm-up
    let before = measure::cpu_ns(&pids)?;
    let load = load(topology, args.seconds, body)?;
    let spent = measure::cpu_ns(&pids)? - before;
    ensure!(load.requests > 0, "no request was answered; see {}/{}-0.log", dir.display(), peer.name());
    ensure!(load.failed * 1000 <= load.requests, "{} of {} requests failed", load.failed, load.requests);
    let loaded_kib = measure::rss_kib(&pids) / processes.len() as u64;
    for process in processes {
        process.stop()?;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let cpu_us = spent as f64 / 1e3 / load.requests as f64;
    Ok(Cell { cpu_us, load, idle_kib, loaded_kib })
}

/// Resident KiB of a proxy that was given nothing but an admin address.
fn idle_without_config(args: &RunArgs, peer: Peer, dir: &Path) -> Result<u64> {
    let words = peers::without_config(peer, PORTS, dir, (&args.proxy, &args.envoy))?;
    let process = Process::start(0, &words, &dir.join(format!("{}-empty.log", peer.name())))?;
    measure::wait_for_port(PORTS.admin.0)?;
    measure::nap(1000);
    let kib = measure::rss_kib(&[process.id()]);
    process.stop()?;
    Ok(kib)
}

fn load(topology: Topology, seconds: u32, body: &Path) -> Result<Load> {
    match topology {
        Topology::Http1 | Topology::MtlsPair => measure::wrk(PORTS.front, seconds),
        Topology::Grpc => measure::h2load(PORTS.front, seconds, body),
    }
}
