//! The command line: Envoy's flags, as far as they mean something here, and two of our own.

use std::{
    net::SocketAddr,
    num::{NonZeroU16, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use clap::{Parser, ValueEnum};

use crate::logging::{Level, Pattern};

/// A sidecar proxy that reads Envoy's configuration language.
#[derive(Clone, Debug, Parser)]
#[command(name = "oxmesh-proxy", version, about, disable_help_subcommand = true)]
pub struct Args {
    /// Bootstrap file, YAML or JSON
    #[arg(short = 'c', long, value_name = "FILE")]
    pub config_path: Option<PathBuf>,

    /// Bootstrap as YAML, merged over that of --config-path
    #[arg(long, value_name = "YAML")]
    pub config_yaml: Option<String>,

    /// Node id, wins over the bootstrap's
    #[arg(long, value_name = "ID")]
    pub service_node: Option<String>,

    /// Node cluster, wins over the bootstrap's
    #[arg(long, value_name = "NAME")]
    pub service_cluster: Option<String>,

    /// Zone of the node's locality, wins over the bootstrap's
    #[arg(long, value_name = "ZONE")]
    pub service_zone: Option<String>,

    /// Traffic threads; as many as cores may be used (affinity and cgroup quota) by default
    #[arg(long, value_name = "N")]
    pub concurrency: Option<NonZeroUsize>,

    /// trace, debug, info, warning (warn), error, critical or off
    #[arg(short = 'l', long, value_name = "LEVEL", default_value = "info")]
    pub log_level: Level,

    /// Levels of parts: upstream:debug,config:trace
    #[arg(long, value_name = "PART:LEVEL,...", value_delimiter = ',', value_parser = crate::logging::component)]
    pub component_log_level: Vec<(&'static str, Level)>,

    /// File that log lines are appended to; standard error by default
    #[arg(long, value_name = "FILE")]
    pub log_path: Option<PathBuf>,

    /// Layout of log lines: %Y %m %d %T %e %P %t %l %L %n %v %% of Envoy's
    #[arg(long, value_name = "PATTERN", default_value = "[%Y-%m-%d %T.%e][%t][%l][%n] %v")]
    pub log_format: Pattern,

    /// What to do: serve; validate (read all of the configuration, print OK or the fault, exit); init_only; healthcheck
    /// (answer probes of TCP ports and nothing else); await_ready (exit 0 when the proxy beside it is ready,
    /// with words after two minutes)
    #[arg(long, value_name = "MODE", default_value = "serve", requires_if("healthcheck", "healthcheck_address"))]
    pub mode: Mode,

    /// Seconds after which connections of a replaced listener or filter chain are closed
    #[arg(long = "drain-time-s", value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    pub drain_time: Duration,

    /// gradual or immediate; both begin at once here, every connection is told at its next answer
    #[arg(long, value_name = "STRATEGY", default_value = "gradual")]
    pub drain_strategy: DrainStrategy,

    /// Seconds (or a duration such as 1500ms) that open requests get to finish after SIGTERM; 0 ends them at once, as
    /// Envoy does
    #[arg(long, value_name = "DURATION", default_value = "5", value_parser = duration)]
    pub shutdown_grace: Duration,

    /// Seconds (or a duration) after SIGTERM in which it serves as before, for a sidecar that is told to end together with
    /// its application; /quitquitquit and a second signal end them
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = duration)]
    pub shutdown_delay: Duration,

    /// File that the admin interface's address is written to
    #[arg(long, value_name = "FILE")]
    pub admin_address_path: Option<PathBuf>,

    /// v4 or v6; only the default, v4, is supported
    #[arg(long, value_name = "VERSION", default_value = "v4")]
    pub local_address_ip_version: IpVersion,

    /// SO_MARK of all upstream sockets, so that redirection rules can tell them; needs CAP_NET_ADMIN
    #[arg(long, value_name = "MARK")]
    pub upstream_mark: Option<u32>,

    /// Where kubelet asks whether a port of the application takes connections (GET /osm-healthcheck)
    #[arg(long, value_name = "ADDRESS", requires = "healthcheck_ports")]
    pub healthcheck_address: Option<SocketAddr>,

    /// The ports that may be asked about
    #[arg(long, value_name = "PORTS", value_delimiter = ',', requires = "healthcheck_address")]
    pub healthcheck_ports: Vec<NonZeroU16>,

    /// Server that signs this pod's certificates, https://HOST:PORT; its roots (PEM) are in OXMESH_TRUST_BUNDLE
    #[arg(long, value_name = "URL", requires = "identity_token", requires = "identity_dir")]
    pub identity_server: Option<String>,

    /// Name that the signing server's certificate must have, and the control plane's; the host of --identity-server by
    /// default
    #[arg(long, value_name = "NAME", requires = "identity_server")]
    pub identity_server_name: Option<String>,

    /// File with the pod's service account token for --identity-server
    #[arg(long, value_name = "FILE", requires = "identity_server")]
    pub identity_token: Option<PathBuf>,

    /// Directory that the pod's key and certificates are kept in, and the SDS files that name them
    #[arg(long, value_name = "DIR", requires = "identity_server")]
    pub identity_dir: Option<PathBuf>,

    /// Unknown fields in the bootstrap are warnings, not errors
    #[arg(long)]
    pub allow_unknown_static_fields: bool,

    /// The same, by its old name
    #[arg(long, hide = true)]
    pub allow_unknown_fields: bool,

    /// Resources of the control plane that have unknown fields are refused
    #[arg(long)]
    pub reject_unknown_dynamic_fields: bool,

    /// Unknown fields in resources of the control plane are not even counted
    #[arg(long, conflicts_with = "reject_unknown_dynamic_fields")]
    pub ignore_unknown_dynamic_fields: bool,

    /// Milliseconds between writes of access logs; accepted, lines are written as soon as the disk takes them
    #[arg(long, value_name = "MS", default_value = "10000")]
    pub file_flush_interval_msec: u64,

    /// Threads by the CPU affinity; the default here anyway
    #[arg(long)]
    pub cpuset_threads: bool,

    /// Accepted: there is no hot restart
    #[arg(long)]
    pub disable_hot_restart: bool,

    /// Accepted: there is no hot restart
    #[arg(long, value_name = "N", default_value = "0")]
    pub base_id: u32,

    /// Accepted: there is no hot restart
    #[arg(long)]
    pub use_dynamic_base_id: bool,

    /// Accepted: there is no hot restart
    #[arg(long, value_name = "SECONDS", default_value = "900")]
    pub parent_shutdown_time_s: u64,

    /// Only 0: there is no hot restart
    #[arg(long, value_name = "N", default_value = "0", value_parser = epoch)]
    pub restart_epoch: u32,
}

/// `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Runs.
    Serve,
    /// Reads all of the configuration and says whether it is good.
    Validate,
    /// The same, and goes through the start without serving.
    #[value(name = "init_only", alias = "init-only")]
    InitOnly,
    /// Answers probes of TCP ports, beside a proxy that can't.
    Healthcheck,
    /// Waits for the proxy on this machine; its admin interface must be on 127.0.0.1:15000.
    #[value(name = "await_ready", alias = "await-ready")]
    AwaitReady,
}

/// `--drain-strategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DrainStrategy {
    /// Envoy's default.
    Gradual,
    /// Every answer from now on.
    Immediate,
}

/// `--local-address-ip-version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IpVersion {
    /// IPv4.
    V4,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).map_err(|_| format!("{text:?} is no number of seconds"))
}

fn duration(text: &str) -> Result<Duration, String> {
    seconds(text)
        .or_else(|_| humantime::parse_duration(text))
        .map_err(|_| format!("{text:?} is no duration (5, 5s, 1500ms)"))
}

fn epoch(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) => Ok(0),
        Ok(_) => Err("there is no hot restart: start the new process beside the old one, then end that".to_owned()),
        Err(_) => Err(format!("{text:?} is no number")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::{Args, Mode};

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("oxmesh-proxy").chain(line.split_whitespace()))
    }

    #[test]
    fn the_flags_that_injectors_pass_are_taken() {
        let args = parse(
            "--log-level debug --config-path /etc/envoy/bootstrap.yaml --service-cluster bookbuyer.bookbuyer \
             --concurrency 2 --drain-time-s 45 --parent-shutdown-time-s 60 --local-address-ip-version v4 \
             --file-flush-interval-msec 1000 --disable-hot-restart --component-log-level upstream:trace,config:off",
        )
        .unwrap();
        assert_eq!((args.mode, args.concurrency.unwrap().get()), (Mode::Serve, 2));
        assert_eq!(args.drain_time, Duration::from_secs(45));
        assert_eq!(args.component_log_level.len(), 2);
        let short = parse("-c x.yaml -l warning --mode init_only --shutdown-grace 1500ms --shutdown-delay 8").unwrap();
        assert_eq!((short.mode, short.shutdown_grace), (Mode::InitOnly, Duration::from_millis(1500)));
        assert_eq!((short.shutdown_delay, args.shutdown_delay), (Duration::from_secs(8), Duration::ZERO));
    }

    #[test]
    fn what_can_not_be_honoured_is_refused() {
        for line in [
            "--restart-epoch 1",
            "--concurrency 0",
            "--log-level loud",
            "--component-log-level wasm:debug",
            "--log-format %q",
            "--drain-time-s soon",
            "--hot-restart-version",
            "--local-address-ip-version v6",
            "--mode healthcheck",
            "--healthcheck-address 127.0.0.1:1",
            "--healthcheck-address 127.0.0.1:1 --healthcheck-ports 0",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
