//! Route tables: virtual hosts, routes, per-filter settings.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use envoy_types::pb::{
    envoy::{
        config::route::v3::{
            FilterConfig, Route as InRoute, RouteConfiguration, RouteMatch as InMatch, VirtualHost as InHost, route,
            route_match::PathSpecifier,
        },
        extensions::filters::http::{local_ratelimit::v3::LocalRateLimit, rbac::v3::RbacPerRoute},
    },
    google::protobuf::Any,
};

use super::{
    action,
    context::{Cx, parts_per_million, type_of},
    matcher, ratelimit, rbac, retry,
};
use crate::{
    config::{
        Name,
        route::{PathMatch, PerRouteFilter, PerRouteFilters, Route, RouteMatch, RouteTable, VirtualHost},
    },
    xds::{path::At, schema::short},
};

/// A route table; `validate_default` is the meaning of an unset `validate_clusters`.
pub(super) fn table(
    config: &RouteConfiguration,
    validate_default: bool,
    at: &At<'_>,
    cx: &mut Cx<'_>,
) -> Option<RouteTable> {
    let hosts_at = at.field("virtual_hosts");
    let mut domains = HashSet::new();
    let mut virtual_hosts = Vec::with_capacity(config.virtual_hosts.len());
    for (i, host) in config.virtual_hosts.iter().enumerate() {
        virtual_hosts.extend(self::host(host, &mut domains, &hosts_at.index(i), cx).map(Arc::new));
    }
    let (request_headers, response_headers) = edits!(config, at, cx);
    Some(RouteTable {
        name: config.name.as_str().into(),
        virtual_hosts,
        request_headers,
        response_headers,
        most_specific_wins: config.most_specific_header_mutations_wins,
        ignore_port: config.ignore_port_in_host_matching,
        validate_clusters: config.validate_clusters.as_ref().map_or(validate_default, |v| v.value),
        filters: filters(&config.typed_per_filter_config, &at.field("typed_per_filter_config"), cx),
    })
}

fn host(host: &InHost, seen: &mut HashSet<String>, at: &At<'_>, cx: &mut Cx<'_>) -> Option<VirtualHost> {
    let domains_at = at.field("domains");
    let mut domains = Vec::with_capacity(host.domains.len());
    for (i, domain) in host.domains.iter().enumerate() {
        let domain = domain.to_ascii_lowercase();
        if !seen.insert(domain.clone()) {
            let reason =
                format_args!("Only unique values for domains are permitted. Duplicate entry of domain {domain}");
            cx.report.error(&domains_at.index(i), reason);
        }
        domains.push(domain);
    }
    let routes_at = at.field("routes");
    let routes = host.routes.iter().enumerate();
    let routes = routes.filter_map(|(i, r)| route(r, &routes_at.index(i), cx).map(Arc::new)).collect();
    let (request_headers, response_headers) = edits!(host, at, cx);
    Some(VirtualHost {
        name: host.name.as_str().into(),
        domains,
        routes,
        request_headers,
        response_headers,
        retry: retry::policy(host.retry_policy.as_ref(), &at.field("retry_policy"), cx).map(Arc::new),
        include_attempt_count: host.include_request_attempt_count,
        filters: filters(&host.typed_per_filter_config, &at.field("typed_per_filter_config"), cx),
    })
}

fn route(route: &InRoute, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Route> {
    let matcher = match route.r#match.as_ref() {
        Some(m) => request(m, &at.field("match"), cx),
        None => cx.refuse(&at.field("match"), "is required"),
    };
    let action = match route.action.as_ref() {
        Some(route::Action::Route(r)) => action::forward(r, &at.field("route"), cx),
        Some(route::Action::Redirect(r)) => action::redirect(r, &at.field("redirect"), cx),
        Some(route::Action::DirectResponse(r)) => action::direct(r, &at.field("direct_response"), cx),
        _ => cx.refuse(at, "needs an action"),
    };
    let (request_headers, response_headers) = edits!(route, at, cx);
    Some(Route {
        name: route.name.as_str().into(),
        matcher: matcher?,
        action: action?,
        request_headers,
        response_headers,
        filters: filters(&route.typed_per_filter_config, &at.field("typed_per_filter_config"), cx),
    })
}

fn request(m: &InMatch, at: &At<'_>, cx: &mut Cx<'_>) -> Option<RouteMatch> {
    let path = match m.path_specifier.as_ref() {
        Some(PathSpecifier::Prefix(p)) => PathMatch::Prefix(p.clone()),
        Some(PathSpecifier::Path(p)) => PathMatch::Exact(p.clone()),
        Some(PathSpecifier::PathSeparatedPrefix(p)) => PathMatch::SeparatedPrefix(p.clone()),
        Some(PathSpecifier::SafeRegex(r)) => PathMatch::Regex(matcher::regex(r, &at.field("safe_regex"), cx)?),
        _ => return cx.refuse(at, "needs a path condition"),
    };
    let query_at = at.field("query_parameters");
    let query = m.query_parameters.iter().enumerate();
    Some(RouteMatch {
        path,
        case_sensitive: m.case_sensitive.as_ref().is_none_or(|c| c.value),
        headers: matcher::headers(&m.headers, &at.field("headers"), cx),
        query: query.filter_map(|(i, q)| matcher::query(q, &query_at.index(i), cx)).collect(),
        grpc: m.grpc.is_some(),
        fraction_ppm: m.runtime_fraction.as_ref().and_then(|f| f.default_value.as_ref()).map(parts_per_million),
    })
}

/// Settings of filters by their instance names. That the filters exist and fit is checked where the chain is known
/// ([`super::http::misfits`]).
pub(super) fn filters(config: &HashMap<String, Any>, at: &At<'_>, cx: &mut Cx<'_>) -> PerRouteFilters {
    let mut by_name = HashMap::with_capacity(config.len());
    for (name, any) in config {
        if let Some(filter) = filter(any, &at.key(name), cx) {
            by_name.insert(Name::from(name.as_str()), filter);
        }
    }
    PerRouteFilters { by_name }
}

fn filter(any: &Any, at: &At<'_>, cx: &mut Cx<'_>) -> Option<PerRouteFilter> {
    let inside = at.inside(&any.type_url);
    match short(type_of(any)) {
        "RBACPerRoute" => {
            let config: RbacPerRoute = cx.decode(any, at)?;
            let at = inside.field("rbac");
            match config.rbac.as_ref().and_then(|r| r.rules.as_ref()) {
                Some(rules) => Some(PerRouteFilter::Rbac(Some(Arc::new(rbac::rules(rules, &at.field("rules"), cx)?)))),
                None => Some(PerRouteFilter::Rbac(None)),
            }
        }
        "LocalRateLimit" => {
            let config: LocalRateLimit = cx.decode(any, at)?;
            Some(PerRouteFilter::LocalRateLimit(Arc::new(ratelimit::http(&config, true, &inside, cx)?)))
        }
        "FilterConfig" => {
            let config: FilterConfig = cx.decode(any, at)?;
            match config.config.as_ref() {
                _ if config.disabled => Some(PerRouteFilter::Disabled),
                Some(inner) if short(type_of(inner)) != "FilterConfig" => filter(inner, &inside.field("config"), cx),
                _ => cx.refuse(&inside, "needs a config or disabled: true"),
            }
        }
        // An optional one that we don't have, which the walk has warned about.
        _ => None,
    }
}
