//! Header edits as data (Envoy's `HeaderValueOption` lists).

use http::HeaderName;

use super::access_log::Template;

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
