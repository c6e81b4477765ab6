//! The contract between the two halves: whatever our controller renders, our proxy takes, without an error or a warning.
//!
//! The objects are those of the comparison with OSM: ten scenarios, every sidecar.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../controller/tests/golden/objects.rs"]
mod objects;

use std::fs;
use std::sync::Arc;

use oxmesh_controller::api::{Objects, parse};
use oxmesh_controller::identity::SidecarIdentity;
use oxmesh_controller::mesh::Mesh;
use oxmesh_controller::settings::Settings;
use oxmesh_controller::xds::Kind;
use oxmesh_controller::xds::build::{Issued, build};
use oxmesh_proxy::xds::convert::{self, Options, Origin};
use serde_json::{Value, json};

/// Renders for every sidecar of `objects`, converts, and returns what the proxy says. Also returns how many it took.
fn complaints(objects: &Objects) -> (usize, Vec<String>) {
    let pair = rcgen::generate_simple_self_signed(["a.b.cluster.local".to_owned()]).unwrap();
    let (chain, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
    let issued = Issued { chain_pem: &chain, key_pem: &key, roots_pem: &chain };
    let options = Options { origin: Origin::Server, reject_unknown_fields: true };
    let mesh = Mesh::build(objects, &Settings::default()).mesh;
    let (mut taken, mut said) = (0, Vec::new());
    for workload in mesh.workloads() {
        let proxy = SidecarIdentity { uuid: workload.uuid.clone().unwrap(), service: workload.identity.clone() };
        let resources = build(&mesh, &proxy, &issued).unwrap();
        for kind in Kind::ALL {
            for (name, any) in resources.of(kind) {
                match convert::resource(kind.type_url(), any, &options) {
                    Ok((_, warnings)) if warnings.is_empty() => taken += 1,
                    Ok((_, warnings)) => said.push(format!("{} {kind} {name}: {warnings:?}", workload.pod)),
                    Err(rejected) => said.push(format!("{} {kind} {name}: {rejected:?}", workload.pod)),
                }
            }
        }
    }
    (taken, said)
}

#[test]
fn the_proxy_takes_all_that_the_controller_sends_in_the_scenarios_of_osm() {
    let root = objects::folder("");
    let folders = fs::read_dir(root).unwrap().map(|f| f.unwrap()).filter(|f| f.file_type().unwrap().is_dir());
    let mut scenarios: Vec<String> = folders.map(|f| f.file_name().into_string().unwrap()).collect();
    scenarios.sort();
    assert_eq!(scenarios.len(), 10);
    for scenario in scenarios {
        let mut objects = objects::objects(&scenario);
        // Everything that sidecars may have, also what OSM's dumps were made without.
        for pod in objects.pods.values_mut() {
            let pod = Arc::make_mut(pod);
            let annotations = pod.metadata.annotations.get_or_insert_default();
            annotations.insert("prometheus.io/scrape".to_owned(), "true".to_owned());
            let status = pod.status.as_mut().unwrap();
            status.pod_ips = Some(serde_json::from_value(json!([{"ip": "fd00::1"}])).unwrap());
        }
        let (taken, said) = complaints(&objects);
        assert!(
            said.is_empty(),
            "{scenario}: {} refusals or warnings, the first: {:#?}",
            said.len(),
            &said[..said.len().min(3)]
        );
        assert!(taken > 50, "{scenario}: only {taken} resources");
    }
}

#[test]
fn the_proxy_takes_what_only_we_send() {
    let mut objects = objects::objects("04-egress-policy");
    let object = |api_version: &str, kind: &str, name: &str, spec: Value| {
        let metadata = json!({"name": name, "namespace": "apps"});
        parse(json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec})).unwrap().object
    };
    let account = |name: &str| json!({"kind": "ServiceAccount", "name": name});
    let matches = json!([{"name": "all"}, {"name": "some", "pathRegex": "/a/.*", "methods": ["GET"], "headers": [{"host": "x"}]}]);
    objects.insert(object("specs.smi-spec.io/v1alpha4", "HTTPRouteGroup", "g", json!({"matches": matches})));
    // Overlapping rules with different callers, a split of some requests, a log of one's own.
    for (source, rule) in [("client", "some"), ("shard", "all")] {
        let rules = json!([{"kind": "HTTPRouteGroup", "name": "g", "matches": [rule]}]);
        let spec = json!({"destination": account("echo"), "sources": [account(source)], "rules": rules});
        objects.insert(object("access.smi-spec.io/v1alpha3", "TrafficTarget", source, spec));
    }
    let split = json!({"service": "echo", "backends": [{"service": "echo", "weight": 1}],
        "matches": [{"kind": "HTTPRouteGroup", "name": "g"}]});
    objects.insert(object("split.smi-spec.io/v1alpha4", "TrafficSplit", "s", split));
    let limits = json!({"host": "echo.apps.svc.cluster.local", "httpRoutes": [
        {"path": "/a/.*", "rateLimit": {"local": {"requests": 1, "unit": "second", "responseHeadersToAdd": [{"name": "x", "value": "1%"}]}}}]});
    objects.insert(object("policy.openservicemesh.io/v1alpha1", "UpstreamTrafficSetting", "u", limits));
    for (name, format) in
        [("t", "%REQ(:PATH):9% %TRAILER(x)% %GRPC_STATUS% 100%%"), ("w", r#"{"a": {"b": "%DURATION%"}}"#)]
    {
        let spec =
            json!({"selector": {"app": if name == "t" { "echo" } else { "client" }}, "accessLog": {"format": format}});
        objects.insert(object("policy.openservicemesh.io/v1alpha1", "Telemetry", name, spec));
    }
    let (taken, said) = complaints(&objects);
    assert_eq!(said, [""; 0]);
    assert!(taken > 50);
}
