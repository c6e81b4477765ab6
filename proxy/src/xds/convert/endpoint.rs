//! Endpoints of clusters.

use envoy_types::pb::envoy::config::{
    core::v3::HealthStatus,
    endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier},
};

use super::context::{Cx, MILLION, parts_per_million};
use crate::{
    config::cluster::{Assignment, DnsEndpoint, EndpointSpec, Health},
    xds::path::At,
};

/// Envoy's default.
const OVERPROVISIONING_PERCENT: u32 = 140;

/// An assignment of EDS.
pub(super) fn assignment(a: &ClusterLoadAssignment, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Assignment> {
    let policy = a.policy.as_ref();
    // Categories are drawn one after the other, so what passes is the product.
    let drops = policy.map_or(&[][..], |p| p.drop_overloads.as_slice());
    let passing = drops
        .iter()
        .filter_map(|d| d.drop_percentage.as_ref())
        .fold(1.0, |passing, share| passing * (1.0 - f64::from(parts_per_million(share)) / f64::from(MILLION)));
    Some(Assignment {
        name: cx.name(&a.cluster_name, &at.field("cluster_name"))?,
        endpoints: addresses(a, at, cx),
        overprovisioning_percent: policy
            .and_then(|p| p.overprovisioning_factor.as_ref())
            .map_or(OVERPROVISIONING_PERCENT, |f| f.value),
        drop_ppm: ((1.0 - passing) * f64::from(MILLION)).round() as u32,
    })
}

/// A policy in a `load_assignment` in place, which only EDS clusters have.
pub(super) fn no_policy(a: &ClusterLoadAssignment, at: &At<'_>, cx: &mut Cx<'_>) {
    let Some(policy) = a.policy.as_ref() else { return };
    let at = at.field("policy");
    if !policy.drop_overloads.is_empty() {
        cx.report.error(&at.field("drop_overloads"), "only supported for EDS");
    }
    let factor = policy.overprovisioning_factor.as_ref().map_or(OVERPROVISIONING_PERCENT, |f| f.value);
    if factor != OVERPROVISIONING_PERCENT {
        cx.report.error(&at.field("overprovisioning_factor"), "only supported for EDS");
    }
}

/// Endpoints with IP addresses.
pub(super) fn addresses(a: &ClusterLoadAssignment, at: &At<'_>, cx: &mut Cx<'_>) -> Vec<EndpointSpec> {
    each(a, at, cx, |locality, host, endpoint, at, cx| {
        let address = cx.socket_address(endpoint.address.as_ref(), &at.field("endpoint").field("address"))?;
        let health = match host.health_status() {
            HealthStatus::Unknown | HealthStatus::Healthy => Health::Healthy,
            HealthStatus::Degraded => Health::Degraded,
            HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout => Health::Unhealthy,
        };
        Some(EndpointSpec { address, weight: weight(host), priority: locality.priority, health })
    })
}

/// Endpoints with names to resolve.
pub(super) fn names(a: &ClusterLoadAssignment, at: &At<'_>, cx: &mut Cx<'_>) -> Vec<DnsEndpoint> {
    each(a, at, cx, |locality, host, endpoint, at, cx| {
        let (name, port) = cx.host_port(endpoint.address.as_ref(), &at.field("endpoint").field("address"))?;
        if !matches!(host.health_status(), HealthStatus::Unknown | HealthStatus::Healthy) {
            return cx.refuse(&at.field("health_status"), "not supported for names");
        }
        Some(DnsEndpoint { host: name, port, weight: weight(host), priority: locality.priority })
    })
}

fn each<T>(
    a: &ClusterLoadAssignment,
    at: &At<'_>,
    cx: &mut Cx<'_>,
    mut make: impl FnMut(&LocalityLbEndpoints, &LbEndpoint, &Endpoint, &At<'_>, &mut Cx<'_>) -> Option<T>,
) -> Vec<T> {
    let at = at.field("endpoints");
    let mut endpoints = Vec::with_capacity(a.endpoints.iter().map(|l| l.lb_endpoints.len()).sum());
    for (i, locality) in a.endpoints.iter().enumerate() {
        let at = at.index(i);
        let at = at.field("lb_endpoints");
        for (i, host) in locality.lb_endpoints.iter().enumerate() {
            let at = at.index(i);
            match host.host_identifier.as_ref() {
                Some(HostIdentifier::Endpoint(endpoint)) => endpoints.extend(make(locality, host, endpoint, &at, cx)),
                _ => cx.report.error(&at.field("endpoint"), "is required"),
            }
        }
    }
    endpoints
}

fn weight(host: &LbEndpoint) -> u32 {
    host.load_balancing_weight.as_ref().map_or(1, |w| w.value)
}
