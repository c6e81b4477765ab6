//! Putting a sidecar into a pod that is being created.
//!
//! [`inject`] is pure: the pod as the API server sent it, its namespace and MeshConfig in, a JSON patch or a refusal with
//! words out. The modules behind it: [`decision`] (whether), [`guard`] (what a pod must not have), [`exclusions`],
//! [`annotations`], [`rewrite`] (probes), [`containers`], [`patch`]. [`serve()`] is the webhook around it. Nothing of the
//! application is changed or lost but what the patch must change.

pub mod annotations;
mod ca_bundle;
mod certificate;
pub mod containers;
pub mod decision;
pub mod exclusions;
pub mod guard;
pub mod patch;
pub mod refusal;
pub mod rewrite;
mod run;
mod secrets;
mod server;
mod webhook;

use std::net::IpAddr;

use json_patch::Patch;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use serde_json::Value;

use crate::api::MeshConfigSpec;
use crate::bootstrap::probes::Probes;
use crate::identity::ServiceIdentity;

pub(crate) use ca_bundle::await_it as await_ca_bundle;
pub use decision::{Decision, Why};
pub use guard::Marks;
pub use refusal::Refusal;
pub use run::Options;
pub(crate) use run::run;
pub use webhook::{Injector, InjectorTls, Snapshots, serve};

/// Which program is the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DataPlane {
    /// Our own proxy; it makes its key in the pod and has its certificates signed.
    Oxmesh,
    /// Envoy, with a certificate in a Secret as OSM does.
    Envoy,
}

impl DataPlane {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "oxmesh" => Some(Self::Oxmesh),
            "envoy" => Some(Self::Envoy),
            _ => None,
        }
    }
}

/// Whether sidecars are init containers that keep running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum NativeSidecars {
    /// If the API server knows them (Kubernetes 1.29 and later).
    Auto,
    /// Yes; no pod is reviewed while the API server doesn't know them.
    Always,
    /// No: they are the first of the ordinary containers, for nodes older than 1.29.
    Never,
}

/// What the operator chose for all pods, apart from MeshConfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The mesh's name.
    pub mesh_name: String,
    /// The control plane's namespace, whose pods never get a sidecar.
    pub osm_namespace: String,
    /// The last part of every identity.
    pub trust_domain: String,
    /// Image of our proxy.
    pub proxy_image: String,
    /// Image of the init program.
    pub init_image: String,
    /// Image of Envoy; empty if none was chosen.
    pub envoy_image: String,
    /// The sidecar where neither pod nor namespace chooses.
    pub data_plane: DataPlane,
    /// Sidecars are init containers that keep running.
    pub native_sidecars: bool,
    /// Where sidecars listen for probes: 0.0.0.0, or `::` (IPv4 too) in clusters with IPv6.
    pub probe_address: IpAddr,
}

/// What one pod is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The pod's namespace.
    pub namespace: &'a Namespace,
    /// MeshConfig, if there is one.
    pub mesh_config: Option<&'a MeshConfigSpec>,
    /// What ties the pod to its sidecar's certificate; becomes its label `osm-proxy-uuid`.
    pub uuid: &'a str,
    /// The roots that the sidecar trusts as its control plane's, PEM.
    pub trust_bundle: &'a str,
}

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It gets no sidecar.
    Left(Why),
    /// It has its sidecar already, under this uuid.
    Already(String),
    /// It gets one.
    Injected(Box<Injection>),
}

/// A pod with its sidecar.
#[derive(Debug, Clone, PartialEq)]
pub struct Injection {
    /// From the pod as it came to the pod as it is to be.
    pub patch: Patch,
    /// The pod as it is to be.
    pub pod: Value,
    /// Which program is the sidecar.
    pub data_plane: DataPlane,
    /// Who the pod runs as.
    pub identity: ServiceIdentity,
    /// What its bootstrap serves.
    pub probes: Probes,
    /// What the pod's author should know.
    pub warnings: Vec<String>,
}

/// Decides about a pod, and puts the sidecar in. Same input, same patch.
///
/// # Errors
/// [`Refusal`] says which field or annotation is in the way, and what to do.
pub fn inject(raw: &Value, request: &Request<'_>, settings: &Settings) -> Result<Outcome, Refusal> {
    let pod: Pod = serde_json::from_value(raw.clone()).map_err(|error| Refusal::Malformed(error.to_string()))?;
    if let Decision::Leave(why) = decision::decide(&pod, request.namespace, settings)? {
        return Ok(Outcome::Left(why));
    }
    match guard::marks(&pod)? {
        Marks::Ours(uuid) => return Ok(Outcome::Already(uuid)),
        Marks::None => guard::check(&pod)?,
    }
    patch::build(raw, pod, request, settings).map(|injection| Outcome::Injected(Box::new(injection)))
}

/// Label of a pod that has a sidecar.
pub use crate::mesh::PROXY_UUID_LABEL;
/// Names of the containers that are ours: init, sidecar, answering TCP probes beside Envoy.
pub const CONTAINERS: [&str; 3] = [INIT, SIDECAR, HEALTHCHECK];
/// Names of the volumes that are ours.
pub const VOLUMES: [&str; 3] = [BOOTSTRAP_VOLUME, IDENTITY_VOLUME, TOKEN_VOLUME];
/// The user and the group that the sidecar runs as; what this user sends is not redirected.
pub const UID: i64 = 1500;

const INIT: &str = "osm-init";
const SIDECAR: &str = "envoy";
const HEALTHCHECK: &str = "osm-healthcheck";
const BOOTSTRAP_VOLUME: &str = "envoy-bootstrap-config-volume";
const IDENTITY_VOLUME: &str = "oxmesh-identity";
const TOKEN_VOLUME: &str = "oxmesh-token";

/// The ports that are the sidecar's own.
#[must_use]
pub fn is_our_port(port: i64) -> bool {
    matches!(port, 15_000 | 15_001 | 15_003 | 15_010) || (15_901..=i64::from(LAST_PROBE_PORT)).contains(&port)
}

/// Answers probes of TCP ports.
const HEALTHCHECK_PORT: u16 = 15_904;
/// The first port for gRPC probes: one for each port that the application has such probes on, in the order in which
/// they stand in the pod.
const FIRST_GRPC_PORT: u16 = 15_905;
/// The last port for gRPC probes.
const LAST_PROBE_PORT: u16 = 15_919;
