//! Regular expressions that mean the same to every proxy of the mesh.
//!
//! Pure. Envoy reads RE2's syntax, our proxy that of the `regex` crate. What one of them refuses takes all routes of a sidecar
//! with it, and what they read differently would open to one caller what the other keeps shut; so only what both have
//! in common gets through.

use regex_syntax::ast::{
    self, AssertionKind, Ast, ClassSetBinaryOp, ClassSetItem, ClassUnicode, ClassUnicodeKind, Flag, Flags,
    FlagsItemKind, GroupKind, HexLiteralKind, LiteralKind, RepetitionKind, RepetitionRange, Visitor,
};

/// Checks an expression that must match the whole of a text.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn check(text: &str) -> Result<(), String> {
    if text.len() > MAX_BYTES {
        return Err(format!("the regular expression has {} bytes, {MAX_BYTES} are allowed", text.len()));
    }
    let wrong = |what: String| format!("{text:?} is not a regular expression that all proxies know: {what}");
    let parsed = ast::parse::Parser::new().parse(text).map_err(|e| wrong(e.kind().to_string()))?;
    ast::visit(&parsed, Common::default()).map_err(|what| wrong(what.to_owned()))?;
    let whole = regex::RegexBuilder::new(&format!("^(?:{text})$")).size_limit(MAX_COMPILED_BYTES).build();
    whole.map(drop).map_err(|e| match e {
        regex::Error::CompiledTooBig(_) => wrong("it is too large when compiled".to_owned()),
        other => wrong(other.to_string()),
    })
}

/// Whether some text may match both expressions, each as a whole. Says true if it can't tell.
pub(super) fn may_overlap(a: &str, b: &str) -> bool {
    let ((a, a_ends), (b, b_ends)) = (beginning(a), beginning(b));
    match (a_ends, b_ends) {
        (true, true) => a == b,
        (true, false) => a.starts_with(b),
        (false, true) => b.starts_with(a),
        (false, false) => a.starts_with(b) || b.starts_with(a),
    }
}

/// The plain text with which every match begins, and whether that is all of it.
fn beginning(expression: &str) -> (&str, bool) {
    if expression.contains('|') {
        return ("", false);
    }
    let Some(at) = expression.find(|c| r"\.+*?()[]{}^$".contains(c)) else { return (expression, true) };
    let plain = &expression[..at];
    // What may be there any number of times need not be there.
    let repeats = expression[at..].starts_with(['*', '?', '{', '+']);
    let last = plain.char_indices().next_back().filter(|_| repeats).map_or(at, |(last, _)| last);
    (&plain[..last], false)
}

/// Finds what only one of the two syntaxes has.
#[derive(Default)]
struct Common {
    /// How often the innermost repetition is repeated by those around it.
    times: Vec<u32>,
}

impl Visitor for Common {
    type Output = ();
    type Err = &'static str;

    fn finish(self) -> Result<(), &'static str> {
        Ok(())
    }

    fn visit_pre(&mut self, part: &Ast) -> Result<(), &'static str> {
        match part {
            Ast::Flags(set) => flags(&set.flags),
            Ast::Group(group) => match &group.kind {
                GroupKind::NonCapturing(set) => flags(set),
                GroupKind::CaptureIndex(_) | GroupKind::CaptureName { .. } => Ok(()),
            },
            Ast::Assertion(assertion) => match assertion.kind {
                AssertionKind::StartLine
                | AssertionKind::EndLine
                | AssertionKind::StartText
                | AssertionKind::EndText
                | AssertionKind::WordBoundary
                | AssertionKind::NotWordBoundary => Ok(()),
                _ => Err(r"of word boundaries only \b and \B are there"),
            },
            Ast::Literal(one) => literal(&one.kind),
            Ast::ClassUnicode(class) => unicode(class),
            Ast::Repetition(repetition) => {
                if matches!(*repetition.ast, Ast::Repetition(_)) {
                    return Err("a repetition of a repetition needs brackets");
                }
                let own = match repetition.op.kind {
                    RepetitionKind::Range(
                        RepetitionRange::Exactly(n) | RepetitionRange::AtLeast(n) | RepetitionRange::Bounded(_, n),
                    ) => n,
                    _ => 1,
                };
                let times = self.times.last().copied().unwrap_or(1).saturating_mul(own.max(1));
                self.times.push(times);
                if times > MAX_REPETITION {
                    Err("1000 repetitions are allowed, nested ones multiplied")
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        }
    }

    fn visit_post(&mut self, part: &Ast) -> Result<(), &'static str> {
        if matches!(part, Ast::Repetition(_)) {
            self.times.pop();
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), &'static str> {
        match item {
            ClassSetItem::Bracketed(_) => Err(r"within [] write \[ for a bracket"),
            ClassSetItem::Literal(one) => literal(&one.kind),
            ClassSetItem::Range(range) => literal(&range.start.kind).and_then(|()| literal(&range.end.kind)),
            ClassSetItem::Unicode(class) => unicode(class),
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ClassSetBinaryOp) -> Result<(), &'static str> {
        Err(r"within [] write \&, \- and \~ where one of these signs comes twice")
    }
}

fn flags(set: &Flags) -> Result<(), &'static str> {
    let known = set.items.iter().all(|item| match item.kind {
        FlagsItemKind::Negation => true,
        FlagsItemKind::Flag(flag) => {
            matches!(flag, Flag::CaseInsensitive | Flag::MultiLine | Flag::DotMatchesNewLine | Flag::SwapGreed)
        }
    });
    if known { Ok(()) } else { Err("of flags only i, m, s and U are there") }
}

fn literal(kind: &LiteralKind) -> Result<(), &'static str> {
    match kind {
        LiteralKind::HexFixed(HexLiteralKind::UnicodeShort | HexLiteralKind::UnicodeLong)
        | LiteralKind::HexBrace(HexLiteralKind::UnicodeShort | HexLiteralKind::UnicodeLong) => {
            Err(r"write \x{...} in place of \u and \U")
        }
        _ => Ok(()),
    }
}

/// Unicode's general categories by their short names, which both have.
fn unicode(class: &ClassUnicode) -> Result<(), &'static str> {
    match &class.kind {
        ClassUnicodeKind::OneLetter(_) => Ok(()),
        ClassUnicodeKind::Named(name) if name.len() <= 2 && !name.starts_with('^') => Ok(()),
        _ => Err(r"of classes by name only the short ones are there, such as \pL and \p{Lu}"),
    }
}

/// As long, and as large when compiled, as our proxy takes.
const MAX_BYTES: usize = 4096;
const MAX_COMPILED_BYTES: usize = 1 << 20;
/// RE2's bound.
const MAX_REPETITION: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_syntaxes_have_is_taken() {
        let long = "/".repeat(MAX_BYTES);
        for text in [
            "",
            ".*",
            "/books/[a-z0-9-]+",
            "(?i)firefox.*",
            ".*-http-client/*.*",
            r"/a\.b\-c\/d",
            r"\d{3}",
            "(?P<n>a|b)+?",
            r"\p{Lu}\pN",
            "[]a]",
            "[[:alpha:]]",
            "(a{10}){100}",
            r"\x{41}",
            &long,
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    /// Each of these is refused by Envoy 1.40, or means something else there.
    #[test]
    fn what_one_proxy_refuses_or_reads_otherwise_is_refused() {
        let long = "/".repeat(MAX_BYTES + 1);
        for text in [
            "/a(",
            "/a(?=b)",
            "(?x) a b",
            "(?-u)a",
            "(?u:a)",
            "(?R)a",
            r"\u0041",
            r"\u{41}",
            r"[\u{41}]",
            r"\b{start}a",
            r"\<a",
            "a**",
            "a+*",
            "x*+",
            "a{1001}",
            "(a{100}){100}",
            "[a-z&&[^b]]",
            r"[\w--a]",
            "[a~~b]",
            "[a[b]]",
            r"\p{Alphabetic}",
            r"\p{sc=Greek}",
            r"[\p{Greek}]",
            r"(\pL{30}){30}",
            &long,
        ] {
            assert!(check(text).is_err(), "{text}");
        }
    }

    #[test]
    fn expressions_with_different_beginnings_do_not_overlap() {
        for (a, b, overlap) in [
            ("/a", "/a", true),
            ("/a", "/b", false),
            ("/a", "/a/b", false),
            ("/a/.*", "/a/b", true),
            ("/a/.*", "/a", false),
            ("/a.*", "/a", true),
            ("/ab*", "/a", true),
            ("/ab?", "/a", true),
            ("/ab{0}", "/a", true),
            ("/ab+", "/abb", true),
            ("/a/.*", "/b/.*", false),
            ("/a/.*", "/.*", true),
            ("/a|/b", "/b", true),
            ("(?i)/A", "/a", true),
            (r"/a\.b", "/a.b", true),
            ("GET", "POST", false),
            ("GET", ".*", true),
            ("", "", true),
            ("", "/a", false),
            ("/é?", "/", true),
        ] {
            assert_eq!(may_overlap(a, b), overlap, "{a} {b}");
            assert_eq!(may_overlap(b, a), overlap, "{b} {a}");
        }
    }
}
