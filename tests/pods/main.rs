//! Pods on this machine, and the commands that are made of them: `oxmesh demo`, `run`, `exec`.
//!
//! Needs root; some need real Envoy (`tests/tools/install.sh test`). What can't run is listed as
//! SKIPPED with the reason.

mod commands;
mod redirection;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use oxmesh::pod::{Binaries, privilege};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = redirection::trials().into_iter().chain(commands::trials()).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test that needs root and these programs.
fn trial(name: &str, programs: &[&str], test: impl FnOnce() + Send + 'static) -> Trial {
    let missing = programs.iter().find(|program| tools().find(program).is_err());
    let reason = match missing {
        _ if !privilege::is_root() => "needs root".to_owned(),
        Some(program) => format!("{program} is not there (cargo build; tests/tools/install.sh test)"),
        None => {
            return Trial::test(name, move || {
                test();
                Ok::<(), Failed>(())
            });
        }
    };
    skipped(name, &reason)
}

/// Stands in the list with its reason, and doesn't count as passed.
fn skipped(name: &str, reason: &str) -> Trial {
    Trial::test(format!("{name} SKIPPED: {reason}"), || Ok(())).with_ignored_flag(true)
}

fn tools_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin")
}

/// Our programs, and those that the tests fetched.
fn tools() -> Binaries {
    Binaries::beside_self().with_folder(tools_folder())
}
