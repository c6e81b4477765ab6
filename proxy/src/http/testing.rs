//! Managers, routes and policies for tests, with Envoy's defaults.

use std::{sync::Arc, time::Duration};

use http::StatusCode;

use super::runtime::{Matched, Routes};
use crate::{
    config::{
        headers::HeaderEdits,
        http::{Codec, EscapedSlashes, HttpConnectionManager, PathRules, RouteSource, ServerHeader},
        route::{
            Forward, PathMatch, PerRouteFilters, RetryOn, RetryPolicy, Route, RouteAction, RouteMatch, RouteTable,
            Target, VirtualHost,
        },
    },
    telemetry::Registry,
};

pub(crate) fn manager() -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: "test".into(),
        codec: Codec::Auto,
        routes: RouteSource::Rds("routes".into()),
        filters: vec![],
        websocket: false,
        access_log: vec![],
        generate_request_id: true,
        preserve_external_request_id: false,
        use_remote_address: false,
        local_replies: vec![],
        stream_idle_timeout: Duration::from_secs(300),
        request_timeout: Duration::ZERO,
        request_headers_timeout: Duration::ZERO,
        idle_timeout: Duration::from_secs(3600),
        max_connection_duration: None,
        drain_timeout: Duration::from_secs(5),
        max_stream_duration: None,
        max_requests_per_connection: None,
        max_request_headers_kb: 60,
        max_headers_count: 100,
        path: PathRules { normalize: true, merge_slashes: true, escaped_slashes: EscapedSlashes::UnescapeAndForward },
        accept_http_10: false,
        max_concurrent_streams: 1024,
        server_header: ServerHeader::Overwrite("envoy".into()),
    }
}

pub(super) fn retry_policy() -> RetryPolicy {
    RetryPolicy {
        on: RetryOn::default(),
        num_retries: 1,
        per_try_timeout: None,
        base_interval: Duration::from_millis(25),
        max_interval: Duration::from_millis(250),
        status_codes: vec![],
        headers: vec![],
        avoid_previous_hosts: false,
        host_selection_attempts: 1,
    }
}

pub(super) fn forward(cluster: &str) -> Forward {
    Forward {
        target: Target::Cluster(cluster.into()),
        timeout: Some(Duration::from_secs(15)),
        idle_timeout: None,
        retry: None,
        prefix_rewrite: None,
        host_rewrite: None,
        cluster_not_found: StatusCode::SERVICE_UNAVAILABLE,
        websocket: None,
    }
}

pub(super) fn route(action: RouteAction) -> Route {
    Route {
        name: "r".into(),
        matcher: RouteMatch {
            path: PathMatch::Prefix("/".into()),
            case_sensitive: true,
            headers: vec![],
            query: vec![],
            grpc: false,
            fraction_ppm: None,
        },
        action,
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        filters: PerRouteFilters::default(),
    }
}

pub(super) fn host(routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: "v".into(),
        domains: vec!["*".into()],
        routes: routes.into_iter().map(Arc::new).collect(),
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        retry: None,
        include_attempt_count: false,
        filters: PerRouteFilters::default(),
    }
}

pub(super) fn table(host: VirtualHost) -> RouteTable {
    RouteTable {
        name: "routes".into(),
        virtual_hosts: vec![Arc::new(host)],
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        most_specific_wins: false,
        ignore_port: false,
        validate_clusters: false,
        filters: PerRouteFilters::default(),
    }
}

/// A match of the only route of a table.
pub(super) fn matched_route(route: Route) -> Matched {
    let routes = Routes::new(Arc::new(table(host(vec![route]))), None, &Registry::default());
    Matched::new(Arc::new(routes), 0, 0, None)
}
