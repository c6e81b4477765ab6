//! What a route does: forward, redirect, answer.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, RouteAction as InAction, WeightedCluster,
    redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
    route_action::{ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier, UpgradeConfig},
};
use http::StatusCode;

use super::{context::Cx, retry, route};
use crate::{
    config::route::{DirectResponse, Forward, PathRedirect, Redirect, RouteAction, Target, WeightedTarget},
    xds::path::At,
};

/// Envoy's default limit of a whole request.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest body of a direct response, Envoy's default limit.
const MAX_BODY_BYTES: usize = 4096;

/// Forwarding.
pub(super) fn forward(action: &InAction, at: &At<'_>, cx: &mut Cx<'_>) -> Option<RouteAction> {
    let target = match action.cluster_specifier.as_ref() {
        Some(ClusterSpecifier::Cluster(name)) => Some(Target::Cluster(name.as_str().into())),
        Some(ClusterSpecifier::WeightedClusters(w)) => weighted(w, &at.field("weighted_clusters"), cx),
        _ => cx.refuse(at, "needs a cluster"),
    };
    let timeout = match action.timeout.as_ref() {
        Some(_) => cx.limit(action.timeout.as_ref(), &at.field("timeout")),
        None => Some(DEFAULT_TIMEOUT),
    };
    let host_rewrite = match action.host_rewrite_specifier.as_ref() {
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) if !host.is_empty() => Some(host.clone()),
        _ => None,
    };
    Some(RouteAction::Forward(Box::new(Forward {
        timeout,
        idle_timeout: cx.duration(action.idle_timeout.as_ref(), &at.field("idle_timeout")),
        retry: retry::policy(action.retry_policy.as_ref(), &at.field("retry_policy"), cx).map(Into::into),
        prefix_rewrite: (!action.prefix_rewrite.is_empty()).then(|| action.prefix_rewrite.clone()),
        host_rewrite,
        cluster_not_found: match action.cluster_not_found_response_code() {
            ClusterNotFoundResponseCode::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            ClusterNotFoundResponseCode::NotFound => StatusCode::NOT_FOUND,
            ClusterNotFoundResponseCode::InternalServerError => StatusCode::INTERNAL_SERVER_ERROR,
        },
        websocket: websocket(&action.upgrade_configs, &at.field("upgrade_configs"), cx),
        target: target?,
    })))
}

fn weighted(clusters: &WeightedCluster, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Target> {
    let list_at = at.field("clusters");
    let mut targets = Vec::with_capacity(clusters.clusters.len());
    let mut sum = 0u64;
    for (i, share) in clusters.clusters.iter().enumerate() {
        let at = list_at.index(i);
        let Some(weight) = share.weight.as_ref().map(|w| w.value) else {
            cx.report.error(&at.field("weight"), "is missing");
            continue;
        };
        sum += u64::from(weight);
        let (request_headers, response_headers) = edits!(share, &at, cx);
        targets.extend(cx.name(&share.name, &at.field("name")).map(|cluster| WeightedTarget {
            cluster,
            weight,
            request_headers,
            response_headers,
            filters: route::filters(&share.typed_per_filter_config, &at.field("typed_per_filter_config"), cx),
        }));
    }
    match sum {
        0 => cx.refuse(at, "Sum of weights in the weighted_cluster must be greater than 0."),
        sum if sum > u64::from(u32::MAX) => {
            cx.refuse(at, format_args!("the sum of weights {sum} exceeds {}", u32::MAX))
        }
        _ => Some(Target::Weighted(targets)),
    }
}

fn websocket(upgrades: &[UpgradeConfig], at: &At<'_>, cx: &mut Cx<'_>) -> Option<bool> {
    let mut websocket = None;
    for (i, upgrade) in upgrades.iter().enumerate() {
        let enabled = upgrade.enabled.as_ref().is_none_or(|e| e.value);
        websocket = super::http::upgrade(&upgrade.upgrade_type, enabled, websocket, &at.index(i), cx);
    }
    websocket
}

/// A redirect.
pub(super) fn redirect(action: &RedirectAction, at: &At<'_>, cx: &mut Cx<'_>) -> Option<RouteAction> {
    let scheme = match action.scheme_rewrite_specifier.as_ref() {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(s)) if !s.is_empty() => Some(s.to_ascii_lowercase()),
        _ => None,
    };
    if let Some(other) = scheme.as_deref().filter(|s| !matches!(*s, "http" | "https")) {
        return cx.refuse(&at.field("scheme_redirect"), format_args!("{other:?} is neither http nor https"));
    }
    let Ok(port) = u16::try_from(action.port_redirect) else {
        return cx.refuse(&at.field("port_redirect"), format_args!("{} is no port", action.port_redirect));
    };
    let path = match action.path_rewrite_specifier.as_ref() {
        Some(PathRewriteSpecifier::PathRedirect(p)) if !p.is_empty() => Some(PathRedirect::Full(p.clone())),
        Some(PathRewriteSpecifier::PrefixRewrite(p)) if !p.is_empty() => Some(PathRedirect::Prefix(p.clone())),
        _ => None,
    };
    let status = match action.response_code() {
        RedirectResponseCode::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
        RedirectResponseCode::Found => StatusCode::FOUND,
        RedirectResponseCode::SeeOther => StatusCode::SEE_OTHER,
        RedirectResponseCode::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
        RedirectResponseCode::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
    };
    Some(RouteAction::Redirect(Box::new(Redirect {
        status,
        scheme,
        host: (!action.host_redirect.is_empty()).then(|| action.host_redirect.clone()),
        port: (port != 0).then_some(port),
        path,
        strip_query: action.strip_query,
    })))
}

/// An answer of our own.
pub(super) fn direct(action: &DirectResponseAction, at: &At<'_>, cx: &mut Cx<'_>) -> Option<RouteAction> {
    let status = u16::try_from(action.status).ok().and_then(|s| StatusCode::from_u16(s).ok());
    let Some(status) = status else {
        return cx.refuse(&at.field("status"), format_args!("{} is no status", action.status));
    };
    let body_at = at.field("body");
    let body = match action.body.as_ref() {
        Some(source) => cx.data(source, &body_at)?,
        None => Vec::new(),
    };
    if body.len() > MAX_BODY_BYTES {
        return cx
            .refuse(&body_at, format_args!("response body size is {} bytes; maximum is {MAX_BODY_BYTES}", body.len()));
    }
    Some(RouteAction::Direct(DirectResponse { status, body: body.into() }))
}
