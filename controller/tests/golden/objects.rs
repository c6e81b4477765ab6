//! The objects of a scenario, as the API server would have them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oxmesh_controller::api::{self, Object, Objects};
use serde_json::{Value, json};

/// A scenario's folder.
pub(crate) fn folder(scenario: &str) -> PathBuf {
    data().join(scenario)
}

/// All objects of `scenario`.
pub(crate) fn objects(scenario: &str) -> Objects {
    let mut objects = Objects::default();
    for file in ["apps.yaml", "bookstore.yaml", "policy.yaml"].map(|f| data().join(f)) {
        add(&fs::read_to_string(file).unwrap(), &mut objects);
    }
    let text = fs::read_to_string(folder(scenario).join("scenario.yaml")).unwrap();
    add(&text, &mut objects);
    let patch = text.lines().next().and_then(|line| line.strip_prefix("# MESHCONFIG "));
    let patch = patch.map_or(json!({}), |patch| serde_json::from_str(patch).unwrap());
    insert(mesh_config(patch), &mut objects);
    add_addresses(&mut objects);
    objects
}

fn data() -> PathBuf {
    // From this package and from its neighbours.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../controller/tests/data/osm-golden")
}

fn add(text: &str, objects: &mut Objects) {
    for document in serde_saphyr::from_multiple::<Value>(text).unwrap() {
        if !document.is_null() {
            insert(document, objects);
        }
    }
}

fn insert(document: Value, objects: &mut Objects) {
    let parsed = api::parse(document).unwrap();
    assert_eq!(parsed.unknown_fields, [""; 0]);
    objects.insert(parsed.object);
}

fn mesh_config(patch: Value) -> Value {
    let mut config = json!({
        "apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
        "metadata": {"name": "osm-mesh-config", "namespace": "osm-system"},
        "spec": {
            "traffic": {"enablePermissiveTrafficPolicyMode": false, "enableEgress": false},
            "featureFlags": {"enableWASMStats": false},
        },
    });
    merge(&mut config, patch);
    config
}

/// RFC 7396.
fn merge(value: &mut Value, patch: Value) {
    match (value, patch) {
        (Value::Object(value), Value::Object(patch)) => {
            for (key, patch) in patch {
                merge(value.entry(key).or_insert(Value::Null), patch);
            }
        }
        (value, patch) => *value = patch,
    }
}

/// Gives services their addresses and adds the pods, whose uuid is their name.
fn add_addresses(objects: &mut Objects) {
    let text = fs::read_to_string(data().join("addresses.txt")).unwrap();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        let (namespace, name) = words[1].split_once('/').unwrap();
        match words[0] {
            "service" => {
                let service = objects.services.get_mut(&api::Key::new(namespace, name)).unwrap();
                Arc::make_mut(service).spec.as_mut().unwrap().cluster_ip = Some(words[2].to_owned());
            }
            "pod" => {
                let mut labels: BTreeMap<&str, &str> = words[4].split(',').filter_map(|l| l.split_once('=')).collect();
                labels.insert("osm-proxy-uuid", name);
                let mut spec = json!({"serviceAccountName": words[3], "containers": []});
                if let Some(service) = words.get(5) {
                    spec["hostname"] = json!(name);
                    spec["subdomain"] = json!(service);
                }
                let pod = json!({
                    "metadata": {"name": name, "namespace": namespace, "labels": labels},
                    "spec": spec,
                    "status": {"podIP": words[2]},
                });
                objects.insert(Object::Pod(serde_json::from_value(pod).unwrap()));
            }
            other => panic!("{other:?} in addresses.txt"),
        }
    }
}
