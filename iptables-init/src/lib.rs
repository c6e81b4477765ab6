//! Redirects a pod's TCP traffic to its sidecar, for IPv4 and IPv6.
//!
//! [`rules::render`] is pure: options in, the text for `iptables-restore` out. [`apply`] programs
//! it in one transaction per family and reads it back. Nothing is left half done: a family that
//! can't be programmed is an error, never a pod whose traffic passes the sidecar by.

pub mod apply;
pub mod options;
pub mod rules;
pub mod saved;

pub use options::Options;
pub use rules::Family;
