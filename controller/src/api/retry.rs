//! `Retry` (policy.openservicemesh.io/v1alpha1): when a source tries a request again.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KindRef, PolicyStatus};

/// Who retries, to whom, when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "policy.openservicemesh.io",
    version = "v1alpha1",
    kind = "Retry",
    plural = "retries",
    shortname = "retry",
    namespaced,
    status = "PolicyStatus",
    doc = "Retries of requests from one ServiceAccount to some services.",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.currentStatus")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetrySpec {
    /// The ServiceAccount that retries.
    pub source: KindRef,
    /// The services to which it does.
    pub destinations: Vec<KindRef>,
    /// When and how often.
    pub retry_policy: RetryPolicySpec,
}

/// When and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryPolicySpec {
    /// Envoy's words, separated by commas, such as `5xx,connect-failure`.
    pub retry_on: String,
    /// Longest time of one try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<String>,
    /// Most retries; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
    /// First back-off; default 25 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_backoff_base_interval: Option<String>,
}
