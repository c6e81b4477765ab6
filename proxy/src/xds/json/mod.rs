//! Protobuf messages as JSON and back, by the descriptor set and the rules of proto3's JSON mapping.
//!
//! Done over the undecoded descriptor set for the same reason as the walk: a decoded pool is larger than the whole proxy.
//! Tests compare both directions with another implementation.

mod read;
mod write;

use envoy_types::pb::google::protobuf::Any;

use self::read::encode;
pub use self::write::render;
use super::{
    path::{At, Report},
    schema,
};

const ANY: &str = "google.protobuf.Any";
const DURATION: &str = "google.protobuf.Duration";
const TIMESTAMP: &str = "google.protobuf.Timestamp";
const STRUCT: &str = "google.protobuf.Struct";
const VALUE: &str = "google.protobuf.Value";
const LIST: &str = "google.protobuf.ListValue";
const FIELD_MASK: &str = "google.protobuf.FieldMask";

/// Reads a message from JSON with `@type`.
///
/// # Errors
/// All that is wrong, each with the path of the field. Unknown names are errors.
pub fn read(json: &serde_json::Value) -> Result<Any, Vec<String>> {
    let Some(type_url) = json.get("@type").and_then(serde_json::Value::as_str) else {
        return Err(vec!["has no \"@type\"".to_owned()]);
    };
    let (value, _) = encoded(schema::type_name(type_url), json, true)?;
    Ok(Any { type_url: type_url.to_owned(), value })
}

/// Encodes the JSON form of a message; with warnings, if unknown names are not errors.
pub(crate) fn encoded(
    type_name: &str,
    json: &serde_json::Value,
    reject_unknown: bool,
) -> Result<(Vec<u8>, Vec<String>), Vec<String>> {
    let mut report = Report::default();
    let value = encode(type_name, json, reject_unknown, &At::ROOT, &mut report);
    if report.errors.is_empty() { Ok((value, report.warnings)) } else { Err(report.errors) }
}

/// Messages with a JSON form of their own, other than the fields; inside an `Any` it stands under `value`.
fn has_own_form(name: &str) -> bool {
    matches!(name, ANY | DURATION | TIMESTAMP | STRUCT | VALUE | LIST | FIELD_MASK) || is_wrapper(name)
}

/// `google.protobuf.UInt32Value` and the like.
fn is_wrapper(name: &str) -> bool {
    name.starts_with("google.protobuf.") && name.ends_with("Value") && !matches!(name, VALUE | LIST)
}

#[cfg(test)]
mod tests;
