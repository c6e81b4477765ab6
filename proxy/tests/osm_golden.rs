//! What the real OSM sends its sidecars is accepted: all of scenarios 01 to 09, and of 10 all but what is listed here.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use oxmesh_proxy::xds::{
    convert::{self, Options},
    json,
};
use serde_json::Value;

const KINDS: [(&str, &str); 5] = [
    ("clusters", convert::CLUSTER),
    ("endpoints", convert::ASSIGNMENT),
    ("listeners", convert::LISTENER),
    ("routes", convert::ROUTES),
    ("secrets", convert::SECRET),
];

/// Every resource of the scenarios: where it stands, its type and its JSON.
fn resources(scenarios: impl Fn(&str) -> bool) -> Vec<(String, &'static str, Value)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/osm-golden");
    let mut found = Vec::new();
    for scenario in fs::read_dir(root).unwrap().map(|e| e.unwrap().path()) {
        let name = scenario.file_name().unwrap().to_string_lossy().into_owned();
        if !scenarios(&name) {
            continue;
        }
        for file in fs::read_dir(&scenario).unwrap().map(|e| e.unwrap().path()) {
            // Certificates were left out of the recordings.
            let text = fs::read_to_string(&file).unwrap().replace("<certificate>", "Y2VydGlmaWNhdGU=");
            let document: Value = serde_saphyr::from_str(&text).unwrap();
            for (kind, type_url) in KINDS {
                for resource in document.get(kind).and_then(Value::as_array).into_iter().flatten() {
                    let place = format!("{name}/{}", file.file_name().unwrap().to_string_lossy());
                    found.push((place, type_url, resource.clone()));
                }
            }
        }
    }
    found
}

fn refusals(scenarios: impl Fn(&str) -> bool) -> (usize, BTreeMap<String, usize>) {
    let index = regex::Regex::new(r"\[[0-9]+\]").unwrap();
    let (mut count, mut refused) = (0, BTreeMap::new());
    for (place, type_url, resource) in resources(scenarios) {
        count += 1;
        let any = json::read(&resource).unwrap_or_else(|e| panic!("{place}: {e:?}"));
        if let Err(rejected) = convert::resource(type_url, &any, &Options::SERVER) {
            for error in &rejected.errors {
                let error = index.replace_all(error, "[_]");
                *refused.entry(format!("{}: {error}", rejected.kind)).or_default() += 1;
            }
        }
    }
    (count, refused)
}

#[test]
fn scenarios_01_to_09_are_accepted_entirely() {
    let (count, refused) = refusals(|s| s.starts_with('0'));
    assert!(count > 500, "{count} resources");
    assert_eq!(refused, BTreeMap::new());
}

#[test]
fn scenario_10_is_refused_where_it_asks_for_what_we_do_not_have() {
    let (count, refused) = refusals(|s| s.starts_with("10"));
    assert!(count > 100, "{count} resources");
    let manager = "Listener: filter_chains[_].filters[_].typed_config[HttpConnectionManager]";
    let expected = [
        "Cluster: health_checks: not supported".to_owned(),
        format!(
            "{manager}.http_filters[_].typed_config: envoy.extensions.filters.http.ext_authz.v3.ExtAuthz not supported \
             (supported: Router, RBAC, LocalRateLimit)"
        ),
        format!(
            "{manager}.http_filters[_].typed_config: envoy.extensions.filters.http.health_check.v3.HealthCheck not \
             supported (supported: Router, RBAC, LocalRateLimit)"
        ),
        format!("{manager}.tracing: not supported"),
    ];
    assert_eq!(refused.into_keys().collect::<Vec<_>>(), expected);
}

#[test]
fn of_the_whole_shape_that_osm_can_send_the_rest_is_refused_by_name() {
    let all: Vec<Value> = serde_saphyr::from_str(include_str!("data/osm-shape.yaml")).unwrap();
    assert_eq!(all.len(), 23);
    let (mut accepted, mut refused) = (0, BTreeMap::new());
    for resource in all {
        let any = json::read(&resource).unwrap();
        match convert::resource(&any.type_url.clone(), &any, &Options::SERVER) {
            Ok(_) => accepted += 1,
            Err(rejected) => {
                let causes: BTreeSet<String> = rejected.errors.iter().map(|e| cause(e)).collect();
                let name = format!("{} {}", rejected.kind, rejected.name.unwrap());
                refused.insert(name, causes.into_iter().collect::<Vec<_>>().join(" "));
            }
        }
    }
    let inbound = "ExtAuthz HealthCheck Lua OpenTelemetryAccessLogConfig RateLimit tracing";
    let expected = [
        ("Cluster default/b", "health_checks"),
        ("Listener inbound-listener", inbound),
        ("Listener inbound-prometheus-listener", "OpenTelemetryAccessLogConfig"),
        ("Listener outbound-listener", "Lua OpenTelemetryAccessLogConfig tracing"),
        ("RouteConfiguration rds-egress.80", "rate_limits"),
        ("RouteConfiguration rds-inbound.80", "rate_limits"),
        ("RouteConfiguration rds-ingress", "rate_limits"),
        ("RouteConfiguration rds-outbound.80", "rate_limits"),
    ];
    let refused: Vec<(&str, &str)> = refused.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!((accepted, refused), (15, expected.to_vec()));
}

/// The field or extension that an error is about.
fn cause(error: &str) -> String {
    let (path, reason) = error.split_once(": ").unwrap();
    let words = if path.ends_with("typed_config") { reason.split_once(' ').unwrap().0 } else { path };
    words.rsplit('.').next().unwrap().to_owned()
}
