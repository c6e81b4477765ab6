//! Connections through real sockets, from accept to the end of the terminal.

mod arrival;
mod secure;
mod tcp;

use std::{collections::HashMap, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{filter::Filters, listen, waiting::Waiting};
use crate::{
    config::{
        Name,
        access_log::{AccessLog, Format, Sink, Template},
        cluster::ClusterSpec,
        listener::{
            ChainIndex, ChainMatch, Direction, FilterChain, Listener as Config, ListenerFilter, ListenerFilterKind,
            NetworkFilter, TcpProxy, Terminal,
        },
        route::Target,
        tls::DownstreamTls,
    },
    drain::Drain,
    http::HttpRuntime,
    snapshot::{Chain, Listener, Shared, Snapshot},
    tcp::TcpRuntime,
    telemetry::{access_log::Loggers, listener::ListenerStats},
    testing::server,
    tls::{ResolvedSecrets, ServerTls},
    upstream::{Cluster, SystemResolver, Upstreams},
};

/// Nothing here takes longer, unless it hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// Flags, details, termination, bytes received and sent, cluster, chain, tries.
const LINE: &str = "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% %BYTES_RECEIVED% \
                    %BYTES_SENT% %UPSTREAM_CLUSTER% %FILTER_CHAIN_NAME% %UPSTREAM_REQUEST_ATTEMPT_COUNT%\n";

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.expect("done in time")
}

/// A chain to be.
struct ChainPlan {
    matcher: ChainMatch,
    terminal: Terminal,
    filters: Vec<NetworkFilter>,
    tls: Option<(DownstreamTls, Option<ResolvedSecrets>)>,
    handshake_timeout: Duration,
}

fn proxy_to(cluster: &str) -> TcpProxy {
    TcpProxy {
        stat_prefix: "t".into(),
        target: Target::Cluster(cluster.into()),
        access_log: Vec::new(),
        idle_timeout: None,
        max_connect_attempts: 1,
        max_duration: None,
    }
}

fn tcp_chain(tcp: TcpProxy) -> ChainPlan {
    ChainPlan {
        matcher: ChainMatch::default(),
        terminal: Terminal::Tcp(Arc::new(tcp)),
        filters: Vec::new(),
        tls: None,
        handshake_timeout: LIMIT,
    }
}

/// A proxy to be.
struct Plan {
    chains: Vec<ChainPlan>,
    clusters: Vec<ClusterSpec>,
    filters: Vec<ListenerFilter>,
    filters_timeout: Duration,
    continue_on_timeout: bool,
    waiting: usize,
}

impl Plan {
    fn new(chains: Vec<ChainPlan>) -> Self {
        Self {
            chains,
            clusters: Vec::new(),
            filters: Vec::new(),
            filters_timeout: LIMIT,
            continue_on_timeout: false,
            waiting: 100,
        }
    }

    /// One chain that proxies to one endpoint.
    fn to(endpoint: SocketAddr) -> Self {
        Self::new(vec![tcp_chain(proxy_to("c"))]).cluster(&[endpoint])
    }

    /// The cluster `c`.
    fn cluster(self, endpoints: &[SocketAddr]) -> Self {
        self.cluster_named("c", endpoints)
    }

    fn cluster_named(mut self, name: &str, endpoints: &[SocketAddr]) -> Self {
        let spec = crate::testing::cluster(name, crate::testing::fixed(endpoints));
        self.clusters.push(ClusterSpec { idle_timeout: Duration::ZERO, ..spec });
        self
    }

    fn inspect(mut self, kinds: &[ListenerFilterKind]) -> Self {
        self.filters.extend(kinds.iter().map(|kind| ListenerFilter { kind: *kind, disabled: None }));
        self
    }

    fn start(self) -> Proxy {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let access_log = vec![AccessLog {
            sink: Sink::File(log.clone()),
            format: Format::Text(Template::parse(LINE).unwrap()),
            filter: None,
        }];
        let mut shared = Shared::new();
        shared.waiting = Waiting::new(self.waiting);
        let shared = Arc::new(shared);
        let drain = shared.drain.child();
        let chains: Vec<_> = self
            .chains
            .into_iter()
            .enumerate()
            .map(|(at, plan)| Arc::new(chain(at, plan, &access_log, &shared, drain.child())))
            .collect();
        let mut config = Config {
            name: "l".into(),
            address: "127.0.0.1:0".parse().unwrap(),
            ipv4_compat: false,
            direction: Direction::Outbound,
            listener_filters: self.filters,
            listener_filters_timeout: self.filters_timeout,
            continue_on_timeout: self.continue_on_timeout,
            chains: chains.iter().map(|c| Arc::clone(&c.config)).collect(),
            default_chain: None,
            access_log: access_log.clone(),
            stat_prefix: Some("l".into()),
            backlog: None,
        };
        let socket = listen::bind(&config).unwrap();
        config.address = socket.local_addr().unwrap();
        let address = config.address;
        let listener = Listener {
            index: ChainIndex::new(&config.chains),
            stats: ListenerStats::new(&shared.metrics, "l"),
            loggers: Arc::new(Loggers::build(&access_log, &shared.sinks).unwrap()),
            default_chain: None,
            drain: drain.clone(),
            config: Arc::new(config),
            chains,
        };
        let upstreams = Upstreams::new(shared.metrics.clone(), 1, Arc::new(SystemResolver::default()), None);
        let clusters: HashMap<Name, Arc<Cluster>> = self
            .clusters
            .into_iter()
            .map(|spec| (spec.name.clone(), Cluster::new(Arc::new(spec), &upstreams)))
            .collect();
        shared.store.publish(Snapshot {
            listeners: HashMap::from([("l".into(), Arc::new(listener))]),
            clusters,
            ..Snapshot::default()
        });
        tokio::spawn(listen::serve(socket, "l".into(), Arc::clone(&shared), 0, drain.clone()));
        Proxy { shared, address, drain, log, _folder: folder }
    }
}

fn chain(at: usize, plan: ChainPlan, access_log: &[AccessLog], shared: &Shared, drain: Drain) -> Chain {
    let ChainPlan { matcher, terminal, filters, tls, handshake_timeout } = plan;
    let (tls, secrets) = tls.unzip();
    let secrets = secrets.flatten();
    let built = tls.as_ref().zip(secrets.as_ref()).map(|(tls, secrets)| ServerTls::build(tls, secrets).unwrap());
    let terminal = match terminal {
        Terminal::Tcp(tcp) => Terminal::Tcp(Arc::new(TcpProxy { access_log: access_log.to_vec(), ..(*tcp).clone() })),
        other => other,
    };
    let tcp = match &terminal {
        Terminal::Tcp(tcp) => Some(TcpRuntime::new(Arc::clone(tcp), &shared.metrics, &shared.sinks).unwrap()),
        _ => None,
    };
    let http = match &terminal {
        Terminal::Http(manager) => {
            let loggers = Arc::default();
            Some(HttpRuntime::new(Arc::clone(manager), Direction::Inbound, loggers, None, &shared.metrics, None))
        }
        _ => None,
    };
    let config = FilterChain { name: format!("chain{at}").into(), matcher, tls, handshake_timeout, filters, terminal };
    Chain {
        http: http.map(Arc::new),
        tcp,
        filters: Filters::new(&config, &shared.metrics, None),
        tls: built.map(Arc::new),
        secrets: secrets.unwrap_or_default(),
        config: Arc::new(config),
        drain,
    }
}

/// A running proxy.
struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    drain: Drain,
    log: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl Proxy {
    async fn connect(&self) -> TcpStream {
        in_time(TcpStream::connect(self.address)).await.unwrap()
    }

    /// Sends `bytes` and an end; what comes back until the other end.
    async fn talk(&self, bytes: &[u8]) -> Vec<u8> {
        let mut client = self.connect().await;
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        read_all(&mut client).await.unwrap()
    }

    fn stat(&self, name: &str) -> i64 {
        self.shared.metrics.value(name).unwrap_or(0)
    }

    async fn until(&self, name: &str, value: i64) {
        let reached = async {
            while self.stat(name) != value {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let in_time = timeout(LIMIT, reached).await;
        assert!(in_time.is_ok(), "{name} is {} and not {value}", self.stat(name));
    }

    /// The log once `count` connections have ended.
    async fn log(&self, count: i64) -> Vec<String> {
        self.until("listener.l.downstream_cx_destroy", count).await;
        self.shared.sinks.flush(LIMIT);
        std::fs::read_to_string(&self.log).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

async fn read_all(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    in_time(stream.read_to_end(&mut bytes)).await?;
    Ok(bytes)
}

/// A server that answers what it got, in upper case, after the client's end; every connection alike.
async fn shouter() -> SocketAddr {
    server(|mut tcp| async move {
        let mut bytes = Vec::new();
        if tcp.read_to_end(&mut bytes).await.is_ok() {
            bytes.make_ascii_uppercase();
            let _ = tcp.write_all(&bytes).await;
        }
    })
    .await
}

/// An address where nothing listens.
async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
