//! `/config_dump`: what was received, what was refused, in Envoy's layout.

use std::{sync::Arc, time::SystemTime};

use envoy_types::pb::google::protobuf::Any;
use regex::Regex;
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Admin, Page,
    query::{Query, bad},
};
use crate::{
    config::Name,
    xds::{
        json,
        kind::Kind,
        state::Client,
        subscription::{Entry, Refusal},
    },
};

impl Admin {
    pub(super) fn config_dump(&self, query: &Query) -> Result<Page, Page> {
        query.only(&["include_eds", "resource", "name_regex"])?;
        let names = query.regex("name_regex")?;
        let include_eds = query.has("include_eds");
        let mut dumps = self.dumps(include_eds, &Names(names));
        if let Some(resource) = query.value("resource") {
            let found = dumps.iter_mut().find_map(|dump| dump.get_mut(resource).map(Value::take));
            let Some(found) = found else {
                let hint = "bootstrap, static_clusters, dynamic_active_clusters, dynamic_warming_clusters, \
                            static_listeners, dynamic_listeners, static_route_configs, dynamic_route_configs, \
                            static_secrets, dynamic_active_secrets, dynamic_endpoint_configs (with include_eds)";
                return Err(bad(format!("no resource {resource:?}; there are: {hint}\n")));
            };
            dumps = match found {
                Value::Array(all) => all,
                one => vec![one],
            };
        }
        Ok(Page::json(&json!({ "configs": dumps })))
    }

    fn dumps(&self, include_eds: bool, names: &Names) -> Vec<Value> {
        let client = self.client.lock();
        let mut dumps = vec![self.bootstrap_dump(), self.clusters_dump(&client, names)];
        if include_eds {
            dumps.push(endpoints_dump(&client, names));
        }
        dumps.push(self.listeners_dump(&client, names));
        dumps.push(typed("ScopedRoutesConfigDump", Map::new()));
        dumps.push(routes_dump(&client, names));
        dumps.push(self.secrets_dump(&client, names));
        dumps
    }

    fn bootstrap_dump(&self) -> Value {
        let mut dump = Map::new();
        dump.insert("bootstrap".to_owned(), json::render(&self.bootstrap.raw.type_url, &self.bootstrap.raw.value));
        dump.insert("last_updated".to_owned(), time(self.started));
        typed("BootstrapConfigDump", dump)
    }

    fn clusters_dump(&self, client: &Client, names: &Names) -> Value {
        let statics = self.bootstrap.clusters.iter().filter(|c| names.take(&c.config.name));
        let warming = self.status.load().warming.clone();
        let held = client.kind(Kind::Cluster);
        let entries = held.entries().iter().filter(|(name, _)| names.take(name));
        let (warm, active): (Vec<_>, Vec<_>) = entries.partition(|(name, _)| warming.contains(name));
        let dynamic = |(name, entry): (&Name, &Entry)| with_error(state("cluster", entry), held.refused().get(name));
        let mut active: Vec<Value> = active.into_iter().map(dynamic).collect();
        active.extend(only_refused(client, Kind::Cluster, names));
        let mut dump = Map::new();
        dump.insert("version_info".to_owned(), json!(held.version));
        dump.insert("static_clusters".to_owned(), statics.map(|c| self.fixed("cluster", &c.raw)).collect());
        dump.insert("dynamic_active_clusters".to_owned(), Value::Array(active));
        dump.insert("dynamic_warming_clusters".to_owned(), warm.into_iter().map(dynamic).collect());
        typed("ClustersConfigDump", dump)
    }

    fn listeners_dump(&self, client: &Client, names: &Names) -> Value {
        let statics = self.bootstrap.listeners.iter().filter(|l| names.take(&l.config.name));
        let waiting = self.status.load().waiting_listeners.clone();
        let held = client.kind(Kind::Listener);
        let dynamic = held.entries().iter().filter(|(name, _)| names.take(name)).map(|(name, entry)| {
            let key = if waiting.contains(name) { "warming_state" } else { "active_state" };
            let mut listener = Map::new();
            listener.insert("name".to_owned(), json!(name));
            listener.insert(key.to_owned(), Value::Object(state("listener", entry)));
            with_error(listener, held.refused().get(name))
        });
        let mut dynamic: Vec<Value> = dynamic.collect();
        dynamic.extend(only_refused(client, Kind::Listener, names));
        let mut dump = Map::new();
        dump.insert("version_info".to_owned(), json!(held.version));
        dump.insert("static_listeners".to_owned(), statics.map(|l| self.fixed("listener", &l.raw)).collect());
        dump.insert("dynamic_listeners".to_owned(), Value::Array(dynamic));
        typed("ListenersConfigDump", dump)
    }

    fn secrets_dump(&self, client: &Client, names: &Names) -> Value {
        let statics = self.bootstrap.secrets.iter().filter(|(name, _)| names.take(name)).map(|(name, secret)| {
            let mut dump = self.fixed("secret", &secret.raw);
            dump["name"] = json!(name);
            dump
        });
        let held = client.kind(Kind::Secret);
        let dynamic = held.entries().iter().filter(|(name, _)| names.take(name)).map(|(name, entry)| {
            let mut secret = state("secret", entry);
            secret.insert("name".to_owned(), json!(name));
            with_error(secret, held.refused().get(name))
        });
        let mut dynamic: Vec<Value> = dynamic.collect();
        dynamic.extend(only_refused(client, Kind::Secret, names));
        let mut dump = Map::new();
        dump.insert("static_secrets".to_owned(), statics.collect());
        dump.insert("dynamic_active_secrets".to_owned(), Value::Array(dynamic));
        typed("SecretsConfigDump", dump)
    }

    fn fixed(&self, key: &str, raw: &Any) -> Value {
        json!({ key: message(raw), "last_updated": time(self.started) })
    }
}

fn endpoints_dump(client: &Client, names: &Names) -> Value {
    let dynamic = dynamics(client, Kind::Endpoints, "endpoint_config", names);
    let mut dump = Map::new();
    dump.insert("dynamic_endpoint_configs".to_owned(), Value::Array(dynamic));
    typed("EndpointsConfigDump", dump)
}

fn routes_dump(client: &Client, names: &Names) -> Value {
    let dynamic = dynamics(client, Kind::Routes, "route_config", names);
    let mut dump = Map::new();
    dump.insert("static_route_configs".to_owned(), json!([]));
    dump.insert("dynamic_route_configs".to_owned(), Value::Array(dynamic));
    typed("RoutesConfigDump", dump)
}

fn dynamics(client: &Client, kind: Kind, key: &str, names: &Names) -> Vec<Value> {
    let held = client.kind(kind);
    let entries = held.entries().iter().filter(|(name, _)| names.take(name));
    let mut all: Vec<Value> =
        entries.map(|(name, entry)| with_error(state(key, entry), held.refused().get(name))).collect();
    all.extend(only_refused(client, kind, names));
    all
}

/// Resources of which no good version ever came.
fn only_refused(client: &Client, kind: Kind, names: &Names) -> Vec<Value> {
    let held = client.kind(kind);
    let refused = held.refused().iter().filter(|(name, _)| names.take(name) && !held.entries().contains_key(*name));
    refused
        .map(|(name, refusal)| {
            let mut resource = Map::new();
            resource.insert("name".to_owned(), json!(name));
            with_error(resource, Some(refusal))
        })
        .collect()
}

fn state(key: &str, entry: &Entry) -> Map<String, Value> {
    let mut state = Map::new();
    state.insert("version_info".to_owned(), json!(entry.version));
    state.insert(key.to_owned(), message(&entry.encoded));
    state.insert("last_updated".to_owned(), time(entry.since));
    state
}

fn with_error(mut resource: Map<String, Value>, refusal: Option<&Refusal>) -> Value {
    if let Some(Refusal { encoded, version, details, since }) = refusal {
        let encoded: &Arc<Any> = encoded;
        let error = json!({
            "failed_configuration": message(encoded),
            "last_update_attempt": time(*since),
            "details": details,
            "version_info": version,
        });
        resource.insert("error_state".to_owned(), error);
    }
    Value::Object(resource)
}

/// A message with its type, as an `Any` is printed.
fn message(any: &Any) -> Value {
    let mut value = json::render(&any.type_url, &any.value);
    if let Value::Object(fields) = &mut value {
        fields.insert("@type".to_owned(), json!(any.type_url));
    }
    value
}

fn typed(kind: &str, mut fields: Map<String, Value>) -> Value {
    fields.insert("@type".to_owned(), json!(format!("type.googleapis.com/envoy.admin.v3.{kind}")));
    Value::Object(fields)
}

fn time(at: SystemTime) -> Value {
    OffsetDateTime::from(at).format(&Rfc3339).map_or(Value::Null, Value::String)
}

struct Names(Option<Regex>);

impl Names {
    fn take(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|regex| regex.is_match(name))
    }
}
