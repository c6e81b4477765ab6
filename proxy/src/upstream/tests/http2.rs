use http::HeaderMap;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;
use crate::upstream::ErrorKind;

/// An HTTP/2 server; each connection may be told to go away by the notifier.
async fn serve<F, Fut>(max_streams: u32, goaway: Arc<tokio::sync::Notify>, handler: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Reply> + Send + 'static,
{
    raw(move |_, stream| {
        let (handler, goaway) = (handler.clone(), goaway.clone());
        async move {
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, std::convert::Infallible>(answer.await) }
            });
            let connection = http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(max_streams)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => return,
                () = goaway.notified() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        }
    })
    .await
}

fn bench(address: SocketAddr) -> Bench {
    Bench::new(address, |s| s.http = UpstreamHttp::Http2)
}

/// A handler in which requests wait for each other until `wanted` are inside, or a while.
fn gathering(
    wanted: usize,
    crowd: Crowd,
) -> impl Fn(Request<Incoming>) -> futures_util::future::BoxFuture<'static, Reply> + Clone {
    let barrier = Arc::new(tokio::sync::Barrier::new(wanted));
    move |_| {
        let (barrier, crowd) = (barrier.clone(), crowd.clone());
        Box::pin(async move {
            crowd.enter();
            let _ = tokio::time::timeout(Duration::from_secs(2), barrier.wait()).await;
            crowd.leave();
            Response::new(Body::full("ok"))
        })
    }
}

#[tokio::test]
async fn requests_share_one_connection() {
    let crowd = Crowd::default();
    let bench = bench(serve(100, Arc::default(), gathering(20, crowd.clone())).await);
    let all = futures_util::future::join_all((0..20).map(|_| bench.fetch(get("/")))).await;
    assert!(all.iter().all(|r| r.as_deref() == Ok(b"ok")), "{all:?}");
    assert_eq!((crowd.most(), bench.stat("upstream_cx_total"), bench.stat("upstream_cx_http2_total")), (20, 1, 1));
    assert_eq!((bench.stat("upstream_rq_active"), bench.stat("upstream_rq_pending_active")), (0, 0));
}

#[tokio::test]
async fn another_connection_is_opened_when_the_server_takes_no_more_streams() {
    let bench = bench(serve(2, Arc::default(), gathering(4, Crowd::default())).await);
    // The first requests don't know the limit yet: those above it wait inside the connection.
    let first = futures_util::future::join_all((0..4).map(|_| bench.fetch(get("/")))).await;
    assert!(first.iter().all(Result::is_ok), "{first:?}");
    assert_eq!(bench.stat("upstream_cx_total"), 1);
    let all = futures_util::future::join_all((0..4).map(|_| bench.fetch(get("/")))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(bench.stat("upstream_cx_active"), 2);
}

#[tokio::test]
async fn a_connection_told_to_go_away_finishes_and_the_next_request_goes_elsewhere() {
    let goaway = Arc::new(tokio::sync::Notify::new());
    let slow = |request: Request<Incoming>| async move {
        if request.uri().path() == "/slow" {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Response::new(Body::full("ok"))
    };
    let bench = Arc::new(bench(serve(100, goaway.clone(), slow).await));
    bench.fetch(get("/")).await.unwrap();
    let in_flight = tokio::spawn({
        let bench = bench.clone();
        async move { bench.fetch(get("/slow")).await }
    });
    bench.until("upstream_rq_active", 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    goaway.notify_waiters();
    tokio::time::sleep(Duration::from_millis(50)).await;
    for _ in 0..3 {
        assert_eq!(bench.fetch(get("/")).await.unwrap(), "ok");
    }
    assert_eq!(in_flight.await.unwrap().unwrap(), "ok");
    assert_eq!(bench.stat("upstream_cx_total"), 2);
    bench.until("upstream_cx_active", 1).await;
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let echo = |request: Request<Incoming>| async move {
        let sent = request.into_body().collect().await.unwrap();
        let trailers = sent.trailers().cloned().unwrap_or_default();
        let frames = [Ok(http_body::Frame::data(sent.to_bytes())), Ok(http_body::Frame::trailers(trailers))];
        Response::new(Body::boxed(http_body_util::StreamBody::new(futures_util::stream::iter(frames))))
    };
    let bench = bench(serve(100, Arc::default(), echo).await);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let frames = [Ok(http_body::Frame::data(Bytes::from_static(b"hi"))), Ok(http_body::Frame::trailers(trailers))];
    let body = Body::boxed(http_body_util::StreamBody::new(futures_util::stream::iter(frames)));
    let post = Request::post("/").header("host", "a.test").body(body).unwrap();
    let answer = bench.send(post).await.unwrap().response.into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(answer.to_bytes(), "hi");
}

#[tokio::test]
async fn host_becomes_the_authority() {
    let show = |request: Request<Incoming>| async move {
        let host = request.headers().contains_key("host");
        Response::new(Body::full(format!("{} {host}", request.uri())))
    };
    let bench = bench(serve(100, Arc::default(), show).await);
    assert_eq!(bench.fetch(get("/a?b")).await.unwrap(), "http://a.test/a?b false");
    let no_host = Request::get("/").body(Body::empty()).unwrap();
    assert!(matches!(bench.send(no_host).await.unwrap_err().kind, ErrorKind::RequestBody(_)));
}

#[tokio::test]
async fn heads_with_too_many_fields_are_refused_and_the_connection_lives() {
    let answer = |request: Request<Incoming>| async move {
        let mut reply = Response::new(Body::full("ok"));
        let fields: u32 = request.uri().path()[1..].parse().unwrap();
        for i in 0..fields {
            reply.headers_mut().append(http::HeaderName::try_from(format!("x-{i}")).unwrap(), "y".parse().unwrap());
        }
        reply
    };
    let bench = bench(serve(100, Arc::default(), answer).await);
    assert!(bench.fetch(get("/50")).await.is_ok());
    let error = bench.send(get("/150")).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Protocol(_)), "{error:?}");
    let error = bench.send(get("/5000")).await.unwrap_err();
    assert!(!matches!(error.kind, ErrorKind::RequestBody(_)), "{error:?}");
    assert!(bench.fetch(get("/1")).await.is_ok());
    assert_eq!((bench.stat("upstream_cx_total"), bench.stat("upstream_rq_active")), (1, 0));
}

#[tokio::test]
async fn those_who_wait_for_a_dial_share_its_failure() {
    let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let bench = bench(refused);
    let all = futures_util::future::join_all((0..10).map(|_| bench.send(get("/")))).await;
    assert!(all.iter().all(|r| matches!(r.as_ref().unwrap_err().kind, ErrorKind::Connect(_))));
    assert_eq!(bench.stat("upstream_cx_total"), 1, "one dial");
    assert_eq!((bench.stat("upstream_rq_active"), bench.stat("upstream_cx_active")), (0, 0));
}

#[tokio::test]
async fn a_dropped_answer_resets_its_stream_alone() {
    let stream = |request: Request<Incoming>| async move {
        if request.uri().path() == "/big" {
            use futures_util::StreamExt;
            let piece = || Ok(http_body::Frame::data(Bytes::from(vec![0; 1000])));
            let endless = futures_util::stream::repeat_with(piece).then(|p| async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                p
            });
            return Response::new(Body::boxed(http_body_util::StreamBody::new(endless)));
        }
        Response::new(Body::full("ok"))
    };
    let bench = bench(serve(100, Arc::default(), stream).await);
    drop(bench.send(get("/big")).await.unwrap());
    assert_eq!(bench.fetch(get("/")).await.unwrap(), "ok");
    assert_eq!((bench.stat("upstream_cx_total"), bench.stat("upstream_rq_tx_reset")), (1, 1));
    assert_eq!(bench.stat("upstream_rq_active"), 0);
}

#[tokio::test]
async fn an_idle_connection_closes_in_time() {
    let ok = |_: Request<Incoming>| async { Response::new(Body::full("ok")) };
    let address = serve(100, Arc::default(), ok).await;
    let bench = Bench::new(address, |s| {
        s.http = UpstreamHttp::Http2;
        s.idle_timeout = Duration::from_millis(100);
    });
    bench.fetch(get("/")).await.unwrap();
    bench.until("upstream_cx_active", 0).await;
    assert_eq!(bench.stat("upstream_cx_idle_timeout"), 1);
}

#[tokio::test]
async fn a_connection_that_fell_silent_is_left_for_another() {
    // The first connection answers once and then swallows everything.
    let address = raw(|n, stream| async move {
        let ok = |_: Request<Incoming>| async { Ok::<_, std::convert::Infallible>(Response::new(Body::full("ok"))) };
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(ours), service_fn(ok)));
        let mut stream = stream;
        if n > 0 {
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut theirs).await;
            return;
        }
        let open = tokio::io::copy_bidirectional(&mut stream, &mut theirs);
        let _ = tokio::time::timeout(Duration::from_millis(200), open).await;
        std::future::pending::<()>().await;
    })
    .await;
    let bench = bench(address);
    assert_eq!(bench.fetch(get("/")).await.unwrap(), "ok");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let waited = tokio::time::timeout(Duration::from_millis(1_100), bench.send(get("/"))).await;
    assert!(waited.is_err(), "nothing comes");
    assert_eq!(bench.fetch(get("/")).await.unwrap(), "ok");
    assert_eq!(bench.stat("upstream_cx_total"), 2);
}
