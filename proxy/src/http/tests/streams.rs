//! HTTP/2 and gRPC through the proxy: streams both ways, trailers, resets.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Incoming, client::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{Proxy, World};
use crate::testing::server;
use crate::{
    body::{Body, Error},
    config::{
        cluster::UpstreamHttp,
        route::{DirectResponse, RouteAction},
    },
};

type Frames = mpsc::UnboundedSender<Result<Frame<Bytes>, Error>>;

/// A body that the test writes while it is read.
fn channel() -> (Frames, Body) {
    let (send, receive) = mpsc::unbounded_channel();
    (send, Body::boxed(StreamBody::new(UnboundedReceiverStream::new(receive))))
}

fn data(text: &'static str) -> Result<Frame<Bytes>, Error> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

async fn client(proxy: &Proxy) -> http2::SendRequest<Body> {
    let (send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(proxy.connect())).await.unwrap();
    tokio::spawn(connection);
    send
}

/// An HTTP/2 server that answers with what `answer` makes of the request.
async fn http2_server<F>(answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static) -> SocketAddr
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    server(move |stream| {
        let answer = answer.clone();
        async move {
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let _gone = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    })
    .await
}

fn over_http2(to: SocketAddr) -> World {
    World::new().forward(|f| f.timeout = None).cluster(&[to], |spec| spec.http = UpstreamHttp::Http2)
}

fn grpc(body: Body) -> Request<Body> {
    Request::post("http://h/pkg.Service/Method")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

async fn next(body: &mut Incoming) -> Frame<Bytes> {
    tokio::time::timeout(Duration::from_secs(5), body.frame()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn a_bidirectional_stream_flows_frame_by_frame_with_trailers_both_ways() {
    let to = http2_server(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.uri().to_string(), "http://h/pkg.Service/Method");
        let mut body = request.into_body();
        let (send, answer) = channel();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = body.frame().await {
                if let Some(trailers) = frame.trailers_ref() {
                    assert_eq!(trailers["x-end"], "1");
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("0"));
                    send.send(Ok(Frame::trailers(trailers))).unwrap();
                } else {
                    send.send(Ok(frame)).unwrap();
                }
            }
        });
        Response::builder().header("content-type", "application/grpc").body(answer).unwrap()
    })
    .await;
    let proxy = over_http2(to).start();
    let (upload, body) = channel();
    let response = client(&proxy).await.send_request(grpc(body)).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut answer = response.into_body();
    for part in ["one", "two"] {
        upload.send(data(part)).unwrap();
        assert_eq!(next(&mut answer).await.into_data().unwrap(), part, "nothing waits for the end");
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-end", HeaderValue::from_static("1"));
    upload.send(Ok(Frame::trailers(trailers))).unwrap();
    drop(upload);
    assert_eq!(next(&mut answer).await.into_trailers().unwrap()["grpc-status"], "0");
    drop(answer);
    assert!(proxy.log()[0].starts_with("200 - via_upstream 6 6 1 /pkg.Service/Method"), "{:?}", proxy.log());
}

#[tokio::test]
async fn a_stream_reset_by_the_server_is_reset_for_the_client() {
    let to = http2_server(|_| async {
        let (send, answer) = channel();
        send.send(data("half")).unwrap();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _gone = send.send(Err(Error::TimedOut("a test asks for it")));
        });
        Response::new(answer)
    })
    .await;
    let proxy = over_http2(to).start();
    let response = client(&proxy).await.send_request(grpc(Body::empty())).await.unwrap();
    let mut answer = response.into_body();
    assert_eq!(next(&mut answer).await.into_data().unwrap(), "half");
    let end = tokio::time::timeout(Duration::from_secs(5), answer.frame()).await.unwrap();
    assert!(matches!(end, Some(Err(_))), "never a clean end");
    let log = proxy.log();
    assert!(log[0].starts_with("200 UPE upstream_reset_after_response_started"), "{log:?}");
}

#[tokio::test]
async fn a_client_that_gives_up_frees_the_server() {
    let (gone, mut told) = mpsc::unbounded_channel();
    let to = http2_server(move |request: Request<Incoming>| {
        let gone = gone.clone();
        async move {
            let mut body = request.into_body();
            tokio::spawn(async move {
                while let Some(Ok(_)) = body.frame().await {}
                gone.send(()).unwrap();
            });
            std::future::pending().await
        }
    })
    .await;
    let proxy = over_http2(to).start();
    let (upload, body) = channel();
    upload.send(data("x")).unwrap();
    let mut send = client(&proxy).await;
    let waiting = tokio::spawn(async move { send.send_request(grpc(body)).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    waiting.abort();
    tokio::time::timeout(Duration::from_secs(5), told.recv()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), async {
        while proxy.stat("cluster.c.upstream_rq_active") != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn http2_clients_reach_http1_servers_and_grpc_errors_are_statuses() {
    let proxy = World::to(&[super::canned("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await]).start();
    let request = Request::get("http://h/x").body(Body::empty()).unwrap();
    let response = client(&proxy).await.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hi");
    let proxy = World::to(&[]).start();
    let response = client(&proxy).await.send_request(grpc(Body::full("x"))).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["grpc-status"]),
        (200, &HeaderValue::from_static("14"))
    );
    assert_eq!(response.headers()["grpc-message"], "no healthy upstream");
}

#[tokio::test]
async fn authority_and_host_must_agree_in_http2() {
    let proxy = World::to(&[]).start();
    let request = Request::get("http://h/x").header("host", "other").body(Body::empty()).unwrap();
    let response = client(&proxy).await.send_request(request).await.unwrap();
    assert_eq!(response.status(), 400);
    assert!(proxy.log()[0].starts_with("400 DPE invalid_host "), "{:?}", proxy.log());
}

#[tokio::test]
async fn a_drain_sends_goaway_and_lets_streams_finish() {
    let (release, released) = tokio::sync::watch::channel(false);
    let to = http2_server(move |_| {
        let mut released = released.clone();
        async move {
            released.wait_for(|yes| *yes).await.unwrap();
            Response::new(Body::full("late"))
        }
    })
    .await;
    let proxy = over_http2(to).start();
    let mut send = client(&proxy).await;
    let waiting = tokio::spawn(send.send_request(grpc(Body::empty())));
    tokio::time::sleep(Duration::from_millis(50)).await;
    proxy.chain.drain.begin();
    // The first GOAWAY still lets streams in that were on their way; the second one, a round trip later, does not.
    tokio::time::timeout(Duration::from_secs(5), async {
        while !matches!(
            tokio::time::timeout(Duration::from_millis(20), send.send_request(grpc(Body::empty()))).await,
            Ok(Err(_))
        ) {}
    })
    .await
    .expect("the client is told to go away");
    release.send(true).unwrap();
    let response = waiting.await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "late");
}

/// A GET of `/` at `h` as a HEADERS frame that ends its stream.
fn get_frame(stream: u8) -> Vec<u8> {
    let fields = [0x82, 0x86, 0x84, 0x41, 1, b'h'];
    [&[0, 0, 6, 1, 5, 0, 0, 0, stream], &fields[..]].concat()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_will_not_go_is_refused_once_the_drain_timeout_is_over() {
    use tokio::io::AsyncWriteExt;
    let direct = DirectResponse { status: http::StatusCode::OK, body: Bytes::new() };
    let proxy = World::new().route(super::testing::route(RouteAction::Direct(direct))).start();
    let (mut read, mut write) = tokio::io::split(proxy.connect());
    tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
    // No frame of the server's is ever answered, so the ping between the two GOAWAYs is not either.
    write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    for (stream, seconds) in [(1, 1), (3, 4), (5, 2)] {
        write.write_all(&get_frame(stream)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        proxy.chain.drain.begin();
    }
    let log = proxy.log();
    let statuses: Vec<&str> = log.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(statuses, ["200", "200", "200"]);
    write.write_all(&get_frame(7)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(proxy.log()[3].starts_with("503 - connection_draining "), "{:?}", proxy.log());
}

#[tokio::test]
async fn a_flood_of_frames_without_use_is_cut() {
    use tokio::io::AsyncWriteExt;
    let proxy = World::to(&[]).start();
    let (mut read, mut write) = tokio::io::split(proxy.connect());
    // Reading the answers to the pings keeps the flood going.
    tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
    write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let priority = [0, 0, 5, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0];
    let mut sent = 0;
    while write.write_all(&priority).await.is_ok() {
        sent += 1;
        assert!(sent < 20_000, "the flood was never cut");
    }
    assert!(sent >= 8_000, "cut after {sent}");
}
