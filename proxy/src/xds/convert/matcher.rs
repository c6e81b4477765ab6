//! Matchers: strings, regular expressions, headers, query parameters.

use envoy_types::pb::envoy::{
    config::route::v3::{
        HeaderMatcher, QueryParameterMatcher, header_matcher::HeaderMatchSpecifier,
        query_parameter_matcher::QueryParameterMatchSpecifier,
    },
    r#type::matcher::v3::{PathMatcher, RegexMatcher, StringMatcher, path_matcher, string_matcher::MatchPattern},
};
use http::HeaderName;

use super::context::Cx;
use crate::{
    config::{
        matcher::{Pattern, StringMatch, StringMatchKind},
        route::{HeaderKey, HeaderMatch, HeaderMatchKind, QueryMatch},
    },
    xds::path::At,
};

/// A regular expression.
pub(super) fn regex(matcher: &RegexMatcher, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Pattern> {
    // The same few expressions stand on all routes of a table: one compiled program serves them all.
    if let Some(known) = cx.patterns.get(&matcher.regex) {
        return Some(known.clone());
    }
    match Pattern::new(&matcher.regex) {
        Ok(pattern) => {
            cx.patterns.insert(matcher.regex.clone(), pattern.clone());
            Some(pattern)
        }
        Err(e) => cx.refuse(&at.field("regex"), e),
    }
}

/// A string matcher.
pub(super) fn string(matcher: &StringMatcher, at: &At<'_>, cx: &mut Cx<'_>) -> Option<StringMatch> {
    let fold = |s: &String| if matcher.ignore_case { s.to_ascii_lowercase() } else { s.clone() };
    let kind = match matcher.match_pattern.as_ref() {
        Some(MatchPattern::Exact(s)) => StringMatchKind::Exact(fold(s)),
        Some(MatchPattern::Prefix(s)) => StringMatchKind::Prefix(fold(s)),
        Some(MatchPattern::Suffix(s)) => StringMatchKind::Suffix(fold(s)),
        Some(MatchPattern::Contains(s)) => StringMatchKind::Contains(fold(s)),
        Some(MatchPattern::SafeRegex(r)) => {
            if matcher.ignore_case {
                cx.report.warn(&at.field("ignore_case"), "has no effect for safe_regex");
            }
            StringMatchKind::Regex(regex(r, &at.field("safe_regex"), cx)?)
        }
        _ => return cx.refuse(at, "needs a match pattern"),
    };
    Some(StringMatch { kind, ignore_case: matcher.ignore_case })
}

/// A path matcher; it can only be a string.
pub(super) fn path(matcher: &PathMatcher, at: &At<'_>, cx: &mut Cx<'_>) -> Option<StringMatch> {
    match matcher.rule.as_ref() {
        Some(path_matcher::Rule::Path(s)) => string(s, &at.field("path"), cx),
        None => cx.refuse(at, "needs a path"),
    }
}

/// All header matchers of a list.
pub(super) fn headers(list: &[HeaderMatcher], at: &At<'_>, cx: &mut Cx<'_>) -> Vec<HeaderMatch> {
    list.iter().enumerate().filter_map(|(i, m)| header(m, &at.index(i), cx)).collect()
}

/// A header matcher; without a condition it asks for presence.
pub(super) fn header(matcher: &HeaderMatcher, at: &At<'_>, cx: &mut Cx<'_>) -> Option<HeaderMatch> {
    let plain = |kind| HeaderMatchKind::Value(StringMatch { kind, ignore_case: false });
    let kind = match matcher.header_match_specifier.as_ref() {
        None => HeaderMatchKind::Present(true),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => HeaderMatchKind::Present(*present),
        Some(HeaderMatchSpecifier::ExactMatch(s)) => plain(StringMatchKind::Exact(s.clone())),
        Some(HeaderMatchSpecifier::PrefixMatch(s)) => plain(StringMatchKind::Prefix(s.clone())),
        Some(HeaderMatchSpecifier::SuffixMatch(s)) => plain(StringMatchKind::Suffix(s.clone())),
        Some(HeaderMatchSpecifier::ContainsMatch(s)) => plain(StringMatchKind::Contains(s.clone())),
        Some(HeaderMatchSpecifier::SafeRegexMatch(r)) => {
            plain(StringMatchKind::Regex(regex(r, &at.field("safe_regex_match"), cx)?))
        }
        Some(HeaderMatchSpecifier::StringMatch(s)) => HeaderMatchKind::Value(string(s, &at.field("string_match"), cx)?),
        Some(HeaderMatchSpecifier::RangeMatch(r)) => HeaderMatchKind::Range(r.start, r.end),
    };
    Some(HeaderMatch {
        name: key(&matcher.name, &at.field("name"), cx)?,
        kind,
        invert: matcher.invert_match,
        missing_as_empty: matcher.treat_missing_header_as_empty,
    })
}

fn key(name: &str, at: &At<'_>, cx: &mut Cx<'_>) -> Option<HeaderKey> {
    Some(match name.to_ascii_lowercase().as_str() {
        ":method" => HeaderKey::Method,
        ":authority" | "host" => HeaderKey::Authority,
        ":path" => HeaderKey::Path,
        ":scheme" => HeaderKey::Scheme,
        lower => match HeaderName::from_bytes(lower.as_bytes()) {
            Ok(name) => HeaderKey::Name(name),
            Err(_) => return cx.refuse(at, format_args!("{name:?} is no header name")),
        },
    })
}

/// A query parameter matcher; without a condition it asks for presence.
pub(super) fn query(matcher: &QueryParameterMatcher, at: &At<'_>, cx: &mut Cx<'_>) -> Option<QueryMatch> {
    let value = match matcher.query_parameter_match_specifier.as_ref() {
        None | Some(QueryParameterMatchSpecifier::PresentMatch(true)) => None,
        Some(QueryParameterMatchSpecifier::PresentMatch(false)) => {
            return cx.refuse(&at.field("present_match"), "false is not supported");
        }
        Some(QueryParameterMatchSpecifier::StringMatch(s)) => Some(string(s, &at.field("string_match"), cx)?),
    };
    Some(QueryMatch { name: matcher.name.clone(), value })
}
