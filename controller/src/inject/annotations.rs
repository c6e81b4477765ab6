//! Reading annotations: every value is checked, and whatever is not understood is refused with its name.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{DataPlane, Refusal};

/// `enabled`, `yes`, `true` or `disabled`, `no`, `false`; on pods and namespaces.
pub const INJECTION: &str = "openservicemesh.io/sidecar-injection";
/// `enabled` on a namespace: Prometheus is told to scrape the sidecars.
pub const METRICS: &str = "openservicemesh.io/metrics";
/// Ports to which traffic is not redirected, with commas between.
pub const INBOUND_PORTS: &str = "openservicemesh.io/inbound-port-exclusion-list";
/// Destination ports that are not redirected.
pub const OUTBOUND_PORTS: &str = "openservicemesh.io/outbound-port-exclusion-list";
/// Destination ranges that are not redirected.
pub const OUTBOUND_RANGES: &str = "openservicemesh.io/outbound-ip-range-exclusion-list";
/// Destination ranges that alone are redirected.
pub const OUTBOUND_ONLY: &str = "openservicemesh.io/outbound-ip-range-inclusion-list";
/// Network interfaces whose traffic is not redirected.
pub const INTERFACES: &str = "oxmesh.io/network-interface-exclusion-list";
/// `oxmesh` or `envoy`; on pods and namespaces.
pub const DATA_PLANE: &str = "oxmesh.io/data-plane";
/// The sidecar's image.
pub const IMAGE: &str = "oxmesh.io/proxy-image";
/// The sidecar's log level.
pub const LOG_LEVEL: &str = "oxmesh.io/proxy-log-level";
/// The sidecar's CPU request.
pub const CPU_REQUEST: &str = "oxmesh.io/proxy-cpu-request";
/// The sidecar's CPU limit.
pub const CPU_LIMIT: &str = "oxmesh.io/proxy-cpu-limit";
/// The sidecar's memory request.
pub const MEMORY_REQUEST: &str = "oxmesh.io/proxy-memory-request";
/// The sidecar's memory limit.
pub const MEMORY_LIMIT: &str = "oxmesh.io/proxy-memory-limit";

/// The annotations of a pod or of a namespace.
#[derive(Debug, Clone, Copy)]
pub struct Annotations<'a> {
    of: &'static str,
    map: Option<&'a BTreeMap<String, String>>,
}

/// A pod's.
#[must_use]
pub fn of_pod(pod: &Pod) -> Annotations<'_> {
    Annotations { of: "pod", map: pod.metadata.annotations.as_ref() }
}

/// A namespace's.
#[must_use]
pub fn of_namespace(namespace: &Namespace) -> Annotations<'_> {
    Annotations { of: "namespace", map: namespace.metadata.annotations.as_ref() }
}

impl<'a> Annotations<'a> {
    /// The value as it is.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.map.and_then(|map| map.get(name)).map(String::as_str)
    }

    /// That `value` of `name` is wrong.
    pub fn refuse(&self, name: &'static str, value: &str, problem: impl Into<String>) -> Refusal {
        Refusal::Annotation { of: self.of, name, value: value.to_owned(), problem: problem.into() }
    }

    /// Which program is to be the sidecar.
    ///
    /// # Errors
    /// If the value names none.
    pub fn data_plane(&self) -> Result<Option<DataPlane>, Refusal> {
        let Some(text) = self.get(DATA_PLANE) else { return Ok(None) };
        let known = DataPlane::parse(text);
        known.map(Some).ok_or_else(|| self.refuse(DATA_PLANE, text, "is neither oxmesh nor envoy"))
    }

    /// An image.
    ///
    /// # Errors
    /// If it has characters that no image reference has.
    pub fn image(&self) -> Result<Option<&'a str>, Refusal> {
        let Some(text) = self.get(IMAGE) else { return Ok(None) };
        if is_image(text) {
            return Ok(Some(text));
        }
        Err(self.refuse(IMAGE, text, "is not an image reference (write registry.example/name:tag)"))
    }

    /// A log level.
    ///
    /// # Errors
    /// If Envoy has no such level.
    pub fn log_level(&self) -> Result<Option<&'a str>, Refusal> {
        let Some(text) = self.get(LOG_LEVEL) else { return Ok(None) };
        if LEVELS.contains(&text) {
            return Ok(Some(text));
        }
        Err(self.refuse(LOG_LEVEL, text, format!("is not a level ({})", LEVELS.join(", "))))
    }

    /// An amount of a resource.
    ///
    /// # Errors
    /// If it is not a quantity as Kubernetes writes them, or not positive.
    pub fn quantity(&self, name: &'static str) -> Result<Option<Quantity>, Refusal> {
        let Some(text) = self.get(name) else { return Ok(None) };
        if is_quantity(text) {
            return Ok(Some(Quantity(text.to_owned())));
        }
        Err(self.refuse(name, text, "is not an amount (write 100m, 0.5, 64Mi or 1Gi)"))
    }
}

/// Whether the text has an image reference's characters alone.
#[must_use]
pub fn is_image(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    (1..=MAX_IMAGE).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(plain)
}

/// Kubernetes' quantities: a number with an optional suffix.
fn is_quantity(text: &str) -> bool {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &text[digits.len()..];
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let number = |text: &str| !text.is_empty() && text.len() <= 15 && text.bytes().all(|b| b.is_ascii_digit());
    let some = digits.bytes().any(|b| (b'1'..=b'9').contains(&b));
    number(whole) && number(part) && some && SUFFIXES.contains(&suffix)
}

/// Envoy's log levels.
pub const LEVELS: [&str; 8] = ["trace", "debug", "info", "warning", "warn", "error", "critical", "off"];
const SUFFIXES: [&str; 14] = ["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const MAX_IMAGE: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_what_kubernetes_takes() {
        for good in ["100m", "0.5", "1", "64Mi", "1Gi", "128M", "2k"] {
            assert!(is_quantity(good), "{good}");
        }
        for bad in ["", "0", "-1", "1.", ".5", "64 Mi", "64mi", "1e3;", "0x10", "1\n", "1Mi2", "NaN", "é"] {
            assert!(!is_quantity(bad), "{bad}");
        }
    }
}
