//! Protobuf to JSON, as Envoy's admin pages print it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value as Json, json};

use super::{ANY, DURATION, FIELD_MASK, LIST, STRUCT, TIMESTAMP, VALUE, has_own_form, is_wrapper};
use crate::xds::{
    schema::{self, Field, Kind, Message},
    wire::{self, Malformed, Raw, Values},
};

/// What stands in place of private keys and passwords.
const REDACTED: &str = "[redacted]";
/// Nesting that is printed.
const MAX_DEPTH: usize = 100;

/// The JSON of an encoded message as Envoy's admin pages print it: field names as in the proto, `Any` expanded with
/// `@type`, private keys and passwords replaced by `[redacted]`. What can't be decoded is printed as base64 under `value`.
#[must_use]
pub fn render(type_url: &str, bytes: &[u8]) -> Json {
    any(type_url, bytes, false, 0).unwrap_or_else(|_| json!({"@type": type_url, "value": STANDARD.encode(bytes)}))
}

fn any(type_url: &str, bytes: &[u8], redact: bool, depth: usize) -> Result<Json, Malformed> {
    let name = schema::type_name(type_url);
    if schema::message(name).is_none() {
        let value = if redact { REDACTED.to_owned() } else { STANDARD.encode(bytes) };
        return Ok(json!({"@type": type_url, "value": value}));
    }
    let inner = message(name, bytes, redact, depth)?;
    let mut object = Map::new();
    object.insert("@type".into(), type_url.into());
    match inner {
        Json::Object(fields) if !has_own_form(name) => object.extend(fields),
        own => {
            object.insert("value".into(), own);
        }
    }
    Ok(Json::Object(object))
}

fn message(name: &str, bytes: &[u8], redact: bool, depth: usize) -> Result<Json, Malformed> {
    if depth > MAX_DEPTH {
        return Err(Malformed);
    }
    if has_own_form(name) {
        return own_form(name, bytes, redact, depth);
    }
    let message = schema::message(name).ok_or(Malformed)?;
    let groups = wire::grouped(bytes)?;
    let mut object = Map::new();
    for field in &message.fields {
        let Some((_, values)) = groups.iter().find(|(n, _)| *n == field.number) else { continue };
        let values = schema::unpack(field, values)?;
        if !field.presence && !field.repeated && values.last().is_none_or(|v| v.is_default()) {
            continue;
        }
        let redact = redact || field.sensitive;
        let json = if field.repeated {
            list(field, &values, redact, depth)?
        } else {
            singular(field, &values, redact, depth)?
        };
        object.insert(field.name.to_owned(), json);
    }
    Ok(Json::Object(object))
}

fn singular(field: &Field, values: &Values<'_>, redact: bool, depth: usize) -> Result<Json, Malformed> {
    if field.kind == Kind::Message && values.len() > 1 {
        let parts: Option<Vec<&[u8]>> = values.iter().map(|v| v.bytes()).collect();
        return message(field.type_name, &parts.ok_or(Malformed)?.concat(), redact, depth + 1);
    }
    value(field, *values.last().ok_or(Malformed)?, redact, depth)
}

fn list(field: &Field, values: &Values<'_>, redact: bool, depth: usize) -> Result<Json, Malformed> {
    let entry = if field.kind == Kind::Message { schema::message(field.type_name) } else { None };
    if let Some(entry) = entry.filter(|e| e.map_entry) {
        return map(&entry, values, redact, depth);
    }
    values.iter().map(|v| value(field, *v, redact, depth)).collect::<Result<Vec<_>, _>>().map(Json::Array)
}

fn map(entry: &Message, values: &Values<'_>, redact: bool, depth: usize) -> Result<Json, Malformed> {
    let (Some(key_field), Some(value_field)) = (entry.field(1), entry.field(2)) else { return Err(Malformed) };
    let mut object = Map::new();
    for pair in values {
        let groups = wire::grouped(pair.bytes().ok_or(Malformed)?)?;
        let part = |n: u32| groups.iter().find(|(number, _)| *number == n).and_then(|(_, v)| v.last().copied());
        let key = match value(key_field, part(1).unwrap_or_else(|| empty(key_field)), false, depth)? {
            Json::String(s) => s,
            other => other.to_string(),
        };
        object.insert(key, value(value_field, part(2).unwrap_or_else(|| empty(value_field)), redact, depth)?);
    }
    Ok(Json::Object(object))
}

fn empty(field: &Field) -> Raw<'static> {
    match field.kind {
        Kind::String | Kind::Bytes | Kind::Message => Raw::Bytes(&[]),
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => Raw::Fixed64(0),
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => Raw::Fixed32(0),
        _ => Raw::Varint(0),
    }
}

fn value(field: &Field, raw: Raw<'_>, redact: bool, depth: usize) -> Result<Json, Malformed> {
    let varint = || raw.varint().ok_or(Malformed);
    let bits64 = || if let Raw::Fixed64(v) = raw { Ok(v) } else { Err(Malformed) };
    let bits32 = || if let Raw::Fixed32(v) = raw { Ok(v) } else { Err(Malformed) };
    Ok(match field.kind {
        Kind::Message => return message(field.type_name, raw.bytes().ok_or(Malformed)?, redact, depth + 1),
        Kind::String if redact => REDACTED.into(),
        Kind::String => raw.text().ok_or(Malformed)?.into(),
        Kind::Bytes if redact => STANDARD.encode(REDACTED).into(),
        Kind::Bytes => STANDARD.encode(raw.bytes().ok_or(Malformed)?).into(),
        Kind::Bool => (varint()? != 0).into(),
        Kind::Enum => {
            let number = varint()? as i32;
            let values = schema::enum_values(field.type_name).unwrap_or_default();
            values.iter().find(|(_, n)| *n == number).map_or_else(|| number.into(), |(name, _)| (*name).into())
        }
        Kind::Double => real(f64::from_bits(bits64()?)),
        Kind::Float => {
            // The shortest decimal that is this number in 32 bits.
            let v = f32::from_bits(bits32()?);
            real(v.to_string().parse().unwrap_or_else(|_| f64::from(v)))
        }
        Kind::Int32 => (varint()? as i32).into(),
        Kind::Uint32 => (varint()? as u32).into(),
        Kind::Sint32 => (zigzag(varint()?) as i32).into(),
        Kind::Fixed32 => bits32()?.into(),
        Kind::Sfixed32 => (bits32()? as i32).into(),
        // 64 bits are text in proto3's JSON: many readers have only doubles.
        Kind::Int64 => (varint()? as i64).to_string().into(),
        Kind::Uint64 => varint()?.to_string().into(),
        Kind::Sint64 => zigzag(varint()?).to_string().into(),
        Kind::Fixed64 => bits64()?.to_string().into(),
        Kind::Sfixed64 => (bits64()? as i64).to_string().into(),
    })
}

fn zigzag(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

fn real(v: f64) -> Json {
    match v {
        v if v.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        // Whole numbers without a point, as Envoy prints them.
        v if v.fract() == 0.0 && v.abs() < 9e15 => (v as i64).into(),
        v => v.into(),
    }
}

fn own_form(name: &str, bytes: &[u8], redact: bool, depth: usize) -> Result<Json, Malformed> {
    let groups = wire::grouped(bytes)?;
    let part = |n: u32| groups.iter().find(|(number, _)| *number == n).and_then(|(_, v)| v.last().copied());
    match name {
        ANY => {
            let type_url = part(1).map_or(Some(""), Raw::text).ok_or(Malformed)?;
            let value = part(2).and_then(Raw::bytes).unwrap_or_default();
            if type_url.is_empty() { Ok(json!({})) } else { any(type_url, value, redact, depth + 1) }
        }
        DURATION | TIMESTAMP => {
            let seconds = part(1).and_then(Raw::varint).unwrap_or(0) as i64;
            let nanos = part(2).and_then(Raw::varint).unwrap_or(0) as i32;
            time(name, seconds, nanos)
        }
        STRUCT => {
            let message = schema::message(STRUCT).ok_or(Malformed)?;
            let field = message.field(1).ok_or(Malformed)?;
            let entry = schema::message(field.type_name).ok_or(Malformed)?;
            let none = Values::new();
            let values = groups.iter().find(|(n, _)| *n == 1).map_or(&none, |(_, v)| v);
            map(&entry, values, redact, depth + 1)
        }
        LIST => {
            let values = groups.iter().find(|(n, _)| *n == 1).map(|(_, v)| v.as_slice()).unwrap_or_default();
            let item = |v: &Raw<'_>| message(VALUE, v.bytes().ok_or(Malformed)?, redact, depth + 1);
            values.iter().map(item).collect::<Result<Vec<_>, _>>().map(Json::Array)
        }
        VALUE => match groups.last().and_then(|(n, v)| v.last().map(|v| (*n, *v))) {
            Some((2, Raw::Fixed64(v))) => Ok(real(f64::from_bits(v))),
            Some((3, raw)) => Ok(if redact { REDACTED.into() } else { raw.text().ok_or(Malformed)?.into() }),
            Some((4, Raw::Varint(v))) => Ok((v != 0).into()),
            Some((5, Raw::Bytes(b))) => message(STRUCT, b, redact, depth + 1),
            Some((6, Raw::Bytes(b))) => message(LIST, b, redact, depth + 1),
            _ => Ok(Json::Null),
        },
        FIELD_MASK => {
            let paths = groups.iter().find(|(n, _)| *n == 1).map(|(_, v)| v.as_slice()).unwrap_or_default();
            Ok(paths.iter().filter_map(|p| p.text()).collect::<Vec<_>>().join(",").into())
        }
        _ if is_wrapper(name) => {
            let message = schema::message(name).ok_or(Malformed)?;
            let field = message.field(1).ok_or(Malformed)?;
            value(field, part(1).unwrap_or_else(|| empty(field)), redact, depth)
        }
        _ => Err(Malformed),
    }
}

fn time(name: &str, seconds: i64, nanos: i32) -> Result<Json, Malformed> {
    if name == DURATION {
        let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
        let (seconds, nanos) = (seconds.unsigned_abs(), nanos.unsigned_abs());
        return Ok(format!("{sign}{seconds}{}s", fraction(nanos)).into());
    }
    let since = std::time::Duration::new(
        u64::try_from(seconds).map_err(|_| Malformed)?,
        u32::try_from(nanos).map_err(|_| Malformed)?,
    );
    let time = std::time::UNIX_EPOCH.checked_add(since).ok_or(Malformed)?;
    Ok(humantime::format_rfc3339(time).to_string().into())
}

/// `.5`-like fraction with 3, 6 or 9 digits; nothing for zero.
fn fraction(nanos: u32) -> String {
    match nanos {
        0 => String::new(),
        n if n % 1_000_000 == 0 => format!(".{:03}", n / 1_000_000),
        n if n % 1000 == 0 => format!(".{:06}", n / 1000),
        n => format!(".{n:09}"),
    }
}
