//! `IngressBackend` (policy.openservicemesh.io/v1alpha1): opens a service to clients outside the mesh.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KindRef, LocalRef, PolicyStatus, PortSpec};

/// Which services, to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "policy.openservicemesh.io",
    version = "v1alpha1",
    kind = "IngressBackend",
    plural = "ingressbackends",
    shortname = "ingressbackend",
    namespaced,
    status = "PolicyStatus",
    doc = "Opens services of its namespace to the sources.",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.currentStatus")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressBackendSpec {
    /// The services that are opened.
    pub backends: Vec<BackendSpec>,
    /// Who may call: `Service`, `IPRange` or `AuthenticatedPrincipal`.
    pub sources: Vec<KindRef>,
    /// In OSM's schema, never implemented there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<LocalRef>,
}

/// One service that is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendSpec {
    /// Name of the service.
    pub name: String,
    /// The service's *target* port and how clients speak to it: http or https.
    pub port: PortSpec,
    /// TLS of an https backend.
    #[serde(default)]
    pub tls: TlsSpec,
}

/// TLS towards ingress clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsSpec {
    /// Takes clients without a certificate.
    #[serde(default)]
    pub skip_client_cert_validation: bool,
    /// Server names to which this applies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sni_hosts: Vec<String>,
}
