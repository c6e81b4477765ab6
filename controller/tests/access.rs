//! Whom the rendered rules let through, asked request by request: first route that matches, then that route's rules, as a
//! proxy does it. The answer must be the plain union of what the TrafficTargets say.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Rbac, permission, principal};
use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, Route, RouteConfiguration, header_matcher::HeaderMatchSpecifier, route_match::PathSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::RbacPerRoute;
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, path_matcher, string_matcher::MatchPattern};
use oxmesh_controller::api::{self, Objects};
use oxmesh_controller::identity::{ServiceIdentity, SidecarIdentity};
use oxmesh_controller::mesh::Mesh;
use oxmesh_controller::settings::Settings;
use oxmesh_controller::xds::Kind;
use oxmesh_controller::xds::build::{Issued, build};
use prost::Message;
use serde_json::{Value, json};

/// A request and who makes it.
struct Request<'a> {
    client: &'a str,
    method: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Answer {
    Served,
    Forbidden,
    NoRoute,
}

fn mesh_objects(groups: Value, targets: &[(&str, Value)]) -> Objects {
    let mut objects = Objects::default();
    let mut add = |value: Value| assert!(!objects.insert(api::parse(value).unwrap().object));
    add(json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"openservicemesh.io/monitored-by": "osm"}}}));
    add(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}));
    add(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-0", "namespace": "shop", "labels": {"app": "web", "osm-proxy-uuid": "u"}},
        "spec": {"serviceAccountName": "web", "containers": []}, "status": {"podIP": "10.0.0.1"}}));
    add(json!({"apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup",
        "metadata": {"name": "g", "namespace": "shop"}, "spec": {"matches": groups}}));
    for (i, (client, rules)) in targets.iter().enumerate() {
        add(json!({"apiVersion": "access.smi-spec.io/v1alpha3", "kind": "TrafficTarget",
            "metadata": {"name": format!("t{i}"), "namespace": "shop"},
            "spec": {"destination": {"kind": "ServiceAccount", "name": "web"}, "rules": rules,
                     "sources": [{"kind": "ServiceAccount", "name": client}]}}));
    }
    objects
}

fn routes(objects: &Objects) -> Vec<Route> {
    let mesh = Mesh::build(objects, &Settings::default()).mesh;
    let proxy = SidecarIdentity { uuid: "u".into(), service: ServiceIdentity::new("shop", "web") };
    let resources = build(&mesh, &proxy, &Issued { chain_pem: "", key_pem: "", roots_pem: "" }).unwrap();
    let any = &resources.of(Kind::Route)["rds-inbound.8080"];
    let config = RouteConfiguration::decode(any.value.as_slice()).unwrap();
    config.virtual_hosts.into_iter().next().unwrap().routes
}

fn ask(routes: &[Route], request: &Request<'_>) -> Answer {
    let Some(route) = routes.iter().find(|route| matches(route, request)) else { return Answer::NoRoute };
    let config = &route.typed_per_filter_config["envoy.filters.http.rbac"];
    let rules = RbacPerRoute::decode(config.value.as_slice()).unwrap().rbac.unwrap().rules.unwrap();
    if allows(&rules, request) { Answer::Served } else { Answer::Forbidden }
}

fn matches(route: &Route, request: &Request<'_>) -> bool {
    let m = route.r#match.as_ref().unwrap();
    let Some(PathSpecifier::SafeRegex(path)) = &m.path_specifier else { panic!("a path of another kind") };
    whole(&path.regex, request.path) && m.headers.iter().all(|h| header(h, request))
}

fn header(matcher: &HeaderMatcher, request: &Request<'_>) -> bool {
    let Some(HeaderMatchSpecifier::StringMatch(value)) = &matcher.header_match_specifier else { panic!("deprecated") };
    if matcher.name == ":method" {
        return text(value, request.method);
    }
    request.headers.iter().any(|(name, given)| *name == matcher.name && text(value, given))
}

fn text(matcher: &StringMatcher, value: &str) -> bool {
    match matcher.match_pattern.as_ref().unwrap() {
        MatchPattern::SafeRegex(regex) => whole(&regex.regex, value),
        MatchPattern::Exact(exact) => exact == value,
        other => panic!("{other:?}"),
    }
}

fn whole(expression: &str, text: &str) -> bool {
    regex::Regex::new(&format!("^(?:{expression})$")).unwrap().is_match(text)
}

fn allows(rules: &Rbac, request: &Request<'_>) -> bool {
    let policy = |p: &Policy| {
        p.permissions.iter().any(|p| permission(p, request))
            && p.principals.iter().any(|p| match &p.identifier {
                Some(principal::Identifier::Authenticated(name)) => {
                    text(name.principal_name.as_ref().unwrap(), &format!("{}.shop.cluster.local", request.client))
                }
                other => panic!("{other:?}"),
            })
    };
    rules.policies.values().any(policy)
}

fn permission(p: &Permission, request: &Request<'_>) -> bool {
    match p.rule.as_ref().unwrap() {
        permission::Rule::Any(any) => *any,
        permission::Rule::AndRules(set) => set.rules.iter().all(|p| permission(p, request)),
        permission::Rule::Header(matcher) => header(matcher, request),
        permission::Rule::UrlPath(path) => match path.rule.as_ref().unwrap() {
            path_matcher::Rule::Path(path) => text(path, request.path),
        },
        other => panic!("{other:?}"),
    }
}

fn group(names: &[&str]) -> Value {
    json!([{"kind": "HTTPRouteGroup", "name": "g", "matches": names}])
}

#[test]
fn overlapping_targets_are_a_union_and_not_first_match() {
    let groups = json!([
        {"name": "all"},
        {"name": "api", "pathRegex": "/api/.*"},
        {"name": "read", "pathRegex": "/api/items", "methods": ["GET"]},
        {"name": "beta", "pathRegex": "/api/.*", "headers": [{"x-beta": "yes"}]},
    ]);
    let says: BTreeMap<&str, Vec<&str>> = BTreeMap::from([
        ("root", vec!["all"]),
        ("svc", vec!["api"]),
        ("reader", vec!["read"]),
        ("tester", vec!["beta", "read"]),
    ]);
    let targets: Vec<(&str, Value)> = says.iter().map(|(client, names)| (*client, group(names))).collect();
    let routes = routes(&mesh_objects(groups, &targets));
    let by_rule = |name: &str, r: &Request<'_>| match name {
        "all" => true,
        "api" => r.path.starts_with("/api/"),
        "read" => r.path == "/api/items" && r.method == "GET",
        "beta" => r.path.starts_with("/api/") && r.headers.contains(&("x-beta", "yes")),
        other => panic!("{other}"),
    };
    for client in ["root", "svc", "reader", "tester", "stranger"] {
        for method in ["GET", "POST"] {
            for path in ["/api/items", "/api/other", "/api/items/1", "/else"] {
                for headers in [&[][..], &[("x-beta", "yes")][..], &[("x-beta", "no")][..]] {
                    let request = Request { client, method, path, headers };
                    let allowed = says.get(client).is_some_and(|names| names.iter().any(|n| by_rule(n, &request)));
                    let expected = if allowed { Answer::Served } else { Answer::Forbidden };
                    assert_eq!(ask(&routes, &request), expected, "{client} {method} {path} {headers:?}");
                }
            }
        }
    }
}

#[test]
fn paths_and_headers_match_as_a_whole() {
    let groups = json!([{"name": "books", "pathRegex": "/books", "headers": [{"user-agent": "curl/.*"}]}]);
    let routes = routes(&mesh_objects(groups, &[("a", group(&["books"]))]));
    let ask =
        |path, agent| ask(&routes, &Request { client: "a", method: "GET", path, headers: &[("user-agent", agent)] });
    assert_eq!(ask("/books", "curl/8"), Answer::Served);
    assert_eq!(ask("/books/1", "curl/8"), Answer::NoRoute);
    assert_eq!(ask("/my/books", "curl/8"), Answer::NoRoute);
    assert_eq!(ask("/books", "my curl/8"), Answer::NoRoute);
}

#[test]
fn a_rule_without_matches_allows_all_of_its_group() {
    let groups = json!([{"name": "a", "pathRegex": "/a"}, {"name": "b", "pathRegex": "/b", "methods": ["POST"]}]);
    let routes = routes(&mesh_objects(groups, &[("c", json!([{"kind": "HTTPRouteGroup", "name": "g"}]))]));
    let ask = |method, path| ask(&routes, &Request { client: "c", method, path, headers: &[] });
    assert_eq!(
        (ask("GET", "/a"), ask("POST", "/b"), ask("GET", "/b")),
        (Answer::Served, Answer::Served, Answer::NoRoute)
    );
}

#[test]
fn a_broken_rule_allows_nothing_and_disturbs_no_other_target() {
    let groups = json!([{"name": "bad", "pathRegex": "/("}, {"name": "good", "pathRegex": "/good"}]);
    let targets = [("x", group(&["bad"])), ("y", group(&["good", "missing"])), ("z", json!([]))];
    let objects = mesh_objects(groups, &targets);
    let routes = routes(&objects);
    let ask = |client, path| ask(&routes, &Request { client, method: "GET", path, headers: &[] });
    assert_eq!(
        (ask("y", "/good"), ask("x", "/good"), ask("z", "/good")),
        (Answer::Served, Answer::Forbidden, Answer::Forbidden)
    );
    let findings = Mesh::build(&objects, &Settings::default()).findings;
    let said: Vec<String> = findings.iter().filter(|f| !f.field.contains("source")).map(ToString::to_string).collect();
    assert_eq!(said.len(), 3, "{said:#?}");
}
