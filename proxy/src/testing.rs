//! What tests of several modules start from: a cluster with Envoy's defaults, and a server on loopback.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{future::Future, net::SocketAddr, time::Duration};

use tokio::net::{TcpListener, TcpStream};

use crate::config::cluster::{ClusterSpec, Discovery, EndpointSpec, Health, Limits, LoadBalancing, UpstreamHttp};

/// A plaintext HTTP/1.1 cluster with Envoy's defaults.
pub(crate) fn cluster(name: &str, discovery: Discovery) -> ClusterSpec {
    ClusterSpec {
        name: name.into(),
        stat_name: name.into(),
        discovery,
        connect_timeout: Duration::from_secs(5),
        lb: LoadBalancing::RoundRobin,
        limits: Limits::default(),
        max_requests_per_connection: None,
        http2_keepalive: None,
        http: UpstreamHttp::Http1,
        idle_timeout: Duration::from_secs(3600),
        tls: None,
        tcp_keepalive: None,
        buffer_limit_bytes: 1 << 20,
    }
}

/// These addresses, healthy and alike.
pub(crate) fn fixed(addresses: &[SocketAddr]) -> Discovery {
    let endpoint =
        |address: &SocketAddr| EndpointSpec { address: *address, weight: 1, priority: 0, health: Health::Healthy };
    Discovery::Static(addresses.iter().map(endpoint).collect())
}

/// A server that gives each connection to `serve`.
pub(crate) async fn server<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}
