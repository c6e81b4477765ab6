//! `ExtensionService` (config.openservicemesh.io/v1alpha2): the address of a helper service such as a log collector.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PolicyStatus;

/// Its address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "config.openservicemesh.io",
    version = "v1alpha2",
    kind = "ExtensionService",
    plural = "extensionservices",
    shortname = "extsvc",
    namespaced,
    status = "PolicyStatus",
    doc = "A service outside the mesh that proxies call.",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.currentStatus")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExtensionServiceSpec {
    /// Host name.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Protocol, such as `h2c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Longest wait for a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<String>,
}
