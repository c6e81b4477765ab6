//! Root, or a user namespace that makes the caller root over namespaces of its own.
//!
//! Redirection must tell the sidecar's connections from the application's. With many user ids
//! at hand (root, or subordinate ids mapped by `newuidmap`) it tells by user id, as in a cluster.
//! With a single id it tells by a socket mark, which takes a capability that applications lose.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use super::PodError;

/// User id of sidecars, as in a cluster.
pub const PROXY_UID: u32 = 1500;
/// User id of the demo's applications.
pub const APP_UID: u32 = 1501;
/// Socket mark of sidecars where user ids can't tell.
pub const PROXY_MARK: u32 = 1500;

/// How the sidecar's own connections are told from the application's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exempt {
    /// By user id [`PROXY_UID`].
    Uid,
    /// By socket mark [`PROXY_MARK`]; everything runs under one user id.
    Mark,
}

impl Exempt {
    /// The way that the caller's user ids allow.
    #[must_use]
    pub fn detect() -> Self {
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        if maps(&map, PROXY_UID) && maps(&map, APP_UID) { Self::Uid } else { Self::Mark }
    }

    /// For the operator: what was chosen.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Uid => "sidecars run as user id 1500",
            Self::Mark => {
                "one user id alone: sidecars are told by socket mark 1500 (for user ids of their own: root, or newuidmap and an entry in /etc/subuid)"
            }
        }
    }
}

/// Whether the caller may make namespaces and program them.
#[must_use]
pub fn is_root() -> bool {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    rustix::process::geteuid().is_root() && effective & NET_ADMIN != 0 && effective & SYS_ADMIN != 0
}

/// Runs this program again, with the same arguments, as root of a new user namespace. Returns
/// only when that fails.
#[must_use]
pub fn enter_user_namespace() -> PodError {
    let attempts: [&[&str]; 2] = [&["--user", "--map-root-user", "--map-auto"], &["--user", "--map-root-user"]];
    let mut reason = String::new();
    for flags in attempts {
        let probe =
            Command::new("unshare").args(flags).args(["--net", "--mount", "true"]).stdin(Stdio::null()).output();
        match probe {
            Ok(output) if output.status.success() => return exec_self(flags),
            Ok(output) => reason = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => {
                return PodError::Spawn { program: "unshare".into(), error, hint: "install util-linux".into() };
            }
        }
    }
    PodError::Namespace { name: "a user without root".into(), reason }
}

/// Runs this program again, with the same arguments, inside the user namespace of `process`,
/// which runs a mesh of the same user. Returns only when that fails.
#[must_use]
pub fn enter_user_namespace_of(process: u32) -> PodError {
    let program = match this_program() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let error = Command::new("nsenter")
        .args(["--user", "--mount", "--preserve-credentials", "--wd=.", "--target"])
        .arg(process.to_string())
        .arg("--")
        .arg(program)
        .args(std::env::args_os().skip(1))
        .exec();
    PodError::Spawn { program: "nsenter".into(), error, hint: "install util-linux".into() }
}

fn this_program() -> Result<std::path::PathBuf, PodError> {
    std::env::current_exe().map_err(PodError::file("find", "/proc/self/exe"))
}

fn exec_self(flags: &[&str]) -> PodError {
    let program = match this_program() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let error = Command::new("unshare")
        .args(flags)
        .args(["--mount", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .exec();
    PodError::Spawn { program: "unshare".into(), error, hint: "install util-linux".into() }
}

/// Whether a `uid_map` maps the inner id.
fn maps(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) = (numbers.next(), numbers.next(), numbers.next()) else {
            return false;
        };
        (first..first + count).contains(&u64::from(id))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_mapped_when_a_line_covers_it() {
        let cases = [
            ("         0          0 4294967295\n", true),
            ("0 1000 1\n", false),
            ("0 1000 1\n1 100000 65535\n", true),
            ("0 1000 1\n1501 100000 10\n", false),
            ("", false),
        ];
        for (map, mapped) in cases {
            assert_eq!(maps(map, 1500), mapped, "{map:?}");
        }
    }
}
