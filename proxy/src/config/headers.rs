//! Header edits as data (Envoy's `HeaderValueOption` lists).

use http::{HeaderMap, HeaderName, HeaderValue};

use super::access_log::{Part, Template};

/// Adds and removes, in the order configured: removals first, then additions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Names removed.
    pub remove: Vec<HeaderName>,
    /// Headers added.
    pub add: Vec<HeaderAdd>,
}

impl HeaderEdits {
    /// True when there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}

/// One header to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderAdd {
    /// The name; never a pseudo-header or `host` (refused in conversion).
    pub name: HeaderName,
    /// The value, which may hold operators such as `%DOWNSTREAM_REMOTE_ADDRESS%`.
    pub value: Template,
    /// What happens when the name is there already.
    pub action: AppendAction,
    /// Keep the header when the value comes out empty (`keep_empty_value`).
    pub keep_empty: bool,
}

/// Envoy's `HeaderAppendAction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendAction {
    /// Add another line.
    Append,
    /// Add only when absent.
    AddIfAbsent,
    /// Replace, or add when absent.
    Overwrite,
    /// Replace only when present.
    OverwriteIfExists,
}

impl HeaderEdits {
    /// Does the edits. `render` gives the text of a template that holds operators; plain text needs no rendering.
    ///
    /// A value that comes out empty is left out unless it is to be kept; one that is no valid header value (an operator
    /// may bring anything) is left out too.
    pub fn apply(&self, headers: &mut HeaderMap, mut render: impl FnMut(&Template) -> String) {
        for name in &self.remove {
            headers.remove(name);
        }
        for edit in &self.add {
            let present = headers.contains_key(&edit.name);
            match edit.action {
                AppendAction::AddIfAbsent if present => continue,
                AppendAction::OverwriteIfExists if !present => continue,
                _ => {}
            }
            let Some(value) = edit.value(&mut render) else { continue };
            if edit.action == AppendAction::Append {
                headers.append(edit.name.clone(), value);
            } else {
                headers.insert(edit.name.clone(), value);
            }
        }
    }
}

impl HeaderAdd {
    fn value(&self, render: &mut impl FnMut(&Template) -> String) -> Option<HeaderValue> {
        let value = match self.value.parts.as_slice() {
            [] => HeaderValue::from_static(""),
            [Part::Literal(text)] => HeaderValue::from_str(text).ok()?,
            _ => HeaderValue::from_maybe_shared(bytes::Bytes::from(render(&self.value))).ok()?,
        };
        (self.keep_empty || !value.is_empty()).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::access_log::{Operator, SimpleOperator};

    fn add(name: &str, text: &str, action: AppendAction) -> HeaderAdd {
        let value = Template { parts: vec![Part::Literal(text.into())] };
        HeaderAdd { name: name.parse().unwrap(), value, action, keep_empty: false }
    }

    fn edited(edits: &HeaderEdits, before: &[(&str, &str)]) -> Vec<String> {
        let mut headers: HeaderMap =
            before.iter().map(|(n, v)| (n.parse().unwrap(), HeaderValue::from_str(v).unwrap())).collect();
        edits.apply(&mut headers, |_| "rendered".to_owned());
        headers.iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect()
    }

    #[test]
    fn each_action_does_what_envoys_does() {
        for (action, on_absent, on_present) in [
            (AppendAction::Append, vec!["a=new"], vec!["a=old", "a=new"]),
            (AppendAction::AddIfAbsent, vec!["a=new"], vec!["a=old"]),
            (AppendAction::Overwrite, vec!["a=new"], vec!["a=new"]),
            (AppendAction::OverwriteIfExists, vec![], vec!["a=new"]),
        ] {
            let edits = HeaderEdits { remove: vec![], add: vec![add("a", "new", action)] };
            assert_eq!(edited(&edits, &[]), on_absent, "{action:?}");
            assert_eq!(edited(&edits, &[("a", "old")]), on_present, "{action:?}");
        }
    }

    #[test]
    fn removals_come_first_and_take_every_line() {
        let edits =
            HeaderEdits { remove: vec!["a".parse().unwrap()], add: vec![add("a", "new", AppendAction::Append)] };
        assert_eq!(edited(&edits, &[("a", "1"), ("a", "2"), ("b", "3")]), ["b=3", "a=new"]);
    }

    #[test]
    fn empty_values_are_left_out_unless_kept() {
        let mut edit = add("a", "", AppendAction::Append);
        assert!(edited(&HeaderEdits { remove: vec![], add: vec![edit.clone()] }, &[]).is_empty());
        edit.keep_empty = true;
        assert_eq!(edited(&HeaderEdits { remove: vec![], add: vec![edit] }, &[]), ["a="]);
    }

    #[test]
    fn operators_are_rendered_and_bad_output_is_left_out() {
        let mut edit = add("a", "", AppendAction::Append);
        edit.value.parts = vec![Part::Operator(Operator::Simple(SimpleOperator::Protocol), None)];
        let edits = HeaderEdits { remove: vec![], add: vec![edit] };
        assert_eq!(edited(&edits, &[]), ["a=rendered"]);
        let mut headers = HeaderMap::new();
        edits.apply(&mut headers, |_| "line\nbreak".to_owned());
        assert!(headers.is_empty());
    }
}
