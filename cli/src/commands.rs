//! The command line: what there is, its help, and its exit statuses.
//!
//! Exit status of every command: 0 ok, 1 failed, 2 findings (`check`), 64 wrong usage.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::apps::{self, AppArgs};
use crate::check::{self, CheckArgs};
use crate::demo::{self, DemoArgs};
use crate::pod::agent::{self, AgentArgs};
use crate::pod::{Binaries, Topology, privilege};
use crate::run::{self, ExecArgs, RunArgs};

const USAGE: u8 = 64;

/// A service mesh without a cluster, and the tools to look after one.
#[derive(Debug, Parser)]
#[command(
    name = "oxmesh",
    version,
    after_help = "Start here:\n  \
        oxmesh demo                                       a whole mesh on this machine, live\n  \
        oxmesh run --name web --port 8080 -- ./my-app     the same for a program of yours\n  \
        oxmesh check -f manifests/                        what is wrong with a mesh's objects"
)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the bookstore as a whole mesh on this machine, live, until Ctrl-C.
    #[command(after_help = "Examples:\n  \
        oxmesh demo\n  \
        oxmesh demo --data-plane mixed --duration 1m\n  \
        oxmesh demo --once -o json          for scripts: status 0 if the mesh does what it should")]
    Demo(DemoArgs),
    /// Run a program of yours as a pod of a mesh on this machine, with a sidecar.
    #[command(after_help = "Examples:\n  \
        oxmesh run --name web --port 8080 -- ./my-app\n  \
        oxmesh run --name client -- curl http://web:8080/       from a second terminal")]
    Run(RunArgs),
    /// Say what is wrong with a folder of objects: status 0 if nothing, 2 if something is.
    #[command(after_help = "Examples:\n  oxmesh check -f manifests/\n  oxmesh check -f manifests/ -o json")]
    Check(CheckArgs),
    /// Run a command inside of a pod of `oxmesh run` or `oxmesh demo`.
    #[command(after_help = "Example:\n  oxmesh exec default/web -- curl -s http://127.0.0.1:15000/clusters")]
    Exec(ExecArgs),
    /// Run a sidecar: everything behind it goes to oxmesh-proxy, which has Envoy's options.
    #[command(disable_help_flag = true, after_help = "Example:\n  oxmesh proxy -c bootstrap.yaml")]
    Proxy {
        /// Arguments of oxmesh-proxy; --help lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run the control plane: everything behind it goes to oxmesh-controller.
    #[command(disable_help_flag = true, after_help = "Example:\n  oxmesh controller --folder manifests")]
    Controller {
        /// Arguments of oxmesh-controller; --help lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run one of the bookstore's applications.
    #[command(after_help = "Example:\n  oxmesh app bookstore --port 14001 --identity bookstore-v1")]
    App(AppArgs),
    /// Print a script that completes this command line in a shell.
    #[command(after_help = "Example:\n  oxmesh completion bash > /etc/bash_completion.d/oxmesh")]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the version.
    Version,
    /// What oxmesh runs inside of pods.
    #[command(hide = true)]
    Internal {
        #[command(subcommand)]
        command: Internal,
    },
}

#[derive(Debug, Subcommand)]
enum Internal {
    /// Hold a pod's namespaces open.
    Agent(AgentArgs),
}

/// Reads the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    match execute(cli.command) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Verb) -> anyhow::Result<ExitCode> {
    match command {
        Verb::Demo(args) => {
            need_namespaces(None)?;
            block_on(demo::run(args))
        }
        Verb::Run(args) => {
            need_namespaces(Some(&args.folder()))?;
            block_on(run::run(args))
        }
        Verb::Check(args) => check::run(&args),
        Verb::Exec(args) => {
            need_namespaces(Some(&args.folder()))?;
            block_on(run::exec(args))
        }
        Verb::Proxy { args } => exec_sibling("oxmesh-proxy", args),
        Verb::Controller { args } => exec_sibling("oxmesh-controller", args),
        Verb::App(args) => block_on(async { apps::run(args).await.map(|()| ExitCode::SUCCESS) }),
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "oxmesh", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Version => {
            println!("oxmesh {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Verb::Internal { command: Internal::Agent(args) } => {
            block_on(async { Ok(agent::serve(args).await.map(|()| ExitCode::SUCCESS)?) })
        }
    }
}

fn exec_sibling(program: &str, args: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let path = Binaries::beside_self().find(program)?;
    let error = Command::new(&path).args(args).exec();
    Err(anyhow::anyhow!("can't run {}: {error}", path.display()))
}

/// On one thread: children die with the thread that started them, so it must be the main one.
fn block_on(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Goes on as root of namespaces: of the machine's, of the mesh's that runs in `folder`, or of
/// new ones.
fn need_namespaces(folder: Option<&Path>) -> anyhow::Result<()> {
    if privilege::is_root() {
        return Ok(());
    }
    let error = match folder.and_then(Topology::owner) {
        Some(owner) => privilege::enter_user_namespace_of(owner),
        None => privilege::enter_user_namespace(),
    };
    Err(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
