//! One proxy's desired state: encoded resources under their names, each with a hash of its bytes.
//!
//! Versions depend on content alone, so they are the same after a restart and in every replica,
//! and a resource that came out equal is not sent again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write as _;
use std::sync::Arc;

use envoy_types::pb::google::protobuf::Any;
use sha2::{Digest as _, Sha256};

use super::Kind;

/// A resource as it goes over the wire.
#[derive(PartialEq)]
pub struct Resource {
    /// The name under which it is subscribed.
    pub name: Arc<str>,
    /// Hash of the bytes.
    pub version: Arc<str>,
    /// The message with its type URL.
    pub body: Any,
}

impl Resource {
    /// Wraps an encoded message.
    pub fn new(kind: Kind, name: impl Into<Arc<str>>, bytes: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            version: short_hash(&Sha256::digest(&bytes)),
            body: Any { type_url: kind.type_url().to_owned(), value: bytes },
        }
    }
}

/// Shows name and version only: a secret's bytes hold a private key.
impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// The resources of one kind by name.
pub type Named = BTreeMap<Arc<str>, Arc<Resource>>;

/// Everything that one proxy should have.
#[derive(Debug, Default, Clone)]
pub struct State {
    kinds: [Named; 5],
}

impl State {
    /// Adds a resource. Returns false, changing nothing, if the kind has one of that name already:
    /// a proxy would refuse a response with both.
    pub fn insert(&mut self, kind: Kind, resource: Resource) -> bool {
        match self.kinds[kind.index()].entry(Arc::clone(&resource.name)) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(Arc::new(resource));
                true
            }
        }
    }

    /// The resources of a kind.
    pub fn of(&self, kind: Kind) -> &Named {
        &self.kinds[kind.index()]
    }
}

/// A version for a set of resources: a hash over their names and versions.
pub(super) fn version_of<'a>(entries: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut hash = Sha256::new();
    for (name, version) in entries {
        // Names hold no NUL, so no two sets run into each other.
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(version.as_bytes());
        hash.update([0]);
    }
    short_hash(&hash.finalize()).as_ref().to_owned()
}

/// The first 128 bits in hexadecimal: enough that equal versions mean equal content.
fn short_hash(digest: &[u8]) -> Arc<str> {
    let mut text = String::with_capacity(32);
    for byte in &digest[..16] {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_tell_content_apart_and_nothing_else() {
        let make = |bytes: &[u8]| Resource::new(Kind::Cluster, "a", bytes.to_vec()).version;
        assert_eq!(make(b"x"), make(b"x"));
        assert_ne!(make(b"x"), make(b"y"));
        let set = |entries: &[(&'static str, &'static str)]| version_of(entries.iter().copied());
        assert_ne!(set(&[("a", "b")]), set(&[("ab", "")]));
        assert_ne!(set(&[]), set(&[("", "")]));
    }

    #[test]
    fn the_first_of_two_resources_with_one_name_stays() {
        let mut state = State::default();
        assert!(state.insert(Kind::Route, Resource::new(Kind::Route, "r", vec![1])));
        assert!(!state.insert(Kind::Route, Resource::new(Kind::Route, "r", vec![2])));
        assert_eq!(state.of(Kind::Route)["r"].body.value, [1]);
        assert!(state.insert(Kind::Cluster, Resource::new(Kind::Cluster, "r", vec![2])));
    }

    #[test]
    fn a_resources_bytes_are_not_printed() {
        let secret = Resource::new(Kind::Secret, "s", b"private".to_vec());
        assert!(!format!("{secret:?}").contains("private"));
        assert!(!format!("{secret:?}").contains("112"));
    }
}
