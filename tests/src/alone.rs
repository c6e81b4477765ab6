//! One data plane on loopback with a bootstrap file: no control plane, no namespaces, no root.

use std::{
    fs::{self, File},
    ops::Range,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use oxmesh::pod::{Binaries, DataPlane};
use oxmesh_controller::identity::{Ca, LeafRequest};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use crate::{
    eventually,
    mesh::{project, tools},
};

const START_LIMIT: Duration = Duration::from_secs(30);

/// A running proxy, killed when dropped.
pub struct Alone {
    folder: TempDir,
    child: Child,
    admin: u16,
}

impl Alone {
    /// Starts a data plane with a bootstrap of `tests/data`, in which `{{name}}` stands for a value. `{{dir}}` (a folder
    /// with `ca.pem`, and `a` and `b` as `.pem` and `.key`) and `{{admin}}` are filled in here.
    ///
    /// # Errors
    /// When it isn't ready within half a minute; with its log.
    pub async fn start(plane: DataPlane, bootstrap: &str, values: &[(&str, u16)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let dir = folder.path();
        certificates(dir)?;
        let [admin] = free_ports()?;
        let mut text = fs::read_to_string(project().join("tests/data").join(bootstrap))?
            .replace("{{dir}}", &dir.display().to_string())
            .replace("{{admin}}", &admin.to_string());
        for (name, value) in values {
            text = text.replace(&format!("{{{{{name}}}}}"), &value.to_string());
        }
        let file = dir.join("bootstrap.yaml");
        fs::write(&file, text)?;
        let log = File::create(dir.join("log"))?;
        let binaries = Binaries::beside_self().with_folder(tools().join("bin"));
        let child = Command::new(binaries.find(plane.program())?)
            .arg("-c")
            .arg(&file)
            .args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning", "--file-flush-interval-msec", "20"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", plane.program()))?;
        let alone = Self { folder, child, admin };
        let ready = eventually("the proxy is ready", START_LIMIT, || async {
            let text = alone.admin_get("/ready").await?;
            ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
            Ok(())
        });
        ready.await.with_context(|| alone.file("log"))?;
        Ok(alone)
    }

    /// The text of a file in its folder; empty while it isn't there.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        fs::read(self.folder.path().join(name)).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    async fn admin_get(&self, path: &str) -> Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).await?;
        stream.write_all(request.as_bytes()).await?;
        Ok(read_all(&mut stream, Duration::from_secs(5)).await.text())
    }

    /// A statistic by its exact name.
    ///
    /// # Errors
    /// When the admin server doesn't answer or has no such series.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        let text = self.admin_get("/stats").await?;
        let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ")?.trim().parse().ok());
        value.with_context(|| format!("no series {name}"))
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resident(&self) -> Result<u64> {
        let pid = self.child.id().context("the proxy has ended")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    /// Open file descriptors.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn descriptors(&self) -> Result<usize> {
        let pid = self.child.id().context("the proxy has ended")?;
        Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
    }

    /// That it still runs and has not panicked anywhere.
    ///
    /// # Errors
    /// With its log.
    pub fn healthy(&mut self) -> Result<()> {
        let log = self.file("log");
        if let Some(status) = self.child.try_wait()? {
            bail!("the proxy has ended ({status}): {log}");
        }
        ensure!(!log.contains("panicked"), "a task of the proxy has panicked: {log}");
        Ok(())
    }
}

/// Certificates of two workloads and their CA's, as files.
///
/// # Errors
/// When the folder can't be written.
pub fn certificates(dir: &Path) -> Result<()> {
    let ca = Ca::open_or_create(&dir.join("ca"))?;
    fs::write(dir.join("ca.pem"), ca.cert_pem())?;
    for name in ["a", "b"] {
        let request = LeafRequest {
            common_name: format!("{name}.default.cluster.local"),
            dns: Vec::new(),
            uris: Vec::new(),
            ips: Vec::new(),
            validity: Duration::from_secs(3600),
        };
        let leaf = ca.issue(&request, SystemTime::now())?;
        fs::write(dir.join(format!("{name}.pem")), leaf.chain_pem)?;
        fs::write(dir.join(format!("{name}.key")), leaf.key_pem)?;
    }
    Ok(())
}

/// Ports that were free a moment ago, each given once by this process. The system gives none of them to connections: they
/// lie below those (`net.ipv4.ip_local_port_range` begins at 32768).
///
/// # Errors
/// When there are none.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut ports = [0; N];
    for port in &mut ports {
        // Processes that run at once begin at different places.
        let mut tries = (0..PORTS.len()).map(|_| {
            let number = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            PORTS.start + u16::try_from(number % u32::from(PORTS.end - PORTS.start)).unwrap_or_default()
        });
        let free = tries.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok());
        *port = free.context("no port is free")?;
    }
    Ok(ports)
}

const PORTS: Range<u16> = 20_000..32_000;

/// The first bytes of a TLS client that asks for this name and these protocols.
///
/// # Errors
/// When the name is none.
pub fn client_hello(name: &str, protocols: &[Vec<u8>]) -> Result<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = protocols.to_vec();
    let mut client = ClientConnection::new(Arc::new(config), name.to_owned().try_into()?)?;
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes)?;
    }
    Ok(bytes)
}

/// What came over a connection, and whether the other side has ended it.
#[derive(Clone, Debug, Default)]
pub struct Came {
    /// All bytes.
    pub bytes: Vec<u8>,
    /// The end, or a reset, was seen.
    pub ended: bool,
}

impl Came {
    /// As text, for reading.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Reads until the end, or until nothing has come for `quiet`.
pub async fn read_all(io: &mut (impl AsyncRead + Unpin), quiet: Duration) -> Came {
    let mut came = Came::default();
    let mut buffer = vec![0; 16 << 10];
    loop {
        match timeout(quiet, io.read(&mut buffer)).await {
            Ok(Ok(read @ 1..)) => came.bytes.extend_from_slice(&buffer[..read]),
            Ok(_) => {
                came.ended = true;
                return came;
            }
            Err(_) => return came,
        }
    }
}

/// Sends bytes over a new connection and reads what comes back.
///
/// # Errors
/// When nobody listens.
pub async fn talk(port: u16, bytes: &[u8], quiet: Duration) -> Result<Came> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    // A proxy that has seen enough may be gone before all is written.
    let _gone = stream.write_all(bytes).await;
    Ok(read_all(&mut stream, quiet).await)
}

/// An HTTP/1 message as bytes: how long its first one is, if it is whole.
///
/// `body_expected` is false for answers to HEAD.
#[must_use]
pub fn message_end(bytes: &[u8], body_expected: bool) -> Option<usize> {
    let head = find(bytes, b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let status = text.strip_prefix("http/1.").and_then(|rest| rest.get(2..5));
    if !body_expected || status.is_some_and(|s| s.starts_with('1') || s == "204" || s == "304") {
        return Some(head);
    }
    if text.contains("\r\ntransfer-encoding:") {
        return chunks_end(bytes, head);
    }
    let length = text.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    match (length, status) {
        (Some(length), _) => (bytes.len() >= head + length).then_some(head + length),
        // A response without a length ends with the connection, a request without one has no body.
        (None, Some(_)) => None,
        (None, None) => Some(head),
    }
}

fn chunks_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let line = at + find(&bytes[at..], b"\r\n")?;
        let digits = std::str::from_utf8(&bytes[at..line]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(digits, 16).ok()?;
        at = line + 2;
        if size == 0 {
            // Trailers, up to an empty line.
            while !bytes.get(at..)?.starts_with(b"\r\n") {
                at += find(&bytes[at..], b"\r\n")? + 2;
            }
            return Some(at + 2);
        }
        at = at.checked_add(size)?.checked_add(2).filter(|end| *end <= bytes.len())?;
    }
}

/// The first place of `needle`.
#[must_use]
pub fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}
