//! Kubelet's probes of TCP ports, answered from inside the pod; and waiting for the proxy to be ready.
//!
//! A probe that opens a connection to the application would end at the proxy, which takes every connection. So kubelet
//! asks here by HTTP, as it asks OSM's `osm-healthcheck`: the answer is 200 if the port takes a connection on loopback.
//! Only the ports of the command line may be asked about: nobody can look round on loopback.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

use crate::args::{Args, Mode};

/// Listens for probes.
#[derive(Debug)]
pub struct Healthcheck {
    listener: TcpListener,
    ports: Arc<BTreeSet<u16>>,
}

/// Runs the process in one of its two small modes, to the end.
///
/// # Errors
/// When the address can't be listened on.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    runtime.block_on(async {
        if args.mode == Mode::AwaitReady {
            return await_ready(ADMIN, PATIENCE).await;
        }
        // The first process of a container has no default for these.
        let mut terminate = signal(SignalKind::terminate()).context("signal handlers")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("signal handlers")?;
        if let Some(probes) = Healthcheck::listen(args).await? {
            tracing::info!("answering probes of TCP ports");
            tokio::select! {
                () = probes.serve() => {}
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        Ok(())
    })
}

impl Healthcheck {
    /// Binds `--healthcheck-address`, if there is one.
    ///
    /// # Errors
    /// When it can't be bound.
    pub async fn listen(args: &Args) -> anyhow::Result<Option<Self>> {
        let Some(address) = args.healthcheck_address else { return Ok(None) };
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("--healthcheck-address: cannot listen on {address}"))?;
        Ok(Some(Self { listener, ports: Arc::new(args.healthcheck_ports.iter().map(|port| port.get()).collect()) }))
    }

    /// Answers for ever.
    pub async fn serve(self) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((io, _)) => {
                    let ports = Arc::clone(&self.ports);
                    tokio::spawn(async move {
                        connection(io, ports).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "probes of TCP ports are not accepted for a moment");
                    sleep(POLL).await;
                }
            }
        }
    }
}

async fn connection(io: TcpStream, ports: Arc<BTreeSet<u16>>) {
    let service = service_fn(move |request| {
        let ports = Arc::clone(&ports);
        async move { Ok::<_, Infallible>(answer(&request, &ports).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_REQUEST_BYTES)
        // Kubelet never sends two on one connection.
        .keep_alive(false)
        .serve_connection(TokioIo::new(io), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "probe of a TCP port");
    }
}

async fn answer<B>(request: &Request<B>, ports: &BTreeSet<u16>) -> Response<Full<Bytes>> {
    let (status, words) = match asked(request) {
        Err((status, words)) => (status, words.to_owned()),
        Ok(port) if !ports.contains(&port) => (StatusCode::BAD_REQUEST, format!("port {port} has no probe\n")),
        Ok(port) if takes_connections(port).await => (StatusCode::OK, String::new()),
        Ok(port) => (StatusCode::NOT_FOUND, format!("port {port} takes no connection on loopback\n")),
    };
    let mut response = Response::new(Full::new(Bytes::from(words)));
    *response.status_mut() = status;
    response
}

/// The port that a request asks about.
fn asked<B>(request: &Request<B>) -> Result<u16, (StatusCode, &'static str)> {
    if request.uri().path() != "/osm-healthcheck" {
        return Err((StatusCode::NOT_FOUND, "only /osm-healthcheck is here\n"));
    }
    if request.method() != Method::GET {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "only GET\n"));
    }
    let port = request.headers().get("original-tcp-port").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    port.ok_or((StatusCode::BAD_REQUEST, "the header Original-Tcp-Port must be a port\n"))
}

/// Over IPv4, and over IPv6 where the application listens there alone.
async fn takes_connections(port: u16) -> bool {
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        if matches!(timeout(CONNECT_TIMEOUT, TcpStream::connect((ip, port))).await, Ok(Ok(_))) {
            return true;
        }
    }
    false
}

/// Kubelet can't end a pod while a hook runs, so there is an end to it.
async fn await_ready(admin: SocketAddr, patience: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + patience;
    // Each question is a line in the proxy's log.
    let mut pause = POLL;
    while let Some(why) = unready(admin).await {
        if Instant::now() >= end {
            bail!("not ready after {} s: {why}", patience.as_secs());
        }
        sleep(pause).await;
        pause = (pause * 2).min(SLOWEST_POLL);
    }
    Ok(())
}

/// What keeps the proxy with this admin interface from being ready.
async fn unready(admin: SocketAddr) -> Option<String> {
    let ask = async {
        let io = TcpStream::connect(admin).await.ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.ok()?;
        tokio::spawn(connection);
        let request = Request::get("/ready").header(http::header::HOST, admin.to_string());
        let response = sender.send_request(request.body(Full::<Bytes>::default()).ok()?).await.ok()?;
        let status = response.status();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&body).trim().replace('\n', ": ")))
    };
    match timeout(READY_TIMEOUT, ask).await.ok().flatten() {
        Some((StatusCode::OK, _)) => None,
        Some((_, why)) => Some(why),
        None => Some(format!("the admin interface on {admin} does not answer")),
    }
}

/// The admin interface of every sidecar.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15_000);
const POLL: Duration = Duration::from_millis(100);
const SLOWEST_POLL: Duration = Duration::from_secs(1);
/// The longest wait for readiness.
const PATIENCE: Duration = Duration::from_secs(120);
const READY_TIMEOUT: Duration = Duration::from_secs(1);
/// Kubelet gives up sooner as its probe says.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 64;
const MAX_REQUEST_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    async fn status(path: &str, method: &str, header: Option<String>, ports: &[u16]) -> u16 {
        let mut request = Request::builder().uri(path).method(method);
        if let Some(value) = header {
            request = request.header("Original-Tcp-Port", value);
        }
        answer(&request.body(()).unwrap(), &ports.iter().copied().collect()).await.status().as_u16()
    }

    #[tokio::test]
    async fn a_port_is_healthy_if_it_takes_a_connection_on_either_loopback() {
        let v4 = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = open.local_addr().unwrap().port();
        let ask = |port: u16| status("/osm-healthcheck", "GET", Some(port.to_string()), &[]);
        assert_eq!(ask(port).await, 400, "a port without a probe is nobody's business");
        let ask =
            |asked: u16| async move { status("/osm-healthcheck", "GET", Some(asked.to_string()), &[port, v4]).await };
        assert_eq!((ask(port).await, ask(v4).await), (200, 404));
        if let Ok(v6) = TcpListener::bind("[::1]:0").await {
            let port = v6.local_addr().unwrap().port();
            assert_eq!(status("/osm-healthcheck", "GET", Some(port.to_string()), &[port]).await, 200);
        }
    }

    #[tokio::test]
    async fn what_is_no_question_about_a_port_is_refused() {
        for (path, method, header, expected) in [
            ("/", "GET", Some("80"), 404),
            ("/osm-healthcheck", "POST", Some("80"), 405),
            ("/osm-healthcheck", "GET", None, 400),
            ("/osm-healthcheck", "GET", Some("x"), 400),
            ("/osm-healthcheck", "GET", Some("65536"), 400),
        ] {
            assert_eq!(status(path, method, header.map(str::to_owned), &[80]).await, expected, "{path} {header:?}");
        }
    }

    #[tokio::test]
    async fn a_proxy_is_ready_when_its_admin_interface_says_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = tokio::spawn(async move {
            for status in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK] {
                let (io, _) = listener.accept().await.unwrap();
                let service = service_fn(move |request: Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.uri().path(), "/ready");
                    let mut response = Response::new(Full::new(Bytes::from("WAITING\nfor this\n")));
                    *response.status_mut() = status;
                    Ok::<_, Infallible>(response)
                });
                let _ = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(io), service).await;
            }
        });
        assert_eq!(unready(address).await.as_deref(), Some("WAITING: for this"));
        await_ready(address, Duration::ZERO).await.unwrap();
        serve.await.unwrap();
        let words = await_ready(address, Duration::ZERO).await.unwrap_err().to_string();
        assert_eq!(words, format!("not ready after 0 s: the admin interface on {address} does not answer"));
    }
}
