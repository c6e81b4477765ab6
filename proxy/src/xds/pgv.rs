//! Validation rules of Envoy's API (`validate.rules` of protoc-gen-validate), read from the descriptor set and applied.
//!
//! The kinds that occur in the set are implemented; a rule of another kind is an error when the set is read, which a test does.

use std::cmp::Ordering::{self, Equal, Greater, Less};

use regex::Regex;

use super::wire::{Malformed, Raw, fields};

/// One rule of a field.
#[derive(Debug)]
pub(super) enum Rule {
    /// Bounds of an integer.
    Int(Bounds<i128>),
    /// Bounds of a floating point number.
    Float(Bounds<f64>),
    /// The only value allowed.
    Bool(bool),
    /// A string.
    Text(Box<TextRule>),
    /// Lengths of bytes.
    Bytes(Bounds<u64>),
    /// Only defined values, and none of these numbers.
    Enum { defined_only: bool, not_in: Vec<i32> },
    /// The message must be there.
    Required,
    /// The message's own rules are not applied.
    Skip,
    /// Length of a list, equal items, rules of each item.
    List { count: Bounds<u64>, unique: bool, items: Vec<Rule> },
    /// Size of a map, rules of its keys and values.
    Map { count: Bounds<u64>, keys: Vec<Rule>, values: Vec<Rule> },
    /// Bounds of a duration in nanoseconds.
    Duration(Bounds<i128>),
}

/// Bounds of a value.
#[derive(Debug)]
pub(super) struct Bounds<T> {
    lt: Option<T>,
    lte: Option<T>,
    gt: Option<T>,
    gte: Option<T>,
    ignore_empty: bool,
}

// Not derived: no default of `T` is needed.
impl<T> Default for Bounds<T> {
    fn default() -> Self {
        Self { lt: None, lte: None, gt: None, gte: None, ignore_empty: false }
    }
}

/// Rules of a string; empty lists and none = no rule.
#[derive(Debug, Default)]
pub(super) struct TextRule {
    characters: Bounds<u64>,
    bytes: Bounds<u64>,
    pattern: Option<Regex>,
    prefix: Option<&'static str>,
    suffix: Option<&'static str>,
    any_of: Vec<&'static str>,
    none_of: Vec<&'static str>,
    header: Option<Header>,
    lax_header: bool,
    ignore_empty: bool,
}

#[derive(Clone, Copy, Debug)]
enum Header {
    Name,
    Value,
}

/// A value to check.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Int(i128),
    Float(f64),
    Bool(bool),
    Text(&'a str),
    Bytes(&'a [u8]),
    Enum {
        number: i32,
        defined: bool,
    },
    /// In nanoseconds.
    Duration(i128),
    /// A message with fields of its own.
    Message,
}

/// Reads `validate.FieldRules`.
pub(super) fn read(bytes: &'static [u8]) -> Result<Vec<Rule>, Malformed> {
    let mut rules = Vec::new();
    for item in fields(bytes) {
        let (number, Raw::Bytes(b)) = item? else { return Err(Malformed) };
        match number {
            1 | 2 => rules.push(Rule::Float(bounds(b, 8, float)?)),
            3..=6 | 9..=12 => rules.push(Rule::Int(bounds(b, 8, |r| r.varint().map(|v| i128::from(v as i64)))?)),
            13 => {
                for item in fields(b) {
                    let (1, Raw::Varint(v)) = item? else { return Err(Malformed) };
                    rules.push(Rule::Bool(v != 0));
                }
            }
            14 => rules.push(Rule::Text(Box::new(text_rule(b)?))),
            15 => rules.push(Rule::Bytes(lengths(b, 2, 3)?)),
            16 => rules.push(enum_rule(b)?),
            17 => {
                for item in fields(b) {
                    match item? {
                        (1, Raw::Varint(1)) => rules.push(Rule::Skip),
                        (2, Raw::Varint(1)) => rules.push(Rule::Required),
                        (1 | 2, Raw::Varint(0)) => {}
                        _ => return Err(Malformed),
                    }
                }
            }
            18 => rules.push(list_rule(b)?),
            19 => rules.push(map_rule(b)?),
            20 => {
                for item in fields(b) {
                    let (1, Raw::Varint(1)) = item? else { return Err(Malformed) };
                    rules.push(Rule::Required);
                }
            }
            21 => duration_rules(b, &mut rules)?,
            _ => return Err(Malformed),
        }
    }
    Ok(rules)
}

fn float(raw: Raw<'_>) -> Option<f64> {
    match raw {
        Raw::Fixed32(v) => Some(f64::from(f32::from_bits(v))),
        Raw::Fixed64(v) => Some(f64::from_bits(v)),
        _ => None,
    }
}

fn bounds<T>(
    bytes: &'static [u8],
    ignore_empty: u32,
    value: impl Fn(Raw<'static>) -> Option<T>,
) -> Result<Bounds<T>, Malformed> {
    let mut bounds = Bounds::default();
    for item in fields(bytes) {
        let (number, raw) = item?;
        if number == ignore_empty {
            bounds.ignore_empty = raw == Raw::Varint(1);
            continue;
        }
        let value = Some(value(raw).ok_or(Malformed)?);
        match number {
            2 => bounds.lt = value,
            3 => bounds.lte = value,
            4 => bounds.gt = value,
            5 => bounds.gte = value,
            _ => return Err(Malformed),
        }
    }
    Ok(bounds)
}

/// Only a least and a greatest length.
fn lengths(bytes: &'static [u8], min: u32, max: u32) -> Result<Bounds<u64>, Malformed> {
    let mut bounds = Bounds::default();
    for item in fields(bytes) {
        match item? {
            (n, Raw::Varint(v)) if n == min => bounds.gte = Some(v),
            (n, Raw::Varint(v)) if n == max => bounds.lte = Some(v),
            _ => return Err(Malformed),
        }
    }
    Ok(bounds)
}

fn text_rule(bytes: &'static [u8]) -> Result<TextRule, Malformed> {
    let mut rule = TextRule::default();
    for item in fields(bytes) {
        match item? {
            (2, Raw::Varint(v)) => rule.characters.gte = Some(v),
            (3, Raw::Varint(v)) => rule.characters.lte = Some(v),
            (4, Raw::Varint(v)) => rule.bytes.gte = Some(v),
            (5, Raw::Varint(v)) => rule.bytes.lte = Some(v),
            (6, raw) => rule.pattern = Some(Regex::new(raw.text().ok_or(Malformed)?).map_err(|_| Malformed)?),
            (7, raw) => rule.prefix = Some(raw.text().ok_or(Malformed)?),
            (8, raw) => rule.suffix = Some(raw.text().ok_or(Malformed)?),
            (10, raw) => rule.any_of.push(raw.text().ok_or(Malformed)?),
            (11, raw) => rule.none_of.push(raw.text().ok_or(Malformed)?),
            (24, Raw::Varint(1)) => rule.header = Some(Header::Name),
            (24, Raw::Varint(2)) => rule.header = Some(Header::Value),
            (25, Raw::Varint(v)) => rule.lax_header = v == 0,
            (26, Raw::Varint(v)) => rule.ignore_empty = v == 1,
            _ => return Err(Malformed),
        }
    }
    Ok(rule)
}

fn enum_rule(bytes: &'static [u8]) -> Result<Rule, Malformed> {
    let (mut defined_only, mut not_in) = (false, Vec::new());
    for item in fields(bytes) {
        match item? {
            (2, Raw::Varint(v)) => defined_only = v == 1,
            (4, Raw::Varint(v)) => not_in.push(v as i32),
            (4, Raw::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    not_in.push(super::wire::varint(&mut packed)? as i32);
                }
            }
            _ => return Err(Malformed),
        }
    }
    Ok(Rule::Enum { defined_only, not_in })
}

fn list_rule(bytes: &'static [u8]) -> Result<Rule, Malformed> {
    let (mut count, mut unique, mut items) = (Bounds::default(), false, Vec::new());
    for item in fields(bytes) {
        match item? {
            (1, Raw::Varint(v)) => count.gte = Some(v),
            (2, Raw::Varint(v)) => count.lte = Some(v),
            (3, Raw::Varint(v)) => unique = v == 1,
            (4, Raw::Bytes(b)) => items = read(b)?,
            (5, Raw::Varint(v)) => count.ignore_empty = v == 1,
            _ => return Err(Malformed),
        }
    }
    Ok(Rule::List { count, unique, items })
}

fn map_rule(bytes: &'static [u8]) -> Result<Rule, Malformed> {
    let (mut count, mut keys, mut values) = (Bounds::default(), Vec::new(), Vec::new());
    for item in fields(bytes) {
        match item? {
            (1, Raw::Varint(v)) => count.gte = Some(v),
            (2, Raw::Varint(v)) => count.lte = Some(v),
            (4, Raw::Bytes(b)) => keys = read(b)?,
            (5, Raw::Bytes(b)) => values = read(b)?,
            _ => return Err(Malformed),
        }
    }
    Ok(Rule::Map { count, keys, values })
}

fn duration_rules(bytes: &'static [u8], rules: &mut Vec<Rule>) -> Result<(), Malformed> {
    let mut bounds = Bounds::default();
    for item in fields(bytes) {
        match item? {
            (1, Raw::Varint(1)) => rules.push(Rule::Required),
            (3, Raw::Bytes(b)) => bounds.lt = Some(nanoseconds(b)?),
            (4, Raw::Bytes(b)) => bounds.lte = Some(nanoseconds(b)?),
            (5, Raw::Bytes(b)) => bounds.gt = Some(nanoseconds(b)?),
            (6, Raw::Bytes(b)) => bounds.gte = Some(nanoseconds(b)?),
            _ => return Err(Malformed),
        }
    }
    rules.push(Rule::Duration(bounds));
    Ok(())
}

/// The value of an encoded `google.protobuf.Duration`.
pub(super) fn nanoseconds(bytes: &[u8]) -> Result<i128, Malformed> {
    let mut total = 0i128;
    for item in fields(bytes) {
        match item? {
            (1, Raw::Varint(v)) => total += i128::from(v as i64) * 1_000_000_000,
            (2, Raw::Varint(v)) => total += i128::from(v as i32),
            _ => {}
        }
    }
    Ok(total)
}

/// What is wrong with a value, in Envoy's words.
pub(super) fn check(rules: &[Rule], value: Value<'_>) -> Option<String> {
    rules.iter().find_map(|rule| match (rule, value) {
        (Rule::Int(b), Value::Int(v)) => b.check("value", v, 0),
        (Rule::Float(b), Value::Float(v)) => b.check("value", v, 0.0),
        (Rule::Bool(only), Value::Bool(v)) if v != *only => Some(format!("value must equal {only}")),
        (Rule::Text(rule), Value::Text(v)) => rule.check(v),
        (Rule::Bytes(b), Value::Bytes(v)) => b.check_length("value length", "bytes", v.len() as u64),
        (Rule::Enum { defined_only, not_in }, Value::Enum { number, defined }) => {
            if *defined_only && !defined {
                return Some(format!("value {number} is not one of the defined enum values"));
            }
            not_in.contains(&number).then(|| format!("value {number} is not allowed"))
        }
        (Rule::Duration(b), Value::Duration(v)) => check_duration(b, v),
        _ => None,
    })
}

/// What is wrong with a field that isn't set; such with presence have only one thing that can be.
pub(super) fn check_absent(rules: &[Rule]) -> Option<String> {
    rules.iter().any(|r| matches!(r, Rule::Required)).then(|| "value is required".to_owned())
}

/// What is wrong with the length of a list or map.
pub(super) fn check_count(rules: &[Rule], count: usize) -> Option<String> {
    rules.iter().find_map(|rule| match rule {
        Rule::List { count: b, .. } => b.check_length("value must contain", "item(s)", count as u64),
        Rule::Map { count: b, .. } => b.check_length("value must contain", "pair(s)", count as u64),
        _ => None,
    })
}

/// True when the items of a list must differ.
pub(super) fn unique(rules: &[Rule]) -> bool {
    rules.iter().any(|r| matches!(r, Rule::List { unique: true, .. }))
}

/// True when the rules of the message's fields are not to be applied.
pub(super) fn skipped(rules: &[Rule]) -> bool {
    rules.iter().any(|r| matches!(r, Rule::Skip))
}

/// Rules of the items of a list.
pub(super) fn items(rules: &[Rule]) -> &[Rule] {
    rules
        .iter()
        .find_map(|r| if let Rule::List { items, .. } = r { Some(items.as_slice()) } else { None })
        .unwrap_or(&[])
}

/// Rules of the keys and values of a map.
pub(super) fn pairs(rules: &[Rule]) -> (&[Rule], &[Rule]) {
    rules
        .iter()
        .find_map(|r| if let Rule::Map { keys, values, .. } = r { Some((&keys[..], &values[..])) } else { None })
        .unwrap_or((&[], &[]))
}

impl<T: PartialOrd + Copy + std::fmt::Display> Bounds<T> {
    fn check(&self, what: &str, value: T, empty: T) -> Option<String> {
        if self.ignore_empty && value == empty {
            return None;
        }
        let wrong = |relation: &str, bound: T| Some(format!("{what} must be {relation} {bound}, is {value}"));
        // Not a number is in no bounds.
        let is = |b: &T, allowed: &[Ordering]| value.partial_cmp(b).is_some_and(|o| allowed.contains(&o));
        match self {
            Self { lt: Some(b), .. } if !is(b, &[Less]) => wrong("less than", *b),
            Self { lte: Some(b), .. } if !is(b, &[Less, Equal]) => wrong("less than or equal to", *b),
            Self { gt: Some(b), .. } if !is(b, &[Greater]) => wrong("greater than", *b),
            Self { gte: Some(b), .. } if !is(b, &[Greater, Equal]) => wrong("greater than or equal to", *b),
            _ => None,
        }
    }
}

impl Bounds<u64> {
    fn check_length(&self, what: &str, unit: &str, length: u64) -> Option<String> {
        if self.ignore_empty && length == 0 {
            return None;
        }
        let verb = if what.ends_with("length") { " must be" } else { "" };
        match self {
            Self { gte: Some(b), .. } if length < *b => Some(format!("{what}{verb} at least {b} {unit}")),
            Self { lte: Some(b), .. } if length > *b => Some(format!("{what}{verb} at most {b} {unit}, has {length}")),
            _ => None,
        }
    }
}

fn check_duration(bounds: &Bounds<i128>, value: i128) -> Option<String> {
    let seconds = |b: &Option<i128>| b.map(|v| v as f64 / 1e9);
    let as_seconds = Bounds {
        lt: seconds(&bounds.lt),
        lte: seconds(&bounds.lte),
        gt: seconds(&bounds.gt),
        gte: seconds(&bounds.gte),
        ignore_empty: false,
    };
    // Compared exactly, told in seconds.
    bounds.check("value", value, 0)?;
    as_seconds.check("seconds", value as f64 / 1e9, 0.0).or_else(|| bounds.check("nanoseconds", value, 0))
}

impl TextRule {
    fn check(&self, value: &str) -> Option<String> {
        if self.ignore_empty && value.is_empty() {
            return None;
        }
        if let Some(wrong) = self.characters.check_length("value length", "characters", value.chars().count() as u64) {
            return Some(wrong);
        }
        if let Some(wrong) = self.bytes.check_length("value length", "bytes", value.len() as u64) {
            return Some(wrong);
        }
        if self.pattern.as_ref().is_some_and(|p| !p.is_match(value)) {
            return Some(format!("value does not match regex pattern {:?}", self.pattern.as_ref().map(Regex::as_str)));
        }
        if self.prefix.is_some_and(|p| !value.starts_with(p)) {
            return Some(format!("value does not have prefix {:?}", self.prefix.unwrap_or_default()));
        }
        if self.suffix.is_some_and(|p| !value.ends_with(p)) {
            return Some(format!("value does not have suffix {:?}", self.suffix.unwrap_or_default()));
        }
        if !self.any_of.is_empty() && !self.any_of.contains(&value) {
            return Some(format!("value must be in list {:?}", self.any_of));
        }
        if self.none_of.contains(&value) {
            return Some(format!("value must not be in list {:?}", self.none_of));
        }
        let valid = match (self.header, self.lax_header) {
            (None, _) => true,
            (Some(_), true) => !value.contains(['\0', '\n', '\r']),
            (Some(Header::Name), false) => strict_header_name(value),
            (Some(Header::Value), false) => !value.chars().any(|c| c != '\t' && (c < ' ' || c == '\u{7f}')),
        };
        (!valid).then(|| format!("value {value:?} is not a valid HTTP header part"))
    }
}

fn strict_header_name(value: &str) -> bool {
    let name = value.strip_prefix(':').unwrap_or(value);
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_|~`".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::schema;

    fn rules_of(message: &str, field: &str) -> std::sync::Arc<schema::Message> {
        let m = schema::message(message).unwrap();
        assert!(m.field_named(field).is_some_and(|f| !f.rules.is_empty()), "{message}.{field}");
        m
    }

    fn wrong(message: &str, field: &str, value: Value<'_>) -> Option<String> {
        check(&rules_of(message, field).field_named(field).unwrap().rules, value)
    }

    #[test]
    fn the_rules_that_occur_are_applied() {
        const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
        const ROUTE: &str = "envoy.config.route.v3";
        let second = 1_000_000_000;
        for (message, field, bad, good) in [
            (CLUSTER, "name", Value::Text(""), Value::Text("c")),
            (CLUSTER, "connect_timeout", Value::Duration(0), Value::Duration(1)),
            (CLUSTER, "dns_refresh_rate", Value::Duration(1_000_000), Value::Duration(second)),
            (
                CLUSTER,
                "lb_policy",
                Value::Enum { number: 77, defined: false },
                Value::Enum { number: 0, defined: true },
            ),
            ("envoy.config.core.v3.HeaderValue", "key", Value::Text("a\r\nb"), Value::Text("a")),
            ("envoy.config.core.v3.HeaderValue", "value", Value::Text("a\0"), Value::Text("")),
            ("envoy.config.core.v3.SocketAddress", "port_value", Value::Int(65536), Value::Int(65535)),
            ("envoy.config.core.v3.CidrRange", "prefix_len", Value::Int(129), Value::Int(128)),
            ("envoy.config.listener.v3.FilterChainMatch", "destination_port", Value::Int(0), Value::Int(1)),
            (&format!("{ROUTE}.RouteMatch"), "path_separated_prefix", Value::Text("/a/"), Value::Text("/a")),
            ("envoy.config.endpoint.v3.LbEndpoint", "load_balancing_weight", Value::Int(0), Value::Int(1)),
        ] {
            assert!(wrong(message, field, bad).is_some(), "{message}.{field} {bad:?}");
            assert_eq!(wrong(message, field, good), None, "{message}.{field} {good:?}");
        }
    }

    #[test]
    fn lists_have_a_least_length_and_rules_for_their_items() {
        let m = rules_of("envoy.config.route.v3.VirtualHost", "domains");
        let rules = &m.field_named("domains").unwrap().rules;
        assert_eq!(check_count(rules, 0).as_deref(), Some("value must contain at least 1 item(s)"));
        assert!(check(items(rules), Value::Text("a\nb")).is_some());
    }

    #[test]
    fn an_absent_message_may_be_required() {
        let m = rules_of("envoy.config.route.v3.Route", "match");
        assert!(check_absent(&m.field_named("match").unwrap().rules).is_some());
    }
}
