//! String matching as Envoy's `type.matcher.v3`: exact, prefix, suffix, contains, regular expression.

use std::sync::Arc;

use regex::Regex;

/// Longest regular expression taken from configuration, in bytes.
pub const MAX_REGEX_BYTES: usize = 4096;
/// Largest compiled size of one regular expression, in bytes.
pub const MAX_REGEX_PROGRAM_BYTES: usize = 1 << 20;

/// A regular expression in RE2 syntax that matches only the whole of its input (Envoy's `RegexMatcher`).
///
/// Clones share the compiled program and its working memory, which are much larger than the expression.
#[derive(Clone, Debug)]
pub struct Pattern(Arc<Compiled>);

#[derive(Debug)]
struct Compiled {
    source: String,
    regex: Regex,
}

impl Pattern {
    /// Compiles `source`, anchored at both ends.
    ///
    /// # Errors
    /// Words for the operator when the expression is too long, too large or not in the supported syntax
    /// (look-around and back-references are refused, as in RE2).
    pub fn new(source: &str) -> Result<Self, String> {
        if source.len() > MAX_REGEX_BYTES {
            return Err(format!("regex is {} bytes long, {MAX_REGEX_BYTES} are allowed", source.len()));
        }
        let compiled = |expression: &str| {
            regex::RegexBuilder::new(expression)
                .size_limit(MAX_REGEX_PROGRAM_BYTES)
                .dot_matches_new_line(true)
                .build()
                .map_err(|e| format!("regex {source:?} is not valid: {}", e.to_string().replace('\n', " ")))
        };
        // By itself first: `a)|(?:b` is no expression, though within our brackets it would be one without anchors.
        compiled(source)?;
        let regex = compiled(&format!("^(?:{source})$"))?;
        Ok(Self(Arc::new(Compiled { source: source.to_owned(), regex })))
    }

    /// True when the whole of `value` matches.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        self.0.regex.is_match(value)
    }

    /// The expression as configured, without our anchors.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.0.source
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.source == other.0.source
    }
}
impl Eq for Pattern {}

/// Envoy's `StringMatcher`. With `ignore_case` the operand is stored in lower case (ASCII).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StringMatch {
    /// How the operand is compared.
    pub kind: StringMatchKind,
    /// ASCII case is ignored; not used by regular expressions (Envoy: `ignore_case`).
    pub ignore_case: bool,
}

/// The arm of a [`StringMatch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatchKind {
    /// Equal.
    Exact(String),
    /// Begins with.
    Prefix(String),
    /// Ends with.
    Suffix(String),
    /// Contains.
    Contains(String),
    /// The whole value matches the expression.
    Regex(Pattern),
}

impl StringMatch {
    /// An exact, case-sensitive match.
    #[must_use]
    pub fn exact(value: impl Into<String>) -> Self {
        Self { kind: StringMatchKind::Exact(value.into()), ignore_case: false }
    }

    /// True when `value` matches.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        if self.ignore_case && !matches!(self.kind, StringMatchKind::Regex(_)) {
            let lower = value.to_ascii_lowercase();
            return self.matches_as_is(&lower);
        }
        self.matches_as_is(value)
    }

    fn matches_as_is(&self, value: &str) -> bool {
        match &self.kind {
            StringMatchKind::Exact(s) => value == s,
            StringMatchKind::Prefix(s) => value.starts_with(s.as_str()),
            StringMatchKind::Suffix(s) => value.ends_with(s.as_str()),
            StringMatchKind::Contains(s) => value.contains(s.as_str()),
            StringMatchKind::Regex(p) => p.matches(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_only_the_whole_value() {
        let p = Pattern::new("/a|/b.*").unwrap();
        assert!(p.matches("/a") && p.matches("/bc"));
        assert!(!p.matches("/ab") && !p.matches("x/a"));
    }

    #[test]
    fn no_expression_gets_out_of_the_anchors() {
        for source in ["a)|(?:b", "a)|(b", "(a", "a)", "a)(?:b"] {
            assert!(Pattern::new(source).unwrap_err().contains("not valid"), "{source}");
        }
        let lines = Pattern::new("(?m)^a$").unwrap();
        assert!(lines.matches("a") && !lines.matches("a\nb") && !lines.matches("b\na"));
    }

    #[test]
    fn look_around_is_refused_with_words() {
        assert!(Pattern::new("a(?=b)").unwrap_err().contains("not valid"));
    }

    #[test]
    fn ignore_case_folds_the_value() {
        let m = StringMatch { kind: StringMatchKind::Suffix(".org".into()), ignore_case: true };
        assert!(m.matches("EXAMPLE.ORG"));
    }
}
