//! A row of the tables: what is sent and what the server answers.

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
}

/// Bytes as they stand.
pub(super) fn raw(name: &'static str, send: impl Into<Vec<u8>>) -> Row {
    Row { name, send: send.into(), steps: Vec::new(), answers: 1, edge: false }
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
