//! A process in a pod: its log, its signals, its end.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::PodError;

/// A running process in a pod. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Option<PathBuf>,
}

impl Process {
    /// Starts a command made by [`super::Namespace::command`], with its output in `log`.
    ///
    /// # Errors
    /// [`PodError::Spawn`], [`PodError::File`].
    pub(crate) fn spawn(name: &str, mut command: Command, log: PathBuf) -> Result<Self, PodError> {
        let file = File::create(&log).map_err(PodError::file("create", &log))?;
        let errors = file.try_clone().map_err(PodError::file("open", &log))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            // Ctrl-C is for this process, which then ends its children in order.
            .process_group(0)
            .spawn()
            .map_err(|error| tools_missing(&command, error))?;
        Ok(Self { name: name.to_owned(), child, log: Some(log) })
    }

    pub(crate) fn attached(name: &str, mut command: Command) -> Result<Self, PodError> {
        let child = command.spawn().map_err(|error| tools_missing(&command, error))?;
        Ok(Self { name: name.to_owned(), child, log: None })
    }

    /// Its name for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds what it printed, unless it prints to the terminal.
    #[must_use]
    pub fn log(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    /// Its id as seen from here, once it has started.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        child_of(self.child.id()?)
    }

    /// Sends a signal; `false` when there is nobody to take it.
    pub fn signal(&self, signal: Signal) -> bool {
        let pid = self.pid().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The system's, when the process can't be waited for.
    pub async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks it to end (SIGTERM), and kills it after `grace`.
    pub async fn stop(&mut self, grace: Duration) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        if let Ok(status) = timeout(grace, self.child.wait()).await {
            return status.ok();
        }
        self.signal(Signal::KILL);
        self.child.wait().await.ok()
    }

    /// The last lines that it printed, at most 8 KiB.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        self.log.as_deref().map_or_else(String::new, |log| tail(log, lines))
    }

    /// An error that names the process, how it ended and its last words.
    #[must_use]
    pub fn failure(&self, status: ExitStatus) -> PodError {
        PodError::Command {
            command: self.name.clone(),
            status: status.to_string(),
            stderr: match &self.log {
                Some(log) => format!("{} (log: {})", self.log_tail(5), log.display()),
                None => "see above".to_owned(),
            },
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::KILL);
        }
    }
}

/// Polls `probe` every 20 ms until it gives a value; the error of the last try tells why not.
///
/// # Errors
/// [`PodError::Timeout`] after `limit`.
pub async fn until<T, E, F>(what: &str, limit: Duration, mut probe: F) -> Result<T, PodError>
where
    E: std::fmt::Display,
    F: AsyncFnMut() -> Result<T, E>,
{
    let deadline = Instant::now() + limit;
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(PodError::Timeout { what: what.to_owned(), limit, detail: format!(": {error}") });
            }
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

pub(crate) fn tools_missing(command: &Command, error: std::io::Error) -> PodError {
    PodError::Spawn {
        program: command.as_std().get_program().to_string_lossy().into_owned(),
        error,
        hint: "install util-linux and iproute2".into(),
    }
}

/// Whether a process runs: there, and no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; state and parent follow it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// The first child of a process. `nsenter` and `unshare` have exactly one.
pub(crate) fn child_of(parent: u32) -> Option<u32> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid| stat(*pid).is_some_and(|(_, of)| of == parent))
}

pub(crate) fn tail(log: &Path, lines: usize) -> String {
    const MOST: u64 = 8 << 10;
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MOST)))?;
        let mut bytes = Vec::new();
        file.take(MOST).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
