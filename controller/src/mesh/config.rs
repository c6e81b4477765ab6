//! MeshConfig with its defaults applied, and what in it has no effect yet.
//!
//! OSM's own default since 1.2 is to allow everything; ours is to allow what a policy allows. Both say so in MeshConfig.

use std::time::Duration;

use super::Finding;
use super::finding::About;
use super::text;
use crate::api::{ExternalAuthzSpec, Key, MeshConfigSpec, Objects};
use crate::settings::Settings;

/// The name of the MeshConfig that counts.
pub const MESH_CONFIG: &str = "osm-mesh-config";

/// Mesh-wide settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// All traffic between members of the mesh is allowed. Default false.
    pub permissive: bool,
    /// What matches no service leaves the mesh. Default false.
    pub egress: bool,
    /// Servers tell clients which workload answered (`osm-stats-*` response headers). Default true.
    pub stats_headers: bool,
    /// Retry policies count. Default false.
    pub retries: bool,
    /// IngressBackend policies count. Default true.
    pub ingress: bool,
    /// External authorization is asked for and must be obeyed, and there is none yet: HTTP requests are refused. Default false.
    pub authorization_missing: bool,
    /// Applications listen on the pod's address instead of loopback: the pod's redirection leads the proxy's connections to
    /// loopback there. Default false.
    pub pod_ip_mode: bool,
    /// TLS between proxies.
    pub tls: Tls,
    /// Life of a workload's certificate. Default 24 h.
    pub service_cert_validity: Duration,
    /// Most xDS streams of one controller replica; 0 means no limit. Default 0.
    pub max_data_plane_connections: u64,
    /// Period of an unconditional push, at least 30 s. Default none.
    pub resync: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            permissive: false,
            egress: false,
            stats_headers: true,
            retries: false,
            ingress: true,
            authorization_missing: false,
            pod_ip_mode: false,
            tls: Tls::default(),
            service_cert_validity: Duration::from_secs(24 * 3600),
            max_data_plane_connections: 0,
            resync: None,
        }
    }
}

/// TLS between proxies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Lowest version. Default 1.2.
    pub min: TlsVersion,
    /// Highest version. Default 1.3.
    pub max: TlsVersion,
    /// Cipher suites of TLS 1.2; the proxy's own choice if empty.
    pub cipher_suites: Vec<String>,
    /// Curves; the proxy's own choice if empty.
    pub ecdh_curves: Vec<String>,
}

impl Default for Tls {
    fn default() -> Self {
        Self { min: TlsVersion::V1_2, max: TlsVersion::V1_3, cipher_suites: Vec::new(), ecdh_curves: Vec::new() }
    }
}

/// A version of TLS that we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// Reads the MeshConfig that counts.
pub(super) fn config(objects: &Objects, settings: &Settings, findings: &mut Vec<Finding>) -> Config {
    let counts = Key::new(&settings.osm_namespace, MESH_CONFIG);
    for key in objects.mesh_configs.keys().filter(|key| **key != counts) {
        About::new("MeshConfig", key, findings).no_effect("metadata.name", format!("only {counts} counts"));
    }
    let Some(object) = objects.mesh_configs.get(&counts) else { return Config::default() };
    let mut about = About::new("MeshConfig", &counts, findings);
    without_effect(&object.spec, &mut about);
    if !settings.injects {
        for_injected_pods_alone(&object.spec, &mut about);
    }
    read(&object.spec, &mut about)
}

fn read(spec: &MeshConfigSpec, about: &mut About<'_>) -> Config {
    let default = Config::default();
    let flags = &spec.feature_flags;
    let pod_ip_mode = match spec.sidecar.local_proxy_mode.as_deref() {
        None | Some("" | "Localhost") => false,
        Some("PodIP") => true,
        Some(other) => {
            about.error(
                "spec.sidecar.localProxyMode",
                format!("{other:?} is neither Localhost nor PodIP; taken as Localhost"),
            );
            false
        }
    };
    let connections = spec.sidecar.max_data_plane_connections.unwrap_or(0);
    Config {
        permissive: spec.traffic.enable_permissive_traffic_policy_mode.unwrap_or(default.permissive),
        egress: spec.traffic.enable_egress.unwrap_or(default.egress),
        stats_headers: flags.enable_wasm_stats.unwrap_or(default.stats_headers),
        retries: flags.enable_retry_policy.unwrap_or(default.retries),
        ingress: flags.enable_ingress_backend_policy.unwrap_or(default.ingress),
        authorization_missing: authorization_missing(&spec.traffic.inbound_external_authorization, about),
        pod_ip_mode,
        tls: tls(spec, about),
        service_cert_validity: validity(spec, about).unwrap_or(default.service_cert_validity),
        max_data_plane_connections: u64::try_from(connections).unwrap_or_else(|_| {
            about.error("spec.sidecar.maxDataPlaneConnections", "must not be negative; taken as no limit");
            0
        }),
        resync: resync(spec, about),
    }
}

fn validity(spec: &MeshConfigSpec, about: &mut About<'_>) -> Option<Duration> {
    const FIELD: &str = "spec.certificate.serviceCertValidityDuration";
    let text = spec.certificate.service_cert_validity_duration.as_deref()?;
    match text::duration(text) {
        Ok(duration) if duration >= MIN_VALIDITY => Some(duration),
        Ok(_) => {
            about.error(FIELD, format!("{text} is shorter than 2s, which no rotation keeps up with; 24h is used"));
            None
        }
        Err(e) => {
            about.error(FIELD, format!("{e}; 24h is used"));
            None
        }
    }
}

fn resync(spec: &MeshConfigSpec, about: &mut About<'_>) -> Option<Duration> {
    const FIELD: &str = "spec.sidecar.configResyncInterval";
    let text = spec.sidecar.config_resync_interval.as_deref().filter(|t| !t.is_empty())?;
    match text::duration(text) {
        Ok(Duration::ZERO) => None,
        Ok(period) if period >= MIN_RESYNC => Some(period),
        Ok(_) => {
            about.warning(FIELD, "less than 30s is raised to 30s");
            Some(MIN_RESYNC)
        }
        Err(e) => {
            about.error(FIELD, format!("{e}; the resync is off"));
            None
        }
    }
}

fn tls(spec: &MeshConfigSpec, about: &mut About<'_>) -> Tls {
    let mut version = |text: Option<&str>, field: &str, auto: TlsVersion| match text {
        None | Some("" | "TLS_AUTO") => auto,
        Some("TLSv1_2") => TlsVersion::V1_2,
        Some("TLSv1_3") => TlsVersion::V1_3,
        Some(old @ ("TLSv1_0" | "TLSv1_1")) => {
            about.warning(field, format!("{old} is not safe and not spoken; TLSv1_2 is used"));
            TlsVersion::V1_2
        }
        Some(other) => {
            about.error(field, format!("{other:?} is not TLS_AUTO, TLSv1_2 or TLSv1_3; the default is used"));
            auto
        }
    };
    let sidecar = &spec.sidecar;
    let min =
        version(sidecar.tls_min_protocol_version.as_deref(), "spec.sidecar.tlsMinProtocolVersion", TlsVersion::V1_2);
    let mut max =
        version(sidecar.tls_max_protocol_version.as_deref(), "spec.sidecar.tlsMaxProtocolVersion", TlsVersion::V1_3);
    if min > max {
        about.error("spec.sidecar.tlsMaxProtocolVersion", "is below tlsMinProtocolVersion; TLSv1_3 is used");
        max = TlsVersion::V1_3;
    }
    Tls {
        min,
        max,
        cipher_suites: known(&sidecar.cipher_suites, &CIPHER_SUITES, "spec.sidecar.cipherSuites", about),
        ecdh_curves: known(&sidecar.ecdh_curves, &CURVES, "spec.sidecar.ecdhCurves", about),
    }
}

/// A proxy refuses everything with a name that it does not know, so only names that all proxies have get through.
fn known(names: &[String], all: &[&str], field: &str, about: &mut About<'_>) -> Vec<String> {
    let (known, unknown): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| all.contains(&name.as_str()));
    if !unknown.is_empty() {
        let rest = if known.is_empty() { "the default is used" } else { "the others are used" };
        about.error(field, format!("{unknown:?} are not among {all:?}; {rest}"));
    }
    known.into_iter().cloned().collect()
}

/// A service that can't be asked is one that does not answer, so `failureModeAllow` says what happens: by default no request
/// passes.
fn authorization_missing(spec: &ExternalAuthzSpec, about: &mut About<'_>) -> bool {
    const FIELD: &str = "spec.traffic.inboundExternalAuthorization";
    match (spec.enable == Some(true), spec.failure_mode_allow == Some(true)) {
        (false, _) => false,
        (true, true) => {
            about.warning(FIELD, "is not implemented yet: as failureModeAllow says, access policies alone decide");
            false
        }
        (true, false) => {
            about.error(
                FIELD,
                "is not implemented yet: HTTP requests to all workloads are refused; set enable: false, or failureModeAllow: \
                 true to let access policies alone decide",
            );
            true
        }
    }
}

/// What the object asks for and nobody does yet.
fn without_effect(spec: &MeshConfigSpec, about: &mut About<'_>) {
    let MeshConfigSpec { sidecar, traffic: _, observability, certificate, feature_flags } = spec;
    let rows = [
        (
            observability.osm_log_level.as_deref().is_some_and(|l| !matches!(l, "" | "info")),
            "spec.observability.osmLogLevel",
            "the controller's log is set by its own option --log-level",
        ),
        (
            observability.enable_debug_server == Some(true),
            "spec.observability.enableDebugServer",
            "the controller's debug pages are always there, for its own machine alone",
        ),
        (
            feature_flags.enable_snapshot_cache_mode == Some(true),
            "spec.featureFlags.enableSnapshotCacheMode",
            "there is one way to serve proxies",
        ),
        (
            feature_flags.enable_async_proxy_service_mapping == Some(true),
            "spec.featureFlags.enableAsyncProxyServiceMapping",
            "there is one way to find the services of a pod",
        ),
        (observability.tracing.enable == Some(true), "spec.observability.tracing", "tracing is not implemented yet"),
        (
            feature_flags.enable_envoy_active_health_checks == Some(true),
            "spec.featureFlags.enableEnvoyActiveHealthChecks",
            "active health checks are not implemented yet",
        ),
        (
            feature_flags.enable_mesh_root_certificate == Some(true),
            "spec.featureFlags.enableMeshRootCertificate",
            "MeshRootCertificate is not implemented yet",
        ),
        (feature_flags.enable_spiffe == Some(true), "spec.featureFlags.enableSPIFFE", "peers are checked by DNS names"),
        (
            feature_flags.enable_multicluster_mode == Some(true),
            "spec.featureFlags.enableMulticlusterMode",
            "there is no such mode",
        ),
        (
            feature_flags.enable_egress_policy == Some(false),
            "spec.featureFlags.enableEgressPolicy",
            "Egress policies always count; delete them to forbid",
        ),
        (
            certificate.ingress_gateway.is_some(),
            "spec.certificate.ingressGateway",
            "gateway certificates are not implemented yet",
        ),
        (
            certificate.cert_key_bit_size.is_some_and(|bits| bits != 2048),
            "spec.certificate.certKeyBitSize",
            "keys are ECDSA P-256, whose size is fixed",
        ),
        (
            sidecar.envoy_windows_image.as_deref().is_some_and(|image| !image.is_empty()),
            "spec.sidecar.envoyWindowsImage",
            "pods of Windows get no sidecar",
        ),
    ];
    for (asked, field, message) in rows {
        if asked {
            about.no_effect(field, message);
        }
    }
}

/// What counts when a sidecar is put into a pod. The pods of folders are as they are.
fn for_injected_pods_alone(spec: &MeshConfigSpec, about: &mut About<'_>) {
    let MeshConfigSpec { sidecar, traffic, .. } = spec;
    let set = |text: &Option<String>| text.as_deref().is_some_and(|t| !t.is_empty());
    let rows = [
        (sidecar.enable_privileged_init_container == Some(true), "spec.sidecar.enablePrivilegedInitContainer"),
        (sidecar.local_proxy_mode.as_deref() == Some("PodIP"), "spec.sidecar.localProxyMode"),
        (set(&sidecar.envoy_image), "spec.sidecar.envoyImage"),
        (set(&sidecar.init_container_image), "spec.sidecar.initContainerImage"),
        (sidecar.log_level.as_deref().is_some_and(|l| !matches!(l, "" | "error")), "spec.sidecar.logLevel"),
        (sidecar.resources.as_ref().is_some_and(|r| *r != Default::default()), "spec.sidecar.resources"),
        (!traffic.outbound_ip_range_exclusion_list.is_empty(), "spec.traffic.outboundIPRangeExclusionList"),
        (!traffic.outbound_ip_range_inclusion_list.is_empty(), "spec.traffic.outboundIPRangeInclusionList"),
        (!traffic.outbound_port_exclusion_list.is_empty(), "spec.traffic.outboundPortExclusionList"),
        (!traffic.inbound_port_exclusion_list.is_empty(), "spec.traffic.inboundPortExclusionList"),
        (!traffic.network_interface_exclusion_list.is_empty(), "spec.traffic.networkInterfaceExclusionList"),
    ];
    for (_, field) in rows.into_iter().filter(|(asked, _)| *asked) {
        about.no_effect(field, "counts when sidecars are injected, which is done in a cluster alone");
    }
}

const MIN_VALIDITY: Duration = Duration::from_secs(2);
const MIN_RESYNC: Duration = Duration::from_secs(30);

/// Suites of TLS 1.2 with forward secrecy, by OpenSSL's names.
const CIPHER_SUITES: [&str; 6] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
];
const CURVES: [&str; 3] = ["X25519", "P-256", "P-384"];
