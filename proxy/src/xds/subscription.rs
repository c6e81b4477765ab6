//! What is asked for and what is held of one kind: names, versions, the last good of each resource, refusals.
//!
//! Knows nothing of the wire's two variants; `state` feeds it with items and asks what to send. A refused resource
//! never displaces the last good one and is never recorded as held.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use envoy_types::pb::google::protobuf::Any;
use tokio::time::Instant;

use super::{
    convert::{Received, Resource},
    kind::{Kind, name_of},
};
use crate::config::Name;

/// A resource that is held.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its checked form.
    pub resource: Resource,
    /// As it came.
    pub encoded: Arc<Any>,
    /// Its own version (delta), else that of the response.
    pub version: String,
    /// When it came.
    pub since: SystemTime,
    expires: Option<Instant>,
}

/// The latest refusal of a resource, kept until a good one comes or it is gone.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// As it came.
    pub encoded: Arc<Any>,
    /// Its own version (delta), else that of the response.
    pub version: String,
    /// Why.
    pub details: String,
    /// When.
    pub since: SystemTime,
}

/// The wait for a name.
#[derive(Clone, Copy, Debug)]
struct Wait {
    /// Since the first reference.
    since: Instant,
    /// Zero is without end.
    patience: Duration,
}

impl Wait {
    /// When it ends; none = never.
    fn end(self) -> Option<Instant> {
        // A wait too long for the clock is endless.
        self.since.checked_add(self.patience).filter(|_| !self.patience.is_zero())
    }
}

/// Turns an encoded resource into a checked one, or says why not.
pub type Check<'a> = dyn FnMut(Kind, &Any) -> Result<Resource, String> + 'a;

/// What came of a response.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Something held changed.
    pub changed: bool,
    /// Refusals, each with the name of its resource; empty = the response is acknowledged.
    pub errors: Vec<String>,
}

/// Subscription of one kind.
#[derive(Debug)]
pub struct Subscription {
    kind: Kind,
    /// Names that others refer to.
    wanted: BTreeMap<Name, Wait>,
    entries: BTreeMap<Name, Entry>,
    refused: BTreeMap<Name, Refusal>,
    /// Said by the server not to exist, or expired.
    absent: HashSet<Name>,
    /// Version of the last response that was taken whole (SotW).
    pub version: String,
    /// Nonce of the latest response on this stream.
    pub nonce: String,
    /// Names that this stream's server knows of; none = nothing sent on this stream.
    pub sent: Option<BTreeSet<Name>>,
    /// Since when it is asked for; none = it is not its turn.
    pub opened: Option<Instant>,
    /// A response has come at some time.
    pub answered: bool,
}

impl Subscription {
    /// Nothing asked, nothing held.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            wanted: BTreeMap::new(),
            entries: BTreeMap::new(),
            refused: BTreeMap::new(),
            absent: HashSet::new(),
            version: String::new(),
            nonce: String::new(),
            sent: None,
            opened: None,
            answered: false,
        }
    }

    /// What is held, by name.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<Name, Entry> {
        &self.entries
    }

    /// What was refused last, by name.
    #[must_use]
    pub fn refused(&self) -> &BTreeMap<Name, Refusal> {
        &self.refused
    }

    /// The names to ask for. Empty for the wildcard kinds.
    #[must_use]
    pub fn names(&self) -> BTreeSet<Name> {
        self.wanted.keys().cloned().collect()
    }

    /// Is a request of this kind due on a new stream? A named kind is never asked for with an empty list first: that
    /// would mean all.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.opened.is_some() && (self.kind.is_wildcard() || self.sent.is_some() || !self.wanted.is_empty())
    }

    /// Sets the names that others refer to, each with how long it is waited for; what is no longer wanted is forgotten. True
    /// if what is held changed.
    pub fn want(&mut self, names: &BTreeMap<Name, Duration>, now: Instant) -> bool {
        self.wanted.retain(|name, _| names.contains_key(name));
        for (name, patience) in names {
            let wait = self.wanted.entry(Arc::clone(name)).or_insert(Wait { since: now, patience: *patience });
            wait.patience = *patience;
        }
        let before = self.entries.len();
        self.entries.retain(|name, _| names.contains_key(name));
        self.refused.retain(|name, _| names.contains_key(name));
        self.absent.retain(|name| names.contains_key(name));
        self.entries.len() != before
    }

    /// Has `name` been answered in any way, or waited for long enough? What nobody refers to is not waited for.
    #[must_use]
    pub fn settled(&self, name: &str, now: Instant) -> bool {
        let answered = self.entries.contains_key(name) || self.refused.contains_key(name) || self.absent.contains(name);
        answered || self.wanted.get(name).is_none_or(|wait| wait.end().is_some_and(|end| now >= end))
    }

    /// When the next wait for a name ends.
    #[must_use]
    pub fn next_settled(&self, now: Instant) -> Option<Instant> {
        let waits = self.wanted.iter().filter(|(name, _)| !self.settled(name, now));
        waits.filter_map(|(_, wait)| wait.end()).min()
    }

    /// Takes the resources of a response. With `full`, what is not among them is gone.
    pub fn apply(&mut self, items: Vec<Received>, full: bool, now: Instant, check: &mut Check<'_>) -> Outcome {
        let mut outcome = Outcome::default();
        let mut named: BTreeMap<Name, Vec<Received>> = BTreeMap::new();
        let mut nameless = false;
        for item in items {
            match self.name_of_received(&item) {
                Ok(name) => named.entry(name).or_default().push(item),
                Err(error) => {
                    nameless = true;
                    outcome.errors.push(error);
                }
            }
        }
        let only_heartbeats = !named.is_empty() && named.values().flatten().all(|item| item.resource.is_none());
        // A resource without a legible name may be any of those held, so nothing is taken for removed then.
        if full && !nameless && !only_heartbeats {
            self.remove_others(&named, &mut outcome);
        }
        for (name, mut items) in named {
            if !self.kind.is_wildcard() && !self.wanted.contains_key(&name) {
                continue;
            }
            match (items.pop(), items.is_empty()) {
                (Some(item), true) => self.take(name, item, now, check, &mut outcome),
                (Some(item), false) => self.refuse(name, item, "occurs more than once".to_owned(), &mut outcome),
                (None, _) => {}
            }
        }
        outcome
    }

    /// Names said to be gone (delta). For kinds that others refer to by name what is held stays for as long as they do.
    pub fn remove(&mut self, names: &[String], outcome: &mut Outcome) {
        for name in names {
            self.refused.remove(name.as_str());
            if self.kind.is_wildcard() {
                outcome.changed |= self.entries.remove(name.as_str()).is_some();
            } else if let Some((name, _)) = self.wanted.get_key_value(name.as_str()) {
                outcome.changed |= self.absent.insert(Arc::clone(name));
            }
        }
    }

    /// Drops what was not renewed in time.
    pub fn expire(&mut self, now: Instant) {
        let expired: Vec<Name> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.expires.is_some_and(|at| at <= now))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        for name in expired {
            self.entries.remove(&name);
            self.absent.insert(name);
        }
    }

    /// When the next resource expires.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| entry.expires).min()
    }

    /// Versions by name, for a new delta stream. What the server said is gone is not among them.
    pub fn held_versions(&self) -> impl Iterator<Item = (&Name, &str)> {
        let present = self.entries.iter().filter(|(name, _)| !self.absent.contains(*name));
        present.map(|(name, entry)| (name, entry.version.as_str()))
    }

    fn name_of_received(&self, item: &Received) -> Result<Name, String> {
        let wrapper = item.name.as_deref().filter(|name| !name.is_empty());
        let Some(any) = &item.resource else {
            return wrapper
                .map(Arc::from)
                .ok_or_else(|| "a wrapped resource that has no name or cannot be decoded".to_owned());
        };
        if any.type_url != self.kind.type_url() {
            let who = wrapper.unwrap_or("a resource");
            return Err(format!("{who}: type {} in a response of type {}", any.type_url, self.kind.type_url()));
        }
        match (name_of(&any.value), wrapper) {
            (Some(name), Some(wrapper)) if *name != *wrapper => {
                Err(format!("{wrapper}: the wrapper's name differs from the resource's own, {name}"))
            }
            (Some(name), _) => Ok(name),
            (None, Some(wrapper)) => Ok(Arc::from(wrapper)),
            (None, None) => Err("a resource without a legible name".to_owned()),
        }
    }

    fn remove_others(&mut self, named: &BTreeMap<Name, Vec<Received>>, outcome: &mut Outcome) {
        let before = self.entries.len();
        self.entries.retain(|name, _| named.contains_key(name));
        self.refused.retain(|name, _| named.contains_key(name));
        outcome.changed |= self.entries.len() != before;
    }

    fn take(&mut self, name: Name, item: Received, now: Instant, check: &mut Check<'_>, outcome: &mut Outcome) {
        // A life too long for the clock is endless.
        let expires = item.ttl.and_then(|ttl| now.checked_add(ttl));
        let Some(any) = item.resource else {
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.expires = expires;
            }
            return;
        };
        if let Some(entry) = self.entries.get_mut(&name)
            && *entry.encoded == any
        {
            entry.expires = expires;
            entry.version = item.version;
            self.refused.remove(&name);
            outcome.changed |= self.absent.remove(&name);
            return;
        }
        let checked = check(self.kind, &any).and_then(|resource| match resource.name() == &name {
            true => Ok(resource),
            false => Err(format!("is named {} inside", resource.name())),
        });
        match checked {
            Ok(resource) => {
                let (encoded, version) = (Arc::new(any), item.version);
                let entry = Entry { resource, encoded, version, since: SystemTime::now(), expires };
                self.refused.remove(&name);
                self.absent.remove(&name);
                self.entries.insert(name, entry);
                outcome.changed = true;
            }
            Err(details) => self.refuse(name, Received { resource: Some(any), ..item }, details, outcome),
        }
    }

    fn refuse(&mut self, name: Name, item: Received, details: String, outcome: &mut Outcome) {
        outcome.errors.push(format!("{name}: {details}"));
        // A first answer that is no good still is an answer: whoever waits for it stops waiting.
        outcome.changed |= !self.refused.contains_key(&name);
        let encoded = Arc::new(item.resource.unwrap_or_default());
        self.refused.insert(name, Refusal { encoded, version: item.version, details, since: SystemTime::now() });
    }
}
