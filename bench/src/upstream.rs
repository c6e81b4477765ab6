//! The upstream: answers as cheaply as can be, so that the proxies are what is measured.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Serves both ports on one thread until killed.
pub(crate) fn serve(http1: u16, http2: u16, size: usize) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let plain = TcpListener::bind(("127.0.0.1", http1)).await?;
        let grpc = TcpListener::bind(("127.0.0.1", http2)).await?;
        let answer: Bytes = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {size}\r\n\r\n{}",
            "x".repeat(size)
        )
        .into();
        loop {
            tokio::select! {
                accepted = plain.accept() => { tokio::spawn(answer_http1(accepted?.0, answer.clone())); }
                accepted = grpc.accept() => { tokio::spawn(answer_grpc(accepted?.0)); }
            }
        }
    })
}

/// Answers each request head (none has a body) with the same bytes.
async fn answer_http1(mut stream: TcpStream, answer: Bytes) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        while let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            buffer.drain(..end + 4);
            stream.write_all(&answer).await?;
        }
    }
}

/// A unary gRPC answer: 37 bytes and trailers, whatever was asked.
async fn answer_grpc(stream: TcpStream) {
    let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
        // A request that breaks off has no answer to wait for; the connection's error ends it.
        let _ = request.into_body().collect().await;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0; 37]))), Ok(Frame::trailers(trailers))];
        let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        Ok::<_, Infallible>(response)
    });
    let _ = stream.set_nodelay(true);
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(e) = served {
        eprintln!("upstream: gRPC connection ended: {e}");
    }
}
