//! `oxmesh-proxy`: see the library.

use std::process::ExitCode;

use clap::Parser as _;
use oxmesh_proxy::{app, args::Args};

/// Gives memory back when traffic is over, and has less contention between the traffic threads than the system's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are no faults. A terminal that is gone can't be told anything.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    match app::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oxmesh-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}
