//! A row of the tables: what is sent, what the server answers, and the differences that are meant.

use super::upstream::Step;

/// A request, or several on one connection.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) send: Vec<u8>,
    pub(super) steps: Vec<Step>,
    /// Answers to wait for.
    pub(super) answers: usize,
    /// Sent to the listener `edge`, not to `front`.
    pub(super) edge: bool,
    pub(super) known: Vec<Known>,
}

/// Fields that differ on purpose, and the heading in the book that says why. A field that ends in `*` stands for all that
/// begin so.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub(super) why: &'static str,
    pub(super) fields: &'static [&'static str],
}

impl Known {
    pub(super) fn covers(&self, field: &str) -> bool {
        self.fields.iter().any(|pattern| matches(pattern, field))
    }
}

pub(super) fn matches(pattern: &str, field: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == field, |begin| field.starts_with(begin))
}

impl Row {
    pub(super) fn up(mut self, steps: &[Step]) -> Self {
        self.steps = steps.to_vec();
        self
    }

    pub(super) fn answers(mut self, answers: usize) -> Self {
        self.answers = answers;
        self
    }

    pub(super) fn edge(mut self) -> Self {
        self.edge = true;
        self
    }

    pub(super) fn known(mut self, why: &'static str, fields: &'static [&'static str]) -> Self {
        self.known.push(Known { why, fields });
        self
    }
}

/// Bytes as they stand.
pub(super) fn raw(name: &'static str, send: impl Into<Vec<u8>>) -> Row {
    Row { name, send: send.into(), steps: Vec::new(), answers: 1, edge: false, known: Vec::new() }
}

/// A GET.
pub(super) fn get(name: &'static str, path: &str) -> Row {
    raw(name, format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n"))
}

/// A GET of `/x` with these header lines.
pub(super) fn lines(name: &'static str, lines: &str) -> Row {
    with(name, "/x", lines)
}

/// A GET with these header lines.
pub(super) fn with(name: &'static str, path: &str, lines: &str) -> Row {
    raw(name, format!("GET {path} HTTP/1.1\r\nhost: h\r\n{lines}\r\n\r\n"))
}
