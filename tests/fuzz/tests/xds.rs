//! Resources of a control plane: whatever bytes come, conversion answers with a resource or with words, and what it takes it
//! takes again.

use bolero::check;
use envoy_types::pb::google::protobuf::Any;
use oxmesh_proxy::xds::convert::{self, ASSIGNMENT, CLUSTER, LISTENER, Options, ROUTES, SECRET};
use prost::Message;

#[test]
fn any_bytes_are_taken_twice_alike_or_refused_with_words() {
    let seeds = seeds();
    check!().with_iterations(5_000).with_type::<(u8, Vec<(u16, u8)>, Vec<u8>)>().for_each(|(which, changes, tail)| {
        let (kind, seed) = &seeds[usize::from(*which) % seeds.len()];
        let mut value = seed.clone();
        for (at, byte) in changes {
            if let Some(place) = value.len().checked_sub(1).map(|last| usize::from(*at) % (last + 1)) {
                value[place] = *byte;
            }
        }
        value.extend(tail);
        let any = Any { type_url: (*kind).to_owned(), value };
        match convert::resource(kind, &any, &Options::SERVER) {
            Ok((resource, _)) => {
                let again = convert::resource(kind, &any, &Options::SERVER);
                assert_eq!(again.map(|(again, _)| again).ok(), Some(resource));
            }
            Err(refused) => assert!(!refused.to_string().is_empty()),
        }
    });
}

/// One small resource of each kind, as real as the types allow.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    use envoy_types::pb::envoy::{
        config::{
            cluster::v3::Cluster,
            core::v3::{Address, SocketAddress, address, socket_address},
            endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint},
            listener::v3::{FilterChain, FilterChainMatch, Listener},
            route::v3::{
                DirectResponseAction, Route, RouteConfiguration, RouteMatch, VirtualHost, route, route_match,
            },
        },
        extensions::transport_sockets::tls::v3::Secret,
    };
    let address = Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: "127.0.0.1".to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(80)),
            ..Default::default()
        })),
    };
    let chain = FilterChain {
        filter_chain_match: Some(FilterChainMatch { server_names: vec!["a.b".to_owned()], ..Default::default() }),
        ..Default::default()
    };
    let listener = Listener {
        name: "l".to_owned(),
        address: Some(address.clone()),
        filter_chains: vec![chain],
        ..Default::default()
    };
    let matched = RouteMatch {
        path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
        ..Default::default()
    };
    let direct = DirectResponseAction { status: 200, ..Default::default() };
    let routes = vec![Route {
        r#match: Some(matched),
        action: Some(route::Action::DirectResponse(direct)),
        ..Default::default()
    }];
    let host = VirtualHost { name: "h".to_owned(), domains: vec!["*".to_owned()], routes, ..Default::default() };
    let table = RouteConfiguration { name: "r".to_owned(), virtual_hosts: vec![host], ..Default::default() };
    let endpoint = Endpoint { address: Some(address), ..Default::default() };
    let endpoint = LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)),
        ..Default::default()
    };
    let locality = LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() };
    let assignment =
        ClusterLoadAssignment { cluster_name: "c".to_owned(), endpoints: vec![locality], ..Default::default() };
    let cluster =
        Cluster { name: "c".to_owned(), load_assignment: Some(assignment.clone()), ..Default::default() };
    vec![
        (LISTENER, listener.encode_to_vec()),
        (ROUTES, table.encode_to_vec()),
        (CLUSTER, cluster.encode_to_vec()),
        (ASSIGNMENT, assignment.encode_to_vec()),
        (SECRET, Secret { name: "s".to_owned(), ..Default::default() }.encode_to_vec()),
    ]
}
