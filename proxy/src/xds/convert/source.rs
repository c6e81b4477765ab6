//! Sources of configuration: which are supported where.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use envoy_types::pb::envoy::config::core::v3::{ConfigSource, config_source::ConfigSourceSpecifier};

use super::context::Cx;
use crate::{
    config::{Name, Wanted},
    xds::path::At,
};

/// A source that may be used for secrets.
pub(super) enum Source {
    /// The ADS stream, and how long it is waited for.
    Ads(Option<Duration>),
    /// A file.
    File(PathBuf),
}

/// `name` from the ADS stream (or `self`, which over ADS is the same); every other source is refused.
pub(super) fn over_ads(name: Name, source: Option<&ConfigSource>, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Wanted> {
    match self::source(source, at, cx)? {
        Source::Ads(patience) => Some(Wanted { name, patience }),
        Source::File(_) => cx.refuse(at, "only ads is supported here"),
    }
}

/// Where a resource comes from.
pub(super) fn source(source: Option<&ConfigSource>, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Source> {
    let Some(source) = source else { return cx.refuse(at, "is required") };
    let wait_at = at.field("initial_fetch_timeout");
    let file = |path: &str, cx: &mut Cx<'_>| {
        if source.initial_fetch_timeout.is_some() {
            cx.report.warn(&wait_at, "has no effect: a file is read at once");
        }
        Some(Source::File(PathBuf::from(path)))
    };
    match source.config_source_specifier.as_ref() {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => {
            Some(Source::Ads(cx.duration(source.initial_fetch_timeout.as_ref(), &wait_at)))
        }
        Some(ConfigSourceSpecifier::Path(path)) => file(path, cx),
        Some(ConfigSourceSpecifier::PathConfigSource(config)) => {
            // It is watched in any case, as a file may be replaced by a rename.
            let watched = config.watched_directory.as_ref().map(|watched| Path::new(&watched.path));
            if watched.is_some_and(|watched| Path::new(&config.path).parent() != Some(watched)) {
                let at = at.field("path_config_source");
                return cx
                    .refuse(&at.field("watched_directory"), "only the directory that the file is in is supported");
            }
            file(&config.path, cx)
        }
        _ => cx.refuse(at, "needs ads"),
    }
}
