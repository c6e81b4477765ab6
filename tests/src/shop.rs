//! The manifests that most scenarios start from: a client, a thief, and a store in two versions that serves HTTP, gRPC,
//! WebSocket, raw TCP and server-first TCP.

use std::fmt::Write as _;

/// Namespace, accounts, services and workloads.
#[must_use]
pub fn workloads() -> String {
    let mut text = String::from(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: { openservicemesh.io/monitored-by: osm }\n  annotations: { openservicemesh.io/sidecar-injection: enabled }\n",
    );
    for account in ["client", "thief", "store-v1", "store-v2"] {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{ name: {account}, namespace: shop }}\n"
        );
    }
    for (service, selector) in
        [("store", "app: store"), ("store-v1", "app: store, version: v1"), ("store-v2", "app: store, version: v2")]
    {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {service}, namespace: shop }}\nspec:\n  selector: {{ {selector} }}\n  ports:\n  - {{ name: http-web, port: 80, targetPort: 8080 }}\n  - {{ name: grpc-api, port: 9000, targetPort: 9000 }}\n  - {{ name: http-ws, port: 8090, targetPort: 8090 }}\n  - {{ name: tcp-raw, port: 9001, targetPort: 9001 }}\n  - {{ name: banner, port: 3306, targetPort: 3306, appProtocol: tcp-server-first }}\n"
        );
    }
    for (name, account, labels) in [("client", "client", "app: client"), ("thief", "thief", "app: thief")] {
        workload(&mut text, name, account, labels, "--http, \"7070\"", "7070");
    }
    for version in ["v1", "v2"] {
        workload(
            &mut text,
            &format!("store-{version}"),
            &format!("store-{version}"),
            &format!("app: store, version: {version}"),
            &format!("--identity, store-{version}, --http, \"8080\", --echo, \"9001\", --banner, \"3306\""),
            "8080",
        );
    }
    text
}

fn workload(text: &mut String, name: &str, account: &str, labels: &str, args: &str, port: &str) {
    let _ = write!(
        text,
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  selector: {{ matchLabels: {{ {labels} }} }}\n  template:\n    metadata: {{ labels: {{ {labels} }} }}\n    spec:\n      serviceAccountName: {account}\n      containers:\n      - name: app\n        command: [oxmesh-test-app, serve, {args}]\n        ports: [{{ containerPort: {port} }}]\n"
    );
}

/// The mesh's configuration; `spec` in YAML flow form, such as `traffic: { enableEgress: false }`.
#[must_use]
pub fn mesh_config(permissive: bool, egress: bool, certificate: &str) -> String {
    format!(
        "apiVersion: config.openservicemesh.io/v1alpha2\nkind: MeshConfig\nmetadata: {{ name: osm-mesh-config, namespace: osm-system }}\nspec:\n  traffic: {{ enableEgress: {egress}, enablePermissiveTrafficPolicyMode: {permissive} }}\n  featureFlags: {{ enableEgressPolicy: true, enableRetryPolicy: true, enableWASMStats: true }}\n  certificate: {{ serviceCertValidityDuration: {certificate} }}\n"
    )
}

/// The client may do all: every path of both versions, and their TCP ports.
#[must_use]
pub fn policy() -> String {
    let mut text = String::from(
        "apiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata: { name: all, namespace: shop }\nspec: { matches: [{ name: everything, pathRegex: \".*\", methods: [\"*\"] }] }\n---\napiVersion: specs.smi-spec.io/v1alpha4\nkind: TCPRoute\nmetadata: { name: ports, namespace: shop }\nspec: { matches: { ports: [9001, 3306] } }\n",
    );
    for version in ["v1", "v2"] {
        let _ = write!(
            text,
            "---\napiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {{ name: client-to-store-{version}, namespace: shop }}\nspec:\n  destination: {{ kind: ServiceAccount, name: store-{version}, namespace: shop }}\n  sources: [{{ kind: ServiceAccount, name: client, namespace: shop }}]\n  rules:\n  - {{ kind: HTTPRouteGroup, name: all, matches: [everything] }}\n  - {{ kind: TCPRoute, name: ports }}\n"
        );
    }
    text
}

/// The root service split between the versions.
#[must_use]
pub fn split(v1: u32, v2: u32) -> String {
    format!(
        "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata: {{ name: store, namespace: shop }}\nspec:\n  service: store.shop\n  backends: [{{ service: store-v1, weight: {v1} }}, {{ service: store-v2, weight: {v2} }}]\n"
    )
}

/// All files of a shop in policy mode with a split of 50/50.
#[must_use]
pub fn files() -> Vec<(&'static str, String)> {
    vec![
        ("config.yaml", mesh_config(false, false, "24h")),
        ("workloads.yaml", workloads()),
        ("policy.yaml", policy()),
        ("split.yaml", split(50, 50)),
    ]
}
