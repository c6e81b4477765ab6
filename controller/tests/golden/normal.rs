//! One form for both sides: deprecated fields under their new names, what a dump adds left out, order put aside.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Resources of one pod: by kind (`clusters`, `endpoints`, ...) and name.
pub(crate) type Tree = BTreeMap<String, BTreeMap<String, Value>>;

/// The kinds, as a dump names them, and each one's name field.
pub(crate) const KINDS: [(&str, &str); 5] = [
    ("clusters", "name"),
    ("endpoints", "cluster_name"),
    ("listeners", "name"),
    ("routes", "name"),
    ("secrets", "name"),
];

/// Puts a resource into the common form.
pub(crate) fn normal(mut resource: Value) -> Value {
    if let Value::Object(map) = &mut resource {
        map.remove("@type");
    }
    rename_cluster_field(&mut resource);
    walk(&mut resource, "");
    resource
}

/// `max_requests_per_connection` of a cluster moved to its HTTP options.
fn rename_cluster_field(cluster: &mut Value) {
    const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let Some(max) = cluster.as_object_mut().and_then(|c| c.remove("max_requests_per_connection")) else { return };
    cluster["typed_extension_protocol_options"][OPTIONS]["common_http_protocol_options"]["max_requests_per_connection"] =
        max;
}

fn walk(value: &mut Value, name: &str) {
    match value {
        Value::Object(map) => {
            rename(map);
            drop_noise(map);
            for (name, value) in map.iter_mut() {
                walk(value, name);
            }
        }
        Value::Array(list) => {
            for value in list.iter_mut() {
                walk(value, "");
            }
            if let Some(by_name) = by_name(list, name) {
                *value = by_name;
            } else if name != "filter_names" {
                list.sort_by_key(Value::to_string);
            }
        }
        Value::String(text) => {
            if let Some(seconds) = duration(text, name) {
                *value = json!(seconds);
            }
        }
        _ => {}
    }
}

fn rename(map: &mut Map<String, Value>) {
    if let Some(regex) = map.remove("safe_regex_match") {
        map.insert("string_match".into(), json!({"safe_regex": regex}));
    }
    if let Some(Value::Array(names)) = map.remove("match_subject_alt_names") {
        let typed = names.into_iter().map(|matcher| json!({"san_type": "DNS", "matcher": matcher})).collect();
        map.insert("match_typed_subject_alt_names".into(), Value::Array(typed));
    }
    // Kept in its order, which counts; the filters themselves are compared by name.
    for (filters, order) in
        [("filters", "filter_names"), ("http_filters", "filter_names"), ("listener_filters", "filter_names")]
    {
        let names =
            map.get(filters).and_then(Value::as_array).map(|list| list.iter().map(|f| f["name"].clone()).collect());
        if let Some(names) = names {
            map.insert(order.into(), Value::Array(names));
        }
    }
}

/// What Envoy adds when it prints, and values that are the default.
fn drop_noise(map: &mut Map<String, Value>) {
    let noise = [
        ("google_re2", json!({})),
        ("health_check_config", json!({})),
        ("health_status", json!("HEALTHY")),
        // What Envoy's own health checks had found at that moment.
        ("health_status", json!("UNHEALTHY")),
        ("metadata", json!({})),
        ("load_balancing_weight", json!(1)),
        ("load_balancing_weight", json!(0)),
        // Of the one endpoint that there is.
        ("load_balancing_weight", json!(100)),
        // A placeholder in clusters for the workload itself.
        ("locality", json!({"zone": "zone"})),
        ("policy", json!({"overprovisioning_factor": 140})),
        ("action", json!("ALLOW")),
    ];
    for (name, value) in noise {
        if map.get(name) == Some(&value) {
            map.remove(name);
        }
    }
    // Deprecated: the sum of the weights.
    map.remove("total_weight");
    if map.contains_key("inline_bytes") {
        map.insert("inline_bytes".into(), json!("<pem>"));
    }
    map.retain(|_, value| !value.is_null());
}

/// Things with names become a map, so that one more or less of them is one difference.
fn by_name(list: &[Value], field: &str) -> Option<Value> {
    let key = |value: &Value| match field {
        "routes" => Some(value["match"].to_string()),
        _ => value.get("name").and_then(Value::as_str).map(str::to_owned),
    };
    let map: Option<Map<String, Value>> = list.iter().map(|value| Some((key(value)?, value.clone()))).collect();
    map.filter(|map| !map.is_empty() && map.len() == list.len()).map(Value::Object)
}

fn duration(text: &str, name: &str) -> Option<f64> {
    const DURATIONS: [&str; 6] =
        ["timeout", "per_try_timeout", "base_interval", "connect_timeout", "fill_interval", "interval"];
    DURATIONS.contains(&name).then(|| text.strip_suffix('s')?.parse().ok()).flatten()
}

/// One place where two trees differ.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    /// Path from the kind on, such as `clusters/apps/echo|8080/alt_stat_name`.
    pub(crate) path: String,
    /// What OSM sends.
    pub(crate) theirs: Option<Value>,
    /// What we send.
    pub(crate) ours: Option<Value>,
}

/// All differences of two trees.
pub(crate) fn differences(theirs: &Tree, ours: &Tree) -> Vec<Difference> {
    let as_value = |tree: &Tree| json!(tree);
    let mut found = Vec::new();
    compare(Some(&as_value(theirs)), Some(&as_value(ours)), "", &mut found);
    found
}

fn compare(theirs: Option<&Value>, ours: Option<&Value>, path: &str, found: &mut Vec<Difference>) {
    match (theirs, ours) {
        (theirs, ours) if theirs == ours => {}
        (Some(Value::Object(theirs)), Some(Value::Object(ours))) => {
            let names: std::collections::BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
            for name in names {
                compare(theirs.get(name), ours.get(name), &format!("{path}/{name}"), found);
            }
        }
        (theirs, ours) => {
            found.push(Difference { path: path.to_owned(), theirs: theirs.cloned(), ours: ours.cloned() });
        }
    }
}
