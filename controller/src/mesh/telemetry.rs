//! Access logs: which workload writes which format.

use std::collections::BTreeMap;

use super::finding::About;
use super::{Finding, Workload, log_format};
use crate::api::{Key, Objects};
use crate::settings::Settings;

/// What each line of an access log holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum AccessLog {
    /// OSM's nineteen fields as JSON.
    #[default]
    Default,
    /// Envoy's format string.
    Text(String),
    /// A JSON object whose strings are format strings.
    Json(serde_json::Map<String, serde_json::Value>),
}

/// The formats that Telemetry objects ask for.
#[derive(Clone, Debug, Default)]
pub(super) struct AccessLogs {
    /// Narrowest first: with selector, whole namespace, whole mesh.
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    rank: u8,
    namespace: Option<String>,
    selector: BTreeMap<String, String>,
    log: AccessLog,
}

impl AccessLogs {
    /// The access log of a workload.
    pub(super) fn of(&self, workload: &Workload) -> &AccessLog {
        let fits = |row: &&Row| {
            row.namespace.as_ref().is_none_or(|n| *n == workload.pod.namespace)
                && (row.selector.is_empty() || workload.is_selected(&row.selector))
        };
        self.rows.iter().find(fits).map_or(&AccessLog::Default, |row| &row.log)
    }
}

/// Reads all Telemetry objects.
pub(super) fn access_logs(objects: &Objects, settings: &Settings, findings: &mut Vec<Finding>) -> AccessLogs {
    let mut rows: Vec<Row> = Vec::new();
    for (key, object) in &objects.telemetries {
        let mut about = About::new("Telemetry", key, findings);
        let Some(spec) = &object.spec.access_log else {
            about.no_effect("spec", "no accessLog in it");
            continue;
        };
        if spec.open_telemetry.is_some() {
            about
                .no_effect("spec.accessLog.openTelemetry", "export is not implemented yet; logs go to standard output");
        }
        let Some(log) = format(spec.format.as_deref(), &mut about) else { continue };
        let row = row(key, &object.spec.selector, settings, log);
        if rows.iter().any(|r| (r.rank, &r.namespace, &r.selector) == (row.rank, &row.namespace, &row.selector)) {
            about.error(
                "spec.selector",
                "another Telemetry, earlier by name, is for the same pods; this one does not count",
            );
            continue;
        }
        rows.push(row);
    }
    rows.sort_by_key(|row| row.rank);
    for key in objects.extension_services.keys() {
        About::new("ExtensionService", key, findings).no_effect("spec", "nothing is exported yet");
    }
    AccessLogs { rows }
}

fn row(key: &Key, selector: &BTreeMap<String, String>, settings: &Settings, log: AccessLog) -> Row {
    let global = key.namespace == settings.osm_namespace && selector.is_empty();
    let rank = if !selector.is_empty() { 0 } else { 1 + u8::from(global) };
    Row { rank, namespace: (!global).then(|| key.namespace.clone()), selector: selector.clone(), log }
}

fn format(text: Option<&str>, about: &mut About<'_>) -> Option<AccessLog> {
    let text = match text.map(str::trim) {
        None | Some("") => return Some(AccessLog::Default),
        Some(text) => text,
    };
    let read = if text.starts_with('{') { json(text) } else { plain(text) };
    read.map_err(|e| about.error("spec.accessLog.format", format!("{e}; this object does not count"))).ok()
}

fn json(text: &str) -> Result<AccessLog, String> {
    let value = serde_json::from_str(text).map_err(|e| format!("begins like JSON but is not an object: {e}"))?;
    log_format::check_json(&value)?;
    match value {
        serde_json::Value::Object(map) => Ok(AccessLog::Json(map)),
        _ => Err("is JSON but not an object".to_owned()),
    }
}

fn plain(text: &str) -> Result<AccessLog, String> {
    log_format::check(text)?;
    Ok(AccessLog::Text(format!("{text}\n")))
}
