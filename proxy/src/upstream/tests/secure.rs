use std::sync::Mutex;

use super::*;
use crate::{
    config::tls::UpstreamTls,
    tls::{
        ClientTls, ResolvedSecrets, ServerTls,
        testing::{Ca, common, downstream, upstream},
    },
    upstream::ErrorKind,
};

/// A TLS server that answers each request with the name of its client.
async fn whoami(server: ServerTls) -> SocketAddr {
    raw(move |_, stream| {
        let server = server.clone();
        async move {
            let Ok((mut stream, handshake)) = server.accept(stream).await else { return };
            let name = handshake.peer.map_or_else(String::new, |p| p.dns_sans.join(","));
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
            let mut head = Vec::new();
            while let Ok(byte) = stream.read_u8().await {
                head.push(byte);
                if head.ends_with(b"\r\n\r\n") {
                    head.clear();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        }
    })
    .await
}

/// The same over HTTP/2.
async fn whoami_http2(server: ServerTls) -> SocketAddr {
    raw(move |_, stream| {
        let server = server.clone();
        async move {
            let Ok((stream, handshake)) = server.accept(stream).await else { return };
            let name = handshake.peer.map_or_else(String::new, |p| p.dns_sans.join(","));
            let service = hyper::service::service_fn(move |_| {
                let reply: Reply = Response::new(Body::full(name.clone()));
                async {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok::<_, std::convert::Infallible>(reply)
                }
            });
            let executor = hyper_util::rt::TokioExecutor::new();
            let _ = hyper::server::conn::http2::Builder::new(executor)
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                .await;
        }
    })
    .await
}

fn server(ca: &Ca) -> ServerTls {
    let (common, secrets) = common(Some(ca.named("server")), Some(ca.validation(vec![])));
    ServerTls::build(&downstream(common, true), &secrets).unwrap()
}

fn identity(ca: &Ca, name: &str) -> (UpstreamTls, ResolvedSecrets) {
    let (common, secrets) = common(Some(ca.named(name)), Some(ca.validation(vec![])));
    (upstream(common, Some("server")), secrets)
}

fn build((spec, secrets): &(UpstreamTls, ResolvedSecrets)) -> Arc<ClientTls> {
    Arc::new(ClientTls::build(spec, secrets).unwrap())
}

#[tokio::test]
async fn nothing_is_sent_in_plaintext_while_secrets_are_missing() {
    let got = Arc::new(Mutex::new(0));
    let count = got.clone();
    let address = raw(move |_, _| {
        *count.lock().unwrap() += 1;
        async {}
    })
    .await;
    let ca = Ca::new("mesh");
    let bench = Bench::new(address, |s| s.tls = Some(identity(&ca, "a").0));
    assert!(!bench.cluster.is_ready());
    let error = bench.send(get("/")).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Tls(_)) && !error.sent, "{error:?}");
    assert!(bench.cluster.connect_tcp(&bench.endpoint()).await.is_err());
    assert_eq!(*got.lock().unwrap(), 0);
}

#[tokio::test]
async fn new_secrets_mean_new_connections_and_old_requests_finish() {
    let ca = Ca::new("mesh");
    let address = whoami(server(&ca)).await;
    for (http, address) in [(UpstreamHttp::Http1, address), (UpstreamHttp::Http2, whoami_http2(server(&ca)).await)] {
        let old = identity(&ca, "old");
        let bench = Bench::new(address, |s| {
            s.tls = Some(old.0.clone());
            s.http = http;
        });
        bench.cluster.set_tls(build(&old));
        assert!(bench.cluster.is_ready());
        assert_eq!(bench.fetch(get("/")).await.unwrap(), "old");
        assert_eq!(bench.fetch(get("/")).await.unwrap(), "old");
        assert_eq!(bench.stat("upstream_cx_total"), 1);
        let in_flight = bench.send(get("/"));
        let change = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            bench.cluster.set_tls(build(&identity(&ca, "new")));
            bench.fetch(get("/")).await
        };
        let (in_flight, after) = tokio::join!(in_flight, change);
        assert_eq!(after.unwrap(), "new");
        let answer = in_flight.unwrap().response.into_body().collect().await.unwrap();
        assert_eq!(answer.to_bytes(), "old");
        for _ in 0..3 {
            assert_eq!(bench.fetch(get("/")).await.unwrap(), "new", "the old connection never comes back");
        }
        assert_eq!(bench.stat("upstream_cx_total"), 2);
        bench.until("upstream_cx_active", 1).await;
    }
}

#[tokio::test]
async fn idle_connections_made_with_old_secrets_close_at_once() {
    let ca = Ca::new("mesh");
    let old = identity(&ca, "old");
    let bench = Bench::new(whoami(server(&ca)).await, |s| s.tls = Some(old.0.clone()));
    bench.cluster.set_tls(build(&old));
    bench.fetch(get("/")).await.unwrap();
    assert_eq!(bench.stat("upstream_cx_active"), 1);
    bench.cluster.set_tls(build(&identity(&ca, "new")));
    bench.until("upstream_cx_active", 0).await;
}

#[tokio::test]
async fn handshake_failures_come_with_their_reason() {
    let (ca, other) = (Ca::new("mesh"), Ca::new("other"));
    let address = whoami(server(&ca)).await;
    let stranger = identity(&other, "a");
    let bench = Bench::new(address, |s| s.tls = Some(stranger.0.clone()));
    bench.cluster.set_tls(build(&stranger));
    let error = bench.send(get("/")).await.unwrap_err();
    assert!(matches!(&error.kind, ErrorKind::Tls(why) if why.contains("not in the trust bundle")), "{error:?}");
    assert_eq!((bench.stat("ssl.fail_verify_error"), bench.stat("upstream_cx_connect_fail")), (1, 1));
    let friend = identity(&ca, "a");
    bench.cluster.set_tls(build(&friend));
    let answer = bench.send(get("/")).await.unwrap();
    assert_eq!(answer.peer().unwrap().dns_sans, ["server"]);
    assert_eq!((bench.stat("ssl.handshake"), bench.stat("ssl.versions.TLSv1.3")), (1, 1));
}

#[tokio::test]
async fn the_connect_timeout_covers_the_handshake() {
    let address = raw(|_, mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let ca = Ca::new("mesh");
    let id = identity(&ca, "a");
    let bench = Bench::new(address, |s| {
        s.tls = Some(id.0.clone());
        s.connect_timeout = Duration::from_millis(50);
    });
    bench.cluster.set_tls(build(&id));
    let error = bench.send(get("/")).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::ConnectTimeout(_)), "{error:?}");
    assert_eq!((bench.stat("upstream_cx_connect_timeout"), bench.stat("upstream_cx_active")), (1, 0));
}
