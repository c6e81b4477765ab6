//! Why a pod is refused, in words that name the field.

/// A pod can't have a sidecar as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An annotation's value makes no sense.
    #[error("annotation {name} of the {of}: {} {problem}", quoted(value))]
    Annotation {
        /// `pod` or `namespace`.
        of: &'static str,
        /// The annotation.
        name: &'static str,
        /// Its value, or the part of it that is wrong.
        value: String,
        /// What is wrong and what to write.
        problem: String,
    },
    /// A value of MeshConfig makes no sense.
    #[error(
        "MeshConfig osm-mesh-config, {field}: {} {problem} (correct the MeshConfig; until then no pod gets a sidecar)",
        quoted(value)
    )]
    MeshConfig {
        /// The field.
        field: &'static str,
        /// Its value, or the part of it that is wrong.
        value: String,
        /// What is wrong and what to write.
        problem: String,
    },
    /// A field of the pod collides with the sidecar, or the sidecar can't do what it asks for.
    #[error("{path}: {problem}")]
    Field {
        /// The field.
        path: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Not a pod that Kubernetes would take either.
    #[error("the object is not a pod: {0}")]
    Malformed(String),
}

impl Refusal {
    pub(super) fn field(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { path: path.into(), problem: problem.into() }
    }
}

/// A foreign text as it may stand in a message: one line and short.
pub(super) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(SHOWN).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{more}")
}

const SHOWN: usize = 64;
