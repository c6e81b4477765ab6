//! From accept to the chain: detection, its time-out, the choice, the bounds.

use super::*;
use crate::config::{
    listener::{
        ListenerFilterKind::{HttpInspector, OriginalDst, TlsInspector},
        PortPredicate, TransportProtocol,
    },
    ratelimit::{NetworkLocalRateLimit, TokenBucket},
};

fn for_http(protocols: &[&str]) -> ChainMatch {
    ChainMatch { application_protocols: protocols.iter().map(ToString::to_string).collect(), ..ChainMatch::default() }
}

/// One chain for HTTP/1 and one for the rest, as an outbound listener has them.
async fn two_ways() -> Plan {
    let http = ChainPlan { matcher: for_http(&["http/1.1"]), ..tcp_chain(proxy_to("http")) };
    Plan::new(vec![http, tcp_chain(proxy_to("other"))])
        .cluster_named("http", &[shouter().await])
        .cluster_named("other", &[shouter().await])
        .inspect(&[OriginalDst, TlsInspector, HttpInspector])
}

#[tokio::test]
async fn what_detection_has_read_reaches_the_upstream() {
    let proxy = two_ways().await.start();
    let mut client = proxy.connect().await;
    // Byte by byte: detection must put all of them back.
    for byte in b"foo /x HTTP/1.1\r\n\r\n" {
        client.write_all(&[*byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await.unwrap(), b"FOO /X HTTP/1.1\r\n\r\n");
    assert_eq!(proxy.talk(b"\x01binary").await, b"\x01BINARY");
    assert_eq!(proxy.log(2).await, ["- - - 19 19 http chain0 1", "- - - 7 7 other chain1 1"]);
}

#[tokio::test]
async fn an_end_before_the_answer_is_clear_makes_it_opaque() {
    let proxy = two_ways().await.start();
    assert_eq!(proxy.talk(b"get /x").await, b"GET /X");
    assert_eq!(proxy.log(1).await, ["- - - 6 6 other chain1 1"]);
}

#[tokio::test]
async fn a_probe_that_says_nothing_is_counted_and_not_logged() {
    let proxy = two_ways().await.start();
    drop(proxy.connect().await);
    assert!(proxy.log(1).await.is_empty());
    assert_eq!(proxy.stat("listener.l.downstream_listener_filter_remote_close"), 1);
}

#[tokio::test]
async fn after_the_time_out_a_silent_client_goes_on_if_the_listener_says_so() {
    let greeter = server(|mut tcp| async move {
        tcp.write_all(b"220 ready").await.unwrap();
        let _ = tcp.read_u8().await;
    });
    let mut plan = Plan::to(greeter.await).inspect(&[TlsInspector, HttpInspector]);
    plan.filters_timeout = Duration::from_millis(50);
    plan.continue_on_timeout = true;
    let proxy = plan.start();
    let mut client = proxy.connect().await;
    let mut greeting = [0; 9];
    in_time(client.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"220 ready");
    assert_eq!(proxy.stat("listener.l.downstream_pre_cx_timeout"), 1);
}

#[tokio::test]
async fn bytes_before_the_time_out_are_not_lost() {
    let mut plan = two_ways().await;
    plan.filters_timeout = Duration::from_millis(50);
    plan.continue_on_timeout = true;
    let proxy = plan.start();
    let mut client = proxy.connect().await;
    client.write_all(b"get").await.unwrap();
    proxy.until("listener.l.downstream_pre_cx_timeout", 1).await;
    client.write_all(b" late").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await.unwrap(), b"GET LATE");
}

#[tokio::test]
async fn after_the_time_out_a_silent_client_is_closed_as_a_rule() {
    let mut plan = two_ways().await;
    plan.filters_timeout = Duration::from_millis(50);
    let proxy = plan.start();
    let mut client = proxy.connect().await;
    assert!(read_all(&mut client).await.is_err(), "a reset");
    assert_eq!(proxy.log(1).await, ["- listener_filters_timed_out listener_filters_timed_out 0 0 - - 0"]);
}

#[tokio::test]
async fn a_filter_that_is_off_for_the_port_is_not_waited_for() {
    let greeter = server(|mut tcp| async move {
        tcp.write_all(b"hi").await.unwrap();
        let _ = tcp.read_u8().await;
    });
    let mut plan = Plan::to(greeter.await);
    plan.filters = vec![ListenerFilter { kind: TlsInspector, disabled: Some(PortPredicate::Range(1, 65_536)) }];
    let proxy = plan.start();
    let mut client = proxy.connect().await;
    let mut greeting = [0; 2];
    in_time(client.read_exact(&mut greeting)).await.unwrap();
}

#[tokio::test]
async fn without_a_chain_the_client_is_reset_and_the_listener_logs_it() {
    let matcher = ChainMatch { transport_protocol: Some(TransportProtocol::Tls), ..ChainMatch::default() };
    let chain = ChainPlan { matcher, ..tcp_chain(proxy_to("c")) };
    let proxy = Plan::new(vec![chain]).cluster(&[shouter().await]).inspect(&[TlsInspector]).start();
    let mut client = proxy.connect().await;
    client.write_all(b"plaintext").await.unwrap();
    let error = read_all(&mut client).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(proxy.log(1).await, ["NR filter_chain_not_found - 0 0 - - 0"]);
    assert_eq!(proxy.stat("listener.l.no_filter_chain_match"), 1);
    assert_eq!(proxy.stat("cluster.c.upstream_cx_total"), 0);
}

#[tokio::test]
async fn a_first_message_without_end_is_refused() {
    let proxy = two_ways().await.start();
    let mut client = proxy.connect().await;
    let _ = client.write_all(format!("GET /{}", "a".repeat(20_000)).as_bytes()).await;
    assert!(read_all(&mut client).await.is_err());
    assert_eq!(
        proxy.log(1).await,
        ["- first_message_is_longer_than_16_KiB first_message_is_longer_than_16_KiB 0 0 - - 0"]
    );
    assert_eq!(proxy.stat("listener.l.downstream_listener_filter_error"), 1);
}

#[tokio::test]
async fn a_flood_of_silent_connections_pushes_out_the_oldest_and_hurts_nobody_else() {
    let mut plan = two_ways().await;
    plan.waiting = 10;
    let proxy = plan.start();
    let mut oldest = proxy.connect().await;
    proxy.until("listener.l.downstream_pre_cx_active", 1).await;
    let mut flood = Vec::new();
    for _ in 0..50 {
        flood.push(proxy.connect().await);
    }
    assert_eq!(proxy.talk(b"\x01works").await, b"\x01WORKS");
    let _ = read_all(&mut oldest).await;
    proxy.until("listener.l.downstream_cx_overflow", 42).await;
    assert!(proxy.stat("listener.l.downstream_pre_cx_active") <= 10);
}

#[tokio::test]
async fn connections_above_the_rate_are_ended() {
    let bucket = TokenBucket { max: 2, fill: 1, interval: Duration::from_secs(3600) };
    let limit = NetworkLocalRateLimit { stat_prefix: "r".into(), bucket };
    let mut chain = tcp_chain(proxy_to("c"));
    chain.filters.push(NetworkFilter::LocalRateLimit(Arc::new(limit)));
    let proxy = Plan::new(vec![chain]).cluster(&[shouter().await]).start();
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(proxy.talk(b"x").await);
    }
    assert_eq!(answers, [&b"X"[..], b"X", b""]);
    assert_eq!(proxy.log(3).await[2], "RL local_rate_limited - 0 0 - chain0 0");
    assert_eq!(proxy.stat("local_rate_limit.r.rate_limited"), 1);
}

#[tokio::test]
async fn a_chain_without_filters_closes() {
    let chain = ChainPlan { terminal: Terminal::Close, ..tcp_chain(proxy_to("c")) };
    let proxy = Plan::new(vec![chain]).start();
    assert_eq!(proxy.talk(b"x").await, b"");
}

#[tokio::test]
async fn a_taken_port_is_named_with_a_hint() {
    let proxy = Plan::to(nowhere().await).start();
    let listener = proxy.shared.store.current().listeners.values().next().cloned().unwrap();
    let error = listen::bind(&listener.config).unwrap_err().to_string();
    assert!(error.contains(&proxy.address.to_string()) && error.contains("another process"), "{error}");
}
