//! What the messages of Envoy's API look like: a view of the descriptor set `data/envoy.fds`, read where it lies.
//!
//! The whole set stays undecoded in the program's read-only data (a decoded pool costs 8 MiB); a message's description is
//! made when it is first met and kept. Validation rules and support marks are joined to the fields here, once.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use parking_lot::RwLock;

use super::{
    pgv::{self, Rule},
    support::{self, Support},
    wire::{self, Malformed, Raw, fields},
};

static DESCRIPTORS: &[u8] = include_bytes!("../../data/envoy.fds");
static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    Schema::index(DESCRIPTORS).expect("the embedded descriptor set is well formed: a test reads all of it")
});

/// Option `validate.rules`, `validate.required` (oneof).
const PGV: u32 = 1071;
/// Message option `validate.disabled`.
const PGV_DISABLED: u32 = 1071;
/// Option `udpa.annotations.sensitive`.
const SENSITIVE: u32 = 76_569_463;

/// Names of all messages and enums, and the descriptions made so far.
struct Schema {
    index: HashMap<Box<str>, Entry>,
    messages: RwLock<HashMap<Box<str>, Arc<Message>>>,
}

#[derive(Clone, Copy)]
enum Entry {
    Message(&'static [u8]),
    Enum(&'static [u8]),
}

/// A message type.
#[derive(Debug)]
pub(super) struct Message {
    /// Full name without a leading dot.
    pub(super) name: Box<str>,
    /// Sorted by number.
    pub(super) fields: Vec<Field>,
    /// Groups of which one field at most is set.
    pub(super) oneofs: Vec<Oneof>,
    /// A synthetic entry of a map.
    pub(super) map_entry: bool,
    /// No validation rules are applied to it.
    pub(super) unvalidated: bool,
}

/// A oneof.
#[derive(Debug)]
pub(super) struct Oneof {
    /// Name.
    pub(super) name: &'static str,
    /// One must be set (`validate.required`).
    pub(super) required: bool,
}

/// A field.
#[derive(Debug)]
pub(super) struct Field {
    /// Name as in the proto.
    pub(super) name: &'static str,
    /// Name in canonical JSON.
    pub(super) json_name: &'static str,
    /// Number.
    pub(super) number: u32,
    /// Type.
    pub(super) kind: Kind,
    /// Full name of the message or enum type, else empty.
    pub(super) type_name: &'static str,
    /// A list or a map.
    pub(super) repeated: bool,
    /// Set and default can be told apart.
    pub(super) presence: bool,
    /// Index in [`Message::oneofs`].
    pub(super) oneof: Option<usize>,
    /// Marked deprecated.
    pub(super) deprecated: bool,
    /// Never shown.
    pub(super) sensitive: bool,
    /// Validation rules.
    pub(super) rules: Vec<Rule>,
    /// What we do with it.
    pub(super) support: Support,
}

/// Type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Double,
    Float,
    Int64,
    Uint64,
    Int32,
    Fixed64,
    Fixed32,
    Bool,
    String,
    Message,
    Bytes,
    Uint32,
    Enum,
    Sfixed32,
    Sfixed64,
    Sint32,
    Sint64,
}

impl Kind {
    fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Double,
            2 => Self::Float,
            3 => Self::Int64,
            4 => Self::Uint64,
            5 => Self::Int32,
            6 => Self::Fixed64,
            7 => Self::Fixed32,
            8 => Self::Bool,
            9 => Self::String,
            11 => Self::Message,
            12 => Self::Bytes,
            13 => Self::Uint32,
            14 => Self::Enum,
            15 => Self::Sfixed32,
            16 => Self::Sfixed64,
            17 => Self::Sint32,
            18 => Self::Sint64,
            _ => return None,
        })
    }

    /// Values of this kind may be packed into one length-delimited field.
    pub(super) fn packable(self) -> bool {
        !matches!(self, Self::String | Self::Bytes | Self::Message)
    }
}

impl Message {
    /// The field with this number.
    pub(super) fn field(&self, number: u32) -> Option<&Field> {
        self.fields.binary_search_by_key(&number, |f| f.number).ok().map(|i| &self.fields[i])
    }

    /// The field with this name, in the proto's spelling or JSON's.
    pub(super) fn field_named(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| f.name == name).or_else(|| self.fields.iter().find(|f| f.json_name == name))
    }

    /// The last part of the name.
    pub(super) fn short_name(&self) -> &str {
        short(&self.name)
    }
}

/// The last part of a full name or type URL.
pub(super) fn short(name: &str) -> &str {
    name.rsplit(['.', '/']).next().unwrap_or(name)
}

/// The message name in a type URL.
pub(super) fn type_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// The description of a message; none = there is no such message in the set.
pub(super) fn message(name: &str) -> Option<Arc<Message>> {
    SCHEMA.message(name)
}

/// Names and numbers of an enum; none = there is no such enum in the set.
pub(super) fn enum_values(name: &str) -> Option<Vec<(&'static str, i32)>> {
    let Some(Entry::Enum(bytes)) = SCHEMA.index.get(name) else { return None };
    read_enum(bytes).ok()
}

/// All names of messages, sorted; for tests and the reference page.
#[cfg(test)]
pub(super) fn message_names() -> Vec<&'static str> {
    let messages = SCHEMA.index.iter().filter(|(_, e)| matches!(e, Entry::Message(_)));
    let mut names: Vec<&str> = messages.map(|(name, _)| &**name).collect();
    names.sort_unstable();
    names
}

impl Schema {
    fn index(set: &'static [u8]) -> Result<Self, Malformed> {
        let mut index = HashMap::new();
        for file in submessages(set, 1) {
            let file = file?;
            let package = text(file, 2)?;
            add_types(&mut index, package, file, 4, 5)?;
        }
        Ok(Self { index, messages: RwLock::default() })
    }

    fn message(&self, name: &str) -> Option<Arc<Message>> {
        if let Some(known) = self.messages.read().get(name) {
            return Some(Arc::clone(known));
        }
        let Some(Entry::Message(bytes)) = self.index.get(name) else { return None };
        let made = Arc::new(read_message(name, bytes).ok()?);
        self.messages.write().insert(name.into(), Arc::clone(&made));
        Some(made)
    }
}

/// Adds the messages and enums of a file or message, and those nested in them.
fn add_types(
    index: &mut HashMap<Box<str>, Entry>,
    scope: &str,
    container: &'static [u8],
    messages: u32,
    enums: u32,
) -> Result<(), Malformed> {
    for bytes in submessages(container, messages) {
        let bytes = bytes?;
        let name = format!("{scope}.{}", text(bytes, 1)?);
        add_types(index, &name, bytes, 3, 4)?;
        index.insert(name.into(), Entry::Message(bytes));
    }
    for bytes in submessages(container, enums) {
        let bytes = bytes?;
        index.insert(format!("{scope}.{}", text(bytes, 1)?).into(), Entry::Enum(bytes));
    }
    Ok(())
}

fn submessages(bytes: &'static [u8], number: u32) -> impl Iterator<Item = Result<&'static [u8], Malformed>> {
    fields(bytes).filter_map(move |item| match item {
        Ok((n, Raw::Bytes(b))) if n == number => Some(Ok(b)),
        Ok(_) => None,
        Err(e) => Some(Err(e)),
    })
}

fn text(bytes: &'static [u8], number: u32) -> Result<&'static str, Malformed> {
    submessages(bytes, number).next().map_or(Ok(""), |b| std::str::from_utf8(b?).map_err(|_| Malformed))
}

fn read_message(name: &str, bytes: &'static [u8]) -> Result<Message, Malformed> {
    let mut message =
        Message { name: name.into(), fields: Vec::new(), oneofs: Vec::new(), map_entry: false, unvalidated: false };
    for item in fields(bytes) {
        match item? {
            (2, Raw::Bytes(b)) => message.fields.push(read_field(name, b)?),
            (7, Raw::Bytes(b)) => {
                for option in fields(b) {
                    match option? {
                        (7, Raw::Varint(1)) => message.map_entry = true,
                        (PGV_DISABLED, Raw::Varint(1)) => message.unvalidated = true,
                        _ => {}
                    }
                }
            }
            (8, Raw::Bytes(b)) => message.oneofs.push(read_oneof(b)?),
            _ => {}
        }
    }
    message.fields.sort_unstable_by_key(|f| f.number);
    Ok(message)
}

fn read_oneof(bytes: &'static [u8]) -> Result<Oneof, Malformed> {
    let mut required = false;
    for options in submessages(bytes, 2) {
        for option in fields(options?) {
            required |= option? == (PGV, Raw::Varint(1));
        }
    }
    Ok(Oneof { name: text(bytes, 1)?, required })
}

fn read_field(message: &str, bytes: &'static [u8]) -> Result<Field, Malformed> {
    let mut field = Field {
        name: "",
        json_name: "",
        number: 0,
        kind: Kind::Bytes,
        type_name: "",
        repeated: false,
        presence: false,
        oneof: None,
        deprecated: false,
        sensitive: false,
        rules: Vec::new(),
        support: Support::Refused,
    };
    let mut rules = None;
    for item in fields(bytes) {
        let (number, raw) = item?;
        match (number, raw) {
            (1, raw) => field.name = raw.text().ok_or(Malformed)?,
            (3, Raw::Varint(v)) => field.number = u32::try_from(v).map_err(|_| Malformed)?,
            (4, Raw::Varint(v)) => field.repeated = v == 3,
            (5, Raw::Varint(v)) => field.kind = Kind::from_number(v).ok_or(Malformed)?,
            (6, raw) => field.type_name = raw.text().ok_or(Malformed)?.trim_start_matches('.'),
            (9, Raw::Varint(v)) => field.oneof = Some(usize::try_from(v).map_err(|_| Malformed)?),
            (10, raw) => field.json_name = raw.text().ok_or(Malformed)?,
            (8, Raw::Bytes(options)) => {
                for option in fields(options) {
                    match option? {
                        (3, Raw::Varint(v)) => field.deprecated = v == 1,
                        (SENSITIVE, Raw::Varint(v)) => field.sensitive = v == 1,
                        (PGV, Raw::Bytes(b)) => rules = Some(b),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    field.presence = !field.repeated && (field.oneof.is_some() || field.kind == Kind::Message);
    field.support = support::of(message, field.name);
    if let Some(rules) = rules {
        field.rules = pgv::read(rules)?;
    }
    Ok(field)
}

fn read_enum(bytes: &'static [u8]) -> Result<Vec<(&'static str, i32)>, Malformed> {
    let mut values = Vec::new();
    for value in submessages(bytes, 2) {
        let value = value?;
        let mut number = 0;
        for item in fields(value) {
            if let (2, Raw::Varint(v)) = item? {
                number = v as i32;
            }
        }
        values.push((text(value, 1)?, number));
    }
    Ok(values)
}

/// Splits packed values of a list; a value that isn't packed stays as it is.
pub(super) fn unpack<'a>(field: &Field, values: &wire::Values<'a>) -> Result<wire::Values<'a>, Malformed> {
    if !field.repeated || !field.kind.packable() {
        return Ok(values.clone());
    }
    let mut all = wire::Values::new();
    for value in values {
        let Raw::Bytes(mut rest) = *value else {
            all.push(*value);
            continue;
        };
        while !rest.is_empty() {
            all.push(unpack_one(field.kind, &mut rest)?);
        }
    }
    Ok(all)
}

fn unpack_one<'a>(kind: Kind, rest: &mut &'a [u8]) -> Result<Raw<'a>, Malformed> {
    match kind {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => {
            let (head, tail) = rest.split_first_chunk::<8>().ok_or(Malformed)?;
            *rest = tail;
            Ok(Raw::Fixed64(u64::from_le_bytes(*head)))
        }
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => {
            let (head, tail) = rest.split_first_chunk::<4>().ok_or(Malformed)?;
            *rest = tail;
            Ok(Raw::Fixed32(u32::from_le_bytes(*head)))
        }
        _ => wire::varint(rest).map(Raw::Varint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_and_enum_of_the_set_can_be_read() {
        let names = message_names();
        assert!(names.len() > 600, "{}", names.len());
        for name in names {
            let message = message(name).unwrap_or_else(|| panic!("{name}"));
            for field in &message.fields {
                match field.kind {
                    Kind::Message => assert!(super::message(field.type_name).is_some(), "{name}.{}", field.name),
                    Kind::Enum => assert!(enum_values(field.type_name).is_some(), "{name}.{}", field.name),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_field_knows_its_rules_and_options() {
        let cluster = message("envoy.config.cluster.v3.Cluster").unwrap();
        let name = cluster.field_named("name").unwrap();
        assert_eq!((name.number, name.kind, name.presence, name.repeated), (1, Kind::String, false, false));
        assert!(!name.rules.is_empty());
        assert!(cluster.field_named("maxRequestsPerConnection").unwrap().deprecated);
        let pair = message("envoy.extensions.transport_sockets.tls.v3.TlsCertificate").unwrap();
        assert!(pair.field_named("private_key").unwrap().sensitive);
    }
}
