//! The SMI kinds: TrafficTarget (access.smi-spec.io/v1alpha3), HTTPRouteGroup, TCPRoute and UDPRoute
//! (specs.smi-spec.io/v1alpha4), TrafficSplit (split.smi-spec.io/v1alpha2 and v1alpha4).

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PolicyStatus;

/// Who may call whom, how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "access.smi-spec.io",
    version = "v1alpha3",
    kind = "TrafficTarget",
    plural = "traffictargets",
    shortname = "tt",
    namespaced,
    status = "PolicyStatus",
    doc = "Lets sources call a destination, if a rule matches. Targets only ever add up.",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.currentStatus")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficTargetSpec {
    /// Who is called.
    pub destination: IdentityRef,
    /// How; any of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<TrafficTargetRule>,
    /// Who calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<IdentityRef>,
}

/// An identity: a ServiceAccount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentityRef {
    /// `ServiceAccount`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace; the object's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// A reference to a route object of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficTargetRule {
    /// `HTTPRouteGroup`, `TCPRoute` or `UDPRoute`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Names of the group's matches; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<Vec<String>>,
}

/// Descriptions of requests; any of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "specs.smi-spec.io",
    version = "v1alpha4",
    kind = "HTTPRouteGroup",
    plural = "httproutegroups",
    shortname = "htr",
    namespaced,
    status = "PolicyStatus",
    doc = "HTTP requests, described.",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.currentStatus")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteGroupSpec {
    /// The descriptions.
    #[serde(default)]
    pub matches: Vec<HttpMatch>,
}

/// One description: path and method and headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpMatch {
    /// Name by which TrafficTargets choose it.
    pub name: String,
    /// Methods, `*` for all; all if absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Regular expression for the path; any if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_regex: Option<String>,
    /// Regular expressions for headers, all of which must match.
    #[serde(default, skip_serializing_if = "HttpHeaders::is_empty")]
    #[schemars(with = "Vec<BTreeMap<String, String>>")]
    pub headers: HttpHeaders,
}

/// Headers as SMI v1alpha4 has them, a list of single maps, or as one map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum HttpHeaders {
    /// `[{"user-agent": ".*"}, ...]`
    List(Vec<BTreeMap<String, String>>),
    /// `{"user-agent": ".*", ...}`
    Map(BTreeMap<String, String>),
}

impl Default for HttpHeaders {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl HttpHeaders {
    /// Whether no header is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Names and regular expressions, in the order they were written.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let (list, map) = match self {
            Self::List(list) => (list.as_slice(), None),
            Self::Map(map) => (&[][..], Some(map)),
        };
        let maps = list.iter().chain(map);
        maps.flatten().map(|(name, regex)| (name.as_str(), regex.as_str()))
    }
}

/// Descriptions of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "specs.smi-spec.io",
    version = "v1alpha4",
    kind = "TCPRoute",
    plural = "tcproutes",
    shortname = "tr",
    namespaced,
    status = "PolicyStatus",
    doc = "TCP connections, described.",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.currentStatus")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRouteSpec {
    /// The description.
    #[serde(default)]
    pub matches: PortMatches,
}

/// Ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMatches {
    /// Name of the description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The ports; all if absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}

/// Descriptions of packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "specs.smi-spec.io",
    version = "v1alpha4",
    kind = "UDPRoute",
    plural = "udproutes",
    shortname = "ur",
    namespaced,
    status = "PolicyStatus",
    doc = "UDP packets, described. The mesh carries no UDP.",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.currentStatus")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UdpRouteSpec {
    /// The description.
    #[serde(default)]
    pub matches: PortMatches,
}

/// The root and its backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[expect(clippy::duplicated_attributes, reason = "one printcolumn is not another")]
#[kube(
    group = "split.smi-spec.io",
    version = "v1alpha2",
    kind = "TrafficSplit",
    plural = "trafficsplits",
    shortname = "ts",
    namespaced,
    status = "PolicyStatus",
    doc = "Splits the traffic of one service over several.",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(
        name = "Service",
        type_ = "string",
        json_path = ".spec.service",
        description = "The root of this split."
    ),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.currentStatus")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficSplitSpec {
    /// The root: the service that clients address, as `name`, `name.namespace` or its FQDN.
    pub service: String,
    /// Services of the same namespace that get the traffic.
    #[serde(default)]
    pub backends: Vec<TrafficSplitBackend>,
    /// v1alpha4: only requests that match are split.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<super::LocalRef>,
}

/// One share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficSplitBackend {
    /// The service.
    pub service: String,
    /// Its share relative to the others'; 0 means none.
    pub weight: u32,
}
