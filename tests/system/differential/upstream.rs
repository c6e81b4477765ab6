//! The servers behind both proxies: each row says what they answer; they remember what came.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use oxmesh_tests::witness::{Asked, Witness, say, say_last};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What the server does with the next request.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Writes this and keeps the connection.
    Say(&'static str),
    /// Writes this and closes.
    Last(&'static str),
    /// Resets the connection without an answer.
    Reset,
    /// Answers nothing for a second, then closes.
    Stall,
}

/// The answer where a row says nothing.
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-up: server\r\n\r\nok";

type Script = Arc<Mutex<VecDeque<Step>>>;

/// An HTTP/1 server by script, and an HTTP/2 one that answers by path.
pub(super) struct Upstream {
    pub(super) http1: Witness,
    pub(super) http2: Http2,
    script: Script,
}

impl Upstream {
    pub(super) async fn start() -> Result<Self> {
        let script = Script::default();
        let steps = Arc::clone(&script);
        let http1 = Witness::start(move |_: Asked, stream| {
            let step = lock(&steps).pop_front();
            perform(step, stream)
        })
        .await?;
        Ok(Self { http1, http2: Http2::start().await?, script })
    }

    pub(super) fn set(&self, steps: &[Step]) {
        *lock(&self.script) = steps.iter().cloned().collect();
    }
}

async fn perform(step: Option<Step>, stream: TcpStream) -> Option<TcpStream> {
    match step {
        None => say(stream, OK.into()).await,
        Some(Step::Say(text)) => say(stream, text.into()).await,
        Some(Step::Last(text)) => say_last(stream, text.into()).await,
        Some(Step::Reset) => {
            // A zero linger makes the close a reset.
            let _best_effort = stream.set_zero_linger();
            None
        }
        Some(Step::Stall) => {
            tokio::time::sleep(Duration::from_secs(1)).await;
            None
        }
    }
}

/// The HTTP/2 server: it writes down each request as lines.
pub(super) struct Http2 {
    pub(super) port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Http2 {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let record = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let record = Arc::clone(&record);
                let service = service_fn(move |request| answer(request, Arc::clone(&record)));
                let serve = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(async move {
                    let _the_peer_ended_it = serve.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Self { port, seen, task })
    }

    /// Forgets the requests and returns them, in the form of HTTP/1.
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.seen))
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    request: Request<Incoming>,
    record: Arc<Mutex<Vec<String>>>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, String> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let mut text = format!("{} {} HTTP/2\r\n", head.method, head.uri);
    for (name, value) in &head.headers {
        text.push_str(&format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes())));
    }
    text.push_str("\r\n");
    let body = body.collect().await.map_err(|e| e.to_string())?;
    for (name, value) in body.trailers().into_iter().flatten() {
        text.push_str(&format!("[trailer {name}: {}]", String::from_utf8_lossy(value.as_bytes())));
    }
    text.push_str(&String::from_utf8_lossy(&body.to_bytes()));
    lock(&record).push(text);
    let response = Response::builder().header("x-up", "server");
    let full = |text: &'static str| Full::new(Bytes::from_static(text.as_bytes()));
    let body = match path.as_str() {
        // hyper resets the stream when a service fails.
        "/h2/reset" => return Err("as asked".to_owned()),
        "/h2/trailers" => {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("7"));
            full("ok").with_trailers(async { Some(Ok(trailers)) }).boxed()
        }
        _ => full("ok").boxed(),
    };
    let status = if path == "/h2/status" { 503 } else { 200 };
    response.status(status).body(body).map_err(|e| e.to_string())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
