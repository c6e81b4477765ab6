//! The first process of each pod's namespaces: holds them open, and dials into them.
//!
//! In the pod it mounts the pod's hosts file and the programs, then waits on a Unix socket. A
//! client outside sends a line with an address; the agent connects to it from inside the pod and
//! copies both ways. When its standard input ends, or its parent dies, it ends, and with it (it
//! is process 1 there) everything in the pod.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rustix::process::{WaitOptions, wait};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::process::is_alive;

/// Name of the socket in the pod's folder.
pub const SOCKET: &str = "agent.sock";
/// Name of the file with the agent's id, as seen from outside, in the pod's folder.
pub(crate) const HOLDER: &str = "agent.pid";
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What the agent prepares.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The pod's folder; the socket is made in it.
    #[arg(long)]
    folder: PathBuf,
    /// `SOURCE=TARGET`: makes the file SOURCE appear at TARGET.
    #[arg(long)]
    bind: Vec<String>,
    /// `KEY=VALUE`: a setting under /proc/sys, written if the system allows it.
    #[arg(long)]
    sysctl: Vec<String>,
}

/// Runs the agent until its standard input ends.
///
/// # Errors
/// When a mount or the socket fails; the words go to the log of the pod.
pub async fn serve(args: AgentArgs) -> io::Result<()> {
    for bind in &args.bind {
        let (source, target) = bind.split_once('=').unwrap_or((bind, bind));
        rustix::mount::mount_bind(source, target)
            .map_err(|error| io::Error::other(format!("mount {source} on {target}: {error}")))?;
    }
    for sysctl in &args.sysctl {
        let (key, value) = sysctl.split_once('=').unwrap_or((sysctl, ""));
        if let Err(error) = std::fs::write(Path::new("/proc/sys").join(key), value) {
            eprintln!("setting {key} to {value}: {error}");
        }
    }
    // A relative name: the whole path can be longer than a socket's address holds.
    std::env::set_current_dir(&args.folder)?;
    let _ = std::fs::remove_file(SOCKET);
    let listener = UnixListener::bind(SOCKET)?;
    std::fs::set_permissions(SOCKET, std::fs::Permissions::from_mode(0o600))?;
    println!("ready");
    let mut children = signal(SignalKind::child())?;
    let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
    let mut stdin = pipe::Receiver::from_owned_fd(stdin)?;
    let mut byte = [0];
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted?;
                tokio::spawn(serve_client(client));
            }
            _ = children.recv() => reap(),
            _ = stdin.read(&mut byte) => return Ok(()),
        }
    }
}

/// Collects orphans of the pod, which become children of its first process.
fn reap() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

async fn serve_client(client: UnixStream) {
    let mut client = BufReader::new(client);
    let mut target = String::new();
    if client.read_line(&mut target).await.is_err() {
        return;
    }
    let connected = match timeout(CONNECT_LIMIT, TcpStream::connect(target.trim())).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    // The other side may have gone meanwhile: then there is nobody to tell.
    match connected {
        Ok(mut server) => {
            if client.write_all(b"ok\n").await.is_ok() {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        }
        Err(error) => {
            let _ = client.write_all(format!("{error}\n").as_bytes()).await;
        }
    }
}

/// Id of the agent that runs in a pod's folder, if one does.
#[must_use]
pub fn holder(folder: &Path) -> Option<u32> {
    let pid = std::fs::read_to_string(folder.join(HOLDER)).ok()?.parse().ok()?;
    is_alive(pid).then_some(pid)
}

/// Connects to `target` (`address:port`) from inside the pod whose folder this is.
///
/// # Errors
/// The agent's own words when it can't connect.
pub async fn dial(folder: &Path, target: &str) -> io::Result<UnixStream> {
    let mut stream = connect(folder).await?;
    stream.write_all(format!("{target}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the line belongs to the caller.
    while answer.last() != Some(&b'\n') && answer.len() < 1024 {
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    match answer.as_slice() {
        b"ok\n" => Ok(stream),
        other => Err(io::Error::other(String::from_utf8_lossy(other).trim().to_owned())),
    }
}

async fn connect(folder: &Path) -> io::Result<UnixStream> {
    use std::os::fd::AsRawFd as _;
    // By the open folder: the whole path can be longer than a socket's address holds.
    let folder = std::fs::File::open(folder)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    UnixStream::connect(path).await
}
