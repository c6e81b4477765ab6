//! The TCP proxy: a downstream connection, one upstream connection, bytes both ways.
//!
//! Nothing is waited for from the client, so servers that speak first work. A broken side is told to the other by a reset,
//! an ended one by an end. A change of configuration cuts nothing: the connection goes on until its chain's drain is cut.

use std::{sync::Arc, time::Duration};

use metrics::Counter;
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    config::{
        Name,
        flags::{Flag, Flags},
        listener::TcpProxy,
        route::Target,
        route_match::pick_weighted,
    },
    net::{
        connection::ConnInfo,
        copy::{Copy, End},
        stream::{Downstream, abort},
    },
    snapshot::{Chain, Shared},
    telemetry::{
        Registry, Scope,
        access_log::{Entry, Loggers, Sinks},
    },
    upstream::{Cluster, ErrorKind, NoEndpoint, PickContext, UpstreamConn},
};

/// A TCP proxy with its statistics and logs.
#[derive(Debug)]
pub struct TcpRuntime {
    config: Arc<TcpProxy>,
    loggers: Arc<Loggers>,
    stats: Stats,
}

/// `tcp.<prefix>.*`.
#[derive(Debug)]
struct Stats {
    total: Counter,
    no_route: Counter,
    received: Counter,
    sent: Counter,
    idle: Counter,
    too_long: Counter,
    drained: Counter,
}

/// More picks to find an endpoint that was not tried yet.
const MORE_PICKS: u32 = 3;
/// Longest wait for a client to take note of the end.
const FAREWELL: Duration = Duration::from_secs(1);

impl TcpRuntime {
    /// Makes the runtime state of a TCP proxy.
    ///
    /// # Errors
    /// Words when an access log can't be opened.
    pub fn new(config: Arc<TcpProxy>, registry: &Registry, sinks: &Sinks) -> Result<Arc<Self>, String> {
        let scope = Scope::tcp(&config.stat_prefix);
        let counter = |name| registry.counter(&scope, name);
        let stats = Stats {
            total: counter("downstream_cx_total"),
            no_route: counter("downstream_cx_no_route"),
            received: counter("downstream_cx_rx_bytes_total"),
            sent: counter("downstream_cx_tx_bytes_total"),
            idle: counter("idle_timeout"),
            too_long: counter("max_downstream_connection_duration"),
            drained: counter("downstream_cx_drain_close"),
        };
        let loggers = Arc::new(Loggers::build(&config.access_log, sinks)?);
        Ok(Arc::new(Self { config, loggers, stats }))
    }

    /// Its access logs, for connections that are refused before they come here.
    #[must_use]
    pub fn loggers(&self) -> &Arc<Loggers> {
        &self.loggers
    }
}

/// Why there is no upstream connection.
struct Failure {
    flags: Flags,
    reason: Option<String>,
}

/// Serves a connection to its end. Returns at once when the chain's terminal is not TCP. Cancel safe: dropping the future
/// closes both sides.
pub async fn serve_connection(mut io: Downstream, chain: Arc<Chain>, info: ConnInfo, shared: Arc<Shared>) {
    let Some(tcp) = chain.tcp.clone() else { return };
    let drain = chain.drain.clone();
    drop(chain);
    let _running = drain.running();
    let start = Instant::now();
    tcp.stats.total.increment(1);
    let mut entry = tcp.loggers.begin(&info.connection, start);
    let upstream = tokio::select! {
        upstream = tcp.connect(&info, &shared, entry.as_deref_mut()) => upstream,
        () = drain.cut_off() => {
            tcp.stats.drained.increment(1);
            return;
        }
    };
    let upstream = match upstream {
        Ok(upstream) => upstream,
        Err(failure) => {
            tracing::debug!(peer = %info.peer, flags = %failure.flags, reason = failure.reason, "no upstream connection");
            if let Some(mut entry) = entry {
                entry.flags = failure.flags;
                entry.upstream_failure = failure.reason.map(Into::into);
            }
            // The client may be gone already.
            let _ = timeout(FAREWELL, io.shutdown()).await;
            return;
        }
    };
    drop(shared);
    let mut copy = Copy::new(io, upstream, tcp.stats.received.clone(), tcp.stats.sent.clone());
    let ended = tokio::select! {
        end = copy.run(tcp.config.idle_timeout) => Ended::Copy(end),
        () = until(tcp.config.max_duration.map(|limit| start + limit)) => Ended::TooLong,
        () = drain.cut_off() => Ended::Cut,
    };
    tcp.finish(&copy, ended, entry);
}

/// How a connection with an upstream ended.
enum Ended {
    Copy(End),
    TooLong,
    Cut,
}

impl TcpRuntime {
    async fn connect(
        &self,
        info: &ConnInfo,
        shared: &Shared,
        mut entry: Option<&mut Entry>,
    ) -> Result<UpstreamConn, Failure> {
        let name = self.target();
        if let Some(entry) = &mut entry {
            entry.upstream_cluster = Some(Arc::clone(name));
        }
        let Some(cluster) = shared.store.current().clusters.get(name).cloned() else {
            self.stats.no_route.increment(1);
            return Err(Failure { flags: Flags::of(Flag::NoClusterFound), reason: None });
        };
        let mut tried = Vec::new();
        let mut failure;
        loop {
            let endpoint = pick(&cluster, info, &tried)?;
            if let Some(entry) = &mut entry {
                entry.attempts += 1;
                entry.upstream_host = Some(endpoint.address());
            }
            match cluster.connect_tcp(&endpoint).await {
                Ok(upstream) => {
                    if let Some(entry) = &mut entry {
                        entry.upstream_local = upstream.local_addr();
                    }
                    return Ok(upstream);
                }
                Err(error) => {
                    let overflow = matches!(error.kind, ErrorKind::Overflow(_));
                    let flag = if overflow { Flag::UpstreamOverflow } else { Flag::UpstreamConnectionFailure };
                    failure = Failure { flags: Flags::of(flag), reason: Some(error.to_string()) };
                    if overflow {
                        return Err(failure);
                    }
                }
            }
            tried.push(endpoint);
            if tried.len() >= self.config.max_connect_attempts as usize {
                failure.flags.set(Flag::UpstreamRetryLimitExceeded);
                return Err(failure);
            }
        }
    }

    fn target(&self) -> &Name {
        match &self.config.target {
            Target::Cluster(name) => name,
            Target::Weighted(targets) => &targets[pick_weighted(targets, fastrand::u64(..))].cluster,
        }
    }

    fn finish(&self, copy: &Copy<Downstream, UpstreamConn>, ended: Ended, mut entry: Option<Box<Entry>>) {
        let (flag, why) = match &ended {
            Ended::Copy(End::Closed) => (None, None),
            Ended::Copy(End::Idle) => {
                self.stats.idle.increment(1);
                (None, Some("tcp_session_idle_timeout"))
            }
            Ended::Copy(End::FirstBroke(_)) => (Some(Flag::DownstreamConnectionTermination), None),
            Ended::Copy(End::SecondBroke(_)) => (Some(Flag::UpstreamConnectionTermination), None),
            Ended::TooLong => {
                self.stats.too_long.increment(1);
                (Some(Flag::DurationTimeout), Some("max_downstream_connection_duration"))
            }
            Ended::Cut => {
                self.stats.drained.increment(1);
                (None, Some("drain_time_over"))
            }
        };
        if !matches!(ended, Ended::Copy(End::Closed)) {
            copy.first.abort();
            abort(copy.second.tcp());
        }
        if let Some(entry) = &mut entry {
            entry.bytes_received = copy.forth_bytes();
            entry.bytes_sent = copy.back_bytes();
            entry.termination = why.map(Into::into);
            if let Some(flag) = flag {
                entry.flags.set(flag);
            }
        }
    }
}

fn pick(
    cluster: &Cluster,
    info: &ConnInfo,
    tried: &[Arc<crate::upstream::Endpoint>],
) -> Result<Arc<crate::upstream::Endpoint>, Failure> {
    let context = PickContext { original_dst: info.original_destination, previous: tried, more_picks: MORE_PICKS };
    cluster.pick(&context).map_err(|error| {
        let flag = match error {
            NoEndpoint::NoneHealthy | NoEndpoint::NoOriginalDestination | NoEndpoint::Loop => Flag::NoHealthyUpstream,
            NoEndpoint::Dropped => Flag::UpstreamOverflow,
        };
        Failure { flags: Flags::of(flag), reason: Some(error.to_string()) }
    })
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}
