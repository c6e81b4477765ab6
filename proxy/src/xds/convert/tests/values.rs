//! What the converted values are.

use std::time::Duration;

use ::http::StatusCode;

use super::*;
use crate::config::{
    Wanted,
    cluster::{
        ClusterSpec, Discovery, DnsEndpoint, DnsFamily, DnsPolicy, Health, LoadBalancing, RetryBudget, UpstreamHttp,
    },
    headers::AppendAction,
    http::{EscapedSlashes, HttpConnectionManager, HttpFilterKind, PathRules, RouteSource},
    listener::{Listener, ListenerFilterKind, PortPredicate, Terminal},
    route::{Forward, PathRedirect, PerRouteFilter, RouteAction, Target},
    tls::{SanKind, SecretSource, TlsVersion, Validation},
};

fn table(resource: &Value) -> Arc<RouteTable> {
    let Ok((Resource::Routes(table), _)) = convert(resource) else { panic!("{}", errors(resource)) };
    table
}

fn forward(fields: Value) -> Forward {
    let table = table(&with(&routes(), "/virtual_hosts/0/routes/0/route", fields));
    let RouteAction::Forward(forward) = &table.virtual_hosts[0].routes[0].action else { panic!("not forwarded") };
    (**forward).clone()
}

fn spec(resource: &Value) -> Arc<ClusterSpec> {
    let Ok((Resource::Cluster(spec), _)) = convert(resource) else { panic!("{}", errors(resource)) };
    spec
}

fn listened(resource: &Value) -> Arc<Listener> {
    let Ok((Resource::Listener(listener), _)) = convert(resource) else { panic!("{}", errors(resource)) };
    listener
}

fn managed(pointer: &str, value: Value) -> Arc<HttpConnectionManager> {
    let listener = listened(&super::http(pointer, value));
    let Terminal::Http(http) = &listener.chains[0].terminal else { panic!("not HTTP") };
    Arc::clone(http)
}

const fn seconds(s: u64) -> Option<Duration> {
    Some(Duration::from_secs(s))
}

#[test]
fn a_timeout_is_15_s_unless_told_and_zero_is_none() {
    assert_eq!(forward(json!({"cluster": "c"})).timeout, seconds(15));
    assert_eq!(forward(json!({"cluster": "c", "timeout": "0s"})).timeout, None);
    assert_eq!(forward(json!({"cluster": "c", "timeout": "1.5s"})).timeout, Some(Duration::from_millis(1500)));
}

#[test]
fn a_retry_policy_has_envoys_defaults() {
    let retry = |policy: Value| forward(json!({"cluster": "c", "retry_policy": policy})).retry.unwrap();
    let plain = retry(json!({"retry_on": "5xx, connect-failure,unavailable"}));
    assert!(plain.on.server_error && plain.on.connect_failure && plain.on.grpc_unavailable && !plain.on.reset);
    assert_eq!((plain.num_retries, plain.per_try_timeout, plain.host_selection_attempts), (1, None, 1));
    let milliseconds = Duration::from_millis;
    assert_eq!((plain.base_interval, plain.max_interval), (milliseconds(25), milliseconds(250)));
    let told = retry(json!({
        "num_retries": 5, "per_try_timeout": "1s", "retry_back_off": {"base_interval": "0.1s"},
        "retriable_status_codes": [418], "host_selection_retry_max_attempts": "3",
        "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts"}],
    }));
    assert_eq!((told.num_retries, told.per_try_timeout, told.max_interval), (5, seconds(1), milliseconds(1000)));
    assert_eq!(told.status_codes, [StatusCode::IM_A_TEAPOT]);
    assert!(told.avoid_previous_hosts && told.host_selection_attempts == 3);
}

#[test]
fn shares_keep_their_weights_and_ignore_the_old_total() {
    let target = forward(json!({"weighted_clusters": {
        "clusters": [{"name": "a", "weight": 90}, {"name": "b", "weight": 0}], "total_weight": 7,
    }}))
    .target;
    let Target::Weighted(shares) = target else { panic!("not weighted") };
    assert_eq!(shares.iter().map(|s| (&*s.cluster, s.weight)).collect::<Vec<_>>(), [("a", 90), ("b", 0)]);
}

#[test]
fn redirects_and_direct_responses() {
    let action = |kind: &str, fields: Value| {
        let route = json!({"match": {"prefix": "/"}, kind: fields});
        table(&with(&routes(), "/virtual_hosts/0/routes/0", route)).virtual_hosts[0].routes[0].action.clone()
    };
    let RouteAction::Redirect(redirect) = action(
        "redirect",
        json!({"https_redirect": true, "host_redirect": "h", "port_redirect": 8443, "prefix_rewrite": "/p",
               "response_code": "PERMANENT_REDIRECT", "strip_query": true}),
    ) else {
        panic!("not a redirect")
    };
    assert_eq!((redirect.status, redirect.scheme.as_deref()), (StatusCode::PERMANENT_REDIRECT, Some("https")));
    assert_eq!((redirect.host.as_deref(), redirect.port, redirect.strip_query), (Some("h"), Some(8443), true));
    assert_eq!(redirect.path, Some(PathRedirect::Prefix("/p".into())));
    let direct = action("direct_response", json!({"status": 418, "body": {"inline_string": "no"}}));
    let RouteAction::Direct(direct) = direct else { panic!("not direct") };
    assert_eq!((direct.status, &direct.body[..]), (StatusCode::IM_A_TEAPOT, &b"no"[..]));
}

#[test]
fn header_edits_take_both_spellings_of_appending() {
    let add = |fields: Value| {
        let mut option = json!({"header": {"key": "X-A", "value": "%DOWNSTREAM_REMOTE_ADDRESS%"}});
        option.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        table(&with(&routes(), "/request_headers_to_add", json!([option]))).request_headers.add[0].clone()
    };
    for (fields, action) in [
        (json!({}), AppendAction::Append),
        (json!({"append": true}), AppendAction::Append),
        (json!({"append": false}), AppendAction::Overwrite),
        (json!({"append_action": "ADD_IF_ABSENT"}), AppendAction::AddIfAbsent),
        (json!({"append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}), AppendAction::Overwrite),
        (json!({"append_action": "OVERWRITE_IF_EXISTS"}), AppendAction::OverwriteIfExists),
    ] {
        let header = add(fields.clone());
        assert_eq!((header.action, header.name.as_str()), (action, "x-a"), "{fields}");
    }
}

#[test]
fn settings_of_filters_by_route() {
    let rules = json!({"rules": {"policies": {"p": {"permissions": [{"any": true}], "principals": [{"any": true}]}}}});
    let filters = json!({
        "off": typed("envoy.config.route.v3.FilterConfig", json!({"disabled": true})),
        "rbac": ext("filters.http.rbac.v3.RBACPerRoute", json!({"rbac": rules})),
        "open": ext("filters.http.rbac.v3.RBACPerRoute", json!({"rbac": {}})),
        "limit": typed("envoy.config.route.v3.FilterConfig", json!({
            "config": limit(json!({"token_bucket": {"max_tokens": 5, "fill_interval": "60s"}, "status": {"code": 503}})),
        })),
    });
    let table = table(&with(&routes(), "/virtual_hosts/0/typed_per_filter_config", filters));
    let by_name = &table.virtual_hosts[0].filters.by_name;
    assert_eq!(by_name["off"], PerRouteFilter::Disabled);
    assert_eq!(by_name["open"], PerRouteFilter::Rbac(None));
    assert!(matches!(&by_name["rbac"], PerRouteFilter::Rbac(Some(rbac)) if rbac.policies.contains_key("p")));
    let PerRouteFilter::LocalRateLimit(limit) = &by_name["limit"] else { panic!("no limit") };
    let bucket = limit.bucket.unwrap();
    assert_eq!((bucket.max, bucket.fill, bucket.interval), (5, 1, Duration::from_secs(60)));
    assert_eq!((limit.status, limit.enabled_ppm), (StatusCode::SERVICE_UNAVAILABLE, 0));
}

#[test]
fn a_rate_limit_below_400_answers_429_and_shares_are_exact() {
    let config = limit(json!({
        "status": {"code": 200},
        "filter_enabled": {"runtime_key": "k", "default_value": {"numerator": 100}},
        "filter_enforced": {"default_value": {"numerator": 5, "denominator": "TEN_THOUSAND"}},
    }));
    let http = managed("/http_filters", json!([{"name": "limit", "typed_config": config}, router()]));
    let HttpFilterKind::LocalRateLimit(limit) = &http.filters[0].kind else { panic!("no limit") };
    assert_eq!(limit.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!((limit.bucket, limit.enabled_ppm, limit.enforced_ppm), (None, 1_000_000, 500));
}

#[test]
fn a_connection_manager_has_envoys_defaults_but_for_paths() {
    let http = managed("/stat_prefix", json!("s"));
    assert_eq!((http.stream_idle_timeout, http.idle_timeout), (Duration::from_secs(300), Duration::from_secs(3600)));
    assert_eq!((http.max_request_headers_kb, http.max_headers_count, http.max_concurrent_streams), (60, 100, 1024));
    assert!(http.generate_request_id && !http.websocket && !http.use_remote_address);
    let strict =
        PathRules { normalize: true, merge_slashes: true, escaped_slashes: EscapedSlashes::UnescapeAndForward };
    assert_eq!(http.path, strict);
    let as_told = PathRules { normalize: false, merge_slashes: false, escaped_slashes: EscapedSlashes::Keep };
    assert_eq!(managed("/normalize_path", json!(false)).path, as_told);
    assert!(managed("/upgrade_configs", json!([{"upgrade_type": "WebSocket"}])).websocket);
    assert!(!managed("/upgrade_configs", json!([{"upgrade_type": "websocket", "enabled": false}])).websocket);
    assert_eq!(managed("/common_http_protocol_options", json!({"idle_timeout": "0s"})).idle_timeout, Duration::ZERO);
}

#[test]
fn listener_filters_and_their_ports() {
    let inspector = |name: &str| ext(&format!("filters.listener.{name}"), json!({}));
    let port = |p: u32| json!({"destination_port_range": {"start": p, "end": p + 1}});
    let filters = json!([
        {"name": "o", "typed_config": inspector("original_dst.v3.OriginalDst")},
        {"name": "t", "typed_config": inspector("tls_inspector.v3.TlsInspector"),
         "filter_disabled": {"or_match": {"rules": [port(3306), {"not_match": port(80)}]}}},
        {"name": "h", "typed_config": inspector("http_inspector.v3.HttpInspector"), "filter_disabled": port(65535)},
    ]);
    let listener = listened(&with(&super::listener(), "/listener_filters", filters));
    let kinds: Vec<_> = listener.listener_filters.iter().map(|f| f.kind).collect();
    use ListenerFilterKind::{HttpInspector, OriginalDst, TlsInspector};
    assert_eq!(kinds, [OriginalDst, TlsInspector, HttpInspector]);
    let disabled = |i: usize| listener.listener_filters[i].disabled.clone();
    let not = PortPredicate::Not(Box::new(PortPredicate::Range(80, 81)));
    assert_eq!(disabled(1), Some(PortPredicate::Or(vec![PortPredicate::Range(3306, 3307), not])));
    assert_eq!(disabled(2), Some(PortPredicate::Range(65535, 65536)));
}

#[test]
fn chains_match_lower_case_names_and_masked_networks() {
    let m = json!({
        "server_names": ["A.Example", "*.B"], "source_type": "EXTERNAL", "source_ports": [7],
        "prefix_ranges": [{"address_prefix": "10.1.2.3", "prefix_len": 8}],
        "source_prefix_ranges": [{"address_prefix": "::1"}],
    });
    let listener = listened(&with(&super::listener(), "/filter_chains/0/filter_chain_match", m));
    let matcher = &listener.chains[0].matcher;
    assert_eq!(matcher.server_names, ["a.example", "*.b"]);
    assert_eq!(matcher.prefix_ranges, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(matcher.source_prefix_ranges, ["::/0".parse().unwrap()]);
}

#[test]
fn tcp_proxies_have_an_idle_timeout_of_an_hour() {
    let tcp = |fields: Value| {
        let mut all = json!({"stat_prefix": "t", "cluster": "c"});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let filter = json!([{"name": "tcp", "typed_config": ext("filters.network.tcp_proxy.v3.TcpProxy", all)}]);
        let listener = listened(&with(&super::listener(), "/filter_chains/0/filters", filter));
        let Terminal::Tcp(tcp) = &listener.chains[0].terminal else { panic!("not TCP") };
        Arc::clone(tcp)
    };
    assert_eq!((tcp(json!({})).idle_timeout, tcp(json!({})).max_connect_attempts), (seconds(3600), 1));
    assert_eq!(tcp(json!({"idle_timeout": "0s"})).idle_timeout, None);
}

#[test]
fn clusters_have_envoys_defaults() {
    let c = spec(&cluster());
    assert_eq!((c.connect_timeout, c.idle_timeout), (Duration::from_secs(5), Duration::from_secs(3600)));
    assert_eq!((c.lb, c.http, &*c.stat_name), (LoadBalancing::RoundRobin, UpstreamHttp::Http1, "c"));
    let Discovery::Static(endpoints) = &c.discovery else { panic!("not static") };
    assert_eq!((endpoints[0].weight, endpoints[0].priority, endpoints[0].health), (1, 0, Health::Healthy));
    let budget = json!({"thresholds": [{"max_requests": 7, "retry_budget": {"min_retry_concurrency": 9}}]});
    let limits = spec(&with(&cluster(), "/circuit_breakers", budget)).limits;
    assert_eq!((limits.max_requests, limits.max_connections, limits.max_retries), (7, 1024, 3));
    assert_eq!(limits.retry_budget, Some(RetryBudget { ppm: 200_000, min_concurrency: 9 }));
    let least = json!({"policies": [{"typed_extension_config": {"name": "l", "typed_config":
        ext("load_balancing_policies.least_request.v3.LeastRequest", json!({"choice_count": 4}))}}]});
    let c = spec(&with(&cluster(), "/load_balancing_policy", least));
    assert_eq!(c.lb, LoadBalancing::LeastRequest { choices: 4 });
}

#[test]
fn endpoints_of_eds() {
    let host = |address: &str, health: &str| json!({"endpoint": {"address": {"socket_address": {"address": address, "port_value": 1}}}, "health_status": health});
    let assignment = typed(
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        json!({
            "cluster_name": "e",
            "endpoints": [{"priority": 1, "lb_endpoints": [host("10.0.0.1", "DRAINING"), host("::1", "DEGRADED")]}],
            "policy": {"overprovisioning_factor": 200, "drop_overloads": [
                {"category": "a", "drop_percentage": {"numerator": 50}},
                {"category": "b", "drop_percentage": {"numerator": 50}},
            ]},
        }),
    );
    let Resource::Assignment(a) = convert(&assignment).unwrap().0 else { panic!("not an assignment") };
    assert_eq!(a.endpoints.iter().map(|e| e.health).collect::<Vec<_>>(), [Health::Unhealthy, Health::Degraded]);
    assert_eq!((a.endpoints[0].priority, a.overprovisioning_percent, a.drop_ppm), (1, 200, 750_000));
}

#[test]
fn a_secret_may_be_in_a_file_whose_directory_is_watched() {
    let source = json!({"path": "/a/s.yaml", "watched_directory": {"path": "/a"}});
    let sds = json!({"name": "s", "sds_config": {"path_config_source": source, "resource_api_version": "V3"}});
    let context = json!({"common_tls_context": {
        "tls_certificate_sds_secret_configs": [sds],
        "validation_context_sds_secret_config": {"name": "v", "sds_config": {"ads": {}}},
    }});
    let (resource, warnings) = convert(&upstream_tls(context)).unwrap();
    let Resource::Cluster(c) = resource else { panic!("not a cluster") };
    let file = SecretSource::File { name: "s".into(), path: "/a/s.yaml".into() };
    assert_eq!((c.tls.as_ref().unwrap().common.certificate.as_ref(), &warnings[..]), (Some(&file), &[][..]));
}

#[test]
fn tls_parameters_in_our_librarys_names() {
    let params = json!({
        "tls_minimum_protocol_version": "TLSv1_0",
        "cipher_suites": ["[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]", "AES128-SHA"],
        "ecdh_curves": ["P-256", "X25519"],
    });
    let context = json!({
        "sni": "s",
        "common_tls_context": {
            "tls_params": params, "alpn_protocols": ["osm"], "tls_certificates": [],
            "tls_certificate_sds_secret_configs": [sds("c")],
            "combined_validation_context": {
                "default_validation_context": {"match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"prefix": "spiffe://a/"}},
                ]},
                "validation_context_sds_secret_config": {"name": "static"},
            },
        },
    });
    let (resource, warnings) = convert(&upstream_tls(context)).unwrap();
    let Resource::Cluster(c) = resource else { panic!("not a cluster") };
    let tls = c.tls.as_ref().unwrap();
    let p = &tls.common.params;
    assert_eq!((p.min, p.max), (TlsVersion::V1_2, TlsVersion::V1_3));
    let suites = ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"];
    assert_eq!(
        (&p.cipher_suites[..], &p.groups[..]),
        (&suites.map(String::from)[..], &["secp256r1", "X25519"].map(String::from)[..])
    );
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert_eq!(tls.common.certificate, Some(SecretSource::Ads("c".into())));
    assert_eq!(tls.common.validation, Some(SecretSource::Static("static".into())));
    let names = &tls.common.default_validation.as_ref().unwrap().subject_alt_names;
    assert_eq!((names[0].kind, tls.sni.as_deref()), (SanKind::Uri, Some("s")));
}

#[test]
fn secrets_hold_what_peers_are_checked_against() {
    let names = json!([{"exact": "a"}]);
    let (resource, _) = convert(&with(&secret(), "/validation_context/match_subject_alt_names", names)).unwrap();
    let Resource::Secret { name, secret } = resource else { panic!("not a secret") };
    let Secret::Validation(Validation { trusted_ca_pem, subject_alt_names }) = &*secret else { panic!("not a CA") };
    assert_eq!((&*name, &trusted_ca_pem[..], subject_alt_names[0].kind), ("s", &b"pem"[..], SanKind::Any));
}

#[test]
fn a_source_says_how_long_it_is_waited_for() {
    let source = json!({"ads": {}, "initial_fetch_timeout": "3s", "resource_api_version": "V3"});
    let wanted = |name: &str| Wanted { name: name.into(), patience: Some(Duration::from_secs(3)) };
    let eds = with(&cluster(), "/type", json!("EDS"));
    let eds = with(&with(&eds, "/load_assignment", Value::Null), "/eds_cluster_config/eds_config", source.clone());
    assert_eq!(spec(&eds).discovery, Discovery::Eds(wanted("c")));
    let http = managed("/rds/config_source", source.clone());
    assert_eq!(http.routes, RouteSource::Rds(wanted("r")));
    let sds = json!({"name": "x", "sds_config": source});
    let context = json!({"common_tls_context": {"tls_certificate_sds_secret_configs": [sds]}});
    let tls = spec(&upstream_tls(context)).tls.clone().unwrap();
    assert_eq!(tls.common.certificate, Some(SecretSource::Ads(wanted("x"))));
}

#[test]
fn of_load_balancing_policies_the_first_that_we_have_counts() {
    let policy = |name: &str, config: Value| {
        let any = ext(&format!("load_balancing_policies.{name}"), config);
        json!({"typed_extension_config": {"name": "p", "typed_config": any}})
    };
    let maglev = policy("maglev.v3.Maglev", json!({}));
    let least = policy("least_request.v3.LeastRequest", json!({"choice_count": 3}));
    let (random, all) = (policy("random.v3.Random", json!({})), "/load_balancing_policy/policies");
    let listed = |policies: Value| with(&cluster(), all, policies);
    let (resource, warnings) = convert(&listed(json!([maglev, least, random]))).unwrap();
    let Resource::Cluster(c) = resource else { panic!("not a cluster") };
    assert_eq!(c.lb, LoadBalancing::LeastRequest { choices: 3 });
    let skipped = "load_balancing_policy.policies[0]: not supported; skipped, as policies[1] is";
    assert_eq!(warnings, [skipped]);
    let at = "load_balancing_policy.policies[0].typed_extension_config.typed_config";
    let refused = errors(&listed(json!([maglev])));
    assert!(
        refused.starts_with(&format!("{at}: envoy.extensions.load_balancing_policies.maglev.v3.Maglev not")),
        "{refused}"
    );
    let wrong = policy("least_request.v3.LeastRequest", json!({"choice_count": 1}));
    let refused = errors(&listed(json!([maglev, wrong, random])));
    assert!(refused.contains("policies[1]") && refused.contains("choice_count"), "{refused}");
    assert!(!errors(&listed(json!([]))).is_empty());
}

#[test]
fn names_may_be_asked_for_in_the_newer_message() {
    let dns = |fields: Value| {
        let any = ext("clusters.dns.v3.DnsCluster", fields);
        let plain = with(
            &with(&cluster(), "/type", Value::Null),
            "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address/address",
            json!("a.test"),
        );
        with(&plain, "/cluster_type", json!({"name": "envoy.clusters.dns", "typed_config": any}))
    };
    let name = DnsEndpoint { host: "a.test".to_owned(), port: 80, weight: 1, priority: 0 };
    let defaults = DnsPolicy {
        family: DnsFamily::Auto,
        refresh: Duration::from_secs(5),
        respect_ttl: false,
        min_ttl: Duration::from_secs(1),
        failure_refresh: Duration::from_secs(5),
        jitter: Duration::ZERO,
    };
    assert_eq!(spec(&dns(json!({}))).discovery, Discovery::StrictDns(vec![name.clone()], defaults));
    let all = json!({
        "all_addresses_in_single_endpoint": true, "dns_refresh_rate": "7s", "respect_dns_ttl": true,
        "dns_min_refresh_rate": "2s", "dns_jitter": "0.5s", "dns_lookup_family": "V6_ONLY",
        "dns_failure_refresh_rate": {"base_interval": "3s", "max_interval": "9s"},
    });
    let policy = DnsPolicy {
        family: DnsFamily::V6Only,
        refresh: Duration::from_secs(7),
        respect_ttl: true,
        min_ttl: Duration::from_secs(2),
        failure_refresh: Duration::from_secs(3),
        jitter: Duration::from_millis(500),
    };
    assert_eq!(spec(&dns(all)).discovery, Discovery::LogicalDns(name, policy));
    let (_, warnings) = convert(&with(&dns(json!({})), "/dns_lookup_family", json!("V4_ONLY"))).unwrap();
    assert!(
        warnings.iter().any(|w| w == "dns_lookup_family: has no effect: cluster_type has one of its own"),
        "{warnings:?}"
    );
    let resolver = json!({"typed_dns_resolver_config": {"name": "x"}});
    assert!(errors(&dns(resolver)).contains("typed_dns_resolver_config: not supported"));
    let other =
        json!({"name": "x", "typed_config": ext("clusters.aggregate.v3.ClusterConfig", json!({"clusters": ["a"]}))});
    assert!(!errors(&with(&with(&cluster(), "/type", Value::Null), "/cluster_type", other)).is_empty());
}
