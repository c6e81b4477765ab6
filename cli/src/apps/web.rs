//! HTTP for the applications: a server that ends at a signal, and one request per connection.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::counters::Counters;
use crate::signals::Shutdown;

/// Long enough for a machine that is busy with other things: what is slow is no refusal.
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// How long the requests in hand may take at the end; shorter than a pod's grace period.
const END_LIMIT: Duration = Duration::from_secs(5);

pub(super) type Answer = Response<Full<Bytes>>;

pub(super) fn answer(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}

/// The answer for `/`.
pub(super) fn show(counters: &Counters) -> Answer {
    let text = serde_json::to_string(&counters.snapshot()).expect("counts can be written as JSON");
    answer(StatusCode::OK, text)
}

/// Listens on all addresses of both families, or of IPv4 where that is all there is.
pub(super) async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(("::", port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await.with_context(|| format!("listening on port {port}")),
    }
}

/// Serves HTTP/1 until SIGTERM or SIGINT, which a container's first process ignores unless it asks for them: its pod would
/// end only by SIGKILL. The requests in hand are still answered, for 5 s at most.
pub(super) async fn serve<F>(
    port: u16,
    handle: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
) -> anyhow::Result<()>
where
    F: Future<Output = Answer> + Send + 'static,
{
    let mut shutdown = Shutdown::new().context("asking for signals")?;
    let listener = listen(port).await?;
    let handle = Arc::new(handle);
    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.wait() => break,
        };
        let (stream, _) = accepted.context("accepting a connection")?;
        let handle = Arc::clone(&handle);
        let service = service_fn(move |request| {
            let answer = handle(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("a connection ended early: {error}");
            }
        });
    }
    drop(listener);
    if timeout(END_LIMIT, connections.shutdown()).await.is_err() {
        eprintln!("ending, though requests are not answered after {END_LIMIT:?}");
    }
    Ok(())
}

/// What came back from a call.
pub(super) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// One request on a connection of its own, with a limit of 20 s.
///
/// # Errors
/// The reason in a few words: `connection refused`, `no answer within 20s`.
pub(super) async fn call(
    method: Method,
    host: &str,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<Reply, String> {
    match timeout(CALL_LIMIT, exchange(method, host, path, headers)).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(error)) => Err(root_cause(&error)),
        Err(_) => Err(format!("no answer within {CALL_LIMIT:?}")),
    }
}

async fn exchange(method: Method, host: &str, path: &str, headers: &[(&'static str, &str)]) -> anyhow::Result<Reply> {
    let stream = TcpStream::connect(host).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer, or with an error that the request sees as well.
    let connection = tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, host)
        .header(http::header::USER_AGENT, "Go-http-client/1.1");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    connection.abort();
    Ok(Reply { status: parts.status, headers: parts.headers, body })
}

/// The innermost error, without the system's number: `Connection refused`.
fn root_cause(error: &anyhow::Error) -> String {
    let text = error.root_cause().to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}
