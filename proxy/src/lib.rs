//! The data plane of oxmesh: a sidecar proxy that reads Envoy's configuration language.
//!
//! The path of a request: accept → original destination → listener filters (detect TLS, HTTP, opaque) → filter chain →
//! TLS accept, peer identity → network RBAC, connection limits → HTTP codec → snapshot loaded once → virtual host, route →
//! RBAC → local limit → header edits → weighted target → deadline → retry → circuit permit → endpoint → pooled or new
//! connection → stream both ways → observe, release.
//!
//! The floors, lowest first; a module imports its own floor and those above it in this list:
//!
//! 1. `config`, `body`, `drain`, `args`, `logging`
//! 2. `telemetry`, `error`, `tls`
//! 3. `upstream`
//! 4. `snapshot`, `net`, `tcp`, `http`: a chain of the snapshot holds the running state of its last filter
//! 5. `xds`, `bootstrap`, `identity`
//! 6. `admin`, `healthcheck`, `app`

pub mod admin;
pub mod app;
pub mod args;
pub mod body;
pub mod bootstrap;
pub mod config;
pub mod drain;
pub mod error;
pub mod healthcheck;
pub mod http;
pub mod identity;
pub mod logging;
pub mod net;
pub mod snapshot;
pub mod tcp;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod upstream;
pub mod xds;
