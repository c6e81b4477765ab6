//! Sources of configuration: which are supported where.

use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::config::core::v3::{ConfigSource, config_source::ConfigSourceSpecifier};

use super::context::Cx;
use crate::xds::path::At;

/// A source that may be used for secrets.
pub(super) enum Source {
    /// The ADS stream.
    Ads,
    /// A file.
    File(PathBuf),
}

/// The ADS stream (or `self`, which over ADS is the same); everything else is refused.
pub(super) fn ads_only(source: Option<&ConfigSource>, at: &At<'_>, cx: &mut Cx<'_>) -> Option<()> {
    match self::source(source, at, cx)? {
        Source::Ads => Some(()),
        Source::File(_) => cx.refuse(at, "only ads is supported here"),
    }
}

/// Where a resource comes from. A time limit of the first answer is the stream's, not a single resource's.
pub(super) fn source(source: Option<&ConfigSource>, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Source> {
    let Some(source) = source else { return cx.refuse(at, "is required") };
    if source.initial_fetch_timeout.is_some() {
        return cx.refuse(&at.field("initial_fetch_timeout"), "not supported here");
    }
    match source.config_source_specifier.as_ref() {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => Some(Source::Ads),
        Some(ConfigSourceSpecifier::Path(path)) => Some(Source::File(PathBuf::from(path))),
        Some(ConfigSourceSpecifier::PathConfigSource(path)) => {
            // It is watched in any case, as a file may be replaced by a rename.
            let file = PathBuf::from(&path.path);
            let watched = path.watched_directory.as_ref().map(|watched| Path::new(&watched.path));
            if watched.is_some_and(|watched| file.parent() != Some(watched)) {
                let at = at.field("path_config_source");
                return cx
                    .refuse(&at.field("watched_directory"), "only the directory that the file is in is supported");
            }
            Some(Source::File(file))
        }
        _ => cx.refuse(at, "needs ads"),
    }
}
