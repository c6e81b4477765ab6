//! All objects of a mesh, by kind and name: the only input of [`crate::mesh`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::core::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use super::core::{EndpointSlice, Namespace, ObjectMeta, Pod, Service, ServiceAccount};
use super::parse::Object;
use super::{
    Egress, ExtensionService, HTTPRouteGroup, IngressBackend, MeshConfig, MeshRootCertificate, Retry, TCPRoute,
    Telemetry, TrafficSplit, TrafficTarget, UDPRoute, UpstreamTrafficSetting,
};

/// Namespace and name of an object; the namespace is empty for cluster-scoped kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The key of `name` in `namespace`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object. An object without a namespace is in `default`, as with kubectl.
    #[must_use]
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self {
            namespace: metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }

    /// The key of a cluster-scoped object.
    #[must_use]
    pub fn cluster(metadata: &ObjectMeta) -> Self {
        Self { namespace: String::new(), name: metadata.name.clone().unwrap_or_default() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Writes the collection, with one map per kind, and what must be done for each of them.
macro_rules! objects {
    ($($(#[$doc:meta])* $field:ident: $kind:ident, $name:literal, $key:path;)*) => {
        /// All objects of a mesh. Maps are sorted, so that everything made of them comes in the same order each time.
        /// Copies share the objects.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Objects {
            $($(#[$doc])* pub $field: BTreeMap<Key, Arc<$kind>>,)*
        }

        impl Objects {
            /// Takes in `object`, in place of one of the same kind and name if there is one.
            /// Says whether there was one: in a folder that means the object is written twice.
            pub fn insert(&mut self, object: Object) -> bool {
                match object {
                    $(Object::$kind(o) => self.$field.insert($key(&o.metadata), Arc::from(o)).is_some(),)*
                }
            }

            /// Whether there is an object equal to `object`.
            #[must_use]
            pub fn holds(&self, object: &Object) -> bool {
                match object {
                    $(Object::$kind(o) => self.$field.get(&$key(&o.metadata)).is_some_and(|held| **held == **o),)*
                }
            }

            /// Takes out the object of this kind and name, and says whether there was one.
            pub fn remove(&mut self, kind: &str, key: &Key) -> bool {
                match kind {
                    $($name => self.$field.remove(key).is_some(),)*
                    _ => false,
                }
            }

            /// Keeps the objects for which `keep` says so, by kind and name.
            pub fn retain(&mut self, keep: impl Fn(&'static str, &Key) -> bool) {
                $(self.$field.retain(|key, _| keep($name, key));)*
            }

            /// Names of all objects of a kind.
            #[must_use]
            pub fn names(&self, kind: &str) -> Vec<Key> {
                match kind {
                    $($name => self.$field.keys().cloned().collect(),)*
                    _ => Vec::new(),
                }
            }

            /// The metadata of the object of this kind and name.
            #[must_use]
            pub fn metadata(&self, kind: &str, key: &Key) -> Option<&ObjectMeta> {
                match kind {
                    $($name => self.$field.get(key).map(|object| &object.metadata),)*
                    _ => None,
                }
            }

            /// Whether there is an object of this kind and name.
            #[must_use]
            pub fn contains(&self, kind: &str, key: &Key) -> bool {
                match kind {
                    $($name => self.$field.contains_key(key),)*
                    _ => false,
                }
            }

            /// How many objects there are of all kinds.
            #[must_use]
            pub fn len(&self) -> usize {
                0 $(+ self.$field.len())*
            }

            /// Whether there are none.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }
        }

        impl Object {
            /// The object's kind, as manifests spell it.
            #[must_use]
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$kind(_) => $name,)* }
            }

            /// The object's namespace and name.
            #[must_use]
            pub fn key(&self) -> Key {
                match self { $(Self::$kind(o) => $key(&o.metadata),)* }
            }
        }
    };
}

objects! {
    /// Namespaces.
    namespaces: Namespace, "Namespace", Key::cluster;
    /// Service accounts.
    service_accounts: ServiceAccount, "ServiceAccount", Key::of;
    /// Services.
    services: Service, "Service", Key::of;
    /// Endpoint slices.
    endpoint_slices: EndpointSlice, "EndpointSlice", Key::of;
    /// Pods.
    pods: Pod, "Pod", Key::of;
    /// Deployments.
    deployments: Deployment, "Deployment", Key::of;
    /// Stateful sets.
    stateful_sets: StatefulSet, "StatefulSet", Key::of;
    /// Daemon sets.
    daemon_sets: DaemonSet, "DaemonSet", Key::of;
    /// Replica sets.
    replica_sets: ReplicaSet, "ReplicaSet", Key::of;
    /// Mesh-wide settings.
    mesh_configs: MeshConfig, "MeshConfig", Key::of;
    /// Roots of trust.
    mesh_root_certificates: MeshRootCertificate, "MeshRootCertificate", Key::of;
    /// Helper services.
    extension_services: ExtensionService, "ExtensionService", Key::of;
    /// Egress policies.
    egresses: Egress, "Egress", Key::of;
    /// Ingress policies.
    ingress_backends: IngressBackend, "IngressBackend", Key::of;
    /// Retry policies.
    retries: Retry, "Retry", Key::of;
    /// Limits of services.
    upstream_traffic_settings: UpstreamTrafficSetting, "UpstreamTrafficSetting", Key::of;
    /// Access logs.
    telemetries: Telemetry, "Telemetry", Key::of;
    /// Access policies.
    traffic_targets: TrafficTarget, "TrafficTarget", Key::of;
    /// HTTP requests, described.
    http_route_groups: HTTPRouteGroup, "HTTPRouteGroup", Key::of;
    /// TCP connections, described.
    tcp_routes: TCPRoute, "TCPRoute", Key::of;
    /// UDP packets, described.
    udp_routes: UDPRoute, "UDPRoute", Key::of;
    /// Splits.
    traffic_splits: TrafficSplit, "TrafficSplit", Key::of;
}
