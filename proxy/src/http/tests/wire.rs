//! Bytes in, bytes out: HTTP/1 clients and servers written by hand around the whole proxy.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{World, canned, head, nowhere, read_all};
use crate::config::{
    cluster::Limits,
    route::{RetryOn, RetryPolicy},
};
use crate::testing::server;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

#[tokio::test]
async fn a_request_goes_there_and_back() {
    let to = server(|mut stream| async move {
        let head = head(&mut stream).await;
        assert!(head.starts_with("GET /a?b HTTP/1.1\r\n"), "{head}");
        let answer = format!("HTTP/1.1 200 OK\r\nx-up: 1\r\ncontent-length: {}\r\n\r\n{head}", head.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let proxy = World::to(&[to]).start();
    let answer = proxy.talk("GET /a?b HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(status(&answer), "200", "{answer}");
    for part in ["server: envoy", "date: ", "x-up: 1", "x-envoy-upstream-service-time: ", "x-forwarded-proto: http"] {
        assert!(answer.contains(part), "{part} in {answer}");
    }
    assert_eq!(proxy.log().len(), 1);
    assert!(proxy.log()[0].starts_with("200 - via_upstream 0 "), "{:?}", proxy.log());
    assert_eq!(proxy.stat("cluster.c.upstream_rq_200"), 1);
}

#[tokio::test]
async fn what_only_the_proxy_says_is_taken_out_of_answers() {
    let said = "HTTP/1.1 200 OK\r\nx-oxmesh-why: no-route\r\nconnection: keep-alive\r\nconnection: x-mine\r\nx-mine: 1\r\n\
                x-other: 1\r\ncontent-length: 2\r\n\r\nhi";
    let answer = World::to(&[canned(said).await]).start().talk(GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("x-other: 1"), "{answer}");
    assert!(!answer.contains("x-oxmesh-why") && !answer.contains("x-mine"), "{answer}");
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let connections = Arc::new(AtomicU32::new(0));
    let counted = connections.clone();
    let to = server(move |mut stream| {
        counted.fetch_add(1, SeqCst);
        async move {
            while !head(&mut stream).await.is_empty() {
                stream.write_all(OK.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let proxy = World::to(&[to]).start();
    let mut client = proxy.connect();
    for _ in 0..3 {
        client.write_all(GET.as_bytes()).await.unwrap();
        let answer = head(&mut client).await;
        assert_eq!(status(&answer), "200");
        let mut body = [0; 2];
        client.read_exact(&mut body).await.unwrap();
    }
    assert_eq!(connections.load(SeqCst), 1);
}

#[tokio::test]
async fn servers_that_fail_have_their_rows() {
    for (to, expected, line) in [
        (nowhere().await, "503", "503 UF upstream_reset_before_response_started{remote_connection_failure|"),
        (canned("").await, "503", "503 UC upstream_reset_before_response_started{connection_termination} "),
        (
            canned("220 smtp ready\r\n\r\n").await,
            "502",
            "502 UPE upstream_reset_before_response_started{protocol_error} ",
        ),
        (
            canned("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await,
            "502",
            "502 UPE upstream_reset_before_response_started{protocol_error} ",
        ),
        (
            canned("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").await,
            "502",
            "502 UPE upstream_reset_before_response_started{protocol_error} ",
        ),
    ] {
        let proxy = World::to(&[to]).start();
        let answer = proxy.talk(GET).await;
        assert_eq!(status(&answer), expected, "{answer}");
        assert!(answer.contains("upstream connect error or disconnect/reset before headers"), "{answer}");
        assert!(proxy.log()[0].starts_with(line), "{line} but {:?}", proxy.log());
    }
}

#[tokio::test]
async fn no_endpoint_and_a_full_breaker_have_their_rows() {
    let proxy = World::to(&[]).start();
    let answer = proxy.talk(GET).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("no healthy upstream"), "{answer}");
    assert!(proxy.log()[0].starts_with("503 UH no_healthy_upstream "), "{:?}", proxy.log());
    let limits = Limits { max_requests: 0, ..Limits::default() };
    let proxy = World::new().forward(|_| {}).cluster(&[nowhere().await], |spec| spec.limits = limits).start();
    let answer = proxy.talk(GET).await;
    assert!(answer.contains("x-envoy-overloaded: true") && answer.ends_with("overflow"), "{answer}");
    assert!(
        proxy.log()[0].starts_with("503 UO upstream_reset_before_response_started{overflow} "),
        "{:?}",
        proxy.log()
    );
}

#[tokio::test]
async fn an_answer_cut_by_the_server_is_cut_for_the_client() {
    for (answer, whole) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "10"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", "\r\n0\r\n\r\n"),
    ] {
        let proxy = World::to(&[canned(answer).await]).start();
        let seen = proxy.talk(GET).await;
        assert!(seen.starts_with("HTTP/1.1 200") && seen.contains("half"), "{seen}");
        assert!(!seen.ends_with("0\r\n\r\n"), "no clean end ({whole}): {seen}");
        assert!(
            proxy.log()[0].starts_with("200 UPE upstream_reset_after_response_started{protocol_error} "),
            "{:?}",
            proxy.log()
        );
    }
}

#[tokio::test]
async fn requests_with_more_than_one_meaning_reach_no_server() {
    let reached = Arc::new(AtomicU32::new(0));
    let counted = reached.clone();
    let to = server(move |mut stream| {
        counted.fetch_add(1, SeqCst);
        async move {
            head(&mut stream).await;
            let _gone = stream.write_all(OK.as_bytes()).await;
        }
    })
    .await;
    for (request, expected) in [
        ("GET / HTTP/1.0\r\nhost: h\r\n\r\n", "426"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: u@a\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: h\r\ntransfer_encoding: chunked\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: h\r\nx: \u{1}\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost : h\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: h\r\n folded: 1\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", "400"),
        ("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: +1\r\n\r\na", "400"),
        ("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: identity\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "501"),
        ("CONNECT h:443 HTTP/1.1\r\nhost: h:443\r\n\r\n", "404"),
        ("OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n", "404"),
        ("GET /a\\..\\%00 HTTP/1.1\r\nhost: h\r\n\r\n", "400"),
        ("PRI * HTTP/2.1\r\n\r\n", "400"),
    ] {
        let proxy = World::to(&[to]).start();
        let answer = proxy.talk(request).await;
        assert_eq!(status(&answer), expected, "{request:?} got {answer:?}");
        assert_eq!(proxy.log().len(), 1, "{request:?} is logged");
        assert!(proxy.log()[0].starts_with(expected), "{:?}", proxy.log());
    }
    assert_eq!(reached.load(SeqCst), 0);
}

#[tokio::test]
async fn heads_have_bounds_in_bytes_and_lines() {
    let proxy = World::to(&[canned(OK).await]).start();
    let long = format!("GET / HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n", "a".repeat(61 << 10));
    assert_eq!(status(&proxy.talk(&long).await), "431");
    let many = format!("GET / HTTP/1.1\r\nhost: h\r\n{}\r\n", "x: 1\r\n".repeat(100));
    assert_eq!(status(&proxy.talk(&many).await), "431");
    let fits = format!("GET / HTTP/1.1\r\nhost: h\r\n{}\r\n", "x: 1\r\n".repeat(80));
    assert_eq!(status(&proxy.talk(&fits).await), "200");
}

#[tokio::test]
async fn content_length_beside_chunked_is_dropped_and_the_connection_closed() {
    let to = server(|mut stream| async move {
        let head = head(&mut stream).await;
        assert!(!head.contains("content-length"), "{head}");
        let mut body = [0; 12];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"2\r\nab\r\n0\r\n\r\n");
        stream.write_all(OK.as_bytes()).await.unwrap();
    })
    .await;
    let proxy = World::to(&[to]).start();
    let smuggled = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\nGET /next HTTP/1.1\r\nhost: h\r\n\r\n";
    let answer = proxy.talk(smuggled).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "what follows is never parsed: {answer}");
}

#[tokio::test]
async fn a_get_with_a_chunked_body_keeps_it() {
    let to = server(|mut stream| async move {
        let head = head(&mut stream).await;
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        let mut body = [0; 12];
        stream.read_exact(&mut body).await.unwrap();
        stream.write_all(OK.as_bytes()).await.unwrap();
    })
    .await;
    let proxy = World::to(&[to]).start();
    let answer =
        proxy.talk("GET / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n").await;
    assert_eq!(status(&answer), "200");
    assert!(proxy.log()[0].starts_with("200 - via_upstream 2 2 1 /"), "{:?}", proxy.log());
}

#[tokio::test]
async fn a_refused_endpoint_is_left_for_another_one() {
    let policy = RetryPolicy {
        on: RetryOn { connect_failure: true, ..RetryOn::default() },
        num_retries: 3,
        avoid_previous_hosts: true,
        host_selection_attempts: 5,
        ..super::testing::retry_policy()
    };
    let endpoints = [nowhere().await, canned(OK).await];
    for _ in 0..4 {
        let world = World::new().forward(|f| f.retry = Some(Arc::new(policy.clone())));
        let proxy = world.cluster(&endpoints, |_| {}).start();
        assert_eq!(status(&proxy.talk(GET).await), "200");
    }
}

#[tokio::test]
async fn attempts_are_counted_upstream_when_asked() {
    let to = server(|mut stream| async move {
        let head = head(&mut stream).await;
        assert!(head.contains("x-envoy-attempt-count: 1"), "{head}");
        stream.write_all(OK.as_bytes()).await.unwrap();
    })
    .await;
    let mut world = World::to(&[to]);
    world.host.include_attempt_count = true;
    assert_eq!(status(&world.start().talk(GET).await), "200");
}

#[tokio::test]
async fn a_drain_ends_idle_connections_and_lets_requests_finish() {
    let (release, released) = tokio::sync::watch::channel(false);
    let to = server(move |mut stream| {
        let mut released = released.clone();
        async move {
            head(&mut stream).await;
            released.wait_for(|yes| *yes).await.unwrap();
            stream.write_all(OK.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = World::to(&[to]).start();
    let mut idle = proxy.connect();
    let mut busy = proxy.connect();
    busy.write_all(GET.as_bytes()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), async {
        while proxy.stat("http.test.downstream_rq_active") == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    proxy.chain.drain.begin();
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), idle.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    release.send(true).unwrap();
    let answer = read_all(&mut busy).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    assert_eq!(proxy.stat("http.test.downstream_cx_drain_close"), 2);
}

#[tokio::test]
async fn a_cut_ends_requests_in_flight() {
    let to = server(|mut stream| async move {
        head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = World::to(&[to]).start();
    let mut busy = proxy.connect();
    busy.write_all(GET.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    proxy.chain.drain.cut();
    let read = tokio::time::timeout(Duration::from_secs(5), busy.read(&mut [0; 8])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)));
}

#[tokio::test]
async fn connections_end_after_their_number_of_requests() {
    let to = server(|mut stream| async move {
        while !head(&mut stream).await.is_empty() {
            stream.write_all(OK.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = World::to(&[to]).manager(|m| m.max_requests_per_connection = Some(2)).start();
    let answer = proxy.talk(&GET.repeat(3)).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn slow_heads_and_idle_connections_are_closed() {
    let world = |change: fn(&mut crate::config::http::HttpConnectionManager)| World::to(&[]).manager(change).start();
    for half in ["GET / HTT", "PRI * HTTP/2.0\r\n"] {
        let slow = world(|m| m.request_headers_timeout = Duration::from_millis(100));
        let mut client = slow.connect();
        client.write_all(half.as_bytes()).await.unwrap();
        let closed = tokio::time::timeout(Duration::from_secs(5), client.read(&mut [0; 8])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{half}: {closed:?}");
        assert_eq!(slow.stat("http.test.downstream_rq_header_timeout"), 1, "{half}");
    }
    let idle = world(|m| m.idle_timeout = Duration::from_millis(100));
    let mut client = idle.connect();
    client.write_all(GET.as_bytes()).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(5), read_all(&mut client)).await.unwrap().contains(" 503 "));
    assert_eq!(idle.stat("http.test.downstream_cx_idle_timeout"), 1);
    let short = world(|m| m.max_connection_duration = Some(Duration::from_millis(100)));
    let mut client = short.connect();
    client.write_all(GET.as_bytes()).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(5), read_all(&mut client)).await.unwrap().contains(" 503 "));
    assert_eq!(short.stat("http.test.downstream_cx_max_duration_reached"), 1);
}

const UPGRADE: &str =
    "GET / HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\nsec-websocket-key: x\r\n\r\n";

#[tokio::test]
async fn a_websocket_is_refused_unless_allowed() {
    let proxy = World::to(&[canned(OK).await]).start();
    let answer = proxy.talk(UPGRADE).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("connection: close"), "{answer}");
    assert!(proxy.log()[0].starts_with("403 - upgrade_failed "), "{:?}", proxy.log());
    let other = UPGRADE.replace("WebSocket", "tls/1.0");
    let proxy = World::to(&[canned(OK).await]).manager(|m| m.websocket = true).start();
    assert_eq!(status(&proxy.talk(&other).await), "403");
}

#[tokio::test]
async fn a_websocket_is_a_tunnel_that_outlives_a_drain_until_the_cut() {
    let to = server(|mut stream| async move {
        let head = head(&mut stream).await.to_lowercase();
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhello";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _gone = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let proxy = World::to(&[to]).manager(|m| m.websocket = true).start();
    let mut client = proxy.connect();
    client.write_all(format!("{UPGRADE}early").as_bytes()).await.unwrap();
    let answer = head(&mut client).await;
    assert_eq!(status(&answer), "101", "{answer}");
    let mut back = [0; 10];
    client.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"helloearly");
    proxy.chain.drain.begin();
    client.write_all(b"more!").await.unwrap();
    client.read_exact(&mut back[..5]).await.unwrap();
    assert_eq!(&back[..5], b"more!");
    assert!(proxy.log().is_empty(), "the tunnel is not over");
    proxy.chain.drain.cut();
    let closed = tokio::time::timeout(Duration::from_secs(5), client.read(&mut back)).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    tokio::time::timeout(Duration::from_secs(5), proxy.chain.drain.finished()).await.unwrap();
    assert!(proxy.log()[0].starts_with("101 "), "{:?}", proxy.log());
}

#[tokio::test]
async fn another_answer_than_101_is_an_ordinary_one_and_early_bytes_go_nowhere() {
    let (told, mut tell) = tokio::sync::mpsc::unbounded_channel();
    let to = server(move |mut stream| {
        let told = told.clone();
        async move {
            head(&mut stream).await;
            stream.write_all(OK.as_bytes()).await.unwrap();
            told.send(read_all(&mut stream).await).unwrap();
        }
    })
    .await;
    let proxy = World::to(&[to]).manager(|m| m.websocket = true).start();
    let mut client = proxy.connect();
    client.write_all(format!("{UPGRADE}GET /smuggled HTTP/1.1\r\n").as_bytes()).await.unwrap();
    let answer = head(&mut client).await;
    assert_eq!(status(&answer), "200", "{answer}");
    drop(client);
    let seen = tokio::time::timeout(Duration::from_secs(5), tell.recv()).await.unwrap().unwrap();
    assert_eq!(seen, "", "nothing but the request's head was forwarded");
}

#[tokio::test]
async fn h2c_upgrades_are_ignored() {
    let to = server(|mut stream| async move {
        let head = head(&mut stream).await.to_lowercase();
        assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
        stream.write_all(OK.as_bytes()).await.unwrap();
    })
    .await;
    let request =
        "GET / HTTP/1.1\r\nhost: h\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: x\r\n\r\n";
    assert_eq!(status(&World::to(&[to]).start().talk(request).await), "200");
}

#[tokio::test]
async fn the_body_of_a_refused_request_is_never_read_as_the_next_request() {
    let next = "GET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n";
    for expect in ["", "expect: 100-continue\r\n"] {
        for framing in [format!("content-length: {}\r\n", next.len()), "transfer-encoding: chunked\r\n".to_owned()] {
            // No route: the answer comes before the body was read.
            let proxy = World::new().start();
            let mut client = proxy.connect();
            let request = format!("POST /first HTTP/1.1\r\nhost: h\r\n{expect}{framing}\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let answer = head(&mut client).await;
            assert_eq!(status(&answer), "404", "{answer}");
            let body = if framing.starts_with('t') {
                format!("{:x}\r\n{next}\r\n0\r\n\r\n", next.len())
            } else {
                next.to_owned()
            };
            let _gone = client.write_all(body.as_bytes()).await;
            read_all(&mut client).await;
            assert!(proxy.log().iter().all(|line| !line.contains("smuggled")), "{:?}", proxy.log());
        }
    }
}

#[tokio::test]
async fn an_expectation_is_met_by_the_proxy_and_goes_no_further() {
    let to = server(|mut stream| async move {
        let head = head(&mut stream).await;
        assert!(!head.contains("\r\nexpect:"), "{head}");
        let mut body = [0; 2];
        stream.read_exact(&mut body).await.unwrap();
        stream.write_all(OK.as_bytes()).await.unwrap();
    })
    .await;
    let proxy = World::to(&[to]).start();
    let mut client = proxy.connect();
    client.write_all(b"POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n").await.unwrap();
    assert_eq!(status(&head(&mut client).await), "100");
    client.write_all(b"ab").await.unwrap();
    assert_eq!(status(&head(&mut client).await), "200");
}

#[tokio::test]
async fn broken_chunks_reach_no_server_as_a_whole_request_and_end_the_connection() {
    for chunks in [
        "0x2\r\nab\r\n0\r\n\r\n",
        "2\r\nabc\r\n0\r\n\r\n",
        "-1\r\n\r\n",
        "fffffffffffffffff\r\nx",
        "2;\nx\r\nab\r\n0\r\n\r\n",
    ] {
        let (told, mut tell) = tokio::sync::mpsc::unbounded_channel();
        let to = server(move |mut stream| {
            let told = told.clone();
            async move { told.send(read_all(&mut stream).await).unwrap() }
        })
        .await;
        let proxy = World::to(&[to]).start();
        let request = format!(
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n{chunks}GET /next HTTP/1.1\r\nhost: h\r\n\r\n"
        );
        let answer = proxy.talk(&request).await;
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{chunks:?}: {answer}");
        assert_ne!(status(&answer), "200", "{chunks:?}: {answer}");
        if let Ok(Some(seen)) = tokio::time::timeout(Duration::from_secs(1), tell.recv()).await {
            assert!(!seen.ends_with("0\r\n\r\n") && !seen.contains("/next"), "{chunks:?}: {seen}");
        }
        assert!(proxy.log().iter().all(|line| !line.contains("/next")), "{:?}", proxy.log());
    }
}

#[tokio::test]
async fn an_http_1_0_server_does_not_end_the_clients_connection() {
    let proxy = World::to(&[canned("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi").await]).start();
    let answer = proxy.talk(&format!("{GET}{GET}")).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
}
