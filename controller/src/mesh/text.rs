//! Small texts in objects: durations, host names, and their words of refusal.

use std::time::Duration;

use crate::api::{Key, LocalRef};

/// Reads a duration as Go writes it: `1h30m`, `1.5s`, `250ms`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 500ms, 30s or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        total += number.parse::<f64>().map_err(|_| wrong())? * seconds;
        rest = tail;
    }
    if text.is_empty() || total > 1e9 {
        return Err(wrong());
    }
    // Nanoseconds as whole numbers: 0.1 s must not become 99999999 ns.
    Ok(Duration::from_nanos((total * 1e9).round() as u64))
}

/// Whether `text` is an HTTP token (RFC 9110, section 5.6.2): a method or a header's name.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Whether `text` is a host name, with a leading `*.` if `wildcard` allows it.
pub(super) fn is_host(text: &str, wildcard: bool) -> bool {
    let name = if wildcard { text.strip_prefix("*.").unwrap_or(text) } else { text };
    let label = |l: &str| {
        !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// What is wrong with the API group of a reference, if it has one: of a kind that has the same name elsewhere something else
/// is meant.
pub(super) fn wrong_group(reference: &LocalRef) -> Option<String> {
    let group = reference.api_group.as_deref().filter(|group| !group.is_empty())?;
    let own = match reference.kind.as_str() {
        "HTTPRouteGroup" => "specs.smi-spec.io",
        "UpstreamTrafficSetting" => "policy.openservicemesh.io",
        _ => return None,
    };
    let is_own = group.split_once('/').map_or(group, |(group, _)| group) == own;
    (!is_own).then(|| format!("{group:?} is not {own}, to which {} belongs", reference.kind))
}

/// Reads a service's host name, from the bare name to the FQDN. `own` is the namespace of the object that has it.
///
/// # Errors
/// The words, if it is in another namespace.
pub(super) fn service_in(own: &str, host: &str) -> Result<Key, String> {
    let mut short = host.trim_end_matches('.');
    for suffix in [".svc.cluster.local", ".svc.cluster", ".svc"] {
        if let Some(rest) = short.strip_suffix(suffix) {
            short = rest;
            break;
        }
    }
    let full = short.len() != host.trim_end_matches('.').len();
    let (name, namespace) = match short.rsplit_once('.') {
        Some((name, namespace)) => (name, namespace),
        None if full => return Err(format!("{host:?} has no namespace, write <service>.{own}.svc.cluster.local")),
        None => (short, own),
    };
    if name.is_empty() || namespace != own {
        return Err(format!("{host:?} is not a service of namespace {own:?}, where this object is"));
    }
    Ok(Key::new(namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, millis) in [("1s", 1000), ("100ms", 100), ("1h30m", 5_400_000), ("1.5s", 1500), ("0s", 0), ("0", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(duration("0.1s"), Ok(Duration::from_millis(100)));
        for text in ["", "5", "s", "1d", "-1s", "1.1.1s", "1s2", "9999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_of_services_are_read_in_every_length_and_only_of_the_own_namespace() {
        for host in ["a", "a.b", "a.b.svc", "a.b.svc.cluster", "a.b.svc.cluster.local", "a.b.svc.cluster.local."] {
            assert_eq!(service_in("b", host), Ok(Key::new("b", "a")), "{host}");
        }
        assert_eq!(service_in("b", "p-0.a.b.svc.cluster.local"), Ok(Key::new("b", "p-0.a")));
        for host in ["a.c", "a.svc.cluster.local", "a.c.svc.cluster.local", ""] {
            assert!(service_in("b", host).is_err(), "{host}");
        }
    }

    #[test]
    fn wildcards_in_hosts_only_where_they_are_allowed() {
        assert!(is_host("*.example.org", true));
        for host in ["*.example.org", "a b", "", "a..b", "http://a"] {
            assert!(!is_host(host, false), "{host}");
        }
    }
}
