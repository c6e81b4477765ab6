//! What there is to say about objects, said where `kubectl` shows it: in their status, or as Events where a kind has none
//! of ours.
//!
//! Only the holder of the lease writes, and only what it has not written before. A write that changes nothing is none to
//! the API server, so a new holder writes everything once and needs to know nothing of its predecessor.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::events::{self, Regarding};
use crate::api::{Key, PolicyStatus, custom_resources};
use crate::lint::{Finding, Severity};
use crate::shared::{Report, Shared};

/// Writes whenever there is something new to say, for ever.
pub(super) async fn report(client: &Client, shared: &Shared) {
    let mut leader = shared.leader.subscribe();
    let mut reports = shared.report.subscribe();
    loop {
        // The senders live as long as `shared`.
        let _ = leader.wait_for(|leader| *leader).await;
        let mut writer = Writer::new(client.clone());
        while *leader.borrow_and_update() {
            let report = Arc::clone(&reports.borrow_and_update());
            let failed = writer.write(&report).await;
            let wait = if failed { RETRY_PAUSE } else { events::AGAIN_AFTER };
            tokio::select! {
                _ = timeout(wait, reports.changed()) => {}
                _ = leader.changed() => {}
            }
            // What changes together is written together.
            sleep(PAUSE).await;
        }
    }
}

type Id = (String, Key);

struct Writer {
    client: Client,
    resources: BTreeMap<String, ApiResource>,
    written: BTreeMap<Id, PolicyStatus>,
    events: events::Poster,
}

impl Writer {
    fn new(client: Client) -> Self {
        let resources = custom_resources().into_iter().map(|mut resource| {
            if resource.kind == "TrafficSplit" {
                // The stored version's rules forbid fields that its objects may have.
                resource.version = "v1alpha4".to_owned();
                resource.api_version = format!("{}/v1alpha4", resource.group);
            }
            (resource.kind.clone(), resource)
        });
        Self {
            events: events::Poster::new(client.clone()),
            client,
            resources: resources.collect(),
            written: BTreeMap::new(),
        }
    }

    /// Writes what is new; says whether something is left to be tried again.
    async fn write(&mut self, report: &Report) -> bool {
        let wanted = statuses(report, self.resources.keys());
        self.written.retain(|id, _| wanted.contains_key(id));
        let mut failed = false;
        let mut without_status = BTreeSet::new();
        for (id, status) in wanted {
            if self.written.get(&id) == Some(&status) {
                continue;
            }
            match self.patch(&id, &status).await {
                Ok(()) => {
                    self.written.insert(id, status);
                }
                Err(kube::Error::Api(answer)) if answer.code == NOT_FOUND => {
                    debug!(kind = id.0, object = %id.1, "gone, or a kind without status");
                    without_status.insert(id);
                }
                Err(error) => {
                    warn!(kind = id.0, object = %id.1, %error, "a status can't be written; trying again");
                    failed = true;
                }
            }
        }
        let about = |finding: &&Finding| {
            let id = finding.about().map(|(kind, key)| (kind.to_owned(), key));
            id.is_some_and(|id| !self.resources.contains_key(&id.0) || without_status.contains(&id))
        };
        let events: Vec<_> = report.findings.iter().filter(about).filter_map(|f| self.regarding(f, report)).collect();
        self.events.post(events).await || failed
    }

    async fn patch(&self, (kind, key): &Id, status: &PolicyStatus) -> Result<(), kube::Error> {
        let Some(resource) = self.resources.get(kind) else { return Ok(()) };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, resource);
        let patch = Patch::Merge(json!({ "status": status }));
        api.patch_status(&key.name, &PatchParams::default(), &patch).await.map(|_| ())
    }

    /// The object that a finding is about, if it is there and the finding is worth an Event.
    fn regarding(&self, finding: &Finding, report: &Report) -> Option<(Regarding, Finding)> {
        if finding.severity == Severity::NoEffect {
            return None;
        }
        let (kind, key) = finding.about()?;
        let metadata = report.snapshot.objects.metadata(kind, &key)?;
        let custom = self.resources.get(kind).map(|resource| resource.api_version.as_str());
        let api_version = custom.unwrap_or(if kind == "EndpointSlice" { "discovery.k8s.io/v1" } else { "v1" });
        let regarding = Regarding {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            key,
            uid: metadata.uid.clone().unwrap_or_default(),
        };
        Some((regarding, finding.clone()))
    }
}

/// What the status of each object of these kinds should say.
fn statuses<'a>(report: &Report, kinds: impl Iterator<Item = &'a String>) -> BTreeMap<Id, PolicyStatus> {
    let mut findings: BTreeMap<Id, Vec<&Finding>> = BTreeMap::new();
    for kind in kinds {
        for key in report.snapshot.objects.names(kind) {
            findings.insert((kind.clone(), key), Vec::new());
        }
        let about = |f: &&Finding| f.about().is_some_and(|(k, _)| k == kind);
        for finding in report.findings.iter().filter(about) {
            if let Some((kind, key)) = finding.about() {
                findings.entry((kind.to_owned(), key)).or_default().push(finding);
            }
        }
    }
    findings.into_iter().map(|(id, findings)| (id, status(findings))).collect()
}

fn status(mut findings: Vec<&Finding>) -> PolicyStatus {
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let is_error = findings.first().is_some_and(|finding| finding.is_error());
    let lines: Vec<String> = findings.iter().map(|finding| words(finding)).collect();
    let reason = if lines.is_empty() { COMMITTED.to_owned() } else { shortened(lines.join("\n"), MAX_REASON) };
    PolicyStatus { current_status: Some(if is_error { "error" } else { "committed" }.to_owned()), reason: Some(reason) }
}

/// A finding without the name of its object, which stands above it.
pub(super) fn words(finding: &Finding) -> String {
    let field = finding.field.as_deref().map(|field| format!("{field}: ")).unwrap_or_default();
    format!("{}: {field}{}", finding.severity, finding.message)
}

pub(super) fn shortened(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most - ELLIPSIS.len()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push_str(ELLIPSIS);
    }
    text
}

/// What OSM says of an object that counts.
const COMMITTED: &str = "successfully committed by the system";
const ELLIPSIS: &str = " …";
const MAX_REASON: usize = 4096;
const NOT_FOUND: u16 = 404;
const PAUSE: Duration = Duration::from_millis(500);
const RETRY_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, object: &str, message: &str) -> Finding {
        Finding {
            object: Some(object.to_owned()),
            field: Some("spec.x".to_owned()),
            ..Finding::of_all(severity, message)
        }
    }

    #[test]
    fn an_object_with_errors_is_in_error_and_says_the_worst_first() {
        let findings = vec![
            finding(Severity::Warning, "Retry n/r", "odd"),
            finding(Severity::Error, "Retry n/r", "wrong"),
            finding(Severity::Error, "Service n/r", "another object"),
        ];
        let report = Report { findings, ..Report::default() };
        let all = statuses(&report, ["Retry".to_owned(), "Egress".to_owned()].iter());
        assert_eq!(all.len(), 1, "{all:?}");
        let status = &all[&("Retry".to_owned(), Key::new("n", "r"))];
        assert_eq!(status.current_status.as_deref(), Some("error"));
        assert_eq!(status.reason.as_deref(), Some("error: spec.x: wrong\nwarning: spec.x: odd"));
    }

    #[test]
    fn an_object_of_which_nothing_is_to_be_said_is_committed() {
        assert_eq!(status(vec![]).current_status.as_deref(), Some("committed"));
        let odd = finding(Severity::NoEffect, "Retry n/r", "odd");
        assert_eq!(status(vec![&odd]).current_status.as_deref(), Some("committed"));
        assert!(status(vec![&odd]).reason.unwrap().starts_with("no effect: "));
    }

    #[test]
    fn long_texts_end_at_a_letter() {
        assert_eq!(shortened("kurz".to_owned(), 10), "kurz");
        assert_eq!(shortened("ööööööööö".to_owned(), 10), "ööö …");
    }
}
