//! The application that tests put into pods: a server of known behaviour, and clients that check and count what comes back.

mod grpc;
mod websocket;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::{Mutex, watch},
};
use tokio_rustls::TlsAcceptor;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves until SIGTERM or SIGINT.
    Serve(ServeArgs),
    /// Sends requests at a steady rate and prints what came back as JSON.
    Load(LoadArgs),
    /// Makes gRPC calls, unary and streaming, and prints what it did as JSON.
    Grpc {
        /// `http://HOST:PORT`.
        url: String,
    },
    /// Keeps a WebSocket open and prints how many messages came back, as JSON.
    Websocket {
        /// `ws://HOST:PORT/PATH`.
        url: Uri,
        /// How long.
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
}

/// What the server answers with.
type Body = BoxBody<Bytes, hyper::Error>;

#[derive(clap::Args)]
struct ServeArgs {
    /// Name it answers with, in the body and the header `identity`.
    #[arg(long, default_value = "app")]
    identity: String,
    /// Ports of HTTP/1.1 and HTTP/2 (prior knowledge), which echo gRPC calls and WebSocket messages.
    #[arg(long)]
    http: Vec<u16>,
    /// The same by TLS, with a certificate that nobody knows.
    #[arg(long)]
    https: Vec<u16>,
    /// Ports that send back what they get; closed while unhealthy.
    #[arg(long)]
    echo: Vec<u16>,
    /// Ports that speak first: the identity and a line end, then echo.
    #[arg(long)]
    banner: Vec<u16>,
    /// Unhealthy until a request for `/health/on` comes.
    #[arg(long)]
    unhealthy: bool,
}

#[derive(clap::Args)]
struct LoadArgs {
    /// Where to.
    url: Uri,
    /// Requests a second, all connections together; counted from the schedule, not from the last answer.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// How long.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Connections, each with one request at a time.
    #[arg(long, default_value_t = 4)]
    connections: u32,
    /// `name: value`.
    #[arg(long)]
    header: Vec<String>,
    /// Ends early when this file is there.
    #[arg(long)]
    until: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Args::parse().command {
        Command::Serve(args) => serve(args).await,
        Command::Load(args) => load(args).await,
        Command::Grpc { url } => grpc::call(url).await,
        Command::Websocket { url, seconds } => websocket::hold(url, seconds).await,
    }
}

/// What all ports share.
#[derive(Clone)]
struct App {
    identity: Arc<str>,
    healthy: Arc<watch::Sender<bool>>,
}

async fn serve(args: ServeArgs) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let app = App { identity: args.identity.into(), healthy: Arc::new(watch::Sender::new(!args.unhealthy)) };
    for port in args.http {
        let (listener, app) = (listen(port).await?, app.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_http(stream, app.clone(), port));
            }
        });
    }
    for port in args.https {
        let (listener, app, tls) = (listen(port).await?, app.clone(), tls()?);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (app, tls) = (app.clone(), tls.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve_http(stream, app, port).await;
                    }
                });
            }
        });
    }
    for (ports, greeting) in [(args.echo, String::new()), (args.banner, format!("{}\n", app.identity))] {
        for port in ports {
            tokio::spawn(serve_raw(port, greeting.clone(), app.healthy.subscribe()));
        }
    }
    println!("ready");
    // The first process of a container ignores signals that it doesn't ask for.
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Listens while healthy.
async fn serve_raw(port: u16, greeting: String, mut healthy: watch::Receiver<bool>) -> Result<()> {
    loop {
        healthy.wait_for(|healthy| *healthy).await?;
        let listener = listen(port).await?;
        loop {
            tokio::select! {
                accepted = listener.accept() => drop(tokio::spawn(echo(accepted?.0, greeting.clone()))),
                _ = healthy.wait_for(|healthy| !*healthy) => break,
            }
        }
    }
}

fn tls() -> Result<TlsAcceptor> {
    let made = rcgen::generate_simple_self_signed(["app".to_owned()])?;
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Both families, as applications in containers do.
async fn listen(port: u16) -> Result<TcpListener> {
    match TcpListener::bind(("::", port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await.with_context(|| format!("listen on port {port}")),
    }
}

async fn echo(mut stream: TcpStream, greeting: String) -> std::io::Result<()> {
    stream.write_all(greeting.as_bytes()).await?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

async fn serve_http(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, app: App, port: u16) {
    let service = hyper::service::service_fn(move |request| answer(request, app.clone(), port));
    // A client that goes away is not the server's failure.
    let _ =
        auto::Builder::new(TokioExecutor::new()).serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

/// gRPC and WebSocket echo; of plain requests `/status/N` answers N, `/slow/MS` waits first, `/bytes/N` sends N bytes, all
/// else tells what was asked. `/health` and gRPC's own `Check` tell the health, which `/health/on` and `/health/off` change;
/// `/health/with/NAME` is well only if the request has that header.
async fn answer(request: Request<Incoming>, app: App, port: u16) -> Result<Response<Body>, Infallible> {
    let mut response = if websocket::is_asked(request.headers()) {
        websocket::answer(request)
    } else if request.uri().path() == grpc::HEALTH_CHECK {
        grpc::health(*app.healthy.borrow())
    } else if grpc::is_call(request.headers()) {
        let (head, body) = request.into_parts();
        grpc::answer(head.uri.path(), body)
    } else {
        plain(request, &app, port).await.map(|body| body.map_err(|never| match never {}).boxed())
    };
    if let Ok(value) = HeaderValue::from_str(&app.identity) {
        response.headers_mut().insert("identity", value);
    }
    Ok(response)
}

async fn plain(request: Request<Incoming>, app: &App, port: u16) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let received = body.collect().await.map(|b| b.to_bytes().len()).unwrap_or(0);
    let path = head.uri.path();
    let number = |prefix: &str| path.strip_prefix(prefix).and_then(|n| n.parse::<usize>().ok());
    let mut status = StatusCode::OK;
    let mut content = None;
    if let Some(code) = number("/status/") {
        status = u16::try_from(code).ok().and_then(|c| StatusCode::from_u16(c).ok()).unwrap_or(StatusCode::BAD_REQUEST);
    } else if let Some(millis) = number("/slow/") {
        tokio::time::sleep(Duration::from_millis(millis as u64)).await;
    } else if let Some(size) = number("/bytes/") {
        content = Some(Bytes::from(vec![b'x'; size]));
    } else if let Some(change @ ("on" | "off")) = path.strip_prefix("/health/") {
        app.healthy.send_replace(change == "on");
    } else if path.starts_with("/health") {
        let has = path.strip_prefix("/health/with/").is_none_or(|name| head.headers.contains_key(name));
        status = if has && *app.healthy.borrow() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    }
    let content = content.unwrap_or_else(|| {
        let headers: BTreeMap<_, _> =
            head.headers.iter().map(|(k, v)| (k.as_str(), String::from_utf8_lossy(v.as_bytes()))).collect();
        let told = json!({
            "identity": *app.identity, "port": port, "method": head.method.as_str(), "path": head.uri.to_string(),
            "version": format!("{:?}", head.version), "headers": headers, "received": received,
        });
        Bytes::from(format!("{told}\n"))
    });
    let mut response = Response::new(Full::new(content));
    *response.status_mut() = status;
    response
}

/// What a load saw.
#[derive(Default)]
struct Seen {
    by_status: BTreeMap<String, u64>,
    by_identity: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    /// What answers other than 200 said.
    words: BTreeMap<String, u64>,
}

async fn load(args: LoadArgs) -> Result<()> {
    let mut headers = Vec::new();
    for header in &args.header {
        let (name, value) = header.split_once(':').with_context(|| format!("{header:?} is not `name: value`"))?;
        headers.push((HeaderName::try_from(name.trim())?, HeaderValue::from_str(value.trim())?));
    }
    if args.rate == 0 || args.connections == 0 {
        bail!("rate and connections are above zero");
    }
    let seen = Arc::new(Mutex::new(Seen::default()));
    let started = Instant::now();
    let interval = f64::from(args.connections) / f64::from(args.rate);
    let mut workers = Vec::new();
    for index in 0..args.connections {
        let (seen, url, headers) = (seen.clone(), args.url.clone(), headers.clone());
        let offset = f64::from(index) / f64::from(args.rate);
        let (seconds, until) = (args.seconds, args.until.clone());
        workers.push(tokio::spawn(async move {
            let mut client = None;
            let mut at = offset;
            while at < seconds && !until.as_ref().is_some_and(|file| file.exists()) {
                tokio::time::sleep_until((started + Duration::from_secs_f64(at)).into()).await;
                let outcome = tokio::time::timeout(Duration::from_secs(20), one(&mut client, &url, &headers)).await;
                let mut seen = seen.lock().await;
                match outcome {
                    Ok(Ok((status, identity, body))) => {
                        if status != StatusCode::OK {
                            let at = started.elapsed().as_secs();
                            let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
                            *seen.words.entry(format!("{status} after {at} s: {text}")).or_default() += 1;
                        }
                        *seen.by_status.entry(status.as_u16().to_string()).or_default() += 1;
                        *seen.by_identity.entry(identity).or_default() += 1;
                    }
                    Ok(Err(e)) => {
                        client = None;
                        *seen.errors.entry(format!("{e:#}")).or_default() += 1;
                    }
                    Err(_) => {
                        client = None;
                        *seen.errors.entry("no answer within 20 s".to_owned()).or_default() += 1;
                    }
                }
                at += interval;
            }
        }));
    }
    for worker in workers {
        worker.await?;
    }
    let seen = seen.lock().await;
    println!(
        "{}",
        json!({"status": seen.by_status, "identity": seen.by_identity, "errors": seen.errors, "words": seen.words})
    );
    Ok(())
}

type Client = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

async fn one(
    client: &mut Option<Client>,
    url: &Uri,
    headers: &[(HeaderName, HeaderValue)],
) -> Result<(StatusCode, String, Bytes)> {
    let authority = url.authority().context("the URL names no host")?;
    if client.as_ref().is_none_or(Client::is_closed) {
        let stream =
            TcpStream::connect((authority.host(), authority.port_u16().unwrap_or(80))).await.context("connect")?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("handshake")?;
        tokio::spawn(connection);
        *client = Some(sender);
    }
    let sender = client.as_mut().context("a client was just made")?;
    sender.ready().await.context("connection")?;
    let mut request = Request::new(Full::new(Bytes::new()));
    *request.method_mut() = Method::GET;
    *request.uri_mut() = url.path_and_query().map_or("/", |p| p.as_str()).parse()?;
    request.headers_mut().insert(http::header::HOST, HeaderValue::from_str(authority.as_str())?);
    request.headers_mut().extend(headers.iter().cloned());
    let response = sender.send_request(request).await.context("request")?;
    let status = response.status();
    let identity = response.headers().get("identity").and_then(|v| v.to_str().ok()).unwrap_or("none").to_owned();
    let body = response.into_body().collect().await.context("body")?.to_bytes();
    Ok((status, identity, body))
}
