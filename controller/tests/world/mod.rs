//! A mesh written down in a few lines, and what its sidecars get, decoded.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint};
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use oxmesh_controller::api::{self, Objects};
use oxmesh_controller::identity::SidecarIdentity;
use oxmesh_controller::mesh::{Finding, Mesh};
use oxmesh_controller::settings::Settings;
use oxmesh_controller::xds::Kind;
use oxmesh_controller::xds::build::{Issued, Resources, build};
use prost::Message;
use serde_json::{Value, json};

/// A mesh and what was said about its objects.
pub(crate) struct World {
    pub(crate) mesh: Mesh,
    pub(crate) findings: Vec<Finding>,
}

impl World {
    /// The mesh of the namespace `shop` and of these documents.
    pub(crate) fn new(documents: &[Value]) -> Self {
        let mut objects = Objects::default();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "shop", "labels": {"openservicemesh.io/monitored-by": "osm"}}});
        for document in [&namespace].into_iter().chain(documents) {
            let parsed = api::parse(document.clone()).unwrap();
            assert_eq!(parsed.unknown_fields, [""; 0]);
            assert!(!objects.insert(parsed.object), "twice: {document}");
        }
        let built = Mesh::build(&objects, &Settings::default());
        Self { mesh: built.mesh, findings: built.findings }
    }

    /// What the sidecar of the pod `name` gets.
    pub(crate) fn sidecar(&self, name: &str) -> Sidecar {
        let workload = self.mesh.workloads().find(|w| w.pod.name == name).unwrap();
        let proxy = SidecarIdentity { uuid: workload.uuid.clone().unwrap(), service: workload.identity.clone() };
        let issued = Issued { chain_pem: "chain", key_pem: "key", roots_pem: "roots" };
        Sidecar(build(&self.mesh, &proxy, &issued).unwrap())
    }

    /// The findings as `kind name field`.
    pub(crate) fn said(&self) -> Vec<String> {
        self.findings.iter().map(|f| format!("{} {} {}", f.kind, f.object.name, f.field)).collect()
    }
}

/// A mesh of a server `web`, which speaks HTTP and TCP, and a client, with routes for any request; and `more`.
pub(crate) fn shop<'a>(more: impl IntoIterator<Item = &'a Value>) -> World {
    let mut all = vec![
        pod("web-0", "web", &["10.0.0.1"]),
        pod("client-0", "client", &["10.0.0.9"]),
        service(
            "web",
            "web",
            "10.96.0.1",
            json!([{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp-db", "port": 5432}]),
        ),
    ];
    all.extend(any_routes());
    all.extend(more.into_iter().cloned());
    World::new(&all)
}

/// The resources of one sidecar.
pub(crate) struct Sidecar(pub(crate) Resources);

impl Sidecar {
    pub(crate) fn names(&self, kind: Kind) -> Vec<&str> {
        self.0.of(kind).keys().map(String::as_str).collect()
    }

    fn decoded<M: Message + Default>(&self, kind: Kind, name: &str) -> M {
        let any = self.0.of(kind).get(name).unwrap_or_else(|| panic!("no {kind} {name} in {:?}", self.names(kind)));
        M::decode(any.value.as_slice()).unwrap()
    }

    pub(crate) fn listener(&self, name: &str) -> Listener {
        self.decoded(Kind::Listener, name)
    }

    pub(crate) fn cluster(&self, name: &str) -> Cluster {
        self.decoded(Kind::Cluster, name)
    }

    pub(crate) fn routes(&self, name: &str) -> RouteConfiguration {
        self.decoded(Kind::Route, name)
    }

    pub(crate) fn secret(&self, name: &str) -> Secret {
        self.decoded(Kind::Secret, name)
    }

    /// Names of the chains of a listener; none if there is no such listener.
    pub(crate) fn chains(&self, listener: &str) -> Vec<String> {
        if !self.0.of(Kind::Listener).contains_key(listener) {
            return Vec::new();
        }
        self.listener(listener).filter_chains.into_iter().map(|c| c.name).collect()
    }

    pub(crate) fn chain(&self, listener: &str, name: &str) -> FilterChain {
        let chains = self.listener(listener).filter_chains;
        chains.into_iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no chain {name}"))
    }

    /// Addresses of a cluster's endpoints.
    pub(crate) fn endpoints(&self, cluster: &str) -> Vec<String> {
        let assignment: ClusterLoadAssignment = self.decoded(Kind::Endpoint, cluster);
        let all = assignment.endpoints.into_iter().flat_map(|group| group.lb_endpoints);
        all.map(|e| match e.host_identifier {
            Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)) => address(endpoint.address.unwrap()),
            other => panic!("{other:?}"),
        })
        .collect()
    }
}

/// A filter's configuration, decoded.
pub(crate) fn filter<M: Message + Default>(chain: &FilterChain, name: &str) -> Option<M> {
    let found = chain.filters.iter().find(|f| f.name == name)?;
    let Some(filter::ConfigType::TypedConfig(any)) = &found.config_type else { panic!("{found:?}") };
    Some(M::decode(any.value.as_slice()).unwrap())
}

/// `<address>:<port>`
pub(crate) fn address(address: envoy_types::pb::envoy::config::core::v3::Address) -> String {
    use envoy_types::pb::envoy::config::core::v3::{address, socket_address};
    match address.address {
        Some(address::Address::SocketAddress(socket)) => match socket.port_specifier {
            Some(socket_address::PortSpecifier::PortValue(port)) => format!("{}:{port}", socket.address),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// A pod of the namespace `shop` with a sidecar; its labels are `app: <app>` and its account is `app` too.
pub(crate) fn pod(name: &str, app: &str, ips: &[&str]) -> Value {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": app, "osm-proxy-uuid": name}},
        "spec": {"serviceAccountName": app, "containers": []},
        "status": {"podIPs": ips}})
}

/// A service of the namespace `shop` over the pods of `app`.
pub(crate) fn service(name: &str, app: &str, cluster_ip: &str, ports: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": cluster_ip, "selector": {"app": app}, "ports": ports}})
}

/// MeshConfig.
pub(crate) fn config(spec: Value) -> Value {
    object("config.openservicemesh.io/v1alpha2", "MeshConfig", "osm-system", "osm-mesh-config", spec)
}

/// Permissive mode.
pub(crate) fn permissive() -> Value {
    config(json!({"traffic": {"enablePermissiveTrafficPolicyMode": true}}))
}

/// An HTTPRouteGroup `all` for everything and a TCPRoute `tcp` for all ports.
pub(crate) fn any_routes() -> [Value; 2] {
    [
        object("specs.smi-spec.io/v1alpha4", "HTTPRouteGroup", "shop", "all", json!({"matches": [{"name": "all"}]})),
        object("specs.smi-spec.io/v1alpha4", "TCPRoute", "shop", "tcp", json!({})),
    ]
}

/// A TrafficTarget by which `source` may use `route` of `destination`.
pub(crate) fn target(source: &str, destination: &str, kind: &str, route: &str) -> Value {
    let account = |name: &str| json!({"kind": "ServiceAccount", "name": name});
    let spec = json!({"destination": account(destination), "sources": [account(source)], "rules": [{"kind": kind, "name": route}]});
    let name = format!("{source}-{destination}-{route}");
    object("access.smi-spec.io/v1alpha3", "TrafficTarget", "shop", &name, spec)
}

/// An object.
pub(crate) fn object(api_version: &str, kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// A policy of OSM in the namespace `shop`.
pub(crate) fn policy(kind: &str, name: &str, spec: Value) -> Value {
    object("policy.openservicemesh.io/v1alpha1", kind, "shop", name, spec)
}
