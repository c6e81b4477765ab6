//! `Egress` (policy.openservicemesh.io/v1alpha1): which workloads may reach what outside the mesh.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KindRef, LocalRef, PolicyStatus};

/// Who may reach what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "policy.openservicemesh.io",
    version = "v1alpha1",
    kind = "Egress",
    plural = "egresses",
    shortname = "egress",
    namespaced,
    status = "PolicyStatus",
    doc = "Lets the sources reach hosts or address ranges outside the mesh.",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.currentStatus")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressSpec {
    /// ServiceAccounts that may.
    pub sources: Vec<KindRef>,
    /// Host names: HTTP hosts, or server names of TLS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Address ranges (CIDR).
    #[serde(default, rename = "ipAddresses", skip_serializing_if = "Vec::is_empty")]
    pub ip_addresses: Vec<String>,
    /// Ports and their protocols.
    pub ports: Vec<PortSpec>,
    /// HTTPRouteGroups that narrow HTTP requests, and at most one UpstreamTrafficSetting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<LocalRef>,
}

/// A port and its protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortSpec {
    /// Port number.
    pub number: u16,
    /// Protocol: for egress http, https, tcp, tcp-server-first; for ingress http, https.
    pub protocol: String,
}
