//! The network filters of a chain that are not its last: access control and the limit of connections.
//!
//! Both are decided before the terminal sees the connection. A limit is looked at before the TLS handshake, because it
//! shall save that work; access control after it, because it needs the peer's identity. Envoy lets a connection stand
//! until its first byte before access control speaks; ours ends at once, so that a server that speaks first tells nothing
//! to those who may not ask.

use std::{sync::Arc, time::Instant};

use metrics::Counter;

use super::connection::ConnInfo;
use crate::{
    config::{
        listener::{FilterChain, NetworkFilter},
        ratelimit::{Bucket, NetworkLocalRateLimit},
        rbac::{NetworkRbac, View},
    },
    telemetry::{Registry, Scope},
};

/// A chain's network filters with their buckets and statistics.
#[derive(Debug, Default)]
pub struct Filters {
    limits: Vec<Limit>,
    rules: Vec<Rules>,
}

#[derive(Debug)]
struct Limit {
    config: Arc<NetworkLocalRateLimit>,
    bucket: Arc<Bucket>,
    rate_limited: Counter,
}

#[derive(Debug)]
struct Rules {
    config: Arc<NetworkRbac>,
    allowed: Counter,
    denied: Counter,
}

/// A connection may not pass; the words are Envoy's `CONNECTION_TERMINATION_DETAILS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied(pub String);

impl Filters {
    /// Makes the filters of a chain. Buckets of `previous`, the same chain before, are kept where their rule is the same.
    #[must_use]
    pub fn new(chain: &FilterChain, registry: &Registry, previous: Option<&Self>) -> Arc<Self> {
        let mut filters = Self::default();
        for filter in &chain.filters {
            match filter {
                NetworkFilter::LocalRateLimit(config) => {
                    let at = filters.limits.len();
                    let kept = previous.and_then(|p| p.limits.get(at)).filter(|old| old.config == *config);
                    let bucket = match kept {
                        Some(old) => Arc::clone(&old.bucket),
                        None => Arc::new(Bucket::new(config.bucket, Instant::now())),
                    };
                    let scope = Scope::local_rate_limit(&config.stat_prefix);
                    let rate_limited = registry.counter(&scope, "rate_limited");
                    filters.limits.push(Limit { config: Arc::clone(config), bucket, rate_limited });
                }
                NetworkFilter::Rbac(config) => {
                    let scope = Scope::rbac(&config.stat_prefix);
                    filters.rules.push(Rules {
                        config: Arc::clone(config),
                        allowed: registry.counter(&scope, "allowed"),
                        denied: registry.counter(&scope, "denied"),
                    });
                }
            }
        }
        Arc::new(filters)
    }

    /// Takes a token of each limit for a new connection; false when one has none left.
    #[must_use]
    pub fn admit(&self, now: Instant) -> bool {
        self.limits.iter().all(|limit| {
            let admitted = limit.bucket.take(now);
            if !admitted {
                limit.rate_limited.increment(1);
            }
            admitted
        })
    }

    /// Asks all rules whether the connection may pass.
    ///
    /// # Errors
    /// [`Denied`] by the first that says no.
    pub fn decide(&self, info: &ConnInfo) -> Result<(), Denied> {
        let view = View {
            request: None,
            peer: info.peer,
            destination: info.destination(),
            server_name: info.server_name.as_deref(),
            tls: info.peer_names(),
        };
        for rules in &self.rules {
            let Some(rbac) = &rules.config.rules else { continue };
            let verdict = rbac.decide(&view);
            if !verdict.allowed {
                rules.denied.increment(1);
                let policy = verdict.policy.unwrap_or("none").replace(char::is_whitespace, "_");
                return Err(Denied(format!("rbac_access_denied_matched_policy[{policy}]")));
            }
            rules.allowed.increment(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::{
            listener::{ChainMatch, Direction, Terminal},
            matcher::StringMatch,
            ratelimit::TokenBucket,
            rbac::{Action, Permission, Policy, Principal, Rbac},
        },
        telemetry::access_log::Connection,
    };

    fn chain(filters: Vec<NetworkFilter>) -> FilterChain {
        FilterChain {
            name: "".into(),
            matcher: ChainMatch::default(),
            tls: None,
            handshake_timeout: Duration::from_secs(1),
            filters,
            terminal: Terminal::Close,
        }
    }

    fn limit(max: u32) -> NetworkFilter {
        let bucket = TokenBucket { max, fill: 1, interval: Duration::from_secs(60) };
        NetworkFilter::LocalRateLimit(Arc::new(NetworkLocalRateLimit { stat_prefix: "l".into(), bucket }))
    }

    fn info(dns_san: Option<&str>) -> ConnInfo {
        let identity = dns_san.map(|name| {
            let der = rustls_pki_types::CertificateDer::from(Vec::new());
            Arc::new(crate::tls::PeerIdentity {
                dns_sans: vec![name.to_owned()],
                uri_sans: vec![],
                ip_sans: vec![],
                email_sans: vec![],
                subject_rfc2253: String::new(),
                serial: String::new(),
                der,
            })
        });
        let connection = Connection {
            peer: "10.0.0.9:4000".parse().unwrap(),
            local: "10.0.0.1:14001".parse().unwrap(),
            server_name: None,
            tls_version: identity.as_ref().map(|_| "TLSv1.3"),
            peer_uri_sans: vec![],
            peer_dns_sans: vec![],
            peer_subject: None,
            listener: "l".into(),
            chain: "".into(),
        };
        ConnInfo {
            connection: Arc::new(connection),
            original_destination: Some("10.0.0.1:14001".parse().unwrap()),
            identity,
            alpn: None,
            direction: Direction::Inbound,
            worker: 0,
        }
    }

    #[test]
    fn a_limit_lets_as_many_pass_as_it_has_tokens_and_keeps_them_over_a_change() {
        let registry = Registry::default();
        let filters = Filters::new(&chain(vec![limit(2)]), &registry, None);
        let now = Instant::now();
        assert_eq!([(); 3].map(|()| filters.admit(now)), [true, true, false]);
        let next = Filters::new(&chain(vec![limit(2)]), &registry, Some(&filters));
        assert!(!next.admit(now));
        let other = Filters::new(&chain(vec![limit(1)]), &registry, Some(&filters));
        assert!(other.admit(now));
        assert_eq!(registry.value("local_rate_limit.l.rate_limited"), Some(2));
    }

    #[test]
    fn access_rules_see_the_identity_and_the_port() {
        let registry = Registry::default();
        let policy = Policy {
            permissions: vec![Permission::DestinationPort(14_001)],
            principals: vec![Principal::Authenticated(Some(StringMatch::exact("buyer.ns.cluster.local")))],
        };
        let rules = Rbac { action: Action::Allow, policies: [("p".to_owned(), policy)].into() };
        let rbac = NetworkRbac { stat_prefix: "network-".into(), rules: Some(rules) };
        let filters = Filters::new(&chain(vec![NetworkFilter::Rbac(Arc::new(rbac))]), &registry, None);
        assert_eq!(filters.decide(&info(Some("buyer.ns.cluster.local"))), Ok(()));
        let denied = Err(Denied("rbac_access_denied_matched_policy[none]".to_owned()));
        assert_eq!(filters.decide(&info(Some("thief.ns.cluster.local"))), denied);
        assert_eq!(filters.decide(&info(None)), denied, "plaintext has no identity");
        assert_eq!(registry.value("network-.rbac.allowed"), Some(1));
        assert_eq!(registry.value("network-.rbac.denied"), Some(2));
    }
}
