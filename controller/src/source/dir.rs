//! Folders of manifests as a source.
//!
//! Every file is parsed alone, every document alone. What can't be understood leaves the last good
//! version of it in force and is reported; the rest counts. An object that stands in two places
//! counts where it comes first by path.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::document::{Document, documents};
use super::files::{self, Found, Stamp};
use super::{Origin, Snapshot};
use crate::api::{Key, Object, ParseError, Parsed, parse};
use crate::lint::{Finding, LAST_GOOD, Severity};
use crate::mesh::cluster_ip;

/// Folders that are read again and again.
#[derive(Debug)]
pub struct Folder {
    roots: Vec<PathBuf>,
    service_cidr: Ipv4Net,
    files: BTreeMap<PathBuf, File>,
    /// Files that are being written, and since when we wait for them.
    unsettled: BTreeMap<PathBuf, Instant>,
    broken_roots: Vec<Finding>,
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    objects: BTreeMap<(&'static str, Key), Kept>,
    findings: Vec<Finding>,
}

#[derive(Debug, Clone)]
struct Kept {
    object: Object,
    document: usize,
}

/// What a look at the folders gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// Something was read anew or is gone.
    pub(super) changed: bool,
    /// Some files are being written: look again soon.
    pub(super) again: bool,
}

impl Folder {
    /// A source over these folders; services without an address get one from `service_cidr`.
    pub fn new(roots: Vec<PathBuf>, service_cidr: Ipv4Net) -> Self {
        Self { roots, service_cidr, files: BTreeMap::new(), unsettled: BTreeMap::new(), broken_roots: Vec::new() }
    }

    /// Reads everything once, as it stands. Blocks on the file system.
    pub fn read_once(mut self) -> Snapshot {
        self.look_at(Duration::ZERO);
        self.snapshot()
    }

    /// Reads what has changed. Blocks on the file system.
    pub(super) fn look(&mut self) -> Look {
        let changed = self.look_at(SETTLE_TIME);
        Look { changed, again: !self.unsettled.is_empty() }
    }

    fn look_at(&mut self, settle_time: Duration) -> bool {
        let mut changed = false;
        let mut present = BTreeSet::new();
        let mut broken = Vec::new();
        for root in self.roots.clone() {
            match files::manifests(&root) {
                Ok(found) => {
                    for file in found {
                        changed |= self.take(&file, settle_time);
                        present.insert(file.path);
                    }
                }
                Err((path, error)) => {
                    let words =
                        format!("the folder can't be read: {error}; what was read from it before stays in force");
                    broken.push(Finding::about_file(&path, Severity::Error, words));
                    present.extend(self.files.keys().filter(|file| file.starts_with(&root)).cloned());
                }
            }
        }
        let before = self.files.len();
        self.files.retain(|path, _| present.contains(path));
        self.unsettled.retain(|path, _| present.contains(path));
        changed |= before != self.files.len() || broken != self.broken_roots;
        self.broken_roots = broken;
        changed
    }

    /// Reads a file if it has changed and nobody is writing to it; says whether it was read.
    fn take(&mut self, found: &Found, settle_time: Duration) -> bool {
        let stamp = Stamp::of(&found.metadata);
        if self.files.get(&found.path).is_some_and(|file| file.stamp == Some(stamp)) {
            return false;
        }
        let is_fresh = files::age(&found.metadata).is_some_and(|age| age < settle_time);
        if is_fresh {
            let since = self.unsettled.entry(found.path.clone()).or_insert_with(Instant::now);
            if since.elapsed() < MAX_UNSETTLED {
                return false;
            }
        }
        self.unsettled.remove(&found.path);
        let file = self.files.entry(found.path.clone()).or_default();
        file.read(&found.path, found.metadata.len());
        // A write within the clock's grain of the last one could leave the stamp as it is.
        let is_young = files::age(&found.metadata).is_some_and(|age| age < STAMP_GRAIN);
        file.stamp = (!is_young || settle_time.is_zero()).then_some(stamp);
        if file.stamp.is_none() {
            self.unsettled.insert(found.path.clone(), Instant::now());
        }
        true
    }

    /// Everything that is in force.
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot { findings: self.broken_roots.clone(), ..Snapshot::default() };
        for (path, file) in &self.files {
            snapshot.findings.extend(file.findings.iter().cloned());
            for (id, kept) in &file.objects {
                let origin = Origin { file: path.clone(), document: kept.document };
                match snapshot.origins.entry(id.clone()) {
                    Entry::Vacant(place) => {
                        place.insert(origin);
                        snapshot.objects.insert(kept.object.clone());
                    }
                    Entry::Occupied(first) => snapshot.findings.push(twice(id, &origin, first.get())),
                }
            }
        }
        for key in cluster_ip::assign_missing(&mut snapshot.objects, self.service_cidr) {
            let words = format!("no address is left for it in {} (--service-cidr)", self.service_cidr);
            let origin = snapshot.origins.get(&("Service", key.clone()));
            snapshot.findings.push(Finding {
                file: origin.map(|origin| origin.file.clone()),
                document: origin.map(|origin| origin.document),
                object: Some(format!("Service {key}")),
                field: Some("spec.clusterIP".to_owned()),
                severity: Severity::Error,
                message: words,
            });
        }
        snapshot
    }
}

fn twice((kind, key): &(&'static str, Key), here: &Origin, first: &Origin) -> Finding {
    Finding {
        file: Some(here.file.clone()),
        document: Some(here.document),
        object: Some(format!("{kind} {key}")),
        field: None,
        severity: Severity::Error,
        message: format!(
            "stands in {}, document {} too, which counts; remove one of them",
            first.file.display(),
            first.document
        ),
    }
}

impl File {
    fn read(&mut self, path: &Path, size: u64) {
        self.findings.clear();
        if size > MAX_FILE_BYTES {
            let words = format!("{size} bytes are more than a manifest may have ({MAX_FILE_BYTES}); not read");
            self.findings.push(Finding::about_file(path, Severity::Error, words));
            return;
        }
        match fs::read_to_string(path) {
            Ok(text) => self.parse(path, &text),
            Err(error) => {
                let words = format!("can't be read: {error}{}", self.consequence());
                self.findings.push(Finding::about_file(path, Severity::Error, words));
            }
        }
    }

    fn parse(&mut self, path: &Path, text: &str) {
        let before = std::mem::take(&mut self.objects);
        let mut unknown_lost = false;
        for Document { number, values } in documents(path, text) {
            match values {
                Ok(values) => {
                    for value in values {
                        unknown_lost |= self.take(path, number, parse(value), &before);
                    }
                }
                Err(words) => {
                    unknown_lost = true;
                    let words = format!("{words}{}", consequence(!before.is_empty()));
                    let finding = Finding::about_file(path, Severity::Error, words);
                    self.findings.push(Finding { document: Some(number), ..finding });
                }
            }
        }
        if unknown_lost {
            // Nobody knows which of the earlier objects the broken text is about: all stay.
            for (id, kept) in before {
                self.objects.entry(id).or_insert(kept);
            }
        }
    }

    /// Takes a parsed object; says whether one was lost without a name.
    fn take(
        &mut self,
        path: &Path,
        number: usize,
        parsed: Result<Parsed, ParseError>,
        before: &BTreeMap<(&'static str, Key), Kept>,
    ) -> bool {
        match parsed {
            Ok(Parsed { object, unknown_fields }) => {
                let id = (object.kind(), object.key());
                for field in unknown_fields {
                    self.findings.push(unknown_field(path, number, &id, field));
                }
                match self.objects.entry(id) {
                    Entry::Vacant(place) => {
                        place.insert(Kept { object, document: number });
                    }
                    Entry::Occupied(first) => {
                        let here = Origin { file: path.to_owned(), document: number };
                        let there = Origin { file: path.to_owned(), document: first.get().document };
                        self.findings.push(twice(first.key(), &here, &there));
                    }
                }
                false
            }
            Err(error) => {
                let last_good = name_of(&error)
                    .and_then(|(kind, name)| before.iter().find(|((k, key), _)| *k == kind && is_named(key, name)));
                self.findings.push(refused(path, number, &error, last_good.is_some()));
                if let Some((id, kept)) = last_good {
                    self.objects.entry(id.clone()).or_insert_with(|| kept.clone());
                }
                matches!(error, ParseError::NotAnObject(_))
            }
        }
    }

    fn consequence(&self) -> &'static str {
        consequence(!self.objects.is_empty())
    }
}

fn consequence(has_last_good: bool) -> &'static str {
    if has_last_good { LAST_GOOD } else { "" }
}

fn unknown_field(path: &Path, number: usize, (kind, key): &(&'static str, Key), field: String) -> Finding {
    Finding {
        file: Some(path.to_owned()),
        document: Some(number),
        object: Some(format!("{kind} {key}")),
        field: Some(field),
        severity: Severity::Warning,
        message: "this field is not known and has no effect (is it misspelt?)".to_owned(),
    }
}

fn refused(path: &Path, number: usize, error: &ParseError, has_last_good: bool) -> Finding {
    Finding { file: Some(path.to_owned()), document: Some(number), ..Finding::refused(error, has_last_good) }
}

fn name_of(error: &ParseError) -> Option<(&str, &str)> {
    match error {
        ParseError::UnknownVersion { kind, name, .. } | ParseError::Field { kind, name, .. } => Some((kind, name)),
        ParseError::NotAnObject(_) | ParseError::UnknownKind { .. } => None,
    }
}

/// Whether the name as written, with or without namespace, is this key.
fn is_named(key: &Key, written: &str) -> bool {
    match written.split_once('/') {
        Some((namespace, name)) => key.name == name && (key.namespace == namespace || key.namespace.is_empty()),
        None => key.name == written && matches!(key.namespace.as_str(), "" | "default"),
    }
}

/// A file that was written to this recently may not be complete.
const SETTLE_TIME: Duration = Duration::from_millis(30);
/// Longest wait for a file that is written to all the time.
const MAX_UNSETTLED: Duration = Duration::from_secs(2);
/// Coarsest grain of a file system's clock that we reckon with.
const STAMP_GRAIN: Duration = Duration::from_millis(20);
const MAX_FILE_BYTES: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    struct Fixture {
        dir: tempfile::TempDir,
        folder: Folder,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(vec![dir.path().to_owned()], Settings::default().service_cidr);
        Fixture { dir, folder }
    }

    impl Fixture {
        fn write(&self, name: &str, text: &str) {
            let path = self.dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// Looks without waiting for files to settle; the names in force and the messages.
        fn look(&mut self) -> (Vec<String>, Vec<String>) {
            self.folder.look_at(Duration::ZERO);
            let snapshot = self.folder.snapshot();
            let names = snapshot.origins.keys().map(|(kind, key)| format!("{kind} {key}")).collect();
            (names, snapshot.findings.iter().map(ToString::to_string).collect())
        }
    }

    fn account(name: &str) -> String {
        format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: n}}\n")
    }

    fn route(name: &str, path: &str) -> String {
        format!(
            "apiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata: {{name: {name}, namespace: n}}\n\
             spec: {{matches: [{{name: m, pathRegex: {path}, methods: ['*']}}]}}\n"
        )
    }

    #[test]
    fn files_below_a_folder_are_read_and_hidden_ones_are_not() {
        let mut f = fixture();
        f.write("a.yaml", &account("a"));
        f.write("deep/er/b.yml", &account("b"));
        f.write("c.json", r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"c","namespace":"n"}}"#);
        f.write(".d.yaml", &account("d"));
        f.write("e.yaml~", &account("e"));
        f.write("f.txt", &account("f"));
        let (names, findings) = f.look();
        assert_eq!(names, ["ServiceAccount n/a", "ServiceAccount n/b", "ServiceAccount n/c"]);
        assert_eq!(findings, [""; 0]);
    }

    #[test]
    fn a_broken_document_keeps_the_last_good_version_of_its_file_and_the_rest_goes_on() {
        let mut f = fixture();
        f.write("a.yaml", &format!("{}---\n{}", account("a"), account("b")));
        f.write("z.yaml", &account("z"));
        f.look();
        f.write("a.yaml", &format!("{}---\n{}", account("new"), "kind: [\n"));
        f.write("z.yaml", &account("y"));
        let (names, findings) = f.look();
        assert_eq!(names, ["ServiceAccount n/a", "ServiceAccount n/b", "ServiceAccount n/new", "ServiceAccount n/y"]);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].contains("a.yaml, document 2: line "), "{findings:?}");
        assert!(findings[0].contains("stays in force"), "{findings:?}");
        f.write("a.yaml", &account("new"));
        assert_eq!(f.look().0, ["ServiceAccount n/new", "ServiceAccount n/y"]);
    }

    #[test]
    fn an_object_with_a_mistake_keeps_its_own_last_good_version() {
        let mut f = fixture();
        f.write("a.yaml", &format!("{}---\n{}", route("r", "/good"), account("a")));
        f.look();
        let bad = route("r", "/bad").replace("pathRegex", "pathRegx");
        f.write("a.yaml", &format!("{bad}---\n{}", account("b")));
        let (names, findings) = f.look();
        assert_eq!(names, ["HTTPRouteGroup n/r", "ServiceAccount n/b"]);
        let object = &f.folder.snapshot().objects.http_route_groups[&Key::new("n", "r")];
        assert!(format!("{object:?}").contains("/good"));
        assert!(findings[0].contains("document 1: HTTPRouteGroup n/r: spec.matches[0]"), "{findings:?}");
    }

    #[test]
    fn an_object_that_was_never_good_does_not_count() {
        let mut f = fixture();
        f.write("a.yaml", &route("r", "/x").replace("methods", "methodz"));
        let (names, findings) = f.look();
        assert_eq!(names, [""; 0]);
        assert!(!findings[0].contains("stays in force"), "{findings:?}");
    }

    #[test]
    fn an_object_in_two_places_counts_where_it_comes_first() {
        let mut f = fixture();
        f.write("b.yaml", &route("r", "/second"));
        f.write("a.yaml", &route("r", "/first"));
        let (names, findings) = f.look();
        assert_eq!(names, ["HTTPRouteGroup n/r"]);
        assert!(findings[0].contains("b.yaml, document 1: HTTPRouteGroup n/r: stands in"), "{findings:?}");
        assert!(format!("{:?}", f.folder.snapshot().objects).contains("/first"));
        fs::remove_file(f.dir.path().join("a.yaml")).unwrap();
        let (_, findings) = f.look();
        assert_eq!(findings, [""; 0]);
        assert!(format!("{:?}", f.folder.snapshot().objects).contains("/second"));
    }

    #[test]
    fn unknown_kinds_and_fields_are_reported() {
        let mut f = fixture();
        f.write("a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n");
        f.write("b.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {selectr: {a: b}}\n");
        let (_, findings) = f.look();
        assert!(findings[0].starts_with("no effect: ") && findings[0].contains("ConfigMap"), "{findings:?}");
        assert!(findings[1].contains("Service default/s: spec.selectr: "), "{findings:?}");
    }

    #[test]
    fn services_without_an_address_get_one() {
        let mut f = fixture();
        f.write("a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80}]}\n");
        f.look();
        let service = f.folder.snapshot().objects.services[&Key::new("default", "s")].clone();
        assert!(service.spec.as_ref().unwrap().cluster_ip.as_ref().unwrap().starts_with("10.96."));
    }

    #[test]
    fn a_folder_that_vanishes_keeps_what_was_read_from_it() {
        let mut f = fixture();
        f.write("a.yaml", &account("a"));
        f.look();
        fs::remove_dir_all(f.dir.path()).unwrap();
        let (names, findings) = f.look();
        assert_eq!(names, ["ServiceAccount n/a"]);
        assert!(findings[0].contains("the folder can't be read"), "{findings:?}");
    }

    #[test]
    fn a_file_that_cannot_be_read_keeps_its_last_good_version() {
        let mut f = fixture();
        f.write("a.yaml", &account("a"));
        f.look();
        fs::write(f.dir.path().join("a.yaml"), [0xff, 0xfe, 0x00]).unwrap();
        let (names, findings) = f.look();
        assert_eq!(names, ["ServiceAccount n/a"]);
        assert!(findings[0].contains("can't be read"), "{findings:?}");
    }

    #[test]
    fn a_file_that_is_being_written_is_left_alone_for_a_moment() {
        let mut f = fixture();
        f.write("a.yaml", &account("a"));
        let look = f.folder.look();
        assert_eq!(look, Look { changed: false, again: true });
        let deadline = Instant::now() + Duration::from_secs(5);
        while f.folder.look().again {
            assert!(Instant::now() < deadline);
        }
        assert_eq!(f.folder.snapshot().objects.len(), 1);
    }
}
