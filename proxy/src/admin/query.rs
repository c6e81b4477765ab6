//! Query strings of the admin pages. A parameter that a page does not know is an error, not silence.

use http::StatusCode;
use percent_encoding::percent_decode_str;
use regex::{Regex, RegexBuilder};

use super::Page;

/// The parameters of a request, in order.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn new(query: Option<&str>) -> Self {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(value))
                })
                .collect(),
        )
    }

    /// The value of a parameter; empty if it has none.
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Is it there, whatever its value?
    pub(super) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Refuses what is not among `known`.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Page> {
        match self.pairs().find(|(key, _)| !known.contains(key)) {
            Some((key, _)) => Err(bad(format!("unknown parameter {key:?}; there are: {}\n", known.join(", ")))),
            None => Ok(()),
        }
    }

    /// A regular expression that is found anywhere; its size is bounded.
    pub(super) fn regex(&self, key: &str) -> Result<Option<Regex>, Page> {
        let Some(text) = self.value(key).filter(|text| !text.is_empty()) else { return Ok(None) };
        let compiled = RegexBuilder::new(text).size_limit(1 << 20).build();
        compiled.map(Some).map_err(|error| bad(format!("{key}: {error}\n")))
    }
}

pub(super) fn bad(body: String) -> Page {
    Page::error(StatusCode::BAD_REQUEST, body)
}
