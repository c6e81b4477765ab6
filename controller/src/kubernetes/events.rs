//! Events on objects that have no status of ours, such as Services.
//!
//! One Event per finding, by a name that follows from the finding, so replicas and restarts don't pile them up. The API
//! server forgets Events after an hour, so what still holds is said again before that.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::Status;
use kube::{Api, Client};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tracing::warn;

use super::status::{shortened, words};
use crate::api::Key;
use crate::lint::Finding;

/// The object that an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Regarding {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) key: Key,
    pub(super) uid: String,
}

/// How long an Event is good for.
pub(super) const AGAIN_AFTER: Duration = Duration::from_secs(50 * 60);

/// Posts Events and remembers which.
pub(super) struct Poster {
    client: Client,
    /// When each was posted, by namespace and name.
    posted: BTreeMap<Key, Instant>,
}

impl Poster {
    pub(super) fn new(client: Client) -> Self {
        Self { client, posted: BTreeMap::new() }
    }

    /// Posts what was not posted lately; says whether something is left to be tried again.
    pub(super) async fn post(&mut self, events: Vec<(Regarding, Finding)>) -> bool {
        let now = Instant::now();
        self.posted.retain(|_, at| now.duration_since(*at) < AGAIN_AFTER);
        let mut failed = false;
        for (regarding, finding) in events {
            let event = event(&regarding, &finding);
            let name = Key::new(
                event.metadata.namespace.clone().unwrap_or_default(),
                event.metadata.name.clone().unwrap_or_default(),
            );
            if self.posted.contains_key(&name) {
                continue;
            }
            let api: Api<Event> = Api::namespaced(self.client.clone(), &name.namespace);
            match api.create(&PostParams::default(), &event).await {
                Ok(_) => {}
                // Another replica, or we before a restart.
                Err(kube::Error::Api(answer)) if answer.code == CONFLICT => {}
                // Nothing that trying again would change. What is forbidden may be allowed later, unless the namespace goes.
                Err(kube::Error::Api(answer)) if is_final(&answer) => {
                    warn!(object = %regarding.key, reason = answer.message, "an Event is refused");
                }
                Err(error) => {
                    warn!(object = %regarding.key, %error, "an Event can't be posted; trying again");
                    failed = true;
                    continue;
                }
            }
            self.posted.insert(name, now);
        }
        failed
    }
}

fn is_final(answer: &Status) -> bool {
    let is_going = answer.details.iter().flat_map(|details| &details.causes).any(|cause| cause.reason == GOING);
    answer.code < TOO_MANY_REQUESTS && (answer.code != FORBIDDEN || is_going)
}

fn event(regarding: &Regarding, finding: &Finding) -> Event {
    let note = shortened(words(finding), MAX_NOTE);
    // Events of cluster-wide objects stand in `default`.
    let namespace = if regarding.key.namespace.is_empty() { "default" } else { &regarding.key.namespace };
    let now = Timestamp::now();
    // What still holds after AGAIN_AFTER gets another name, what is said again after a restart does not.
    let period = now.as_second() / (AGAIN_AFTER.as_secs() as i64 / 2);
    let digest = Sha256::digest(format!("{} {} {note} {period}", regarding.kind, regarding.uid));
    let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{hash}", regarding.key.name)),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        regarding: Some(ObjectReference {
            api_version: Some(regarding.api_version.clone()),
            kind: Some(regarding.kind.clone()),
            name: Some(regarding.key.name.clone()),
            namespace: Some(regarding.key.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            uid: Some(regarding.uid.clone()),
            ..ObjectReference::default()
        }),
        type_: Some("Warning".to_owned()),
        reason: Some(if finding.is_error() { "Refused" } else { "Questionable" }.to_owned()),
        action: Some("BuildMesh".to_owned()),
        note: Some(note),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some("openservicemesh.io/osm-controller".to_owned()),
        reporting_instance: Some("osm-controller".to_owned()),
        ..Event::default()
    }
}

/// The API server takes no longer ones.
const MAX_NOTE: usize = 1024;
/// The cause of a refusal in a namespace that is being deleted.
const GOING: &str = "NamespaceTerminating";
const FORBIDDEN: u16 = 403;
const CONFLICT: u16 = 409;
const TOO_MANY_REQUESTS: u16 = 429;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_forbidden_is_tried_again_unless_the_namespace_goes() {
        let going = json!({"code": 403, "details": {"causes": [{"reason": "NamespaceTerminating"}]}});
        for (answer, expected) in [
            (json!({"code": 403, "message": "cannot create resource \"events\""}), false),
            (going, true),
            (json!({"code": 404}), true),
            (json!({"code": 422}), true),
            (json!({"code": 429}), false),
            (json!({"code": 503}), false),
        ] {
            let status: Status = serde_json::from_value(answer.clone()).unwrap();
            assert_eq!(is_final(&status), expected, "{answer}");
        }
    }
}
