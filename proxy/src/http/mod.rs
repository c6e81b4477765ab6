//! HTTP connections: the server, and the policies that a request passes on its way upstream.
//!
//! `server` owns connections; `stack` is the one place where the policies are put in order, each in a file of its own;
//! `runtime` holds what managers and route tables keep between requests. Framing is hyper's, connections to servers are
//! `upstream`'s.

mod admit;
mod attempt;
mod canonical;
mod deadline;
mod direct;
mod edits;
mod exchange;
mod filters;
mod frames;
mod identify;
mod life;
pub mod path;
mod rate_limit;
mod rbac;
mod record;
mod replay;
mod reply;
mod retry;
mod route;
mod runtime;
mod server;
mod stack;
mod stats;
mod step;
mod target;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod upgrade;
mod upload;

pub use runtime::{HttpRuntime, Routes};
pub use server::serve_connection;
