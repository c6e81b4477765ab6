//! The client's side of the aggregated stream, without io: what to ask, what to acknowledge, what to refuse.
//!
//! Both variants of the protocol (state of the world and delta). The caller feeds responses, connections and time, and
//! sends what [`Client::take_requests`] gives. Resources outlive the stream: a broken one changes nothing that is held.
//!
//! Order at start: clusters, their endpoints and secrets; listeners only when those are there or have been waited for
//! long enough; then routes and the listeners' secrets. An update is acknowledged as soon as it is checked: an
//! acknowledgement says "valid", readiness says "in force".

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    },
    google::{protobuf::Any, rpc::Status},
};
use tokio::time::Instant;

use super::{
    convert::{Received, Resource},
    kind::Kind,
    resource::misfit,
    subscription::{Check, Outcome, Subscription},
};
use crate::config::{Name, Wanted, listener::Listener};

/// Which variant of the protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// State of the world (`GRPC`).
    Sotw,
    /// Incremental (`DELTA_GRPC`).
    Delta,
}

/// What the bootstrap says about the client.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Variant of the protocol.
    pub variant: Variant,
    /// `cds_config` is there.
    pub clusters: bool,
    /// `lds_config` is there.
    pub listeners: bool,
    /// Longest wait for clusters and what they need, and separately for listeners and what they need
    /// (`initial_fetch_timeout`); 15 s by default, zero = without end. What is needed may say otherwise ([`Wanted`]).
    pub patience: Duration,
    /// What static listeners and clusters ask for over ADS.
    pub roots: Vec<(Kind, Wanted)>,
    /// Names of static clusters.
    pub static_clusters: HashSet<Name>,
    /// Names of static listeners.
    pub static_listeners: HashSet<Name>,
}

/// A request to be sent; the stream adds the node.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// State of the world.
    Sotw(DiscoveryRequest),
    /// Incremental.
    Delta(DeltaDiscoveryRequest),
}

/// Counts of one kind, as Envoy names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Responses taken whole.
    pub update_success: u64,
    /// Responses with at least one refusal.
    pub update_rejected: u64,
    /// Requests that were sent.
    pub update_attempt: u64,
}

/// State of the client.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    kinds: BTreeMap<Kind, Subscription>,
    counts: BTreeMap<Kind, Counts>,
    connected: bool,
    changed: bool,
    out: VecDeque<Request>,
}

impl Client {
    /// Nothing asked yet; time starts to run for the first clusters.
    #[must_use]
    pub fn new(settings: Settings, now: Instant) -> Self {
        let kinds = Kind::ALL.into_iter().map(|kind| (kind, Subscription::new(kind))).collect();
        let (counts, out) = (BTreeMap::new(), VecDeque::new());
        let mut client = Self { settings, kinds, counts, connected: false, changed: false, out };
        let open = if client.settings.clusters { Kind::ALL[..3].to_vec() } else { vec![Kind::Endpoints, Kind::Secret] };
        for kind in open {
            client.kind_mut(kind).opened = Some(now);
        }
        client.rewire(now);
        client.progress(now);
        client
    }

    /// A new stream is there: everything is asked for again, versions are kept, nonces are not.
    pub fn connected(&mut self, now: Instant) {
        self.disconnected();
        self.connected = true;
        for kind in Kind::ALL {
            if self.kind(kind).asks() {
                self.subscribe(kind);
            }
        }
        self.progress(now);
    }

    /// The stream is gone; what is held stays.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.out.clear();
        for subscription in self.kinds.values_mut() {
            subscription.nonce.clear();
            subscription.sent = None;
        }
    }

    /// Takes a response of the state-of-the-world variant.
    ///
    /// # Errors
    /// Says why it was ignored altogether: a type that was not asked for.
    pub fn sotw(
        &mut self,
        response: DiscoveryResponse,
        now: Instant,
        check: &mut Check<'_>,
    ) -> Result<Vec<String>, String> {
        let kind = self.asked_kind(&response.type_url)?;
        let (version, nonce) = (response.version_info, response.nonce);
        let mut outcome = Outcome::default();
        let items = response.resources.into_iter().map(|any| received(any, &version)).collect();
        self.apply(kind, items, kind.is_wildcard(), now, check, &mut outcome);
        self.acknowledge(kind, version, nonce, &outcome.errors, now);
        Ok(outcome.errors)
    }

    /// Takes a response of the delta variant.
    ///
    /// # Errors
    /// Says why it was ignored altogether: a type that was not asked for.
    pub fn delta(
        &mut self,
        response: DeltaDiscoveryResponse,
        now: Instant,
        check: &mut Check<'_>,
    ) -> Result<Vec<String>, String> {
        let kind = self.asked_kind(&response.type_url)?;
        let mut outcome = Outcome::default();
        let (both, resources): (Vec<_>, Vec<_>) =
            response.resources.into_iter().partition(|r| response.removed_resources.contains(&r.name));
        outcome.errors.extend(both.iter().map(|r| format!("{}: is both added and removed", r.name)));
        let removed: Vec<String> = response
            .removed_resources
            .into_iter()
            .filter(|name| both.iter().all(|wrapper| wrapper.name != *name))
            .collect();
        let items = resources.into_iter().map(Received::from).collect();
        self.kind_mut(kind).remove(&removed, &mut outcome);
        self.apply(kind, items, false, now, check, &mut outcome);
        self.acknowledge(kind, response.system_version_info, response.nonce, &outcome.errors, now);
        Ok(outcome.errors)
    }

    /// Lets time pass: expiries, waits that are over.
    pub fn poll(&mut self, now: Instant) {
        for subscription in self.kinds.values_mut() {
            subscription.expire(now);
        }
        // An expiry or the end of a wait; both change what can be in force.
        self.changed = true;
        self.rewire(now);
        self.progress(now);
    }

    /// When [`Self::poll`] should be called next; none = no need before the next response.
    #[must_use]
    pub fn next_poll(&self, now: Instant) -> Option<Instant> {
        let expiries = self.kinds.values().filter_map(Subscription::next_expiry);
        let patience = self.settings.patience;
        let waits = self.kinds.values().filter_map(|subscription| subscription.next_settled(now));
        let first = [Kind::Cluster, Kind::Listener].into_iter().filter_map(|kind| {
            let subscription = self.kind(kind);
            let opened = subscription.opened.filter(|_| !subscription.answered && !patience.is_zero())?;
            Some(opened + patience).filter(|at| *at > now)
        });
        expiries.chain(waits).chain(first).min()
    }

    /// What is to be sent now, in this order.
    pub fn take_requests(&mut self) -> Vec<Request> {
        self.out.drain(..).collect()
    }

    /// Has anything changed that `assemble` looks at, since the last call?
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What is held of a kind.
    #[must_use]
    pub fn kind(&self, kind: Kind) -> &Subscription {
        &self.kinds[&kind]
    }

    /// Counts of a kind.
    #[must_use]
    pub fn counts(&self, kind: Kind) -> Counts {
        self.counts.get(&kind).copied().unwrap_or_default()
    }

    /// Has everything that `name` of `kind` stands for been answered, or waited for long enough?
    #[must_use]
    pub fn settled(&self, kind: Kind, name: &str, now: Instant) -> bool {
        self.kind(kind).settled(name, now)
    }

    /// The first clusters and all that they need are there, or have been waited for long enough.
    #[must_use]
    pub fn clusters_settled(&self, now: Instant) -> bool {
        self.first_answer(Kind::Cluster, self.settings.clusters, now)
            && self.references_settled(Kind::Cluster, now)
            && self.settings.roots.iter().all(|(kind, w)| *kind != Kind::Endpoints || self.settled(*kind, &w.name, now))
    }

    /// The first listeners and all that they need are there as well: the proxy's start is over.
    #[must_use]
    pub fn all_settled(&self, now: Instant) -> bool {
        self.clusters_settled(now)
            && self.first_answer(Kind::Listener, self.settings.listeners, now)
            && self.references_settled(Kind::Listener, now)
            && self.settings.roots.iter().all(|(kind, wanted)| self.settled(*kind, &wanted.name, now))
    }

    fn kind_mut(&mut self, kind: Kind) -> &mut Subscription {
        self.kinds.entry(kind).or_insert_with(|| Subscription::new(kind))
    }

    fn asked_kind(&self, type_url: &str) -> Result<Kind, String> {
        let kind = Kind::of_type_url(type_url).ok_or_else(|| format!("a response of unknown type {type_url:?}"))?;
        match self.kind(kind).sent {
            Some(_) => Ok(kind),
            None => Err(format!("a response of type {type_url}, which was not asked for")),
        }
    }

    fn first_answer(&self, kind: Kind, expected: bool, now: Instant) -> bool {
        let subscription = self.kind(kind);
        let patience = self.settings.patience;
        let waited = !patience.is_zero() && subscription.opened.is_some_and(|opened| now >= opened + patience);
        !expected || subscription.answered || waited
    }

    fn references_settled(&self, kind: Kind, now: Instant) -> bool {
        let mut settled = true;
        for entry in self.kind(kind).entries().values() {
            entry.resource.references(&mut |kind, wanted| settled &= self.settled(kind, &wanted.name, now));
        }
        settled
    }

    fn apply(
        &mut self,
        kind: Kind,
        items: Vec<Received>,
        full: bool,
        now: Instant,
        check: &mut Check<'_>,
        outcome: &mut Outcome,
    ) {
        // Taken out, so that the check can look at the other kinds meanwhile.
        let mut subscription = self.kinds.remove(&kind).unwrap_or_else(|| Subscription::new(kind));
        let others = &*self;
        let mut checked = |kind: Kind, any: &Any| -> Result<Resource, String> {
            let resource = check(kind, any)?;
            others.objection(&resource).map_or(Ok(resource), Err)
        };
        let applied = subscription.apply(items, full, now, &mut checked);
        outcome.changed |= applied.changed || !subscription.answered;
        outcome.errors.extend(applied.errors);
        subscription.answered = true;
        self.kinds.insert(kind, subscription);
        self.changed |= outcome.changed;
        if kind.is_wildcard() {
            self.rewire(now);
        }
    }

    /// What is wrong with a resource beside the others that are held.
    fn objection(&self, resource: &Resource) -> Option<String> {
        let taken = match resource {
            Resource::Cluster(cluster) => self.settings.static_clusters.contains(&cluster.name),
            Resource::Listener(listener) => self.settings.static_listeners.contains(&listener.name),
            Resource::Routes(_) | Resource::Assignment(_) | Resource::Secret { .. } => false,
        };
        if taken {
            return Some("has the name of a static resource".to_owned());
        }
        if let Resource::Routes(table) = resource {
            let listeners = self.kind(Kind::Listener).entries().values();
            let listeners: Vec<Arc<Listener>> = listeners.filter_map(|entry| entry.resource.listener()).collect();
            if let Some(misfit) = misfit(table, &listeners) {
                return Some(misfit);
            }
        }
        let known = |name: &str| {
            self.settings.static_clusters.contains(name)
                || self.kinds.get(&Kind::Cluster).is_some_and(|clusters| clusters.entries().contains_key(name))
        };
        let cluster = resource.unknown_cluster(&known)?;
        Some(format!("route: unknown cluster '{cluster}' (validate_clusters is set)"))
    }

    /// Derives the names to ask for from what is held, and asks for what is new.
    fn rewire(&mut self, now: Instant) {
        let mut wanted: BTreeMap<Kind, BTreeMap<Name, Duration>> = BTreeMap::new();
        let mut want = |kind: Kind, Wanted { name, patience }: &Wanted| {
            let patience = patience.unwrap_or(self.settings.patience);
            let names = wanted.entry(kind).or_default();
            names.entry(Arc::clone(name)).and_modify(|p| *p = longest(*p, patience)).or_insert(patience);
        };
        self.settings.roots.iter().for_each(|(kind, root)| want(*kind, root));
        for kind in [Kind::Cluster, Kind::Listener] {
            self.kind(kind).entries().values().for_each(|entry| entry.resource.references(&mut want));
        }
        for kind in [Kind::Endpoints, Kind::Secret, Kind::Routes] {
            let wanted = wanted.remove(&kind).unwrap_or_default();
            let changed = self.kind_mut(kind).want(&wanted, now);
            self.changed |= changed;
            let names: BTreeSet<Name> = wanted.into_keys().collect();
            if self.connected && self.kind(kind).asks() && self.kind(kind).sent.as_ref() != Some(&names) {
                self.subscribe(kind);
            }
        }
    }

    /// Opens the turn of listeners and routes once the clusters are there.
    fn progress(&mut self, now: Instant) {
        if self.kind(Kind::Routes).opened.is_some() || !self.clusters_settled(now) {
            return;
        }
        let open: &[Kind] = if self.settings.listeners { &[Kind::Listener, Kind::Routes] } else { &[Kind::Routes] };
        for kind in open {
            self.kind_mut(*kind).opened = Some(now);
            if self.connected && self.kind(*kind).asks() {
                self.subscribe(*kind);
            }
        }
    }

    /// Sends the names of a kind: all of them (SotW, or a new stream), or what changed (delta).
    fn subscribe(&mut self, kind: Kind) {
        let variant = self.settings.variant;
        let subscription = self.kind_mut(kind);
        let names = subscription.names();
        let before = subscription.sent.replace(names.clone());
        let request = match variant {
            Variant::Sotw => Request::Sotw(sotw_request(kind, subscription)),
            Variant::Delta => {
                let first = before.is_none();
                let before = before.unwrap_or_default();
                let held = subscription.held_versions().filter(|_| first);
                Request::Delta(DeltaDiscoveryRequest {
                    type_url: kind.type_url().to_owned(),
                    resource_names_subscribe: names.difference(&before).map(|name| name.to_string()).collect(),
                    resource_names_unsubscribe: before.difference(&names).map(|name| name.to_string()).collect(),
                    initial_resource_versions: held.map(|(n, v)| (n.to_string(), v.to_owned())).collect(),
                    ..Default::default()
                })
            }
        };
        self.send(kind, request);
    }

    fn acknowledge(&mut self, kind: Kind, version: String, nonce: String, errors: &[String], now: Instant) {
        let good = errors.is_empty();
        let counts = self.counts.entry(kind).or_default();
        if good {
            counts.update_success += 1;
        } else {
            counts.update_rejected += 1;
        }
        let error_detail = (!good).then(|| refusal(errors));
        let variant = self.settings.variant;
        let subscription = self.kind_mut(kind);
        nonce.clone_into(&mut subscription.nonce);
        if good {
            subscription.version = version;
        }
        let request = match variant {
            Variant::Sotw => Request::Sotw(DiscoveryRequest { error_detail, ..sotw_request(kind, subscription) }),
            Variant::Delta => Request::Delta(DeltaDiscoveryRequest {
                type_url: kind.type_url().to_owned(),
                response_nonce: nonce,
                error_detail,
                ..Default::default()
            }),
        };
        self.send(kind, request);
        self.progress(now);
    }

    fn send(&mut self, kind: Kind, request: Request) {
        self.counts.entry(kind).or_default().update_attempt += 1;
        self.out.push_back(request);
    }
}

/// The longer wait of two; zero is without end.
fn longest(a: Duration, b: Duration) -> Duration {
    if a.is_zero() || b.is_zero() { Duration::ZERO } else { a.max(b) }
}

fn sotw_request(kind: Kind, subscription: &Subscription) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: subscription.version.clone(),
        resource_names: subscription.names().iter().map(|name| name.to_string()).collect(),
        type_url: kind.type_url().to_owned(),
        response_nonce: subscription.nonce.clone(),
        ..Default::default()
    }
}

/// INVALID_ARGUMENT with all refusals, cut so that no response can make us send megabytes.
fn refusal(errors: &[String]) -> Status {
    const MAX_MESSAGE_BYTES: usize = 16 * 1024;
    let mut message = errors.join("\n");
    if message.len() > MAX_MESSAGE_BYTES {
        let end = (0..=MAX_MESSAGE_BYTES).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(end);
        message.push_str("… (more)");
    }
    Status { code: tonic::Code::InvalidArgument as i32, message, details: Vec::new() }
}

fn received(any: Any, version: &str) -> Received {
    // An illegible wrapper becomes a resource without a name, which is refused and stops removals.
    let mut received = Received::unwrap(any).unwrap_or_else(|_| Received {
        name: None,
        version: String::new(),
        ttl: None,
        resource: None,
    });
    if received.version.is_empty() {
        version.clone_into(&mut received.version);
    }
    received
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
