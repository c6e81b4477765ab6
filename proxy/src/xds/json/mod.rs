//! Protobuf messages as JSON and back, by the descriptor set and the rules of proto3's JSON mapping.
//!
//! Done over the undecoded descriptor set for the same reason as the walk: a decoded pool is larger than the whole proxy.
//! Tests compare both directions with another implementation.

mod read;
mod write;

pub(crate) use self::read::encode;
pub use self::write::render;

const ANY: &str = "google.protobuf.Any";
const DURATION: &str = "google.protobuf.Duration";
const TIMESTAMP: &str = "google.protobuf.Timestamp";
const STRUCT: &str = "google.protobuf.Struct";
const VALUE: &str = "google.protobuf.Value";
const LIST: &str = "google.protobuf.ListValue";
const FIELD_MASK: &str = "google.protobuf.FieldMask";

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
