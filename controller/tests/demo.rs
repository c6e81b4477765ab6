//! The demo's manifests: understood in full, and they allow what the demo shows.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use oxmesh_controller::api::{self, Key, Object, Objects};
use oxmesh_controller::identity::{ServiceIdentity, SidecarIdentity};
use oxmesh_controller::mesh::{Built, Mesh, cluster_ip};
use oxmesh_controller::settings::Settings;
use oxmesh_controller::xds::Kind;
use oxmesh_controller::xds::build::{Issued, build};
use serde_json::json;

fn demo(also: &[&str]) -> Objects {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo");
    let mut objects = Objects::default();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.ends_with(".yaml") && !also.contains(&name) {
            continue;
        }
        for document in serde_saphyr::from_multiple(&fs::read_to_string(&path).unwrap()).unwrap() {
            let parsed = api::parse(document).unwrap();
            assert_eq!(parsed.unknown_fields, [""; 0], "{name}");
            assert!(!objects.insert(parsed.object), "{name} has an object that is elsewhere too");
        }
    }
    let settings = Settings::default();
    assert_eq!(cluster_ip::assign_missing(&mut objects, settings.service_cidr), []);
    let deployments: Vec<_> = objects.deployments.iter().map(|(key, d)| (key.clone(), d.clone())).collect();
    for (i, (key, deployment)) in deployments.into_iter().enumerate() {
        let template = deployment.spec.clone().unwrap().template;
        let mut pod =
            json!({"metadata": template.metadata, "spec": template.spec, "status": {"podIP": format!("10.1.0.{i}")}});
        pod["metadata"]["name"] = json!(key.name);
        pod["metadata"]["namespace"] = json!(key.namespace);
        pod["metadata"]["labels"]["osm-proxy-uuid"] = json!(key.name);
        objects.insert(Object::Pod(serde_json::from_value(pod).unwrap()));
    }
    objects
}

#[test]
fn the_demo_has_no_mistake_and_uses_nothing_that_has_no_effect() {
    for also in [&[][..], &["egress.yaml.example"][..]] {
        let Built { findings, .. } = Mesh::build(&demo(also), &Settings::default());
        let findings: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(findings, [""; 0]);
    }
}

#[test]
fn the_demo_lets_everybody_but_the_thief_do_their_work() {
    let mesh = Mesh::build(&demo(&[]), &Settings::default()).mesh;
    let reach = |namespace: &str, account: &str| {
        let source = ServiceIdentity::new(namespace, account);
        mesh.reachable_from(&source).map(|s| s.name.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(reach("bookbuyer", "bookbuyer"), ["bookstore", "bookstore-v1", "bookstore-v2"]);
    assert_eq!(reach("bookstore", "bookstore-v2"), ["bookwarehouse"]);
    assert_eq!(reach("bookwarehouse", "bookwarehouse"), ["bookdb"]);
    assert_eq!(reach("bookthief", "bookthief"), [""; 0]);
    let split = mesh.split(&Key::new("bookstore", "bookstore")).unwrap();
    assert_eq!(split.backends.values().collect::<Vec<_>>(), [&50, &50]);
}

#[test]
fn the_same_objects_give_the_same_bytes() {
    let render = || {
        let mesh = Mesh::build(&demo(&[]), &Settings::default()).mesh;
        let issued = Issued { chain_pem: "c", key_pem: "k", roots_pem: "r" };
        let all = mesh.workloads().map(|w| {
            let proxy = SidecarIdentity { uuid: w.uuid.clone().unwrap(), service: w.identity.clone() };
            build(&mesh, &proxy, &issued).unwrap()
        });
        all.collect::<Vec<_>>()
    };
    let first = render();
    for _ in 0..5 {
        for (a, b) in first.iter().zip(render()) {
            for kind in Kind::ALL {
                assert!(a.of(kind) == b.of(kind), "{kind:?} differs from run to run");
            }
        }
    }
}
