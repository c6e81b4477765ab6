//! What the operator chose for a whole control plane, apart from MeshConfig.
//!
//! Plain values, read once at start; everything that may change while running is in MeshConfig.

use ipnet::Ipv4Net;

/// Facts of the installation that rules and rendering need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The mesh's name: namespaces with the label `openservicemesh.io/monitored-by: <name>` belong to it.
    /// Default `osm`.
    pub mesh_name: String,
    /// The last part of every identity: `<serviceAccount>.<namespace>.<trust domain>`.
    /// Default `cluster.local`.
    pub trust_domain: String,
    /// The control plane's own namespace. Default `osm-system`.
    pub osm_namespace: String,
    /// Where services without a `clusterIP` get one from (folder source only).
    /// Default 10.96.0.0/16, as most clusters have.
    pub service_cidr: Ipv4Net,
    /// Pods get their sidecars from this control plane's injector: so in a cluster. Default false, as with folders.
    pub injects: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mesh_name: "osm".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            osm_namespace: "osm-system".to_owned(),
            service_cidr: Ipv4Net::new([10, 96, 0, 0].into(), 16).expect("16 is a prefix length"),
            injects: false,
        }
    }
}
