//! One canonical form of a request's path, made before anything looks at it: policy, routes, logs and the upstream all
//! see the same bytes.
//!
//! Pure, and idempotent: the canonical form of a canonical path is itself. What has no single meaning (double encoding,
//! overlong UTF-8, encoded control bytes, `..;`) is refused instead of guessed. The query is left as it is.

use std::borrow::Cow;

use crate::config::http::{EscapedSlashes, PathRules};

/// What is done with a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Canonical<'a> {
    /// Go on with this path.
    Forward(Cow<'a, str>),
    /// Send the client there (307): the path without escaped slashes.
    Redirect(String),
}

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with a slash.
    #[error("the path does not begin with /")]
    NotAbsolute,
    /// A byte that may not stand in a path: control, space, `#`, or not UTF-8.
    #[error("the path holds a byte that is not allowed there")]
    BadByte,
    /// `%` without two hexadecimal digits.
    #[error("the path holds a % that begins no escape")]
    BadEscape,
    /// An escaped control byte.
    #[error("the path holds an escaped control byte")]
    ControlByte,
    /// An escaped `%` before what would be an escape if decoded once more.
    #[error("the path is encoded twice")]
    EncodedTwice,
    /// An escaped UTF-8 sequence longer than needed.
    #[error("the path holds overlong UTF-8")]
    Overlong,
    /// A dot segment with parameters (`..;x`), which servers read in different ways.
    #[error("the path holds a dot segment with parameters")]
    DotParameter,
    /// An escaped slash where the rule is to refuse it.
    #[error("the path holds an escaped slash")]
    EscapedSlash,
}

/// The canonical form of `path` (without query).
///
/// # Errors
/// When the path has no single meaning; the client is answered 400.
pub fn canonical(path: &str, rules: PathRules) -> Result<Canonical<'_>, PathError> {
    if !path.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    if is_plain(path.as_bytes()) {
        return Ok(Canonical::Forward(Cow::Borrowed(path)));
    }
    let decoded = decode(path, rules)?;
    let merged = if rules.merge_slashes { merge_slashes(&decoded.path) } else { Cow::Borrowed(decoded.path.as_str()) };
    let resolved = if rules.normalize { resolve_dots(&merged) } else { merged.clone().into_owned() };
    if rules.normalize {
        refuse_dot_parameters(&resolved)?;
    }
    if decoded.slashes && rules.escaped_slashes == EscapedSlashes::UnescapeAndRedirect {
        return Ok(Canonical::Redirect(resolved));
    }
    Ok(Canonical::Forward(if resolved == path { Cow::Borrowed(path) } else { Cow::Owned(resolved) }))
}

/// True for the common case: letters, digits and harmless marks, no empty or dotted segment.
fn is_plain(path: &[u8]) -> bool {
    let mut before = 0;
    for &byte in path {
        let harmless = match byte {
            b'/' | b'.' => before != b'/',
            b'%' | b'\\' | b'#' | b';' | 0..=b' ' | 0x7f.. => false,
            _ => true,
        };
        if !harmless {
            return false;
        }
        before = byte;
    }
    true
}

struct Decoded {
    path: String,
    /// Escaped slashes were turned into slashes.
    slashes: bool,
}

/// Decodes what has one meaning only: escapes of unreserved characters, and slashes by the rules.
fn decode(path: &str, rules: PathRules) -> Result<Decoded, PathError> {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(bytes.len());
    let mut slashes = false;
    let mut rest = path;
    while let Some(next) = rest.chars().next() {
        let mut used = next.len_utf8();
        match next {
            '%' => {
                let byte = escaped(rest.as_bytes()).ok_or(PathError::BadEscape)?;
                used = 3;
                check_escape(byte, &rest.as_bytes()[3..])?;
                match byte {
                    b'/' | b'\\' => match rules.escaped_slashes {
                        EscapedSlashes::Reject => return Err(PathError::EscapedSlash),
                        EscapedSlashes::Keep => push_escape(&mut out, byte),
                        EscapedSlashes::UnescapeAndForward | EscapedSlashes::UnescapeAndRedirect => {
                            slashes = true;
                            out.push('/');
                        }
                    },
                    byte if rules.normalize && is_unreserved(byte) => out.push(char::from(byte)),
                    byte => push_escape(&mut out, byte),
                }
            }
            '\\' if rules.normalize => out.push('/'),
            '#' | '\0'..=' ' | '\x7f' => return Err(PathError::BadByte),
            other => out.push(other),
        }
        rest = &rest[used..];
    }
    Ok(Decoded { path: out, slashes })
}

/// The byte that `%XY` at the front of `bytes` stands for.
fn escaped(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
    Some((digit(1)? * 16 + digit(2)?) as u8)
}

fn check_escape(byte: u8, after: &[u8]) -> Result<(), PathError> {
    let next = (after.first() == Some(&b'%')).then(|| escaped(after)).flatten();
    match byte {
        0..=0x1f | 0x7f => Err(PathError::ControlByte),
        // What one more round of decoding would read as an escape.
        b'%' if looks_like_hex(after) => Err(PathError::EncodedTwice),
        0xc0 | 0xc1 => Err(PathError::Overlong),
        0xe0 if next.is_some_and(|n| (0x80..0xa0).contains(&n)) => Err(PathError::Overlong),
        0xf0 if next.is_some_and(|n| (0x80..0x90).contains(&n)) => Err(PathError::Overlong),
        _ => Ok(()),
    }
}

/// Two hexadecimal digits come first, written plainly or as escapes themselves.
fn looks_like_hex(mut bytes: &[u8]) -> bool {
    for _ in 0..2 {
        let (digit, used) = match escaped(bytes).filter(|_| bytes[0] == b'%') {
            Some(byte) => (byte, 3),
            None => match bytes.first() {
                Some(byte) => (*byte, 1),
                None => return false,
            },
        };
        if !digit.is_ascii_hexdigit() {
            return false;
        }
        bytes = &bytes[used..];
    }
    true
}

fn push_escape(out: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(HEX[usize::from(byte >> 4)]));
    out.push(char::from(HEX[usize::from(byte & 15)]));
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn merge_slashes(path: &str) -> Cow<'_, str> {
    if !path.contains("//") {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// RFC 3986 section 5.2.4; `..` above the root stays at the root.
fn resolve_dots(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." => {}
            ".." => {
                segments.pop();
            }
            other => {
                segments.push(other);
                continue;
            }
        }
        // A path that ends in a dot segment is a folder.
        if last {
            segments.push("");
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() {
        out.push('/');
    }
    out
}

/// Servers that strip parameters (`;x`) read `..;x` as `..`, and `/;x/` as nothing. At the end of a path they do no harm.
fn refuse_dot_parameters(path: &str) -> Result<(), PathError> {
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        let name = match (segment.find(';'), segment.find("%3B")) {
            (Some(plain), Some(escaped)) => plain.min(escaped),
            (Some(at), None) | (None, Some(at)) => at,
            (None, None) => continue,
        };
        let vanishes = name == 0 && segments.peek().is_some();
        if vanishes || matches!(&segment[..name], "." | "..") {
            return Err(PathError::DotParameter);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: PathRules =
        PathRules { normalize: true, merge_slashes: true, escaped_slashes: EscapedSlashes::UnescapeAndForward };

    fn forward(path: &str, rules: PathRules) -> String {
        match canonical(path, rules) {
            Ok(Canonical::Forward(path)) => path.into_owned(),
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_have_one_canonical_form() {
        for (path, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a//b", "/a/b"),
            ("///", "/"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a/%2e%2e/b", "/b"),
            ("/a/%2E./b", "/b"),
            ("/a%2f..%2fb", "/b"),
            ("/a\\..\\b", "/b"),
            ("/a%5c..%5Cb", "/b"),
            ("/%61dmin", "/admin"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/a%20b", "/a%20b"),
            ("/100%25", "/100%25"),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/;session=1", "/;session=1"),
            ("/a%3bb", "/a%3Bb"),
            ("/.hidden", "/.hidden"),
            ("/a...", "/a..."),
            ("/...", "/..."),
            ("/a//../b", "/b"),
            ("/é", "/é"),
        ] {
            assert_eq!(forward(path, RULES), expected, "{path}");
        }
    }

    #[test]
    fn paths_without_a_single_meaning_are_refused() {
        for (path, error) in [
            ("a", PathError::NotAbsolute),
            ("*", PathError::NotAbsolute),
            ("", PathError::NotAbsolute),
            ("/a#b", PathError::BadByte),
            ("/a b", PathError::BadByte),
            ("/a\u{0}", PathError::BadByte),
            ("/a\u{7f}", PathError::BadByte),
            ("/%", PathError::BadEscape),
            ("/%4", PathError::BadEscape),
            ("/%zz", PathError::BadEscape),
            ("/%00", PathError::ControlByte),
            ("/%0d%0a", PathError::ControlByte),
            ("/%7f", PathError::ControlByte),
            ("/%252e%252e", PathError::EncodedTwice),
            ("/%25%32%65", PathError::EncodedTwice),
            ("/%252f", PathError::EncodedTwice),
            ("/%c0%ae", PathError::Overlong),
            ("/%e0%80%af", PathError::Overlong),
            ("/%f0%80%80%af", PathError::Overlong),
            ("/a/..;x/b", PathError::DotParameter),
            ("/a/.;/b", PathError::DotParameter),
            ("/a/%2e%2e;/b", PathError::DotParameter),
            ("/a/..%3bx/b", PathError::DotParameter),
            ("/;/b", PathError::DotParameter),
            ("/a/;x=1/b", PathError::DotParameter),
        ] {
            assert_eq!(canonical(path, RULES), Err(error), "{path}");
        }
    }

    #[test]
    fn escaped_slashes_follow_their_rule() {
        let with = |escaped_slashes| PathRules { escaped_slashes, ..RULES };
        assert_eq!(forward("/a%2fb", with(EscapedSlashes::Keep)), "/a%2Fb");
        assert_eq!(canonical("/a%5cb", with(EscapedSlashes::Reject)), Err(PathError::EscapedSlash));
        assert_eq!(
            canonical("/a%2F../b", with(EscapedSlashes::UnescapeAndRedirect)),
            Ok(Canonical::Redirect("/b".into()))
        );
        assert_eq!(forward("/a/b", with(EscapedSlashes::UnescapeAndRedirect)), "/a/b");
    }

    #[test]
    fn rules_that_are_off_leave_the_path_alone() {
        let off = PathRules { normalize: false, merge_slashes: false, escaped_slashes: EscapedSlashes::Keep };
        for path in ["/a//b", "/a/../b", "/%61", "/a\\b"] {
            assert_eq!(forward(path, off), path);
        }
        assert_eq!(forward("/a//../b", PathRules { merge_slashes: false, ..RULES }), "/a/b");
    }

    #[test]
    fn a_plain_path_is_not_copied() {
        for path in ["/", "/books/1", "/a.b/c", "/a%20b"] {
            assert!(matches!(canonical(path, RULES), Ok(Canonical::Forward(Cow::Borrowed(_)))), "{path}");
        }
    }

    #[test]
    fn random_paths_reach_a_fixed_point_at_once() {
        let mut rng = fastrand::Rng::with_seed(7);
        let pieces = ["/", ".", "..", "%2e", "%2f", "%5C", "\\", "%25", "%", "2", "e", "a", ";", "%c3%a9", "%41", "é"];
        for _ in 0..200_000 {
            let mut path = String::from("/");
            for _ in 0..rng.usize(0..8) {
                path.push_str(pieces[rng.usize(0..pieces.len())]);
            }
            for escaped_slashes in [EscapedSlashes::Keep, EscapedSlashes::UnescapeAndForward] {
                for merge_slashes in [false, true] {
                    let rules = PathRules { normalize: true, merge_slashes, escaped_slashes };
                    let Ok(Canonical::Forward(once)) = canonical(&path, rules) else { continue };
                    assert_eq!(forward(&once, rules), once, "{path} by {rules:?}");
                    assert!(!once.split('/').any(|s| matches!(s, "." | "..")), "{path} became {once}");
                }
            }
        }
    }
}
