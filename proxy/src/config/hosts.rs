//! The compiled choice of a virtual host: exact > longest `*suffix` > longest `prefix*` > `*`.
//!
//! Made once per route table. Looking up allocates nothing for hosts up to [`INLINE_HOST`] bytes.
//! Pure: it knows names and positions only, not what stands in a virtual host.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::route::VirtualHost;

/// Longest host folded to lower case without an allocation, in bytes.
const INLINE_HOST: usize = 128;

/// Maps a host to the position of its virtual host.
#[derive(Debug, Default)]
pub struct HostIndex {
    exact: HashMap<Box<str>, usize>,
    /// Longest first; one map per length of the literal part.
    suffixes: Vec<(usize, HashMap<Box<str>, usize>)>,
    /// Longest first.
    prefixes: Vec<(usize, HashMap<Box<str>, usize>)>,
    any: Option<usize>,
    ignore_port: bool,
}

impl HostIndex {
    /// Compiles the domains of `hosts`. Where a domain occurs twice (conversion refuses that), the first one stays.
    #[must_use]
    pub fn new<'a>(hosts: impl IntoIterator<Item = &'a VirtualHost>, ignore_port: bool) -> Self {
        let mut index = Self { ignore_port, ..Self::default() };
        for (at, host) in hosts.into_iter().enumerate() {
            for domain in &host.domains {
                index.insert(&domain.to_ascii_lowercase(), at);
            }
        }
        index.suffixes.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
        index.prefixes.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
        index
    }

    fn insert(&mut self, domain: &str, at: usize) {
        if domain == "*" {
            self.any.get_or_insert(at);
        } else if let Some(suffix) = domain.strip_prefix('*') {
            by_length(&mut self.suffixes, suffix).entry(suffix.into()).or_insert(at);
        } else if let Some(prefix) = domain.strip_suffix('*') {
            by_length(&mut self.prefixes, prefix).entry(prefix.into()).or_insert(at);
        } else {
            self.exact.entry(domain.into()).or_insert(at);
        }
    }

    /// Position of the virtual host for `authority` (with its port, if it has one, as sent by the client).
    #[must_use]
    pub fn find(&self, authority: &str) -> Option<usize> {
        let host = if self.ignore_port { without_port(authority) } else { authority };
        if host.bytes().any(|b| b.is_ascii_uppercase()) {
            let mut lower: SmallVec<[u8; INLINE_HOST]> = SmallVec::from_slice(host.as_bytes());
            lower.make_ascii_lowercase();
            return self.find_lower(std::str::from_utf8(&lower).unwrap_or_default());
        }
        self.find_lower(host)
    }

    fn find_lower(&self, host: &str) -> Option<usize> {
        if let Some(at) = self.exact.get(host) {
            return Some(*at);
        }
        // A wildcard stands for at least one character, as in Envoy.
        let suffix = self.suffixes.iter().filter(|(len, _)| *len < host.len()).find_map(|(len, map)| {
            let part = host.get(host.len() - len..)?;
            map.get(part)
        });
        if let Some(at) = suffix {
            return Some(*at);
        }
        let prefix = self.prefixes.iter().filter(|(len, _)| *len < host.len()).find_map(|(len, map)| {
            let part = host.get(..*len)?;
            map.get(part)
        });
        prefix.copied().or(self.any)
    }
}

fn by_length<'a>(
    maps: &'a mut Vec<(usize, HashMap<Box<str>, usize>)>,
    literal: &str,
) -> &'a mut HashMap<Box<str>, usize> {
    let at = maps.iter().position(|(len, _)| *len == literal.len()).unwrap_or_else(|| {
        maps.push((literal.len(), HashMap::new()));
        maps.len() - 1
    });
    &mut maps[at].1
}

/// The host of an authority without its port; brackets of an IPv6 address stay.
#[must_use]
pub fn without_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => {
            let port = &authority[colon + 1..];
            if port.bytes().all(|b| b.is_ascii_digit()) { &authority[..colon] } else { authority }
        }
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{headers::HeaderEdits, route::PerRouteFilters};

    fn host(domains: &[&str]) -> VirtualHost {
        VirtualHost {
            name: "v".into(),
            domains: domains.iter().map(|d| (*d).to_owned()).collect(),
            routes: vec![],
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
            retry: None,
            include_attempt_count: false,
            filters: PerRouteFilters::default(),
        }
    }

    #[test]
    fn exact_beats_longest_suffix_beats_longest_prefix_beats_any() {
        let hosts = [
            host(&["*"]),
            host(&["a.b.c"]),
            host(&["*.c"]),
            host(&["*.b.c", "*x"]),
            host(&["a.*"]),
            host(&["a.b.*"]),
            host(&["only.w"]),
        ];
        let index = HostIndex::new(&hosts, false);
        for (authority, expected) in [
            ("a.b.c", 1),
            ("A.B.C", 1),
            ("z.b.c", 3),
            ("z.c", 2),
            ("a.b.z", 5),
            ("a.z", 4),
            ("zx", 3),
            ("x", 0),
            (".c", 0),
            ("only.w", 6),
            ("only.w:80", 0),
            ("", 0),
            ("é.c", 2),
            ("aé", 0),
        ] {
            assert_eq!(index.find(authority), Some(expected), "{authority}");
        }
    }

    #[test]
    fn without_a_catch_all_an_unknown_host_has_no_virtual_host() {
        let index = HostIndex::new(&[host(&["a"]), host(&["*b"])], false);
        assert_eq!(index.find("c"), None);
        assert_eq!(index.find("b"), None, "a wildcard needs at least one character");
    }

    #[test]
    fn the_port_is_ignored_only_when_asked() {
        let hosts = [host(&["a"]), host(&["[::1]"])];
        let index = HostIndex::new(&hosts, true);
        assert_eq!(index.find("a:8080"), Some(0));
        assert_eq!(index.find("[::1]:80"), Some(1));
        assert_eq!(index.find("[::1]"), Some(1));
        assert_eq!(HostIndex::new(&hosts, false).find("a:8080"), None);
    }

    #[test]
    fn hosts_longer_than_the_inline_buffer_are_folded_too() {
        let long = "A".repeat(300);
        let index = HostIndex::new(&[host(&[&long.to_lowercase()])], false);
        assert_eq!(index.find(&long), Some(0));
    }
}
