//! What is refused, and with which words.

use super::*;

/// Each: a resource, and its whole list of errors.
fn check(table: Vec<(Value, &str)>) {
    for (resource, expected) in table {
        assert_eq!(errors(&resource), expected, "{resource}");
    }
}

const M: &str = "filter_chains[0].filters[0].typed_config[HttpConnectionManager]";

#[test]
fn listeners_that_can_not_work() {
    let chain = |m: Value| with(&listener(), "/filter_chains/0/filter_chain_match", m);
    let same = json!({"filter_chain_match": {"destination_port": 80}, "filters": []});
    check(vec![
        (with(&listener(), "/filter_chains", json!([])), "filter_chains: no filter chains specified"),
        (
            with(&listener(), "/address/socket_address/address", json!("localhost")),
            "address.socket_address.address: malformed IP address: \"localhost\"",
        ),
        (with(&listener(), "/address", json!({"pipe": {"path": "/x"}})), "address.pipe: not supported"),
        (
            with(&listener(), "/filter_chains", json!([same, same])),
            "filter_chains[1]: multiple filter chains with overlapping matching rules are defined: like [0]",
        ),
        (
            chain(json!({"destination_port": 0})),
            "filter_chains[0].filter_chain_match.destination_port: value must be greater than or equal to 1, is 0",
        ),
        (
            chain(json!({"prefix_ranges": [{"address_prefix": "10.0.0", "prefix_len": 8}]})),
            "filter_chains[0].filter_chain_match.prefix_ranges[0].address_prefix: malformed IP address: \"10.0.0\"",
        ),
        (
            chain(json!({"prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 33}]})),
            "filter_chains[0].filter_chain_match.prefix_ranges[0].prefix_len: 33 is too long for 10.0.0.0",
        ),
        (
            chain(json!({"server_names": ["*", "a*.b", "*.ok"]})),
            "filter_chains[0].filter_chain_match.server_names[0]: \"*\": partial wildcards are not supported in \
             server_names; filter_chains[0].filter_chain_match.server_names[1]: \"a*.b\": partial wildcards are not \
             supported in server_names",
        ),
        (
            chain(json!({"address_suffix": "10.0", "suffix_len": 3})),
            "filter_chains[0].filter_chain_match.address_suffix: unimplemented; \
             filter_chains[0].filter_chain_match.suffix_len: unimplemented",
        ),
        (
            chain(json!({"transport_protocol": "quic"})),
            "filter_chains[0].filter_chain_match.transport_protocol: \"quic\" not supported (supported: tls, raw_buffer)",
        ),
        (with(&listener(), "/use_original_dst", json!(true)), "use_original_dst: not supported"),
    ]);
}

#[test]
fn filters_in_a_wrong_place() {
    let rbac = json!({"name": "l4", "typed_config": ext("filters.network.rbac.v3.RBAC", json!({"stat_prefix": "x"}))});
    let http = json!({"name": "http", "typed_config": manager()});
    check(vec![
        (
            with(&listener(), "/filter_chains/0/filters", json!([rbac])),
            "filter_chains[0].filters[0]: non-terminal filter named l4 of type RBAC is the last filter in a network \
             filter chain",
        ),
        (
            with(&listener(), "/filter_chains/0/filters", json!([http, rbac])),
            "filter_chains[0].filters[0]: terminal filter named http of type HttpConnectionManager must be the last \
             filter; filter_chains[0].filters[1]: non-terminal filter named l4 of type RBAC is the last filter in a \
             network filter chain",
        ),
        (
            super::http("/http_filters", json!([router(), rbac_filter(json!({}))])),
            &format!(
                "{M}.http_filters[1]: the router must be the last filter in a http filter chain, and there is one before"
            ),
        ),
        (
            super::http("/http_filters", json!([])),
            &format!("{M}.http_filters: the last filter must be the router (envoy.filters.http.router)"),
        ),
        (
            super::http("/http_filters", json!([rbac_filter(json!({})), rbac_filter(json!({})), router()])),
            &format!("{M}.http_filters[1].name: \"rbac\" is used by another filter"),
        ),
    ]);
}

#[test]
fn extensions_that_are_not_there() {
    let lua = json!({"name": "lua", "typed_config": ext("filters.http.lua.v3.Lua", json!({}))});
    let any = json::read(&super::http("/http_filters", json!([lua, router()]))).unwrap();
    let known = super::super::resource(LISTENER, &any, &Options::SERVER).unwrap_err().to_string();
    assert_eq!(
        known,
        format!(
            "Listener \"l\": {M}.http_filters[0].typed_config: envoy.extensions.filters.http.lua.v3.Lua not supported \
             (supported: Router, RBAC, LocalRateLimit)"
        )
    );
    // A type that isn't even in the descriptor set can only come in bytes.
    let mut value = any.value.clone();
    let at = value.windows(6).position(|w| w == b"v3.Lua").unwrap();
    value[at..at + 6].copy_from_slice(b"v3.Xyz");
    let unknown = super::super::resource(LISTENER, &Any { value, ..any }, &Options::SERVER).unwrap_err();
    assert_eq!(
        unknown.errors,
        [format!(
            "{M}.http_filters[0].typed_config: Didn't find a registered implementation with type URL \
             'type.googleapis.com/envoy.extensions.filters.http.lua.v3.Xyz' (supported: Router, RBAC, LocalRateLimit)"
        )]
    );
}

#[test]
fn connection_managers_that_can_not_work() {
    check(vec![
        (
            http("/rds/config_source", json!({"path": "/x"})),
            &format!("{M}.rds.config_source: only ads is supported here"),
        ),
        (
            http("/rds/config_source", json!({"api_config_source": {"api_type": "GRPC"}})),
            &format!("{M}.rds.config_source.api_config_source: not supported"),
        ),
        (
            http("/codec_type", json!("HTTP3")),
            &format!("{M}.codec_type: HTTP3 not supported (supported: AUTO, HTTP1, HTTP2)"),
        ),
        (http("/stat_prefix", json!("")), &format!("{M}.stat_prefix: value length must be at least 1 characters")),
        (
            http("/upgrade_configs", json!([{"upgrade_type": "CONNECT"}])),
            &format!("{M}.upgrade_configs[0].upgrade_type: \"CONNECT\" not supported (supported: websocket)"),
        ),
        (http("/xff_num_trusted_hops", json!(1)), &format!("{M}.xff_num_trusted_hops: not supported")),
        (
            http(
                "/access_log",
                json!([{"name": "a", "typed_config": ext("access_loggers.stream.v3.StdoutAccessLog",
                json!({"log_format": {"text_format_source": {"inline_string": "%NOPE%"}}}))}]),
            ),
            &format!(
                "{M}.access_log[0].typed_config[StdoutAccessLog].log_format.text_format_source: operator %NOPE% is not \
                 supported"
            ),
        ),
        (
            http(
                "/access_log",
                json!([{"name": "a", "typed_config": ext("access_loggers.stream.v3.StdoutAccessLog",
                json!({"log_format": {"json_format": {"k": {"p": "%REQ_WITHOUT_QUERY(:PATH)%"}}}}))}]),
            ),
            &format!(
                "{M}.access_log[0].typed_config[StdoutAccessLog].log_format.json_format[\"k\"][\"p\"]: \
                 %REQ_WITHOUT_QUERY% needs its formatter (envoy.formatter.req_without_query) in formatters"
            ),
        ),
    ]);
}

#[test]
fn rate_limits_that_can_not_work() {
    let bucket = |interval: &str| json!({"token_bucket": {"max_tokens": 1, "fill_interval": interval}});
    let filter = |l: Value| json!([{"name": "limit", "typed_config": l}, router()]);
    let host = |l: Value| with(&routes(), "/virtual_hosts/0/typed_per_filter_config", json!({"limit": l}));
    check(vec![
        (
            http("/http_filters", filter(limit(bucket("0.049s")))),
            &format!(
                "{M}.http_filters[0].typed_config[LocalRateLimit].token_bucket.fill_interval: local rate limit token \
                 bucket fill timer must be >= 50ms"
            ),
        ),
        (
            http("/http_filters", filter(limit(json!({"descriptors": [{"entries": [{"key": "k", "value": "v"}]}]})))),
            &format!("{M}.http_filters[0].typed_config[LocalRateLimit].descriptors: not supported"),
        ),
        (
            host(limit(json!({}))),
            "virtual_hosts[0].typed_per_filter_config[\"limit\"][LocalRateLimit].token_bucket: must be set for per \
             filter configs",
        ),
    ]);
}

#[test]
fn settings_for_filters_that_are_not_there() {
    let per_route = ext("filters.http.rbac.v3.RBACPerRoute", json!({}));
    let table =
        |name: &str| with(&routes(), "/virtual_hosts/0/routes/0/typed_per_filter_config", json!({name: per_route}));
    let listener = |name: &str| {
        let mut table = table(name);
        table.as_object_mut().unwrap().remove("@type");
        let mut manager = manager();
        manager.as_object_mut().unwrap().remove("rds");
        manager["route_config"] = table;
        manager["http_filters"] = json!([
            rbac_filter(json!({})),
            {"name": "limit", "typed_config": limit(json!({}))},
            router(),
        ]);
        with(&super::listener(), "/filter_chains/0/filters/0/typed_config", manager)
    };
    check(vec![
        (listener("rbac"), ""),
        (
            listener("rbca"),
            &format!(
                "{M}.route_config: virtual host \"v\" routes[0]: typed_per_filter_config[\"rbca\"]: there is no filter \
                 of this name"
            ),
        ),
        (
            listener("limit"),
            &format!(
                "{M}.route_config: virtual host \"v\" routes[0]: typed_per_filter_config[\"limit\"]: the filter of this \
                 name is another kind"
            ),
        ),
    ]);
}

#[test]
fn routes_that_can_not_work() {
    let route = |pointer: &str, value: Value| with(&routes(), &format!("/virtual_hosts/0/routes/0{pointer}"), value);
    let shares = |w: Value| route("/route", json!({"weighted_clusters": {"clusters": w}}));
    let header = |h: Value| route("/request_headers_to_add", json!([{"header": h}]));
    const R: &str = "virtual_hosts[0].routes[0]";
    check(vec![
        (
            with(&routes(), "/virtual_hosts/1", json!({"name": "v", "domains": ["b", "A"]})),
            "virtual_hosts[1].domains[1]: Only unique values for domains are permitted. Duplicate entry of domain a",
        ),
        (
            shares(json!([{"name": "a", "weight": 0}, {"name": "b", "weight": 0}])),
            &format!("{R}.route.weighted_clusters: Sum of weights in the weighted_cluster must be greater than 0."),
        ),
        (
            shares(json!([{"name": "a", "weight": 4294967295u32}, {"name": "b", "weight": 1}])),
            &format!("{R}.route.weighted_clusters: the sum of weights 4294967296 exceeds 4294967295"),
        ),
        (shares(json!([])), &format!("{R}.route.weighted_clusters.clusters: value must contain at least 1 item(s)")),
        (
            route("/match", json!({"safe_regex": {"regex": "a(?=b)"}})),
            &format!(
                "{R}.match.safe_regex.regex: regex \"a(?=b)\" is not valid: regex parse error:     a(?=b)      ^^^ error: look-around, including look-ahead and look-behind, is not supported"
            ),
        ),
        (route("/match", json!({})), &format!("{R}.match.path_specifier: one of its fields is required")),
        (
            header(json!({"key": ":path", "value": "x"})),
            &format!("{R}.request_headers_to_add[0].header.key: :path: pseudo-headers and host may not be changed"),
        ),
        (
            header(json!({"key": "Host", "value": "x"})),
            &format!("{R}.request_headers_to_add[0].header.key: Host: pseudo-headers and host may not be changed"),
        ),
        (
            header(json!({"key": "x", "value": "%NOPE%"})),
            &format!("{R}.request_headers_to_add[0].header.value: operator %NOPE% is not supported"),
        ),
        (
            route("/response_headers_to_remove", json!(["host"])),
            &format!("{R}.response_headers_to_remove[0]: host: pseudo-headers and host may not be changed"),
        ),
        (
            route(
                "/request_headers_to_add",
                json!([{"header": {"key": "x"}, "append": true, "append_action": "ADD_IF_ABSENT"}]),
            ),
            &format!("{R}.request_headers_to_add[0]: both append and append_action are set"),
        ),
        (
            route("/route/retry_policy", json!({"retry_back_off": {"base_interval": "1s", "max_interval": "0.5s"}})),
            &format!(
                "{R}.route.retry_policy.retry_back_off.max_interval: must be greater than or equal to the base_interval"
            ),
        ),
        (route("/route/timeout", json!("-1s")), &format!("{R}.route.timeout: a duration can't be negative")),
        (
            route("/route/hash_policy", json!([{"header": {"header_name": "x"}}])),
            &format!("{R}.route.hash_policy: not supported"),
        ),
        (with(&routes(), "/virtual_hosts/0/require_tls", json!("ALL")), "virtual_hosts[0].require_tls: not supported"),
    ]);
}

#[test]
fn clusters_that_can_not_work() {
    let address = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address/address";
    let typed = |kind: &str| with(&cluster(), "/type", json!(kind));
    let bare = |kind: &str| super::typed("envoy.config.cluster.v3.Cluster", json!({"name": "c", "type": kind}));
    let endpoint = cluster()["load_assignment"]["endpoints"][0]["lb_endpoints"][0].clone();
    check(vec![
        (with(&cluster(), "/name", json!("")), "name: value length must be at least 1 characters"),
        (bare("EDS"), "eds_cluster_config: cannot create an EDS cluster without an EDS config"),
        (
            with(&cluster(), address, json!("example.com")),
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: malformed IP \
             address: \"example.com\"",
        ),
        (
            with(&bare("ORIGINAL_DST"), "/lb_policy", json!("ROUND_ROBIN")),
            "lb_policy: cluster type ORIGINAL_DST may only be used with LB policy CLUSTER_PROVIDED",
        ),
        (
            with(&typed("ORIGINAL_DST"), "/lb_policy", json!("CLUSTER_PROVIDED")),
            "load_assignment: ORIGINAL_DST clusters must have no load assignment configured",
        ),
        (
            with(&cluster(), "/lb_policy", json!("CLUSTER_PROVIDED")),
            "lb_policy: CLUSTER_PROVIDED may only be used with type ORIGINAL_DST",
        ),
        (
            with(&cluster(), "/lb_policy", json!("MAGLEV")),
            "lb_policy: MAGLEV not supported (supported: ROUND_ROBIN, LEAST_REQUEST, RANDOM, CLUSTER_PROVIDED, \
             LOAD_BALANCING_POLICY_CONFIG)",
        ),
        (
            with(&typed("LOGICAL_DNS"), "/load_assignment/endpoints/0/lb_endpoints/1", endpoint),
            "load_assignment: LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint",
        ),
        (with(&cluster(), "/connect_timeout", json!("0s")), "connect_timeout: seconds must be greater than 0, is 0"),
        (
            with(&cluster(), "/circuit_breakers", json!({"thresholds": [{"priority": "HIGH"}]})),
            "circuit_breakers.thresholds[0].priority: HIGH not supported (supported: DEFAULT)",
        ),
        (with(&cluster(), "/health_checks", json!([{}])), "health_checks: not supported"),
        (
            with(
                &cluster(),
                "/typed_extension_protocol_options",
                json!({"x": ext("upstreams.http.v3.HttpProtocolOptions",
                json!({"explicit_http_config": {"http_protocol_options": {}}}))}),
            ),
            "typed_extension_protocol_options[\"x\"]: not supported (supported: \
             envoy.extensions.upstreams.http.v3.HttpProtocolOptions)",
        ),
    ]);
}

#[test]
fn tls_that_would_not_protect() {
    const U: &str = "transport_socket.typed_config[UpstreamTlsContext].common_tls_context";
    const D: &str = "filter_chains[0].transport_socket.typed_config[DownstreamTlsContext]";
    let params = |p: Value| upstream_tls(json!({"common_tls_context": {"tls_params": p}}));
    let ours = json!({"tls_certificate_sds_secret_configs": [sds("c")]});
    const FILE: &str = "transport_socket.typed_config[UpstreamTlsContext].common_tls_context.\
                        tls_certificate_sds_secret_configs[0].sds_config.path_config_source";
    let in_file = |source: Value| {
        let sds = json!({"name": "s", "sds_config": {"path_config_source": source}});
        upstream_tls(json!({"common_tls_context": {"tls_certificate_sds_secret_configs": [sds]}}))
    };
    let no_ca = json!({"match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "a"}}]});
    check(vec![
        (
            downstream_tls(json!({"common_tls_context": ours, "require_client_certificate": true})),
            &format!(
                "{D}.require_client_certificate: nothing says which client certificates are good: a validation context \
                 with a CA is needed"
            ),
        ),
        (
            downstream_tls(json!({"common_tls_context": {}})),
            &format!("{D}.common_tls_context: no TLS certificates found for server context"),
        ),
        (
            upstream_tls(json!({"common_tls_context": {"validation_context": no_ca}})),
            &format!(
                "{U}.validation_context.trusted_ca: is required: without a CA every certificate would be good, and its \
                 names prove nothing"
            ),
        ),
        (
            params(json!({"cipher_suites": ["NOPE"]})),
            &format!("{U}.tls_params.cipher_suites[0]: \"NOPE\" is not known"),
        ),
        (
            params(json!({"cipher_suites": ["AES128-SHA"]})),
            &format!("{U}.tls_params.cipher_suites: none of them is in our TLS library"),
        ),
        (
            params(json!({"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_2"})),
            &format!("{U}.tls_params.tls_minimum_protocol_version: is above tls_maximum_protocol_version"),
        ),
        (
            params(json!({"tls_maximum_protocol_version": "TLSv1_1"})),
            &format!(
                "{U}.tls_params.tls_maximum_protocol_version: TLSv1_1 not supported (supported: TLSv1_2, TLSv1_3)"
            ),
        ),
        (
            in_file(json!({"path": "/a/b/s.yaml", "watched_directory": {"path": "/a"}})),
            &format!("{FILE}.watched_directory: only the directory that the file is in is supported"),
        ),
        (
            in_file(json!({"path": "/a/s.yaml", "watched_directory": {"path": "/a", "watch_modify": true}})),
            &format!("{FILE}.watched_directory.watch_modify: not supported"),
        ),
        (in_file(json!({"path": "/a/s.yaml", "poll_interval": "5s"})), &format!("{FILE}.poll_interval: not supported")),
        (
            with(&upstream_tls(json!({})), "/transport_socket/typed_config", downstream_context()),
            "transport_socket.typed_config: DownstreamTlsContext is not for clusters",
        ),
    ]);
}

fn downstream_context() -> Value {
    ext("transport_sockets.tls.v3.DownstreamTlsContext", json!({}))
}

#[test]
fn rules_that_are_not_understood() {
    let rules = |r: Value| http("/http_filters", json!([rbac_filter(json!({"rules": r})), router()]));
    let policy = |p: Value| rules(json!({"policies": {"p": p}}));
    let path = format!("{M}.http_filters[0].typed_config[RBAC].rules");
    check(vec![
        (rules(json!({"action": "LOG"})), &format!("{path}.action: LOG not supported (supported: ALLOW, DENY)")),
        (
            policy(json!({"permissions": [{"metadata": {"filter": "x"}}], "principals": [{"any": true}]})),
            &format!("{path}.policies[\"p\"].permissions[0].metadata: not supported"),
        ),
        (
            policy(json!({"permissions": [{"any": true}], "principals": [{"any": false}]})),
            &format!("{path}.policies[\"p\"].principals[0].any: value must equal true"),
        ),
        (
            policy(json!({"permissions": [], "principals": [{"any": true}]})),
            &format!("{path}.policies[\"p\"].permissions: value must contain at least 1 item(s)"),
        ),
    ]);
}

#[test]
fn rules_for_connections_can_not_ask_for_requests() {
    let method = json!({"not_rule": {"header": {"name": ":method", "string_match": {"exact": "GET"}}}});
    let policy = json!({"permissions": [method], "principals": [{"any": true}]});
    let rbac = ext("filters.network.rbac.v3.RBAC", json!({"stat_prefix": "x", "rules": {"policies": {"p": policy}}}));
    let filters = json!([{"name": "l4", "typed_config": rbac}, {"name": "http", "typed_config": manager()}]);
    check(vec![(
        with(&listener(), "/filter_chains/0/filters", filters),
        "filter_chains[0].filters[0].typed_config[RBAC].rules.policies[\"p\"]: header and url_path are not supported for \
         connections",
    )]);
}

#[test]
fn bytes_that_are_no_resource() {
    let wrong = Any { type_url: CLUSTER.into(), value: vec![0x0a, 0x05, b'c'] };
    let rejected = super::super::resource(CLUSTER, &wrong, &Options::SERVER).unwrap_err();
    assert_eq!(rejected.to_string(), "Cluster: not a valid protobuf encoding");
    let rejected = super::super::resource(LISTENER, &json::read(&cluster()).unwrap(), &Options::SERVER).unwrap_err();
    assert!(rejected.to_string().starts_with("Listener \"c\": has the type "), "{rejected}");
    let rejected = super::super::resource("type.googleapis.com/x.Y", &wrong, &Options::SERVER).unwrap_err();
    assert!(rejected.to_string().contains("not supported"), "{rejected}");
}

#[test]
fn an_unknown_field_is_a_warning_or_an_error() {
    let mut any = json::read(&cluster()).unwrap();
    for _ in 0..2 {
        crate::xds::wire::put(&mut any.value, 5000, crate::xds::wire::Raw::Varint(1));
    }
    let (_, warnings) = super::super::resource(CLUSTER, &any, &Options::SERVER).unwrap();
    assert_eq!(warnings, ["unknown field 5000 of envoy.config.cluster.v3.Cluster is ignored"]);
    let strict = Options { reject_unknown_fields: true, ..Options::SERVER };
    let rejected = super::super::resource(CLUSTER, &any, &strict).unwrap_err();
    assert_eq!(rejected.errors, ["unknown field 5000 of envoy.config.cluster.v3.Cluster"]);
}

#[test]
fn nesting_without_end_is_refused() {
    let mut rule = json!({"any": true});
    for _ in 0..100 {
        rule = json!({"not_rule": rule});
    }
    let policy = json!({"permissions": [rule], "principals": [{"any": true}]});
    let filters = json!([rbac_filter(json!({"rules": {"policies": {"p": policy}}})), router()]);
    assert!(errors(&http("/http_filters", filters)).ends_with("nested too deeply"));
}
