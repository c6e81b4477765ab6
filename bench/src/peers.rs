//! The peers and their configurations: the same file for our proxy and for Envoy, the nearest equal for the others.

use std::{fs, path::Path};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Ours.
    Oxmesh,
    /// Real Envoy.
    Envoy,
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
}

impl Peer {
    /// Its name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Oxmesh => "oxmesh",
            Self::Envoy => "envoy",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topology {
    /// One proxy, HTTP/1.1.
    Http1,
    /// Two proxies, mTLS between them, HTTP/1.1.
    MtlsPair,
    /// One proxy, HTTP/2 prior knowledge, unary gRPC.
    Grpc,
}

impl Topology {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Http1, Self::MtlsPair, Self::Grpc];

    /// Its name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::MtlsPair => "mTLS pair, HTTP/1.1",
            Self::Grpc => "gRPC unary",
        }
    }

    /// Whether the peer is set up for it here.
    pub(crate) fn has(self, peer: Peer) -> bool {
        !matches!((self, peer), (Self::Grpc, Peer::Nginx))
    }
}

/// Ports of one measured set-up.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    /// Where the loader sends.
    pub(crate) front: u16,
    /// Between the two proxies of a pair.
    pub(crate) middle: u16,
    /// Upstream, HTTP/1.1.
    pub(crate) http1: u16,
    /// Upstream, HTTP/2.
    pub(crate) http2: u16,
    /// Admin of the (first, second) proxy.
    pub(crate) admin: (u16, u16),
}

/// Writes certificates of a throw-away CA: `ca.pem`, `a.pem`, `a.key`, `b.pem`, `b.key`.
pub(crate) fn certificates(dir: &Path) -> Result<()> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.distinguished_name.push(DnType::CommonName, "bench root");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
    fs::write(dir.join("ca.pem"), issuer.pem())?;
    for name in ["a", "b"] {
        let mut leaf = CertificateParams::new(vec![format!("{name}.bench.cluster.local")])?;
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = leaf.signed_by(&key, &issuer)?;
        fs::write(dir.join(format!("{name}.pem")), certificate.pem())?;
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
        // HAProxy wants both in one file.
        fs::write(dir.join(format!("{name}.both.pem")), certificate.pem() + &key.serialize_pem())?;
    }
    Ok(())
}

/// The command lines of the proxies of a set-up, after writing their configuration into `dir`.
pub(crate) fn commands(
    peer: Peer,
    topology: Topology,
    ports: Ports,
    dir: &Path,
    binaries: (&Path, &Path),
    lean: bool,
) -> Result<Vec<Vec<String>>> {
    let stages: &[Stage] = match topology {
        Topology::Http1 | Topology::Grpc => &[Stage::Single],
        Topology::MtlsPair => &[Stage::Client, Stage::Server],
    };
    let mut commands = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let base = format!("{}-{index}", peer.name());
        let (file, text) = match peer {
            Peer::Oxmesh | Peer::Envoy => {
                (format!("{base}.yaml"), envoy_config(*stage, topology, ports, index, dir, lean))
            }
            Peer::Nginx => (format!("{base}.conf"), nginx_config(*stage, ports, dir, &base)),
            Peer::Haproxy => (format!("{base}.cfg"), haproxy_config(*stage, topology, ports, dir)),
        };
        let path = dir.join(file);
        fs::write(&path, text)?;
        let path = path.display().to_string();
        let words: Vec<String> = match peer {
            Peer::Oxmesh => {
                vec![binaries.0.display().to_string(), "-c".into(), path, "--concurrency".into(), "1".into()]
            }
            Peer::Envoy => [
                &binaries.1.display().to_string(),
                "-c",
                &path,
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "-l",
                "error",
            ]
            .map(str::to_owned)
            .to_vec(),
            Peer::Nginx => ["nginx", "-e", "stderr", "-c", &path].map(str::to_owned).to_vec(),
            Peer::Haproxy => ["haproxy", "-db", "-f", &path].map(str::to_owned).to_vec(),
        };
        commands.push(words);
    }
    Ok(commands)
}

/// The command line of a proxy with nothing but an admin address, ours or Envoy.
pub(crate) fn without_config(peer: Peer, ports: Ports, dir: &Path, binaries: (&Path, &Path)) -> Result<Vec<String>> {
    let path = dir.join("empty.yaml");
    let text = format!(
        "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }}\n",
        ports.admin.0
    );
    fs::write(&path, text)?;
    let binary = if peer == Peer::Envoy { binaries.1 } else { binaries.0 };
    let words = [
        &binary.display().to_string(),
        "-c",
        &path.display().to_string(),
        "--concurrency",
        "1",
        "--disable-hot-restart",
    ];
    Ok(words.map(str::to_owned).to_vec())
}

/// A proxy's place in a set-up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Single,
    Client,
    Server,
}

/// OSM's fields, as every OSM sidecar logs them.
const ACCESS_LOG: &str = r#"
          access_log:
          - name: envoy.access_loggers.stdout
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
              log_format:
                json_format:
                  start_time: "%START_TIME%"
                  method: "%REQ(:METHOD)%"
                  path: "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"
                  protocol: "%PROTOCOL%"
                  response_code: "%RESPONSE_CODE%"
                  response_code_details: "%RESPONSE_CODE_DETAILS%"
                  time_to_first_byte: "%RESPONSE_DURATION%"
                  upstream_cluster: "%UPSTREAM_CLUSTER%"
                  response_flags: "%RESPONSE_FLAGS%"
                  bytes_received: "%BYTES_RECEIVED%"
                  bytes_sent: "%BYTES_SENT%"
                  duration: "%DURATION%"
                  upstream_service_time: "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"
                  x_forwarded_for: "%REQ(X-FORWARDED-FOR)%"
                  user_agent: "%REQ(USER-AGENT)%"
                  request_id: "%REQ(X-REQUEST-ID)%"
                  requested_server_name: "%REQUESTED_SERVER_NAME%"
                  authority: "%REQ(:AUTHORITY)%"
                  upstream_host: "%UPSTREAM_HOST%""#;

const RBAC: &str = r#"
          - name: envoy.filters.http.rbac
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC }"#;
const LIMIT: &str = r#"
          - name: envoy.filters.http.local_ratelimit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: http_local_rate_limiter"#;

fn route_rbac(stage: Stage) -> String {
    let principal = if stage == Stage::Server {
        "{ authenticated: { principal_name: { exact: a.bench.cluster.local } } }"
    } else {
        "{ any: true }"
    };
    format!(
        r#"
                typed_per_filter_config:
                  envoy.filters.http.rbac:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute
                    rbac: {{ rules: {{ action: ALLOW, policies: {{ rbac-for-route: {{ permissions: [{{ any: true }}], principals: [{principal}] }} }} }} }}"#
    )
}

const VHOST_LIMIT: &str = r#"
              typed_per_filter_config:
                envoy.filters.http.local_ratelimit:
                  "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
                  stat_prefix: http_local_rate_limiter
                  token_bucket: { max_tokens: 100000000, tokens_per_fill: 100000000, fill_interval: 1s }
                  filter_enabled: { default_value: { numerator: 100 } }
                  filter_enforced: { default_value: { numerator: 100 } }"#;

fn envoy_config(stage: Stage, topology: Topology, ports: Ports, index: usize, dir: &Path, lean: bool) -> String {
    let dir = dir.display();
    let (listen, upstream) = match stage {
        Stage::Single if topology == Topology::Grpc => (ports.front, ports.http2),
        Stage::Single => (ports.front, ports.http1),
        Stage::Client => (ports.front, ports.middle),
        Stage::Server => (ports.middle, ports.http1),
    };
    let admin = if index == 0 { ports.admin.0 } else { ports.admin.1 };
    let certificates = |name: &str| {
        format!(
            r#"
            tls_certificates: [{{ certificate_chain: {{ filename: {dir}/{name}.pem }}, private_key: {{ filename: {dir}/{name}.key }} }}]
            validation_context: {{ trusted_ca: {{ filename: {dir}/ca.pem }} }}"#
        )
    };
    let downstream_tls = if stage == Stage::Server {
        format!(
            r#"
      transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:{}"#,
            certificates("b")
        )
    } else {
        String::new()
    };
    let upstream_tls = if stage == Stage::Client {
        format!(
            r#"
    transport_socket:
      name: tls
      typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          sni: b.bench.cluster.local
          common_tls_context:
            alpn_protocols: [osm]{}"#,
            certificates("a")
        )
    } else {
        String::new()
    };
    let log = if lean { "" } else { ACCESS_LOG };
    let filters = if lean { String::new() } else { format!("{RBAC}{LIMIT}") };
    let (route_rules, host_rules) = if lean { (String::new(), "") } else { (route_rbac(stage), VHOST_LIMIT) };
    format!(
        r#"node: {{ id: bench, cluster: bench }}
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}
static_resources:
  listeners:
  - name: front
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {listen} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench{log}
          http_filters:{filters}
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
          route_config:
            name: bench
            virtual_hosts:
            - name: bench
              domains: ["*"]{host_rules}
              routes:
              - match: {{ prefix: / }}
                route: {{ cluster: upstream, timeout: 0s }}{route_rules}{downstream_tls}
  clusters:
  - name: upstream
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{ thresholds: [{{ max_connections: 4294967295, max_pending_requests: 4294967295, max_requests: 4294967295, max_retries: 4294967295 }}] }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        use_downstream_protocol_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: upstream
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {upstream} }} }} }} }}] }}]{upstream_tls}
"#
    )
}

fn nginx_config(stage: Stage, ports: Ports, dir: &Path, base: &str) -> String {
    let dir = dir.display();
    let (listen, tls, upstream, scheme, upstream_tls) = match stage {
        Stage::Single => (ports.front, String::new(), ports.http1, "http", String::new()),
        Stage::Client => (
            ports.front,
            String::new(),
            ports.middle,
            "https",
            format!(
                "proxy_ssl_certificate {dir}/a.pem; proxy_ssl_certificate_key {dir}/a.key; proxy_ssl_trusted_certificate {dir}/ca.pem; proxy_ssl_verify on; proxy_ssl_name b.bench.cluster.local; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3; proxy_ssl_session_reuse on;"
            ),
        ),
        Stage::Server => (
            ports.middle,
            format!(
                "ssl_certificate {dir}/b.pem; ssl_certificate_key {dir}/b.key; ssl_client_certificate {dir}/ca.pem; ssl_verify_client on; ssl_protocols TLSv1.3;"
            ),
            ports.http1,
            "http",
            String::new(),
        ),
    };
    let ssl = if tls.is_empty() { "" } else { " ssl" };
    format!(
        "daemon off; master_process off; worker_processes 1; pid {dir}/{base}.pid; error_log stderr error;
events {{ worker_connections 8192; }}
http {{ access_log off; keepalive_requests 100000000;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{listen}{ssl}; {tls}
    location / {{ proxy_pass {scheme}://up; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header X-Request-Id $request_id; {upstream_tls} }} }} }}
"
    )
}

fn haproxy_config(stage: Stage, topology: Topology, ports: Ports, dir: &Path) -> String {
    let dir = dir.display();
    let (bind, server) = match stage {
        Stage::Single if topology == Topology::Grpc => {
            (format!("127.0.0.1:{} proto h2", ports.front), format!("127.0.0.1:{} proto h2", ports.http2))
        }
        Stage::Single => (format!("127.0.0.1:{}", ports.front), format!("127.0.0.1:{}", ports.http1)),
        Stage::Client => (
            format!("127.0.0.1:{}", ports.front),
            format!(
                "127.0.0.1:{} ssl crt {dir}/a.both.pem ca-file {dir}/ca.pem verify required sni str(b.bench.cluster.local)",
                ports.middle
            ),
        ),
        Stage::Server => (
            format!("127.0.0.1:{} ssl crt {dir}/b.both.pem ca-file {dir}/ca.pem verify required", ports.middle),
            format!("127.0.0.1:{}", ports.http1),
        ),
    };
    format!(
        "global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  unique-id-format %{{+X}}o\\ %ci:%cp_%fi:%fp_%Ts_%rt:%pid
  unique-id-header X-Request-Id
  http-reuse always
frontend front
  bind {bind}
  default_backend up
backend up
  server up {server}
"
    )
}
