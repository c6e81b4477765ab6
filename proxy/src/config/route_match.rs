//! Pure match functions over routes: path, headers, query, weights.
//!
//! Randomness is passed in: one `u64` per request, whose halves serve the route's fraction and the split.
//! Nothing here allocates, except matchers that fold case.

use http::{HeaderMap, header};

use super::{
    matcher::StringMatch,
    route::{
        Forward, HeaderKey, HeaderMatch, HeaderMatchKind, PathMatch, QueryMatch, RequestView, Route, RouteMatch,
        Target, VirtualHost, WeightedTarget,
    },
};

/// How repeated header lines count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// One line that matches is enough (routes; rules that deny).
    Any,
    /// Each line must match (rules that allow).
    All,
}

impl Lines {
    /// The other way round; for negations.
    #[must_use]
    pub fn flipped(self) -> Self {
        match self {
            Self::Any => Self::All,
            Self::All => Self::Any,
        }
    }
}

impl VirtualHost {
    /// Position of the first route that takes the request.
    #[must_use]
    pub fn find_route(&self, view: &RequestView<'_>, random: u64) -> Option<usize> {
        self.routes.iter().position(|route| route.matcher.matches(view, random))
    }
}

impl RouteMatch {
    /// True when all conditions hold. The low half of `random` decides on the fraction.
    #[must_use]
    pub fn matches(&self, view: &RequestView<'_>, random: u64) -> bool {
        self.path.matches(view.path, self.case_sensitive)
            && self.fraction_ppm.is_none_or(|ppm| share(random as u32, ppm))
            && (!self.grpc || is_grpc(view.headers))
            && self.headers.iter().all(|h| h.matches(view))
            && self.query.iter().all(|q| q.matches(view.query))
    }
}

impl PathMatch {
    /// True when `path` (canonical, without query) matches.
    #[must_use]
    pub fn matches(&self, path: &str, case_sensitive: bool) -> bool {
        match self {
            Self::Exact(exact) if case_sensitive => path == exact,
            Self::Exact(exact) => path.eq_ignore_ascii_case(exact),
            Self::Prefix(prefix) => has_prefix(path, prefix, case_sensitive),
            Self::SeparatedPrefix(prefix) => {
                has_prefix(path, prefix, case_sensitive)
                    && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
            }
            Self::Regex(pattern) => pattern.matches(path),
        }
    }

    /// `path` with the matched part replaced (Envoy's `prefix_rewrite`): the prefix, the exact path, or for a regular
    /// expression the whole path.
    #[must_use]
    pub fn rewrite(&self, path: &str, replacement: &str) -> String {
        let matched = match self {
            Self::Exact(s) | Self::Prefix(s) | Self::SeparatedPrefix(s) => s.len(),
            Self::Regex(_) => path.len(),
        };
        let rest = path.get(matched..).unwrap_or_default();
        let mut out = String::with_capacity(replacement.len() + rest.len());
        out.push_str(replacement);
        out.push_str(rest);
        out
    }
}

fn has_prefix(path: &str, prefix: &str, case_sensitive: bool) -> bool {
    if case_sensitive {
        return path.starts_with(prefix);
    }
    path.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

impl HeaderMatch {
    /// True when the request matches; of repeated lines any hit counts, and any hit spoils an inverted match.
    #[must_use]
    pub fn matches(&self, view: &RequestView<'_>) -> bool {
        self.matches_lines(view, self.any())
    }

    /// Envoy's way with repeated lines: any of them may hit, before the result is turned round.
    fn any(&self) -> Lines {
        if self.invert { Lines::All } else { Lines::Any }
    }

    /// As [`Self::matches`], with repeated lines counted as `lines` says.
    #[must_use]
    pub fn matches_lines(&self, view: &RequestView<'_>, lines: Lines) -> bool {
        let path;
        let pseudo = match &self.name {
            // The server moves Host into the authority.
            HeaderKey::Name(name) if name == header::HOST => view.authority,
            HeaderKey::Name(name) => return self.matches_header(view.headers, name, lines),
            HeaderKey::Method => view.method.as_str(),
            HeaderKey::Authority => view.authority,
            HeaderKey::Scheme => view.scheme,
            HeaderKey::Path => match view.query {
                None => view.path,
                Some(query) => {
                    path = format!("{}?{query}", view.path);
                    &path
                }
            },
        };
        self.matches_value(pseudo) != self.invert
    }

    /// Matches a response's headers; pseudo-headers are absent there.
    #[must_use]
    pub fn matches_response(&self, headers: &HeaderMap) -> bool {
        match &self.name {
            HeaderKey::Name(name) => self.matches_header(headers, name, self.any()),
            _ => self.matches_missing(),
        }
    }

    fn matches_header(&self, headers: &HeaderMap, name: &http::HeaderName, lines: Lines) -> bool {
        let mut values = headers.get_all(name).iter().peekable();
        if values.peek().is_none() {
            return self.matches_missing();
        }
        let lines = if self.invert { lines.flipped() } else { lines };
        let mut hit = |value: &http::HeaderValue| match std::str::from_utf8(value.as_bytes()) {
            Ok(text) => self.matches_value(text),
            // Refused at the door; a bare value here counts as one that nothing can be said about.
            Err(_) => matches!(self.kind, HeaderMatchKind::Present(true)),
        };
        let hit = match lines {
            Lines::Any => values.any(&mut hit),
            Lines::All => values.all(&mut hit),
        };
        hit != self.invert
    }

    /// Missing: neither way, except for presence, and where a missing header counts as an empty one.
    fn matches_missing(&self) -> bool {
        match &self.kind {
            HeaderMatchKind::Present(wanted) => *wanted == self.invert,
            _ if self.missing_as_empty => self.matches_value("") != self.invert,
            _ => false,
        }
    }

    fn matches_value(&self, value: &str) -> bool {
        match &self.kind {
            HeaderMatchKind::Present(wanted) => *wanted,
            HeaderMatchKind::Value(matcher) => matcher.matches(value),
            HeaderMatchKind::Range(start, end) => value.parse::<i64>().is_ok_and(|n| *start <= n && n < *end),
        }
    }
}

impl QueryMatch {
    /// True when the query's first parameter of this name matches. Names and values are compared as sent.
    #[must_use]
    pub fn matches(&self, query: Option<&str>) -> bool {
        let found = query
            .unwrap_or_default()
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find(|(name, _)| *name == self.name);
        match (&self.value, found) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(matcher), Some((_, value))) => StringMatch::matches(matcher, value),
        }
    }
}

impl Forward {
    /// The share of a split that `random` falls on (its high half), or none when there is one cluster only.
    #[must_use]
    pub fn pick(&self, random: u64) -> Option<usize> {
        match &self.target {
            Target::Cluster(_) => None,
            Target::Weighted(targets) => Some(pick_weighted(targets, random)),
        }
    }
}

/// Position of the target that `random` falls on (its high half), by weight. Zero-weight targets are never picked as
/// long as any weight is above zero, which conversion guarantees.
#[must_use]
pub fn pick_weighted(targets: &[WeightedTarget], random: u64) -> usize {
    let total: u64 = targets.iter().map(|t| u64::from(t.weight)).sum();
    // Scales the 32 random bits to [0, total) without the bias of a remainder.
    let mut at = ((random >> 32) * total) >> 32;
    for (position, target) in targets.iter().enumerate() {
        let weight = u64::from(target.weight);
        if at < weight {
            return position;
        }
        at -= weight;
    }
    0
}

/// True for `ppm` parts of a million of all `random` values.
#[must_use]
pub fn share(random: u32, ppm: u32) -> bool {
    (u64::from(random) * 1_000_000) >> 32 < u64::from(ppm)
}

/// True when the content type is `application/grpc`, or begins with `application/grpc+` or `application/grpc;`.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

impl Route {
    /// The forwarding part, if the route forwards.
    #[must_use]
    pub fn forward(&self) -> Option<&Forward> {
        match &self.action {
            super::route::RouteAction::Forward(forward) => Some(forward),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Method};

    use super::*;
    use crate::config::matcher::{Pattern, StringMatchKind};

    fn header(kind: HeaderMatchKind) -> HeaderMatch {
        HeaderMatch { name: HeaderKey::Name("x-a".parse().unwrap()), kind, invert: false, missing_as_empty: false }
    }

    fn with<'a>(headers: &'a HeaderMap) -> RequestView<'a> {
        RequestView {
            method: &Method::GET,
            authority: "Books.example:80",
            path: "/p/q",
            query: Some("a=1&b&c="),
            scheme: "http",
            headers,
        }
    }

    fn lines(values: &[&str]) -> HeaderMap {
        values.iter().map(|v| ("x-a".parse().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn paths_match_as_envoys_do() {
        let regex = |s| PathMatch::Regex(Pattern::new(s).unwrap());
        for (matcher, case, path, expected) in [
            (PathMatch::Exact("/a".into()), true, "/a", true),
            (PathMatch::Exact("/a".into()), true, "/A", false),
            (PathMatch::Exact("/a".into()), false, "/A", true),
            (PathMatch::Exact("/a".into()), true, "/a/", false),
            (PathMatch::Prefix("/a".into()), true, "/ab", true),
            (PathMatch::Prefix("/a".into()), false, "/Ab", true),
            (PathMatch::Prefix("/a".into()), false, "/", false),
            (PathMatch::SeparatedPrefix("/a".into()), true, "/ab", false),
            (PathMatch::SeparatedPrefix("/a".into()), true, "/a", true),
            (PathMatch::SeparatedPrefix("/a".into()), true, "/a/b", true),
            (regex("/a.*"), true, "/abc", true),
            (regex("/a"), true, "/ab", false),
        ] {
            assert_eq!(matcher.matches(path, case), expected, "{matcher:?} {path}");
        }
    }

    #[test]
    fn a_rewrite_replaces_the_matched_part() {
        assert_eq!(PathMatch::Prefix("/a".into()).rewrite("/a/b", "/x"), "/x/b");
        assert_eq!(PathMatch::Exact("/a/b".into()).rewrite("/a/b", "/x"), "/x");
        assert_eq!(PathMatch::Regex(Pattern::new("/.*").unwrap()).rewrite("/a/b", "/x"), "/x");
    }

    #[test]
    fn repeated_lines_are_matched_one_by_one() {
        let exact = header(HeaderMatchKind::Value(StringMatch::exact("2")));
        let both = lines(&["1", "2"]);
        assert!(exact.matches(&with(&both)));
        assert!(!exact.matches_lines(&with(&both), Lines::All));
        assert!(!header(HeaderMatchKind::Value(StringMatch::exact("1,2"))).matches(&with(&both)));
        let inverted = HeaderMatch { invert: true, ..exact };
        assert!(!inverted.matches_lines(&with(&both), Lines::All), "not every line differs from 2");
        assert!(inverted.matches_lines(&with(&both), Lines::Any), "one line differs from 2");
        assert!(!inverted.matches(&with(&both)), "a route wants no line to be 2");
        assert!(!inverted.matches_response(&both), "nor does a retry policy");
    }

    #[test]
    fn missing_headers_follow_envoys_rules() {
        let none = HeaderMap::new();
        let empty = lines(&[""]);
        let value = || HeaderMatchKind::Value(StringMatch::exact(""));
        for (kind, invert, as_empty, on_missing, on_empty) in [
            (HeaderMatchKind::Present(true), false, false, false, true),
            (HeaderMatchKind::Present(true), true, false, true, false),
            (HeaderMatchKind::Present(false), false, false, true, false),
            (HeaderMatchKind::Present(false), true, false, false, true),
            (value(), false, false, false, true),
            (value(), true, false, false, false),
            (value(), false, true, true, true),
            (value(), true, true, false, false),
        ] {
            let matcher = HeaderMatch { invert, missing_as_empty: as_empty, ..header(kind.clone()) };
            assert_eq!(matcher.matches(&with(&none)), on_missing, "missing {kind:?} {invert} {as_empty}");
            assert_eq!(matcher.matches(&with(&empty)), on_empty, "empty {kind:?} {invert} {as_empty}");
        }
        let not_x = HeaderMatch {
            invert: true,
            missing_as_empty: true,
            ..header(HeaderMatchKind::Value(StringMatch::exact("x")))
        };
        assert!(not_x.matches(&with(&none)));
    }

    #[test]
    fn ranges_take_integers_from_start_to_before_end() {
        let range = header(HeaderMatchKind::Range(-1, 10));
        for (value, expected) in [("-1", true), ("9", true), ("10", false), ("1.5", false), ("x", false), ("", false)] {
            assert_eq!(range.matches(&with(&lines(&[value]))), expected, "{value}");
        }
    }

    #[test]
    fn pseudo_headers_have_names() {
        let headers = HeaderMap::new();
        for (name, value) in [
            (HeaderKey::Method, "GET"),
            (HeaderKey::Authority, "Books.example:80"),
            (HeaderKey::Path, "/p/q?a=1&b&c="),
            (HeaderKey::Scheme, "http"),
        ] {
            let matcher = HeaderMatch { name, ..header(HeaderMatchKind::Value(StringMatch::exact(value))) };
            assert!(matcher.matches(&with(&headers)), "{value}");
        }
    }

    #[test]
    fn bytes_that_are_not_text_match_no_value() {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_bytes(b"\xff").unwrap());
        let any = StringMatch { kind: StringMatchKind::Prefix(String::new()), ignore_case: false };
        assert!(!header(HeaderMatchKind::Value(any)).matches(&with(&headers)));
        assert!(header(HeaderMatchKind::Present(true)).matches(&with(&headers)));
    }

    #[test]
    fn query_parameters_match_by_first_value_as_sent() {
        let q =
            |name: &str, value: Option<&str>| QueryMatch { name: name.into(), value: value.map(StringMatch::exact) };
        for (matcher, query, expected) in [
            (q("a", None), "a=1", true),
            (q("a", Some("1")), "b=2&a=1", true),
            (q("a", Some("2")), "a=1&a=2", false),
            (q("b", None), "a=1&b", true),
            (q("c", Some("")), "c=", true),
            (q("d", None), "dd=1", false),
        ] {
            assert_eq!(matcher.matches(Some(query)), expected, "{matcher:?} {query}");
        }
        assert!(!q("a", None).matches(None));
    }

    #[test]
    fn splits_follow_the_weights_and_skip_zero() {
        let target = |weight| WeightedTarget {
            cluster: "c".into(),
            weight,
            request_headers: Default::default(),
            response_headers: Default::default(),
            filters: Default::default(),
        };
        let targets = [target(0), target(75), target(25)];
        let mut hits = [0; 3];
        for i in 0..1000_u64 {
            hits[pick_weighted(&targets, (i * (1 << 32) / 1000) << 32)] += 1;
        }
        assert_eq!(hits, [0, 750, 250]);
        assert_eq!(pick_weighted(&targets, u64::MAX), 2);
    }

    #[test]
    fn fractions_take_all_none_or_a_part() {
        assert!(share(u32::MAX, 1_000_000) && !share(0, 0));
        assert!(share(u32::MAX / 4, 500_000) && !share(u32::MAX / 4 * 3, 500_000));
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            assert_eq!(is_grpc(&headers), expected, "{value}");
        }
    }
}
