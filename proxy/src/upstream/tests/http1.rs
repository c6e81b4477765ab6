use std::sync::atomic::AtomicBool;

use super::*;
use crate::upstream::ErrorKind;

#[tokio::test]
async fn requests_in_turn_use_one_connection() {
    let bench = Bench::new(canned(OK).await, |_| {});
    for _ in 0..3 {
        assert_eq!(bench.fetch(get("/")).await.unwrap(), "ok");
    }
    assert_eq!((bench.stat("upstream_cx_total"), bench.stat("upstream_cx_active")), (1, 1));
    assert_eq!((bench.stat("upstream_rq_total"), bench.stat("upstream_rq_200")), (3, 3));
    assert_eq!((bench.stat("upstream_rq_active"), bench.endpoint().active()), (0, 0));
    assert_eq!((bench.stat("upstream_rq_time"), bench.stat("upstream_rq_tx_reset")), (3, 0));
}

#[tokio::test]
async fn an_answer_without_body_keeps_its_connection() {
    let bench = Bench::new(canned(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await, |_| {});
    for _ in 0..3 {
        let head = Request::head("/").header("host", "a.test").body(Body::empty()).unwrap();
        let answer = bench.send(head).await.unwrap();
        assert_eq!(answer.response.headers()["content-length"], "5");
        // As a server does that has nothing to write.
        drop(answer);
    }
    assert_eq!((bench.stat("upstream_cx_total"), bench.stat("upstream_rq_tx_reset")), (1, 0));
}

#[test]
fn an_answer_dropped_after_the_end_of_its_runtime_harms_nobody() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (bench, answer) = runtime.block_on(async {
        let bench = Bench::new(canned(OK).await, |_| {});
        let mut answer = bench.send(get("/")).await.unwrap();
        answer.response.body_mut().frame().await.unwrap().unwrap();
        let second = bench.send(get("/")).await.unwrap();
        (bench, second)
    });
    drop(runtime);
    drop(answer);
    assert_eq!(bench.stat("upstream_rq_active"), 0);
}

#[tokio::test]
async fn workers_do_not_share_connections() {
    let bench = Bench::new(canned(OK).await, |_| {});
    for worker in [0, 1, 0, 1] {
        bench.send_from(worker, get("/")).await.unwrap().response.into_body().collect().await.unwrap();
    }
    assert_eq!(bench.stat("upstream_cx_total"), 2);
}

#[tokio::test]
async fn a_pooled_connection_that_the_server_closed_is_not_used() {
    let address = raw(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(OK).await.unwrap();
    })
    .await;
    let bench = Bench::new(address, |_| {});
    for n in 1..=3 {
        assert_eq!(bench.fetch(get("/")).await.unwrap(), "ok");
        bench.until("upstream_cx_destroy_remote", n).await;
    }
    assert_eq!(bench.stat("upstream_cx_total"), 3);
}

#[tokio::test]
async fn a_server_that_hangs_up_on_a_reused_connection_is_told_apart() {
    let address = raw(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(OK).await.unwrap();
        read_head(&mut stream).await;
    })
    .await;
    let bench = Bench::new(address, |_| {});
    bench.fetch(get("/")).await.unwrap();
    let error = bench.send(get("/")).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Closed(_)), "{error}");
    assert!(error.reused && error.sent, "it may have had an effect: {error:?}");
    assert_eq!((bench.stat("upstream_rq_rx_reset"), bench.endpoint().failures()), (1, 1));
}

#[tokio::test]
async fn refused_connections_say_so() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let bench = Bench::new(free, |_| {});
    let error = bench.send(get("/")).await.unwrap_err();
    assert!(matches!(&error.kind, ErrorKind::Connect(why) if why.contains("nothing listens")), "{error}");
    assert!(!error.sent);
    assert_eq!((bench.stat("upstream_cx_connect_fail"), bench.stat("upstream_rq_pending_failure_eject")), (1, 1));
    assert_eq!((bench.stat("upstream_cx_active"), bench.stat("upstream_rq_pending_active")), (0, 0));
    assert_eq!((bench.stat("upstream_rq_total"), bench.stat("upstream_rq_active")), (0, 0), "it never was on one");
}

#[tokio::test]
async fn answers_that_break_the_protocol_are_refused_and_their_connection_is_cut() {
    let many = format!("HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n", "x: y\r\n".repeat(100));
    let huge = format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "y".repeat(70_000));
    let interim =
        format!("{}HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(9));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("unasked 101", b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".to_vec()),
        (
            "length and coding",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
        ),
        ("two lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokx".to_vec()),
        ("equal lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok".to_vec()),
        ("unknown coding", b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nok".to_vec()),
        ("not HTTP", b"SSH-2.0-OpenSSH_9.6\r\n\r\n".to_vec()),
        ("folded", b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 2\r\n\r\nok".to_vec()),
        ("NUL", b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\nok".to_vec()),
        ("many fields", many.into_bytes()),
        ("huge head", huge.into_bytes()),
        ("interim answers", interim.into_bytes()),
    ];
    for (case, bytes) in cases {
        let bytes: &'static [u8] = bytes.leak();
        let bench = Bench::new(canned(bytes).await, |_| {});
        let error = bench.send(get("/")).await.map(|a| a.response.status()).expect_err(case);
        assert!(matches!(error.kind, ErrorKind::Protocol(_)), "{case}: {error:?}");
        bench.until("upstream_cx_active", 0).await;
        assert_eq!((bench.stat("upstream_rq_active"), bench.stat("upstream_cx_protocol_error")), (0, 1), "{case}");
    }
}

#[tokio::test]
async fn endless_interim_answers_are_cut() {
    let address = raw(|_, mut stream| async move {
        read_head(&mut stream).await;
        while stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_ok() {}
    })
    .await;
    let bench = Bench::new(address, |_| {});
    assert!(matches!(bench.send(get("/")).await.unwrap_err().kind, ErrorKind::Protocol(_)));
}

#[tokio::test]
async fn a_few_interim_answers_are_passed_over() {
    let eight =
        format!("{}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(8));
    let bench = Bench::new(canned(eight.into_bytes().leak()).await, |_| {});
    for _ in 0..3 {
        assert_eq!(bench.fetch(get("/")).await.unwrap(), "ok");
    }
    assert_eq!(bench.stat("upstream_cx_total"), 1, "the count begins anew with each request");
}

#[tokio::test]
async fn a_cut_body_is_an_error_to_its_reader() {
    for head in ["content-length: 10", "transfer-encoding: chunked"] {
        let address = raw(move |_, mut stream| async move {
            read_head(&mut stream).await;
            let part = if head.starts_with('c') { "12345" } else { "5\r\n12345\r\n" };
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{part}").as_bytes()).await.unwrap();
        })
        .await;
        let bench = Bench::new(address, |_| {});
        bench.fetch(get("/")).await.expect_err(head);
        bench.until("upstream_cx_active", 0).await;
        assert_eq!((bench.stat("upstream_rq_rx_reset"), bench.stat("upstream_rq_active")), (1, 0));
    }
}

#[tokio::test]
async fn bytes_after_an_answer_are_never_the_next_ones() {
    let poisoned: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    let bench = Bench::new(canned(poisoned).await, |_| {});
    for n in 1..=4 {
        assert_eq!(bench.fetch(get("/")).await.unwrap(), "ok");
        bench.until("upstream_cx_total", n).await;
    }
    let bench = Bench::new(canned(b"HTTP/1.1 204 No Content\r\n\r\nbody").await, |_| {});
    for _ in 0..4 {
        assert_eq!(bench.fetch(get("/")).await.unwrap(), "");
    }
    assert_eq!(bench.stat("upstream_cx_total"), 4);
}

/// A body that gives one piece and then waits for ever.
fn unfinished() -> Body {
    use futures_util::StreamExt;
    let first = futures_util::stream::iter([Ok(http_body::Frame::data(Bytes::from_static(b"part")))]);
    Body::boxed(http_body_util::StreamBody::new(first.chain(futures_util::stream::pending())))
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_ends_the_connection() {
    let bench = Bench::new(canned(OK).await, |_| {});
    let post = Request::post("/").header("host", "a.test").body(unfinished()).unwrap();
    assert_eq!(bench.fetch(post).await.unwrap(), "ok");
    bench.until("upstream_cx_active", 0).await;
    assert_eq!(bench.fetch(get("/")).await.unwrap(), "ok");
    assert_eq!(bench.stat("upstream_cx_total"), 2);
}

#[tokio::test]
async fn request_bodies_are_sent_and_their_connection_is_kept() {
    let address = raw(|_, mut stream| async move {
        while let Some(head) = read_head(&mut stream).await {
            assert!(head.contains("content-length: 5"), "{head}");
            let mut body = [0; 5];
            stream.read_exact(&mut body).await.unwrap();
            assert_eq!(&body, b"hello");
            stream.write_all(OK).await.unwrap();
        }
    })
    .await;
    let bench = Bench::new(address, |_| {});
    for _ in 0..3 {
        let post = Request::post("/").header("host", "a.test").body(Body::full("hello")).unwrap();
        assert_eq!(bench.fetch(post).await.unwrap(), "ok");
    }
    assert_eq!(bench.stat("upstream_cx_total"), 1);
}

#[tokio::test]
async fn a_failing_request_body_is_the_downstreams_fault() {
    let address = raw(|_, mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let bench = Bench::new(address, |_| {});
    let broken = futures_util::stream::iter([
        Ok(http_body::Frame::data(Bytes::from_static(b"a"))),
        Err(crate::body::Error::TimedOut("client went silent")),
    ]);
    let body = Body::boxed(http_body_util::StreamBody::new(broken));
    let post = Request::post("/").header("host", "a.test").body(body).unwrap();
    let error = bench.send(post).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::RequestBody(_)), "{error:?}");
    assert_eq!(bench.endpoint().failures(), 0);
    bench.until("upstream_cx_active", 0).await;
}

#[tokio::test]
async fn dropping_an_answer_half_way_frees_everything() {
    let address = raw(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\npart").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let bench = Bench::new(address, |s| s.limits.max_requests = 1);
    let answer = bench.send(get("/")).await.unwrap();
    assert!(bench.cluster.admit_request().is_err(), "the permit lives in the body");
    drop(answer);
    assert!(bench.cluster.admit_request().is_ok());
    bench.until("upstream_cx_active", 0).await;
    assert_eq!((bench.stat("upstream_rq_tx_reset"), bench.stat("upstream_rq_active")), (1, 0));
}

#[tokio::test]
async fn giving_up_before_the_answer_closes_the_connection() {
    let address = raw(|_, mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let bench = Bench::new(address, |_| {});
    let waited = tokio::time::timeout(Duration::from_millis(50), bench.send(get("/"))).await;
    assert!(waited.is_err());
    bench.until("upstream_cx_active", 0).await;
    assert_eq!((bench.stat("upstream_rq_active"), bench.endpoint().active()), (0, 0));
    assert_eq!((bench.stat("upstream_rq_tx_reset"), bench.stat("upstream_rq_cancelled")), (1, 0));
}

#[tokio::test]
async fn a_connection_serves_its_number_of_requests() {
    let bench = Bench::new(canned(OK).await, |s| s.max_requests_per_connection = Some(2));
    for _ in 0..4 {
        bench.fetch(get("/")).await.unwrap();
    }
    assert_eq!((bench.stat("upstream_cx_total"), bench.stat("upstream_cx_max_requests")), (2, 2));
    bench.until("upstream_cx_active", 0).await;
}

#[tokio::test]
async fn idle_connections_close_in_time() {
    let ended = Arc::new(AtomicBool::new(false));
    let told = ended.clone();
    let address = raw(move |_, mut stream| {
        let told = told.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                stream.write_all(OK).await.unwrap();
            }
            told.store(true, SeqCst);
        }
    })
    .await;
    let bench = Bench::new(address, |s| s.idle_timeout = Duration::from_millis(100));
    bench.fetch(get("/")).await.unwrap();
    bench.until("upstream_cx_active", 0).await;
    bench.until("upstream_cx_idle_timeout", 1).await;
    assert!(ended.load(SeqCst) || bench.stat("upstream_cx_destroy_local") == 1);
}

#[tokio::test]
async fn more_idle_connections_than_the_stack_holds_are_all_found_again() {
    let bench = Arc::new(Bench::new(canned(OK).await, |_| {}));
    for _ in 0..2 {
        let answers = futures_util::future::join_all((0..100).map(|_| bench.send(get("/")))).await;
        for answer in answers {
            answer.unwrap().response.into_body().collect().await.unwrap();
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.stat("upstream_cx_total"), 100);
}

#[tokio::test]
async fn idle_connections_close_with_their_cluster() {
    let bench = Bench::new(canned(OK).await, |_| {});
    let answers = futures_util::future::join_all((0..80).map(|_| bench.send(get("/")))).await;
    for answer in answers {
        answer.unwrap().response.into_body().collect().await.unwrap();
    }
    // A handle keeps the series alive beyond the cluster.
    let stats = bench.cluster.stats().clone();
    let Bench { cluster, registry } = bench;
    assert_eq!(registry.value("cluster.c.upstream_cx_active"), Some(80));
    drop(cluster);
    let closed = async {
        while registry.value("cluster.c.upstream_cx_active") != Some(0) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), closed).await.expect("all closed");
    drop(stats);
}

#[tokio::test]
async fn an_asked_for_upgrade_gives_the_raw_connection() {
    let address = raw(|_, mut stream| async move {
        let head = read_head(&mut stream).await.unwrap();
        assert!(head.contains("upgrade: websocket"), "{head}");
        let accept = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nfirst";
        stream.write_all(accept.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let bench = Bench::new(address, |_| {});
    let request = Request::get("/ws")
        .header("host", "a.test")
        .header("upgrade", "websocket")
        .header("connection", "upgrade")
        .body(Body::empty())
        .unwrap();
    let options = SendOptions { version: Version::Http1, worker: 0, upgrade: true };
    let answer = bench.send_with(options, request).await.unwrap();
    assert_eq!(answer.response.status(), 101);
    let mut io = answer.upgrade.unwrap().into_io().await.unwrap();
    io.write_all(b" echo").await.unwrap();
    let mut got = [0; 10];
    io.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"first echo");
    assert_eq!(bench.stat("upstream_rq_active"), 1);
    drop(io);
    bench.until("upstream_cx_active", 0).await;
    assert_eq!((bench.stat("upstream_rq_active"), bench.stat("upstream_rq_tx_reset")), (0, 0));
}

#[tokio::test]
async fn an_absolute_uri_becomes_path_and_host() {
    let address = raw(|_, mut stream| async move {
        let head = read_head(&mut stream).await.unwrap();
        assert!(head.starts_with("GET /a?b HTTP/1.1\r\n") && head.contains("host: x.test:81\r\n"), "{head}");
        stream.write_all(OK).await.unwrap();
    })
    .await;
    let bench = Bench::new(address, |_| {});
    let request = Request::get("http://x.test:81/a?b").body(Body::empty()).unwrap();
    assert_eq!(bench.fetch(request).await.unwrap(), "ok");
}

#[tokio::test]
async fn the_future_of_a_request_is_small() {
    let bench = Bench::new(canned(OK).await, |_| {});
    let (endpoint, permit) = (bench.endpoint(), bench.cluster.admit_request().unwrap());
    let options = SendOptions { version: Version::Http1, worker: 0, upgrade: false };
    let sent = bench.cluster.send(&endpoint, get("/"), permit, options);
    let size = std::mem::size_of_val(&sent);
    assert!(size < 2048, "{size} bytes are moved for each request");
}
