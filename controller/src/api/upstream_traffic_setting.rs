//! `UpstreamTrafficSetting` (policy.openservicemesh.io/v1alpha1): limits on the way to one service.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PolicyStatus;

/// Limits of one service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "policy.openservicemesh.io",
    version = "v1alpha1",
    kind = "UpstreamTrafficSetting",
    plural = "upstreamtrafficsettings",
    shortname = "upstreamtrafficsetting",
    namespaced,
    status = "PolicyStatus",
    doc = "Connection and rate limits of one service.",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.currentStatus")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpstreamTrafficSettingSpec {
    /// FQDN of the service, in the object's own namespace.
    pub host: String,
    /// Limits that clients keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_settings: Option<ConnectionSettingsSpec>,
    /// Rate limits that the service's own proxy keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimitSpec>,
    /// Rate limits of single HTTP paths.
    #[serde(default, rename = "httpRoutes", skip_serializing_if = "Vec::is_empty")]
    pub http_routes: Vec<HttpRouteSpec>,
}

/// Limits that clients keep.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionSettingsSpec {
    /// Of TCP, which HTTP shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpConnectionSettings>,
    /// Of HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpConnectionSettings>,
}

/// TCP limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpConnectionSettings {
    /// Most connections; default 2^32-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Longest wait for a connection; default 5 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<String>,
}

/// HTTP limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpConnectionSettings {
    /// Most requests at a time; default 2^32-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
    /// Most requests of one connection; default no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests_per_connection: Option<u32>,
    /// Most requests that wait for a connection; default 2^32-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pending_requests: Option<u32>,
    /// Most retries at a time; default 2^32-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
}

/// Rate limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitSpec {
    /// Kept by each proxy alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalRateLimitSpec>,
    /// Kept by a rate limit service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global: Option<GlobalRateLimitSpec>,
}

/// Rate limits kept by each proxy alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalRateLimitSpec {
    /// Of connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpLocalRateLimitSpec>,
    /// Of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpLocalRateLimitSpec>,
}

/// Rate of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpLocalRateLimitSpec {
    /// Connections per unit.
    pub connections: u32,
    /// second, minute or hour.
    pub unit: String,
    /// Further connections for a short time; default 0.
    #[serde(default)]
    pub burst: u32,
}

/// Rate of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpLocalRateLimitSpec {
    /// Requests per unit.
    pub requests: u32,
    /// second, minute or hour.
    pub unit: String,
    /// Further requests for a short time; default 0.
    #[serde(default)]
    pub burst: u32,
    /// Status of refused requests, 400 to 599; default 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_status_code: Option<u32>,
    /// Headers of refused requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub response_headers_to_add: Vec<HttpHeaderValue>,
}

/// A header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpHeaderValue {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// Rate limits kept by a rate limit service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GlobalRateLimitSpec {
    /// Of connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpGlobalRateLimitSpec>,
    /// Of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpGlobalRateLimitSpec>,
}

/// Address of a rate limit service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitServiceSpec {
    /// Host name.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Limit of connections by a rate limit service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpGlobalRateLimitSpec {
    /// The service.
    pub rate_limit_service: RateLimitServiceSpec,
    /// The set of limits in the service.
    pub domain: String,
    /// What is asked.
    pub descriptors: Vec<TcpRateLimitDescriptor>,
    /// Longest wait for the answer; default 20 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Lets connections pass if no answer comes; default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_open: Option<bool>,
}

/// One question to the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRateLimitDescriptor {
    /// Its parts.
    pub entries: Vec<TcpRateLimitDescriptorEntry>,
}

/// A key and a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRateLimitDescriptorEntry {
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
}

/// Limit of requests by a rate limit service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGlobalRateLimitSpec {
    /// The service.
    pub rate_limit_service: RateLimitServiceSpec,
    /// The set of limits in the service.
    pub domain: String,
    /// What is asked for all requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub descriptors: Vec<HttpGlobalRateLimitDescriptor>,
    /// Longest wait for the answer; default 20 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Lets requests pass if no answer comes; default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_open: Option<bool>,
    /// Adds the `x-ratelimit-*` headers to responses.
    #[serde(default, rename = "enableXRateLimitHeaders", skip_serializing_if = "Option::is_none")]
    pub enable_x_rate_limit_headers: Option<bool>,
    /// Status of refused requests; default 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_status_code: Option<u32>,
}

/// One question to the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGlobalRateLimitDescriptor {
    /// Its parts.
    pub entries: Vec<HttpGlobalRateLimitDescriptorEntry>,
}

/// Exactly one of the ways to make an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGlobalRateLimitDescriptorEntry {
    /// A constant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generic_key: Option<GenericKeyDescriptorEntry>,
    /// The client's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_address: Option<RemoteAddressDescriptorEntry>,
    /// A request header's value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header: Option<RequestHeaderDescriptorEntry>,
    /// A constant if headers match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_value_match: Option<HeaderValueMatchDescriptorEntry>,
}

/// A constant entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GenericKeyDescriptorEntry {
    /// Value.
    pub value: String,
    /// Key; default `generic_key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// The client's address as an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoteAddressDescriptorEntry {}

/// A request header's value as an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestHeaderDescriptorEntry {
    /// Header.
    pub name: String,
    /// Key.
    pub key: String,
}

/// A constant entry if headers match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderValueMatchDescriptorEntry {
    /// Value.
    pub value: String,
    /// Which headers.
    pub headers: Vec<HttpHeaderMatcher>,
    /// Key; default `header_match`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// False turns the match round; default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_match: Option<bool>,
}

/// A header and one way to match it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpHeaderMatcher {
    /// Header.
    pub name: String,
    /// The whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// Its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// A pattern for the whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// A part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// Whether it must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}

/// Limits of one HTTP path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// The path's regular expression, letter for letter as the route has it.
    pub path: String,
    /// Its limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<HttpPerRouteRateLimitSpec>,
}

/// Rate limits of one path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpPerRouteRateLimitSpec {
    /// Kept by each proxy alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<HttpLocalRateLimitSpec>,
    /// Kept by the service's rate limit service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global: Option<HttpGlobalPerRouteRateLimitSpec>,
}

/// What is asked for one path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGlobalPerRouteRateLimitSpec {
    /// The questions.
    pub descriptors: Vec<HttpGlobalRateLimitDescriptor>,
}
