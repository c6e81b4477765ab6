//! Which resources of one kind a client asked for on one stream, and which it holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Refusal;
use super::ledger::Ledger;
use crate::xds::Kind;
use crate::xds::cache::{Named, Resource, version_of};

/// One kind on one stream.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// Whether the client has sent a request of this kind.
    pub(super) asked: bool,
    /// Whether it was put in place without a request, see the session's rule for silent clients.
    pub(super) unasked: bool,
    /// Everything of this kind is wanted.
    pub(super) wildcard: bool,
    /// These are wanted besides.
    pub(super) names: BTreeSet<Arc<str>>,
    /// An empty list no longer means everything, since names have been sent.
    ever_named: bool,
    /// An answer is owed even if it is empty.
    pub(super) owes_first: bool,
    /// An answer is owed for these names even if nothing changed.
    pub(super) owed: BTreeSet<Arc<str>>,
    /// What the client has been sent or said to hold.
    pub(super) held: BTreeMap<Arc<str>, Held>,
    pub(super) ledger: Ledger,
}

/// A resource on the client's side.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) version: Arc<str>,
    /// Unknown if the client only told us its version.
    pub(super) resource: Option<Arc<Resource>>,
}

/// The difference between what a client should hold and what it holds.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// To be sent: changed, new, or owed.
    pub(super) send: Vec<Arc<Resource>>,
    /// Owed, but not there.
    pub(super) missing: Vec<Arc<str>>,
    /// Held, but no longer there.
    pub(super) gone: Vec<Arc<str>>,
}

impl Held {
    fn only_version(version: &str) -> Self {
        Self { version: version.into(), resource: None }
    }
}

impl Subscription {
    /// A kind that was not asked for yet, of a proxy that accepted these on an earlier stream.
    pub(super) fn new(accepted: Named) -> Self {
        Self { ledger: Ledger::resume(accepted), ..Self::default() }
    }

    pub(super) fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Takes the full list of names of a state-of-the-world request.
    pub(super) fn replace(&mut self, kind: Kind, names: &[String]) -> Result<(), Refusal> {
        bounded(kind, names.len())?;
        self.wildcard =
            kind.is_whole() && (names.iter().any(|n| n == WILDCARD) || (names.is_empty() && !self.ever_named));
        self.ever_named |= !names.is_empty();
        let new: BTreeSet<Arc<str>> = names.iter().filter(|n| *n != WILDCARD).map(|n| n.as_str().into()).collect();
        self.owed.extend(new.difference(&self.names).cloned());
        self.names = new;
        self.drop_uncovered();
        Ok(())
    }

    /// Whether the list has everything that is subscribed by name, and more.
    pub(super) fn grows_by(&self, names: &[String]) -> bool {
        let new: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        new.len() > self.names.len() && self.names.iter().all(|name| new.contains(name.as_ref()))
    }

    /// Takes the first request of the delta protocol.
    pub(super) fn begin(
        &mut self,
        kind: Kind,
        subscribe: &[String],
        initial: &HashMap<String, String>,
        wanted: &Named,
    ) -> Result<(), Refusal> {
        bounded(kind, initial.len())?;
        self.wildcard = kind.is_whole() && subscribe.is_empty();
        self.owes_first = self.wildcard;
        self.alter(kind, subscribe, &[])?;
        // What the client already has in this version need not be answered again.
        self.owed.retain(|name| !initial.contains_key(name.as_ref()));
        self.held = initial
            .iter()
            .filter(|(name, _)| self.covers(name))
            .map(|(name, version)| (name.as_str().into(), Held::only_version(version)))
            .collect();
        let known = wanted.values().filter(|resource| {
            let held = self.held.get(&resource.name);
            held.is_some_and(|held| held.version == resource.version)
        });
        self.ledger.already_accepted(known);
        Ok(())
    }

    /// Takes the changes of a delta request; what is both unsubscribed and subscribed stays.
    pub(super) fn alter(&mut self, kind: Kind, subscribe: &[String], unsubscribe: &[String]) -> Result<(), Refusal> {
        bounded(kind, self.names.len() + subscribe.len())?;
        for name in unsubscribe {
            if name == WILDCARD {
                self.wildcard = false;
                continue;
            }
            self.names.remove(name.as_str());
            if self.wildcard {
                // Still covered: the client must hear that it stays, or goes.
                self.owed.insert(name.as_str().into());
            }
        }
        for name in subscribe {
            if name != WILDCARD {
                self.names.insert(name.as_str().into());
                self.owed.insert(name.as_str().into());
            } else if kind.is_whole() && !self.wildcard {
                self.wildcard = true;
                self.owes_first = true;
            }
        }
        self.drop_uncovered();
        Ok(())
    }

    /// What the client should hold and doesn't, and the other way round.
    pub(super) fn change(&self, wanted: &Named) -> Change {
        let mut change = Change::default();
        self.for_each_effective(wanted, |resource| {
            let held = self.held.get(&resource.name);
            let is_current = held.is_some_and(|held| held.version == resource.version);
            if !is_current || self.owed.contains(&resource.name) {
                change.send.push(Arc::clone(resource));
            }
        });
        let is_there = |name: &Arc<str>| {
            let wanted = wanted.get(name).filter(|_| self.covers(name));
            wanted.is_some_and(|resource| self.ledger.effective(resource).is_some())
        };
        let absent = |name: &&Arc<str>| !is_there(name);
        change.missing = self.owed.iter().filter(absent).cloned().collect();
        change.gone = self.held.keys().filter(absent).cloned().collect();
        change
    }

    fn for_each_effective(&self, wanted: &Named, mut each: impl FnMut(&Arc<Resource>)) {
        let mut visit = |resource| {
            if let Some(resource) = self.ledger.effective(resource) {
                each(resource);
            }
        };
        if self.wildcard {
            wanted.values().for_each(visit);
        } else {
            let named = self.names.iter().filter_map(|name| wanted.get(name));
            named.for_each(&mut visit);
        }
    }

    /// Forgets what is no longer there without telling anybody.
    pub(super) fn forget(&mut self, change: &mut Change) {
        for name in change.gone.drain(..).chain(change.missing.drain(..)) {
            self.held.remove(&name);
            self.owed.remove(&name);
        }
    }

    pub(super) fn hold(&mut self, resource: &Arc<Resource>) {
        let held = Held { version: Arc::clone(&resource.version), resource: Some(Arc::clone(resource)) };
        self.held.insert(Arc::clone(&resource.name), held);
    }

    /// A version for all that the client holds.
    pub(super) fn version(&self) -> String {
        version_of(self.held.iter().map(|(n, h)| (n.as_ref(), h.version.as_ref())))
    }

    fn drop_uncovered(&mut self) {
        if self.wildcard {
            return;
        }
        let names = &self.names;
        self.held.retain(|name, _| names.contains(name));
        self.owed.retain(|name| names.contains(name));
    }
}

fn bounded(kind: Kind, names: usize) -> Result<(), Refusal> {
    if names > MAX_NAMES {
        return Err(Refusal::TooManyNames { kind, names });
    }
    Ok(())
}

const WILDCARD: &str = "*";
/// Most names of one kind that a stream may subscribe to.
const MAX_NAMES: usize = 65_536;
