//! Descriptions of HTTP requests, from HTTPRouteGroups.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::finding::About;
use super::{Finding, expression, text};
use crate::api::{HTTPRouteGroup, HttpMatch, Key};

/// One kind of request: a path, a method and headers, all of which must match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpRule {
    /// Wide rules come after narrow ones, so that a narrow path's own limits are found first.
    wide: bool,
    /// Regular expression for the whole path.
    pub path: String,
    /// Regular expression for the method: one method, or `.*`.
    pub method: String,
    /// Headers and regular expressions for their whole values, sorted.
    pub headers: Vec<(String, String)>,
}

impl HttpRule {
    /// The rule for `path`, any method.
    #[must_use]
    pub fn path(path: &str) -> Self {
        Self::new(path.to_owned(), ANY.to_owned(), Vec::new())
    }

    /// The rule that takes every request.
    #[must_use]
    pub fn any() -> Self {
        Self::path(ANY)
    }

    /// Whether a request may match both rules. Says true if it can't tell.
    #[must_use]
    pub fn may_overlap(&self, other: &Self) -> bool {
        let headers = |(name, value): &(String, String)| {
            let others = other.headers.iter().filter(|(n, _)| n == name);
            others.fold(true, |all, (_, v)| all && expression::may_overlap(value, v))
        };
        expression::may_overlap(&self.path, &other.path)
            && expression::may_overlap(&self.method, &other.method)
            && self.headers.iter().all(headers)
    }

    fn new(path: String, method: String, headers: Vec<(String, String)>) -> Self {
        Self { wide: path == ANY && headers.is_empty(), path, method, headers }
    }
}

/// All route groups: by group, the rules of each match by name.
#[derive(Debug, Default)]
pub(super) struct RouteGroups {
    groups: BTreeMap<Key, BTreeMap<String, Vec<HttpRule>>>,
}

impl RouteGroups {
    pub(super) fn new(objects: &BTreeMap<Key, Arc<HTTPRouteGroup>>, findings: &mut Vec<Finding>) -> Self {
        let groups = objects.iter().map(|(key, object)| {
            let mut about = About::new("HTTPRouteGroup", key, findings);
            let mut matches = BTreeMap::new();
            for (i, m) in object.spec.matches.iter().enumerate() {
                let rules = rules(m, &format!("spec.matches[{i}]"), &mut about);
                if matches.insert(m.name.clone(), rules).is_some() {
                    about.error(
                        format!("spec.matches[{i}].name"),
                        format!("{:?} is there twice; the last counts", m.name),
                    );
                }
            }
            (key.clone(), matches)
        });
        Self { groups: groups.collect() }
    }

    /// The rules that `names` choose in `group`, all if no names are given; and words for each that is not there.
    pub(super) fn chosen(&self, group: &Key, names: Option<&[String]>) -> (BTreeSet<HttpRule>, Vec<String>) {
        let Some(matches) = self.groups.get(group) else {
            return (BTreeSet::new(), vec![format!("there is no HTTPRouteGroup {group}")]);
        };
        let Some(names) = names.filter(|names| !names.is_empty()) else {
            return (matches.values().flatten().cloned().collect(), Vec::new());
        };
        let mut missing = Vec::new();
        let mut chosen = BTreeSet::new();
        for name in names {
            match matches.get(name) {
                Some(rules) => chosen.extend(rules.iter().cloned()),
                None => missing.push(format!("HTTPRouteGroup {group} has no match named {name:?}")),
            }
        }
        (chosen, missing)
    }
}

/// The rules of one match, one per method. A match with a mistake has none: it must not become wider than meant.
fn rules(m: &HttpMatch, field: &str, about: &mut About<'_>) -> Vec<HttpRule> {
    let path = m.path_regex.as_deref().filter(|p| !p.is_empty()).unwrap_or(ANY);
    if let Err(e) = expression::check(path) {
        about.error(format!("{field}.pathRegex"), format!("{e}; the match is left out"));
        return Vec::new();
    }
    let mut headers = Vec::new();
    for (name, regex) in m.headers.iter() {
        let problem =
            if text::is_token(name) { expression::check(regex).err() } else { Some("not a header's name".to_owned()) };
        if let Some(problem) = problem {
            about.error(format!("{field}.headers.{name}"), format!("{problem}; the match is left out"));
            return Vec::new();
        }
        let name = name.to_ascii_lowercase();
        headers.push((if name == "host" { ":authority".to_owned() } else { name }, regex.to_owned()));
    }
    headers.sort();
    headers.dedup();
    let mut methods = BTreeSet::new();
    for method in &m.methods {
        match method.as_str() {
            "*" => methods.insert(ANY.to_owned()),
            token if text::is_token(token) => methods.insert(regex::escape(token)),
            other => {
                about.error(format!("{field}.methods"), format!("{other:?} is not an HTTP method; it is left out"));
                continue;
            }
        };
    }
    if m.methods.is_empty() || methods.contains(ANY) {
        methods = BTreeSet::from([ANY.to_owned()]);
    }
    methods.into_iter().map(|method| HttpRule::new(path.to_owned(), method, headers.clone())).collect()
}

/// The expression that takes everything.
pub(crate) const ANY: &str = ".*";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn groups(matches: serde_json::Value) -> (RouteGroups, Vec<Finding>) {
        let key = Key::new("ns", "g");
        let object = serde_json::from_value(json!({"metadata": {}, "spec": {"matches": matches}})).unwrap();
        let mut findings = Vec::new();
        let groups = RouteGroups::new(&BTreeMap::from([(key, object)]), &mut findings);
        (groups, findings)
    }

    fn chosen(groups: &RouteGroups, names: Option<&[&str]>) -> Vec<(String, String)> {
        let names: Option<Vec<String>> = names.map(|n| n.iter().map(|n| (*n).to_owned()).collect());
        let (rules, _) = groups.chosen(&Key::new("ns", "g"), names.as_deref());
        rules.into_iter().map(|r| (r.path, r.method)).collect()
    }

    #[test]
    fn a_match_without_path_or_methods_takes_all_and_each_method_is_a_rule() {
        let (groups, findings) =
            groups(json!([{"name": "a"}, {"name": "b", "pathRegex": "/b", "methods": ["PUT", "GET"]}]));
        assert_eq!(findings, []);
        assert_eq!(chosen(&groups, Some(&["a"])), [(".*".into(), ".*".into())]);
        assert_eq!(chosen(&groups, Some(&["b"])), [("/b".into(), "GET".into()), ("/b".into(), "PUT".into())]);
    }

    #[test]
    fn a_rule_without_matches_means_all_of_the_group_and_narrow_rules_come_first() {
        let (groups, _) = groups(json!([{"name": "a"}, {"name": "b", "pathRegex": "/b", "methods": ["*", "GET"]}]));
        let all = [("/b".to_owned(), ".*".to_owned()), (".*".to_owned(), ".*".to_owned())];
        assert_eq!(chosen(&groups, None), all);
        assert_eq!(chosen(&groups, Some(&[])), all);
    }

    #[test]
    fn a_wrong_expression_leaves_its_match_out_and_no_other() {
        let (groups, findings) = groups(json!([
            {"name": "bad", "pathRegex": "/a(", "methods": ["GET"]},
            {"name": "worse", "headers": [{"a b": "x"}]},
            {"name": "good", "pathRegex": "/good"},
        ]));
        assert_eq!(chosen(&groups, Some(&["bad"])), []);
        assert_eq!(chosen(&groups, Some(&["worse"])), []);
        assert_eq!(chosen(&groups, Some(&["good"])).len(), 1);
        let fields: Vec<&str> = findings.iter().map(|f| f.field.as_str()).collect();
        assert_eq!(fields, ["spec.matches[0].pathRegex", "spec.matches[1].headers.a b"]);
    }

    #[test]
    fn the_header_host_means_the_authority() {
        let (groups, _) = groups(json!([{"name": "a", "headers": [{"Host": "shop"}, {"X-A": "1"}]}]));
        let (rules, _) = groups.chosen(&Key::new("ns", "g"), None);
        let headers = rules.into_iter().next().unwrap().headers;
        assert_eq!(headers, [(":authority".into(), "shop".into()), ("x-a".into(), "1".into())]);
    }

    #[test]
    fn a_name_that_is_not_there_is_said() {
        let (groups, _) = groups(json!([{"name": "a"}]));
        let (rules, missing) = groups.chosen(&Key::new("ns", "g"), Some(&["a".into(), "z".into()]));
        assert_eq!(rules.len(), 1);
        assert_eq!(missing, ["HTTPRouteGroup ns/g has no match named \"z\""]);
        assert_eq!(groups.chosen(&Key::new("ns", "h"), None).1, ["there is no HTTPRouteGroup ns/h"]);
    }
}
