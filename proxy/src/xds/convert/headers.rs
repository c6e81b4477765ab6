//! Header edits.

use envoy_types::pb::envoy::config::core::v3::{HeaderValueOption, header_value_option::HeaderAppendAction};
use http::HeaderName;

use super::context::Cx;
use crate::{
    config::{
        access_log::Template,
        headers::{AppendAction, HeaderAdd, HeaderEdits},
    },
    xds::path::At,
};

/// Edits of the request and of the response of a message that has the four usual lists.
macro_rules! edits {
    ($message:expr, $at:expr, $cx:expr) => {
        (
            $crate::xds::convert::headers::edits(
                (&$message.request_headers_to_add, &$at.field("request_headers_to_add")),
                (&$message.request_headers_to_remove, &$at.field("request_headers_to_remove")),
                $cx,
            ),
            $crate::xds::convert::headers::edits(
                (&$message.response_headers_to_add, &$at.field("response_headers_to_add")),
                (&$message.response_headers_to_remove, &$at.field("response_headers_to_remove")),
                $cx,
            ),
        )
    };
}

/// Edits of one direction: `add` and `remove` are lists with their paths.
pub(super) fn edits(
    (add, add_at): (&[HeaderValueOption], &At<'_>),
    (remove, remove_at): (&[String], &At<'_>),
    cx: &mut Cx<'_>,
) -> HeaderEdits {
    let removed = remove.iter().enumerate().filter_map(|(i, name)| editable(name, &remove_at.index(i), cx)).collect();
    let added = add.iter().enumerate().filter_map(|(i, option)| addition(option, &add_at.index(i), cx)).collect();
    HeaderEdits { remove: removed, add: added }
}

/// Only additions.
pub(super) fn additions(add: &[HeaderValueOption], at: &At<'_>, cx: &mut Cx<'_>) -> HeaderEdits {
    edits((add, at), (&[], at), cx)
}

fn addition(option: &HeaderValueOption, at: &At<'_>, cx: &mut Cx<'_>) -> Option<HeaderAdd> {
    let Some(header) = option.header.as_ref() else { return cx.refuse(at, "needs a header") };
    let header_at = at.field("header");
    let action = match (option.append.as_ref().map(|a| a.value), option.append_action()) {
        (Some(_), action) if action != HeaderAppendAction::AppendIfExistsOrAdd => {
            return cx.refuse(at, "both append and append_action are set");
        }
        (None | Some(true), HeaderAppendAction::AppendIfExistsOrAdd) => AppendAction::Append,
        (Some(false), _) => AppendAction::Overwrite,
        (_, HeaderAppendAction::AddIfAbsent) => AppendAction::AddIfAbsent,
        (_, HeaderAppendAction::OverwriteIfExistsOrAdd) => AppendAction::Overwrite,
        (_, HeaderAppendAction::OverwriteIfExists) => AppendAction::OverwriteIfExists,
    };
    let value = match Template::parse(&header.value) {
        Ok(value) => value,
        Err(e) => return cx.refuse(&header_at.field("value"), e),
    };
    let name = editable(&header.key, &header_at.field("key"), cx)?;
    Some(HeaderAdd { name, value, action, keep_empty: option.keep_empty_value })
}

fn editable(name: &str, at: &At<'_>, cx: &mut Cx<'_>) -> Option<HeaderName> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return cx.refuse(at, format_args!("{name}: pseudo-headers and host may not be changed"));
    }
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) => Some(name),
        Err(_) => cx.refuse(at, format_args!("{name:?} is no header name")),
    }
}
