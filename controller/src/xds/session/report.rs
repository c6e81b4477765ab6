//! What a stream looks like from outside: for the admin interface.

use std::time::SystemTime;

use serde::Serialize;

use super::subscription::Subscription;
use crate::xds::Kind;

/// One kind on one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KindReport {
    /// `CDS`, `EDS`, `LDS`, `RDS`, `SDS`.
    pub kind: &'static str,
    /// Everything is subscribed.
    pub wildcard: bool,
    /// How many names are subscribed.
    pub names: usize,
    /// How many resources the client was sent.
    pub held: usize,
    /// The version last sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<String>,
    /// The version last accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acked: Option<String>,
    /// How many responses were refused on this stream.
    pub nacks: u64,
    /// The client's words at the last refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When the last refusal was, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error_at: Option<u64>,
    /// Resources that the client refuses: their last accepted version is in force, or nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<ResourceError>,
}

/// A resource whose wanted version the client refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceError {
    /// The resource's name.
    pub name: String,
    /// The version that was refused.
    pub version: String,
    /// The client's words.
    pub error: String,
    /// When, in seconds since 1970.
    pub at: u64,
}

pub(super) fn report(subs: &[Subscription; 5]) -> Vec<KindReport> {
    let asked = |kind: &Kind| subs[kind.index()].asked;
    Kind::ALL.into_iter().filter(asked).map(|kind| of_kind(kind, &subs[kind.index()])).collect()
}

fn of_kind(kind: Kind, sub: &Subscription) -> KindReport {
    let refused = sub.ledger.refusals().iter();
    let refused = refused.map(|(name, refused)| ResourceError {
        name: name.to_string(),
        version: refused.version.to_string(),
        error: refused.message.clone(),
        at: seconds(refused.at),
    });
    let last = sub.ledger.last_error.as_ref();
    KindReport {
        kind: kind.short(),
        wildcard: sub.wildcard,
        names: sub.names.len(),
        held: sub.held.len(),
        sent: sub.ledger.sent_version.clone(),
        acked: sub.ledger.acked_version.clone(),
        nacks: sub.ledger.nacks,
        last_error: last.map(|(_, words)| words.clone()),
        last_error_at: last.map(|(at, _)| seconds(*at)),
        refused: refused.collect(),
    }
}

fn seconds(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
