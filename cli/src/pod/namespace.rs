//! One set of namespaces (network, mounts, processes), and ways to run things in it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::process::{self, Process};
use super::{PodError, agent};

const START_LIMIT: Duration = Duration::from_secs(10);
const HTTP_LIMIT: Duration = Duration::from_secs(5);

/// Who runs a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Root of the namespaces.
    Root,
    /// Root's id without its powers, but for low ports: an application where there is one id.
    Powerless,
    /// A user id, with the same group id.
    Id(u32),
}

/// A set of namespaces, held by an agent.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    folder: PathBuf,
    holder: u32,
    // `unshare`, the agent's parent. `None`: another process's.
    keeper: Option<Child>,
}

impl Drop for Namespace {
    /// Ends the agent, and with it all that is inside. Waits for `unshare` to collect it.
    fn drop(&mut self) {
        let Some(keeper) = &self.keeper else { return };
        let pid = |id: u32| Pid::from_raw(id.cast_signed());
        if let Some(holder) = pid(self.holder)
            && kill_process(holder, Signal::KILL).is_ok()
            && let Some(keeper) = keeper.id().and_then(pid)
        {
            // Already gone is as good.
            let _ = waitpid(Some(keeper), WaitOptions::empty());
        }
    }
}

/// What a namespace starts with.
pub(crate) struct Setup<'a> {
    pub name: &'a str,
    pub folder: &'a Path,
    pub oxmesh: &'a Path,
    pub binds: &'a [(PathBuf, PathBuf)],
    pub sysctls: &'a [&'a str],
}

impl Namespace {
    pub(crate) async fn create(setup: Setup<'_>) -> Result<Self, PodError> {
        let Setup { name, folder, oxmesh, binds, sysctls } = setup;
        let log = folder.join("agent.log");
        let errors = std::fs::File::create(&log).map_err(PodError::file("create", &log))?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--"])
            .arg(oxmesh)
            .args(["internal", "agent", "--folder"])
            .arg(folder);
        for (source, target) in binds {
            let mut bind = OsString::from("--bind=");
            bind.push(source);
            bind.push("=");
            bind.push(target);
            command.arg(bind);
        }
        command
            .args(sysctls.iter().map(|setting| format!("--sysctl={setting}")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(true);
        let mut keeper = command.spawn().map_err(|e| process::tools_missing(&command, e))?;
        let failed = || PodError::Namespace { name: name.to_owned(), reason: process::tail(&log, 3) };
        let stdout = keeper.stdout.take().ok_or_else(failed)?;
        let first = timeout(START_LIMIT, BufReader::new(stdout).lines().next_line()).await;
        let ready = matches!(first, Ok(Ok(Some(line))) if line == "ready");
        let holder = keeper.id().and_then(process::child_of).filter(|_| ready);
        let holder = holder.ok_or_else(failed)?;
        let file = folder.join(agent::HOLDER);
        std::fs::write(&file, holder.to_string()).map_err(PodError::file("write", &file))?;
        Ok(Self { name: name.to_owned(), folder: folder.to_owned(), holder, keeper: Some(keeper) })
    }

    /// Namespaces that another process made, by the id of the agent in them.
    #[must_use]
    pub fn existing(name: &str, folder: PathBuf, holder: u32) -> Self {
        Self { name: name.to_owned(), folder, holder, keeper: None }
    }

    /// Its name for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder, with logs and the agent's socket.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Id of the process that holds it, for `nsenter -t`.
    #[must_use]
    pub fn holder(&self) -> u32 {
        self.holder
    }

    /// A command that runs `program` inside. It dies with this process. Its working folder is /.
    pub fn command(&self, user: User, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "nsenter", "--target"])
            .arg(self.holder.to_string())
            .args(["--net", "--mount", "--pid", "--"]);
        match user {
            User::Root => {}
            User::Powerless => {
                let keep = "--bounding-set=-all,+net_bind_service";
                command.args(["setpriv", "--no-new-privs", keep, "--"]);
            }
            User::Id(id) => {
                let (uid, gid) = (format!("--reuid={id}"), format!("--regid={id}"));
                command.args(["setpriv", &uid, &gid, "--clear-groups", "--no-new-privs", "--"]);
            }
        }
        command.arg(program).kill_on_drop(true);
        command
    }

    /// Runs a command inside to its end and gives its standard output.
    ///
    /// # Errors
    /// [`PodError::Command`] when it fails, with its standard error.
    pub async fn exec<S: AsRef<OsStr>>(&self, user: User, argv: &[S]) -> Result<String, PodError> {
        self.exec_with(user, argv, "").await
    }

    pub(crate) async fn exec_with<S: AsRef<OsStr>>(
        &self,
        user: User,
        argv: &[S],
        stdin: &str,
    ) -> Result<String, PodError> {
        let (program, args) = argv.split_first().expect("a command has a program");
        let mut command = self.command(user, program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| process::tools_missing(&command, e))?;
        if let Some(mut pipe) = child.stdin.take() {
            // One that ends without reading says why on its standard error.
            let _ = pipe.write_all(stdin.as_bytes()).await;
        }
        let output = child.wait_with_output().await.map_err(|e| process::tools_missing(&command, e))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words: Vec<_> = argv.iter().map(|word| word.as_ref().to_string_lossy()).collect();
        Err(PodError::Command {
            command: format!("{} (in {})", words.join(" "), self.name),
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// Starts a command made by [`Namespace::command`], with its output in `<name>.log`.
    ///
    /// # Errors
    /// [`PodError::Spawn`], [`PodError::File`].
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process, PodError> {
        let log = self.folder.join(format!("{name}.log"));
        Process::spawn(&format!("{} of {}", name, self.name), command, log)
    }

    /// Starts a command made by [`Namespace::command`] on this process's own terminal: it reads,
    /// prints, and gets Ctrl-C.
    ///
    /// # Errors
    /// [`PodError::Spawn`].
    pub fn spawn_attached(&self, name: &str, command: Command) -> Result<Process, PodError> {
        Process::attached(&format!("{} of {}", name, self.name), command)
    }

    /// Connects to an address (`127.0.0.1:15000`) from inside.
    ///
    /// # Errors
    /// [`PodError::Unreachable`].
    pub async fn dial(&self, target: &str) -> Result<UnixStream, PodError> {
        agent::dial(&self.folder, target).await.map_err(|error| self.unreachable(target, &error))
    }

    /// `GET http://<target><path>` from inside, with a limit of 5 s.
    ///
    /// # Errors
    /// [`PodError::Unreachable`] when there is no whole answer.
    pub async fn http_get(&self, target: &str, path: &str) -> Result<(StatusCode, Bytes), PodError> {
        let exchange = async {
            let stream = self.dial(target).await?;
            get(stream, target, path).await.map_err(|error| self.unreachable(target, &error))
        };
        timeout(HTTP_LIMIT, exchange)
            .await
            .unwrap_or_else(|_| Err(self.unreachable(target, &format!("no answer within {HTTP_LIMIT:?}"))))
    }

    fn unreachable(&self, target: &str, reason: &dyn std::fmt::Display) -> PodError {
        PodError::Unreachable { name: self.name.clone(), target: target.to_owned(), reason: reason.to_string() }
    }
}

async fn get(stream: UnixStream, host: &str, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer's last byte, or with an error that the request sees as well.
    let connection = tokio::spawn(connection);
    let request = http::Request::get(path)
        .header(http::header::HOST, host)
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok((status, body))
}
