//! Rendering: a mesh and one of its sidecars give the resources that the sidecar should have.
//!
//! Pure, and the same input gives the same bytes: everything is sorted, and messages with maps are encoded in key order,
//! so that a hash of the content is a version. Names, ports, server names and shapes are OSM's; `docs/differences.md`
//! lists where we differ.

mod access_log;
mod cluster;
mod inbound;
mod listener;
mod message;
mod outbound;
mod rbac;
mod route;
mod sorted;
mod tls;

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::accesslog::v3::AccessLog as LogEntry;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::google::protobuf::Any;

pub use self::tls::{IDENTITY_DIR, SERVICE_CERT_FILE, SERVICE_CERT_SECRET};
use super::Kind;
use crate::identity::SidecarIdentity;
use crate::mesh::{Mesh, Workload};

/// Key material for one sidecar.
#[derive(Clone, Copy)]
pub struct Issued<'a> {
    /// The workload's certificate and those between it and a root, PEM.
    pub chain_pem: &'a str,
    /// The workload's private key, PEM.
    pub key_pem: &'a str,
    /// All roots that are trusted, PEM.
    pub roots_pem: &'a str,
}

impl std::fmt::Debug for Issued<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").finish_non_exhaustive()
    }
}

/// All resources of one sidecar.
#[derive(Clone, Default, PartialEq)]
pub struct Resources {
    by_kind: BTreeMap<Kind, BTreeMap<String, Any>>,
}

/// Names only: a secret's content must not reach a log.
impl std::fmt::Debug for Resources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.by_kind.iter().map(|(kind, all)| (kind, all.keys().collect::<Vec<_>>()))).finish()
    }
}

impl Resources {
    /// The resources of one kind by name, encoded.
    #[must_use]
    pub fn of(&self, kind: Kind) -> &BTreeMap<String, Any> {
        static NONE: BTreeMap<String, Any> = BTreeMap::new();
        self.by_kind.get(&kind).unwrap_or(&NONE)
    }

    fn put(&mut self, kind: Kind, message: impl Named) {
        self.put_any(kind, message.name().to_owned(), message::any(&message));
    }

    fn put_any(&mut self, kind: Kind, name: String, message: Any) {
        self.by_kind.entry(kind).or_default().insert(name, message);
    }
}

/// A resource that knows its name.
trait Named: prost::Message + prost::Name {
    fn name(&self) -> &str;
}

macro_rules! named {
    ($($message:ident . $field:ident),*) => {
        $(impl Named for $message {
            fn name(&self) -> &str {
                &self.$field
            }
        })*
    };
}
named!(Cluster.name, ClusterLoadAssignment.cluster_name, Listener.name, Secret.name);

/// Where a sidecar finds its own certificate.
#[derive(Clone, Copy)]
enum OwnCertificate<'a> {
    /// In a secret over ADS.
    Sent { chain_pem: &'a str, key_pem: &'a str },
    /// In a file that it wrote itself.
    InPod,
}

/// What is rendered.
struct Scene<'a> {
    mesh: &'a Mesh,
    workload: &'a Workload,
    certificate: OwnCertificate<'a>,
    roots_pem: &'a str,
    log: LogEntry,
}

/// Renders the resources of `proxy`; `None` if the mesh has no such workload, which then must get nothing.
#[must_use]
pub fn build(mesh: &Mesh, proxy: &SidecarIdentity, issued: &Issued<'_>) -> Option<Resources> {
    let certificate = OwnCertificate::Sent { chain_pem: issued.chain_pem, key_pem: issued.key_pem };
    render(mesh, proxy, certificate, issued.roots_pem)
}

/// The same for a sidecar whose key is its pod's own: it finds its certificate in [`SERVICE_CERT_FILE`].
#[must_use]
pub fn build_key_in_pod(mesh: &Mesh, proxy: &SidecarIdentity, roots_pem: &str) -> Option<Resources> {
    render(mesh, proxy, OwnCertificate::InPod, roots_pem)
}

fn render(mesh: &Mesh, proxy: &SidecarIdentity, certificate: OwnCertificate<'_>, roots_pem: &str) -> Option<Resources> {
    let workload = mesh.workload_of(proxy)?;
    let log = access_log::entry(mesh.access_log(workload));
    let scene = Scene { mesh, workload, certificate, roots_pem, log };
    let mut resources = Resources::default();
    inbound::add(&scene, &mut resources);
    outbound::add(&scene, &mut resources);
    Some(resources)
}
