//! What real OSM sent its sidecars, driven with requests: our proxy as client, as server and as both does what OSM's objects
//! mean, and real Envoy in the other place does the same.
//!
//! Not here: egress of everything and egress by address, which dial the original destination; without redirection that is the
//! listener itself (`egress.rs` has them in namespaces).

mod control;
mod stage;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh::pod::DataPlane::{self, Envoy, Oxmesh};
use oxmesh_tests::{
    alone::{client_hello, message_end, read_all, talk},
    eventually,
    trial::{envoy_missing, trial},
    witness::{Witness, say},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    process::Command,
    time::timeout,
};

use stage::{Play, Pod, Stage};

pub(crate) fn trials(trials: &mut Vec<Trial>) {
    let both = [("", [Oxmesh; 2]), (", envoy as client", [Envoy, Oxmesh]), (", envoy as server", [Oxmesh, Envoy])];
    for (who, planes) in both {
        add(trials, "targets allow their routes to their callers, and a split its shares", who, planes, policies);
        add(trials, "permissive mode allows everything", who, planes, permissive);
        // Envoy as the client closes these connections here before it chooses an upstream; `protocols.rs` has it in namespaces.
        if planes[0] == Oxmesh {
            add(trials, "opaque TCP reaches the store and nobody else's does", who, planes, tcp);
        }
        add(trials, "the retry policy tries again", who, planes, retries);
        add(trials, "the circuit breaker and the limit of connections hold", who, planes, limits);
        add(trials, "a split without a share for one backend never asks it", who, planes, skewed);
    }
    for (who, plane) in [("", Oxmesh), (", envoy", Envoy)] {
        add(trials, "egress by policy opens the hosts that it names", who, [plane; 2], egress);
        add(trials, "ingress opens its chains to its sources", who, [plane; 2], ingress);
    }
}

fn add<F>(trials: &mut Vec<Trial>, what: &str, who: &str, planes: [DataPlane; 2], play: fn([DataPlane; 2]) -> F)
where
    F: Future<Output = Result<()>> + 'static,
{
    let missing = planes.contains(&Envoy).then(envoy_missing).flatten();
    trials.push(trial(format!("OSM's own resources: {what}{who}"), missing, move || play(planes)));
}

const PATIENCE: Duration = Duration::from_secs(30);

/// An application that tells its name.
async fn app(name: &'static str) -> Result<Witness> {
    Witness::start(move |_, stream| {
        say(stream, format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len()).into_bytes())
    })
    .await
}

/// Sends a request from `from` and returns status and text.
async fn ask_from(from: &str, to: &str, port: u16, head: &str) -> Result<(u16, String)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(format!("{from}:0").parse()?)?;
    let mut stream = socket.connect(format!("{to}:{port}").parse()?).await?;
    stream.write_all(format!("{head}\r\n\r\n").as_bytes()).await?;
    let mut bytes = Vec::new();
    while message_end(&bytes, true).is_none() {
        if timeout(Duration::from_secs(10), stream.read_buf(&mut bytes)).await?? == 0 {
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.get(9..12).with_context(|| format!("no answer: {text:?}"))?.parse()?;
    Ok((status, text))
}

async fn ask(to: &str, port: u16, head: &str) -> Result<(u16, String)> {
    ask_from("127.0.0.1", to, port, head).await
}

fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}")
}

async fn expect(to: &str, port: u16, head: &str, status: u16) -> Result<()> {
    let (got, text) = ask(to, port, head).await.with_context(|| head.to_owned())?;
    ensure!(got == status, "{head:?} got {text:?} and not {status}");
    Ok(())
}

/// Waits until the request is answered with 200.
async fn serving(to: &str, port: u16, head: &str) -> Result<()> {
    eventually("the sidecars serve", PATIENCE, || expect(to, port, head, 200)).await
}

/// Adds what the processes said to a failure, and makes refused resources one.
fn judge(stage: &Stage, outcome: Result<()>) -> Result<()> {
    outcome.with_context(|| stage.words())?;
    let refusals = stage.refusals();
    ensure!(refusals.is_empty(), "refused: {refusals:#?}");
    Ok(())
}

const SMI: Play = Play { base: "01-smi", scenario: None, outbound: 14001, inbound: 14001 };

fn buyer(plane: DataPlane) -> Pod {
    let (recording, identity) = ("bookbuyer", "bookbuyer.bookbuyer");
    Pod { node: "client", plane, recording, identity, address: "10.78.0.250", replace: None, app: 1 }
}

fn store_v1(plane: DataPlane, app: u16) -> Pod {
    let (recording, identity) = ("bookstore-v1", "bookstore-v1.bookstore");
    Pod { node: "v1", plane, recording, identity, address: "10.78.0.6", replace: None, app }
}

async fn policies([client, server]: [DataPlane; 2]) -> Result<()> {
    let (one, two) = (app("v1").await?, app("v2").await?);
    let second = Pod {
        node: "v2",
        identity: "bookstore-v2.bookstore",
        address: "10.78.0.9",
        replace: Some(("bookstore-v1", "bookstore-v2")),
        ..store_v1(server, two.port)
    };
    let thief = Pod { node: "thief", identity: "bookthief.bookthief", ..buyer(client) };
    let stage = Stage::set(&SMI, &[buyer(client), store_v1(server, one.port), second, thief]).await?;
    judge(&stage, drive_policies(&stage).await)
}

async fn drive_policies(stage: &Stage) -> Result<()> {
    let port = stage.outbound("client");
    let (root, first) = ("127.79.153.209", "127.79.173.1");
    let new = "/buy-a-book/new";
    serving(first, port, &get("bookstore-v1.bookstore", new)).await?;
    serving("127.79.77.117", port, &get("bookstore-v2.bookstore", new)).await?;
    let bought = get("bookstore-v1.bookstore", "/books-bought");
    expect(first, port, &bought, 404).await?;
    expect(first, port, &format!("{bought}\r\nuser-agent: Go-http-client/1.1\r\nclient-app: bookbuyer"), 200).await?;
    expect(first, port, &format!("{bought}\r\nuser-agent: Go-http-client/1.1\r\nclient-app: bookthief"), 404).await?;
    let post = "POST /buy-a-book/new HTTP/1.1\r\nhost: bookstore-v1.bookstore\r\ncontent-length: 0";
    expect(first, port, post, 404).await?;
    expect(first, port, &get("unknown.bookstore", new), 404).await?;
    // The split of the root.
    let mut shares = [0; 2];
    for _ in 0..60 {
        let (status, text) = ask(root, port, &get("bookstore.bookstore", new)).await?;
        ensure!(status == 200, "{text}");
        shares[usize::from(text.ends_with("v2"))] += 1;
    }
    ensure!(shares.iter().all(|share| *share > 12), "of 60 requests at 50:50 the backends got {shares:?}");
    // A caller that no target names is closed out at the server's door.
    let (status, text) = ask(first, stage.outbound("thief"), &get("bookstore-v1.bookstore", new)).await?;
    ensure!(status == 503 && text.contains("reset reason: connection termination"), "the thief got {text}");
    Ok(())
}

async fn permissive([client, server]: [DataPlane; 2]) -> Result<()> {
    let up = app("v1").await?;
    let play = Play { base: "02-permissive", ..SMI };
    let thief = Pod { recording: "bookthief", identity: "bookthief.bookthief", ..buyer(client) };
    let stage = Stage::set(&play, &[thief, store_v1(server, up.port)]).await?;
    let port = stage.outbound("client");
    let drive = async {
        let to = "127.79.173.1";
        serving(to, port, &get("bookstore-v1.bookstore", "/any")).await?;
        expect(to, port, "POST /other HTTP/1.1\r\nhost: bookstore-v1.bookstore\r\ncontent-length: 0", 200).await?;
        expect(to, port, &get("nobody", "/any"), 404).await
    };
    judge(&stage, drive.await)
}

async fn tcp([client, server]: [DataPlane; 2]) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let app = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _client_gone = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    // The targets allow port 9001 to client and echo, port 3306 (where the server may speak first) to echo only.
    for (port, allowed, refused) in [(9001, "client.apps", "bookbuyer.bookbuyer"), (3306, "echo.apps", "client.apps")] {
        let play = Play { base: "01-smi", scenario: Some("06-tcp"), outbound: port, inbound: port };
        let caller = Pod { recording: "client", identity: allowed, ..buyer(client) };
        let stranger = Pod { node: "stranger", recording: "client", identity: refused, ..buyer(client) };
        let store = Pod {
            node: "store",
            recording: "store",
            identity: "store.apps",
            address: "10.78.0.13",
            ..store_v1(server, app)
        };
        let stage = Stage::set(&play, &[caller, stranger, store]).await?;
        judge(&stage, drive_tcp(&stage).await)?;
    }
    Ok(())
}

async fn drive_tcp(stage: &Stage) -> Result<()> {
    let send = |node: &'static str, text: &'static str| {
        let port = stage.outbound(node);
        async move {
            let mut stream = TcpStream::connect(("127.79.153.199", port)).await?;
            stream.write_all(text.as_bytes()).await?;
            // Envoy's inspectors drop a client that ends while they look, so the end follows the echo.
            let mut came = read_all(&mut stream, Duration::from_millis(500)).await;
            if !came.ended {
                stream.shutdown().await?;
                let rest = read_all(&mut stream, Duration::from_secs(5)).await;
                came.bytes.extend(rest.bytes);
                came.ended = rest.ended;
            }
            anyhow::Ok(came)
        }
    };
    eventually("the store echoes", PATIENCE, || async {
        let came = send("client", "opaque bytes").await?;
        ensure!(came.text() == "opaque bytes" && came.ended, "{came:?}");
        Ok(())
    })
    .await?;
    // The stranger's sidecar takes its connections, and the store's closes them.
    let came = eventually("the stranger's sidecar listens", PATIENCE, || send("stranger", "opaque bytes")).await?;
    ensure!(came.bytes.is_empty() && came.ended, "the stranger got {came:?}");
    Ok(())
}

fn echo(plane: DataPlane, app: u16) -> Pod {
    Pod { node: "echo", recording: "echo", identity: "echo.apps", address: "10.78.0.18", ..store_v1(plane, app) }
}

/// The service `echo` in the recording has two pods; both play on one here.
fn echo_twin(plane: DataPlane, app: u16) -> Pod {
    Pod { node: "twin", address: "10.78.0.19", ..echo(plane, app) }
}

const ECHO: &str = "127.79.40.176";

async fn retries([client, server]: [DataPlane; 2]) -> Result<()> {
    // Two of three requests fail.
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let up = Witness::start(move |_, stream| {
        let words = if counter.fetch_add(1, Relaxed) % 3 == 2 { "200 OK" } else { "503 Busy" };
        say(stream, format!("HTTP/1.1 {words}\r\ncontent-length: 0\r\n\r\n").into_bytes())
    })
    .await?;
    let play = Play { base: "02-permissive", scenario: Some("07-retry"), outbound: 80, inbound: 8080 };
    let caller = Pod { recording: "client", identity: "client.apps", ..buyer(client) };
    let stage = Stage::set(&play, &[caller, echo(server, up.port), echo_twin(server, up.port)]).await?;
    let port = stage.outbound("client");
    let drive = async {
        serving(ECHO, port, &get("echo", "/")).await?;
        // Up to the next request that begins a round.
        while !count.load(Relaxed).is_multiple_of(3) {
            ask(ECHO, port, &get("echo", "/")).await?;
        }
        let before = count.load(Relaxed);
        expect(ECHO, port, &get("echo", "/"), 200).await?;
        ensure!(count.load(Relaxed) == before + 3, "the server saw {} tries", count.load(Relaxed) - before);
        Ok(())
    };
    judge(&stage, drive.await)
}

async fn limits([client, server]: [DataPlane; 2]) -> Result<()> {
    let held = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&held);
    let up = Witness::start(move |asked, stream| {
        let counter = Arc::clone(&counter);
        async move {
            if asked.path == "/hold" {
                counter.fetch_add(1, Relaxed);
                tokio::time::sleep(Duration::from_secs(4)).await;
            }
            say(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec()).await
        }
    })
    .await?;
    let play = Play { base: "02-permissive", scenario: Some("08-limits"), outbound: 80, inbound: 8080 };
    let caller = Pod { recording: "client", identity: "client.apps", ..buyer(client) };
    let stage = Stage::set(&play, &[caller, echo(server, up.port), echo_twin(server, up.port)]).await?;
    let port = stage.outbound("client");
    let drive = async {
        serving(ECHO, port, &get("echo", "/")).await?;
        let mut open = Vec::new();
        for number in 1..=5 {
            open.push(tokio::spawn(async move { expect(ECHO, port, &get("echo", "/hold"), 200).await }));
            eventually("a request is held", Duration::from_secs(3), || async {
                ensure!(held.load(Relaxed) == number, "{} are held", held.load(Relaxed));
                Ok(())
            })
            .await?;
        }
        let (status, text) = ask(ECHO, port, &get("echo", "/")).await?;
        ensure!(status == 503 && text.contains("x-envoy-overloaded: true"), "a sixth of five got {text}");
        for request in open {
            request.await??;
        }
        expect(ECHO, port, &get("echo", "/"), 200).await?;
        // Each pod takes twelve connections a minute, whoever makes them; the others are closed before the handshake.
        let hello = client_hello("echo.apps.svc.cluster.local", &[b"osm".to_vec()])?;
        let (mut greeted, mut closed) = (0, 0);
        for _ in 0..14 {
            let came = talk(stage.inbound("echo"), &hello, Duration::from_millis(150)).await?;
            greeted += usize::from(!came.bytes.is_empty());
            closed += usize::from(came.bytes.is_empty() && came.ended);
        }
        ensure!(greeted <= 12 && greeted + closed == 14, "of 14 connections {greeted} were greeted, {closed} closed");
        Ok(())
    };
    judge(&stage, drive.await)
}

async fn skewed([client, server]: [DataPlane; 2]) -> Result<()> {
    let up = app("echo").await?;
    let play = Play { base: "01-smi", scenario: Some("09-split-tcp-and-roots"), outbound: 80, inbound: 8080 };
    let stage = Stage::set(&play, &[buyer(client), echo(server, up.port), echo_twin(server, up.port)]).await?;
    let port = stage.outbound("client");
    let drive = async {
        serving(ECHO, port, &get("echo.apps", "/")).await?;
        for _ in 0..30 {
            expect(ECHO, port, &get("echo.apps", "/any"), 200).await?;
        }
        // The access log of the client tells the cluster of each.
        let log = stage.words();
        ensure!(!log.contains("\"upstream_cluster\":\"apps/echo-again|8080\""), "{log}");
        Ok(())
    };
    judge(&stage, drive.await)
}

async fn egress([client, _]: [DataPlane; 2]) -> Result<()> {
    let up = app("outside").await?;
    let play = Play { base: "01-smi", scenario: Some("04-egress-policy"), outbound: 80, inbound: 8080 };
    let caller = Pod { recording: "client", identity: "client.apps", app: up.port, ..buyer(client) };
    let stage = Stage::set(&play, &[caller]).await?;
    let (to, port) = ("127.1.2.3", stage.outbound("client"));
    let drive = async {
        serving(to, port, &get("httpbin.example.org", "/status/200")).await?;
        expect(to, port, "POST /any HTTP/1.1\r\nhost: other.example.org\r\ncontent-length: 0", 200).await?;
        expect(to, port, &get("evil.example.org", "/status/200"), 404).await?;
        let mut stream = TcpStream::connect((to, port)).await?;
        stream.write_all(b"no HTTP at all\r\n\r\n").await?;
        let came = read_all(&mut stream, Duration::from_secs(5)).await;
        ensure!(came.ended && came.bytes.is_empty(), "opaque bytes to a port of HTTP got {came:?}");
        Ok(())
    };
    judge(&stage, drive.await)
}

async fn ingress([_, server]: [DataPlane; 2]) -> Result<()> {
    let (plain, secure) = (app("echo").await?, app("bookstore").await?);
    let play = Play { base: "01-smi", scenario: Some("05-ingress"), outbound: 80, inbound: 8080 };
    let stage = Stage::set(&play, &[echo(server, plain.port)]).await?;
    let port = stage.inbound("echo");
    let drive = async {
        let head = get("anything", "/any");
        eventually("the source is served", PATIENCE, || async {
            let (status, text) = ask_from("127.99.0.5", "127.0.0.1", port, &head).await?;
            ensure!(status == 200, "{text}");
            Ok(())
        })
        .await?;
        let stranger = ask_from("127.98.0.5", "127.0.0.1", port, &head).await;
        ensure!(stranger.is_err(), "another source got {stranger:?}");
        Ok(())
    };
    judge(&stage, drive.await)?;

    let play = Play { inbound: 14001, ..play };
    let stage = Stage::set(&play, &[store_v1(server, secure.port)]).await?;
    let port = stage.inbound("v1");
    let drive = async {
        eventually("the gateway is served", PATIENCE, || async {
            let status = gateway(&stage, port, "127.99.1.5", INGRESS_CALLER).await?;
            ensure!(status == "200", "the gateway got {status}");
            Ok(())
        })
        .await?;
        let status = gateway(&stage, port, "127.99.1.5", "other.gateway").await?;
        ensure!(status == "403", "another certificate got {status}");
        let status = gateway(&stage, port, "127.98.1.5", INGRESS_CALLER).await?;
        ensure!(status == "000", "another source got {status}");
        Ok(())
    };
    judge(&stage, drive.await)
}

/// The principal that the recorded IngressBackend names.
const INGRESS_CALLER: &str = "ingress.gateway";

/// curl as an ingress gateway with a certificate; its idea of the status.
async fn gateway(stage: &Stage, port: u16, from: &str, identity: &str) -> Result<String> {
    stage.certificate(identity)?;
    let dir = stage.folder();
    let host = "bookstore-v1.bookstore";
    let out = Command::new("curl")
        .args(["-sk", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", "--interface", from])
        .args(["--resolve", &format!("{host}:{port}:127.0.0.1")])
        .arg("--cert")
        .arg(dir.join("client.pem"))
        .arg("--key")
        .arg(dir.join("client.key"))
        .arg(format!("https://{host}:{port}/any"))
        .output()
        .await?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
