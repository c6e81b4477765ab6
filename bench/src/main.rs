//! The bench: our proxy against real Envoy, nginx and HAProxy, side by side in one run.
//!
//! Method (`bench/README.md`): the proxies under test share CPU 0, load and upstream share CPU 1, rounds interleave all
//! peers, and what is reported is CPU time per request of the proxy and its ratio to Envoy's in the same round.

mod idle;
mod instructions;
mod measure;
mod peers;
mod report;
mod run;
mod upstream;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Command line of the bench.
#[derive(Parser)]
#[command(version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure everything and write the report.
    Run(RunArgs),
    /// Serve the fixed answers that the proxies forward to.
    Upstream {
        /// Port of the HTTP/1.1 server on 127.0.0.1.
        #[arg(long)]
        http1: u16,
        /// Port of the HTTP/2 (prior knowledge) gRPC-like server on 127.0.0.1.
        #[arg(long)]
        http2: u16,
        /// Bytes of each HTTP/1.1 answer.
        #[arg(long, default_value_t = 1024)]
        size: usize,
    },
}

/// Options of `run`.
#[derive(clap::Args)]
pub(crate) struct RunArgs {
    /// Folder for the report.
    #[arg(long, default_value = "target/report")]
    pub(crate) report: PathBuf,
    /// Paired rounds.
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Seconds of load in each round and cell.
    #[arg(long, default_value_t = 3)]
    pub(crate) seconds: u32,
    /// Bytes in the body of each HTTP/1.1 answer; gRPC answers stay small.
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    pub(crate) body: usize,
    /// Our proxy.
    #[arg(long, default_value = "target/release/oxmesh-proxy")]
    pub(crate) proxy: PathBuf,
    /// Real Envoy.
    #[arg(long, default_value = "target/tools/bin/envoy")]
    pub(crate) envoy: PathBuf,
    /// Count instructions and allocations with callgrind as well.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) callgrind: bool,
    /// Without access log, access control and rate limit in the configuration.
    #[arg(long)]
    pub(crate) lean: bool,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Upstream { http1, http2, size } => upstream::serve(http1, http2, size),
    }
}
