//! A proxy in one process: a static snapshot, one HTTP listener's chain, upstreams written in the test.

mod policy;
mod streams;
mod wire;

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::TcpListener,
};
use tower::ServiceExt;

use super::{
    HttpRuntime, Routes,
    exchange::{Conn, Exchange},
    life::Life,
    serve_connection,
    stack::stack,
    testing, upload,
};
use crate::{
    body::Body,
    config::{
        access_log::{AccessLog, Format, Sink, Template},
        cluster::ClusterSpec,
        http::HttpConnectionManager,
        listener::{ChainMatch, Direction, FilterChain, Terminal},
        route::{Forward, Route, RouteAction, RouteTable, VirtualHost},
    },
    drain::Drain,
    error::Refusal,
    net::connection::ConnInfo,
    snapshot::{Chain, Shared, Snapshot},
    telemetry::{
        Registry,
        access_log::{Connection, Loggers, Sinks},
        mesh::{MeshStats, Workload},
    },
    testing::server,
    tls::ResolvedSecrets,
    upstream::{Cluster, SystemResolver, Upstreams},
};

/// What a test changes before the proxy starts.
pub(super) struct World {
    pub(super) manager: HttpConnectionManager,
    pub(super) table: RouteTable,
    pub(super) host: VirtualHost,
    pub(super) direction: Direction,
    clusters: Vec<ClusterSpec>,
}

/// A proxy that runs.
pub(super) struct Proxy {
    pub(super) chain: Arc<Chain>,
    pub(super) registry: Registry,
    pub(super) info: ConnInfo,
    shared: Arc<Shared>,
    sinks: Sinks,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl World {
    /// No route, no cluster.
    pub(super) fn new() -> Self {
        let host = testing::host(vec![]);
        Self {
            manager: testing::manager(),
            table: testing::table(testing::host(vec![])),
            host,
            direction: Direction::Outbound,
            clusters: vec![],
        }
    }

    /// One route for everything, to the cluster `c` with these endpoints.
    pub(super) fn to(endpoints: &[SocketAddr]) -> Self {
        Self::new().forward(|_| {}).cluster(endpoints, |_| {})
    }

    pub(super) fn route(mut self, route: Route) -> Self {
        self.host.routes.push(Arc::new(route));
        self
    }

    /// A route for everything to the cluster `c`.
    pub(super) fn forward(self, change: impl FnOnce(&mut Forward)) -> Self {
        let mut forward = testing::forward("c");
        change(&mut forward);
        self.route(testing::route(RouteAction::Forward(Box::new(forward))))
    }

    pub(super) fn manager(mut self, change: impl FnOnce(&mut HttpConnectionManager)) -> Self {
        change(&mut self.manager);
        self
    }

    /// The cluster `c`.
    pub(super) fn cluster(mut self, endpoints: &[SocketAddr], change: impl FnOnce(&mut ClusterSpec)) -> Self {
        let mut spec = cluster_spec("c", endpoints);
        change(&mut spec);
        self.clusters.push(spec);
        self
    }

    pub(super) fn start(self) -> Proxy {
        let registry = Registry::default();
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let sinks = Sinks::new(&registry);
        let access_log = AccessLog {
            sink: Sink::File(log.clone()),
            format: Format::Text(Template::parse(LINE).unwrap()),
            filter: None,
        };
        let loggers = Arc::new(Loggers::build(&[access_log], &sinks).unwrap());
        let table = RouteTable { virtual_hosts: vec![Arc::new(self.host)], ..self.table };
        let routes = Arc::new(Routes::new(Arc::new(table), None, &registry));
        let upstreams = Upstreams::new(registry.clone(), 1, Arc::new(SystemResolver::default()), None);
        let clusters: HashMap<_, _> = self
            .clusters
            .into_iter()
            .map(|spec| (spec.name.clone(), Cluster::new(Arc::new(spec), &upstreams)))
            .collect();
        let mesh = Arc::new(MeshStats::new(registry.clone(), Workload::unknown()));
        let manager = Arc::new(self.manager);
        let http = HttpRuntime::new(manager.clone(), self.direction, loggers, Some(mesh), &registry, None);
        let shared = Arc::new(Shared::default());
        shared.store.publish(Snapshot {
            routes: HashMap::from([("routes".into(), routes)]),
            clusters,
            ..Snapshot::default()
        });
        let config = FilterChain {
            name: "chain".into(),
            matcher: ChainMatch::default(),
            tls: None,
            handshake_timeout: Duration::from_secs(10),
            filters: vec![],
            terminal: Terminal::Http(manager),
        };
        let chain = Chain {
            config: Arc::new(config),
            http: Some(Arc::new(http)),
            tcp: None,
            filters: Arc::default(),
            tls: None,
            secrets: ResolvedSecrets::default(),
            drain: Drain::new(),
        };
        Proxy { chain: Arc::new(chain), registry, info: info(self.direction), shared, sinks, log, _folder: folder }
    }
}

/// Status, flags, details, bytes received and sent, attempts, path.
const LINE: &str = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% %BYTES_SENT% \
                    %UPSTREAM_REQUEST_ATTEMPT_COUNT% %REQ(:PATH)%\n";

fn info(direction: Direction) -> ConnInfo {
    let connection = Connection {
        peer: "10.0.0.9:4000".parse().unwrap(),
        local: "10.0.0.1:80".parse().unwrap(),
        server_name: None,
        tls_version: None,
        peer_uri_sans: vec![],
        peer_dns_sans: vec![],
        peer_subject: None,
        listener: "listener".into(),
        chain: "chain".into(),
    };
    ConnInfo {
        connection: Arc::new(connection),
        original_destination: None,
        identity: None,
        alpn: None,
        direction,
        worker: 0,
    }
}

pub(super) fn cluster_spec(name: &str, endpoints: &[SocketAddr]) -> ClusterSpec {
    crate::testing::cluster(name, crate::testing::fixed(endpoints))
}

impl Proxy {
    /// Sends a request through the stack to `send` in place of an upstream.
    pub(super) async fn answer<F>(
        &self,
        request: Request<Body>,
        send: impl FnMut(Exchange) -> F + Clone + Send + 'static,
    ) -> Response<Body>
    where
        F: Future<Output = Result<Response<Body>, Refusal>> + Send + 'static,
    {
        let service = stack(tower::service_fn(send));
        service.oneshot(self.exchange(request)).await.unwrap_or_else(|never| match never {})
    }

    pub(super) fn exchange(&self, request: Request<Body>) -> Exchange {
        let http = self.chain.http.clone().unwrap();
        let life = Arc::new(Life::new(&http.config));
        let conn =
            Conn { info: self.info.clone(), http, shared: self.shared.clone(), life, drain: self.chain.drain.clone() };
        let mut exchange = Exchange::new(request, Arc::new(conn));
        let body = std::mem::take(exchange.request.body_mut());
        *exchange.request.body_mut() = upload::watch(body, &exchange.cx);
        exchange
    }

    /// A client's connection to the proxy.
    pub(super) fn connect(&self) -> DuplexStream {
        let (client, server) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve_connection(server, self.chain.clone(), self.info.clone(), self.shared.clone()));
        client
    }

    /// Writes `request` and reads until the proxy closes or is silent with a whole answer.
    pub(super) async fn talk(&self, request: &str) -> String {
        let mut client = self.connect();
        client.write_all(request.as_bytes()).await.unwrap();
        read_all(&mut client).await
    }

    pub(super) fn stat(&self, name: &str) -> i64 {
        self.registry.value(name).unwrap_or_else(|| panic!("no series {name}"))
    }

    /// The access log's lines so far.
    pub(super) fn log(&self) -> Vec<String> {
        self.sinks.flush(Duration::from_secs(5));
        std::fs::read_to_string(&self.log).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

/// A GET of `/` at `h`, HTTP/1.1.
pub(super) fn get() -> Request<Body> {
    Request::get("/").header("host", "h").body(Body::empty()).unwrap()
}

pub(super) async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// The status of a response that is read to its end.
pub(super) async fn status(response: Response<Body>) -> u16 {
    let status = response.status().as_u16();
    text(response).await;
    status
}

/// Reads until the end, or until nothing comes for a while.
pub(super) async fn read_all(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(Ok(read)) = tokio::time::timeout(Duration::from_millis(500), io.read(&mut buffer)).await {
        if read == 0 {
            break;
        }
        all.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// A server that reads one request's head per answer and answers with these bytes, then closes.
pub(super) async fn canned(answer: &'static str) -> SocketAddr {
    server(move |mut stream| async move {
        head(&mut stream).await;
        let _gone = stream.write_all(answer.as_bytes()).await;
    })
    .await
}

/// Reads to the end of a request's head.
pub(super) async fn head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// An address at which nobody listens.
pub(super) async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
