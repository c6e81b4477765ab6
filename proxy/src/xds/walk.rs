//! The walk over every set field of a resource: the support table, validation rules, unknown fields, deprecations.
//!
//! It enters each `Any` by its type URL and collects everything it finds; nothing is decoded into typed messages before.

use std::{collections::HashSet, sync::Arc};

use super::{
    convert::{Options, Origin},
    path::{At, Report},
    pgv::{self, Value},
    schema::{self, Field, Kind, Message},
    support::{self, Support},
    wire::{self, Raw, Values},
};

/// Nesting that is refused, before it could exhaust the stack; prost's own limit is 100.
const MAX_DEPTH: usize = 80;
const ANY: &str = "google.protobuf.Any";
const DURATION: &str = "google.protobuf.Duration";
/// A list of which the first entry counts that is supported; the others are not even looked at, as in Envoy.
const ALTERNATIVES: (&str, &str) = ("envoy.config.cluster.v3.LoadBalancingPolicy", "policies");

/// Walks an encoded message of the given type.
pub(super) fn walk(type_name: &str, bytes: &[u8], options: &Options, report: &mut Report) {
    let mut walk = Walk { options, report, depth: 0, told: HashSet::new() };
    match schema::message(type_name) {
        Some(message) => walk.message(&message, bytes, &At::ROOT, true),
        None => walk.report.error(&At::ROOT, format_args!("{type_name} is not a message that we know")),
    }
}

struct Walk<'r> {
    options: &'r Options,
    report: &'r mut Report,
    depth: usize,
    /// Messages and field numbers that were warned about: once for a resource is enough.
    told: HashSet<(Box<str>, u32)>,
}

impl Walk<'_> {
    fn message(&mut self, message: &Message, bytes: &[u8], at: &At<'_>, validate: bool) {
        if self.depth == MAX_DEPTH {
            return self.report.error(at, "nested too deeply");
        }
        self.depth += 1;
        match wire::grouped(bytes) {
            Ok(groups) => self.fields(message, &groups, at, validate && !message.unvalidated),
            Err(e) => self.report.error(at, e),
        }
        self.depth -= 1;
    }

    fn fields(&mut self, message: &Message, groups: &[(u32, Values<'_>)], at: &At<'_>, validate: bool) {
        let optional = is_optional(message, groups);
        for (number, values) in groups {
            let Some(field) = message.field(*number) else {
                self.unknown(*number, message, at);
                continue;
            };
            self.set_field(message, field, values, &Place { at: &at.field(field.name), validate, optional });
        }
        if !validate {
            return;
        }
        for field in &message.fields {
            if !field.rules.is_empty() && !groups.iter().any(|(n, _)| *n == field.number) {
                self.absent(field, &at.field(field.name));
            }
        }
        for (index, oneof) in message.oneofs.iter().enumerate().filter(|(_, o)| o.required) {
            let set = |(number, _): &(u32, Values<'_>)| message.field(*number).is_some_and(|f| f.oneof == Some(index));
            if !groups.iter().any(set) {
                self.report.error(&at.field(oneof.name), "one of its fields is required");
            }
        }
    }

    fn unknown(&mut self, number: u32, message: &Message, at: &At<'_>) {
        let reason = format!("unknown field {number} of {}", message.name);
        if self.options.reject_unknown_fields {
            self.report.error(at, reason);
        } else if self.first(message, number) {
            self.report.warn(at, format_args!("{reason} is ignored"));
        }
    }

    /// True when this field was not warned about before.
    fn first(&mut self, message: &Message, number: u32) -> bool {
        self.told.insert((message.name.clone(), number))
    }

    /// Rules of a field that isn't set.
    fn absent(&mut self, field: &Field, at: &At<'_>) {
        let wrong = if field.repeated {
            pgv::check_count(&field.rules, 0)
        } else if field.presence {
            if field.oneof.is_some() { None } else { pgv::check_absent(&field.rules) }
        } else {
            scalar(field, None).and_then(|v| pgv::check(&field.rules, v))
        };
        if let Some(wrong) = wrong {
            self.report.error(at, wrong);
        }
    }

    fn set_field(&mut self, message: &Message, field: &Field, values: &Values<'_>, place: &Place<'_>) {
        let Ok(values) = schema::unpack(field, values) else {
            return self.report.error(place.at, wire::Malformed);
        };
        if !field.presence && !field.repeated && values.last().is_none_or(|v| v.is_default()) {
            if place.validate {
                self.absent(field, place.at);
            }
            return;
        }
        match field.support {
            Support::Refused => {
                // What Envoy itself has not implemented, in its words.
                let nobody = matches!(field.name, "address_suffix" | "suffix_len");
                return self.report.error(place.at, if nobody { "unimplemented" } else { "not supported" });
            }
            Support::Inert(why) => {
                // In a file somebody wrote it by hand and should know.
                if self.options.origin == Origin::File {
                    self.report.warn(place.at, format_args!("has no effect: {why}"));
                }
                return;
            }
            Support::Alias(instead) if self.first(message, field.number) => {
                self.report.warn(place.at, format_args!("deprecated, taken as {instead}"));
            }
            Support::Supported if field.deprecated && self.first(message, field.number) => {
                self.report.warn(place.at, "deprecated");
            }
            Support::Alias(_) => {}
            Support::Supported => {}
        }
        if field.repeated {
            self.list(message, field, &values, place);
        } else if field.kind == Kind::Message && values.len() > 1 {
            // Parts of one message; put together they are the whole, by the rules of protobuf.
            let parts: Option<Vec<&[u8]>> = values.iter().map(|v| v.bytes()).collect();
            let whole = parts.map(|p| p.concat()).unwrap_or_default();
            self.value(message, field, Raw::Bytes(&whole), &field.rules, place);
        } else if let Some(last) = values.last() {
            self.value(message, field, *last, &field.rules, place);
        }
    }

    fn list(&mut self, message: &Message, field: &Field, values: &Values<'_>, place: &Place<'_>) {
        let entry = if field.kind == Kind::Message { schema::message(field.type_name) } else { None };
        if place.validate {
            if let Some(wrong) = pgv::check_count(&field.rules, values.len()) {
                self.report.error(place.at, wrong);
            }
            let repeats = |(i, v): (usize, &Raw<'_>)| values[..i].contains(v);
            if pgv::unique(&field.rules) && values.iter().enumerate().any(repeats) {
                self.report.error(place.at, "repeated value must contain unique items");
            }
        }
        if let Some(entry) = entry.filter(|e| e.map_entry) {
            return self.map(message, field, &entry, values, place);
        }
        let rules = pgv::items(&field.rules);
        if (&*message.name, field.name) == ALTERNATIVES
            && let Some(taken) = values.iter().position(|value| Self::is_supported_policy(*value))
        {
            for i in 0..taken {
                let reason = format_args!("not supported; skipped, as {}[{taken}] is", field.name);
                self.report.warn(&place.at.index(i), reason);
            }
            return self.value(message, field, values[taken], rules, &place.at(&place.at.index(taken)));
        }
        for (i, value) in values.iter().enumerate() {
            self.value(message, field, *value, rules, &place.at(&place.at.index(i)));
        }
    }

    /// Is the extension in an encoded `LoadBalancingPolicy.Policy` (fields: 4 = `typed_extension_config`, 2 = `typed_config`,
    /// 1 = `type_url`) one that we have?
    fn is_supported_policy(value: Raw<'_>) -> bool {
        fn inside(raw: Raw<'_>, number: u32) -> Option<Raw<'_>> {
            let groups = wire::grouped(raw.bytes()?).ok()?;
            groups.iter().find(|(n, _)| *n == number).and_then(|(_, values)| values.last().copied())
        }
        let url = inside(value, 4).and_then(|config| inside(config, 2)).and_then(|any| inside(any, 1));
        let name = url.and_then(Raw::text).map_or("", schema::type_name);
        name.starts_with("envoy.extensions.load_balancing_policies.")
            && support::types("envoy.config.core.v3.TypedExtensionConfig", "typed_config").iter().any(|t| t == name)
    }

    fn map(&mut self, message: &Message, field: &Field, entry: &Message, values: &Values<'_>, place: &Place<'_>) {
        let (key_rules, value_rules) = pgv::pairs(&field.rules);
        let Some(value_field) = entry.field(2) else { return };
        for bytes in values {
            let Some(pair) = bytes.bytes().and_then(|b| wire::grouped(b).ok()) else {
                self.report.error(place.at, wire::Malformed);
                continue;
            };
            let part = |n: u32| pair.iter().find(|(number, _)| *number == n).and_then(|(_, v)| v.last().copied());
            let key = part(1).map_or(Some(""), |k| if k.bytes().is_some() { k.text() } else { Some("?") });
            let Some(key) = key else {
                self.report.error(place.at, "a key is not UTF-8");
                continue;
            };
            let at = place.at.key(key);
            if place.validate
                && let Some(wrong) = pgv::check(key_rules, Value::Text(key))
            {
                self.report.error(&at, wrong);
            }
            let value = part(2).unwrap_or(Raw::Bytes(&[]));
            // Marks about a map's values stand with the map itself.
            let marks = Marks { message, field };
            self.typed(&marks, value_field, value, value_rules, &place.at(&at));
        }
    }

    fn value(&mut self, message: &Message, field: &Field, raw: Raw<'_>, rules: &[pgv::Rule], place: &Place<'_>) {
        self.typed(&Marks { message, field }, field, raw, rules, place);
    }

    /// One value; `marks` is where the table has its rows, `field` what it is.
    fn typed(&mut self, marks: &Marks<'_>, field: &Field, raw: Raw<'_>, rules: &[pgv::Rule], place: &Place<'_>) {
        if field.kind == Kind::Message {
            let Some(bytes) = raw.bytes() else { return self.report.error(place.at, wire::Malformed) };
            return self.embedded(marks, field, bytes, rules, place);
        }
        if field.kind == Kind::String && raw.text().is_none() {
            return self.report.error(place.at, "not UTF-8");
        }
        let Some(value) = scalar(field, Some(raw)) else { return self.report.error(place.at, wire::Malformed) };
        if place.validate
            && let Some(wrong) = pgv::check(rules, value)
        {
            return self.report.error(place.at, wrong);
        }
        if let Value::Enum { number, .. } = value {
            self.enum_value(marks, field, number, place.at);
        }
    }

    fn enum_value(&mut self, marks: &Marks<'_>, field: &Field, number: i32, at: &At<'_>) {
        let allowed = support::values(&marks.message.name, marks.field.name);
        if allowed == ["*"] {
            return;
        }
        let defined = schema::enum_values(field.type_name).unwrap_or_default();
        let name = defined.iter().find(|(_, n)| *n == number).map(|(name, _)| *name);
        if !name.is_some_and(|n| allowed.contains(&n)) {
            let name = name.map_or_else(|| number.to_string(), str::to_owned);
            self.report.error(at, format_args!("{name} not supported (supported: {})", allowed.join(", ")));
        }
    }

    fn embedded(&mut self, marks: &Marks<'_>, field: &Field, bytes: &[u8], rules: &[pgv::Rule], place: &Place<'_>) {
        let validate = place.validate && !pgv::skipped(rules);
        match field.type_name {
            ANY => self.any(marks, bytes, place),
            DURATION => match pgv::nanoseconds(bytes) {
                Ok(v) => {
                    if validate && let Some(wrong) = pgv::check(rules, Value::Duration(v)) {
                        self.report.error(place.at, wrong);
                    }
                }
                Err(e) => self.report.error(place.at, e),
            },
            name if name.starts_with("google.protobuf.") => {
                // Wrappers: the field's rules are about the value inside.
                let Some(inner) = wrapped(name, bytes) else { return };
                if validate && let Some(wrong) = pgv::check(rules, inner) {
                    self.report.error(place.at, wrong);
                }
            }
            name => match schema::message(name) {
                Some(message) => self.message(&message, bytes, place.at, validate),
                None => self.report.error(place.at, format_args!("{name} is not a message that we know")),
            },
        }
    }

    fn any(&mut self, marks: &Marks<'_>, bytes: &[u8], place: &Place<'_>) {
        let Ok(parts) = wire::grouped(bytes) else { return self.report.error(place.at, wire::Malformed) };
        let part = |n: u32| parts.iter().find(|(number, _)| *number == n).and_then(|(_, v)| v.last().copied());
        let Some(type_url) = part(1).map_or(Some(""), Raw::text) else {
            return self.report.error(place.at, "the type URL is not UTF-8");
        };
        let (name, value) = (schema::type_name(type_url), part(2).and_then(Raw::bytes).unwrap_or_default());
        let allowed = support::types(&marks.message.name, marks.field.name);
        if !allowed.iter().any(|t| t == name) {
            let known = schema::message(name).is_some();
            let reason = refusal(type_url, known, allowed);
            return if place.optional {
                self.report.warn(place.at, format_args!("{reason}; skipped, as it is optional"));
            } else {
                self.report.error(place.at, reason);
            };
        }
        match schema::message(name) {
            Some(message) => self.any_message(&message, value, place),
            None => self.report.error(place.at, refusal(type_url, false, allowed)),
        }
    }

    fn any_message(&mut self, message: &Arc<Message>, value: &[u8], place: &Place<'_>) {
        self.message(message, value, &place.at.inside(&message.name), true);
    }
}

/// Where the table's rows about a value stand.
struct Marks<'a> {
    message: &'a Message,
    field: &'a Field,
}

/// Circumstances of a value.
struct Place<'a> {
    at: &'a At<'a>,
    /// Validation rules apply.
    validate: bool,
    /// An unknown extension here is skipped with a warning.
    optional: bool,
}

impl Place<'_> {
    fn at<'b>(&self, at: &'b At<'b>) -> Place<'b> {
        Place { at, validate: self.validate, optional: self.optional }
    }
}

/// `is_optional` of filters and of per-filter settings.
fn is_optional(message: &Message, groups: &[(u32, Values<'_>)]) -> bool {
    let Some(field) = message.fields.iter().find(|f| f.name == "is_optional" && f.kind == Kind::Bool) else {
        return false;
    };
    groups.iter().any(|(n, v)| *n == field.number && v.last().is_some_and(|v| !v.is_default()))
}

fn refusal(type_url: &str, known: bool, allowed: &[String]) -> String {
    let supported: Vec<&str> = allowed.iter().map(|t| schema::short(t)).collect();
    let supported = supported.join(", ");
    match (known, type_url) {
        (_, "") => format!("no type URL (supported: {supported})"),
        (true, _) => format!("{} not supported (supported: {supported})", schema::type_name(type_url)),
        (false, _) => {
            format!("Didn't find a registered implementation with type URL '{type_url}' (supported: {supported})")
        }
    }
}

/// A scalar's value for the rules; `raw` none = the default. None = the wire type is not the field's.
fn scalar<'a>(field: &Field, raw: Option<Raw<'a>>) -> Option<Value<'a>> {
    let varint = || raw.map_or(Some(0), Raw::varint);
    let bits64 = || raw.map_or(Some(0), |r| if let Raw::Fixed64(v) = r { Some(v) } else { None });
    let bits32 = || raw.map_or(Some(0), |r| if let Raw::Fixed32(v) = r { Some(v) } else { None });
    let zigzag = |v: u64| i128::from((v >> 1) as i64 ^ -((v & 1) as i64));
    Some(match field.kind {
        Kind::Double => Value::Float(f64::from_bits(bits64()?)),
        Kind::Float => Value::Float(f64::from(f32::from_bits(bits32()?))),
        Kind::Int64 => Value::Int(i128::from(varint()? as i64)),
        Kind::Int32 => Value::Int(i128::from(varint()? as i32)),
        Kind::Uint64 => Value::Int(i128::from(varint()?)),
        Kind::Uint32 => Value::Int(i128::from(varint()? as u32)),
        Kind::Fixed64 => Value::Int(i128::from(bits64()?)),
        Kind::Fixed32 => Value::Int(i128::from(bits32()?)),
        Kind::Sfixed64 => Value::Int(i128::from(bits64()? as i64)),
        Kind::Sfixed32 => Value::Int(i128::from(bits32()? as i32)),
        Kind::Sint32 | Kind::Sint64 => Value::Int(zigzag(varint()?)),
        Kind::Bool => Value::Bool(varint()? != 0),
        Kind::Enum => {
            let number = varint()? as i32;
            let defined = schema::enum_values(field.type_name).is_some_and(|v| v.iter().any(|(_, n)| *n == number));
            Value::Enum { number, defined }
        }
        Kind::String => Value::Text(raw.map_or(Some(""), Raw::text)?),
        Kind::Bytes => Value::Bytes(raw.map_or(Some(&[][..]), Raw::bytes)?),
        Kind::Message => Value::Message,
    })
}

/// The value inside a `google.protobuf` wrapper; none for messages that aren't wrappers.
fn wrapped<'a>(name: &str, bytes: &'a [u8]) -> Option<Value<'a>> {
    if !name.ends_with("Value") || matches!(name, "google.protobuf.Value" | "google.protobuf.ListValue") {
        return None;
    }
    let message = schema::message(name)?;
    let field = message.field(1)?;
    let groups = wire::grouped(bytes).ok()?;
    scalar(field, groups.iter().find(|(n, _)| *n == 1).and_then(|(_, v)| v.last().copied()))
}
