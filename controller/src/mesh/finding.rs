//! What in the objects is wrong or has no effect, said once per place.

use std::fmt;

use crate::api::Key;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Understood, but this version does nothing with it.
    NoEffect,
    /// Works, but probably not as meant.
    Warning,
    /// Refused: this part of the object does not count. What it would have allowed stays forbidden.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEffect => "no effect",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One thing to tell the author of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The object's kind.
    pub kind: &'static str,
    /// The object's namespace and name.
    pub object: Key,
    /// Path of the field, such as `spec.rules[0].matches[1]`.
    pub field: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}: {}: {}", self.severity, self.kind, self.object, self.field, self.message)
    }
}

/// Collects the findings about one object.
pub(crate) struct About<'a> {
    kind: &'static str,
    object: &'a Key,
    findings: &'a mut Vec<Finding>,
}

impl<'a> About<'a> {
    pub(crate) fn new(kind: &'static str, object: &'a Key, findings: &'a mut Vec<Finding>) -> Self {
        Self { kind, object, findings }
    }

    pub(crate) fn no_effect(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::NoEffect, field.into(), message.into());
    }

    pub(crate) fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Warning, field.into(), message.into());
    }

    pub(crate) fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Error, field.into(), message.into());
    }

    fn add(&mut self, severity: Severity, field: String, message: String) {
        self.findings.push(Finding { kind: self.kind, object: self.object.clone(), field, severity, message });
    }
}
