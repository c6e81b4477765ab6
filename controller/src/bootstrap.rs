//! What a sidecar is started with: an Envoy bootstrap file and the certificate with which it asks
//! for its configuration, as OSM's bootstrap secret lays them out.
//!
//! Envoy and our own proxy both take the directory as it is. Files are replaced one by one by
//! rename, the two that name the others last, since proxies watch those.

pub mod probes;

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::identity::{CaError, Issuer, SidecarIdentity};
use probes::Probes;

/// The file to start a proxy with: `-c <directory>/bootstrap.yaml`.
pub const BOOTSTRAP_FILE: &str = "bootstrap.yaml";
/// The certificate with which the proxy asks for its configuration.
pub const CERT_FILE: &str = "sds_cert.pem";
/// Its private key.
pub const KEY_FILE: &str = "sds_key.pem";
/// The authority that the proxy trusts as its control plane's.
pub const CA_FILE: &str = "cacert.pem";
/// Names certificate and key, in SDS form.
pub const TLS_SDS_FILE: &str = "tls_certificate_sds_secret.yaml";
/// Names the authority, in SDS form.
pub const VALIDATION_SDS_FILE: &str = "validation_context_sds_secret.yaml";

/// What a sidecar is told at its start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Host name or address of the control plane. Default as in OSM:
    /// `osm-controller.<control plane's namespace>.svc.cluster.local`.
    pub controller_host: String,
    /// Its ADS port. Default 15128.
    pub controller_port: u16,
    /// The name that the control plane's certificate must have, and that is sent as SNI.
    pub controller_name: String,
    /// Ask for changes only (`DELTA_GRPC`). Default off, as OSM.
    pub delta: bool,
    /// The proxy's own admin interface. Default 127.0.0.1:15000.
    pub admin: SocketAddr,
    /// Where the proxy will read the directory; paths in the files begin with it. Default
    /// `/etc/envoy`.
    pub read_dir: PathBuf,
    /// Who must be able to read the files: uid and gid. Default: whoever writes them.
    pub owner: Option<(u32, u32)>,
    /// How long the certificate is valid. Default ten years, as OSM: a proxy can't renew it itself.
    pub validity: Duration,
    /// Set for a sidecar in a pod: it serves kubelet's probes, tells kubelet when it is ready itself, and is that not
    /// before it has a configuration. Default none.
    pub probes: Option<Probes>,
    /// Where the listeners for probes are. Default 0.0.0.0; `::` takes IPv4 too.
    pub probe_address: IpAddr,
}

impl Options {
    /// OSM's defaults for a control plane in this namespace.
    pub fn new(osm_namespace: &str) -> Self {
        let name = controller_name(osm_namespace);
        Self {
            controller_host: name.clone(),
            controller_port: 15_128,
            controller_name: name,
            delta: false,
            admin: SocketAddr::from(([127, 0, 0, 1], 15_000)),
            read_dir: PathBuf::from("/etc/envoy"),
            owner: None,
            validity: Duration::from_secs(87_600 * 3600),
            probes: None,
            probe_address: IpAddr::from([0, 0, 0, 0]),
        }
    }
}

/// The name in the ADS server's certificate: `osm-controller.<namespace>.svc.cluster.local`.
pub fn controller_name(osm_namespace: &str) -> String {
    format!("osm-controller.{osm_namespace}.svc.cluster.local")
}

/// Why a directory can't be written.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The certificate can't be issued.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A file can't be written.
    #[error("write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Writes everything that the sidecar needs into `dir`, with a new certificate. Blocks on the file
/// system. The directory is made if it isn't there; files of an earlier call are replaced.
///
/// # Errors
/// [`BootstrapError`] if the certificate can't be issued or a file can't be written.
pub fn write(dir: &Path, proxy: &SidecarIdentity, issuer: &Issuer, options: &Options) -> Result<(), BootstrapError> {
    let files = files(proxy, issuer, options)?;
    let in_dir = |source| BootstrapError::Write { path: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(in_dir)?;
    if let Some((uid, gid)) = options.owner {
        chown(dir, Some(uid), Some(gid)).map_err(in_dir)?;
    }
    for (name, text, mode) in files {
        let path = dir.join(name);
        replace(&path, &text, mode, options.owner).map_err(|source| BootstrapError::Write { path, source })?;
    }
    Ok(())
}

/// The files that a sidecar needs, with a new certificate: names, texts and modes. They stand in the order in which they
/// may be replaced.
///
/// # Errors
/// [`CaError`] if the certificate can't be issued.
pub fn files(
    proxy: &SidecarIdentity,
    issuer: &Issuer,
    options: &Options,
) -> Result<[(&'static str, String, u32); 6], CaError> {
    let leaf = issuer.sidecar(proxy, options.validity)?;
    let trust_domain = issuer.policy().trust_domain;
    Ok([
        (CA_FILE, issuer.ca().cert_pem().to_owned(), 0o644),
        (KEY_FILE, leaf.key_pem, 0o600),
        (CERT_FILE, leaf.chain_pem, 0o644),
        (TLS_SDS_FILE, format!("{:#}", tls_secret(options)), 0o644),
        (VALIDATION_SDS_FILE, format!("{:#}", validation_secret(options)), 0o644),
        (BOOTSTRAP_FILE, format!("{:#}", bootstrap(proxy, &trust_domain, options)), 0o644),
    ])
}

/// Whether the directory's certificate should be replaced by another [`write()`]: it is missing, not
/// of this authority, or a third of its life is left. Blocks on the file system.
pub fn is_due(dir: &Path, issuer: &Issuer, now: SystemTime) -> bool {
    let same_authority = fs::read_to_string(dir.join(CA_FILE)).is_ok_and(|pem| pem == issuer.ca().cert_pem());
    let Ok(der) = CertificateDer::from_pem_file(dir.join(CERT_FILE)) else { return true };
    let Ok((_, cert)) = x509_parser::parse_x509_certificate(&der) else { return true };
    let (begin, end): (SystemTime, SystemTime) =
        (cert.validity().not_before.to_datetime().into(), cert.validity().not_after.to_datetime().into());
    let life = end.duration_since(begin).unwrap_or_default();
    !same_authority || now + life / 3 >= end
}

/// The bootstrap of a sidecar. Pure.
#[must_use]
pub fn bootstrap(proxy: &SidecarIdentity, trust_domain: &str, options: &Options) -> Value {
    let mut clusters = vec![controller_cluster(options)];
    let mut listeners = Vec::new();
    let mut subscription = json!({ "ads": {}, "resource_api_version": "V3" });
    if let Some(probes) = &options.probes {
        clusters.extend(probes::clusters(probes, options.admin));
        listeners.extend(probes::listeners(probes, options.probe_address));
        // The application is held back until the proxy is ready: it must not be called ready with nothing in hand.
        subscription["initial_fetch_timeout"] = json!("0s");
    }
    let mut resources = json!({ "clusters": clusters });
    if !listeners.is_empty() {
        resources["listeners"] = json!(listeners);
    }
    json!({
        "node": { "id": proxy.common_name(trust_domain), "cluster": proxy.service.to_string() },
        "admin": {
            "access_log": [{
                "name": "envoy.access_loggers.stream",
                "typed_config": { "@type": format!("{EXTENSIONS}.access_loggers.stream.v3.StdoutAccessLog") },
            }],
            "address": address(&options.admin.ip().to_string(), options.admin.port()),
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": if options.delta { "DELTA_GRPC" } else { "GRPC" },
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": CLUSTER } }],
                "set_node_on_first_message_only": true,
            },
            "cds_config": subscription,
            "lds_config": subscription,
        },
        // Without it Envoy refuses all routes for a path of some 95 letters; what we send has a bound of its own.
        "layered_runtime": { "layers": [
            { "name": "regex", "static_layer": { "re2.max_program_size.error_level": MAX_RE2_PROGRAM } },
        ] },
        "static_resources": resources,
    })
}

fn controller_cluster(options: &Options) -> Value {
    let file = |name: &str| json!({ "path": options.read_dir.join(name) });
    let is_address = options.controller_host.parse::<IpAddr>().is_ok();
    let endpoint = json!({ "endpoint": { "address": address(&options.controller_host, options.controller_port) } });
    json!({
        "name": CLUSTER,
        "type": if is_address { "STATIC" } else { "LOGICAL_DNS" },
        "upstream_connection_options": {
            "tcp_keepalive": { "keepalive_probes": 5, "keepalive_time": 60, "keepalive_interval": 5 },
        },
        "load_assignment": { "cluster_name": CLUSTER, "endpoints": [{ "lb_endpoints": [endpoint] }] },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext"),
                "sni": options.controller_name,
                "common_tls_context": {
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_2",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "alpn_protocols": ["h2"],
                    "tls_certificate_sds_secret_configs": [
                        { "name": TLS_SECRET, "sds_config": file(TLS_SDS_FILE) },
                    ],
                    "validation_context_sds_secret_config":
                        { "name": VALIDATION_SECRET, "sds_config": file(VALIDATION_SDS_FILE) },
                },
            },
        },
    })
}

fn tls_secret(options: &Options) -> Value {
    let file = |name: &str| json!({ "filename": options.read_dir.join(name) });
    json!({ "resources": [{
        "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.Secret"),
        "name": TLS_SECRET,
        "tls_certificate": { "certificate_chain": file(CERT_FILE), "private_key": file(KEY_FILE) },
    }] })
}

/// Unlike OSM's it names the control plane: every workload has a certificate of the same authority.
fn validation_secret(options: &Options) -> Value {
    json!({ "resources": [{
        "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.Secret"),
        "name": VALIDATION_SECRET,
        "validation_context": {
            "trusted_ca": { "filename": options.read_dir.join(CA_FILE) },
            "match_typed_subject_alt_names": [
                { "san_type": "DNS", "matcher": { "exact": options.controller_name } },
            ],
        },
    }] })
}

fn address(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}

/// Puts a complete file in place at once, never readable by more than it should be.
fn replace(path: &Path, text: &str, mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    let temporary = path.with_extension(format!("new.{:016x}", fastrand::u64(..)));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // Whatever the umask took away.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        if let Some((uid, gid)) = owner {
            chown(&temporary, Some(uid), Some(gid))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| {
        // Nothing is left behind; the error that counts is the first.
        let _ = fs::remove_file(&temporary);
    })
}

const MAX_RE2_PROGRAM: u32 = 1 << 20;
const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";
const CLUSTER: &str = "osm-controller";
const TLS_SECRET: &str = "tls_sds";
const VALIDATION_SECRET: &str = "validation_context_sds";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::Arc;

    use super::*;
    use crate::identity::{Ca, Policy, ServiceIdentity};

    fn issuer() -> (tempfile::TempDir, Issuer) {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(&dir.path().join("ca")).unwrap();
        (dir, Issuer::new(Arc::new(ca), Policy::new("cluster.local")))
    }

    fn buyer() -> SidecarIdentity {
        SidecarIdentity { uuid: "u1".into(), service: ServiceIdentity::new("shop", "buyer") }
    }

    fn read(path: &Path) -> Value {
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn the_directory_holds_what_a_proxy_needs_and_guards_the_key() {
        let (dir, issuer) = issuer();
        let out = dir.path().join("out");
        let options = Options { read_dir: out.clone(), ..Options::new("osm-system") };
        write(&out, &buyer(), &issuer, &options).unwrap();
        let mode = |name| fs::metadata(out.join(name)).unwrap().mode() & 0o777;
        assert_eq!((mode(KEY_FILE), mode(CERT_FILE), mode(BOOTSTRAP_FILE)), (0o600, 0o644, 0o644));
        let secret = read(&out.join(TLS_SDS_FILE));
        let key = secret["resources"][0]["tls_certificate"]["private_key"]["filename"].as_str().unwrap();
        assert!(fs::read_to_string(key).unwrap().contains("PRIVATE KEY"));
        let bootstrap = read(&out.join(BOOTSTRAP_FILE));
        assert_eq!(bootstrap["node"]["id"], "u1.sidecar.buyer.shop.cluster.local");
        let cluster = &bootstrap["static_resources"]["clusters"][0];
        assert_eq!(cluster["type"], "LOGICAL_DNS");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 6);
    }

    #[test]
    fn an_address_needs_no_name_resolution_and_delta_can_be_chosen() {
        let options = Options { controller_host: "127.0.0.1".into(), delta: true, ..Options::new("osm-system") };
        let bootstrap = bootstrap(&buyer(), "td", &options);
        assert_eq!(bootstrap["static_resources"]["clusters"][0]["type"], "STATIC");
        assert_eq!(bootstrap["dynamic_resources"]["ads_config"]["api_type"], "DELTA_GRPC");
    }

    #[test]
    fn a_certificate_is_due_in_the_last_third_of_its_life_or_under_another_authority() {
        let (dir, issuer) = issuer();
        let out = dir.path().join("out");
        assert!(is_due(&out, &issuer, SystemTime::now()));
        let options = Options { validity: Duration::from_secs(3600), ..Options::new("osm-system") };
        write(&out, &buyer(), &issuer, &options).unwrap();
        let now = SystemTime::now();
        assert!(!is_due(&out, &issuer, now));
        assert!(is_due(&out, &issuer, now + Duration::from_secs(2500)));
        let (_other_dir, other) = self::issuer();
        assert!(is_due(&out, &other, now));
        write(&out, &buyer(), &other, &options).unwrap();
        assert!(!is_due(&out, &other, now));
    }
}
