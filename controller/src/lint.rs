//! What there is to say about objects in files: one list for `check`, the log and the live report.
//!
//! A finding names the file, the document in it, the object and the field, and says what to do.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::api::{Key, ParseError};
pub use crate::mesh::Severity;
use crate::mesh::{self, Mesh};
use crate::settings::Settings;
use crate::source::{Folder, Origin, Snapshot};

/// One thing to tell the author of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The file, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Which document of the file, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<usize>,
    /// The object, as `Kind namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Path of the field, such as `spec.rules[0].kind`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// How bad it is.
    #[serde(serialize_with = "severity")]
    pub severity: Severity,
    /// What is wrong, and what to do.
    pub message: String,
}

fn severity<S: serde::Serializer>(severity: &Severity, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(severity)
}

impl Finding {
    /// A finding about a file as a whole.
    pub(crate) fn about_file(file: &Path, severity: Severity, message: impl Into<String>) -> Self {
        Self { file: Some(file.to_owned()), ..Self::of_all(severity, message) }
    }

    /// Why something that should be an object does not count; `has_last_good` if an earlier version of it does.
    pub(crate) fn refused(error: &ParseError, has_last_good: bool) -> Self {
        let consequence = if has_last_good { LAST_GOOD } else { "" };
        let finding = Self::of_all(Severity::Error, format!("{error}{consequence}"));
        match error {
            ParseError::NotAnObject(_) => finding,
            ParseError::UnknownKind { .. } => Self { severity: Severity::NoEffect, ..finding },
            ParseError::UnknownVersion { kind, name, api_version, supported } => Self {
                object: Some(format!("{kind} {name}")),
                field: Some("apiVersion".to_owned()),
                message: format!("{api_version} is not supported, write it as {supported}{consequence}"),
                ..finding
            },
            ParseError::Field { kind, name, path, reason } => Self {
                object: Some(format!("{kind} {name}")),
                field: Some(path.clone()),
                message: format!("{reason}{consequence}"),
                ..finding
            },
        }
    }

    /// A finding about no file or object in particular.
    pub(crate) fn of_all(severity: Severity, message: impl Into<String>) -> Self {
        Self { file: None, document: None, object: None, field: None, severity, message: message.into() }
    }

    /// Kind and name of the object.
    pub(crate) fn about(&self) -> Option<(&str, Key)> {
        let (kind, name) = self.object.as_deref()?.split_once(' ')?;
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        Some((kind, Key::new(namespace, name)))
    }

    /// What the mesh says about an object, with where the object stands.
    pub(crate) fn of_mesh(finding: &mesh::Finding, origin: Option<&Origin>) -> Self {
        Self {
            file: origin.map(|origin| origin.file.clone()),
            document: origin.map(|origin| origin.document),
            object: Some(format!("{} {}", finding.kind, finding.object)),
            field: (!finding.field.is_empty()).then(|| finding.field.clone()),
            severity: finding.severity,
            message: finding.message.clone(),
        }
    }

    /// Whether something asked for does not count.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// What is said of an object whose new version can't be understood.
pub(crate) const LAST_GOOD: &str = " (what was read before stays in force)";

/// `error: shop.yaml, document 2: TrafficTarget shop/a: spec.rules[0].kind: what is wrong`
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.severity)?;
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            if let Some(document) = self.document {
                write!(f, ", document {document}")?;
            }
            f.write_str(": ")?;
        }
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Reads folders once and says everything that the control plane would say about it.
/// Blocks on the file system.
pub fn lint(folders: &[PathBuf], settings: &Settings) -> Vec<Finding> {
    let snapshot = Folder::new(folders.to_vec(), settings.service_cidr).read_once();
    let built = Mesh::build(&snapshot.objects, settings);
    all(&snapshot, &built.findings)
}

/// The findings of the source and of the mesh, sorted.
pub(crate) fn all(snapshot: &Snapshot, of_mesh: &[mesh::Finding]) -> Vec<Finding> {
    let origin = |finding: &mesh::Finding| snapshot.origins.get(&(finding.kind, finding.object.clone()));
    let of_mesh = of_mesh.iter().map(|finding| Finding::of_mesh(finding, origin(finding)));
    let mut all: Vec<Finding> = snapshot.findings.iter().cloned().chain(of_mesh).collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_the_place_from_file_to_field() {
        let dir = tempfile::tempdir().unwrap();
        let text = "kind: ConfigMap\napiVersion: v1\nmetadata: {name: x}\n---\n\
                    apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\n\
                    metadata: {name: t, namespace: shop}\nspec: {destinatoin: {}}\n";
        std::fs::write(dir.path().join("a.yaml"), text).unwrap();
        let findings = lint(&[dir.path().to_owned()], &Settings::default());
        let errors: Vec<String> = findings.iter().filter(|f| f.is_error()).map(ToString::to_string).collect();
        assert_eq!(errors.len(), 1, "{findings:?}");
        assert!(errors[0].contains("a.yaml, document 2: TrafficTarget shop/t: spec"), "{errors:?}");
        assert!(findings.iter().any(|f| f.document == Some(1) && f.severity == Severity::NoEffect));
    }
}
