//! The HTTP connection manager and its filters.

use std::{collections::HashSet, sync::Arc, time::Duration};

use envoy_types::pb::envoy::{
    config::core::v3::HttpProtocolOptions,
    extensions::filters::{
        http::{local_ratelimit::v3::LocalRateLimit, rbac::v3::Rbac as RbacFilter},
        network::http_connection_manager::v3::{
            HttpConnectionManager as Manager, HttpFilter as InFilter, LocalReplyConfig, Rds,
            http_connection_manager::{
                CodecType, PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation,
            },
            http_filter::ConfigType,
        },
    },
};

use super::{
    access_log,
    context::{Cx, type_of},
    headers, ratelimit, rbac, route, source,
};
use crate::{
    config::{
        http::{
            Codec, EscapedSlashes, HttpConnectionManager, HttpFilter, HttpFilterKind, LocalReplyMapper, PathRules,
            RouteSource, ServerHeader,
        },
        route::{PerRouteFilter, PerRouteFilters, RouteAction, RouteTable, Target},
    },
    xds::{path::At, schema::short},
};

const SECOND: Duration = Duration::from_secs(1);

/// The connection manager.
pub(super) fn manager(m: &Manager, at: &At<'_>, cx: &mut Cx<'_>) -> Option<HttpConnectionManager> {
    let routes = routes(m, at, cx);
    let filters = filters(&m.http_filters, &at.field("http_filters"), cx);
    if let (Some(RouteSource::Inline(table)), Some(filters)) = (&routes, &filters) {
        for misfit in misfits(filters, table) {
            cx.report.error(&at.field("route_config"), misfit);
        }
    }
    if m.http2_protocol_options.as_ref().is_some_and(|o| o.connection_keepalive.is_some()) {
        let at = at.field("http2_protocol_options");
        cx.report.error(&at.field("connection_keepalive"), "only supported for clusters");
    }
    let common = common(m.common_http_protocol_options.as_ref(), at, cx);
    let or = |value: Option<Duration>, default: Duration| value.unwrap_or(default);
    Some(HttpConnectionManager {
        stat_prefix: m.stat_prefix.as_str().into(),
        codec: match m.codec_type() {
            CodecType::Http1 => Codec::Http1,
            CodecType::Http2 => Codec::Http2,
            _ => Codec::Auto,
        },
        websocket: websocket(m, &at.field("upgrade_configs"), cx),
        access_log: access_log::logs(&m.access_log, &at.field("access_log"), cx),
        generate_request_id: m.generate_request_id.as_ref().is_none_or(|g| g.value),
        preserve_external_request_id: m.preserve_external_request_id,
        use_remote_address: m.use_remote_address.as_ref().is_some_and(|u| u.value),
        local_replies: local_replies(m.local_reply_config.as_ref(), &at.field("local_reply_config"), cx),
        stream_idle_timeout: or(
            cx.duration(m.stream_idle_timeout.as_ref(), &at.field("stream_idle_timeout")),
            300 * SECOND,
        ),
        request_timeout: or(cx.duration(m.request_timeout.as_ref(), &at.field("request_timeout")), Duration::ZERO),
        request_headers_timeout: or(
            cx.duration(m.request_headers_timeout.as_ref(), &at.field("request_headers_timeout")),
            Duration::ZERO,
        ),
        idle_timeout: common.idle_timeout,
        max_connection_duration: common.max_connection_duration,
        drain_timeout: or(cx.duration(m.drain_timeout.as_ref(), &at.field("drain_timeout")), 5 * SECOND),
        max_stream_duration: common.max_stream_duration,
        max_requests_per_connection: common.max_requests_per_connection,
        max_request_headers_kb: m.max_request_headers_kb.as_ref().map_or(60, |k| k.value),
        max_headers_count: common.max_headers_count,
        path: path_rules(m),
        accept_http_10: m.http_protocol_options.as_ref().is_some_and(|o| o.accept_http_10),
        max_concurrent_streams: m
            .http2_protocol_options
            .as_ref()
            .and_then(|o| o.max_concurrent_streams.as_ref())
            .map_or(1024, |s| s.value),
        server_header: server_header(m),
        routes: routes?,
        filters: filters?,
    })
}

fn routes(m: &Manager, at: &At<'_>, cx: &mut Cx<'_>) -> Option<RouteSource> {
    match m.route_specifier.as_ref() {
        Some(RouteSpecifier::Rds(rds)) => self::rds(rds, &at.field("rds"), cx),
        Some(RouteSpecifier::RouteConfig(config)) => {
            let table = route::table(config, true, &at.field("route_config"), cx)?;
            Some(RouteSource::Inline(Arc::new(table)))
        }
        _ => cx.refuse(at, "needs rds or route_config"),
    }
}

fn rds(rds: &Rds, at: &At<'_>, cx: &mut Cx<'_>) -> Option<RouteSource> {
    let name = cx.name(&rds.route_config_name, &at.field("route_config_name"))?;
    Some(RouteSource::Rds(source::over_ads(name, rds.config_source.as_ref(), &at.field("config_source"), cx)?))
}

/// The filters without the router, which must be the last one and there once.
fn filters(list: &[InFilter], at: &At<'_>, cx: &mut Cx<'_>) -> Option<Vec<HttpFilter>> {
    let mut filters = Vec::with_capacity(list.len());
    let mut names = HashSet::new();
    let mut router = false;
    for (i, filter) in list.iter().enumerate() {
        let at = at.index(i);
        if router {
            let reason = "the router must be the last filter in a http filter chain, and there is one before";
            return cx.refuse(&at, reason);
        }
        let Some(ConfigType::TypedConfig(any)) = filter.config_type.as_ref() else {
            return cx.refuse(&at.field("typed_config"), "is required");
        };
        if short(type_of(any)) == "Router" {
            if filter.disabled {
                return cx.refuse(&at.field("disabled"), "the router can't be disabled");
            }
            router = true;
            continue;
        }
        // One that is optional and that we don't have was warned about by the walk.
        let Some(kind) = self::filter(filter, any, &at, cx)? else { continue };
        if !names.insert(filter.name.as_str()) {
            return cx.refuse(&at.field("name"), format_args!("{:?} is used by another filter", filter.name));
        }
        filters.push(HttpFilter { name: filter.name.as_str().into(), kind, disabled: filter.disabled });
    }
    if router { Some(filters) } else { cx.refuse(at, "the last filter must be the router (envoy.filters.http.router)") }
}

/// None inside = skipped.
fn filter(
    filter: &InFilter,
    any: &envoy_types::pb::google::protobuf::Any,
    at: &At<'_>,
    cx: &mut Cx<'_>,
) -> Option<Option<HttpFilterKind>> {
    let at = at.field("typed_config");
    let inside = at.inside(&any.type_url);
    match type_of(any) {
        "envoy.extensions.filters.http.rbac.v3.RBAC" => {
            let config: RbacFilter = cx.decode(any, &at)?;
            let rules = match config.rules.as_ref() {
                Some(rules) => Some(Arc::new(rbac::rules(rules, &inside.field("rules"), cx)?)),
                None => None,
            };
            Some(Some(HttpFilterKind::Rbac(rules)))
        }
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" => {
            let config: LocalRateLimit = cx.decode(any, &at)?;
            let limit = ratelimit::http(&config, false, &inside, cx)?;
            Some(Some(HttpFilterKind::LocalRateLimit(Arc::new(limit))))
        }
        _ if filter.is_optional => Some(None),
        other => cx.refuse(&at, format_args!("{other} not supported")),
    }
}

/// Settings in a route table for filters that the chain doesn't have, or of another kind; for people.
///
/// Envoy accepts such settings and ignores them, so that a misspelt name switches access control off in silence.
#[must_use]
pub fn misfits(filters: &[HttpFilter], table: &RouteTable) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |settings: &PerRouteFilters, place: &str| {
        for (name, setting) in &settings.by_name {
            let filter = filters.iter().find(|f| f.name == *name);
            let fits = match (filter.map(|f| &f.kind), setting) {
                (None, _) => {
                    found.push(format!("{place}: typed_per_filter_config[{name:?}]: there is no filter of this name"));
                    continue;
                }
                (Some(_), PerRouteFilter::Disabled)
                | (Some(HttpFilterKind::Rbac(_)), PerRouteFilter::Rbac(_))
                | (Some(HttpFilterKind::LocalRateLimit(_)), PerRouteFilter::LocalRateLimit(_)) => true,
                _ => false,
            };
            if !fits {
                found.push(format!(
                    "{place}: typed_per_filter_config[{name:?}]: the filter of this name is another kind"
                ));
            }
        }
    };
    check(&table.filters, &format!("route table {:?}", table.name));
    for host in &table.virtual_hosts {
        check(&host.filters, &format!("virtual host {:?}", host.name));
        for (i, route) in host.routes.iter().enumerate() {
            let place = format!("virtual host {:?} routes[{i}]", host.name);
            check(&route.filters, &place);
            if let RouteAction::Forward(forward) = &route.action
                && let Target::Weighted(shares) = &forward.target
            {
                shares.iter().for_each(|share| check(&share.filters, &place));
            }
        }
    }
    found
}

struct Common {
    idle_timeout: Duration,
    max_connection_duration: Option<Duration>,
    max_stream_duration: Option<Duration>,
    max_requests_per_connection: Option<u32>,
    max_headers_count: u32,
}

fn common(options: Option<&HttpProtocolOptions>, at: &At<'_>, cx: &mut Cx<'_>) -> Common {
    let default = HttpProtocolOptions::default();
    let (options, at) = (options.unwrap_or(&default), at.field("common_http_protocol_options"));
    Common {
        idle_timeout: cx.duration(options.idle_timeout.as_ref(), &at.field("idle_timeout")).unwrap_or(3600 * SECOND),
        max_connection_duration: cx
            .limit(options.max_connection_duration.as_ref(), &at.field("max_connection_duration")),
        max_stream_duration: cx.limit(options.max_stream_duration.as_ref(), &at.field("max_stream_duration")),
        max_requests_per_connection: options.max_requests_per_connection.as_ref().map(|m| m.value).filter(|m| *m > 0),
        max_headers_count: options.max_headers_count.as_ref().map_or(100, |m| m.value),
    }
}

fn websocket(m: &Manager, at: &At<'_>, cx: &mut Cx<'_>) -> bool {
    let mut websocket = None;
    for (i, config) in m.upgrade_configs.iter().enumerate() {
        let enabled = config.enabled.as_ref().is_none_or(|e| e.value);
        websocket = upgrade(&config.upgrade_type, enabled, websocket, &at.index(i), cx);
    }
    websocket.unwrap_or(false)
}

/// One upgrade rule after `before`; only WebSocket is there.
pub(super) fn upgrade(
    upgrade_type: &str,
    enabled: bool,
    before: Option<bool>,
    at: &At<'_>,
    cx: &mut Cx<'_>,
) -> Option<bool> {
    if !upgrade_type.eq_ignore_ascii_case("websocket") {
        cx.report
            .error(&at.field("upgrade_type"), format_args!("{upgrade_type:?} not supported (supported: websocket)"));
        return before;
    }
    if before.is_some() {
        cx.report.error(&at.field("upgrade_type"), "websocket is configured twice");
    }
    Some(enabled)
}

fn local_replies(config: Option<&LocalReplyConfig>, at: &At<'_>, cx: &mut Cx<'_>) -> Vec<LocalReplyMapper> {
    let Some(config) = config else { return Vec::new() };
    let at = at.field("mappers");
    let mut mappers = Vec::with_capacity(config.mappers.len());
    for (i, mapper) in config.mappers.iter().enumerate() {
        let at = at.index(i);
        let Some(filter) = mapper.filter.as_ref() else {
            cx.report.error(&at.field("filter"), "is required");
            continue;
        };
        let filter = access_log::filter_of(filter, &at.field("filter"), cx);
        let headers = headers::additions(&mapper.headers_to_add, &at.field("headers_to_add"), cx);
        mappers.extend(filter.map(|filter| LocalReplyMapper { filter, headers }));
    }
    mappers
}

/// Unset means our own default, which is stricter than Envoy's; what is set is done as Envoy does it.
fn path_rules(m: &Manager) -> PathRules {
    let escaped_slashes = match m.path_with_escaped_slashes_action() {
        PathWithEscapedSlashesAction::ImplementationSpecificDefault if m.normalize_path.is_none() => {
            EscapedSlashes::UnescapeAndForward
        }
        PathWithEscapedSlashesAction::ImplementationSpecificDefault | PathWithEscapedSlashesAction::KeepUnchanged => {
            EscapedSlashes::Keep
        }
        PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::Reject,
        PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
        PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
    };
    PathRules {
        normalize: m.normalize_path.as_ref().is_none_or(|n| n.value),
        merge_slashes: m.merge_slashes || m.normalize_path.is_none(),
        escaped_slashes,
    }
}

fn server_header(m: &Manager) -> ServerHeader {
    let name = if m.server_name.is_empty() { "envoy".to_owned() } else { m.server_name.clone() };
    match m.server_header_transformation() {
        ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite(name),
        ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent(name),
        ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
    }
}
