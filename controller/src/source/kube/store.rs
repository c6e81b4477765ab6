//! What is known of the API server's objects, and which of it counts.
//!
//! Pure but for the clock: news in, snapshots out. At rest there is one copy of each object, the published one; changes
//! are made on a copy that becomes the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::kinds::MAY_BE_MISSING;
use super::watch::{Change, News, Taken};
use crate::api::{Key, Object, Objects};
use crate::lint::{Finding, Severity};
use crate::mesh::{MESH_CONFIG, is_monitored};
use crate::settings::Settings;
use crate::source::Snapshot;

/// The state of all watches.
#[derive(Debug)]
pub(super) struct Store {
    settings: Settings,
    kinds: &'static [&'static str],
    /// What was published last; empty before that.
    current: Arc<Snapshot>,
    /// What is to be published, if anything has changed.
    next: Option<Objects>,
    published: bool,
    /// The namespaces that are watched over, each with the generation of lists that first has its objects.
    monitored: BTreeMap<String, u64>,
    /// Those of them that are in what was published.
    shown: BTreeSet<String>,
    generation: u64,
    /// Kinds that were listed to the end, with the generation of the list.
    listed: BTreeMap<&'static str, u64>,
    /// Names in the lists that are coming in.
    listing: BTreeMap<&'static str, BTreeSet<Key>>,
    /// Objects that can't be understood.
    refused: BTreeMap<(&'static str, Key), Finding>,
    /// Kinds that the cluster lacks.
    missing: BTreeSet<&'static str>,
    failing: BTreeMap<&'static str, Failing>,
}

/// Failures of a watch with no success that is known of in between.
#[derive(Debug)]
struct Failing {
    first: Instant,
    last: Instant,
    reason: String,
}

impl Store {
    /// A store that waits for all `kinds`.
    pub(super) fn new(settings: Settings, kinds: &'static [&'static str]) -> Self {
        Self {
            settings,
            kinds,
            current: Arc::default(),
            next: None,
            published: false,
            monitored: BTreeMap::new(),
            shown: BTreeSet::new(),
            generation: 0,
            listed: BTreeMap::new(),
            listing: BTreeMap::new(),
            refused: BTreeMap::new(),
            missing: BTreeSet::new(),
            failing: BTreeMap::new(),
        }
    }

    /// Whether the namespaces were listed once.
    pub(super) fn knows_namespaces(&self) -> bool {
        self.listed.contains_key(NAMESPACE)
    }

    /// Grows when all kinds must be listed anew.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Takes in what a watch tells.
    pub(super) fn take(&mut self, News { kind, generation, change }: News) {
        match change {
            Change::Listing => {
                self.listing.insert(kind, BTreeSet::new());
                return;
            }
            Change::Failed { unknown_kind, reason } => {
                self.listing.remove(kind);
                self.failed(kind, generation, unknown_kind, reason);
                return;
            }
            Change::Listed(taken) => {
                self.listing.entry(kind).or_default().insert(taken.key.clone());
                self.apply(kind, taken);
            }
            Change::AllListed => self.all_listed(kind, generation),
            Change::Applied(taken) => self.apply(kind, taken),
            Change::Deleted(key) => self.remove(kind, &key),
        }
        self.failing.remove(kind);
        self.missing.remove(kind);
    }

    /// The next snapshot, if there is anything new and everything is known.
    pub(super) fn due(&mut self, now: Instant) -> Option<Arc<Snapshot>> {
        if !self.kinds.iter().all(|kind| self.listed.contains_key(kind)) {
            return None;
        }
        let shown = self.complete_namespaces();
        let findings = self.findings(now);
        if self.published && self.next.is_none() && findings == self.current.findings && shown == self.shown {
            return None;
        }
        let hidden = shown.len() < self.monitored.len();
        let objects = if hidden {
            let mut objects = self.objects().clone();
            objects.retain(|kind, key| shown.contains(namespace_of(kind, key)) || self.is_control(kind, key));
            // What is hidden is still to be published.
            self.next.get_or_insert_with(|| self.current.objects.clone());
            objects
        } else {
            self.next.take().unwrap_or_else(|| self.current.objects.clone())
        };
        if self.published
            && hidden
            && shown == self.shown
            && findings == self.current.findings
            && objects == self.current.objects
        {
            return None;
        }
        self.current = Arc::new(Snapshot { objects, findings, ..Snapshot::default() });
        self.shown = shown;
        self.published = true;
        Some(Arc::clone(&self.current))
    }

    /// Kinds that were not listed yet, with what the API server says about them.
    pub(super) fn awaited(&self) -> Vec<String> {
        let unlisted = self.kinds.iter().filter(|kind| !self.listed.contains_key(*kind));
        let words = |kind: &&'static str| match self.failing.get(kind) {
            Some(failing) => format!("{kind} ({})", failing.reason),
            None => (*kind).to_owned(),
        };
        unlisted.map(words).collect()
    }

    fn objects(&self) -> &Objects {
        self.next.as_ref().unwrap_or(&self.current.objects)
    }

    fn objects_mut(&mut self) -> &mut Objects {
        self.next.get_or_insert_with(|| self.current.objects.clone())
    }

    fn apply(&mut self, kind: &'static str, Taken { key, object }: Taken) {
        if let Ok(Object::Namespace(namespace)) = &object
            && !is_monitored(namespace, &self.settings.mesh_name)
        {
            return self.remove(kind, &key);
        }
        if kind == NAMESPACE {
            if !self.monitored.contains_key(&key.name) {
                self.generation += 1;
                self.monitored.insert(key.name.clone(), self.generation);
            }
        } else if !self.is_wanted(kind, &key) {
            return;
        }
        match object {
            Ok(object) => {
                self.refused.remove(&(kind, key));
                if !self.objects().holds(&object) {
                    self.objects_mut().insert(object);
                }
            }
            Err(error) => {
                let has_last_good = self.objects().contains(kind, &key);
                self.refused.insert((kind, key), Finding::refused(&error, has_last_good));
            }
        }
    }

    fn remove(&mut self, kind: &'static str, key: &Key) {
        self.refused.remove(&(kind, key.clone()));
        if self.objects().contains(kind, key) {
            self.objects_mut().remove(kind, key);
        }
        if kind == NAMESPACE && self.monitored.remove(&key.name).is_some() {
            let monitored = std::mem::take(&mut self.monitored);
            let control = self.settings.osm_namespace.clone();
            let stays = |kind: &str, key: &Key| {
                monitored.contains_key(namespace_of(kind, key))
                    || (key.namespace == control && CONTROL_KINDS.contains(&kind))
            };
            self.objects_mut().retain(stays);
            self.refused.retain(|(kind, key), _| stays(kind, key));
            self.monitored = monitored;
        }
    }

    fn all_listed(&mut self, kind: &'static str, generation: u64) {
        let names = self.listing.remove(kind).unwrap_or_default();
        let known = self.objects().names(kind).into_iter();
        let refused = self.refused.keys().filter(|(k, _)| *k == kind).map(|(_, key)| key.clone());
        let gone: Vec<Key> = known.chain(refused).filter(|key| !names.contains(key)).collect();
        for key in gone {
            self.remove(kind, &key);
        }
        self.listed.insert(kind, generation);
    }

    fn failed(&mut self, kind: &'static str, generation: u64, unknown_kind: bool, reason: String) {
        if unknown_kind && MAY_BE_MISSING.contains(&kind) {
            self.listed.insert(kind, generation);
            self.missing.insert(kind);
            return;
        }
        let now = Instant::now();
        let failing =
            self.failing.entry(kind).or_insert_with(|| Failing { first: now, last: now, reason: String::new() });
        if now.duration_since(failing.last) > QUIET {
            failing.first = now;
        }
        failing.last = now;
        failing.reason = reason;
    }

    /// The namespaces whose objects of all kinds are known.
    fn complete_namespaces(&self) -> BTreeSet<String> {
        let others = self.kinds.iter().filter(|kind| **kind != NAMESPACE);
        let known = others.filter_map(|kind| self.listed.get(kind)).min().copied().unwrap_or(u64::MAX);
        self.monitored.iter().filter(|(_, since)| **since <= known).map(|(name, _)| name.clone()).collect()
    }

    fn is_wanted(&self, kind: &str, key: &Key) -> bool {
        self.monitored.contains_key(&key.namespace) || self.is_control(kind, key)
    }

    /// Whether it is an object of the control plane's own namespace that counts for all.
    fn is_control(&self, kind: &str, key: &Key) -> bool {
        key.namespace == self.settings.osm_namespace && CONTROL_KINDS.contains(&kind)
    }

    fn findings(&self, now: Instant) -> Vec<Finding> {
        let mut all: Vec<Finding> = self.refused.values().cloned().collect();
        all.extend(self.missing.iter().map(|kind| {
            let words = format!("the cluster knows no {kind} objects (apply the custom resource definitions)");
            Finding::of_all(Severity::Warning, words)
        }));
        for (kind, failing) in &self.failing {
            let lasts = failing.last.duration_since(failing.first) >= NOTICED_AFTER;
            if lasts && now.duration_since(failing.last) < QUIET {
                let words = format!(
                    "{kind} objects can't be watched: {}; what is known of them stays in force",
                    failing.reason
                );
                all.push(Finding::of_all(Severity::Error, words));
            }
        }
        let config = Key::new(&self.settings.osm_namespace, MESH_CONFIG);
        if !self.objects().mesh_configs.contains_key(&config) {
            let words = "is not there; the defaults are in force: nothing is allowed but what policies allow";
            let object = Some(format!("MeshConfig {config}"));
            all.push(Finding { object, ..Finding::of_all(Severity::Warning, words) });
        }
        all
    }
}

/// The namespace that decides whether an object counts: its own, or itself.
fn namespace_of<'k>(kind: &str, key: &'k Key) -> &'k str {
    if kind == NAMESPACE { &key.name } else { &key.namespace }
}

const NAMESPACE: &str = "Namespace";
/// Kinds that count in the control plane's own namespace, though the mesh does not watch over it.
const CONTROL_KINDS: [&str; 4] = ["MeshConfig", "MeshRootCertificate", "ExtensionService", "Telemetry"];
/// A watch that fails for shorter is no news: servers restart.
const NOTICED_AFTER: Duration = Duration::from_secs(10);
/// A watch that has not failed for this long works: success alone is not heard of.
const QUIET: Duration = Duration::from_secs(20);
