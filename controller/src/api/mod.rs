//! The objects that configure the mesh, as typed Kubernetes objects.
//!
//! One struct per kind, with the fields of OSM's CRDs and of the SMI specifications under their own names.
//! Parsing is strict: a field that we don't know is an error that names its path, never dropped in silence.
//! Nothing here judges meaning (is the service there, is the duration valid): that is [`crate::mesh`]'s part.

mod config;
mod crd;
mod egress;
mod extension_service;
mod ingress_backend;
mod mesh_root_certificate;
mod objects;
mod parse;
mod retry;
mod smi;
mod telemetry;
mod upstream_traffic_setting;

pub use config::*;
pub use crd::{crds, crds_yaml, custom_resources};
pub use egress::*;
pub use extension_service::*;
pub use ingress_backend::*;
pub use mesh_root_certificate::*;
pub use objects::{Key, Objects};
pub use parse::{Object, ParseError, Parsed, parse};
pub use retry::*;
pub use smi::*;
pub use telemetry::*;
pub use upstream_traffic_setting::*;

/// Kubernetes' own kinds that the mesh reads.
pub mod core {
    pub use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
    pub use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceAccount};
    pub use k8s_openapi::api::discovery::v1::EndpointSlice;
    pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
}

/// What the controller answers to an object; never read as input.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct PolicyStatus {
    /// `committed`, `error` or `pending`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_status: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A reference to an object of a named kind: OSM's `{kind, name, namespace}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KindRef {
    /// The kind, such as `ServiceAccount` or `Service`.
    pub kind: String,
    /// The object's name.
    pub name: String,
    /// The object's namespace.
    #[serde(default)]
    pub namespace: String,
}

/// A reference to an object in the same namespace: Kubernetes' `TypedLocalObjectReference`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalRef {
    /// API group and version as OSM's users write it, such as `specs.smi-spec.io/v1alpha4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_group: Option<String>,
    /// The kind, such as `HTTPRouteGroup`.
    pub kind: String,
    /// The object's name.
    pub name: String,
}
