//! Routes.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use envoy_types::pb::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, RuntimeFractionalPercent, header_value_option::HeaderAppendAction,
};
use envoy_types::pb::envoy::config::route::v3::{
    RetryPolicy, RouteAction, RouteConfiguration as RouteConfigurationMessage, RouteMatch, WeightedCluster,
    retry_policy::RetryBackOff, route_action::ClusterSpecifier, route_match::PathSpecifier,
    weighted_cluster::ClusterWeight,
};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::r#type::v3::{
    FractionalPercent, HttpStatus, TokenBucket, fractional_percent::DenominatorType,
};
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration};

use super::message::{any, any_as, duration, header, regex, uint};
use super::sorted::{Route, RouteConfiguration, VirtualHost};
use super::{cluster, rbac};
use crate::identity::ServiceIdentity;
use crate::mesh::{Access, Bucket, HttpRate, HttpRule, Ingress, Limits, Mesh, Port, Rate, Retry, Service, Workload};

/// Name of the HTTP filter to which rate limits of routes belong.
pub(super) const RATE_LIMIT_FILTER: &str = "envoy.filters.http.local_ratelimit";

/// A route configuration in the making. A proxy refuses one in which a domain is there twice, with all that is in it, so
/// a domain belongs to the first that asks for it.
pub(super) struct Routes {
    config: RouteConfiguration,
    domains: HashSet<String>,
}

impl Routes {
    pub(super) fn new(name: &str) -> Self {
        let config = RouteConfiguration {
            name: name.to_owned(),
            validate_clusters: Some(BoolValue { value: false }),
            ..Default::default()
        };
        Self { config, domains: HashSet::new() }
    }

    pub(super) fn add(&mut self, mut host: VirtualHost) {
        host.domains.retain(|domain| self.domains.insert(domain.clone()));
        if !host.domains.is_empty() {
            self.config.virtual_hosts.push(host);
        }
    }

    /// Tells clients which workload answered.
    pub(super) fn say_who_answers(&mut self, workload: &Workload) {
        let headers = [
            ("osm-stats-kind", &workload.owner_kind),
            ("osm-stats-name", &workload.owner_name),
            ("osm-stats-namespace", &workload.pod.namespace),
            ("osm-stats-pod", &workload.pod.name),
        ];
        self.config.response_headers_to_add =
            headers.into_iter().map(|(name, value)| set_header(name, value)).collect();
    }

    pub(super) fn encode(&self) -> Any {
        any_as::<RouteConfigurationMessage>(&self.config)
    }
}

/// The requests that `workload` takes for `service` on the ports that share a target.
pub(super) fn inbound_host(
    mesh: &Mesh,
    workload: &Workload,
    service: &Service,
    target: u16,
    ports: &[u16],
) -> VirtualHost {
    let limits = mesh.limits(&service.name);
    let cluster = cluster::local_name(service, target);
    let access = mesh.access_to(&workload.identity);
    let open = || vec![guarded_route(&HttpRule::any(), &cluster, rbac::anybody(), None)];
    let allowed = access.map_or_else(open, |access| allowed_routes(access, &cluster, mesh.trust_domain()));
    // For a path with a limit of its own, the callers of all rules, each under its rule's conditions.
    let callers = |rule: &HttpRule| access.map_or_else(rbac::anybody, |a| rbac::callers(rule, a, mesh.trust_domain()));
    let routes = limited_routes(limits, &cluster, callers).chain(allowed).collect();
    // Twice the same name is no harm: one stays.
    let domains: BTreeSet<String> =
        ports.iter().flat_map(|port| service.hosts(&service.name.namespace, *port)).collect();
    VirtualHost {
        name: format!("inbound_virtual-host|{}", service.fqdn()),
        domains: domains.into_iter().collect(),
        routes,
        typed_per_filter_config: rate_limit_config(host_rate(limits)),
    }
}

/// In policy mode: a route for each rule, with those who may use it.
fn allowed_routes(access: &Access, cluster: &str, trust_domain: &str) -> Vec<Route> {
    let rules: Vec<_> = access.http.iter().collect();
    let route = |(i, (rule, sources)): (usize, &(&HttpRule, &BTreeSet<ServiceIdentity>))| {
        let later = rules[i + 1..].iter().map(|(rule, sources)| (*rule, *sources));
        guarded_route(rule, cluster, rbac::requests(rule, sources, later, trust_domain), None)
    };
    rules.iter().enumerate().map(route).collect()
}

/// The routes that come before all others: for each path with a limit of its own, and for everything if nothing may pass.
fn limited_routes(
    limits: Option<&Limits>,
    cluster: &str,
    rbac: impl Fn(&HttpRule) -> Any,
) -> impl Iterator<Item = Route> {
    let whole = limits.and_then(|l| l.http_rate.as_ref()).filter(|rate| **rate == Rate::Nothing);
    let whole = whole.map(|rate| (HttpRule::any(), rate));
    let paths = limits.into_iter().flat_map(|l| &l.paths).map(|(path, rate)| (HttpRule::path(path), rate));
    let all: Vec<Route> = whole
        .into_iter()
        .chain(paths)
        .map(|(rule, rate)| match rate {
            Rate::Kept(rate) => guarded_route(&rule, cluster, rbac(&rule), Some(rate)),
            Rate::Nothing => guarded_route(&rule, cluster, rbac::nobody(), None),
        })
        .collect();
    all.into_iter()
}

fn host_rate(limits: Option<&Limits>) -> Option<&HttpRate> {
    match limits?.http_rate.as_ref()? {
        Rate::Kept(rate) => Some(rate),
        Rate::Nothing => None,
    }
}

fn guarded_route(rule: &HttpRule, cluster: &str, rbac: Any, rate: Option<&HttpRate>) -> Route {
    let mut config = rate_limit_config(rate);
    config.insert(rbac::HTTP_FILTER.to_owned(), rbac);
    Route { typed_per_filter_config: config, ..plain_route(rule, [(cluster.to_owned(), WHOLE)], None) }
}

/// The requests that ingress lets in.
pub(super) fn ingress_host(mesh: &Mesh, service: &Service, ingress: &Ingress) -> VirtualHost {
    let limits = mesh.limits(&service.name);
    let rbac = |_: &HttpRule| ingress.principals.as_ref().map_or_else(rbac::anybody, rbac::named);
    let cluster = cluster::local_name(service, ingress.port);
    let all = guarded_route(&HttpRule::any(), &cluster, rbac(&HttpRule::any()), None);
    VirtualHost {
        name: format!("ingress_virtual-host|{}_from_{}", service.name, ingress.name.name),
        domains: vec!["*".to_owned()],
        routes: limited_routes(limits, &cluster, rbac).chain([all]).collect(),
        typed_per_filter_config: rate_limit_config(host_rate(limits)),
    }
}

/// The requests that `own` sends to a port of `service`.
pub(super) fn outbound_host(mesh: &Mesh, own: &ServiceIdentity, service: &Service, port: &Port) -> VirtualHost {
    let retry = mesh.retry(own, &service.name);
    let itself = || [(cluster::name(service, port.target), WHOLE)];
    let split = mesh.split(&service.name);
    let shares = split.map(|s| s.shares(mesh.services(), port.port)).unwrap_or_default();
    let shares = || shares.iter().map(|(backend, target, weight)| (cluster::name(backend, *target), *weight));
    let routes = match split {
        Some(split) if shares().next().is_some() => match &split.only {
            None => vec![plain_route(&HttpRule::any(), shares(), retry)],
            Some(only) => {
                let some = only.iter().map(|rule| plain_route(rule, shares(), retry));
                some.chain([plain_route(&HttpRule::any(), itself(), retry)]).collect()
            }
        },
        _ => vec![plain_route(&HttpRule::any(), itself(), retry)],
    };
    VirtualHost {
        name: format!("outbound_virtual-host|{}", service.fqdn()),
        domains: service.hosts(&own.namespace, port.port),
        routes,
        ..Default::default()
    }
}

/// The requests that may go to a host outside the mesh.
pub(super) fn egress_host(host: &str, port: u16, rules: &BTreeSet<HttpRule>) -> VirtualHost {
    let cluster = format!("{host}:{port}");
    VirtualHost {
        name: format!("egress_virtual-host|{host}"),
        domains: vec![host.to_owned(), cluster.clone()],
        routes: rules.iter().map(|rule| plain_route(rule, [(cluster.clone(), WHOLE)], None)).collect(),
        ..Default::default()
    }
}

fn plain_route(rule: &HttpRule, shares: impl IntoIterator<Item = (String, u32)>, retry: Option<&Retry>) -> Route {
    let mut headers = vec![header(":method", &rule.method)];
    headers.extend(rule.headers.iter().map(|(name, value)| header(name, value)));
    let clusters =
        shares.into_iter().map(|(name, weight)| ClusterWeight { name, weight: uint(weight), ..Default::default() });
    let weighted = WeightedCluster { clusters: clusters.collect(), ..Default::default() };
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::SafeRegex(regex(&rule.path))),
            headers,
            ..Default::default()
        }),
        route: Some(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::WeightedClusters(weighted)),
            // None at all, in place of Envoy's 15 s.
            timeout: Some(Duration::default()),
            retry_policy: retry.map(retry_policy),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn retry_policy(retry: &Retry) -> RetryPolicy {
    RetryPolicy {
        retry_on: retry.on.clone(),
        num_retries: uint(retry.retries),
        per_try_timeout: retry.per_try_timeout.and_then(duration),
        retry_back_off: Some(RetryBackOff { base_interval: duration(retry.backoff), ..Default::default() }),
        ..Default::default()
    }
}

fn rate_limit_config(rate: Option<&HttpRate>) -> BTreeMap<String, Any> {
    let config = rate.map(|rate| {
        any(&LocalRateLimit {
            stat_prefix: "http_local_rate_limiter".to_owned(),
            status: Some(HttpStatus { code: rate.status.into() }),
            token_bucket: Some(token_bucket(&rate.bucket)),
            filter_enabled: always(),
            filter_enforced: always(),
            response_headers_to_add: rate.headers.iter().map(|(name, value)| set_header(name, value)).collect(),
            ..Default::default()
        })
    });
    config.into_iter().map(|config| (RATE_LIMIT_FILTER.to_owned(), config)).collect()
}

pub(super) fn token_bucket(bucket: &Bucket) -> TokenBucket {
    TokenBucket {
        max_tokens: bucket.max,
        tokens_per_fill: uint(bucket.per_period),
        fill_interval: duration(bucket.period),
    }
}

/// The filter's own default is never.
fn always() -> Option<RuntimeFractionalPercent> {
    let default_value = Some(FractionalPercent { numerator: 100, denominator: DenominatorType::Hundred.into() });
    Some(RuntimeFractionalPercent { default_value, ..Default::default() })
}

fn set_header(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value: value.to_owned(), ..Default::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..Default::default()
    }
}

/// The weight of a cluster that gets everything.
const WHOLE: u32 = 100;
