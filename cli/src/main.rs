//! `oxmesh`: see [`oxmesh::commands`].

use std::process::ExitCode;

fn main() -> ExitCode {
    oxmesh::commands::main()
}
