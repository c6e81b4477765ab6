//! Route tables as data: virtual hosts, routes, matchers, actions. The match functions live here too.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::{HeaderName, Method, StatusCode};

use super::{
    Name,
    headers::HeaderEdits,
    matcher::{Pattern, StringMatch},
    ratelimit::HttpLocalRateLimit,
    rbac::Rbac,
};

/// A route table (Envoy's `RouteConfiguration`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTable {
    /// Unique name.
    pub name: Name,
    /// Virtual hosts in the order configured; no domain occurs twice (compared in lower case).
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// Edits of the upstream request, for all routes.
    pub request_headers: HeaderEdits,
    /// Edits of the response, for all routes.
    pub response_headers: HeaderEdits,
    /// Edits run outermost first (`most_specific_header_mutations_wins`).
    pub most_specific_wins: bool,
    /// The port in Host is not compared (`ignore_port_in_host_matching`).
    pub ignore_port: bool,
    /// Unknown clusters make the table invalid (`validate_clusters`).
    pub validate_clusters: bool,
    /// Filter settings for the whole table.
    pub filters: PerRouteFilters,
}

/// A virtual host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualHost {
    /// Name in statistics and logs.
    pub name: Name,
    /// Lower-cased domains: exact, `*suffix`, `prefix*`, `*`.
    pub domains: Vec<String>,
    /// Tried in order; the first that matches wins.
    pub routes: Vec<Arc<Route>>,
    /// Edits of the upstream request.
    pub request_headers: HeaderEdits,
    /// Edits of the response.
    pub response_headers: HeaderEdits,
    /// Retry policy of routes that have none.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Adds `x-envoy-attempt-count` upstream.
    pub include_attempt_count: bool,
    /// Filter settings for the whole host.
    pub filters: PerRouteFilters,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Name in logs; may be empty.
    pub name: Name,
    /// Which requests.
    pub matcher: RouteMatch,
    /// What is done.
    pub action: RouteAction,
    /// Edits of the upstream request.
    pub request_headers: HeaderEdits,
    /// Edits of the response.
    pub response_headers: HeaderEdits,
    /// Filter settings for this route.
    pub filters: PerRouteFilters,
}

/// `typed_per_filter_config`, keyed by the filter's instance name. The most specific one wins whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerRouteFilters {
    /// By filter name.
    pub by_name: HashMap<Name, PerRouteFilter>,
}

/// Per-route settings of one filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PerRouteFilter {
    /// `FilterConfig.disabled`.
    Disabled,
    /// `RBACPerRoute`; none = no access control here.
    Rbac(Option<Arc<Rbac>>),
    /// `LocalRateLimit`.
    LocalRateLimit(Arc<HttpLocalRateLimit>),
}

/// Which requests a route takes; all parts must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMatch {
    /// Path, without query.
    pub path: PathMatch,
    /// Exact and prefix paths respect ASCII case; true by default.
    pub case_sensitive: bool,
    /// All of these headers.
    pub headers: Vec<HeaderMatch>,
    /// All of these query parameters.
    pub query: Vec<QueryMatch>,
    /// Only gRPC requests (`grpc`).
    pub grpc: bool,
    /// Share of requests taken, in parts of a million; none = all.
    pub fraction_ppm: Option<u32>,
}

/// Path condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// Equal.
    Exact(String),
    /// Begins with.
    Prefix(String),
    /// Equal, or begins with it followed by `/` (`path_separated_prefix`).
    SeparatedPrefix(String),
    /// The whole path matches.
    Regex(Pattern),
}

/// Header condition (Envoy's `HeaderMatcher`). Repeated lines are matched one by one; any hit counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Which header.
    pub name: HeaderKey,
    /// Condition.
    pub kind: HeaderMatchKind,
    /// The result is turned round. A missing header does not match either way, except for [`HeaderMatchKind::Present`]
    /// and where `missing_as_empty` is set.
    pub invert: bool,
    /// A missing header counts as an empty one.
    pub missing_as_empty: bool,
}

/// A header or pseudo-header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderKey {
    /// An ordinary header.
    Name(HeaderName),
    /// `:method`.
    Method,
    /// `:authority` (or `host`).
    Authority,
    /// `:path`, with query.
    Path,
    /// `:scheme`.
    Scheme,
}

/// Condition on a header's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderMatchKind {
    /// The header is there (true) or is not (false).
    Present(bool),
    /// The value matches.
    Value(StringMatch),
    /// The value is an integer in `[start, end)`.
    Range(i64, i64),
}

/// Query parameter condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    /// Parameter name.
    pub name: String,
    /// None = it is present; else its value matches.
    pub value: Option<StringMatch>,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteAction {
    /// Send upstream.
    Forward(Box<Forward>),
    /// Answer with a redirect.
    Redirect(Box<Redirect>),
    /// Answer at once.
    Direct(DirectResponse),
}

/// Forwarding (Envoy's `RouteAction`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where to.
    pub target: Target,
    /// Whole request including retries; none = no limit (Envoy: 0). 15 s when the field is unset.
    pub timeout: Option<Duration>,
    /// Longest silence on the stream; none = the connection manager's.
    pub idle_timeout: Option<Duration>,
    /// Retries; none = the virtual host's.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Replaces the matched prefix or path (or, for a regex, the whole path).
    pub prefix_rewrite: Option<String>,
    /// Replaces the authority.
    pub host_rewrite: Option<String>,
    /// Status when the cluster is unknown; 503.
    pub cluster_not_found: StatusCode,
    /// Per-route upgrade rule for WebSocket; none = the connection manager's.
    pub websocket: Option<bool>,
}

/// Target clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One.
    Cluster(Name),
    /// By weight; the sum is above zero.
    Weighted(Vec<WeightedTarget>),
}

/// One share of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedTarget {
    /// Cluster.
    pub cluster: Name,
    /// Weight, may be zero.
    pub weight: u32,
    /// Edits of the upstream request.
    pub request_headers: HeaderEdits,
    /// Edits of the response.
    pub response_headers: HeaderEdits,
    /// Filter settings of this share.
    pub filters: PerRouteFilters,
}

/// Redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301 by default.
    pub status: StatusCode,
    /// New scheme (`scheme_redirect`, or `https_redirect`).
    pub scheme: Option<String>,
    /// New host.
    pub host: Option<String>,
    /// New port.
    pub port: Option<u16>,
    /// New path.
    pub path: Option<PathRedirect>,
    /// The query is dropped.
    pub strip_query: bool,
}

/// New path of a redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRedirect {
    /// The whole path (may hold a query).
    Full(String),
    /// Replaces the matched prefix.
    Prefix(String),
}

/// Direct response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// Status.
    pub status: StatusCode,
    /// Body, at most 4096 bytes.
    pub body: bytes::Bytes,
}

/// Retry policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Conditions.
    pub on: RetryOn,
    /// Retries at most; 1 by default.
    pub num_retries: u32,
    /// Limit of each try; none = the route's.
    pub per_try_timeout: Option<Duration>,
    /// Base of the back-off; 25 ms.
    pub base_interval: Duration,
    /// Cap of the back-off; ten times the base.
    pub max_interval: Duration,
    /// Codes for `retriable-status-codes`.
    pub status_codes: Vec<StatusCode>,
    /// Response headers for `retriable-headers`.
    pub headers: Vec<HeaderMatch>,
    /// Tries go to other hosts while there are some (`retry_host_predicate` previous_hosts).
    pub avoid_previous_hosts: bool,
    /// Picks before a previous host is taken after all; 1.
    pub host_selection_attempts: u32,
}

/// `retry_on`, parsed; unknown words are dropped with a warning as Envoy does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is Envoy's retry_on word of the same name")]
pub struct RetryOn {
    pub server_error: bool,
    pub gateway_error: bool,
    pub reset: bool,
    pub reset_before_request: bool,
    pub connect_failure: bool,
    pub envoy_ratelimited: bool,
    pub retriable_4xx: bool,
    pub refused_stream: bool,
    pub retriable_status_codes: bool,
    pub retriable_headers: bool,
    pub grpc_cancelled: bool,
    pub grpc_deadline_exceeded: bool,
    pub grpc_internal: bool,
    pub grpc_resource_exhausted: bool,
    pub grpc_unavailable: bool,
}

/// What a route match looks at; made once per request.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// Method.
    pub method: &'a Method,
    /// Host, lower-cased or as sent; with port if it has one.
    pub authority: &'a str,
    /// Canonical path without query.
    pub path: &'a str,
    /// Query without `?`, if any.
    pub query: Option<&'a str>,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Headers.
    pub headers: &'a http::HeaderMap,
}
