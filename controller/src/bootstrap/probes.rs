//! The static part of an injected sidecar's bootstrap: listeners for kubelet's probes.
//!
//! Kubelet has no certificate of the mesh, so its probes come to ports of the proxy that are not redirected. What they
//! reach is one path of one port each, never the application as a whole: paths are matched whole, and gRPC reaches
//! the health service alone. Pure.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::{EXTENSIONS, address};

/// The proxy's path that tells kubelet whether the proxy itself serves.
pub const READY_PATH: &str = "/osm-proxy-ready";

/// What kubelet asks, and of which port of the application.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probes {
    /// HTTP and HTTPS probes.
    pub http: Vec<HttpProbe>,
    /// Ports of gRPC health services.
    pub grpc: Vec<GrpcProbe>,
}

/// An HTTP probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProbe {
    /// Which of the container's probes.
    pub kind: ProbeKind,
    /// The container.
    pub container: String,
    /// The application's port.
    pub port: u16,
    /// The application's path, without its query.
    pub path: String,
    /// The application speaks TLS there. As kubelet, the proxy takes any certificate.
    pub tls: bool,
    /// How long the application may take.
    pub timeout: Duration,
}

/// A gRPC health service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcProbe {
    /// The proxy's port for it.
    pub listen: u16,
    /// The application's port.
    pub port: u16,
    /// How long the application may take: the longest of its probes.
    pub timeout: Duration,
}

/// A container's three probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// `livenessProbe`
    Liveness,
    /// `readinessProbe`
    Readiness,
    /// `startupProbe`
    Startup,
}

impl ProbeKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Liveness, Self::Readiness, Self::Startup];

    /// `liveness`, `readiness`, `startup`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
        }
    }

    /// The proxy's port for HTTP probes of this kind, as in OSM.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::Liveness => 15_901,
            Self::Readiness => 15_902,
            Self::Startup => 15_903,
        }
    }

    /// The proxy's path for the probe of `container`.
    #[must_use]
    pub fn path(self, container: &str) -> String {
        format!("/osm-{}-probe/{container}", self.word())
    }
}

impl HttpProbe {
    fn cluster(&self) -> String {
        format!("{}_{}_cluster", self.container, self.kind.word())
    }
}

/// Listeners on `listen`; the proxy's own readiness is among them.
pub(super) fn listeners(probes: &Probes, listen: IpAddr) -> Vec<Value> {
    let http = ProbeKind::ALL.into_iter().filter_map(|kind| {
        let of_kind = probes.http.iter().filter(|probe| probe.kind == kind);
        let mut routes: Vec<Value> =
            of_kind.map(|p| route(&kind.path(&p.container), "GET", &p.cluster(), Some(&p.path), p.timeout)).collect();
        if kind == ProbeKind::Readiness {
            routes.push(route(READY_PATH, "GET", ADMIN_CLUSTER, Some("/ready"), READY_TIMEOUT));
        }
        let name = format!("{}_listener", kind.word());
        (!routes.is_empty()).then(|| listener(&name, listen, kind.port(), &routes))
    });
    let grpc = probes.grpc.iter().map(|p| {
        let routes = [route(GRPC_HEALTH_PATH, "POST", &grpc_cluster(p), None, p.timeout)];
        listener(&format!("grpc_health_{}_listener", p.port), listen, p.listen, &routes)
    });
    http.chain(grpc).collect()
}

/// The clusters of [`listeners`].
pub(super) fn clusters(probes: &Probes, admin: std::net::SocketAddr) -> Vec<Value> {
    let http = probes.http.iter().map(|p| {
        let mut cluster =
            cluster(&p.cluster(), "127.0.0.1", p.port, p.timeout, &json!({ "http_protocol_options": {} }));
        if p.tls {
            cluster["transport_socket"] = json!({
                "name": "envoy.transport_sockets.tls",
                "typed_config": { "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext") },
            });
        }
        cluster
    });
    let grpc = probes.grpc.iter().map(|p| {
        let protocol = json!({ "http2_protocol_options": {} });
        cluster(&grpc_cluster(p), "127.0.0.1", p.port, p.timeout, &protocol)
    });
    let http1 = json!({ "http_protocol_options": {} });
    let admin = cluster(ADMIN_CLUSTER, &admin.ip().to_string(), admin.port(), READY_TIMEOUT, &http1);
    http.chain(grpc).chain([admin]).collect()
}

fn grpc_cluster(probe: &GrpcProbe) -> String {
    format!("grpc_health_{}_cluster", probe.port)
}

fn route(path: &str, method: &str, cluster: &str, to: Option<&str>, timeout: Duration) -> Value {
    let mut action = json!({ "cluster": cluster, "timeout": seconds(timeout) });
    if let Some(to) = to {
        action["prefix_rewrite"] = json!(to);
    }
    json!({
        "match": { "path": path, "headers": [{ "name": ":method", "string_match": { "exact": method } }] },
        "route": action,
    })
}

fn listener(name: &str, listen: IpAddr, port: u16, routes: &[Value]) -> Value {
    let mut address = address(&listen.to_string(), port);
    if listen.is_ipv6() {
        address["socket_address"]["ipv4_compat"] = json!(true);
    }
    json!({
        "name": name,
        "address": address,
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": format!("{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "health_probes_http",
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": { "@type": format!("{EXTENSIONS}.filters.http.router.v3.Router") },
                }],
                "route_config": {
                    "name": name,
                    "virtual_hosts": [{ "name": name, "domains": ["*"], "routes": routes }],
                },
            },
        }] }],
    })
}

/// Each probe gets a connection of its own, as kubelet would open one: an idle one that the application just closed
/// must not fail a probe.
fn cluster(name: &str, host: &str, port: u16, timeout: Duration, protocol: &Value) -> Value {
    let endpoint = json!({ "endpoint": { "address": address(host, port) } });
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": seconds(timeout),
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"),
                "common_http_protocol_options": { "max_requests_per_connection": 1 },
                "explicit_http_config": protocol,
            },
        },
    })
}

fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

const GRPC_HEALTH_PATH: &str = "/grpc.health.v1.Health/Check";
const ADMIN_CLUSTER: &str = "proxy_admin";
const READY_TIMEOUT: Duration = Duration::from_secs(1);
