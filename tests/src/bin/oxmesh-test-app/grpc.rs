//! gRPC: a server that echoes messages, unary or streaming, and tonic's client, which checks what comes back.
//!
//! A call's messages are framed the same both ways, so the echo is the request's body with gRPC's trailers behind it.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Response, uri::PathAndQuery};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use serde_json::json;
use tonic::{Code, Request, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use crate::Body;

/// The call by which gRPC servers are asked for their health (grpc.health.v1).
pub(crate) const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
const UNARY: &str = "/test.Echo/Unary";
const CHAT: &str = "/test.Echo/Chat";
const FAIL: &str = "/test.Echo/Fail";
const UNARY_CALLS: u32 = 20;
const CHAT_MESSAGES: u32 = 50;

/// The answer to a call: its messages again, or for `Fail` a status and no message.
pub(crate) fn answer(path: &str, body: Incoming) -> Response<Body> {
    let mut response = if path == FAIL {
        let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
        response.headers_mut().insert("grpc-status", HeaderValue::from_static("9"));
        response.headers_mut().insert("grpc-message", HeaderValue::from_static("as asked"));
        response
    } else {
        let trailers =
            HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        Response::new(body.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed())
    };
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// One message `HealthCheckResponse`: the field `status` is SERVING (1) or NOT_SERVING (2).
pub(crate) fn health(healthy: bool) -> Response<Body> {
    let message = Bytes::from(vec![0, 0, 0, 0, 2, 0x08, if healthy { 1 } else { 2 }]);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(message).map_err(|never| match never {}).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(body.boxed());
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Makes unary calls, one call with a stream of messages both ways, and one that must fail; prints what it did as JSON.
///
/// # Errors
/// When an answer isn't what it must be.
pub(crate) async fn call(url: String) -> Result<()> {
    let channel = Channel::from_shared(url)?.connect().await.context("connect")?;
    let mut client = Grpc::new(channel);
    let mut identity = None;
    for n in 0..UNARY_CALLS {
        client.ready().await?;
        let message = format!("message {n}");
        let answer = client.unary(Request::new(message.clone()), PathAndQuery::from_static(UNARY), codec()).await?;
        ensure!(*answer.get_ref() == message, "asked {message:?}, answered {:?}", answer.get_ref());
        identity = answer.metadata().get("identity").and_then(|v| v.to_str().ok()).map(ToOwned::to_owned);
    }
    client.ready().await?;
    let messages: Vec<_> = (0..CHAT_MESSAGES).map(|n| format!("message {n}")).collect();
    let request = Request::new(stream::iter(messages.clone()));
    let mut answers = client.streaming(request, PathAndQuery::from_static(CHAT), codec()).await?.into_inner();
    let mut streamed = Vec::new();
    while let Some(answer) = answers.message().await? {
        streamed.push(answer);
    }
    ensure!(streamed == messages, "a stream came back as {streamed:?}");
    client.ready().await?;
    let failed = client.unary(Request::new(String::new()), PathAndQuery::from_static(FAIL), codec()).await;
    let status = failed.err().context("the call that must fail was answered")?;
    ensure!(status.code() == Code::FailedPrecondition && status.message() == "as asked", "failed otherwise: {status}");
    println!("{}", json!({"unary": UNARY_CALLS, "streamed": streamed.len(), "identity": identity}));
    Ok(())
}

fn codec() -> ProstCodec<String, String> {
    ProstCodec::default()
}

/// Whether a request is a gRPC call.
pub(crate) fn is_call(headers: &HeaderMap<HeaderValue>) -> bool {
    headers.get(http::header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}
