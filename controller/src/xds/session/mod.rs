//! One ADS stream as a pure state machine, for both protocols: requests in, responses out.
//!
//! Owns no input, output, clock or task: whoever drives it passes requests and the time, and takes
//! the next response when the transport has room for it, so only the newest state ever waits.
//! Invariants: a response holds only what changed (state of the world: of that kind); clusters and
//! endpoints go before what names them and leave after; nothing waits for a client's answer about
//! clusters; a refused version is not sent twice.

mod ledger;
mod report;
mod subscription;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource as WireResource,
};
use tokio::time::Instant;

use self::subscription::{Change, Subscription};
use super::Kind;
use super::cache::{Named, Resource, State};

pub use self::report::{KindReport, ResourceError};

/// Which of the two protocols a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Whole lists of names, whole states of clusters and listeners.
    StateOfTheWorld,
    /// Changes only.
    Delta,
}

/// The next message for the client.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// On a state-of-the-world stream.
    StateOfTheWorld(DiscoveryResponse),
    /// On a delta stream.
    Delta(DeltaDiscoveryResponse),
}

/// Why a stream must end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The client subscribes to more names than any proxy needs.
    #[error("{names} names of {kind} are more than one proxy may subscribe to")]
    TooManyNames {
        /// Of which kind.
        kind: Kind,
        /// How many.
        names: usize,
    },
}

/// What a request was, for counting and logging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A first request, a change of names, or a stale message.
    Request(Kind),
    /// The client accepted a response.
    Ack(Kind),
    /// The client refused a response, with its words.
    Nack(Kind, String),
    /// A kind that we don't serve, or none; not answered.
    Ignored(String),
}

/// What one proxy is known to accept, carried from one of its streams to the next.
#[derive(Debug, Default)]
pub struct Accepted([Named; 5]);

/// The state of one stream.
#[derive(Debug)]
pub struct Session {
    protocol: Protocol,
    state: Arc<State>,
    subs: [Subscription; 5],
    nonces: u64,
    /// When the first request for listeners or endpoints came, if none for clusters has.
    waits_for_clusters: Option<Instant>,
    /// When listeners or routes were last sent: what they no longer name goes a little later.
    last_switch: Option<Instant>,
    /// Nothing to send until an event, or until this time.
    quiet: Option<Option<Instant>>,
}

impl Session {
    /// A new stream of a proxy that should have `state`.
    pub fn new(protocol: Protocol, state: Arc<State>, accepted: Accepted) -> Self {
        Self {
            protocol,
            state,
            subs: accepted.0.map(Subscription::new),
            nonces: 0,
            waits_for_clusters: None,
            last_switch: None,
            quiet: None,
        }
    }

    /// What the proxy accepted, for its next stream.
    pub fn into_accepted(self) -> Accepted {
        Accepted(self.subs.map(|sub| sub.ledger.into_accepted()))
    }

    /// Which protocol the stream speaks.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The desired state that is being told.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Gives the proxy a new desired state.
    pub fn set_state(&mut self, state: Arc<State>) {
        for kind in Kind::ALL {
            self.subs[kind.index()].ledger.prune(state.of(kind));
        }
        self.state = state;
        self.quiet = None;
    }

    /// Takes a request of the state-of-the-world protocol.
    ///
    /// # Errors
    /// [`Refusal`] if the stream must end.
    pub fn on_request(&mut self, request: &DiscoveryRequest, now: Instant) -> Result<Seen, Refusal> {
        let Some(kind) = Kind::from_type_url(&request.type_url) else {
            return Ok(Seen::Ignored(request.type_url.clone()));
        };
        let error = request.error_detail.as_ref().map(|e| e.message.as_str());
        let seen = self.answer(kind, &request.response_nonce, error);
        let names = &request.resource_names;
        let nonce = request.response_nonce.as_str();
        let sub = &mut self.subs[kind.index()];
        // An answer to what was sent unasked is not a first request.
        if !sub.asked || (sub.unasked && nonce.is_empty()) {
            sub.asked = true;
            sub.unasked = false;
            sub.owes_first = kind.is_whole();
            sub.replace(kind, names)?;
        } else if sub.ledger.is_latest(nonce) || (nonce.is_empty() && (!sub.ledger.has_sent() || sub.grows_by(names))) {
            sub.replace(kind, names)?;
        }
        self.asked(kind, now);
        Ok(seen)
    }

    /// Takes a request of the delta protocol.
    ///
    /// # Errors
    /// [`Refusal`] if the stream must end.
    pub fn on_delta_request(&mut self, request: &DeltaDiscoveryRequest, now: Instant) -> Result<Seen, Refusal> {
        let Some(kind) = Kind::from_type_url(&request.type_url) else {
            return Ok(Seen::Ignored(request.type_url.clone()));
        };
        let error = request.error_detail.as_ref().map(|e| e.message.as_str());
        let seen = self.answer(kind, &request.response_nonce, error);
        let subscribe = &request.resource_names_subscribe;
        let sub = &mut self.subs[kind.index()];
        // An answer to what was sent unasked is not a first request.
        let first = !sub.asked || (sub.unasked && request.response_nonce.is_empty());
        if first {
            sub.asked = true;
            sub.unasked = false;
            let initial = &request.initial_resource_versions;
            sub.begin(kind, subscribe, initial, self.state.of(kind))?;
        } else {
            sub.alter(kind, subscribe, &request.resource_names_unsubscribe)?;
        }
        self.asked(kind, now);
        Ok(seen)
    }

    /// Whether [`Self::poll`] may have something: ask this before waiting for room to send.
    pub fn may_send(&self, now: Instant) -> bool {
        match self.quiet {
            None => true,
            Some(wake) => wake.is_some_and(|wake| now >= wake),
        }
    }

    /// The next response, if one is due. Call again until it returns none.
    pub fn poll(&mut self, now: Instant) -> Option<Message> {
        if !self.may_send(now) {
            return None;
        }
        self.send_clusters_to_the_silent(now);
        self.give_way_about_clusters(now);
        let clusters = &self.subs[Kind::Cluster.index()].ledger;
        let timers = [self.waits_for_clusters.map(|t| t + SILENCE), clusters.gives_way_at()];
        let mut wake = timers.into_iter().flatten().min();
        let mut all_made = true;
        for kind in Kind::ALL {
            let change = self.changes_to_make(kind);
            if !self.is_due(kind, &change) {
                continue;
            }
            match self.subs[kind.index()].ledger.held_until() {
                Some(until) if now < until => {
                    wake = Some(wake.map_or(until, |w| w.min(until)));
                    all_made = false;
                }
                _ => return Some(self.send(kind, change, now)),
            }
        }
        if all_made {
            // Backwards: what names something goes before it.
            let gone = Kind::ALL
                .into_iter()
                .rev()
                .map(|kind| (kind, self.changes_to_break(kind)))
                .find(|(_, change)| !change.gone.is_empty());
            if let Some((kind, change)) = gone {
                match self.switch_ends(now) {
                    None => return Some(self.send(kind, change, now)),
                    Some(end) => wake = Some(wake.map_or(end, |w| w.min(end))),
                }
            }
        }
        self.quiet = Some(wake);
        None
    }

    /// When to poll again although nothing happened. Meaningful after a poll that returned none.
    pub fn wake_at(&self) -> Option<Instant> {
        self.quiet.flatten()
    }

    /// What was sent and how it was taken, kind by kind, for those asked for.
    pub fn report(&self) -> Vec<KindReport> {
        report::report(&self.subs)
    }

    fn answer(&mut self, kind: Kind, nonce: &str, error: Option<&str>) -> Seen {
        let sub = &mut self.subs[kind.index()];
        match error {
            Some(message) => {
                let message = cut(message);
                let again = sub.ledger.nack(nonce, message, SystemTime::now());
                let again = again.into_iter().filter(|name| sub.wildcard || sub.names.contains(name));
                sub.owed.extend(again);
                Seen::Nack(kind, message.to_owned())
            }
            None if nonce.is_empty() => Seen::Request(kind),
            None => {
                sub.ledger.ack(nonce);
                Seen::Ack(kind)
            }
        }
    }

    fn asked(&mut self, kind: Kind, now: Instant) {
        self.quiet = None;
        if self.subs[Kind::Cluster.index()].asked {
            self.waits_for_clusters = None;
        } else if matches!(kind, Kind::Listener | Kind::Endpoint) {
            self.waits_for_clusters.get_or_insert(now);
        }
    }

    /// A client that reconnects while a cluster that it refused is still in its warming list never
    /// asks for clusters again, though it heals when it gets some. So it gets them unasked.
    fn send_clusters_to_the_silent(&mut self, now: Instant) {
        if self.waits_for_clusters.is_none_or(|t| now < t + SILENCE) {
            return;
        }
        self.waits_for_clusters = None;
        let sub = &mut self.subs[Kind::Cluster.index()];
        sub.asked = true;
        sub.unasked = true;
        sub.wildcard = true;
        sub.owes_first = true;
    }

    fn give_way_about_clusters(&mut self, now: Instant) {
        let sub = &mut self.subs[Kind::Cluster.index()];
        if sub.ledger.gives_way_at().is_some_and(|at| now >= at) {
            let names = sub.ledger.give_way(SystemTime::now());
            let names = names.into_iter().filter(|name| sub.wildcard || sub.names.contains(name));
            sub.owed.extend(names);
        }
    }

    /// What is to be sent in the first phase: everything but the removals, which only listeners
    /// have here since nothing else names a listener.
    fn changes_to_make(&mut self, kind: Kind) -> Change {
        let sub = &mut self.subs[kind.index()];
        if !sub.asked {
            return Change::default();
        }
        let mut change = sub.change(self.state.of(kind));
        if kind == Kind::Listener {
            return change;
        }
        if self.protocol == Protocol::StateOfTheWorld && !kind.is_whole() {
            // This protocol has no words for "not there", except in a whole state.
            sub.forget(&mut change);
            return change;
        }
        // The client waits for an answer about what it asked for; the rest can wait.
        change.gone.retain(|name| change.missing.contains(name));
        change
    }

    fn changes_to_break(&self, kind: Kind) -> Change {
        let sub = &self.subs[kind.index()];
        if !sub.asked {
            return Change::default();
        }
        let Change { gone, .. } = sub.change(self.state.of(kind));
        Change { gone, ..Change::default() }
    }

    fn is_due(&self, kind: Kind, change: &Change) -> bool {
        let sub = &self.subs[kind.index()];
        sub.owes_first || !change.send.is_empty() || !change.gone.is_empty() || !change.missing.is_empty()
    }

    /// If listeners or routes were sent a moment ago and not answered: until when to wait before
    /// taking away what they may have named before.
    fn switch_ends(&self, now: Instant) -> Option<Instant> {
        let end = self.last_switch? + SWITCH_TIME;
        let waits =
            [Kind::Listener, Kind::Route].into_iter().any(|kind| self.subs[kind.index()].ledger.awaits_answer());
        (waits && now < end).then_some(end)
    }

    fn send(&mut self, kind: Kind, change: Change, now: Instant) -> Message {
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        if matches!(kind, Kind::Listener | Kind::Route) {
            self.last_switch = Some(now);
        }
        if kind == Kind::Cluster {
            self.owe_endpoints_of(&change.send);
        }
        let whole = self.protocol == Protocol::StateOfTheWorld && kind.is_whole();
        let sub = &mut self.subs[kind.index()];
        sub.owes_first = false;
        sub.owed.clear();
        for name in change.gone.iter().chain(&change.missing) {
            sub.held.remove(name);
        }
        for resource in &change.send {
            sub.hold(resource);
        }
        let resources = if whole {
            // Held but no longer wanted: it stays in until the second phase.
            let kept = sub.held.values().filter_map(|held| held.resource.clone());
            let mut all: Vec<Arc<Resource>> = kept.collect();
            all.sort_by(|a, b| a.name.cmp(&b.name));
            all
        } else {
            change.send
        };
        let version = sub.version();
        let message = match self.protocol {
            Protocol::StateOfTheWorld => whole_message(kind, &nonce, &version, &resources),
            Protocol::Delta => {
                let mut removed = change.gone;
                removed.extend(change.missing);
                delta_message(kind, &nonce, &version, &resources, removed)
            }
        };
        sub.ledger.sent(nonce, version, resources, now);
        message
    }

    /// A client warms a changed cluster anew and needs its endpoints again for it, changed or not.
    /// A cluster's endpoints have the cluster's name.
    fn owe_endpoints_of(&mut self, clusters: &[Arc<Resource>]) {
        let endpoints = &mut self.subs[Kind::Endpoint.index()];
        for cluster in clusters {
            if endpoints.held.contains_key(&cluster.name) {
                endpoints.owed.insert(Arc::clone(&cluster.name));
            }
        }
    }
}

fn whole_message(kind: Kind, nonce: &str, version: &str, all: &[Arc<Resource>]) -> Message {
    Message::StateOfTheWorld(DiscoveryResponse {
        version_info: version.to_owned(),
        resources: all.iter().map(|r| r.body.clone()).collect(),
        type_url: kind.type_url().to_owned(),
        nonce: nonce.to_owned(),
        ..DiscoveryResponse::default()
    })
}

fn delta_message(
    kind: Kind,
    nonce: &str,
    version: &str,
    changed: &[Arc<Resource>],
    mut removed: Vec<Arc<str>>,
) -> Message {
    removed.sort();
    removed.dedup();
    let wire = |resource: &Arc<Resource>| WireResource {
        name: resource.name.to_string(),
        version: resource.version.to_string(),
        resource: Some(resource.body.clone()),
        ..WireResource::default()
    };
    Message::Delta(DeltaDiscoveryResponse {
        system_version_info: version.to_owned(),
        resources: changed.iter().map(wire).collect(),
        type_url: kind.type_url().to_owned(),
        removed_resources: removed.iter().map(|name| name.to_string()).collect(),
        nonce: nonce.to_owned(),
        ..DeltaDiscoveryResponse::default()
    })
}

/// A client's words, at most 4 KiB of them.
fn cut(message: &str) -> &str {
    let end = (0..=message.len().min(MAX_ERROR_BYTES)).rev().find(|at| message.is_char_boundary(*at));
    &message[..end.unwrap_or(0)]
}

/// How long a client may ask for listeners or endpoints without asking for clusters.
const SILENCE: Duration = Duration::from_secs(5);
/// Longest wait for a client's word about listeners and routes before removals.
const SWITCH_TIME: Duration = Duration::from_secs(2);
const MAX_ERROR_BYTES: usize = 4096;
