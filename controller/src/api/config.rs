//! `MeshConfig` (config.openservicemesh.io/v1alpha2 and v1alpha1): the mesh-wide settings.
//!
//! v1alpha1's fields are a subset of v1alpha2's, so one struct serves both. Absent fields stay `None`:
//! the defaults are applied in one place, `mesh::settings`.

use k8s_openapi::api::core::v1::{ResourceRequirements, SecretReference};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PolicyStatus;

/// Settings by area.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "config.openservicemesh.io",
    version = "v1alpha2",
    kind = "MeshConfig",
    plural = "meshconfigs",
    shortname = "meshconfig",
    namespaced,
    status = "PolicyStatus",
    doc = "The mesh-wide settings; the object named `osm-mesh-config` in the control plane's namespace counts.",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.currentStatus")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MeshConfigSpec {
    /// The proxy in each pod.
    pub sidecar: SidecarSpec,
    /// What traffic is captured and allowed.
    pub traffic: TrafficSpec,
    /// Logs, debug server, tracing.
    pub observability: ObservabilitySpec,
    /// Life and keys of workload certificates.
    pub certificate: CertificateSpec,
    /// Optional features.
    pub feature_flags: FeatureFlags,
}

/// The proxy in each pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SidecarSpec {
    /// Runs the init container privileged.
    pub enable_privileged_init_container: Option<bool>,
    /// Log level of the proxies: trace, debug, info, warning, error, critical, off.
    pub log_level: Option<String>,
    /// Image of the proxy; empty means the built-in choice.
    pub envoy_image: Option<String>,
    /// Image of the proxy on Windows.
    pub envoy_windows_image: Option<String>,
    /// Image of the init container.
    pub init_container_image: Option<String>,
    /// Most xDS streams that one controller replica serves; 0 means no limit.
    pub max_data_plane_connections: Option<i64>,
    /// Period of an unconditional push, such as `30s`; `0s` means off.
    pub config_resync_interval: Option<String>,
    /// Compute resources of the proxy's container.
    pub resources: Option<ResourceRequirements>,
    /// Lowest TLS version between proxies: TLS_AUTO, TLSv1_0 to TLSv1_3.
    pub tls_min_protocol_version: Option<String>,
    /// Highest TLS version between proxies.
    pub tls_max_protocol_version: Option<String>,
    /// Cipher suites of TLS up to 1.2, by OpenSSL's names.
    pub cipher_suites: Vec<String>,
    /// Elliptic curves by OpenSSL's names.
    pub ecdh_curves: Vec<String>,
    /// Address on which applications listen: `Localhost` or `PodIP`.
    pub local_proxy_mode: Option<String>,
}

/// What traffic is captured and allowed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TrafficSpec {
    /// Lets everything that matches no service leave the mesh.
    pub enable_egress: Option<bool>,
    /// CIDRs that are not redirected to the proxy.
    #[serde(rename = "outboundIPRangeExclusionList")]
    pub outbound_ip_range_exclusion_list: Vec<String>,
    /// CIDRs that alone are redirected, if any are given.
    #[serde(rename = "outboundIPRangeInclusionList")]
    pub outbound_ip_range_inclusion_list: Vec<String>,
    /// Destination ports that are not redirected.
    pub outbound_port_exclusion_list: Vec<i64>,
    /// Own ports to which traffic is not redirected.
    pub inbound_port_exclusion_list: Vec<i64>,
    /// Allows all traffic between members of the mesh; SMI access policies are then not applied.
    pub enable_permissive_traffic_policy_mode: Option<bool>,
    /// An outside service that is asked about each inbound HTTP request.
    pub inbound_external_authorization: ExternalAuthzSpec,
    /// Network interfaces whose traffic is not redirected.
    pub network_interface_exclusion_list: Vec<String>,
}

/// An outside authorization service (Envoy's gRPC ext_authz).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExternalAuthzSpec {
    /// Turns it on.
    pub enable: Option<bool>,
    /// Host name or address of the service.
    pub address: Option<String>,
    /// Port of the service.
    pub port: Option<u16>,
    /// Prefix of the filter's statistics.
    pub stat_prefix: Option<String>,
    /// Longest wait for an answer.
    pub timeout: Option<String>,
    /// Lets requests pass when the service does not answer.
    pub failure_mode_allow: Option<bool>,
}

/// Logs, debug server, tracing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ObservabilitySpec {
    /// Log level of the control plane.
    pub osm_log_level: Option<String>,
    /// Opens the controller's debug server.
    pub enable_debug_server: Option<bool>,
    /// Tracing by the proxies.
    pub tracing: TracingSpec,
}

/// Tracing by the proxies (Zipkin).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TracingSpec {
    /// Turns it on.
    pub enable: Option<bool>,
    /// Collector's port.
    pub port: Option<u16>,
    /// Collector's host name.
    pub address: Option<String>,
    /// Collector's path.
    pub endpoint: Option<String>,
}

/// Life and keys of workload certificates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CertificateSpec {
    /// Life of a workload's certificate, such as `24h`.
    pub service_cert_validity_duration: Option<String>,
    /// RSA key size in bits.
    pub cert_key_bit_size: Option<i64>,
    /// Certificate for an ingress gateway.
    pub ingress_gateway: Option<IngressGatewayCertSpec>,
}

/// Certificate for an ingress gateway, kept in a Secret.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressGatewayCertSpec {
    /// Names in the certificate.
    #[serde(default)]
    pub subject_alt_names: Vec<String>,
    /// Life of the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validity_duration: Option<String>,
    /// Where it is kept.
    #[serde(default)]
    pub secret: SecretReference,
}

/// Optional features.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FeatureFlags {
    /// Workload metrics of each request (`osm_request_total`, ...).
    #[serde(rename = "enableWASMStats")]
    pub enable_wasm_stats: Option<bool>,
    /// Egress policies; always on here.
    pub enable_egress_policy: Option<bool>,
    /// Left over in OSM, without effect.
    pub enable_multicluster_mode: Option<bool>,
    /// How OSM's xDS server caches; without effect here.
    pub enable_snapshot_cache_mode: Option<bool>,
    /// How OSM maps proxies to services; without effect here.
    pub enable_async_proxy_service_mapping: Option<bool>,
    /// IngressBackend policies.
    pub enable_ingress_backend_policy: Option<bool>,
    /// Active health checks between proxies.
    pub enable_envoy_active_health_checks: Option<bool>,
    /// Retry policies.
    pub enable_retry_policy: Option<bool>,
    /// MeshRootCertificate objects.
    pub enable_mesh_root_certificate: Option<bool>,
    /// SPIFFE URIs in certificates.
    #[serde(rename = "enableSPIFFE")]
    pub enable_spiffe: Option<bool>,
}
