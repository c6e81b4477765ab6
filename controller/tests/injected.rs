//! Two pods as a running OSM v1.2.4 injected them, against what we make of the same pods: equal but for a list.
//!
//! Each entry of the list has its reason below "Injection" in docs/differences.md.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use oxmesh_controller::inject::{DataPlane, Outcome, Request, Settings, inject};
use serde_json::{Map, Value, json};

fn yaml(name: &str) -> Value {
    let path = format!("{}/tests/data/osm-injected/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn settings() -> Settings {
    Settings {
        mesh_name: "osm".into(),
        osm_namespace: "osm-system".into(),
        trust_domain: "cluster.local".into(),
        proxy_image: "test.local/osm/osm-healthcheck:v1".into(),
        init_image: "test.local/osm/init:v1".into(),
        envoy_image: "test.local/osm/envoy:v1".into(),
        data_plane: DataPlane::Envoy,
        native_sidecars: false,
        probe_address: [0, 0, 0, 0].into(),
    }
}

fn ours(before: &Value, uuid: &str, settings: &Settings) -> Value {
    let namespace = json!({"metadata": {"name": before["metadata"]["namespace"],
        "labels": {"openservicemesh.io/monitored-by": "osm"},
        "annotations": {"openservicemesh.io/sidecar-injection": "enabled"}}});
    let namespace = serde_json::from_value(namespace).unwrap();
    let request = Request { namespace: &namespace, mesh_config: None, uuid, trust_bundle: "" };
    match inject(before, &request, settings).unwrap() {
        Outcome::Injected(injection) => injection.pod,
        other => panic!("not injected: {other:?}"),
    }
}

/// Lists of named things by name, and without what the API server adds to the containers and volumes after the webhook.
fn normal(value: &Value, added: bool) -> Value {
    match value {
        Value::Array(items) if items.iter().all(|item| item.get("name").is_some()) => {
            let item = |item: &Value| {
                let name = item["name"].as_str().unwrap().to_owned();
                let added = added
                    || ["envoy", "osm-init", "osm-healthcheck", "envoy-bootstrap-config-volume"].contains(&&*name);
                (name, normal(item, added))
            };
            Value::Object(items.iter().map(item).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| normal(item, added)).collect()),
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(key, _)| {
                let of_server =
                    matches!(key.as_str(), "terminationMessagePath" | "terminationMessagePolicy" | "defaultMode");
                !(added && of_server) && *key != "nodeName"
            });
            let mut fields: Map<String, Value> = kept.map(|(k, v)| (k.clone(), normal(v, added))).collect();
            if added && let Some(Value::Object(mounts)) = fields.get_mut("volumeMounts") {
                mounts.retain(|name, _| !name.starts_with("kube-api-access-"));
            }
            fields.retain(|key, value| !(added && key == "volumeMounts" && *value == json!({})));
            Value::Object(fields)
        }
        other => other.clone(),
    }
}

/// Paths at which the two differ.
fn differences(left: &Value, right: &Value, path: &str, all: &mut BTreeSet<String>) {
    match (left, right) {
        (Value::Object(l), Value::Object(r)) => {
            for key in l.keys().chain(r.keys()).collect::<BTreeSet<_>>() {
                let path = format!("{path}/{key}");
                match (l.get(key), r.get(key)) {
                    (Some(l), Some(r)) => differences(l, r, &path, all),
                    _ => drop(all.insert(path)),
                }
            }
        }
        _ if left == right => {}
        _ => drop(all.insert(path.to_owned())),
    }
}

fn compare(name: &str, settings: &Settings, expected: &[&str]) {
    let (before, golden) = (yaml(&format!("{name}.before")), yaml(name));
    let uuid = golden["metadata"]["labels"]["osm-proxy-uuid"].as_str().unwrap();
    let made = ours(&before, uuid, settings);
    let mut all = BTreeSet::new();
    differences(&normal(&golden, false), &normal(&made, false), "", &mut all);
    let expected: BTreeSet<String> = expected.iter().map(|path| (*path).to_owned()).collect();
    let new: Vec<_> = all.difference(&expected).collect();
    let gone: Vec<_> = expected.difference(&all).collect();
    assert!(new.is_empty() && gone.is_empty(), "{name}: not in the list {new:#?}, in vain in the list {gone:#?}");
}

/// What differs in every pod.
const ALWAYS: [&str; 10] = [
    // The program is named, without a shell, and takes options.
    "/spec/initContainers/osm-init/args",
    "/spec/initContainers/osm-init/command",
    "/spec/initContainers/osm-init/securityContext/allowPrivilegeEscalation",
    "/spec/initContainers/osm-init/securityContext/capabilities/drop",
    "/spec/initContainers/osm-init/securityContext/seccompProfile",
    // The restricted profile.
    "/spec/containers/envoy/securityContext/capabilities",
    "/spec/containers/envoy/securityContext/readOnlyRootFilesystem",
    "/spec/containers/envoy/securityContext/runAsGroup",
    "/spec/containers/envoy/securityContext/runAsNonRoot",
    "/spec/containers/envoy/securityContext/seccompProfile",
];

#[test]
fn a_plain_pod_is_osms_but_for_the_list() {
    // The application's container is kubectl's default though the sidecar stands first.
    compare("bookbuyer", &settings(), &[&ALWAYS[..], &["/metadata/annotations"]].concat());
}

#[test]
fn a_pod_with_probes_and_exclusions_is_osms_but_for_the_list() {
    let own = [
        "/metadata/annotations/kubectl.kubernetes.io/default-container",
        // Each container has paths of its own, and the query is kubelet's.
        "/spec/containers/echo/livenessProbe/httpGet/path",
        "/spec/containers/echo/startupProbe/httpGet/path",
        // The API server's default, which it wrote after the webhook.
        "/spec/containers/echo/readinessProbe/httpGet/scheme",
        // OSM names all three ports if there is any probe.
        "/spec/containers/envoy/ports/readiness-port",
        // Our proxy in another mode, under the restricted profile.
        "/spec/containers/osm-healthcheck/args",
        "/spec/containers/osm-healthcheck/command",
        "/spec/containers/osm-healthcheck/securityContext",
    ];
    compare("echo", &settings(), &[&ALWAYS[..], &own[..]].concat());
}

/// Everything of the application is where it was, under both layouts and both sidecars.
#[test]
fn nothing_of_the_application_is_removed_or_changed_but_probes() {
    for name in ["echo", "bookbuyer"] {
        for (data_plane, native_sidecars) in
            [(DataPlane::Envoy, true), (DataPlane::Envoy, false), (DataPlane::Oxmesh, true), (DataPlane::Oxmesh, false)]
        {
            let before = yaml(&format!("{name}.before"));
            let settings = Settings { data_plane, native_sidecars, ..settings() };
            let after = ours(&before, "8281f730-d0ba-475c-8fa8-4e0dae2b5051", &settings);
            let mut all = BTreeSet::new();
            differences(&normal(&before, false), &normal(&after, false), "", &mut all);
            let allowed = |path: &String| {
                let added = [
                    "/metadata/labels/osm-proxy-uuid",
                    "/metadata/annotations",
                    "/spec/initContainers",
                    "/spec/containers/envoy",
                    "/spec/containers/osm-healthcheck",
                    "/spec/volumes/envoy-bootstrap-config-volume",
                    "/spec/volumes/oxmesh-",
                ];
                added.iter().any(|prefix| path.starts_with(prefix)) || path.contains("Probe/")
            };
            let odd: Vec<_> = all.iter().filter(|path| !allowed(path)).collect();
            assert!(odd.is_empty(), "{name}: {odd:#?}");
            let annotations = |pod: &Value| pod["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
            for (key, value) in annotations(&before) {
                assert_eq!(annotations(&after).get(&key), Some(&value));
            }
        }
    }
}

/// Whatever stands in an annotation: a refusal that names it, or the same fields as ever.
#[test]
fn two_hundred_hostile_annotation_values_change_no_field() {
    let parts = [
        "\"",
        "'",
        "\n",
        "\r\n",
        "\0",
        "{{",
        "}}",
        "{{ .Values.x }}",
        "$(POD_NAME)",
        "${PATH}",
        "`id`",
        "$(id)",
        "; rm -rf /",
        "&anchor",
        "*anchor",
        "!!python/object",
        "<<: *x",
        "---",
        "- a",
        "a: b",
        "# c",
        "|",
        ">",
        "\\",
        "\\\"",
        "\\u0000",
        "%0a",
        "--proxy-uid=0",
        " --dry-run",
        ",,",
        "-1",
        "0",
        "99999999999",
        "1e3",
        "0x50",
        "١",
        "\u{202e}",
        "\u{feff}",
        "é",
        "🦀",
    ];
    let names = [
        "openservicemesh.io/sidecar-injection",
        "openservicemesh.io/inbound-port-exclusion-list",
        "openservicemesh.io/outbound-port-exclusion-list",
        "openservicemesh.io/outbound-ip-range-exclusion-list",
        "openservicemesh.io/outbound-ip-range-inclusion-list",
        "oxmesh.io/network-interface-exclusion-list",
        "oxmesh.io/data-plane",
        "oxmesh.io/proxy-image",
        "oxmesh.io/proxy-log-level",
        "oxmesh.io/proxy-cpu-request",
        "oxmesh.io/proxy-memory-limit",
    ];
    let mut values: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
    values.extend(parts.iter().map(|part| format!("80,{part}")));
    values.extend(parts.iter().map(|part| format!("{part}10.0.0.0/8")));
    values.extend(parts.iter().map(|part| format!("eth0{part}")));
    values.extend(parts.iter().map(|part| part.repeat((64 << 10) / part.len())));
    assert!(values.len() >= 200);
    let before = yaml("bookbuyer.before");
    let plain = ours(&before, "8281f730-d0ba-475c-8fa8-4e0dae2b5051", &settings());
    let namespace = serde_json::from_value(json!({"metadata": {"name": "bookbuyer",
        "labels": {"openservicemesh.io/monitored-by": "osm"},
        "annotations": {"openservicemesh.io/sidecar-injection": "enabled"}}}))
    .unwrap();
    let uuid = "8281f730-d0ba-475c-8fa8-4e0dae2b5051";
    let request = Request { namespace: &namespace, mesh_config: None, uuid, trust_bundle: "" };
    let mut refused = 0;
    for (name, value) in names.iter().flat_map(|name| values.iter().map(move |value| (name, value))) {
        let mut pod = before.clone();
        pod["metadata"]["annotations"] = json!({ *name: value });
        match inject(&pod, &request, &settings()) {
            Err(refusal) => {
                let words = refusal.to_string();
                refused += 1;
                assert!(words.contains(name) && words.len() < 1000, "{words}");
                assert!(!words.chars().any(char::is_control), "{words:?}");
            }
            Ok(Outcome::Left(_)) => assert_eq!(*name, names[0]),
            Ok(Outcome::Injected(injection)) => {
                let mut all = BTreeSet::new();
                differences(&normal(&plain, false), &normal(&injection.pod, false), "", &mut all);
                all.retain(|path| !path.starts_with("/metadata/annotations"));
                let only: Vec<_> = all.iter().collect();
                assert!(only.len() <= 1, "{name} {value:?}: {only:?}");
            }
            Ok(Outcome::Already(_)) => panic!("{name} {value:?}"),
        }
    }
    assert!(refused > names.len() * 100, "{refused}");
}
