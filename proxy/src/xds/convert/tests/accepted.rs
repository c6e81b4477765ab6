//! What looks wrong and is accepted all the same, as Envoy accepts it; aliases; optional things.

use super::*;

/// Each: a resource, and its whole list of warnings.
fn check(table: Vec<(Value, Vec<&str>)>) {
    for (resource, expected) in table {
        let (_, warnings) = convert(&resource).unwrap_or_else(|r| panic!("{r}"));
        assert_eq!(warnings, expected, "{resource}");
    }
}

#[test]
fn odd_but_harmless_resources() {
    let route = |pointer: &str, value: Value| with(&routes(), &format!("/virtual_hosts/0/routes/0{pointer}"), value);
    let chain = |m: Value| with(&listener(), "/filter_chains/0/filter_chain_match", m);
    check(vec![
        (
            route("/route/retry_policy", json!({"retry_on": "5xx,nonsense"})),
            vec!["virtual_hosts[0].routes[0].route.retry_policy.retry_on: unknown word \"nonsense\" is ignored"],
        ),
        (with(&routes(), "/virtual_hosts/1", json!({"name": "v", "domains": ["a.*.b", "*"]})), vec![]),
        (route("/match", json!({"path": "/x?y"})), vec![]),
        (with(&listener(), "/filter_chains/0/filters", json!([])), vec![]),
        (
            chain(json!({"server_names": ["A.Example"], "transport_protocol": "tls"})),
            vec!["listener_filters: filter chains need the TLS inspector, which is not listed: it is added"],
        ),
        (chain(json!({"prefix_ranges": [{"address_prefix": "10.1.2.3", "prefix_len": 8}]})), vec![]),
        (with(&cluster(), "/load_assignment/endpoints/0/priority", json!(2)), vec![]),
    ]);
}

#[test]
fn older_fields_are_translated_with_one_warning_each() {
    let old = |h: Value| with(&routes(), "/virtual_hosts/0/routes/0/match/headers", h);
    let new = |s: Value| old(json!([{"name": "x", "string_match": s}]));
    for (field, arm) in [
        ("exact_match", "exact"),
        ("prefix_match", "prefix"),
        ("suffix_match", "suffix"),
        ("contains_match", "contains"),
    ] {
        let (resource, warnings) =
            convert(&old(json!([{"name": "x", field: "v"}, {"name": "x", field: "v"}]))).unwrap();
        let place = "virtual_hosts[0].routes[0].match.headers[0]";
        assert_eq!(warnings, [format!("{place}.{field}: deprecated, taken as string_match")]);
        let Resource::Routes(table) = resource else { panic!("not routes") };
        let Resource::Routes(expected) = convert(&new(json!({arm: "v"}))).unwrap().0 else { panic!("not routes") };
        let headers = |t: &RouteTable| t.virtual_hosts[0].routes[0].matcher.headers[0].clone();
        assert_eq!(headers(&table), headers(&expected), "{field}");
    }
}

#[test]
fn optional_filters_that_we_do_not_have_are_skipped() {
    let lua = json!({"name": "lua", "typed_config": ext("filters.http.lua.v3.Lua", json!({})), "is_optional": true});
    let (resource, warnings) = convert(&http("/http_filters", json!([lua, router()]))).unwrap();
    assert_eq!(
        warnings,
        ["filter_chains[0].filters[0].typed_config[HttpConnectionManager].http_filters[0].typed_config: \
          envoy.extensions.filters.http.lua.v3.Lua not supported (supported: Router, RBAC, LocalRateLimit); skipped, as \
          it is optional"]
    );
    let Resource::Listener(listener) = resource else { panic!("not a listener") };
    let crate::config::listener::Terminal::Http(http) = &listener.chains[0].terminal else { panic!("not HTTP") };
    assert!(http.filters.is_empty());
}

#[test]
fn defaults_that_are_written_out_are_no_more_than_defaults() {
    for (pointer, value) in [
        ("/lb_subset_config", Value::Null),
        ("/protocol_selection", json!("USE_CONFIGURED_PROTOCOL")),
        ("/connection_pool_per_downstream_connection", json!(false)),
        ("/lb_policy", json!("ROUND_ROBIN")),
    ] {
        assert_eq!(errors(&with(&cluster(), pointer, value)), "", "{pointer}");
    }
    assert_eq!(errors(&http("/skip_xff_append", json!(false))), "");
    assert_eq!(errors(&http("/forward_client_cert_details", json!("SANITIZE"))), "");
}
