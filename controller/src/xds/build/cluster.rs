//! Clusters and endpoints.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use envoy_types::pb::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, circuit_breakers::Thresholds, cluster::ClusterDiscoveryType, cluster::DiscoveryType,
    cluster::EdsClusterConfig, cluster::LbPolicy,
};
use envoy_types::pb::envoy::config::core::v3::{
    Http2ProtocolOptions, HttpProtocolOptions as CommonHttpOptions, Locality,
};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{UpstreamProtocolOptions, UseDownstreamHttpConfig},
};
use envoy_types::pb::google::protobuf::Any;

use super::Scene;
use super::message::{ads, any, duration, socket_address, transport_socket, uint};
use super::tls;
use crate::identity::ServiceIdentity;
use crate::mesh::{ConnectionLimits, Mesh, Service, Workload};

/// Name of the cluster through which everything leaves when egress is open.
pub(super) const PASSTHROUGH: &str = "passthrough-outbound";

/// Name of the cluster for a service's pods.
pub(super) fn name(service: &Service, target: u16) -> String {
    format!("{}|{target}", service.name)
}

/// Name of the cluster for the workload itself.
pub(super) fn local_name(service: &Service, target: u16) -> String {
    format!("{}|{target}|local", service.name)
}

/// The pods of `service`, over the mesh's TLS.
pub(super) fn mesh_cluster(scene: &Scene<'_>, service: &Service, target: u16) -> Cluster {
    let name = name(service, target);
    let limits = scene.mesh.limits(&service.name).map(|l| l.connections.clone()).unwrap_or_default();
    Cluster {
        eds_cluster_config: Some(EdsClusterConfig { eds_config: ads(), ..Default::default() }),
        transport_socket: transport_socket(&name, any(&tls::upstream(scene, service))),
        ..limited(name, DiscoveryType::Eds, &limits)
    }
}

/// The addresses of `service` that `own` may call.
pub(super) fn endpoints(mesh: &Mesh, own: &ServiceIdentity, service: &Service, target: u16) -> ClusterLoadAssignment {
    let endpoints: Vec<LbEndpoint> =
        mesh.endpoints_for(service, own).map(|e| lb_endpoint(&e.ip.to_string(), target)).collect();
    let locality = Locality { zone: "local".to_owned(), ..Default::default() };
    let group = LocalityLbEndpoints { locality: Some(locality), lb_endpoints: endpoints, ..Default::default() };
    ClusterLoadAssignment {
        cluster_name: name(service, target),
        endpoints: if group.lb_endpoints.is_empty() { Vec::new() } else { vec![group] },
        ..Default::default()
    }
}

/// The workload itself, on loopback. Where applications listen on the pod's address, the pod's redirection leads there.
pub(super) fn local_cluster(workload: &Workload, service: &Service, target: u16) -> Cluster {
    let name = local_name(service, target);
    let only_v6 = !workload.ips.is_empty() && workload.ips.iter().all(IpAddr::is_ipv6);
    let loopback = if only_v6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    Cluster {
        alt_stat_name: name.clone(),
        load_assignment: Some(assignment(&name, &loopback.to_string(), target)),
        ..cluster(name, DiscoveryType::Static, None)
    }
}

/// A host outside the mesh, by its name.
pub(super) fn host_cluster(host: &str, port: u16, limits: &ConnectionLimits) -> Cluster {
    let name = format!("{host}:{port}");
    Cluster {
        alt_stat_name: name.replace(['.', ':'], "_"),
        load_assignment: Some(assignment(&name, host, port)),
        ..limited(name, DiscoveryType::StrictDns, limits)
    }
}

/// Whatever address the client dialed.
pub(super) fn original_destination(name: &str, limits: &ConnectionLimits) -> Cluster {
    Cluster {
        lb_policy: LbPolicy::ClusterProvided.into(),
        ..limited(name.to_owned(), DiscoveryType::OriginalDst, limits)
    }
}

/// The proxy's own admin port, for its metrics.
pub(super) fn metrics_cluster(name: &str, port: u16) -> Cluster {
    Cluster {
        load_assignment: Some(assignment(name, "127.0.0.1", port)),
        ..cluster(name.to_owned(), DiscoveryType::Static, None)
    }
}

fn limited(name: String, kind: DiscoveryType, limits: &ConnectionLimits) -> Cluster {
    Cluster {
        connect_timeout: limits.connect_timeout.and_then(duration),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![Thresholds {
                max_connections: uint(limits.max_connections.unwrap_or(u32::MAX)),
                max_pending_requests: uint(limits.max_pending_requests.unwrap_or(u32::MAX)),
                max_requests: uint(limits.max_requests.unwrap_or(u32::MAX)),
                max_retries: uint(limits.max_retries.unwrap_or(u32::MAX)),
                track_remaining: true,
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..cluster(name, kind, limits.max_requests_per_connection)
    }
}

fn cluster(name: String, kind: DiscoveryType, max_requests_per_connection: Option<u32>) -> Cluster {
    Cluster {
        name,
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
        typed_extension_protocol_options: HashMap::from([(
            HTTP_OPTIONS.to_owned(),
            http_options(max_requests_per_connection),
        )]),
        ..Default::default()
    }
}

/// Speak to the upstream as the downstream speaks: HTTP/1 or HTTP/2.
fn http_options(max_requests_per_connection: Option<u32>) -> Any {
    let same =
        UseDownstreamHttpConfig { http2_protocol_options: Some(Http2ProtocolOptions::default()), ..Default::default() };
    any(&HttpProtocolOptions {
        common_http_protocol_options: max_requests_per_connection
            .map(|max| CommonHttpOptions { max_requests_per_connection: uint(max), ..Default::default() }),
        upstream_protocol_options: Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(same)),
        ..Default::default()
    })
}

fn assignment(cluster: &str, address: &str, port: u16) -> ClusterLoadAssignment {
    let group = LocalityLbEndpoints { lb_endpoints: vec![lb_endpoint(address, port)], ..Default::default() };
    ClusterLoadAssignment { cluster_name: cluster.to_owned(), endpoints: vec![group], ..Default::default() }
}

fn lb_endpoint(address: &str, port: u16) -> LbEndpoint {
    let endpoint = Endpoint { address: socket_address(address, port, false), ..Default::default() };
    LbEndpoint { host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)), ..Default::default() }
}

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
