//! What the command line does with a mesh on Kubernetes: install, look after, remove.
//!
//! Objects are read and written with the user's own rights. What is found out is judged by pure functions, which the
//! tests drive; progress goes to standard error, results to standard output.

mod chart;
pub mod check;
mod connect;
mod forward;
mod helm;
pub mod install;
mod labels;
pub mod mesh;
pub mod metrics;
pub mod namespace;
pub mod proxy;
pub mod top;
pub mod uninstall;
pub mod version;

pub use connect::{Cluster, ClusterArgs};
