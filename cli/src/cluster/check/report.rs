//! What checks found, and how it is shown. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Works, but somebody should look.
    Warning,
    /// Doesn't work.
    Error,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The group it is shown in.
    pub category: &'static str,
    /// The check, in one word.
    pub name: &'static str,
    /// How it ended.
    pub state: State,
    /// What was found.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Outcome {
    /// All well.
    pub(super) fn ok(category: &'static str, name: &'static str, message: impl Into<String>) -> Self {
        Self { category, name, state: State::Ok, message: message.into(), hint: None }
    }

    /// Somebody should look.
    pub(super) fn warning(category: &'static str, name: &'static str, message: impl Into<String>) -> Self {
        Self { state: State::Warning, ..Self::ok(category, name, message) }
    }

    /// Broken.
    pub(super) fn error(category: &'static str, name: &'static str, message: impl Into<String>) -> Self {
        Self { state: State::Error, ..Self::ok(category, name, message) }
    }

    /// With what to do about it.
    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// `‼ category: message    fix: hint`.
    #[must_use]
    pub fn line(&self, colours: bool) -> String {
        let fix = self.hint.as_ref().map_or_else(String::new, |hint| format!("    fix: {hint}"));
        format!("{} {}: {}{fix}", self.mark(colours), self.category, self.message)
    }

    fn mark(&self, colours: bool) -> String {
        let (mark, colour) = match self.state {
            State::Ok => ('√', 32),
            State::Warning => ('‼', 33),
            State::Error => ('×', 31),
        };
        if colours { format!("\x1b[{colour}m{mark}\x1b[0m") } else { mark.to_string() }
    }
}

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The worst of the outcomes.
    pub status: State,
    /// The outcomes in the order of the checks.
    pub checks: Vec<Outcome>,
    /// How long it took.
    pub seconds: f64,
}

impl Report {
    pub(super) fn new(checks: Vec<Outcome>, took: Duration) -> Self {
        let status = checks.iter().map(|outcome| outcome.state).max().unwrap_or(State::Ok);
        Self { status, checks, seconds: took.as_secs_f64() }
    }

    fn summary(&self) -> String {
        let count = |state| self.checks.iter().filter(|outcome| outcome.state == state).count();
        let (errors, warnings) = (count(State::Error), count(State::Warning));
        let plural = |n: usize, word: &str| if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") };
        let found = match (errors, warnings) {
            (0, 0) => "√".to_owned(),
            (0, _) => plural(warnings, "warning"),
            _ => format!("{}, {}", plural(errors, "error"), plural(warnings, "warning")),
        };
        format!("Status: {found} ({}, {:.1} s)", plural(self.checks.len(), "check"), self.seconds)
    }
}

/// The form of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Every check, for people.
    Table,
    /// Only what isn't well, a line each.
    Short,
    /// For programs.
    Json,
    /// For programs, and for people who like it.
    Yaml,
}

pub(super) fn table(report: &Report, colours: bool) -> String {
    let mut text = String::new();
    let mut category = "";
    for outcome in &report.checks {
        if outcome.category != category {
            category = outcome.category;
            let gap = if text.is_empty() { "" } else { "\n" };
            writeln!(text, "{gap}{category}").expect("a String takes all that is written");
        }
        let mark = outcome.mark(colours);
        writeln!(text, "{mark} {}: {}", outcome.name, outcome.message).expect("a String takes all that is written");
        if let Some(hint) = &outcome.hint {
            writeln!(text, "    fix: {hint}").expect("a String takes all that is written");
        }
    }
    text + "\n" + &report.summary()
}

pub(super) fn short(report: &Report, colours: bool) -> String {
    let found = report.checks.iter().filter(|outcome| outcome.state != State::Ok);
    let mut lines: Vec<String> = found.map(|outcome| outcome.line(colours)).collect();
    lines.push(report.summary());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let checks = vec![
            Outcome::ok("kubernetes", "api", "answers"),
            Outcome::warning("identity", "authority", "expires in 29 days").hint("make a new one"),
            Outcome::error("injection", "pods", "2 without"),
        ];
        Report::new(checks, Duration::from_millis(2100))
    }

    #[test]
    fn each_check_is_one_line_with_its_mark_and_the_hint_below() {
        let text = table(&report(), false);
        assert_eq!(
            text,
            "kubernetes\n√ api: answers\n\nidentity\n‼ authority: expires in 29 days\n    fix: make a new one\n\n\
             injection\n× pods: 2 without\n\nStatus: 1 error, 1 warning (3 checks, 2.1 s)"
        );
    }

    #[test]
    fn the_short_form_has_only_what_is_not_well() {
        let text = short(&report(), false);
        assert!(
            text.starts_with("‼ identity: expires in 29 days    fix: make a new one\n× injection: 2 without\n"),
            "{text}"
        );
        assert!(!text.contains("kubernetes"));
        assert!(short(&report(), true).contains("\x1b[31m×"));
    }

    #[test]
    fn the_json_has_the_worst_state_and_no_empty_hints() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["status"], "error");
        assert_eq!(
            json["checks"][0],
            serde_json::json!({"category": "kubernetes", "name": "api", "state": "ok", "message": "answers"})
        );
        assert_eq!(Report::new(Vec::new(), Duration::ZERO).status, State::Ok);
    }
}
