//! The command line: what there is, its help, and its exit statuses.
//!
//! Exit status of every command: 0 ok, 1 failed, 2 findings (`check -f`), 64 wrong usage.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::apps::{self, AppArgs};
use crate::check::{self, CheckArgs};
use crate::cluster::install::{self, InstallArgs};
use crate::cluster::mesh::{self, MeshArgs};
use crate::cluster::metrics::{self, MetricsArgs};
use crate::cluster::namespace::{self, NamespaceArgs};
use crate::cluster::proxy::{self, ProxyCommand};
use crate::cluster::top::{self, TopArgs};
use crate::cluster::uninstall::{self, UninstallArgs};
use crate::cluster::version::{self, VersionArgs};
use crate::demo::{self, DemoArgs};
use crate::pod::agent::{self, AgentArgs};
use crate::pod::{Binaries, Topology, privilege};
use crate::run::{self, ExecArgs, RunArgs};

const USAGE: u8 = 64;

/// A service mesh, on Kubernetes or on this machine alone, and the tools to look after one.
#[derive(Debug, Parser)]
#[command(
    name = "oxmesh",
    version,
    after_help = "Start here:\n  \
        oxmesh demo                                       a whole mesh on this machine, live\n  \
        oxmesh run --name web --port 8080 -- ./my-app     the same for a program of yours\n  \
        oxmesh install                                    a mesh for a Kubernetes cluster\n  \
        oxmesh top -A                                     who calls whom there, live\n  \
        oxmesh check                                      what is wrong with it\n  \
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
    /// Install a mesh into a Kubernetes cluster.
    #[command(after_help = "Examples:\n  \
        oxmesh install\n  \
        oxmesh install --set osm.enablePermissiveTrafficPolicy=false --set osm.osmController.replicaCount=2\n  \
        oxmesh install --dry-run > mesh.yaml               the objects, for those who apply them by other means")]
    Install(InstallArgs),
    /// Remove a mesh from a Kubernetes cluster.
    Uninstall(UninstallArgs),
    /// Say which namespaces of a cluster belong to a mesh.
    Namespace(NamespaceArgs),
    /// List the meshes of a cluster.
    Mesh(MeshArgs),
    /// Let Prometheus read the sidecars of namespaces, or not.
    Metrics(MetricsArgs),
    /// Say what is wrong with the mesh in a cluster (status 0 or 1), or with a folder of objects (0 or 2).
    #[command(after_help = "Examples:\n  \
        oxmesh check                        before the installation what it needs, after it whether all is well\n  \
        oxmesh check -o short               only what isn't\n  \
        oxmesh check -f manifests/ -o json  a folder, without a cluster")]
    Check(CheckArgs),
    /// Show who calls whom on a cluster, live, as the sidecars count it.
    #[command(after_help = "Examples:\n  \
        oxmesh top -A                       all callers, until Ctrl-C\n  \
        oxmesh top -n shop --once -o json   five seconds of one namespace's, for scripts")]
    Top(TopArgs),
    /// Run a command inside of a pod of `oxmesh run` or `oxmesh demo`.
    #[command(after_help = "Example:\n  oxmesh exec default/web -- curl -s http://127.0.0.1:15000/clusters")]
    Exec(ExecArgs),
    /// Ask a pod's sidecar (proxy get), or run one: options go to oxmesh-proxy, which has Envoy's.
    #[command(
        disable_help_flag = true,
        disable_help_subcommand = true,
        args_conflicts_with_subcommands = true,
        after_help = "Examples:\n  \
        oxmesh proxy get clusters deploy/bookbuyer -n bookbuyer\n  \
        oxmesh proxy -c bootstrap.yaml"
    )]
    Proxy {
        #[command(subcommand)]
        command: Option<ProxyCommand>,
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
    /// Print the version of this program, and of the meshes in the cluster if there is one.
    Version(VersionArgs),
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
        Verb::Install(args) => block_on(install::run(args)),
        Verb::Uninstall(args) => block_on(uninstall::run(args)),
        Verb::Namespace(args) => block_on(namespace::run(args)),
        Verb::Mesh(args) => block_on(mesh::run(args)),
        Verb::Metrics(args) => block_on(metrics::run(args)),
        Verb::Check(args) => block_on(check::run(&args)),
        Verb::Top(args) => block_on(top::run(args)),
        Verb::Exec(args) => {
            need_namespaces(Some(&args.folder()))?;
            block_on(run::exec(args))
        }
        Verb::Proxy { command: Some(command), .. } => block_on(proxy::run(command)),
        Verb::Proxy { command: None, args } => exec_sibling("oxmesh-proxy", args),
        Verb::Controller { args } => exec_sibling("oxmesh-controller", args),
        Verb::App(args) => block_on(async { apps::run(args).await.map(|()| ExitCode::SUCCESS) }),
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "oxmesh", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Version(args) => block_on(version::run(args)),
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

    #[test]
    fn proxy_get_asks_a_sidecar_and_every_other_proxy_runs_one() {
        let verb = |words: &str| Cli::try_parse_from(words.split(' ')).unwrap().command;
        let get = verb("oxmesh proxy get clusters deploy/web -n shop --context x");
        assert!(matches!(get, Verb::Proxy { command: Some(ProxyCommand::Get(_)), .. }), "{get:?}");
        for (words, first) in [("oxmesh proxy -c b.yaml", "-c"), ("oxmesh proxy --help", "--help")] {
            let Verb::Proxy { command: None, args } = verb(words) else { panic!("{words}") };
            assert_eq!(args[0], first, "{words}");
        }
    }

    #[test]
    fn options_of_the_cluster_may_stand_before_or_after_the_second_word() {
        for words in [
            "oxmesh namespace add shop --mesh-name two --kubeconfig k",
            "oxmesh namespace --mesh-name two --kubeconfig k add shop",
            "oxmesh uninstall mesh -f -a --delete-namespace --mesh-name two --ca-bundle-secret-name x -p 8000",
            "oxmesh install --enforce-single-mesh=false --timeout 90s --atomic --set a=b --set c=d --osm-chart-path .",
            "oxmesh metrics enable --namespace a,b",
            "oxmesh version --client-only",
        ] {
            Cli::try_parse_from(words.split(' ')).unwrap_or_else(|error| panic!("{words}: {error}"));
        }
    }
}
