//! JSON to protobuf.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Map, Value as Json};

use super::{ANY, DURATION, FIELD_MASK, LIST, STRUCT, TIMESTAMP, VALUE, has_own_form, is_wrapper};
use crate::xds::{
    path::{At, Report},
    schema::{self, Field, Kind, Message},
    wire::{Raw, fields, put},
};

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Encodes the JSON form of a message. With errors in the report the bytes are not the whole message. Unknown names are
/// errors with `reject_unknown`, else they are skipped with a warning.
pub(in crate::xds) fn encode(
    type_name: &str,
    json: &Json,
    reject_unknown: bool,
    at: &At<'_>,
    report: &mut Report,
) -> Vec<u8> {
    let mut reader = Reader { report, reject_unknown };
    let mut out = Vec::new();
    reader.message(type_name, json, at, &mut out);
    out
}

struct Reader<'r> {
    report: &'r mut Report,
    reject_unknown: bool,
}

impl Reader<'_> {
    fn message(&mut self, name: &str, json: &Json, at: &At<'_>, out: &mut Vec<u8>) {
        if name == ANY {
            return self.any(json, at, out);
        }
        if has_own_form(name) {
            return self.own_form(name, json, at, out);
        }
        let Some(object) = json.as_object() else { return self.wrong(at, "an object", json) };
        match schema::message(name) {
            Some(message) => self.fields(&message, object, at, out),
            None => self.report.error(at, format_args!("{name} is not a message that we know")),
        }
    }

    fn fields(&mut self, message: &Message, object: &Map<String, Json>, at: &At<'_>, out: &mut Vec<u8>) {
        let mut arms = vec![None; message.oneofs.len()];
        for (key, json) in object {
            let Some(field) = message.field_named(key) else {
                if key != "@type" {
                    self.unknown(key, message, at);
                }
                continue;
            };
            let at = at.field(field.name);
            if json.is_null() && field.type_name != VALUE {
                continue;
            }
            if let Some(arm) = field.oneof.and_then(|i| arms.get_mut(i))
                && let Some(other) = arm.replace(field.name)
            {
                self.report.error(&at, format_args!("only one of {other} and {} may be set", field.name));
            }
            self.field(field, json, &at, out);
        }
    }

    fn unknown(&mut self, key: &str, message: &Message, at: &At<'_>) {
        let at = at.field(key);
        if self.reject_unknown {
            self.report.error(&at, format_args!("no such field in {}", message.short_name()));
        } else {
            self.report.warn(&at, format_args!("no such field in {}, ignored", message.short_name()));
        }
    }

    fn field(&mut self, field: &Field, json: &Json, at: &At<'_>, out: &mut Vec<u8>) {
        if !field.repeated {
            let start = out.len();
            self.value(field, json, at, out);
            // A default that can't be told from "not set" is not written, as everywhere in proto3.
            let written = fields(&out[start..]).next();
            if !field.presence && written.is_some_and(|f| f.is_ok_and(|(_, raw)| raw.is_default())) {
                out.truncate(start);
            }
            return;
        }
        let entry = if field.kind == Kind::Message { schema::message(field.type_name) } else { None };
        if let Some(entry) = entry.filter(|e| e.map_entry) {
            return self.map(field, &entry, json, at, out);
        }
        let Some(list) = json.as_array() else { return self.wrong(at, "a list", json) };
        for (i, item) in list.iter().enumerate() {
            self.value(field, item, &at.index(i), out);
        }
    }

    fn map(&mut self, field: &Field, entry: &Message, json: &Json, at: &At<'_>, out: &mut Vec<u8>) {
        let Some(object) = json.as_object() else { return self.wrong(at, "an object", json) };
        let (Some(key_field), Some(value_field)) = (entry.field(1), entry.field(2)) else { return };
        for (key, json) in object {
            let (at, mut pair) = (at.key(key), Vec::new());
            self.value(key_field, &Json::String(key.clone()), &at, &mut pair);
            self.value(value_field, json, &at, &mut pair);
            put(out, field.number, Raw::Bytes(&pair));
        }
    }

    fn value(&mut self, field: &Field, json: &Json, at: &At<'_>, out: &mut Vec<u8>) {
        match field.kind {
            Kind::Message => {
                let mut bytes = Vec::new();
                self.message(field.type_name, json, at, &mut bytes);
                put(out, field.number, Raw::Bytes(&bytes));
            }
            Kind::String => match json {
                Json::String(s) => put(out, field.number, Raw::Bytes(s.as_bytes())),
                _ => self.wrong(at, "a string (in YAML, put it in quotes)", json),
            },
            Kind::Bytes => match json.as_str().and_then(base64) {
                Some(bytes) => put(out, field.number, Raw::Bytes(&bytes)),
                None => self.wrong(at, "base64", json),
            },
            Kind::Enum => self.enumeration(field, json, at, out),
            _ => match number(field.kind, json) {
                Some(raw) => put(out, field.number, raw),
                None => self.wrong(at, kind_name(field.kind), json),
            },
        }
    }

    fn enumeration(&mut self, field: &Field, json: &Json, at: &At<'_>, out: &mut Vec<u8>) {
        let values = schema::enum_values(field.type_name).unwrap_or_default();
        let number = match json {
            Json::String(s) => values.iter().find(|(name, _)| name == s).map(|(_, n)| *n),
            _ => json.as_i64().and_then(|n| i32::try_from(n).ok()),
        };
        match number {
            Some(n) => put(out, field.number, Raw::Varint(i64::from(n) as u64)),
            None => self.wrong(at, &format!("a value of {}", schema::short(field.type_name)), json),
        }
    }

    fn any(&mut self, json: &Json, at: &At<'_>, out: &mut Vec<u8>) {
        let Some(object) = json.as_object() else { return self.wrong(at, "an object", json) };
        if object.is_empty() {
            return;
        }
        let Some(type_url) = object.get("@type").and_then(Json::as_str) else {
            return self.report.error(at, "has no \"@type\"");
        };
        let name = schema::type_name(type_url);
        let inside = at.inside(name);
        let mut value = Vec::new();
        match schema::message(name) {
            // The words of Envoy's own loader; what the type may be here is judged by the walk.
            None => {
                return self
                    .report
                    .error(at, format_args!("Didn't find a registered implementation with type URL '{type_url}'"));
            }
            Some(_) if has_own_form(name) => {
                let inner = object.get("value").unwrap_or(&Json::Null);
                self.message(name, inner, &inside, &mut value);
            }
            Some(message) => self.fields(&message, object, &inside, &mut value),
        }
        put(out, 1, Raw::Bytes(type_url.as_bytes()));
        put(out, 2, Raw::Bytes(&value));
    }

    fn own_form(&mut self, name: &str, json: &Json, at: &At<'_>, out: &mut Vec<u8>) {
        match name {
            STRUCT => match json.as_object() {
                Some(object) => put_struct(object, out),
                None => self.wrong(at, "an object", json),
            },
            LIST => match json.as_array() {
                Some(list) => put_list(list, out),
                None => self.wrong(at, "a list", json),
            },
            VALUE => put_value(json, out),
            DURATION => match json.as_str().and_then(duration) {
                Some((seconds, nanos)) => put_time(seconds, nanos, out),
                None => self.wrong(at, "a duration such as \"1.5s\"", json),
            },
            TIMESTAMP => match json.as_str().and_then(timestamp) {
                Some((seconds, nanos)) => put_time(seconds, nanos, out),
                None => self.wrong(at, "a time such as \"2026-01-02T03:04:05Z\"", json),
            },
            FIELD_MASK => match json.as_str() {
                Some(s) => {
                    for path in s.split(',').filter(|p| !p.is_empty()) {
                        put(out, 1, Raw::Bytes(path.as_bytes()));
                    }
                }
                None => self.wrong(at, "a string of field names", json),
            },
            _ if is_wrapper(name) => {
                if let Some(message) = schema::message(name)
                    && let Some(field) = message.field(1)
                {
                    self.value(field, json, at, out);
                }
            }
            _ => self.wrong(at, "another form", json),
        }
    }

    fn wrong(&mut self, at: &At<'_>, expected: &str, json: &Json) {
        let mut got = json.to_string();
        if got.len() > 40 {
            got = got.chars().take(40).chain(['…']).collect();
        }
        self.report.error(at, format_args!("expected {expected}, got {got}"));
    }
}

fn base64(text: &str) -> Option<Vec<u8>> {
    // Line breaks of YAML block scalars don't count.
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(&text).or_else(|_| URL_SAFE.decode(&text)).ok()
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Bool => "true or false",
        Kind::Double | Kind::Float => "a number",
        Kind::Uint32 | Kind::Fixed32 => "a whole number of 32 bits without sign",
        Kind::Uint64 | Kind::Fixed64 => "a whole number of 64 bits without sign",
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "a whole number of 32 bits",
        _ => "a whole number of 64 bits",
    }
}

/// A number or boolean; numbers may stand in strings.
fn number(kind: Kind, json: &Json) -> Option<Raw<'static>> {
    let whole = |json: &Json| -> Option<i128> {
        match json {
            Json::Number(n) => n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from)).or_else(|| {
                // 1e3 and 5.0 are whole numbers too.
                n.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 1e19).map(|f| f as i128)
            }),
            Json::String(s) => s.parse().ok(),
            _ => None,
        }
    };
    let real = |json: &Json| -> Option<f64> {
        match json {
            Json::Number(n) => n.as_f64(),
            Json::String(s) => match s.as_str() {
                "NaN" => Some(f64::NAN),
                "Infinity" => Some(f64::INFINITY),
                "-Infinity" => Some(f64::NEG_INFINITY),
                s => s.parse().ok().filter(|f: &f64| f.is_finite()),
            },
            _ => None,
        }
    };
    Some(match kind {
        Kind::Bool => Raw::Varint(u64::from(match json {
            Json::Bool(b) => *b,
            Json::String(s) => s.parse().ok()?,
            _ => return None,
        })),
        Kind::Double => Raw::Fixed64(real(json)?.to_bits()),
        Kind::Float => Raw::Fixed32((real(json)? as f32).to_bits()),
        Kind::Int32 => Raw::Varint(i64::from(i32::try_from(whole(json)?).ok()?) as u64),
        Kind::Int64 => Raw::Varint(i64::try_from(whole(json)?).ok()? as u64),
        Kind::Uint32 => Raw::Varint(u64::from(u32::try_from(whole(json)?).ok()?)),
        Kind::Uint64 => Raw::Varint(u64::try_from(whole(json)?).ok()?),
        Kind::Fixed32 => Raw::Fixed32(u32::try_from(whole(json)?).ok()?),
        Kind::Fixed64 => Raw::Fixed64(u64::try_from(whole(json)?).ok()?),
        Kind::Sfixed32 => Raw::Fixed32(i32::try_from(whole(json)?).ok()? as u32),
        Kind::Sfixed64 => Raw::Fixed64(i64::try_from(whole(json)?).ok()? as u64),
        Kind::Sint32 | Kind::Sint64 => {
            let v = i64::try_from(whole(json)?).ok()?;
            Raw::Varint((v << 1 ^ v >> 63) as u64)
        }
        Kind::String | Kind::Bytes | Kind::Message | Kind::Enum => return None,
    })
}

/// `1.5s` as seconds and nanoseconds of one sign.
fn duration(text: &str) -> Option<(i64, i32)> {
    let number = text.strip_suffix('s')?;
    let (negative, number) = number.strip_prefix('-').map_or((false, number), |n| (true, n));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 9 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let seconds: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let nanos: i32 = format!("{fraction:0<9}").parse().ok()?;
    (seconds <= 315_576_000_000).then_some(if negative { (-seconds, -nanos) } else { (seconds, nanos) })
}

fn timestamp(text: &str) -> Option<(i64, i32)> {
    let since = humantime::parse_rfc3339(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some((i64::try_from(since.as_secs()).ok()?, i32::try_from(since.subsec_nanos()).ok()?))
}

fn put_time(seconds: i64, nanos: i32, out: &mut Vec<u8>) {
    if seconds != 0 {
        put(out, 1, Raw::Varint(seconds as u64));
    }
    if nanos != 0 {
        put(out, 2, Raw::Varint(i64::from(nanos) as u64));
    }
}

fn put_struct(object: &Map<String, Json>, out: &mut Vec<u8>) {
    for (key, json) in object {
        let (mut entry, mut value) = (Vec::new(), Vec::new());
        put_value(json, &mut value);
        put(&mut entry, 1, Raw::Bytes(key.as_bytes()));
        put(&mut entry, 2, Raw::Bytes(&value));
        put(out, 1, Raw::Bytes(&entry));
    }
}

fn put_list(list: &[Json], out: &mut Vec<u8>) {
    for json in list {
        let mut value = Vec::new();
        put_value(json, &mut value);
        put(out, 1, Raw::Bytes(&value));
    }
}

fn put_value(json: &Json, out: &mut Vec<u8>) {
    match json {
        Json::Null => put(out, 1, Raw::Varint(0)),
        Json::Number(n) => put(out, 2, Raw::Fixed64(n.as_f64().unwrap_or_default().to_bits())),
        Json::String(s) => put(out, 3, Raw::Bytes(s.as_bytes())),
        Json::Bool(b) => put(out, 4, Raw::Varint(u64::from(*b))),
        Json::Object(object) => {
            let mut inner = Vec::new();
            put_struct(object, &mut inner);
            put(out, 5, Raw::Bytes(&inner));
        }
        Json::Array(list) => {
            let mut inner = Vec::new();
            put_list(list, &mut inner);
            put(out, 6, Raw::Bytes(&inner));
        }
    }
}
