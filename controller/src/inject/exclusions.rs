//! What is not redirected to the sidecar: MeshConfig's lists and the pod's annotations together. Pure.
//!
//! Values are read by the init program's own types, so that what is accepted here is what it takes there. Nothing is
//! left out in silence: a value that isn't understood refuses the pod.

use std::fmt::Display;
use std::str::FromStr;

use oxmesh_iptables_init::options::{Cidr, Interface, Port};

use super::annotations::{Annotations, INBOUND_PORTS, INTERFACES, OUTBOUND_ONLY, OUTBOUND_PORTS, OUTBOUND_RANGES};
use super::{Refusal, is_our_port};
use crate::api::TrafficSpec;

/// Options of the init program, in its own notation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// Ports to which traffic is not redirected.
    pub inbound_ports: Vec<String>,
    /// Destination ports.
    pub outbound_ports: Vec<String>,
    /// Destination ranges.
    pub outbound_ranges: Vec<String>,
    /// Destination ranges that alone are redirected; all if empty.
    pub outbound_only: Vec<String>,
    /// Interfaces.
    pub interfaces: Vec<String>,
}

/// Both lists of each kind, MeshConfig's first, each value once.
///
/// # Errors
/// [`Refusal`] names the annotation or the field, and the value.
pub fn merge(mesh: Option<&TrafficSpec>, pod: &Annotations<'_>) -> Result<Exclusions, Refusal> {
    let default = TrafficSpec::default();
    let mesh = mesh.unwrap_or(&default);
    let numbers = |ports: &[i64]| ports.iter().map(i64::to_string).collect::<Vec<_>>();
    let merged = Exclusions {
        inbound_ports: list::<Port>(
            "spec.traffic.inboundPortExclusionList",
            &numbers(&mesh.inbound_port_exclusion_list),
            pod,
            INBOUND_PORTS,
        )?,
        outbound_ports: list::<Port>(
            "spec.traffic.outboundPortExclusionList",
            &numbers(&mesh.outbound_port_exclusion_list),
            pod,
            OUTBOUND_PORTS,
        )?,
        outbound_ranges: list::<Cidr>(
            "spec.traffic.outboundIPRangeExclusionList",
            &mesh.outbound_ip_range_exclusion_list,
            pod,
            OUTBOUND_RANGES,
        )?,
        outbound_only: list::<Cidr>(
            "spec.traffic.outboundIPRangeInclusionList",
            &mesh.outbound_ip_range_inclusion_list,
            pod,
            OUTBOUND_ONLY,
        )?,
        interfaces: list::<Interface>(
            "spec.traffic.networkInterfaceExclusionList",
            &mesh.network_interface_exclusion_list,
            pod,
            INTERFACES,
        )?,
    };
    match merged.inbound_ports.iter().find(|port| port.parse().is_ok_and(is_our_port)) {
        Some(port) => {
            Err(pod.refuse(INBOUND_PORTS, port, "is the sidecar's own port, which others must not reach past it"))
        }
        None => Ok(merged),
    }
}

fn list<T: FromStr<Err = String> + Display>(
    field: &'static str,
    mesh: &[String],
    pod: &Annotations<'_>,
    annotation: &'static str,
) -> Result<Vec<String>, Refusal> {
    let mut values = Vec::new();
    let mut add = |value: T| {
        let text = value.to_string();
        if !values.contains(&text) {
            values.push(text);
        }
        values.len() <= MAX_VALUES
    };
    for text in mesh {
        let refuse = |problem: String| Refusal::MeshConfig { field, value: text.clone(), problem };
        if !add(text.parse().map_err(|e| refuse(problem(e)))?) {
            return Err(refuse(TOO_MANY.to_owned()));
        }
    }
    // An empty annotation is an empty list.
    let own = pod.get(annotation).filter(|text| !text.trim().is_empty());
    for text in own.iter().flat_map(|text| text.split(',')) {
        let value = text.parse().map_err(|e| pod.refuse(annotation, text, problem(e)))?;
        if !add(value) {
            return Err(pod.refuse(annotation, text, TOO_MANY));
        }
    }
    Ok(values)
}

/// The type's words begin with the value in backticks, which the refusal shows already, shortened.
fn problem(words: String) -> String {
    words.split_once("` is ").map_or(words.clone(), |(_, rest)| format!("is {rest}"))
}

/// More would not fit into the rules' size sensibly, and a list of that length is a mistake.
const MAX_VALUES: usize = 256;
const TOO_MANY: &str = "is one too many: a list may have 256 values";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::Pod;

    use super::super::annotations::of_pod;
    use super::*;

    fn pod(name: &str, value: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.annotations = Some(BTreeMap::from([(name.to_owned(), value.to_owned())]));
        pod
    }

    #[test]
    fn mesh_and_pod_add_up_and_each_value_stands_once() {
        let mesh = TrafficSpec {
            inbound_port_exclusion_list: vec![6060, 22],
            outbound_ip_range_exclusion_list: vec!["10.1.2.3/8".into()],
            ..TrafficSpec::default()
        };
        let merged = merge(Some(&mesh), &of_pod(&pod(INBOUND_PORTS, "6060, 7070"))).unwrap();
        assert_eq!(merged.inbound_ports, ["6060", "22", "7070"]);
        assert_eq!(merged.outbound_ranges, ["10.0.0.0/8"]);
        assert!(merge(None, &of_pod(&pod(OUTBOUND_PORTS, " "))).unwrap().outbound_ports.is_empty());
        let twenty: Vec<String> = (1..=20).map(|port| port.to_string()).collect();
        assert_eq!(merge(None, &of_pod(&pod(OUTBOUND_PORTS, &twenty.join(",")))).unwrap().outbound_ports, twenty);
    }

    #[test]
    fn a_value_that_is_not_understood_is_refused_with_its_place() {
        for (name, value, part) in [
            (INBOUND_PORTS, "80,x", "\"x\" is not a port"),
            (INBOUND_PORTS, "80,,81", "\"\" is not a port"),
            (INBOUND_PORTS, "15003", "sidecar's own port"),
            (OUTBOUND_PORTS, "0", "is not a port"),
            (OUTBOUND_RANGES, "10.0.0.0/33", "is not an address range"),
            (OUTBOUND_ONLY, "::ffff:10.0.0.0/104", "write it as IPv4"),
            (INTERFACES, "eth0 -j ACCEPT", "is not an interface name"),
        ] {
            let words = merge(None, &of_pod(&pod(name, value))).unwrap_err().to_string();
            assert!(words.contains(name) && words.contains(part), "{words}");
        }
        let mesh = TrafficSpec { outbound_port_exclusion_list: vec![70_000], ..TrafficSpec::default() };
        let words = merge(Some(&mesh), &of_pod(&Pod::default())).unwrap_err().to_string();
        assert!(words.contains("outboundPortExclusionList") && words.contains("70000"), "{words}");
        let many: Vec<String> = (1..=257).map(|port| port.to_string()).collect();
        let words = merge(None, &of_pod(&pod(OUTBOUND_PORTS, &many.join(",")))).unwrap_err().to_string();
        assert!(words.contains("too many"), "{words}");
    }
}
