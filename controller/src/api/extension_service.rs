//! `ExtensionService` (config.openservicemesh.io/v1alpha2): the address of a helper service such as a log collector.

use serde::{Deserialize, Serialize};

use super::{PolicyStatus, custom_kind};

custom_kind!(
    /// A service outside the mesh that proxies call.
    ExtensionService, ExtensionServiceSpec, PolicyStatus
);

/// Its address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
