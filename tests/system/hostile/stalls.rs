//! Clients that begin and do not go on, or never read: cut in time, bounded in number, neighbours served.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    alone::{client_hello, read_all, talk},
    eventually,
    witness::{Witness, say},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{Failures, Front, add};

pub(super) fn trials(trials: &mut Vec<Trial>) {
    add(trials, "heads that trickle in are cut in time, beside served neighbours", slow_heads);
    add(trials, "5,000 half-open handshakes are bounded and end, beside served neighbours", half_open);
    add(trials, "a ClientHello is the same in pieces of one byte; one that is too long, or none, gets nothing", hellos);
    add(trials, "HTTP/1 clients that read nothing hold less than 1 MiB each", unread);
}

const MIB: u64 = 1 << 20;

async fn connect(port: u16) -> Result<TcpStream> {
    Ok(TcpStream::connect(("127.0.0.1", port)).await?)
}

async fn slow_heads() -> Result<()> {
    let up = Witness::ok().await?;
    let mut front = Front::before(&up).await?;
    let began = Instant::now();
    let mut clients = Vec::new();
    for number in 0..300 {
        let port = front.front;
        clients.push(tokio::spawn(async move {
            let mut stream = connect(port).await?;
            // A few in the middle of a second head, of which the first was served.
            if number % 3 == 0 {
                stream.write_all(b"GET /first HTTP/1.1\r\nhost: h\r\n\r\n").await?;
            }
            for byte in b"GET / HTTP/1.1\r\nhost: h\r\nx: ".iter().chain(std::iter::repeat_n(&b'a', 1_000)) {
                if stream.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok::<_, anyhow::Error>(began.elapsed())
        }));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    front.serves(Duration::from_millis(500)).await?;
    for client in clients {
        let took = client.await??;
        ensure!(took < Duration::from_secs(10), "a head could trickle for {took:?}");
    }
    ensure!(front.proxy.stat("http.front.downstream_rq_header_timeout").await? >= 300, "they are not counted");
    ensure!(
        up.requests().iter().all(|r| r.contains("/first") || r.contains("/neighbour")),
        "half a head went upstream"
    );
    front.proxy.healthy()
}

async fn half_open() -> Result<()> {
    let up = Witness::ok().await?;
    let mut front = Front::before(&up).await?;
    front.serves(Duration::from_secs(5)).await?;
    let (memory, descriptors) = (front.proxy.resident()?, front.proxy.descriptors()?);
    let hello = hello(&[b"osm".to_vec()])?;
    let mut clients = Vec::new();
    let mut most = 0;
    for number in 0..5_000 {
        let Ok(mut stream) = connect(front.secure).await else { continue };
        // Silent ones, half a hello, and a whole one that is never answered.
        let part = match number % 3 {
            0 => &[][..],
            1 => &hello[..hello.len() / 2],
            _ => &hello,
        };
        let _gone = stream.write_all(part).await;
        clients.push(stream);
        if number % 250 == 0 {
            front.serves(Duration::from_secs(1)).await?;
            most = most.max(front.proxy.descriptors()?);
        }
    }
    ensure!(clients.len() > 4_900, "only {} could connect", clients.len());
    most = most.max(front.proxy.descriptors()?);
    ensure!(most < descriptors + 4_096 + 64, "{most} descriptors at once");
    let grown = front.proxy.resident()?.saturating_sub(memory);
    ensure!(grown < 96 * MIB, "memory grew by {} MiB", grown / MIB);
    eventually("all are closed", Duration::from_secs(15), || async {
        let now = front.proxy.descriptors()?;
        ensure!(now < descriptors + 16, "{now} descriptors");
        Ok(())
    })
    .await?;
    front.serves(Duration::from_secs(1)).await?;
    front.proxy.healthy()
}

/// A ClientHello for the chain's name.
fn hello(protocols: &[Vec<u8>]) -> Result<Vec<u8>> {
    client_hello("b.default.svc.cluster.local", protocols)
}

async fn hellos() -> Result<()> {
    const HANDSHAKE: u8 = 22;
    let up = Witness::ok().await?;
    let mut front = Front::before(&up).await?;
    let mut failures = Failures::default();
    let quiet = Duration::from_secs(5);
    let whole = hello(&[b"osm".to_vec()])?;
    let answered = talk(front.secure, &whole, Duration::from_millis(500)).await?;
    ensure!(answered.bytes.first() == Some(&HANDSHAKE), "no ServerHello: {:?}", answered.bytes);
    let mut stream = connect(front.secure).await?;
    stream.set_nodelay(true)?;
    for byte in &whole {
        stream.write_all(&[*byte]).await.context("a hello in pieces was cut")?;
        tokio::task::yield_now().await;
    }
    let answered = read_all(&mut stream, Duration::from_millis(500)).await;
    failures.check(answered.bytes.first() == Some(&HANDSHAKE), || format!("in pieces: {:?}", answered.bytes));
    let long: Vec<Vec<u8>> = (0..100_u8).map(|n| vec![n; 200]).collect();
    for (name, bytes) in [
        ("a hello of 20 KiB", hello(&long)?),
        ("an unknown protocol", hello(&[b"h2".to_vec()])?),
        ("plain HTTP", b"GET / HTTP/1.1\r\nhost: h\r\n\r\n".to_vec()),
        ("HTTP/2 in plain", oxmesh_tests::frames::preface(&[])),
        ("noise", vec![0xff; 5_000]),
        ("TLS records of nothing", [22, 3, 1, 0, 0].repeat(5_000)),
        ("a TLS alert", vec![21, 3, 1, 0, 2, 2, 40]),
        ("an SSLv2 hello", vec![0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10]),
    ] {
        let came = talk(front.secure, &bytes, quiet).await?;
        failures.check(came.bytes.first() != Some(&HANDSHAKE), || format!("{name} was answered"));
        failures.check(came.ended, || format!("{name} was left open"));
    }
    failures.check(up.connections() == 0, || "something went upstream".to_owned());
    front.proxy.healthy()?;
    failures.none()
}

async fn unread() -> Result<()> {
    const BIG: usize = 8 << 20;
    let up = Witness::start(|asked, stream| {
        let size = if asked.path == "/big" { BIG } else { 2 };
        say(
            stream,
            [format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n").into_bytes(), vec![b'x'; size]].concat(),
        )
    })
    .await?;
    let mut front = Front::before(&up).await?;
    front.serves(Duration::from_secs(5)).await?;
    let before = front.proxy.resident()?;
    let mut clients = Vec::new();
    for _ in 0..60 {
        let mut stream = connect(front.front).await?;
        stream.write_all(&b"GET /big HTTP/1.1\r\nhost: h\r\n\r\n".repeat(50)).await?;
        clients.push(stream);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let grown = front.proxy.resident()?.saturating_sub(before);
    ensure!(up.requests().len() >= 60, "the requests did not arrive");
    ensure!(grown < 60 * MIB, "memory grew by {} MiB", grown / MIB);
    front.serves(Duration::from_secs(1)).await?;
    front.proxy.healthy()
}
