//! What a client said about what it was sent: acceptances, refusals, and what to send instead.
//!
//! `error_detail` alone decides: clients differ in the version they put beside it. A refused
//! version is never sent again on the stream; in its place goes the last accepted one, or nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::xds::cache::{Named, Resource};

/// The book of one kind on one stream.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Responses without an answer yet, oldest first.
    outstanding: VecDeque<Sent>,
    accepted: Named,
    refused: BTreeMap<Arc<str>, Refused>,
    last_nonce: Option<String>,
    last_sent: Option<Instant>,
    /// Refusals without an acceptance in between.
    streak: u32,
    /// What was new has been taken back once, for want of an answer.
    gave_way: bool,
    pub(super) sent_version: Option<String>,
    pub(super) acked_version: Option<String>,
    pub(super) last_error: Option<(SystemTime, String)>,
    pub(super) nacks: u64,
}

#[derive(Debug)]
struct Sent {
    nonce: String,
    version: String,
    resources: Vec<Arc<Resource>>,
}

/// A version that the client refused.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub(super) version: Arc<str>,
    /// What was accepted before. It stays the same while the refusal lasts: late acceptances of
    /// other versions must not make two responses chase each other.
    instead: Option<Arc<Resource>>,
    pub(super) message: String,
    pub(super) at: SystemTime,
    /// Only taken back until the client answers.
    for_now: bool,
}

impl Ledger {
    /// A book that knows what the same proxy accepted on an earlier stream.
    pub(super) fn resume(accepted: Named) -> Self {
        Self { accepted, ..Self::default() }
    }

    /// Notes what the client says to hold already.
    pub(super) fn already_accepted<'a>(&mut self, known: impl Iterator<Item = &'a Arc<Resource>>) {
        for resource in known {
            let name = Arc::clone(&resource.name);
            self.accepted.insert(name, Arc::clone(resource));
        }
    }

    /// What the client has accepted, for the next stream.
    pub(super) fn into_accepted(self) -> Named {
        self.accepted
    }

    pub(super) fn is_latest(&self, nonce: &str) -> bool {
        self.last_nonce.as_deref() == Some(nonce)
    }

    pub(super) fn has_sent(&self) -> bool {
        self.last_nonce.is_some()
    }

    /// Whether the newest response has had no answer yet.
    pub(super) fn awaits_answer(&self) -> bool {
        let newest = self.outstanding.back().map(|sent| sent.nonce.as_str());
        newest.is_some_and(|nonce| self.is_latest(nonce))
    }

    pub(super) fn refusals(&self) -> &BTreeMap<Arc<str>, Refused> {
        &self.refused
    }

    /// The earliest moment for the next response: a client that refuses again and again gets one
    /// response per [`STORM_INTERVAL`].
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.last_sent.filter(|_| self.streak > 1).map(|sent| sent + STORM_INTERVAL)
    }

    /// What to send for a resource of the desired state: itself, or if the client refused this
    /// version the last accepted one.
    pub(super) fn effective<'a>(&'a self, wanted: &'a Arc<Resource>) -> Option<&'a Arc<Resource>> {
        match self.refused.get(&wanted.name) {
            Some(refused) if refused.version == wanted.version => refused.instead.as_ref(),
            _ => Some(wanted),
        }
    }

    /// Forgets what no longer matters for a new desired state.
    pub(super) fn prune(&mut self, wanted: &Named) {
        self.accepted.retain(|name, _| wanted.contains_key(name));
        self.refused
            .retain(|name, refused| wanted.get(name).is_some_and(|resource| resource.version == refused.version));
    }

    pub(super) fn sent(&mut self, nonce: String, version: String, resources: Vec<Arc<Resource>>, now: Instant) {
        if self.outstanding.len() == MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.last_nonce = Some(nonce.clone());
        self.last_sent = Some(now);
        self.sent_version = Some(version.clone());
        self.outstanding.push_back(Sent { nonce, version, resources });
    }

    /// Takes an acceptance.
    pub(super) fn ack(&mut self, nonce: &str) {
        let Some((_, sent)) = self.take(nonce) else {
            return;
        };
        self.streak = 0;
        self.gave_way &= self.release();
        self.acked_version = Some(sent.version);
        for resource in sent.resources {
            // The acceptance of a fallback says nothing new about what it stands in for.
            let refused = self.refused.get(&resource.name);
            if refused.is_some_and(|refused| refused.version == resource.version) {
                self.refused.remove(&resource.name);
            }
            self.accepted.insert(Arc::clone(&resource.name), resource);
        }
    }

    /// Takes a refusal. Returns the names that were in the refused response, all of which are to be
    /// sent again as [`Self::effective`] says: how much of it the client used is not known.
    pub(super) fn nack(&mut self, nonce: &str, message: &str, at: SystemTime) -> Vec<Arc<str>> {
        self.nacks += 1;
        self.last_error = Some((at, message.to_owned()));
        let Some((unanswered, sent)) = self.take(nonce) else {
            return Vec::new();
        };
        self.streak += 1;
        self.release();
        for resource in self.culprits(&unanswered, &sent.resources, message) {
            self.refuse(&resource, message, at, false);
        }
        let names: BTreeSet<_> = sent.resources.iter().map(|r| Arc::clone(&r.name)).collect();
        names.into_iter().collect()
    }

    /// When to give way if no answer comes: a client that withholds its answer while clusters warm
    /// does so for ever if one of them was refused together with others that were not. Only what it
    /// accepted on this stream is left then, so it must have accepted something.
    pub(super) fn gives_way_at(&self) -> Option<Instant> {
        let may = !self.gave_way && self.awaits_answer() && self.acked_version.is_some();
        let newest = self.outstanding.back().filter(|_| may)?;
        let is_doubtful = newest.resources.iter().any(|resource| self.is_new(resource));
        self.last_sent.filter(|_| is_doubtful).map(|sent| sent + PATIENCE)
    }

    /// Takes back what is new until the client answers; with luck it then says what was wrong.
    /// Returns the names to be sent again.
    pub(super) fn give_way(&mut self, at: SystemTime) -> Vec<Arc<str>> {
        self.gave_way = true;
        let sent = self.outstanding.iter().flat_map(|sent| &sent.resources);
        let doubtful: Vec<_> = sent.filter(|resource| self.is_new(resource)).cloned().collect();
        for resource in &doubtful {
            self.refuse(resource, "not answered", at, true);
        }
        doubtful.iter().map(|resource| Arc::clone(&resource.name)).collect()
    }

    /// Ends what was taken back for now; says whether there was any.
    fn release(&mut self) -> bool {
        let before = self.refused.len();
        self.refused.retain(|_, refused| !refused.for_now);
        before != self.refused.len()
    }

    fn refuse(&mut self, resource: &Arc<Resource>, message: &str, at: SystemTime, for_now: bool) {
        let known = self.refused.get(&resource.name);
        if known.is_some_and(|refused| refused.version == resource.version) {
            return;
        }
        let accepted = self.accepted.get(&resource.name);
        let refused = Refused {
            version: Arc::clone(&resource.version),
            instead: accepted.filter(|good| good.version != resource.version).cloned(),
            message: message.to_owned(),
            at,
            for_now,
        };
        self.refused.insert(Arc::clone(&resource.name), refused);
    }

    fn is_new(&self, resource: &Resource) -> bool {
        let known = self.accepted.get(&resource.name);
        known.is_none_or(|good| good.version != resource.version)
    }

    /// The resources that the message names, or if it names none all of the response that the
    /// client had not accepted before. The words may be late ones about an earlier response.
    fn culprits(&self, unanswered: &[Arc<Resource>], sent: &[Arc<Resource>], message: &str) -> Vec<Arc<Resource>> {
        let is_named = |r: &&Arc<Resource>| self.is_new(r) && mentions(message, &r.name);
        // The newest version of a name last, so that it is the one that stays refused.
        let named: BTreeMap<_, _> =
            unanswered.iter().chain(sent).filter(is_named).map(|r| (Arc::clone(&r.name), Arc::clone(r))).collect();
        if named.is_empty() {
            sent.iter().filter(|resource| self.is_new(resource)).cloned().collect()
        } else {
            named.into_values().collect()
        }
    }

    /// Takes a response out, with the resources of older ones: clients answer in order, so those
    /// will get no answer any more.
    fn take(&mut self, nonce: &str) -> Option<(Vec<Arc<Resource>>, Sent)> {
        let place = self.outstanding.iter().position(|s| s.nonce == nonce)?;
        let older = self.outstanding.drain(..place).flat_map(|sent| sent.resources).collect();
        Some((older, self.outstanding.pop_front()?))
    }
}

/// Whether `text` names `name` as a whole, not as a part of a longer name.
fn mentions(text: &str, name: &str) -> bool {
    if name.is_empty() {
        return false;
    }
    text.match_indices(name).any(|(start, _)| {
        let before = text[..start].chars().next_back();
        let mut after = text[start + name.len()..].chars();
        let ends = match after.next() {
            // The dot or colon that ends a sentence or begins the reason.
            Some('.' | ':') => after.next().is_none_or(|c| !in_name(c)),
            other => other.is_none_or(|c| !in_name(c)),
        };
        before.is_none_or(|c| !in_name(c)) && ends
    })
}

fn in_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '/' | '|' | '.' | '_' | '-' | ':')
}

/// A client that refuses everything gets at most one response of a kind per this time.
const STORM_INTERVAL: Duration = Duration::from_secs(10);
/// Longer than any client warms clusters (Envoy waits 15 s for what they need), and longer than a
/// client that is frozen keeps its connection.
const PATIENCE: Duration = Duration::from_secs(45);
/// Responses whose answers are remembered; clients answer each before they read the next.
const MAX_OUTSTANDING: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_whole_and_not_inside_another() {
        for (text, name, expected) in [
            ("Error adding cluster(s) a/b|80: bad", "a/b|80", true),
            ("cluster 'a/b|80' is bad", "a/b|80", true),
            ("a/b|80", "a/b|80", true),
            ("ends with a/b|80.", "a/b|80", true),
            ("about xa/b|80: bad", "a/b|80", false),
            ("about a/b|8080: bad", "a/b|80", false),
            ("about a/b|80|local: bad", "a/b|80", false),
            ("about a/b|80.x: bad", "a/b|80", false),
            ("nothing", "", false),
        ] {
            assert_eq!(mentions(text, name), expected, "{text:?} {name:?}");
        }
    }
}
