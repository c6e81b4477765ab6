//! The support table: what is done with each field of Envoy's API. `support.txt` is its text, for people and for us.
//!
//! What the table doesn't name is refused when it is set. The walk, the reference page and the tests all read this table.

use std::{collections::HashMap, sync::LazyLock};

static TEXT: &str = include_str!("support.txt");
static TABLE: LazyLock<HashMap<&'static str, Entry>> =
    LazyLock::new(|| parse(TEXT).expect("a test parses the same embedded text"));

/// What is done with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Support {
    /// It has its effect.
    Supported,
    /// It is accepted and has no effect; why.
    Inert(&'static str),
    /// Deprecated, but translated; to what.
    Alias(&'static str),
    /// An error when it is set.
    Refused,
}

/// The rows of one message, in the order of the text.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// Fields that are not refused.
    pub(super) fields: Vec<(&'static str, Support)>,
    /// Values of enum fields; `*` = all.
    pub(super) values: Vec<(&'static str, Vec<&'static str>)>,
    /// Full names of messages that `Any` fields may hold.
    pub(super) types: Vec<(&'static str, Vec<String>)>,
}

/// The rows of a message; none = all its fields are refused.
pub(super) fn entry(message: &str) -> Option<&'static Entry> {
    TABLE.get(message)
}

/// What is done with a field.
pub(super) fn of(message: &str, field: &str) -> Support {
    let row = entry(message).and_then(|e| e.fields.iter().find(|(name, _)| *name == field));
    row.map_or(Support::Refused, |(_, support)| *support)
}

/// Values of an enum field that are supported; `*` = all. A default value that isn't listed is fine as long as it can't be
/// told from "not set".
pub(super) fn values(message: &str, field: &str) -> &'static [&'static str] {
    let row = entry(message).and_then(|e| e.values.iter().find(|(name, _)| *name == field));
    row.map_or(&[], |(_, values)| values)
}

/// Full names of the messages that an `Any` field may hold.
pub(super) fn types(message: &str, field: &str) -> &'static [String] {
    let row = entry(message).and_then(|e| e.types.iter().find(|(name, _)| *name == field));
    row.map_or(&[], |(_, types)| types)
}

fn parse(text: &'static str) -> Result<HashMap<&'static str, Entry>, String> {
    let mut table: HashMap<&'static str, Entry> = HashMap::new();
    let mut current = "";
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix("message ") {
            current = name;
            if table.insert(name, Entry::default()).is_some() {
                return Err(format!("{name} is listed twice"));
            }
            continue;
        }
        let entry = table.get_mut(current).ok_or_else(|| format!("no message before: {line}"))?;
        row(entry, line).ok_or_else(|| format!("{current}: can't be read: {line}"))?;
    }
    Ok(table)
}

fn row(entry: &mut Entry, line: &'static str) -> Option<()> {
    let (letter, rest) = line.split_once(' ')?;
    let (names, why) = rest.split_once(" -- ").map_or((rest, ""), |(names, why)| (names, why));
    let mut words = names.split_whitespace();
    match letter {
        "S" => entry.fields.extend(words.map(|w| (w, Support::Supported))),
        "I" if !why.is_empty() => entry.fields.extend(words.map(|w| (w, Support::Inert(why)))),
        "A" if !why.is_empty() => entry.fields.extend(words.map(|w| (w, Support::Alias(why)))),
        "V" => entry.values.push((words.next()?, words.collect())),
        "T" => {
            let full = |w: &str| if w.starts_with("envoy.") { w.to_owned() } else { format!("envoy.extensions.{w}") };
            entry.types.push((words.next()?, words.map(full).collect()));
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
pub(super) fn messages() -> Vec<&'static str> {
    TEXT.lines().filter_map(|l| l.strip_prefix("message ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::schema::{self, Kind};

    #[test]
    fn every_row_names_something_that_exists_and_is_complete() {
        for name in messages() {
            let message = schema::message(name).unwrap_or_else(|| panic!("{name} does not exist"));
            let entry = entry(name).unwrap();
            for (field, support) in &entry.fields {
                let at = format!("{name}.{field}");
                let found = message.field_named(field).unwrap_or_else(|| panic!("{at} does not exist"));
                assert_eq!(found.support, *support, "{at} is listed twice");
                if matches!(support, Support::Inert(_)) {
                    continue;
                }
                let (kind, type_name) = value_of(found);
                match kind {
                    Kind::Enum => assert!(!values(name, field).is_empty(), "{at} needs a V line"),
                    Kind::Message if type_name == "google.protobuf.Any" => {
                        assert!(!types(name, field).is_empty(), "{at} needs a T line");
                    }
                    Kind::Message if !type_name.starts_with("google.protobuf.") => {
                        assert!(super::entry(&type_name).is_some(), "{at}: {type_name} has no rows");
                    }
                    _ => {}
                }
            }
            for (field, list) in &entry.values {
                let found = message.field_named(field).unwrap_or_else(|| panic!("{name}.{field} does not exist"));
                let defined = schema::enum_values(found.type_name).unwrap();
                for value in list {
                    assert!(*value == "*" || defined.iter().any(|(n, _)| n == value), "{name}.{field} {value}");
                }
            }
            for (field, list) in &entry.types {
                assert!(message.field_named(field).is_some(), "{name}.{field} does not exist");
                for type_name in list {
                    assert!(super::entry(type_name).is_some(), "{name}.{field}: {type_name} has no rows");
                }
            }
        }
    }

    /// Kind and type of a field, or of a map's values.
    fn value_of(field: &schema::Field) -> (Kind, String) {
        if field.kind == Kind::Message {
            let message = schema::message(field.type_name).unwrap();
            if message.map_entry {
                let value = message.field(2).unwrap();
                return (value.kind, value.type_name.to_owned());
            }
        }
        (field.kind, field.type_name.to_owned())
    }

    /// The book's page about the table.
    fn markdown() -> String {
        let mut page = PAGE.to_owned();
        for line in TEXT.lines() {
            if let Some(section) = line.strip_prefix("# ---- ") {
                page.push_str(&format!("\n## {section}\n"));
            }
            let Some(name) = line.strip_prefix("message ") else { continue };
            let short = name.trim_start_matches("envoy.").trim_start_matches("extensions.");
            page.push_str(&format!("\n### {short}\n\n"));
            describe(name, &mut page);
        }
        page
    }

    fn describe(name: &str, page: &mut String) {
        let (message, entry) = (schema::message(name).unwrap(), entry(name).unwrap());
        if message.fields.is_empty() {
            page.push_str("It has no fields.\n");
            return;
        }
        for (field, support) in &entry.fields {
            let what = match support {
                Support::Supported => "supported".to_owned(),
                Support::Inert(why) => format!("accepted without effect: {why}"),
                Support::Alias(instead) => format!("deprecated, taken as `{instead}`"),
                Support::Refused => unreachable!("refused fields are not listed"),
            };
            page.push_str(&format!("- `{field}`: {what}"));
            match values(name, field) {
                [] | ["*"] => {}
                list => page.push_str(&format!("; values: `{}`", list.join("`, `"))),
            }
            let types: Vec<&str> = types(name, field).iter().map(|t| schema::short(t)).collect();
            if !types.is_empty() {
                page.push_str(&format!("; types: `{}`", types.join("`, `")));
            }
            page.push('\n');
        }
        let refused: Vec<&str> =
            message.fields.iter().filter(|f| f.support == Support::Refused).map(|f| f.name).collect();
        if !refused.is_empty() {
            page.push_str(&format!("- refused: `{}`\n", refused.join("`, `")));
        }
    }

    const PAGE: &str = "\
# The Envoy subset

The proxy reads Envoy's configuration: xDS resources (LDS, RDS, CDS, EDS and SDS over ADS, v3) and the bootstrap file. This
page lists each message that it knows, field by field; it is generated from the table that the proxy itself uses, and a
test keeps it current.

A resource in which a refused field, value or type is set is refused as a whole, with the path of the field, and the last
good version stays in force. A `false`, `0` or empty text that equals the default counts as not set. Messages that are
not listed are refused. Field numbers that the proxy does not know at all are accepted with a warning (in files: refused),
as Envoy does; `--reject-unknown-dynamic-fields` and `--allow-unknown-static-fields` change that.
";

    #[test]
    fn the_page_of_the_subset_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/xds-subset.md");
        if std::env::var_os("OXMESH_WRITE_DOCS").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(page == markdown(), "docs/reference/xds-subset.md is old: run this test with OXMESH_WRITE_DOCS=1");
    }

    /// Messages of what OSM can send that we don't have, whole: their extensions are refused where they stand.
    const WITHOUT: [&str; 9] = [
        "envoy.config.core.v3.GrpcService.GoogleGrpc",
        "envoy.config.core.v3.HealthCheck",
        "envoy.config.ratelimit.",
        "envoy.config.route.v3.RateLimit",
        "envoy.config.trace.",
        "envoy.extensions.access_loggers.grpc.",
        "envoy.extensions.access_loggers.open_telemetry.",
        "envoy.extensions.common.ratelimit.",
        "opentelemetry.",
    ];

    #[test]
    fn of_the_fields_that_osm_sends_these_are_refused() {
        let mut refused = Vec::new();
        for line in include_str!("../../tests/data/l1-fields.txt").lines().filter(|l| !l.starts_with('#')) {
            let (message, fields) = line.split_once(": ").unwrap();
            let name = match message.strip_prefix("x.") {
                Some(rest) => format!("envoy.extensions.{rest}"),
                None if message.starts_with("opentelemetry.") => message.to_owned(),
                None => format!("envoy.{message}"),
            };
            if WITHOUT.iter().any(|w| name.starts_with(w)) {
                continue;
            }
            let Some(known) = entry(&name) else {
                refused.push(name);
                continue;
            };
            for field in fields.split('\'').skip(1).step_by(2) {
                if !known.fields.iter().any(|(f, _)| *f == field) {
                    refused.push(format!("{name}.{field}"));
                }
            }
        }
        let (http, network) = ("envoy.extensions.filters.http", "envoy.extensions.filters.network");
        let expected = [
            "envoy.config.cluster.v3.Cluster.health_checks".to_owned(),
            "envoy.config.core.v3.GrpcService.google_grpc".to_owned(),
            "envoy.config.route.v3.RouteAction.rate_limits".to_owned(),
            "envoy.config.route.v3.VirtualHost.rate_limits".to_owned(),
            format!("{http}.ext_authz.v3.BufferSettings"),
            format!("{http}.ext_authz.v3.ExtAuthz"),
            format!("{http}.health_check.v3.HealthCheck"),
            format!("{http}.lua.v3.Lua"),
            format!("{http}.ratelimit.v3.RateLimit"),
            format!("{network}.http_connection_manager.v3.HttpConnectionManager.tracing"),
            format!("{network}.http_connection_manager.v3.HttpConnectionManager.Tracing"),
            format!("{network}.ratelimit.v3.RateLimit"),
        ];
        assert_eq!(refused, expected);
    }

    #[test]
    fn what_is_not_listed_is_refused() {
        assert_eq!(of("envoy.config.cluster.v3.Cluster", "outlier_detection"), Support::Refused);
        assert_eq!(of("envoy.config.no.such.Message", "x"), Support::Refused);
    }
}
