//! HTTP connections: the server, and the policies that a request passes on its way upstream.

pub mod path;
mod runtime;
mod stats;

pub use runtime::{HttpRuntime, Routes};
