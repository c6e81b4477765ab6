//! What the control plane still waits for before proxies and new pods may be sent to it.
//!
//! Each part takes itself off the list once, and puts itself on it again only when it has ended: what is ready stays so
//! while the API server is away, since proxies and pods would have nobody else to turn to.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::watch;

/// A part that must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// A mesh made of all objects.
    Objects,
    /// ADS accepts proxies.
    Ads,
    /// New pods are reviewed.
    Injector,
    /// The API server trusts the injector.
    CaBundle,
}

/// The list.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    awaited: Mutex<BTreeMap<Part, String>>,
    /// Kinds whose first list has not come, each with the reason as far as it is known.
    pub(crate) kinds: watch::Sender<Vec<String>>,
}

impl Readiness {
    /// Waits for a part; `why` says what is missing.
    pub(crate) fn wait(&self, part: Part, why: impl Into<String>) {
        self.awaited.lock().insert(part, why.into());
    }

    /// Says more about a part, if it is still waited for.
    pub(crate) fn explain(&self, part: Part, why: impl Into<String>) {
        if let Some(words) = self.awaited.lock().get_mut(&part) {
            *words = why.into();
        }
    }

    /// The part is there.
    pub(crate) fn done(&self, part: Part) {
        self.awaited.lock().remove(&part);
    }

    /// What is waited for, a line each; empty when everything is there.
    pub(crate) fn awaited(&self) -> Vec<String> {
        let awaited = self.awaited.lock();
        let words = |(part, words): (&Part, &String)| match part {
            Part::Objects if !self.kinds.borrow().is_empty() => {
                format!("{words}; not listed yet: {}", self.kinds.borrow().join(", "))
            }
            _ => words.clone(),
        };
        awaited.iter().map(words).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_that_is_awaited_is_named_with_the_reason() {
        let readiness = Readiness::default();
        assert!(readiness.awaited().is_empty());
        readiness.wait(Part::Objects, "the objects have not been read yet");
        readiness.wait(Part::Ads, "ADS is not served yet");
        readiness.kinds.send_replace(vec!["Pod (forbidden)".to_owned()]);
        readiness.explain(Part::Ads, "no listener");
        let expected = ["the objects have not been read yet; not listed yet: Pod (forbidden)", "no listener"];
        assert_eq!(readiness.awaited(), expected);
        readiness.done(Part::Objects);
        readiness.done(Part::Ads);
        readiness.explain(Part::Ads, "too late to matter");
        assert!(readiness.awaited().is_empty());
    }
}
