//! Plain configuration for tests of this module and those above.

use std::time::Duration;

use crate::config::http::{Codec, EscapedSlashes, HttpConnectionManager, PathRules, RouteSource, ServerHeader};

/// A connection manager with Envoy's defaults.
pub(crate) fn plain_hcm(routes: RouteSource) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: "test".into(),
        codec: Codec::Auto,
        routes,
        filters: Vec::new(),
        websocket: false,
        access_log: Vec::new(),
        generate_request_id: true,
        preserve_external_request_id: false,
        use_remote_address: false,
        local_replies: Vec::new(),
        stream_idle_timeout: Duration::from_secs(300),
        request_timeout: Duration::ZERO,
        request_headers_timeout: Duration::ZERO,
        idle_timeout: Duration::from_secs(3600),
        max_connection_duration: None,
        max_stream_duration: None,
        max_requests_per_connection: None,
        max_request_headers_kb: 60,
        max_headers_count: 100,
        path: PathRules { normalize: true, merge_slashes: false, escaped_slashes: EscapedSlashes::Keep },
        accept_http_10: false,
        max_concurrent_streams: 1024,
        server_header: ServerHeader::Overwrite("envoy".to_owned()),
    }
}
