//! Resources in a few words each, for people. Secrets are named, never shown.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3::Address;
use envoy_types::pb::envoy::config::core::v3::address::Address as OneAddress;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type as SecretType;
use prost::Message as _;
use serde_json::{Map, Value, json};

use crate::xds::Kind;
use crate::xds::cache::{Resource, State};

/// All resources of a proxy.
pub(super) fn state(state: &State) -> Value {
    let kinds = Kind::ALL.into_iter().map(|kind| {
        let resources = state.of(kind).values().map(|resource| one(kind, resource));
        (kind.short().to_owned(), Value::Array(resources.collect()))
    });
    Value::Object(kinds.collect::<Map<_, _>>())
}

fn one(kind: Kind, resource: &Resource) -> Value {
    let bytes = resource.body.value.as_slice();
    let mut short = json!({
        "name": resource.name.as_ref(),
        "version": resource.version.as_ref(),
        "bytes": bytes.len(),
    });
    let details = match kind {
        Kind::Cluster => Cluster::decode(bytes).map(|c| cluster(&c)),
        Kind::Endpoint => ClusterLoadAssignment::decode(bytes).map(|e| endpoints(&e)),
        Kind::Listener => Listener::decode(bytes).map(|l| listener(&l)),
        Kind::Route => RouteConfiguration::decode(bytes).map(|r| routes(&r)),
        Kind::Secret => Secret::decode(bytes).map(|s| secret(&s)),
    };
    // We encoded it ourselves a moment ago.
    if let (Ok(Value::Object(details)), Value::Object(short)) = (details, &mut short) {
        short.extend(details);
    }
    short
}

fn cluster(cluster: &Cluster) -> Value {
    let discovery = match &cluster.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind).map_or("?", |kind| kind.as_str_name()),
        Some(ClusterDiscoveryType::ClusterType(custom)) => custom.name.as_str(),
        None => "STATIC",
    };
    json!({ "type": discovery, "tls": cluster.transport_socket.is_some() })
}

fn endpoints(assignment: &ClusterLoadAssignment) -> Value {
    let all = assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
    let addresses = all.filter_map(|endpoint| match &endpoint.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => endpoint.address.as_ref().map(address),
        _ => None,
    });
    json!({ "addresses": addresses.collect::<Vec<_>>() })
}

fn listener(listener: &Listener) -> Value {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    json!({
        "address": listener.address.as_ref().map(address),
        "filterChains": chains.map(|chain| chain.name.as_str()).collect::<Vec<_>>(),
    })
}

fn routes(routes: &RouteConfiguration) -> Value {
    let hosts = routes
        .virtual_hosts
        .iter()
        .map(|host| json!({ "name": host.name, "domains": host.domains, "routes": host.routes.len() }));
    json!({ "virtualHosts": hosts.collect::<Vec<_>>() })
}

fn secret(secret: &Secret) -> Value {
    let what = match &secret.r#type {
        Some(SecretType::TlsCertificate(_)) => "certificate with its key",
        Some(SecretType::ValidationContext(_)) => "trusted roots",
        _ => "other",
    };
    json!({ "holds": what })
}

fn address(address: &Address) -> String {
    match &address.address {
        Some(OneAddress::SocketAddress(socket)) => match socket.port_specifier {
            Some(PortSpecifier::PortValue(port)) => format!("{}:{port}", socket.address),
            _ => socket.address.clone(),
        },
        _ => "not a socket address".to_owned(),
    }
}
