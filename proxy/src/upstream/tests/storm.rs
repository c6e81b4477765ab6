//! Many requests with all kinds of endings, in a seeded order: whatever happens, everything is given back.

use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;

/// An HTTP/1 server whose answer is named by the path.
async fn moody() -> SocketAddr {
    raw(|_, mut stream| async move {
        while let Some(head) = read_head(&mut stream).await {
            let mood = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let answer: &[u8] = match mood.as_str() {
                "/close" => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
                "/cut" => b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok",
                "/bad" => b"HTTP/9.9 200 OK\r\n\r\n",
                "/switch" => b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
                "/extra" => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokmore",
                "/hang-up" => b"",
                "/slow" => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    OK
                }
                _ => OK,
            };
            if stream.write_all(answer).await.is_err() || matches!(mood.as_str(), "/close" | "/cut" | "/hang-up") {
                return;
            }
        }
    })
    .await
}

const MOODS: [&str; 9] = ["/", "/", "/close", "/cut", "/bad", "/switch", "/extra", "/hang-up", "/slow"];

/// One request; some callers lose interest before the answer or in the middle of it.
async fn one(bench: &Bench, mood: &'static str, patience: u64) {
    let (first, second) = (patience % 4, patience / 4 % 4);
    let request = if patience.is_multiple_of(3) {
        Request::post(mood).header("host", "a.test").body(Body::full("x".repeat(10))).unwrap()
    } else {
        get(mood)
    };
    let sent = bench.send(request);
    let answer = if first == 0 {
        match tokio::time::timeout(Duration::from_millis(patience % 7), sent).await {
            Ok(answer) => answer,
            Err(_) => return,
        }
    } else {
        sent.await
    };
    if let Ok(answer) = answer
        && second != 0
    {
        let _ = answer.response.into_body().collect().await;
    }
}

async fn storm(bench: Bench, moods: &'static [&'static str]) {
    let bench = Arc::new(bench);
    let mut rng = fastrand::Rng::with_seed(42);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..2_000 {
        let (mood, patience) = (moods[rng.usize(..moods.len())], rng.u64(..1_000));
        let bench = bench.clone();
        tasks.spawn(async move { one(&bench, mood, patience).await });
        if tasks.len() >= 50 {
            tasks.join_next().await.unwrap().expect("no request stalls or panics");
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no request stalls or panics");
    }
    for gauge in ["upstream_rq_active", "upstream_rq_pending_active", "circuit_breakers.default.rq_open"] {
        assert_eq!(bench.stat(gauge), 0, "{gauge}");
    }
    assert_eq!(bench.endpoint().active(), 0);
    assert!(bench.stat("upstream_cx_active") <= 5, "{}", bench.stat("upstream_cx_active"));
    bench.fetch(get("/")).await.expect("it still works");
    let made = bench.stat("upstream_cx_total");
    assert_eq!(made - bench.stat("upstream_cx_destroy"), bench.stat("upstream_cx_active"));
}

#[tokio::test]
async fn everything_is_given_back_over_http1() {
    storm(Bench::new(moody().await, |s| s.limits.max_connections = 5), &MOODS).await;
}

#[tokio::test]
async fn everything_is_given_back_over_http2() {
    async fn answer(request: Request<Incoming>) -> Result<Reply, crate::body::Error> {
        match request.uri().path() {
            "/slow" => tokio::time::sleep(Duration::from_millis(5)).await,
            "/cut" => {
                let broken =
                    [Ok(http_body::Frame::data(Bytes::from_static(b"ok"))), Err(crate::body::Error::TimedOut("x"))];
                return Ok(Response::new(Body::boxed(http_body_util::StreamBody::new(futures_util::stream::iter(
                    broken,
                )))));
            }
            "/reset" => return Err(crate::body::Error::TimedOut("x")),
            _ => {}
        }
        Ok(Response::new(Body::full("ok")))
    }
    let address = raw(|n, stream| async move {
        let connection = http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(7)
            .serve_connection(TokioIo::new(stream), service_fn(answer));
        let mut connection = std::pin::pin!(connection);
        // Each connection goes away after a while, in grace or not.
        tokio::select! {
            _ = connection.as_mut() => return,
            () = tokio::time::sleep(Duration::from_millis(40)) => {}
        }
        if n % 2 == 0 {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    })
    .await;
    let bench = Bench::new(address, |s| {
        s.http = UpstreamHttp::Http2;
        s.limits.max_connections = 5;
    });
    storm(bench, &["/", "/", "/slow", "/cut", "/reset"]).await;
}
