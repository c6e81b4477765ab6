//! What the proxy tells about itself: statistics and access logs.
//!
//! Owns the registry of series with its renderers and the access log writers. Decides nothing: callers keep handles and
//! fill records. A handle costs one atomic operation; a log that is not configured costs nothing.

pub mod access_log;
pub mod listener;
pub mod mesh;
pub mod metrics;
mod render;
mod scope;
pub mod server;

pub use self::{
    metrics::{Active, Registry},
    render::{Filter, Format, Kind},
    scope::Scope,
};
