//! HTTP/2 on both sides, by hyper's client: the same table twice.

use std::{convert::Infallible, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{Request, body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use oxmesh::pod::DataPlane::{Envoy, Oxmesh};
use tokio::{net::TcpStream, time::timeout};

use super::{
    Side, Verdict,
    observe::{self, Fields},
    upstream::Step,
};

struct Row {
    name: &'static str,
    method: &'static str,
    target: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
    trailers: bool,
    steps: &'static [Step],
}

impl Row {
    const fn get(name: &'static str, target: &'static str, headers: &'static [(&'static str, &'static str)]) -> Self {
        Self { name, method: "GET", target, headers, body: "", trailers: false, steps: &[] }
    }
}

const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc"), ("te", "trailers")];

pub(super) fn names() -> Vec<&'static str> {
    rows().iter().map(|row| row.name).collect()
}

fn rows() -> Vec<Row> {
    let get = Row::get;
    vec![
        get("HTTP/2: a GET", "http://h/x?q=1", &[("x-a", "1"), ("x-a", "2")]),
        get("HTTP/2: a GET for a server of HTTP/2", "http://h/h2", &[("x-a", "1"), ("x-a", "2")]),
        Row { method: "HEAD", ..get("HTTP/2: HEAD", "http://h/x", &[]) },
        Row { method: "POST", body: "hello", ..get("HTTP/2: a body", "http://h/x", &[("content-length", "5")]) },
        Row { method: "POST", body: "hello", ..get("HTTP/2: a body without a length", "http://h/x", &[]) },
        Row { method: "POST", body: "hello", ..get("HTTP/2: a body for a server of HTTP/2", "http://h/h2", &[]) },
        Row {
            method: "POST",
            body: "hello",
            trailers: true,
            ..get("HTTP/2: trailers", "http://h/x", &[("te", "trailers")])
        },
        Row {
            method: "POST",
            body: "hello",
            trailers: true,
            ..get("HTTP/2: trailers for a server of HTTP/2", "http://h/h2", &[("te", "trailers")])
        },
        Row { method: "POST", body: "hello", ..get("HTTP/2: trailers of an answer", "http://h/h2/trailers", GRPC) },
        get("HTTP/2: an answer of 503", "http://h/h2/status", &[]),
        get("HTTP/2: a stream that the server resets", "http://h/h2/reset", &[]),
        get("HTTP/2: cookies in crumbs", "http://h/x", &[("cookie", "a=1"), ("cookie", "b=2")]),
        get("HTTP/2: cookies in crumbs for a server of HTTP/2", "http://h/h2", &[("cookie", "a=1"), ("cookie", "b=2")]),
        get("HTTP/2: no authority but a host", "/x", &[("host", "known.example")]),
        get("HTTP/2: an authority of the table", "http://known.example:8080/x", &[]),
        get("HTTP/2: https as scheme", "https://h/x", &[]),
        get("HTTP/2: a path with dots", "http://h/x/../y?a", &[]),
        get("HTTP/2: no route", "http://h/none", &[]),
        get("HTTP/2: no route for gRPC", "http://h/none", GRPC),
        get("HTTP/2: a denied request", "http://h/p/nobody", &[]),
        get("HTTP/2: a denied request of gRPC", "http://h/p/nobody", GRPC),
        get("HTTP/2: a refused connection for gRPC", "http://h/f/refused", GRPC),
        get("HTTP/2: a cluster without endpoints", "http://h/f/empty", &[]),
        get("HTTP/2: a redirect", "http://h/r/https", &[]),
        get(
            "HTTP/2: fields from outside",
            "http://h/x",
            &[("x-forwarded-for", "1.2.3.4"), ("x-request-id", "mine"), ("via", "a")],
        ),
        Row {
            steps: &[Step::Last("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")],
            ..get("HTTP/2: half a body", "http://h/x", &[])
        },
        Row {
            steps: &[Step::Last(
                "HTTP/1.1 200 OK\r\nconnection: x-a\r\nx-a: 1\r\nkeep-alive: 1\r\ncontent-length: 2\r\n\r\nok",
            )],
            ..get("HTTP/2: fields of a connection in the answer", "http://h/x", &[])
        },
        Row { steps: &[Step::Say("HTTP/1.1 204 No Content\r\n\r\n")], ..get("HTTP/2: 204", "http://h/x", &[]) },
        Row { steps: &[Step::Reset], ..get("HTTP/2: a reset before the head", "http://h/x", &[]) },
    ]
}

pub(super) async fn compare() -> Result<()> {
    let (envoy, ours) = tokio::join!(Side::start(Envoy), Side::start(Oxmesh));
    let (mut envoy, mut ours) = (envoy?, ours?);
    let mut verdict = Verdict::open()?;
    for row in rows() {
        let (theirs, mine) = tokio::join!(ask(&mut envoy, &row), ask(&mut ours, &row));
        let (theirs, mine) = (theirs.context("envoy")?, mine.context("our proxy")?);
        verdict.add(row.name, false, &theirs, &mine);
    }
    ours.proxy.healthy()?;
    verdict.close()
}

async fn client(port: u16) -> Result<SendRequest<BoxBody<Bytes, Infallible>>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn ask(side: &mut Side, row: &Row) -> Result<Fields> {
    side.up.set(row.steps);
    let mut request = Request::builder().method(row.method).uri(row.target);
    for (name, value) in row.headers {
        request = request.header(*name, *value);
    }
    let body = Full::new(Bytes::from_static(row.body.as_bytes()));
    let body = if row.trailers {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-trailer", http::HeaderValue::from_static("1"));
        body.with_trailers(async { Some(Ok(trailers)) }).boxed()
    } else {
        body.boxed()
    };
    let mut fields = Fields::new();
    let mut sender = client(side.front).await?;
    let exchange = async {
        match sender.send_request(request.body(body)?).await {
            Ok(response) => answer(&mut fields, response).await,
            Err(e) => drop(fields.insert("1.error".into(), reason(&e))),
        }
        anyhow::Ok(())
    };
    match timeout(Duration::from_secs(4), exchange).await {
        Ok(done) => done?,
        Err(_) => drop(fields.insert("1.error".into(), "no end of the answer".into())),
    }
    drop(sender);
    side.aftermath(&mut fields, 1).await;
    Ok(fields)
}

async fn answer(fields: &mut Fields, response: hyper::Response<Incoming>) {
    let (head, mut body) = response.into_parts();
    fields.insert("1.line".into(), head.status.as_u16().to_string());
    let lines = |map: &http::HeaderMap| -> Vec<String> {
        map.iter().map(|(n, v)| format!("{n}: {}", String::from_utf8_lossy(v.as_bytes()))).collect()
    };
    observe::headers(fields, "1", lines(&head.headers).iter().map(String::as_str));
    let mut data = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(bytes)) => data.extend_from_slice(&bytes),
            Ok(Err(frame)) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                observe::headers(fields, "1.trailers", lines(&trailers).iter().map(String::as_str));
            }
            Err(e) => {
                fields.insert("1.error".into(), reason(&e));
                break;
            }
        }
    }
    fields.insert("1.body".into(), observe::short(&data));
}

/// The code of a reset, or the words.
fn reason(error: &hyper::Error) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string);
    source.unwrap_or_else(|| error.to_string())
}
