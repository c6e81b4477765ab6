use super::*;
use crate::upstream::{ErrorKind, Overflow};

/// A server that answers after a while; tells how many requests it had at once.
async fn slow(crowd: Crowd) -> SocketAddr {
    raw(move |_, mut stream| {
        let crowd = crowd.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                crowd.enter();
                tokio::time::sleep(Duration::from_millis(20)).await;
                crowd.leave();
                if stream.write_all(OK).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn requests_above_the_connection_limit_wait_for_their_turn() {
    let crowd = Crowd::default();
    let bench = Bench::new(slow(crowd.clone()).await, |s| s.limits.max_connections = 2);
    let all = futures_util::future::join_all((0..10).map(|_| bench.fetch(get("/")))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!((crowd.most(), bench.stat("upstream_cx_total")), (2, 2));
    assert_eq!(bench.stat("upstream_cx_overflow"), 8);
    assert_eq!((bench.stat("upstream_rq_pending_active"), bench.stat("upstream_rq_pending_total")), (0, 10));
}

#[tokio::test]
async fn a_worker_without_connections_gets_one_above_the_limit() {
    let bench = Bench::new(slow(Crowd::default()).await, |s| s.limits.max_connections = 1);
    let (one, two) = tokio::join!(bench.send_from(0, get("/")), bench.send_from(1, get("/")));
    assert!(one.is_ok() && two.is_ok(), "nobody waits for ever");
    assert_eq!(bench.stat("upstream_cx_total"), 2);
}

#[tokio::test]
async fn too_many_waiting_requests_overflow() {
    let bench = Bench::new(slow(Crowd::default()).await, |s| {
        s.limits.max_connections = 1;
        s.limits.max_pending_requests = 3;
    });
    let all = futures_util::future::join_all((0..6).map(|_| bench.fetch(get("/")))).await;
    let words = Overflow::Pending.to_string();
    let refused = all.iter().filter(|r| r.as_ref().is_err_and(|e| *e == words)).count();
    assert_eq!((refused, bench.stat("upstream_rq_pending_overflow")), (3, 3));
    assert_eq!(bench.endpoint().failures(), 0, "our own limit is not the endpoint's fault");
}

#[tokio::test]
async fn a_waiting_request_is_woken_when_a_connection_breaks() {
    let address = raw(|n, mut stream| async move {
        read_head(&mut stream).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        if n > 0 {
            stream.write_all(OK).await.unwrap();
        }
    })
    .await;
    let bench = Bench::new(address, |s| s.limits.max_connections = 1);
    let (first, second) = tokio::join!(bench.fetch(get("/")), bench.fetch(get("/")));
    assert!(first.is_err() && second.is_ok(), "{first:?} {second:?}");
}

#[tokio::test]
async fn a_tcp_stream_counts_until_it_is_dropped_and_overflows_at_once() {
    let address = raw(|_, mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let bench = Bench::new(address, |s| s.limits.max_connections = 1);
    let endpoint = bench.endpoint();
    let mut conn = bench.cluster.connect_tcp(&endpoint).await.unwrap();
    conn.write_all(b"echo").await.unwrap();
    let mut got = [0; 4];
    conn.read_exact(&mut got).await.unwrap();
    assert_eq!((&got, endpoint.active(), bench.stat("upstream_rq_active")), (b"echo", 1, 1));
    let error = bench.cluster.connect_tcp(&endpoint).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Overflow(Overflow::Connections)));
    drop(conn);
    assert_eq!((endpoint.active(), bench.stat("upstream_cx_active"), bench.stat("upstream_rq_active")), (0, 0, 0));
    assert_eq!((bench.stat("upstream_cx_tx_bytes_total"), bench.stat("upstream_cx_rx_bytes_total")), (4, 4));
    assert!(bench.cluster.connect_tcp(&endpoint).await.is_ok());
}
