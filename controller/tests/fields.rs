//! No field of any kind is dropped in silence: taken away from an object, it changes what some sidecar gets or what is said,
//! or something is said about the part that it belongs to.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "the helpers are shared")]

mod world;

use std::collections::BTreeSet;
use std::path::Path;

use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, ValidationDirective};
use oxmesh_controller::api::{self, Object};
use oxmesh_controller::mesh::Finding;
use oxmesh_controller::xds::Kind;
use serde_json::{Value, json};
use world::{World, config, object, policy, service, shop, target};

/// Objects with all fields of their kinds, each with the objects without which it would have no effect.
fn full() -> Vec<(Value, Vec<Value>)> {
    let account = |name: &str| json!({"kind": "ServiceAccount", "name": name, "namespace": "shop"});
    let retries = config(json!({"featureFlags": {"enableRetryPolicy": true}}));
    let allow = target("client", "web", "HTTPRouteGroup", "all");
    let group = |name: &str, spec: Value| object(SPECS, "HTTPRouteGroup", "shop", name, spec);
    let ingress = |port: Value, tls: Value, sources: Value, more: Value| {
        let mut spec = json!({"backends": [{"name": "web", "port": port, "tls": tls}], "sources": sources});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        policy("IngressBackend", "full", spec)
    };
    let http = json!({"number": 8080, "protocol": "http"});
    let https = json!({"number": 8080, "protocol": "https"});
    let sources = json!([
        {"kind": "IPRange", "name": "10.9.0.0/16"},
        {"kind": "Service", "name": "web", "namespace": "shop"},
        {"kind": "AuthenticatedPrincipal", "name": "gateway", "namespace": "shop"},
    ]);
    let named = json!([{"kind": "AuthenticatedPrincipal", "name": "gateway"}]);
    let egress = |protocol: &str, more: Value| {
        let mut spec = json!({"sources": [account("client")], "hosts": ["a.example"],
            "ipAddresses": ["192.0.2.0/24"], "ports": [{"number": 7777, "protocol": protocol}],
            "matches": [{"apiGroup": SPECS, "kind": "HTTPRouteGroup", "name": "narrow"},
                        {"apiGroup": POLICY, "kind": "UpstreamTrafficSetting", "name": "limits"}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        policy("Egress", "full", spec)
    };
    let of_egress = vec![
        group("narrow", json!({"matches": [{"name": "m", "pathRegex": "/narrow"}]})),
        policy(
            "UpstreamTrafficSetting",
            "limits",
            json!({"host": "a.example",
            "connectionSettings": {"tcp": {"maxConnections": 3}}}),
        ),
    ];
    let provider = |field: &str, value: Value| {
        let spec = json!({"trustDomain": "td", "role": "active", "spiffeEnabled": true, "provider": {field: value}});
        object(CONFIG, "MeshRootCertificate", "osm-system", "full", spec)
    };
    let telemetry = json!({"selector": {"app": "web"}, "accessLog": {"format": "%PROTOCOL%", "openTelemetry": {
        "extensionService": {"name": "e", "namespace": "shop"}, "attributes": {"a": "b"}}}});
    let split = json!({"service": "web", "backends": [{"service": "other", "weight": 3}, {"service": "web", "weight": 2}],
        "matches": [{"apiGroup": SPECS, "kind": "HTTPRouteGroup", "name": "all"}]});
    let of_split = vec![
        service("other", "web", "10.96.0.2", json!([{"name": "http", "port": 80}, {"name": "tcp-db", "port": 5432}])),
        allow.clone(),
    ];
    let retry = json!({"source": account("client"), "destinations": [{"kind": "Service", "name": "web", "namespace": "shop"}],
        "retryPolicy": {"retryOn": "5xx", "perTryTimeout": "2s", "numRetries": 3, "retryBackoffBaseInterval": "1s"}});
    let access = json!({"destination": account("web"), "sources": [account("client")], "rules": [
        {"kind": "HTTPRouteGroup", "name": "two", "matches": ["one"]}, {"kind": "TCPRoute", "name": "tcp", "matches": ["one"]}]});
    let two = json!({"matches": [{"name": "one", "methods": ["GET"], "pathRegex": "/a", "headers": [{"x-a": "b"}]},
                                 {"name": "two", "pathRegex": "/b"}]});
    let tcp = object(SPECS, "TCPRoute", "shop", "ports", json!({"matches": {"name": "m", "ports": [5432]}}));
    let way_in = ingress(http.clone(), json!({}), json!([{"kind": "IPRange", "name": "10.9.0.0/16"}]), json!({}));
    vec![
        (mesh_config(), vec![policy("Retry", "r", retry.clone()), way_in]),
        (object(ACCESS, "TrafficTarget", "shop", "full", access), vec![group("two", two.clone())]),
        (group("two", two), vec![target("client", "web", "HTTPRouteGroup", "two")]),
        (tcp, vec![target("client", "web", "TCPRoute", "ports")]),
        (object(SPECS, "UDPRoute", "shop", "u", json!({"matches": {"name": "m", "ports": [53]}})), vec![]),
        (object("split.smi-spec.io/v1alpha4", "TrafficSplit", "shop", "full", split), of_split),
        (policy("Retry", "full", retry), vec![retries, allow.clone()]),
        (policy("UpstreamTrafficSetting", "full", settings()), vec![allow]),
        (policy("Telemetry", "full", telemetry), vec![]),
        (
            object(
                CONFIG,
                "ExtensionService",
                "shop",
                "e",
                json!({"host": "h", "port": 1, "protocol": "h2c", "connectTimeout": "1s"}),
            ),
            vec![],
        ),
        (ingress(http.clone(), json!({}), sources.clone(), json!({})), vec![]),
        (
            ingress(
                http,
                json!({"skipClientCertValidation": true, "sniHosts": ["a.b"]}),
                sources.clone(),
                json!({"matches": [{"apiGroup": SPECS, "kind": "HTTPRouteGroup", "name": "all"}]}),
            ),
            vec![],
        ),
        (ingress(https.clone(), json!({"sniHosts": ["a.b"]}), named, json!({})), vec![]),
        (ingress(https, json!({"skipClientCertValidation": true}), sources, json!({})), vec![]),
        (egress("http", json!({})), of_egress.clone()),
        (egress("https", json!({})), of_egress.clone()),
        (egress("tcp", json!({})), of_egress),
        (provider("tresor", json!({"ca": {"secretRef": {"name": "s", "namespace": "n"}}})), vec![]),
        (provider("certManager", json!({"issuerName": "i", "issuerKind": "Issuer", "issuerGroup": "g"})), vec![]),
        (
            provider(
                "vault",
                json!({"host": "h", "port": 1, "role": "r", "protocol": "http",
            "token": {"secretKeyRef": {"name": "s", "key": "k", "namespace": "n"}}}),
            ),
            vec![],
        ),
    ]
}

fn mesh_config() -> Value {
    config(json!({
        "sidecar": {"enablePrivilegedInitContainer": true, "logLevel": "debug", "envoyImage": "a", "envoyWindowsImage": "b",
            "initContainerImage": "c", "maxDataPlaneConnections": 7, "configResyncInterval": "40s",
            "resources": {"limits": {"cpu": "1"}}, "tlsMinProtocolVersion": "TLSv1_3", "tlsMaxProtocolVersion": "TLSv1_0",
            "cipherSuites": ["ECDHE-ECDSA-AES128-GCM-SHA256"], "ecdhCurves": ["P-256"], "localProxyMode": "PodIP"},
        "traffic": {"enableEgress": true, "outboundIPRangeExclusionList": ["10.0.0.0/8"],
            "outboundIPRangeInclusionList": ["10.0.0.0/8"], "outboundPortExclusionList": [1], "inboundPortExclusionList": [2],
            "enablePermissiveTrafficPolicyMode": true, "networkInterfaceExclusionList": ["eth1"],
            "inboundExternalAuthorization": {"enable": true, "address": "opa", "port": 1, "statPrefix": "s", "timeout": "1s",
                "failureModeAllow": true}},
        "observability": {"osmLogLevel": "debug", "enableDebugServer": true,
            "tracing": {"enable": true, "port": 1, "address": "a", "endpoint": "/e"}},
        "certificate": {"serviceCertValidityDuration": "2h", "certKeyBitSize": 4096, "ingressGateway": {
            "subjectAltNames": ["a"], "validityDuration": "1h", "secret": {"name": "s", "namespace": "n"}}},
        "featureFlags": {"enableWASMStats": false, "enableEgressPolicy": false, "enableMulticlusterMode": true,
            "enableSnapshotCacheMode": true, "enableAsyncProxyServiceMapping": true, "enableIngressBackendPolicy": false,
            "enableEnvoyActiveHealthChecks": true, "enableRetryPolicy": true, "enableMeshRootCertificate": true,
            "enableSPIFFE": true}}))
}

fn settings() -> Value {
    let header = json!([{"name": "x-a", "value": "b"}]);
    let local =
        json!({"requests": 5, "unit": "second", "burst": 6, "responseStatusCode": 503, "responseHeadersToAdd": header});
    let entries = json!([{"genericKey": {"value": "v", "key": "k"}}, {"remoteAddress": {}},
        {"requestHeader": {"name": "n", "key": "k"}},
        {"headerValueMatch": {"value": "v", "key": "k", "expectMatch": false, "headers": [{"name": "n", "exact": "a",
            "prefix": "b", "suffix": "c", "regex": "d", "contains": "e", "present": true}]}}]);
    let asked = json!({"host": "rls", "port": 1});
    json!({"host": "web.shop.svc.cluster.local",
        "connectionSettings": {"tcp": {"maxConnections": 1, "connectTimeout": "1s"},
            "http": {"maxRequests": 2, "maxRequestsPerConnection": 3, "maxPendingRequests": 4, "maxRetries": 5}},
        "rateLimit": {"local": {"tcp": {"connections": 1, "unit": "hour", "burst": 2}, "http": local},
            "global": {
                "tcp": {"rateLimitService": asked, "domain": "d", "timeout": "1s", "failOpen": true,
                    "descriptors": [{"entries": [{"key": "k", "value": "v"}]}]},
                "http": {"rateLimitService": asked, "domain": "d", "timeout": "1s", "failOpen": true,
                    "enableXRateLimitHeaders": true, "responseStatusCode": 503, "descriptors": [{"entries": entries}]}}},
        "httpRoutes": [{"path": "/p", "rateLimit": {"local": local, "global": {"descriptors": [{"entries": entries}]}}}]})
}

/// Everything that comes of objects: resources, findings, and the settings of the control plane itself.
fn outcome(world: &World) -> (Vec<Vec<u8>>, Vec<Finding>, String) {
    let mut resources = Vec::new();
    for pod in ["web-0", "client-0"] {
        let sidecar = world.sidecar(pod);
        for kind in Kind::ALL {
            resources.extend(sidecar.0.of(kind).iter().map(|(name, any)| [name.as_bytes(), &any.value].concat()));
        }
    }
    let config = world.mesh.config();
    let own = (config.max_data_plane_connections, config.resync, config.service_cert_validity);
    (resources, world.findings.clone(), format!("{own:?}"))
}

/// Paths of all fields, such as `spec.ports[0].number`, with a JSON pointer to each.
fn fields(value: &Value, path: &str, pointer: &str, all: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let (path, pointer) = (format!("{path}.{name}"), format!("{pointer}/{name}"));
                all.push((path.clone(), pointer.clone()));
                fields(value, &path, &pointer, all);
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                fields(value, &format!("{path}[{i}]"), &format!("{pointer}/{i}"), all);
            }
        }
        _ => {}
    }
}

fn without(document: &Value, pointer: &str) -> Value {
    let mut document = document.clone();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    document.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name);
    document
}

/// Without numbers of places in lists, so that `a[0].b` of one object and `a[1].b` of another are one field.
fn kind_of_place(kind: &str, path: &str) -> String {
    let digits = |c: char| c.is_ascii_digit();
    format!(
        "{kind} {}",
        path.split('[').map(|p| p.trim_start_matches(digits).trim_start_matches(']')).collect::<String>()
    )
}

/// Whether something is said about the field or a part around it.
fn is_said(findings: &[Finding], kind: &str, path: &str) -> bool {
    findings.iter().filter(|f| f.kind == kind).any(|f| {
        path.strip_prefix(f.field.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

#[test]
fn every_field_has_an_effect_or_something_is_said_about_it() {
    let (mut seen, mut heard) = (BTreeSet::new(), BTreeSet::new());
    for (document, others) in full() {
        let kind = document["kind"].as_str().unwrap();
        let of = |document: &Value| shop([document].into_iter().chain(&others));
        let whole = outcome(&of(&document));
        let mut all = Vec::new();
        fields(&document["spec"], "spec", "/spec", &mut all);
        for (path, pointer) in all {
            let place = kind_of_place(kind, &path);
            seen.insert(place.clone());
            let less = without(&document, &pointer);
            // What can't be left out is needed.
            if is_said(&whole.1, kind, &path) || api::parse(less.clone()).is_err() || outcome(&of(&less)) != whole {
                heard.insert(place);
            }
        }
    }
    let silent: Vec<_> = seen.difference(&heard).filter(|place| !MEANS_NOTHING.contains(&place.as_str())).collect();
    assert!(MEANS_NOTHING.iter().all(|place| seen.contains(*place) && !heard.contains(*place)), "{MEANS_NOTHING:?}");
    assert!(silent.is_empty(), "nothing comes of these, and nothing is said: {silent:#?}");
}

/// The objects above have every field that there is: an unknown one makes the parser list those that it knows.
#[test]
fn the_objects_of_this_test_have_all_fields() {
    let (mut known, mut used) = (BTreeSet::new(), BTreeSet::new());
    for (document, _) in full() {
        let kind = document["kind"].as_str().unwrap().to_owned();
        let mut all = vec![("spec".to_owned(), "/spec".to_owned())];
        fields(&document["spec"], "spec", "/spec", &mut all);
        for (path, pointer) in all {
            used.insert(kind_of_place(&kind, &path));
            for (at, path) in objects_at(&document, &path, &pointer) {
                let mut odd = document.clone();
                odd.pointer_mut(&at).unwrap()["-"] = json!(1);
                let Err(error) = api::parse(odd) else { continue };
                let words = error.to_string();
                let Some((_, names)) = words.split_once(", expected ") else { continue };
                let names = names.split('`').skip(1).step_by(2);
                known.extend(names.map(|name| kind_of_place(&kind, &format!("{path}.{name}"))));
            }
        }
    }
    assert!(known.len() > 150, "the parser lists what it knows: {known:?}");
    let missing: Vec<_> = known.difference(&used).filter(|field| *field != OTHER_NAME).collect();
    assert!(missing.is_empty(), "fields without a test: {missing:#?}");
}

fn objects_at(document: &Value, path: &str, pointer: &str) -> Vec<(String, String)> {
    match document.pointer(pointer) {
        Some(Value::Object(_)) => vec![(pointer.to_owned(), path.to_owned())],
        Some(Value::Array(list)) => (0..list.len())
            .filter(|i| list[*i].is_object())
            .map(|i| (format!("{pointer}/{i}"), format!("{path}[{i}]")))
            .collect(),
        _ => Vec::new(),
    }
}

/// The API server drops what the definition of a kind doesn't know; so it must know what the parser knows.
#[test]
fn the_definitions_know_every_field() {
    for (document, _) in full() {
        let kind = document["kind"].as_str().unwrap();
        let version = document["apiVersion"].as_str().unwrap().rsplit_once('/').unwrap().1;
        let crd = api::crds().into_iter().find(|crd| crd.spec.names.kind == kind).unwrap();
        let versions = crd.spec.versions.iter().filter(|v| v.storage || v.name == version);
        let mut seen = 0;
        for version in versions {
            let schema = json!(version.schema.as_ref().unwrap().open_api_v3_schema);
            let mut unknown = Vec::new();
            pruned(&document["spec"], &schema["properties"]["spec"], "spec", &mut unknown);
            assert!(unknown.is_empty(), "{kind} {}: {unknown:?}", version.name);
            seen += 1;
        }
        assert!(seen > 0, "{kind} {version}");
    }
}

/// Paths that a structural schema does not know.
fn pruned(value: &Value, schema: &Value, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let path = format!("{path}.{name}");
                match schema["properties"].get(name).or_else(|| schema.get("additionalProperties")) {
                    Some(schema) => pruned(value, schema, &path, unknown),
                    None => unknown.push(path),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| pruned(value, &schema["items"], path, unknown)),
        _ => {}
    }
}

/// A real API server takes every field and every example as written, and gives it back.
#[tokio::test]
#[ignore = "needs KUBECONFIG of a cluster with the definitions"]
async fn the_api_server_keeps_every_field_and_takes_every_example() {
    let client = kube::Client::try_default().await.unwrap();
    let mut params = PatchParams::apply("oxmesh-test").dry_run();
    params.field_validation = Some(ValidationDirective::Strict);
    let mut seen = 0;
    for mut document in full().into_iter().map(|(document, _)| document).chain(examples()) {
        let text = |field: &str| document[field].as_str().unwrap().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let Some(mut resource) = api::custom_resources().into_iter().find(|r| r.kind == kind) else { continue };
        let (group, version) = api_version.rsplit_once('/').unwrap();
        assert_eq!(group, resource.group);
        (resource.api_version, resource.version) = (api_version.clone(), version.to_owned());
        document["metadata"]["namespace"] = json!("default");
        let name = document["metadata"]["name"].as_str().unwrap().to_owned();
        let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &resource);
        let kept = objects.patch(&name, &params, &Patch::Apply(&document)).await;
        let kept = kept.unwrap_or_else(|error| panic!("{kind} {name}: {error}"));
        assert_eq!(kept.data["spec"], document["spec"], "{kind} {name}");
        seen += 1;
    }
    println!("{seen} objects");
    assert!(seen > 45, "{seen}");
}

/// All manifests of the demo and of the golden scenarios.
fn examples() -> Vec<Value> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut folders = vec![root.join("../demo"), root.join("tests/data/osm-golden")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "yaml") {
                files.push(path);
            }
        }
    }
    let texts = files.into_iter().map(|file| std::fs::read_to_string(file).unwrap());
    let all: Vec<Value> = texts.flat_map(|text| serde_saphyr::from_multiple::<Value>(&text).unwrap()).collect();
    all.into_iter().filter(|d| d["apiVersion"].is_string() && d["kind"].is_string()).collect()
}

#[test]
fn the_chart_has_the_definitions_of_now() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/oxmesh/crds/oxmesh.yaml");
    let chart = std::fs::read_to_string(path).unwrap();
    assert!(chart == api::crds_yaml().unwrap(), "run `make crds`");
}

#[test]
fn all_kinds_of_the_mesh_are_here() {
    let kinds: BTreeSet<String> = full().iter().map(|(d, _)| d["kind"].as_str().unwrap().to_owned()).collect();
    // Fails to compile when a kind is added.
    let ours = |object: &Object| match object {
        Object::Namespace(_)
        | Object::ServiceAccount(_)
        | Object::Service(_)
        | Object::EndpointSlice(_)
        | Object::Pod(_)
        | Object::Deployment(_)
        | Object::StatefulSet(_)
        | Object::DaemonSet(_)
        | Object::ReplicaSet(_) => false,
        Object::MeshConfig(_)
        | Object::MeshRootCertificate(_)
        | Object::ExtensionService(_)
        | Object::Egress(_)
        | Object::IngressBackend(_)
        | Object::Retry(_)
        | Object::UpstreamTrafficSetting(_)
        | Object::Telemetry(_)
        | Object::TrafficTarget(_)
        | Object::HTTPRouteGroup(_)
        | Object::TCPRoute(_)
        | Object::UDPRoute(_)
        | Object::TrafficSplit(_) => true,
    };
    assert!(full().iter().all(|(d, _)| ours(&api::parse(d.clone()).unwrap().object)));
    assert_eq!(kinds.len(), 13);
}

/// What absence says as well: the object's own namespace, the kind's own group; and a name for people.
const MEANS_NOTHING: [&str; 7] = [
    "Egress spec.matches.apiGroup",
    "Egress spec.sources.namespace",
    "Retry spec.destinations.namespace",
    "Retry spec.source.namespace",
    "TCPRoute spec.matches.name",
    "TrafficTarget spec.destination.namespace",
    "TrafficTarget spec.sources.namespace",
];

/// An old name of `role`.
const OTHER_NAME: &str = "MeshRootCertificate spec.intent";

const SPECS: &str = "specs.smi-spec.io/v1alpha4";
const ACCESS: &str = "access.smi-spec.io/v1alpha3";
const CONFIG: &str = "config.openservicemesh.io/v1alpha2";
const POLICY: &str = "policy.openservicemesh.io/v1alpha1";
