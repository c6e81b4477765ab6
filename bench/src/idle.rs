//! Memory of connections that have served one request and now rest.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use crate::{
    RunArgs,
    measure::{self, Process},
    peers::{self, Peer, Ports, Topology},
};

/// Resident KiB that one resting connection costs a proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PerConnection {
    /// Without TLS.
    pub(crate) plaintext: f64,
    /// With mTLS, ended by the proxy.
    pub(crate) mtls: f64,
}

const CONNECTIONS: usize = 1000;
/// Opened and closed before the count begins, so that what is kept once and for all does not count.
const WARM_UP: usize = 100;

/// Opens connections, asks once on each, and divides the growth of the proxy by their number.
pub(crate) fn per_connection(args: &RunArgs, peer: Peer, ports: Ports, dir: &Path) -> Result<PerConnection> {
    let tls = Arc::new(client(dir)?);
    let plaintext =
        growth(args, peer, Topology::Http1, ports, dir, || ask(TcpStream::connect(front(ports))?, args.body))?;
    let mtls = growth(args, peer, Topology::MtlsPair, ports, dir, || {
        let name = ServerName::try_from("b.bench.cluster.local")?;
        let session = ClientConnection::new(Arc::clone(&tls), name)?;
        ask(StreamOwned::new(session, TcpStream::connect(("127.0.0.1", ports.middle))?), args.body)
    })?;
    Ok(PerConnection { plaintext, mtls })
}

fn front(ports: Ports) -> (&'static str, u16) {
    ("127.0.0.1", ports.front)
}

/// Of a pair it is the server's side that is measured.
fn growth<T>(
    args: &RunArgs,
    peer: Peer,
    topology: Topology,
    ports: Ports,
    dir: &Path,
    open: impl Fn() -> Result<T>,
) -> Result<f64> {
    let command = peers::commands(peer, topology, ports, dir, (&args.proxy, &args.envoy), args.lean)?
        .pop()
        .context("one proxy at least")?;
    let process = Process::start(0, &command, &dir.join(format!("{}-idle.log", peer.name())))?;
    measure::wait_for_port(if topology == Topology::MtlsPair { ports.middle } else { ports.front })?;
    drop((0..WARM_UP).map(|_| open()).collect::<Result<Vec<_>>>()?);
    measure::nap(500);
    let pids = measure::family(process.id());
    let before = measure::rss_kib(&pids);
    let all = (0..CONNECTIONS).map(|_| open()).collect::<Result<Vec<_>>>()?;
    measure::nap(500);
    let after = measure::rss_kib(&pids);
    drop(all);
    process.stop()?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    Ok(after.saturating_sub(before) as f64 / CONNECTIONS as f64)
}

/// One request and its answer; the connection stays open.
fn ask<S: Read + Write>(mut stream: S, body: usize) -> Result<S> {
    stream.write_all(b"GET /bench HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    let whole = |answer: &[u8]| {
        answer.windows(4).position(|w| w == b"\r\n\r\n").is_some_and(|end| answer.len() >= end + 4 + body)
    };
    while !whole(&answer) {
        let some = stream.read(&mut part)?;
        ensure!(some > 0, "the proxy closed: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&part[..some]);
    }
    Ok(stream)
}

fn client(dir: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem"))?)?;
    let chain = vec![CertificateDer::from_pem_file(dir.join("a.pem"))?];
    let key = PrivateKeyDer::from_pem_file(dir.join("a.key"))?;
    Ok(ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key)?)
}
