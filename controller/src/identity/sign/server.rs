//! `POST /v1/certificates` over HTTPS: how a sidecar's request gets to the [`Signer`].
//!
//! Clients have no certificate yet, so none is asked for: the token tells who they are. Whatever a client does, its
//! connection is bounded in time, in bytes and in number.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use axum::routing::post;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::{Refusal, Signer};
use crate::xds::server::ServerTls;

/// The path of the only resource.
pub const PATH: &str = "/v1/certificates";

/// Serves until `stop` is cancelled; then requests under way may finish within a few seconds.
pub async fn serve(listener: TcpListener, tls: Arc<ServerTls>, signer: Arc<Signer>, stop: CancellationToken) {
    info!(address = ?listener.local_addr().ok(), "certificates are signed here");
    let router = Router::new().route(PATH, post(certificates)).fallback(nothing).with_state(signer);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let open = TaskTracker::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let (tls, router) = (Arc::clone(&tls), router.clone());
                open.spawn(async move {
                    if timeout(CONNECTION_TIMEOUT, connection(&tls, tcp, peer.ip(), router)).await.is_err() {
                        debug!(%peer, "a connection to the signer took too long");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "accepting a connection to the signer failed");
                // Out of descriptors, most likely: others may close some meanwhile.
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    open.close();
    // What is not done by then is tried again by its client, elsewhere.
    let _ = timeout(DRAIN_TIME, open.wait()).await;
}

async fn connection(tls: &ServerTls, tcp: TcpStream, peer: IpAddr, router: Router) {
    let handshake = async {
        tcp.set_nodelay(true)?;
        TlsAcceptor::from(tls.without_client_certificates()).accept(tcp).await
    };
    let stream = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%peer, %error, "TLS handshake with the signer failed"),
        Err(_) => return debug!(%peer, "TLS handshake with the signer took too long"),
    };
    let service = TowerToHyperService::new(router.layer(Extension(peer)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        // One connection, one request: who has what it wants leaves its place to others.
        .keep_alive(false)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        debug!(%peer, %error, "a connection to the signer broke");
    }
}

async fn certificates(
    State(signer): State<Arc<Signer>>,
    Extension(peer): Extension<IpAddr>,
    headers: HeaderMap,
    body: Body,
) -> Response<Body> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
    let answer = match axum::body::to_bytes(body, MAX_BODY_BYTES).await {
        Ok(body) => signer.sign(peer, bearer, &body).await,
        Err(_) => return refused(&Refusal::Body(format!("it is broken off, or longer than {MAX_BODY_BYTES} bytes"))),
    };
    match answer {
        Ok(answer) => respond(StatusCode::OK, &json!(answer)),
        Err(refusal) => refused(&refusal),
    }
}

/// The token of `Bearer <token>`; the scheme in any case, as RFC 9110 wants.
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

async fn nothing(method: Method, uri: Uri) -> Response<Body> {
    let message = format!("there is no {method} {}", uri.path());
    let hint = format!("POST {PATH}");
    respond(StatusCode::NOT_FOUND, &json!({ "code": "not_found", "message": message, "hint": hint }))
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let error = json!({ "code": refusal.code(), "message": refusal.to_string(), "hint": refusal.hint() });
    let mut response = respond(refusal.status(), &error);
    if let Some(wait) = refusal.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
    }
    response
}

fn respond(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

const MAX_CONNECTIONS: usize = 1024;
/// A token has some 1.5 KB.
const MAX_HEAD_BYTES: usize = 32 << 10;
const MAX_BODY_BYTES: usize = 16 << 10;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// From accept to close; a token review and a wait for a new pod's snapshot fit in.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const DRAIN_TIME: Duration = Duration::from_secs(3);
