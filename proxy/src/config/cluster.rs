//! Upstream clusters and endpoints as data.

use std::{net::SocketAddr, time::Duration};

use super::{Name, Wanted, tls::UpstreamTls};

/// What is asked of a cluster (Envoy's `Cluster`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSpec {
    /// Unique name.
    pub name: Name,
    /// Name in statistics (`alt_stat_name`), else [`Self::name`].
    pub stat_name: Name,
    /// Where endpoints come from.
    pub discovery: Discovery,
    /// Longest wait for a TCP connection and its TLS handshake; 5 s by default.
    pub connect_timeout: Duration,
    /// How an endpoint is picked.
    pub lb: LoadBalancing,
    /// Limits of priority DEFAULT.
    pub limits: Limits,
    /// Requests after which a connection is closed (`max_requests_per_connection`); none = no limit.
    pub max_requests_per_connection: Option<u32>,
    /// HTTP version spoken to endpoints.
    pub http: UpstreamHttp,
    /// Pings on HTTP/2 connections that are in use (`connection_keepalive`); none = none.
    pub http2_keepalive: Option<Http2Keepalive>,
    /// Idle pooled connections are closed after this; 1 h by default, zero = never.
    pub idle_timeout: Duration,
    /// TLS towards endpoints; none = plaintext.
    pub tls: Option<UpstreamTls>,
    /// TCP keepalive on upstream sockets.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Read buffer bound per connection in bytes; 1 MiB by default.
    pub buffer_limit_bytes: u32,
}

/// Endpoint discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// EDS over ADS, under this name (`service_name`, else the cluster's name).
    Eds(Wanted),
    /// Addresses written in place.
    Static(Vec<EndpointSpec>),
    /// All addresses of each name, refreshed.
    StrictDns(Vec<DnsEndpoint>, DnsPolicy),
    /// One name; new connections go to its first address of the moment.
    LogicalDns(DnsEndpoint, DnsPolicy),
    /// The address that the client dialled.
    OriginalDst,
}

/// A name to resolve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsEndpoint {
    /// Host name or IP address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Weight, 1 by default.
    pub weight: u32,
    /// Priority, 0 is the highest.
    pub priority: u32,
}

/// How names are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsPolicy {
    /// Which families.
    pub family: DnsFamily,
    /// Time between look-ups; 5 s by default.
    pub refresh: Duration,
    /// Wait by the record's TTL instead of [`Self::refresh`].
    pub respect_ttl: bool,
    /// A record of a shorter life counts as one of this; 1 s by default.
    pub min_ttl: Duration,
    /// Time before another try after a failure; [`Self::refresh`] by default.
    pub failure_refresh: Duration,
    /// Each wait is longer by a random time below this; zero by default.
    pub jitter: Duration,
}

/// Envoy's `DnsLookupFamily`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsFamily {
    /// IPv6 if there is any, else IPv4 (Envoy's default).
    Auto,
    /// Only IPv4.
    V4Only,
    /// Only IPv6.
    V6Only,
    /// IPv4 if there is any, else IPv6.
    V4Preferred,
    /// Both.
    All,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Address.
    pub address: SocketAddr,
    /// Weight, at least 1.
    pub weight: u32,
    /// Priority, 0 is the highest.
    pub priority: u32,
    /// Health as the control plane tells it.
    pub health: Health,
}

/// Envoy's `HealthStatus`, as far as it matters to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// `UNKNOWN` or `HEALTHY`.
    Healthy,
    /// `DEGRADED`: used when healthy ones don't suffice.
    Degraded,
    /// `UNHEALTHY`, `DRAINING`, `TIMEOUT`.
    Unhealthy,
}

/// Endpoints of an EDS cluster (Envoy's `ClusterLoadAssignment`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The EDS name.
    pub name: Name,
    /// Endpoints, all localities together.
    pub endpoints: Vec<EndpointSpec>,
    /// Overprovisioning factor in percent; 140 by default.
    pub overprovisioning_percent: u32,
    /// Share of requests dropped, in parts of a million (`drop_overloads`, all categories together).
    pub drop_ppm: u32,
}

/// Load balancing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadBalancing {
    /// In turn, by weight.
    RoundRobin,
    /// The least loaded of `choices` random ones; 2 by default.
    LeastRequest {
        /// How many are compared.
        choices: u32,
    },
    /// At random, by weight.
    Random,
    /// The original destination (`CLUSTER_PROVIDED`).
    Provided,
}

/// Circuit breaker limits (`CircuitBreakers.Thresholds`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections; 1024.
    pub max_connections: u32,
    /// Requests waiting for a connection; 1024.
    pub max_pending_requests: u32,
    /// Requests in flight; 1024.
    pub max_requests: u32,
    /// Retries in flight; 3. Not used when a budget is set.
    pub max_retries: u32,
    /// Retries as a share of active requests.
    pub retry_budget: Option<RetryBudget>,
    /// Publish the remaining-gauges.
    pub track_remaining: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
            track_remaining: false,
        }
    }
}

/// Envoy's `RetryBudget`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Parts of a million of active and pending requests; 20 % by default.
    pub ppm: u32,
    /// Always allowed; 3 by default.
    pub min_concurrency: u32,
}

/// HTTP version towards endpoints (`HttpProtocolOptions`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamHttp {
    /// HTTP/1.1 (Envoy's default).
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// As the downstream request came (`use_downstream_protocol_config`).
    UseDownstream,
}

/// HTTP/2 keepalive (Envoy's `KeepaliveSettings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// Time between pings.
    pub interval: Duration,
    /// A connection whose ping is not answered in this time is closed.
    pub timeout: Duration,
}

/// TCP keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Probes without answer before the connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}
