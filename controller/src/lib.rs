//! The control plane of oxmesh: Kubernetes objects in, xDS out.
//!
//! Objects come from a source, become an immutable mesh, and are rendered for each connected
//! proxy; only what changed is sent. Identity comes from certificates, never from what a proxy says.

mod admin;
pub mod api;
pub mod app;
pub mod bootstrap;
pub mod error;
pub mod identity;
pub mod inject;
pub mod kubernetes;
pub mod lint;
pub mod mesh;
pub mod metrics;
mod readiness;
pub mod settings;
mod shared;
pub mod source;
pub mod xds;
