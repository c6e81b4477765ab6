//! The path of a field inside a resource, and the report that collects what was found there.

use std::fmt;

/// A path, linked from leaf to root on the stack; it costs nothing until it is printed.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
    Key(&'a str),
    Type(&'a str),
}

impl<'a> At<'a> {
    /// The resource itself.
    pub(super) const ROOT: At<'static> = At { parent: None, step: Step::Root };

    fn step<'b>(&'b self, step: Step<'b>) -> At<'b>
    where
        'a: 'b,
    {
        At { parent: Some(self), step }
    }

    /// A field of the message here.
    pub(super) fn field<'b>(&'b self, name: &'b str) -> At<'b> {
        self.step(Step::Field(name))
    }

    /// An item of the list here.
    pub(super) fn index(&self, index: usize) -> At<'_> {
        self.step(Step::Index(index))
    }

    /// A value of the map here.
    pub(super) fn key<'b>(&'b self, key: &'b str) -> At<'b> {
        self.step(Step::Key(key))
    }

    /// The message inside the `Any` here, by its full or short name.
    pub(super) fn inside<'b>(&'b self, type_name: &'b str) -> At<'b> {
        self.step(Step::Type(super::schema::short(type_name)))
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) if self.parent.is_none_or(|p| matches!(p.step, Step::Root)) => f.write_str(name),
            Step::Field(name) => write!(f, ".{name}"),
            Step::Index(i) => write!(f, "[{i}]"),
            Step::Key(key) => write!(f, "[{key:?}]"),
            Step::Type(name) => write!(f, "[{name}]"),
        }
    }
}

/// Errors and warnings found in one resource.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Each stops the resource.
    pub(super) errors: Vec<String>,
    /// Worth a log line.
    pub(super) warnings: Vec<String>,
}

impl Report {
    /// Notes an error.
    pub(super) fn error(&mut self, at: &At<'_>, reason: impl fmt::Display) {
        self.errors.push(line(at, reason));
    }

    /// Notes a warning.
    pub(super) fn warn(&mut self, at: &At<'_>, reason: impl fmt::Display) {
        self.warnings.push(line(at, reason));
    }
}

fn line(at: &At<'_>, reason: impl fmt::Display) -> String {
    let path = at.to_string();
    if path.is_empty() { reason.to_string() } else { format!("{path}: {reason}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_from_the_root() {
        let (a, b) = (At::ROOT.field("filter_chains"), "envoy.x.v3.HttpConnectionManager");
        let a = a.index(0);
        let (a, c) = (a.field("typed_config"), "k");
        let a = a.inside(b);
        let a = a.field("map");
        assert_eq!(a.key(c).to_string(), r#"filter_chains[0].typed_config[HttpConnectionManager].map["k"]"#);
    }
}
