//! Programs the rules with `iptables-restore` from PATH and reads them back.
//!
//! One transaction per family: either all of its rules stand afterwards or none of them changed.
//! IPv6 is never left open in silence: it is programmed, or absent, or the operator asked for it.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use thiserror::Error;

use crate::options::{Ipv6Mode, Options};
use crate::rules::{Family, render_over};
use crate::saved::Table;

/// Why a family could not be programmed.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The tool is not there or can't be started.
    #[error("{family}: can't run `{command}`: {error} (install the package iptables, or set PATH to where it is)")]
    Spawn {
        /// Family that was to be programmed.
        family: Family,
        /// Command with its arguments.
        command: String,
        /// The system's error.
        error: std::io::Error,
    },
    /// The tool refused.
    #[error("{family}: `{command}` failed with {status}: {stderr}\n{hint}")]
    Refused {
        /// Family that was to be programmed.
        family: Family,
        /// Command with its arguments.
        command: String,
        /// Exit status in words.
        status: String,
        /// What the tool wrote to standard error.
        stderr: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The tool reported success, but the rules are not there.
    #[error(
        "{family}: the rules were accepted but are not in force: {differences} (does another program manage this namespace's nat table?)"
    )]
    NotInForce {
        /// Family that was programmed.
        family: Family,
        /// What is missing or too much.
        differences: String,
    },
}

/// What became of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// This many rules stand and were read back.
    InForce(usize),
    /// The namespace has no such family; the reason in words.
    Absent(String),
    /// Asked for with `--ipv6 off`, though the namespace has IPv6 addresses.
    LeftOpen,
}

/// Programs both families in turn.
///
/// # Errors
/// [`ApplyError`] for the first family that can't be programmed. The pod must not start then.
pub fn apply(options: &Options) -> Result<Vec<(Family, Outcome)>, ApplyError> {
    let v4 = program(options, Family::V4)?;
    Ok(vec![(Family::V4, v4), (Family::V6, apply_v6(options)?)])
}

fn apply_v6(options: &Options) -> Result<Outcome, ApplyError> {
    let addresses = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let has_address = !addresses.trim().is_empty();
    match options.ipv6 {
        Ipv6Mode::Off if has_address => Ok(Outcome::LeftOpen),
        Ipv6Mode::Off => Ok(Outcome::Absent("turned off by --ipv6 off, and no interface has an IPv6 address".into())),
        Ipv6Mode::On => program(options, Family::V6),
        Ipv6Mode::Auto if has_address => program(options, Family::V6),
        // No address yet, but one may still come: program what can be programmed.
        Ipv6Mode::Auto => match save(Family::V6) {
            Ok(_) => program(options, Family::V6),
            Err(error) => Ok(Outcome::Absent(format!(
                "no interface has an IPv6 address, and the kernel has no IPv6 nat table ({error})"
            ))),
        },
    }
}

fn program(options: &Options, family: Family) -> Result<Outcome, ApplyError> {
    let stale = Table::parse(&save(family)?).jumps_to_ours();
    let rules = render_over(options, family, &stale);
    let command = match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    };
    // -w waits for another program that holds the tables' lock.
    run(family, command, &["--noflush", "-w"], &rules)?;
    let wanted = Table::parse(&rules);
    let differences = wanted.missing_from(&Table::parse(&save(family)?));
    if !differences.is_empty() {
        return Err(ApplyError::NotInForce { family, differences: differences.join("; ") });
    }
    Ok(Outcome::InForce(rules.lines().filter(|line| line.starts_with("-A ")).count()))
}

fn save(family: Family) -> Result<String, ApplyError> {
    let command = match family {
        Family::V4 => "iptables-save",
        Family::V6 => "ip6tables-save",
    };
    run(family, command, &["-t", "nat"], "")
}

fn run(family: Family, program: &str, args: &[&str], stdin: &str) -> Result<String, ApplyError> {
    let command = format!("{program} {}", args.join(" "));
    let spawn_error = |error| ApplyError::Spawn { family, command: command.clone(), error };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(spawn_error)?;
    if let Some(mut pipe) = child.stdin.take() {
        // A tool that ends without reading says why on its standard error, which tells more than
        // the broken pipe does. The rules are far smaller than a pipe's buffer.
        let _ = pipe.write_all(stdin.as_bytes());
    }
    let output = child.wait_with_output().map_err(spawn_error)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ApplyError::Refused { family, command, status: output.status.to_string(), hint: hint(family, &stderr), stderr })
}

fn hint(family: Family, stderr: &str) -> &'static str {
    let stderr = stderr.to_ascii_lowercase();
    if stderr.contains("permission denied") || stderr.contains("not permitted") {
        "run it as root with the capability NET_ADMIN (init container: securityContext.capabilities.add [NET_ADMIN], runAsUser 0)"
    } else if stderr.contains("t initialize")
        || stderr.contains("cannot initialize")
        || stderr.contains("does not exist")
        || stderr.contains("no such file")
    {
        match family {
            Family::V4 => {
                "the kernel lacks the nat table of this iptables: load ip_tables and iptable_nat (legacy) or nf_tables and nft_chain_nat (nft) on the node, or install the other variant"
            }
            Family::V6 => {
                "the kernel lacks the IPv6 nat table: load ip6_tables and ip6table_nat (legacy) or nf_tables and nft_chain_nat (nft) on the node, or turn IPv6 off for the pod (sysctl net.ipv6.conf.all.disable_ipv6=1) and give --ipv6 off"
            }
        }
    } else {
        "the extensions owner (or mark), multiport and REDIRECT are needed: load xt_owner, xt_mark, xt_multiport and xt_REDIRECT on the node"
    }
}
