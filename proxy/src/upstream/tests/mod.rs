//! Clusters against real servers on loopback ports.

mod discovery;
mod http1;
mod http2;
mod limits;
mod secure;
mod storm;

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    Answer, Cluster, Endpoint, PickContext, Resolve, Resolved, SendOptions, UpstreamError, Upstreams, Version,
};
use crate::{
    body::Body,
    config::cluster::{ClusterSpec, Discovery, DnsFamily, EndpointSpec, Health, LoadBalancing, UpstreamHttp},
    telemetry::Registry,
};

/// Names resolve to nothing.
#[derive(Debug)]
struct NoNames;

impl Resolve for NoNames {
    fn resolve<'a>(
        &'a self,
        _: &'a str,
        _: DnsFamily,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Resolved, String>> + Send + 'a>> {
        Box::pin(async { Err("no such name".to_owned()) })
    }
}

fn spec(discovery: Discovery) -> ClusterSpec {
    crate::testing::cluster("c", discovery)
}

fn endpoint(address: SocketAddr) -> EndpointSpec {
    EndpointSpec { address, weight: 1, priority: 0, health: Health::Healthy }
}

/// A cluster with its registry.
struct Bench {
    cluster: Arc<Cluster>,
    registry: Registry,
}

impl Bench {
    fn new(address: SocketAddr, edit: impl FnOnce(&mut ClusterSpec)) -> Self {
        let registry = Registry::default();
        let upstreams = Upstreams::new(registry.clone(), 2, Arc::new(NoNames), None);
        let mut spec = spec(Discovery::Static(vec![endpoint(address)]));
        edit(&mut spec);
        Self { cluster: Cluster::new(Arc::new(spec), &upstreams), registry }
    }

    fn stat(&self, name: &str) -> i64 {
        self.registry.value(&format!("cluster.c.{name}")).unwrap_or(0)
    }

    /// Waits for a statistic.
    async fn until(&self, name: &str, value: i64) {
        let reached = async {
            while self.stat(name) != value {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(5), reached).await;
        assert!(in_time.is_ok(), "{name} is {} and not {value}", self.stat(name));
    }

    fn endpoint(&self) -> Arc<Endpoint> {
        self.cluster.pick(&PickContext::default()).unwrap()
    }

    async fn send(&self, request: Request<Body>) -> Result<Answer, UpstreamError> {
        self.send_from(0, request).await
    }

    async fn send_from(&self, worker: usize, request: Request<Body>) -> Result<Answer, UpstreamError> {
        self.send_with(SendOptions { version: self.cluster.version(false), worker, upgrade: false }, request).await
    }

    async fn send_with(&self, options: SendOptions, request: Request<Body>) -> Result<Answer, UpstreamError> {
        let permit = self.cluster.admit_request().expect("within the limit");
        let endpoint = self.endpoint();
        let sent = self.cluster.send(&endpoint, request, permit, options);
        tokio::time::timeout(Duration::from_secs(5), sent).await.expect("an answer in time")
    }

    /// Sends and reads the whole answer.
    async fn fetch(&self, request: Request<Body>) -> Result<Bytes, String> {
        let answer = self.send(request).await.map_err(|e| e.to_string())?;
        answer.response.into_body().collect().await.map(|b| b.to_bytes()).map_err(|e| e.to_string())
    }
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "a.test").body(Body::empty()).unwrap()
}

/// A server that runs `each` for every connection, numbered from 0.
async fn raw<F, Fut>(each: F) -> SocketAddr
where
    F: Fn(usize, TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for n in 0.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            tokio::spawn(each(n, stream));
        }
    });
    address
}

/// Reads one request head (and nothing after it).
async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// A server that gives each connection the same bytes per request.
async fn canned(answer: &'static [u8]) -> SocketAddr {
    raw(move |_, mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Counts how many are inside at once.
#[derive(Clone, Default)]
struct Crowd {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Crowd {
    fn enter(&self) {
        self.most.fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
    }
    fn leave(&self) {
        self.now.fetch_sub(1, SeqCst);
    }
    fn most(&self) -> usize {
        self.most.load(SeqCst)
    }
}

type Reply = Response<Body>;
