//! OSM's rules, and the places where we differ from them: objects in, what the sidecars get out.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "the helpers are shared")]

mod world;

use envoy_types::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::Rule;
use envoy_types::pb::envoy::config::route::v3::{
    Route, route::Action, route_action::ClusterSpecifier, route_match::PathSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::RbacPerRoute;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, tcp_proxy::ClusterSpecifier as TcpClusters,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret;
use envoy_types::pb::google::protobuf::Any;
use oxmesh_controller::identity::{ServiceIdentity, SidecarIdentity};
use oxmesh_controller::xds::Kind;
use oxmesh_controller::xds::build::{Issued, SERVICE_CERT_FILE, build, build_key_in_pod};
use prost::Message as _;
use serde_json::{Value, json};
use world::{Sidecar, World, address, config, filter, object, permissive, pod, policy, service, shop, target};

const IN: &str = "inbound-listener";
const OUT: &str = "outbound-listener";

/// Names of the policies on the connections of a chain.
fn connection_policies(world: &World, chain: &str) -> Vec<String> {
    let chain = world.sidecar("web-0").chain(IN, chain);
    let rbac: NetworkRbac = filter(&chain, "l4_rbac").unwrap();
    let mut names: Vec<String> = rbac.rules.unwrap().policies.into_keys().collect();
    names.sort();
    names
}

/// Clusters and weights of the first route of a virtual host.
fn shares(world: &World, pod: &str, routes: &str, host: &str) -> Vec<Vec<(String, u32)>> {
    let config = world.sidecar(pod).routes(routes);
    let host = config.virtual_hosts.into_iter().find(|h| h.name.ends_with(host)).unwrap();
    let one = |route: envoy_types::pb::envoy::config::route::v3::Route| match route.action {
        Some(Action::Route(action)) => match action.cluster_specifier {
            Some(ClusterSpecifier::WeightedClusters(all)) => {
                all.clusters.into_iter().map(|c| (c.name, c.weight.unwrap().value)).collect()
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    host.routes.into_iter().map(one).collect()
}

#[test]
fn a_tcp_port_is_shut_to_a_target_with_http_rules_alone() {
    let world = shop(&[target("client", "web", "HTTPRouteGroup", "all")]);
    assert_eq!(connection_policies(&world, "inbound_shop/web_8080_http"), ["shop/client-web-all"]);
    assert_eq!(connection_policies(&world, "inbound_shop/web_5432_tcp"), [""; 0]);
}

#[test]
fn a_tcp_port_is_shut_without_any_target_and_open_to_a_tcp_route() {
    assert_eq!(connection_policies(&shop(&[]), "inbound_shop/web_5432_tcp"), [""; 0]);
    let world = shop(&[target("client", "web", "TCPRoute", "tcp")]);
    assert_eq!(connection_policies(&world, "inbound_shop/web_5432_tcp"), ["shop/client-web-tcp"]);
}

#[test]
fn a_target_speaks_for_its_own_namespace_only() {
    let foreign = object(
        "access.smi-spec.io/v1alpha3",
        "TrafficTarget",
        "shop",
        "t",
        json!({
        "destination": {"kind": "ServiceAccount", "name": "web", "namespace": "elsewhere"},
        "sources": [{"kind": "ServiceAccount", "name": "client"}], "rules": [{"kind": "TCPRoute", "name": "tcp"}]}),
    );
    let world = shop(&[foreign]);
    assert!(world.said().contains(&"TrafficTarget t spec.destination.namespace".to_owned()), "{:?}", world.said());
    assert_eq!(world.sidecar("client-0").names(Kind::Cluster), [""; 0]);
}

#[test]
fn who_may_call_nobody_has_a_listener_that_refuses_all() {
    let listener = shop(&[]).sidecar("client-0").listener(OUT);
    assert!(listener.default_filter_chain.is_none());
    let [chain] = listener.filter_chains.as_slice() else { panic!("{:?}", listener.filter_chains) };
    assert_eq!(chain.filter_chain_match.as_ref().unwrap().destination_port.unwrap().value, 15001);
    let rbac: NetworkRbac = filter(chain, "l4_rbac").unwrap();
    assert!(rbac.rules.unwrap().policies.is_empty());
}

#[test]
fn permissive_mode_allows_all_and_has_no_rules_on_connections() {
    let world = shop(&[permissive()]);
    let chain = world.sidecar("web-0").chain(IN, "inbound_shop/web_5432_tcp");
    assert!(filter::<NetworkRbac>(&chain, "l4_rbac").is_none());
    assert_eq!(world.sidecar("client-0").endpoints("shop/web|8080"), ["10.0.0.1:8080"]);
}

#[test]
fn endpoints_are_only_pods_that_the_source_may_call() {
    let old = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "old", "namespace": "shop", "labels": {"app": "web", "osm-proxy-uuid": "old"}},
        "spec": {"serviceAccountName": "old", "containers": []}, "status": {"podIP": "10.0.0.2"}});
    let world = shop(&[old, target("client", "web", "HTTPRouteGroup", "all")]);
    assert_eq!(world.sidecar("client-0").endpoints("shop/web|8080"), ["10.0.0.1:8080"]);
}

#[test]
fn a_service_without_pods_trusts_nobody() {
    let world = shop(&[permissive(), service("empty", "nothing", "10.96.0.7", json!([{"port": 80}]))]);
    let secret = world.sidecar("client-0").secret("root-cert-for-mtls-outbound:shop/empty");
    let Some(secret::Type::ValidationContext(context)) = secret.r#type else { panic!("{secret:?}") };
    assert_eq!(context.match_typed_subject_alt_names.len(), 1);
}

#[test]
fn a_service_without_address_gets_no_chain_instead_of_one_for_all_addresses() {
    let world = shop(&[permissive(), service("new", "web", "", json!([{"port": 9999}]))]);
    assert!(!world.sidecar("client-0").chains(OUT).iter().any(|c| c.contains("9999")));
    assert_eq!(world.said(), ["Service new spec.clusterIP"]);
}

#[test]
fn ports_that_lead_to_one_target_share_a_chain_and_their_hosts() {
    let world = shop(&[service(
        "two",
        "web",
        "10.96.0.8",
        json!([{"name": "a", "port": 80, "targetPort": 8080}, {"name": "b", "port": 81, "targetPort": 8080}]),
    )]);
    let sidecar = world.sidecar("web-0");
    let of_two = |c: &&String| c.starts_with("inbound_shop/two_");
    assert_eq!(sidecar.chains(IN).iter().filter(of_two).count(), 1);
    let host = sidecar.routes("rds-inbound.8080").virtual_hosts.into_iter().find(|h| h.name.contains("|two.")).unwrap();
    for domain in ["two", "two:80", "two:81", "two.shop.svc.cluster.local:81"] {
        assert!(host.domains.iter().any(|d| d == domain), "{domain} is missing in {:?}", host.domains);
    }
}

#[test]
fn pods_of_a_headless_service_are_services_of_their_own_if_they_have_names() {
    let named = |name: &str, ip: &str| {
        let mut pod = pod(name, "db", &[ip]);
        pod["spec"]["hostname"] = json!(name);
        pod["spec"]["subdomain"] = json!("db");
        pod
    };
    let db = service("db", "db", "None", json!([{"name": "tcp", "port": 5432}]));
    let world = shop(&[permissive(), db.clone(), named("db-0", "10.0.1.1"), named("db-1", "10.0.1.2")]);
    let client = world.sidecar("client-0");
    assert_eq!(client.endpoints("shop/db-1.db|5432"), ["10.0.1.2:5432"]);
    let chains = client.chains(OUT);
    assert!(chains.contains(&"outbound_shop/db-1.db_5432_tcp".to_owned()), "{chains:?}");
    assert!(!chains.contains(&"outbound_shop/db_5432_tcp".to_owned()), "each address has one chain: {chains:?}");

    let world = shop(&[permissive(), db, pod("db-a", "db", &["10.0.1.1"]), pod("db-b", "db", &["10.0.1.2"])]);
    let client = world.sidecar("client-0");
    assert_eq!(client.endpoints("shop/db|5432"), ["10.0.1.1:5432", "10.0.1.2:5432"]);
    let ranges = client.chain(OUT, "outbound_shop/db_5432_tcp").filter_chain_match.unwrap().prefix_ranges;
    assert_eq!(ranges.iter().map(|r| r.address_prefix.as_str()).collect::<Vec<_>>(), ["10.0.1.1", "10.0.1.2"]);
}

#[test]
fn a_headless_service_answers_to_its_own_name_too() {
    let mut named = pod("api-0", "api", &["10.0.1.1"]);
    named["spec"]["hostname"] = json!("api-0");
    named["spec"]["subdomain"] = json!("api");
    let world = shop(&[permissive(), service("api", "api", "None", json!([{"port": 80}])), named]);
    let whole = shares(&world, "client-0", "rds-outbound.80", "|api.shop.svc.cluster.local");
    assert_eq!(whole, [vec![("shop/api|80".to_owned(), 100)]]);
    assert_eq!(world.sidecar("client-0").endpoints("shop/api|80"), ["10.0.1.1:80"]);
    assert_eq!(world.sidecar("api-0").chains(IN), ["inbound_shop/api-0.api_80_http", "inbound_shop/api_80_http"]);
}

#[test]
fn endpoint_slices_say_who_is_ready_and_what_a_named_port_is() {
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "named-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "named"}},
        "ports": [{"name": "http", "port": 7777}],
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                      {"addresses": ["10.0.0.9"], "conditions": {"ready": false}},
                      {"addresses": ["192.0.2.1"]}]});
    let named = service("named", "web", "10.96.0.5", json!([{"name": "http", "port": 80, "targetPort": "web"}]));
    let world = shop(&[permissive(), named, slice]);
    assert_eq!(world.sidecar("client-0").endpoints("shop/named|7777"), ["10.0.0.1:7777"]);
    assert!(world.said().contains(&"Service named spec.selector".to_owned()), "a stranger's address is reported");
}

#[test]
fn a_service_without_selector_belongs_to_the_pods_of_its_namespace_that_slices_list() {
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "hand-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "hand"}},
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.9.1"]}]});
    let mut hand = service("hand", "web", "10.96.0.7", json!([{"name": "http", "port": 80, "targetPort": 8080}]));
    hand["spec"].as_object_mut().unwrap().remove("selector");
    let mut elsewhere = pod("far-0", "far", &["10.0.9.1"]);
    elsewhere["metadata"]["namespace"] = json!("far");
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "far", "labels": {"openservicemesh.io/monitored-by": "osm"}}});
    let world = shop(&[permissive(), hand, slice, namespace, elsewhere]);
    assert_eq!(world.sidecar("client-0").endpoints("shop/hand|8080"), ["10.0.0.1:8080"]);
    assert!(world.sidecar("web-0").chains(IN).contains(&"inbound_shop/hand_8080_http".to_owned()));
    assert!(world.said().contains(&"Service hand spec.selector".to_owned()), "a pod of another namespace is reported");
}

#[test]
fn a_named_port_is_the_pods_own() {
    let mut other = pod("web-1", "web", &["10.0.0.2"]);
    other["spec"]["containers"] = json!([{"name": "c", "ports": [{"name": "web", "containerPort": 9090}]}]);
    let named = service("named", "web", "10.96.0.5", json!([{"name": "http", "port": 80, "targetPort": "web"}]));
    let world = shop(&[permissive(), other, named]);
    let chains = world.sidecar("web-1").chains(IN);
    assert!(chains.contains(&"inbound_shop/named_9090_http".to_owned()), "{chains:?}");
    assert_eq!(world.said(), [""; 0]);
}

#[test]
fn with_two_address_families_listeners_take_both_and_endpoints_count_once() {
    let mut both = service("both", "six", "10.96.0.6", json!([{"port": 80}]));
    both["spec"]["clusterIPs"] = json!(["10.96.0.6", "fd00:96::6"]);
    let world = shop(&[permissive(), both, pod("six-0", "six", &["10.0.0.6", "fd00::6"])]);
    let client = world.sidecar("client-0");
    assert_eq!(client.endpoints("shop/both|80"), ["10.0.0.6:80"]);
    let ranges = client.chain(OUT, "outbound_shop/both_80_http").filter_chain_match.unwrap().prefix_ranges;
    let ranges: Vec<_> = ranges.iter().map(|r| (r.address_prefix.as_str(), r.prefix_len.unwrap().value)).collect();
    assert_eq!(ranges, [("10.96.0.6", 32), ("fd00:96::6", 128)]);
    assert_eq!(address(world.sidecar("six-0").listener(IN).address.unwrap()), ":::15003");
    assert_eq!(address(client.listener(OUT).address.unwrap()), "0.0.0.0:15001");
}

#[test]
fn a_pod_with_ipv6_alone_reaches_its_application_there() {
    let six = service("six", "six", "fd00:96::6", json!([{"port": 80}]));
    let world = shop(&[permissive(), six, pod("six-0", "six", &["fd00::6"])]);
    let cluster = world.sidecar("six-0").cluster("shop/six|80|local");
    let endpoints = cluster.load_assignment.unwrap().endpoints;
    assert!(format!("{endpoints:?}").contains("\"::1\""));
    assert_eq!(world.sidecar("client-0").endpoints("shop/six|80"), ["fd00::6:80"]);
}

#[test]
fn ports_whose_chains_are_chosen_by_address_are_not_inspected() {
    let ports = json!([
        {"name": "a", "port": 3306, "appProtocol": "tcp-server-first"},
        {"name": "b", "port": 25, "appProtocol": "smtp"},
        {"name": "tcp-c", "port": 7000},
        {"name": "http-d", "port": 7001},
    ]);
    let world = shop(&[permissive(), service("greeters", "web", "10.96.0.3", ports)]);
    let filters = world.sidecar("client-0").listener(OUT).listener_filters;
    assert!(filters[0].filter_disabled.is_none(), "the original destination is always needed");
    for inspector in &filters[1..] {
        let Some(Rule::OrMatch(set)) = &inspector.filter_disabled.as_ref().unwrap().rule else { panic!() };
        let ranges: Vec<_> = set
            .rules
            .iter()
            .map(|r| match &r.rule {
                Some(Rule::DestinationPortRange(range)) => (range.start, range.end),
                other => panic!("{other:?}"),
            })
            .collect();
        for port in [25, 3306, 7000] {
            assert!(ranges.contains(&(port, port + 1)), "{port} is inspected: {ranges:?}");
        }
        assert!(!ranges.contains(&(7001, 7002)) && !ranges.contains(&(80, 81)), "HTTP passes uninspected: {ranges:?}");
    }
}

fn split(name: &str, root: &str, backends: Value) -> Value {
    object("split.smi-spec.io/v1alpha2", "TrafficSplit", "shop", name, json!({"service": root, "backends": backends}))
}

fn leaves() -> [Value; 4] {
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp-db", "port": 5432}]);
    [
        permissive(),
        service("blue", "web", "10.96.0.11", ports.clone()),
        service("green", "web", "10.96.0.12", ports),
        service("bare", "web", "10.96.0.13", json!([{"name": "http", "port": 80, "targetPort": 8080}])),
    ]
}

fn with_leaves(more: &[Value]) -> World {
    shop(&leaves().into_iter().chain(more.iter().cloned()).collect::<Vec<_>>())
}

#[test]
fn a_split_shares_http_and_tcp_by_weight_and_the_root_may_be_a_backend() {
    let backends =
        json!([{"service": "web", "weight": 70}, {"service": "blue", "weight": 30}, {"service": "green", "weight": 0}]);
    let world = with_leaves(&[split("s", "web.shop.svc.cluster.local", backends)]);
    let http = shares(&world, "client-0", "rds-outbound.80", "|web.shop.svc.cluster.local");
    let weight = |name: &str, weight: u32| (format!("shop/{name}|8080"), weight);
    assert_eq!(http, [vec![weight("blue", 30), weight("green", 0), weight("web", 70)]]);
    let chain = world.sidecar("client-0").chain(OUT, "outbound_shop/web_5432_tcp");
    let tcp: TcpProxy = filter(&chain, "tcp_proxy").unwrap();
    let Some(TcpClusters::WeightedClusters(tcp)) = tcp.cluster_specifier else { panic!("{tcp:?}") };
    let tcp: Vec<_> = tcp.clusters.into_iter().map(|c| (c.name, c.weight)).collect();
    assert_eq!(tcp, [("shop/blue|5432".to_owned(), 30), ("shop/web|5432".to_owned(), 70)]);
}

#[test]
fn a_backend_without_the_roots_port_loses_its_share_there_and_it_is_said() {
    let backends = json!([{"service": "blue", "weight": 1}, {"service": "bare", "weight": 1}]);
    let world = with_leaves(&[split("s", "web", backends)]);
    assert_eq!(shares(&world, "client-0", "rds-outbound.80", "|web.shop.svc.cluster.local")[0].len(), 2);
    let chain = world.sidecar("client-0").chain(OUT, "outbound_shop/web_5432_tcp");
    let tcp: TcpProxy = filter(&chain, "tcp_proxy").unwrap();
    assert_eq!(tcp.cluster_specifier, Some(TcpClusters::Cluster("shop/blue|5432".to_owned())));
    assert_eq!(world.said(), ["TrafficSplit s spec.backends"]);
}

#[test]
fn a_split_without_weights_or_without_services_leaves_the_root_alone() {
    for backends in [json!([{"service": "blue", "weight": 0}]), json!([]), json!([{"service": "nobody", "weight": 5}])]
    {
        let world = with_leaves(&[split("s", "web", backends.clone())]);
        let http = shares(&world, "client-0", "rds-outbound.80", "|web.shop.svc.cluster.local");
        assert_eq!(http, [vec![("shop/web|8080".to_owned(), 100)]], "{backends}");
        assert!(!world.findings.is_empty(), "{backends}");
    }
}

#[test]
fn the_first_split_of_a_root_counts_and_the_second_is_reported() {
    let one = |name: &str, leaf: &str| split(name, "web", json!([{"service": leaf, "weight": 1}]));
    let world = with_leaves(&[one("a", "blue"), one("b", "green")]);
    let http = shares(&world, "client-0", "rds-outbound.80", "|web.shop.svc.cluster.local");
    assert_eq!(http, [vec![("shop/blue|8080".to_owned(), 1)]]);
    assert_eq!(world.said(), ["TrafficSplit b spec.service"]);
}

#[test]
fn a_split_with_matches_takes_only_these_requests() {
    let groups = object(
        "specs.smi-spec.io/v1alpha4",
        "HTTPRouteGroup",
        "shop",
        "beta",
        json!({"matches": [{"name": "b", "headers": [{"x-beta": "yes"}]}]}),
    );
    let split = object(
        "split.smi-spec.io/v1alpha4",
        "TrafficSplit",
        "shop",
        "s",
        json!({
        "service": "web", "backends": [{"service": "blue", "weight": 1}], "matches": [{"kind": "HTTPRouteGroup", "name": "beta"}]}),
    );
    let world = with_leaves(&[groups, split]);
    let http = shares(&world, "client-0", "rds-outbound.80", "|web.shop.svc.cluster.local");
    assert_eq!(http, [vec![("shop/blue|8080".to_owned(), 1)], vec![("shop/web|8080".to_owned(), 100)]]);
}

#[test]
fn a_root_without_pods_is_reached_through_its_backends() {
    let mut root = service("root", "nothing", "10.96.0.20", json!([{"port": 80, "targetPort": 8080}]));
    root["spec"].as_object_mut().unwrap().remove("selector");
    let world = shop(&[
        root,
        split("s", "root", json!([{"service": "web", "weight": 1}])),
        target("client", "web", "HTTPRouteGroup", "all"),
    ]);
    assert!(world.sidecar("client-0").chains(OUT).contains(&"outbound_shop/root_80_http".to_owned()));
    let http = shares(&world, "client-0", "rds-outbound.80", "|root.shop.svc.cluster.local");
    assert_eq!(http, [vec![("shop/web|8080".to_owned(), 1)]]);
}

#[test]
fn a_backend_that_may_not_be_called_has_no_endpoints() {
    let world = shop(&[
        pod("other-0", "other", &["10.0.0.3"]),
        service("other", "other", "10.96.0.4", json!([{"port": 80, "targetPort": 8080}])),
        split("s", "web", json!([{"service": "web", "weight": 1}, {"service": "other", "weight": 1}])),
        target("client", "web", "HTTPRouteGroup", "all"),
    ]);
    let client = world.sidecar("client-0");
    assert_eq!(client.endpoints("shop/other|8080"), [""; 0]);
    assert!(!client.chains(OUT).iter().any(|c| c.contains("/other_")));
}

fn ingress(name: &str, port: Value, tls: Value, sources: Value) -> Value {
    policy("IngressBackend", name, json!({"backends": [{"name": "web", "port": port, "tls": tls}], "sources": sources}))
}

fn ways_in(world: &World) -> Vec<String> {
    world.sidecar("web-0").chains(IN).into_iter().filter(|c| c.starts_with("ingress_")).collect()
}

#[test]
fn an_ingress_that_nothing_limits_stays_shut_and_says_why() {
    let https = json!({"number": 8080, "protocol": "https"});
    let http = json!({"number": 8080, "protocol": "http"});
    let range = json!([{"kind": "IPRange", "name": "10.9.0.0/16"}]);
    let principal = json!([{"kind": "AuthenticatedPrincipal", "name": "gw.shop.cluster.local"}]);
    let table = [
        (https.clone(), json!({}), range.clone(), false),
        (https.clone(), json!({}), principal.clone(), true),
        (https.clone(), json!({"skipClientCertValidation": true}), range.clone(), true),
        (https.clone(), json!({"skipClientCertValidation": true}), json!([]), false),
        (https.clone(), json!({"skipClientCertValidation": true}), principal.clone(), false),
        (https, json!({}), json!([{"kind": "IPrange", "name": "10.9.0.0/16"}, principal[0]]), false),
        (http.clone(), json!({}), range, true),
        (http.clone(), json!({}), principal, false),
        (http, json!({}), json!([{"kind": "IPRange", "name": "10.9.0.0"}]), false),
    ];
    for (port, tls, sources, open) in table {
        let world = shop(&[ingress("i", port.clone(), tls.clone(), sources.clone())]);
        assert_eq!(ways_in(&world).len(), usize::from(open), "{port} {tls} {sources}");
        assert_eq!(world.findings.is_empty(), open, "{port} {tls} {sources}: {:?}", world.said());
    }
}

#[test]
fn an_ingress_for_some_requests_stays_shut_as_long_as_requests_are_not_told_apart() {
    let port = json!({"number": 8080, "protocol": "http"});
    let mut some = ingress("i", port, json!({}), json!([{"kind": "IPRange", "name": "10.9.0.0/16"}]));
    some["spec"]["matches"] = json!([{"kind": "HTTPRouteGroup", "name": "all"}]);
    let world = shop(&[some]);
    assert_eq!((ways_in(&world).len(), world.said()), (0, vec!["IngressBackend i spec.matches".to_owned()]));
}

#[test]
fn two_ways_into_one_pod_have_routes_of_their_own() {
    let one = |name: &str, range: &str| {
        ingress(
            name,
            json!({"number": 8080, "protocol": "http"}),
            json!({}),
            json!([{"kind": "IPRange", "name": range}]),
        )
    };
    let world = shop(&[one("a", "10.9.0.0/16"), one("b", "10.8.0.0/16")]);
    assert_eq!(ways_in(&world).len(), 2);
    let web = world.sidecar("web-0");
    let routes: Vec<&str> = web.names(Kind::Route).into_iter().filter(|n| n.starts_with("rds-ingress")).collect();
    assert_eq!(routes, ["rds-ingress.shop/a.shop/web|8080", "rds-ingress.shop/b.shop/web|8080"]);
}

#[test]
fn two_services_opened_to_the_same_clients_on_one_pod_are_one_way_in() {
    let second = service("again", "web", "10.96.0.14", json!([{"name": "http", "port": 80, "targetPort": 8080}]));
    let mut other = ingress(
        "b",
        json!({"number": 8080, "protocol": "http"}),
        json!({}),
        json!([{"kind": "IPRange", "name": "10.9.0.0/16"}]),
    );
    other["spec"]["backends"][0]["name"] = json!("again");
    let ranges = json!([{"kind": "IPRange", "name": "10.8.0.0/16"}, {"kind": "IPRange", "name": "10.9.0.0/16"}]);
    let world = shop(&[second, ingress("a", json!({"number": 8080, "protocol": "http"}), json!({}), ranges), other]);
    assert_eq!(ways_in(&world), ["ingress_shop/again_8080_http"]);
    assert_eq!(world.said(), ["IngressBackend a spec.backends"]);
}

#[test]
fn egress_to_the_address_of_a_service_goes_through_the_mesh() {
    let egress = policy(
        "Egress",
        "e",
        json!({"sources": [{"kind": "ServiceAccount", "name": "client", "namespace": "shop"}],
        "ipAddresses": ["10.96.0.1/32", "192.0.2.1/32"], "ports": [{"number": 5432, "protocol": "tcp"}]}),
    );
    let world = shop(&[permissive(), egress]);
    let chain = world.sidecar("client-0").chain(OUT, "egress-tcp.5432");
    let ranges = chain.filter_chain_match.unwrap().prefix_ranges;
    assert_eq!(ranges.iter().map(|r| r.address_prefix.as_str()).collect::<Vec<_>>(), ["192.0.2.1"]);
    assert_eq!(world.said(), ["Egress e spec.ipAddresses"]);
}

#[test]
fn names_that_a_proxy_would_refuse_do_not_reach_it() {
    let log = object(
        "policy.openservicemesh.io/v1alpha1",
        "Telemetry",
        "osm-system",
        "t",
        json!({"accessLog": {"format": "%NONSENSE%"}}),
    );
    let world = shop(&[log, config(json!({"sidecar": {"ecdhCurves": ["P-256", "P-42"], "cipherSuites": ["RC4"]}}))]);
    let tls = &world.mesh.config().tls;
    assert_eq!((tls.ecdh_curves.as_slice(), tls.cipher_suites.len()), (&["P-256".to_owned()][..], 0));
    let fields: Vec<String> = world.said().iter().map(|s| s.rsplit('.').next().unwrap().to_owned()).collect();
    assert_eq!(fields, ["cipherSuites", "ecdhCurves", "format"]);
    assert_eq!(
        *world.mesh.access_log(world.mesh.workloads().next().unwrap()),
        oxmesh_controller::mesh::AccessLog::Default
    );
}

#[test]
fn an_ingress_names_the_target_port_and_a_mistake_gets_a_hint() {
    let world = shop(&[ingress(
        "i",
        json!({"number": 80, "protocol": "http"}),
        json!({}),
        json!([{"kind": "IPRange", "name": "10.0.0.0/8"}]),
    )]);
    assert!(world.findings[0].message.contains("write 8080"), "{}", world.findings[0]);
}

#[test]
fn retries_need_the_flag_and_apply_to_one_source_and_service() {
    let retry = policy(
        "Retry",
        "r",
        json!({
        "source": {"kind": "ServiceAccount", "name": "client", "namespace": "shop"},
        "destinations": [{"kind": "Service", "name": "web", "namespace": "shop"}],
        "retryPolicy": {"retryOn": "5xx", "numRetries": 3}}),
    );
    let policy_of = |world: &World, pod: &str| {
        let config = world.sidecar(pod).routes("rds-outbound.80");
        match config.virtual_hosts[0].routes[0].action.clone() {
            Some(Action::Route(action)) => action.retry_policy,
            other => panic!("{other:?}"),
        }
    };
    let off = shop(&[permissive(), retry.clone()]);
    assert_eq!(policy_of(&off, "client-0"), None);
    assert_eq!(off.said(), ["Retry r spec"]);
    let on = config(
        json!({"traffic": {"enablePermissiveTrafficPolicyMode": true}, "featureFlags": {"enableRetryPolicy": true}}),
    );
    let on = shop(&[on, retry]);
    assert_eq!(policy_of(&on, "client-0").unwrap().num_retries.unwrap().value, 3);
    assert_eq!(policy_of(&on, "web-0"), None);
}

fn limit(spec: Value) -> Value {
    let mut spec = spec;
    spec["host"] = json!("web.shop.svc.cluster.local");
    policy("UpstreamTrafficSetting", "u", spec)
}

fn requests_per_second(path: &str, requests: u32) -> Value {
    limit(json!({"httpRoutes": [{"path": path, "rateLimit": {"local": {"requests": requests, "unit": "second"}}}]}))
}

/// Paths of the routes in order, whether each has a limit, and how many access rules.
fn inbound_routes(world: &World, config: &str) -> Vec<(String, bool, usize)> {
    let routes = world.sidecar("web-0").routes(config).virtual_hosts.remove(0).routes;
    let one = |route: Route| {
        let Some(PathSpecifier::SafeRegex(path)) = route.r#match.unwrap().path_specifier else { panic!("no path") };
        let rules = RbacPerRoute::decode(route.typed_per_filter_config["envoy.filters.http.rbac"].value.as_slice());
        let rules = rules.unwrap().rbac.unwrap().rules.unwrap().policies.len();
        let limited = route.typed_per_filter_config.contains_key("envoy.filters.http.local_ratelimit");
        (path.regex, limited, rules)
    };
    routes.into_iter().map(one).collect()
}

#[test]
fn a_limit_of_a_path_counts_before_any_route_and_allows_nobody_more() {
    let (all, slow) = (".*".to_owned(), "/slow".to_owned());
    let limit = requests_per_second("/slow", 1);
    let allow = target("client", "web", "HTTPRouteGroup", "all");
    for mode in [allow, permissive()] {
        let world = shop(&[mode, limit.clone()]);
        let routes = inbound_routes(&world, "rds-inbound.8080");
        assert_eq!(routes, [(slow.clone(), true, 1), (all.clone(), false, 1)]);
        assert_eq!(world.said(), [""; 0]);
    }
    assert_eq!(inbound_routes(&shop(&[limit]), "rds-inbound.8080"), [(slow, true, 0)]);
}

#[test]
fn a_route_carries_the_callers_of_later_rules_only_where_they_may_meet() {
    let group = |name: &str, path: &str| {
        let spec = json!({"matches": [{"name": "m", "pathRegex": path}]});
        object("specs.smi-spec.io/v1alpha4", "HTTPRouteGroup", "shop", name, spec)
    };
    let world = shop(&[
        group("a", "/a/.*"),
        group("b", "/b/.*"),
        group("both", "/b/x|/a/x"),
        target("one", "web", "HTTPRouteGroup", "a"),
        target("two", "web", "HTTPRouteGroup", "b"),
        target("three", "web", "HTTPRouteGroup", "both"),
    ]);
    let rules = |path: &str, rules: usize| (path.to_owned(), false, rules);
    let routes = inbound_routes(&world, "rds-inbound.8080");
    assert_eq!(routes, [rules("/a/.*", 2), rules("/b/.*", 2), rules("/b/x|/a/x", 1)]);
}

#[test]
fn what_a_limit_lets_not_pass_is_refused_in_every_way_in() {
    let ranges = json!([{"kind": "IPRange", "name": "10.99.0.0/16"}]);
    let way_in = ingress("i", json!({"number": 8080, "protocol": "http"}), json!({}), ranges);
    let refused = |path: &str| vec![(path.to_owned(), false, 0), (".*".to_owned(), false, 1)];
    let world = shop(&[permissive(), way_in.clone(), requests_per_second("/slow", 0)]);
    for config in ["rds-inbound.8080", "rds-ingress"] {
        assert_eq!(inbound_routes(&world, config), refused("/slow"));
    }
    let whole = limit(json!({"rateLimit": {"local": {"http": {"requests": 1, "unit": "day"}}}}));
    let world = shop(&[permissive(), way_in.clone(), whole]);
    for config in ["rds-inbound.8080", "rds-ingress"] {
        assert_eq!(inbound_routes(&world, config), refused(".*"));
    }
    let tcp = limit(json!({"rateLimit": {"local": {"tcp": {"connections": 0, "unit": "second"}}}}));
    let web = shop(&[permissive(), way_in, tcp]).sidecar("web-0");
    for chain in ["inbound_shop/web_8080_http", "inbound_shop/web_5432_tcp", "ingress_shop/web_8080_http"] {
        let rbac: NetworkRbac = filter(&web.chain(IN, chain), "rate_limit_lets_nothing_pass").unwrap();
        assert!(rbac.rules.unwrap().policies.is_empty());
    }
}

#[test]
fn limits_of_a_service_hold_for_ingress_too() {
    let ranges = json!([{"kind": "IPRange", "name": "10.99.0.0/16"}]);
    let local = json!({"tcp": {"connections": 5, "unit": "second"}, "http": {"requests": 5, "unit": "second"}});
    let world = shop(&[
        ingress("i", json!({"number": 8080, "protocol": "http"}), json!({}), ranges),
        limit(json!({"rateLimit": {"local": local}})),
    ]);
    let web = world.sidecar("web-0");
    let chain = web.chain(IN, "ingress_shop/web_8080_http");
    assert!(chain.filters.iter().any(|f| f.name == "l4_local_rate_limit"));
    let host = web.routes("rds-ingress").virtual_hosts.remove(0);
    assert!(host.typed_per_filter_config.contains_key("envoy.filters.http.local_ratelimit"));
}

#[test]
fn paths_that_come_in_are_brought_into_one_form() {
    let world = shop(&[target("client", "web", "HTTPRouteGroup", "all")]);
    let chain = world.sidecar("web-0").chain(IN, "inbound_shop/web_8080_http");
    let manager: HttpConnectionManager = filter(&chain, "http_connection_manager").unwrap();
    assert!(manager.normalize_path.unwrap().value && manager.merge_slashes);
}

#[test]
fn servers_say_who_answers_unless_told_not_to() {
    let headers = |world: &World| {
        let all = world.sidecar("web-0").routes("rds-inbound.8080").response_headers_to_add;
        all.into_iter().filter_map(|h| h.header).map(|h| format!("{}: {}", h.key, h.value)).collect::<Vec<_>>()
    };
    let on = ["osm-stats-kind: Pod", "osm-stats-name: web-0", "osm-stats-namespace: shop", "osm-stats-pod: web-0"];
    assert_eq!(headers(&shop(&[])), on);
    assert_eq!(headers(&shop(&[config(json!({"featureFlags": {"enableWASMStats": false}}))])), [""; 0]);
}

#[test]
fn the_metrics_port_is_open_only_where_a_pod_asks_for_it() {
    let mut scraped = pod("seen-0", "web", &["10.0.0.4"]);
    scraped["metadata"]["annotations"] = json!({"prometheus.io/scrape": "true"});
    let world = shop(&[scraped]);
    let metrics = world.sidecar("seen-0").listener("inbound-prometheus-listener");
    assert_eq!(address(metrics.address.unwrap()), "0.0.0.0:15010");
    assert!(!world.sidecar("web-0").names(Kind::Listener).contains(&"inbound-prometheus-listener"));
}

#[test]
fn the_narrowest_telemetry_decides_the_access_log() {
    let telemetry = |namespace: &str, name: &str, selector: Value, format: &str| {
        object(
            "policy.openservicemesh.io/v1alpha1",
            "Telemetry",
            namespace,
            name,
            json!({"selector": selector, "accessLog": {"format": format}}),
        )
    };
    let world = shop(&[
        telemetry("osm-system", "mesh", json!({}), "MESH"),
        telemetry("shop", "all", json!({}), "NAMESPACE"),
        telemetry("shop", "web", json!({"app": "web"}), "POD"),
    ]);
    let log = |pod: &str| format!("{:?}", world.sidecar(pod).listener(OUT).access_log);
    let bytes = |text: &str| format!("{:?}", text.as_bytes()).trim_matches(['[', ']']).to_owned();
    let has = |pod: &str, text: &str| log(pod).contains(text) || log(pod).contains(&bytes(text));
    assert!(has("web-0", "POD") && has("client-0", "NAMESPACE"));
}

#[test]
fn a_sidecar_of_another_account_or_namespace_or_with_a_doubled_uuid_gets_nothing() {
    let twin = |name: &str, ip: &str| {
        let mut pod = pod(name, "twin", &[ip]);
        pod["metadata"]["labels"]["osm-proxy-uuid"] = json!("same");
        pod
    };
    let mut outside = pod("out-0", "out", &["10.0.0.7"]);
    outside["metadata"]["namespace"] = json!("elsewhere");
    let world = shop(&[twin("twin-a", "10.0.0.5"), twin("twin-b", "10.0.0.6"), outside]);
    let ask = |uuid: &str, namespace: &str, account: &str| {
        let proxy = SidecarIdentity { uuid: uuid.into(), service: ServiceIdentity::new(namespace, account) };
        build(&world.mesh, &proxy, &Issued { chain_pem: "", key_pem: "", roots_pem: "" }).is_some()
    };
    assert!(ask("web-0", "shop", "web"));
    assert!(!ask("web-0", "shop", "client"));
    assert!(!ask("nobody", "shop", "web"));
    assert!(!ask("same", "shop", "twin"));
    assert!(!ask("out-0", "elsewhere", "out"));
    assert_eq!(world.said().len(), 2, "both pods with the uuid are named");
}

#[test]
fn a_sidecar_with_a_key_of_its_own_reads_its_certificate_from_a_file_and_is_sent_no_key() {
    let world = shop(&[permissive()]);
    for pod in ["web-0", "client-0"] {
        let workload = world.mesh.workloads().find(|w| w.pod.name == pod).unwrap();
        let proxy = SidecarIdentity { uuid: workload.uuid.clone().unwrap(), service: workload.identity.clone() };
        let own = Sidecar(build_key_in_pod(&world.mesh, &proxy, "roots").unwrap());
        let sent = world.sidecar(pod);
        let secret = format!("service-cert:{}", proxy.service);
        let mut expected = sent.names(Kind::Secret);
        expected.retain(|name| *name != secret);
        assert_eq!(own.names(Kind::Secret), expected, "everything but the certificate");
        for name in expected {
            assert_eq!(own.secret(name), sent.secret(name), "roots come over ADS as ever");
        }
        let mut files = 0;
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Secret) {
            assert_eq!(own.names(kind), sent.names(kind));
            for (name, message) in own.0.of(kind) {
                let text = |any: &Any| String::from_utf8_lossy(&any.value).into_owned();
                let (own, sent) = (text(message), text(&sent.0.of(kind)[name]));
                assert_eq!(own.matches(SERVICE_CERT_FILE).count(), sent.matches(&secret).count(), "{name}");
                assert!(!own.contains(&secret), "{name}");
                files += own.matches(SERVICE_CERT_FILE).count();
            }
        }
        assert!(files > 0, "{pod}");
    }
}

#[test]
fn what_mesh_config_asks_for_and_is_not_there_is_said() {
    let spec = json!({
        "traffic": {"inboundExternalAuthorization": {"enable": true}},
        "observability": {"tracing": {"enable": true}},
        "featureFlags": {"enableEnvoyActiveHealthChecks": true},
        "certificate": {"serviceCertValidityDuration": "soon"},
        "sidecar": {"tlsMinProtocolVersion": "TLSv1_0"}});
    let said = shop(&[config(spec)]).said();
    let fields: Vec<&str> = said.iter().map(|s| s.rsplit(' ').next().unwrap()).collect();
    assert_eq!(
        fields,
        [
            "spec.certificate.serviceCertValidityDuration",
            "spec.featureFlags.enableEnvoyActiveHealthChecks",
            "spec.observability.tracing",
            "spec.sidecar.tlsMinProtocolVersion",
            "spec.traffic.inboundExternalAuthorization",
        ]
    );
}

#[test]
fn domains_are_never_there_twice_in_a_route_configuration() {
    // The pod `a` of the headless service `b` and the service `a` of namespace `b` have names in common.
    let mut named = pod("a", "db", &["10.0.1.1"]);
    named["spec"]["hostname"] = json!("a");
    named["spec"]["subdomain"] = json!("b");
    let mut other = service("a", "x", "10.96.1.1", json!([{"port": 80}]));
    other["metadata"]["namespace"] = json!("b");
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "b", "labels": {"openservicemesh.io/monitored-by": "osm"}}});
    let world = shop(&[permissive(), namespace, named, other, service("b", "db", "None", json!([{"port": 80}]))]);
    let config = world.sidecar("client-0").routes("rds-outbound.80");
    let mut domains: Vec<String> = config.virtual_hosts.into_iter().flat_map(|h| h.domains).collect();
    let all = domains.len();
    domains.sort();
    domains.dedup();
    assert_eq!(domains.len(), all);
}

/// `failureModeAllow` says what happens when the service can't be asked; it can't be asked as long as we don't do so.
#[test]
fn asked_for_authorization_that_is_not_there_refuses_requests_unless_told_to_let_them_pass() {
    let ranges = json!([{"kind": "IPRange", "name": "10.99.0.0/16"}]);
    let way_in = ingress("i", json!({"number": 8080, "protocol": "http"}), json!({}), ranges);
    for (allow, chains_with_refusal) in [(json!(null), 2), (json!(false), 2), (json!(true), 0)] {
        let authorization = json!({"enable": true, "address": "opa", "port": 9191, "failureModeAllow": allow});
        let traffic = json!({"enablePermissiveTrafficPolicyMode": true, "inboundExternalAuthorization": authorization});
        let world = shop(&[config(json!({"traffic": traffic})), way_in.clone()]);
        let web = world.sidecar("web-0");
        let refusing = web.chains(IN).into_iter().filter(|name| {
            let rbac: Option<NetworkRbac> = filter(&web.chain(IN, name), "external_authorization_missing");
            rbac.is_some_and(|rbac| rbac.rules.is_some_and(|rules| rules.policies.is_empty()))
        });
        // The HTTP chains of the mesh and of ingress; TCP is not asked about.
        assert_eq!(refusing.count(), chains_with_refusal, "failureModeAllow {allow}");
        assert_eq!(world.said(), ["MeshConfig osm-mesh-config spec.traffic.inboundExternalAuthorization"]);
    }
}

#[test]
fn a_pod_whose_account_reads_as_anothers_sidecar_gets_nothing_and_is_named() {
    let odd = pod("odd", "x.sidecar.web", &["10.0.0.3"]);
    let uuid = odd["metadata"]["labels"]["osm-proxy-uuid"].as_str().unwrap().to_owned();
    let world = shop(&[odd]);
    let proxy = SidecarIdentity { uuid, service: ServiceIdentity::new("shop", "x.sidecar.web") };
    assert!(world.mesh.workload_of(&proxy).is_none());
    assert!(world.said().iter().any(|words| words.contains("spec.serviceAccountName")), "{:?}", world.said());
}

#[test]
fn a_borrowed_uuid_hurts_nobody_of_another_account() {
    let with_uuid = |name: &str, account: &str, ip: &str| {
        let mut pod = pod(name, account, &[ip]);
        pod["metadata"]["labels"]["osm-proxy-uuid"] = json!("shared");
        pod
    };
    let sidecar =
        |account: &str| SidecarIdentity { uuid: "shared".to_owned(), service: ServiceIdentity::new("shop", account) };
    let owner = with_uuid("owner-0", "owner", "10.0.1.1");
    let borrower = with_uuid("borrower-0", "borrower", "10.0.1.2");
    let world = shop(&[owner.clone(), borrower]);
    for account in ["owner", "borrower"] {
        let workload = world.mesh.workload_of(&sidecar(account)).unwrap();
        assert_eq!(workload.pod.name, format!("{account}-0"));
    }
    assert!(world.mesh.workload_of(&sidecar("web")).is_none());

    let world = shop(&[owner, with_uuid("owner-1", "owner", "10.0.1.3")]);
    assert!(world.mesh.workload_of(&sidecar("owner")).is_none(), "the two can't be told apart");
    let said = world.said();
    for name in ["owner-0", "owner-1"] {
        assert!(said.contains(&format!("Pod {name} metadata.labels.osm-proxy-uuid")), "{said:?}");
    }
}
