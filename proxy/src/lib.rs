//! The data plane of oxmesh: a sidecar proxy that reads Envoy's configuration language.
//!
//! The path of a request: accept → original destination → listener filters (detect TLS, HTTP, opaque) → filter chain →
//! TLS accept, peer identity → network RBAC, connection limits → HTTP codec → snapshot loaded once → virtual host, route →
//! RBAC → local limit → header edits → weighted target → deadline → retry → circuit permit → endpoint → pooled or new
//! connection → stream both ways → observe, release.
//!
//! A module imports only what stands above it in this list: `config`, `body`, `telemetry`, `error`, `tls`, `upstream`,
//! `drain`, `snapshot`, `net`, `tcp`, `http`, `xds`, `bootstrap`, `admin`, `app`.

pub mod admin;
pub mod app;
pub mod args;
pub mod body;
pub mod bootstrap;
pub mod config;
pub mod drain;
pub mod error;
pub mod http;
pub mod logging;
pub mod net;
pub mod snapshot;
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod xds;
