//! The TCP proxy behind a listener.

use super::*;
use crate::{
    config::route::{PerRouteFilters, WeightedTarget},
    net::stream::abort,
};

#[tokio::test]
async fn bytes_go_both_ways_and_each_side_ends_on_its_own() {
    let proxy = Plan::to(shouter().await).start();
    assert_eq!(proxy.talk(b"hello").await, b"HELLO");
    assert_eq!(proxy.log(1).await, ["- - - 5 5 c chain0 1"]);
    for (name, value) in [
        ("tcp.t.downstream_cx_total", 1),
        ("tcp.t.downstream_cx_rx_bytes_total", 5),
        ("tcp.t.downstream_cx_tx_bytes_total", 5),
        ("listener.l.downstream_cx_total", 1),
        ("listener.l.downstream_cx_active", 0),
        ("listener.l.downstream_pre_cx_active", 0),
    ] {
        assert_eq!(proxy.stat(name), value, "{name}");
    }
}

#[tokio::test]
async fn a_large_transfer_arrives_whole() {
    let proxy = Plan::to(shouter().await).start();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| b'a' + (i % 23) as u8).collect();
    assert!(proxy.talk(&sent).await == sent.to_ascii_uppercase());
}

#[tokio::test]
async fn a_server_may_speak_first() {
    let server = server(|mut tcp| async move {
        tcp.write_all(b"220 ready").await.unwrap();
        let _ = tcp.read_u8().await;
    });
    let proxy = Plan::to(server.await).start();
    let mut client = proxy.connect().await;
    let mut greeting = [0; 9];
    in_time(client.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"220 ready");
}

#[tokio::test]
async fn without_an_upstream_the_client_sees_an_end_and_the_log_says_why() {
    let mut twice = proxy_to("c");
    twice.max_connect_attempts = 2;
    for (plan, line) in [
        (Plan::to(nowhere().await), "UF,URX - - 0 0 c chain0 1"),
        (Plan::new(vec![tcp_chain(twice)]).cluster(&[nowhere().await]), "UF,URX - - 0 0 c chain0 2"),
        (Plan::new(vec![tcp_chain(proxy_to("c"))]).cluster(&[]), "UH - - 0 0 c chain0 0"),
        (Plan::new(vec![tcp_chain(proxy_to("gone"))]), "NC - - 0 0 gone chain0 0"),
    ] {
        let proxy = plan.start();
        let mut client = proxy.connect().await;
        assert_eq!(read_all(&mut client).await.unwrap(), b"", "{line}");
        assert_eq!(proxy.log(1).await, [line]);
    }
}

#[tokio::test]
async fn the_connection_above_the_clusters_limit_is_ended() {
    let mut plan = Plan::to(shouter().await);
    plan.clusters[0].limits.max_connections = 1;
    let proxy = plan.start();
    let held = proxy.connect().await;
    proxy.until("cluster.c.upstream_cx_active", 1).await;
    let mut second = proxy.connect().await;
    assert_eq!(read_all(&mut second).await.unwrap(), b"");
    assert_eq!(proxy.log(1).await, ["UO - - 0 0 c chain0 1"]);
    drop(held);
    proxy.until("cluster.c.upstream_cx_active", 0).await;
}

#[tokio::test]
async fn another_endpoint_is_tried_when_the_first_refuses() {
    let mut tcp = proxy_to("c");
    tcp.max_connect_attempts = 2;
    let proxy = Plan::new(vec![tcp_chain(tcp)]).cluster(&[nowhere().await, shouter().await]).start();
    for _ in 0..4 {
        assert_eq!(proxy.talk(b"x").await, b"X");
    }
}

#[tokio::test]
async fn a_reset_of_the_server_is_a_reset_for_the_client() {
    let server = server(|mut tcp| async move {
        let _ = tcp.read_u8().await;
        abort(&tcp);
    });
    let proxy = Plan::to(server.await).start();
    let mut client = proxy.connect().await;
    client.write_all(b"x").await.unwrap();
    let error = read_all(&mut client).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(proxy.log(1).await, ["UC - - 1 0 c chain0 1"]);
}

#[tokio::test]
async fn a_reset_of_the_client_is_a_reset_for_the_server() {
    let (seen, mut reset) = tokio::sync::mpsc::channel(1);
    let server = server(move |mut tcp| {
        let seen = seen.clone();
        async move {
            let mut bytes = Vec::new();
            let _ = seen.send(tcp.read_to_end(&mut bytes).await).await;
        }
    });
    let proxy = Plan::to(server.await).start();
    let mut client = proxy.connect().await;
    client.write_all(b"half of a mess").await.unwrap();
    proxy.until("tcp.t.downstream_cx_rx_bytes_total", 14).await;
    abort(&client);
    drop(client);
    assert!(in_time(reset.recv()).await.unwrap().is_err(), "no clean end of a message that was cut");
    assert_eq!(proxy.log(1).await, ["DC - - 14 0 c chain0 1"]);
}

#[tokio::test]
async fn silence_and_long_life_end_a_connection() {
    let mut idle = proxy_to("c");
    idle.idle_timeout = Some(Duration::from_millis(50));
    let mut long = proxy_to("c");
    long.max_duration = Some(Duration::from_millis(50));
    for (tcp, line, stat) in [
        (idle, "- - tcp_session_idle_timeout 0 0 c chain0 1", "tcp.t.idle_timeout"),
        (long, "DT - max_downstream_connection_duration 0 0 c chain0 1", "tcp.t.max_downstream_connection_duration"),
    ] {
        let proxy = Plan::new(vec![tcp_chain(tcp)]).cluster(&[shouter().await]).start();
        let mut client = proxy.connect().await;
        let _ = read_all(&mut client).await;
        assert_eq!(proxy.log(1).await, [line]);
        assert_eq!(proxy.stat(stat), 1);
    }
}

#[tokio::test]
async fn a_split_sends_each_connection_by_weight() {
    let target = |cluster: &str, weight| WeightedTarget {
        cluster: cluster.into(),
        weight,
        request_headers: crate::config::headers::HeaderEdits::default(),
        response_headers: crate::config::headers::HeaderEdits::default(),
        filters: PerRouteFilters::default(),
    };
    let mut tcp = proxy_to("c");
    tcp.target = Target::Weighted(vec![target("none", 0), target("a", 30), target("b", 70)]);
    let proxy = Plan::new(vec![tcp_chain(tcp)])
        .cluster_named("a", &[shouter().await])
        .cluster_named("b", &[shouter().await])
        .start();
    for _ in 0..100 {
        proxy.talk(b"x").await;
    }
    let (a, b) = (proxy.stat("cluster.a.upstream_cx_total"), proxy.stat("cluster.b.upstream_cx_total"));
    assert_eq!(a + b, 100);
    // Six standard deviations.
    assert!((3..58).contains(&a), "{a} of 100 for a share of 30");
}

#[tokio::test]
async fn a_push_that_takes_everything_away_cuts_nothing_until_the_drain_is_over() {
    let proxy = Plan::to(shouter().await).start();
    let mut client = proxy.connect().await;
    client.write_all(b"be").await.unwrap();
    proxy.until("tcp.t.downstream_cx_rx_bytes_total", 2).await;
    proxy.shared.store.publish(Snapshot::default());
    proxy.drain.begin();
    client.write_all(b"fore").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await.unwrap(), b"BEFORE");
    assert!(in_time(TcpStream::connect(proxy.address)).await.is_err(), "the listener takes no new connection");
}

#[tokio::test]
async fn the_end_of_the_drain_resets_what_is_left() {
    let proxy = Plan::to(shouter().await).start();
    let mut client = proxy.connect().await;
    client.write_all(b"x").await.unwrap();
    proxy.until("tcp.t.downstream_cx_rx_bytes_total", 1).await;
    proxy.drain.cut();
    assert!(read_all(&mut client).await.is_err());
    assert_eq!(proxy.stat("tcp.t.downstream_cx_drain_close"), 1);
    in_time(proxy.shared.drain.finished()).await;
}
