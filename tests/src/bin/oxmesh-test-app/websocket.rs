//! WebSocket: a server that echoes messages, and a client that keeps one open and counts the rounds.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

use crate::Body;

/// Whether a request asks for a WebSocket.
pub(crate) fn is_asked(headers: &HeaderMap<HeaderValue>) -> bool {
    headers.get(header::UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Accepts, and sends every message back until the client closes.
pub(crate) fn answer(mut request: Request<Incoming>) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).expect("base64 is a header value");
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(&mut request).await?;
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        let (send, receive) = socket.split();
        let messages =
            receive.filter(|message| std::future::ready(message.as_ref().is_ok_and(|m| m.is_text() || m.is_binary())));
        // A client that goes away without a close is not the server's failure.
        let _ended = messages.forward(send).await;
        anyhow::Ok(())
    });
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// Sends a message every 50 ms over one connection, checks each echo, and prints the rounds as JSON.
///
/// # Errors
/// When the connection isn't accepted, ends early, or an echo differs.
pub(crate) async fn hold(url: Uri, seconds: f64) -> Result<()> {
    let authority = url.authority().context("the URL names no host")?;
    let address = (authority.host(), authority.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address).await.context("connect")?;
    let (mut socket, response) = client_async(url, stream).await.context("handshake")?;
    let identity = response.headers().get("identity").and_then(|v| v.to_str().ok()).map(ToOwned::to_owned);
    let deadline = Instant::now() + Duration::from_secs_f64(seconds);
    let mut rounds = 0;
    while Instant::now() < deadline {
        let message = format!("message {rounds}");
        socket.send(message.clone().into()).await?;
        let echo = tokio::time::timeout(Duration::from_secs(10), socket.next()).await.context("no echo")?;
        let echo = echo.context("the connection ended")??;
        ensure!(echo.to_text()? == message, "sent {message:?}, got {echo:?}");
        rounds += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    socket.close(None).await?;
    println!("{}", json!({"rounds": rounds, "identity": identity}));
    Ok(())
}
