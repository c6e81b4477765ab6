//! Retries: when one service account tries its requests to a service again.

use std::collections::BTreeMap;
use std::time::Duration;

use super::finding::About;
use super::{Finding, Service, text};
use crate::api::{Key, Objects, RetryPolicySpec};
use crate::identity::ServiceIdentity;

/// When and how often a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Envoy's words, separated by commas.
    pub on: String,
    /// Longest time of one try.
    pub per_try_timeout: Option<Duration>,
    /// Most retries.
    pub retries: u32,
    /// First back-off.
    pub backoff: Duration,
}

/// Reads all retry policies, by who retries and to whom.
pub(super) fn retries(
    objects: &Objects,
    services: &BTreeMap<Key, Service>,
    enabled: bool,
    findings: &mut Vec<Finding>,
) -> BTreeMap<(ServiceIdentity, Key), Retry> {
    let mut all = BTreeMap::new();
    for (key, object) in &objects.retries {
        let mut about = About::new("Retry", key, findings);
        if !enabled {
            about.no_effect("spec", "retries are off: set featureFlags.enableRetryPolicy in MeshConfig");
            continue;
        }
        let source = &object.spec.source;
        if source.kind != "ServiceAccount" {
            about.error("spec.source.kind", format!("{:?} is not ServiceAccount; nothing is retried", source.kind));
            continue;
        }
        let namespace = if source.namespace.is_empty() { &key.namespace } else { &source.namespace };
        if *namespace != key.namespace {
            about.error("spec.source.namespace", format!("must be the object's own namespace, {:?}", key.namespace));
            continue;
        }
        let source = ServiceIdentity::new(namespace, &source.name);
        let Some(retry) = read(&object.spec.retry_policy, &mut about) else { continue };
        for (i, destination) in object.spec.destinations.iter().enumerate() {
            let field = format!("spec.destinations[{i}]");
            if destination.kind != "Service" {
                about.error(format!("{field}.kind"), format!("{:?} is not Service; it is left out", destination.kind));
                continue;
            }
            let namespace = if destination.namespace.is_empty() { &key.namespace } else { &destination.namespace };
            let service = Key::new(namespace, &destination.name);
            match services.get(&service) {
                None => about.warning(format!("{field}.name"), format!("there is no service {service} (yet)")),
                Some(s) if !s.ports.iter().any(|p| p.protocol.is_http()) => {
                    about.no_effect(
                        &field,
                        format!("service {service} has no HTTP port, and only requests are retried"),
                    );
                }
                Some(_) => {}
            }
            match all.entry((source.clone(), service)) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(retry.clone());
                }
                std::collections::btree_map::Entry::Occupied(entry) => about.error(
                    field,
                    format!("another Retry, earlier by name, has this source and service {}; it counts", entry.key().1),
                ),
            }
        }
    }
    all
}

fn read(spec: &RetryPolicySpec, about: &mut About<'_>) -> Option<Retry> {
    let words: Vec<&str> = spec.retry_on.split(',').map(str::trim).filter(|w| !w.is_empty()).collect();
    if words.is_empty() {
        about.error("spec.retryPolicy.retryOn", "no word in it, so nothing is retried");
        return None;
    }
    for word in words.iter().filter(|word| !RETRY_ON.contains(word)) {
        about.warning("spec.retryPolicy.retryOn", format!("proxies do not know {word:?}"));
    }
    let mut time = |text: Option<&String>, field: &str| {
        let duration = text::duration(text?);
        match duration {
            Ok(duration) if !duration.is_zero() => Some(duration),
            Ok(_) => None,
            Err(e) => {
                about.error(format!("spec.retryPolicy.{field}"), format!("{e}; the default is used"));
                None
            }
        }
    };
    Some(Retry {
        on: words.join(","),
        per_try_timeout: time(spec.per_try_timeout.as_ref(), "perTryTimeout"),
        backoff: time(spec.retry_backoff_base_interval.as_ref(), "retryBackoffBaseInterval").unwrap_or(DEFAULT_BACKOFF),
        retries: spec.num_retries.unwrap_or(1),
    })
}

const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);

/// Conditions that Envoy knows without further settings.
const RETRY_ON: [&str; 13] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];
