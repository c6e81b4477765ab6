//! What comes out of a conversion: warnings, or a refusal with all its reasons.

use std::time::Duration;

use envoy_types::pb::{envoy::service::discovery::v3, google::protobuf::Any};
use prost::Message as _;

use super::WRAPPER;

/// Longest text of a refusal sent to a management server, in bytes.
pub const MAX_ERROR_BYTES: usize = 4096;

/// Things worth a log line that don't stop a resource, each with the path of the field.
pub type Warnings = Vec<String>;

/// A refused resource: every error found, not only the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Kind of resource for people: `Listener`, `Cluster`, …
    pub kind: &'static str,
    /// The resource's name, if it could be read.
    pub name: Option<String>,
    /// Each begins with the path of the field.
    pub errors: Vec<String>,
}

impl Rejected {
    /// A refusal of something that has no readable name.
    #[must_use]
    pub fn nameless(error: String) -> Self {
        Self { kind: "Resource", name: None, errors: vec![error] }
    }
}

impl std::fmt::Display for Rejected {
    /// `Listener "x": path: reason; path: reason`, cut at [`MAX_ERROR_BYTES`].
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = self.kind.to_owned();
        if let Some(name) = &self.name {
            text.push_str(&format!(" {name:?}"));
        }
        text.push_str(": ");
        text.push_str(&self.errors.join("; "));
        f.write_str(&cut(text))
    }
}

impl std::error::Error for Rejected {}

fn cut(mut text: String) -> String {
    if text.len() > MAX_ERROR_BYTES {
        let end = (0..=MAX_ERROR_BYTES - '…'.len_utf8()).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A resource as it came, without the `discovery.v3.Resource` wrapper that may have been around it.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// Name on the wrapper; none without a wrapper or without a name on it.
    pub name: Option<String>,
    /// Version on the wrapper; empty without one.
    pub version: String,
    /// Time to live from now.
    pub ttl: Option<Duration>,
    /// The resource; none = a heartbeat that only renews the time to live.
    pub resource: Option<Any>,
}

impl Received {
    /// Takes the wrapper off a resource of a state-of-the-world response.
    ///
    /// # Errors
    /// When the wrapper can't be decoded.
    pub fn unwrap(any: Any) -> Result<Self, Rejected> {
        if any.type_url != WRAPPER {
            return Ok(Self { name: None, version: String::new(), ttl: None, resource: Some(any) });
        }
        v3::Resource::decode(any.value.as_slice())
            .map(Self::from)
            .map_err(|e| Rejected::nameless(format!("discovery.v3.Resource can't be decoded: {e}")))
    }
}

impl From<v3::Resource> for Received {
    /// From a resource of a delta response.
    fn from(r: v3::Resource) -> Self {
        Self {
            name: (!r.name.is_empty()).then_some(r.name),
            version: r.version,
            ttl: r.ttl.and_then(|d| {
                let (seconds, nanos) = (u64::try_from(d.seconds).ok()?, u32::try_from(d.nanos).ok()?);
                Some(Duration::new(seconds, nanos))
            }),
            resource: r.resource,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_refusal_is_cut_at_a_character() {
        let r = Rejected { kind: "Cluster", name: Some("c".into()), errors: vec!["é".repeat(4000)] };
        let text = r.to_string();
        assert!(text.len() <= MAX_ERROR_BYTES && text.starts_with("Cluster \"c\": é") && text.ends_with('…'));
    }

    #[test]
    fn a_heartbeat_has_a_time_to_live_and_no_resource() {
        let wrapper = v3::Resource {
            name: "x".into(),
            ttl: Some(envoy_types::pb::google::protobuf::Duration { seconds: 3, nanos: 0 }),
            ..v3::Resource::default()
        };
        let any = Any { type_url: WRAPPER.into(), value: wrapper.encode_to_vec() };
        let got = Received::unwrap(any).unwrap();
        assert_eq!((got.name.as_deref(), got.ttl, got.resource), (Some("x"), Some(Duration::from_secs(3)), None));
    }
}
