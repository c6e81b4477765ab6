//! xDS, the server's side: which resources a proxy should have, and telling it.
//!
//! `session` is the protocol without any input or output, `cache` the hashed state of one proxy,
//! `order` the order in which kinds are sent, `server` the gRPC service.

pub mod build;
pub mod cache;
mod order;
pub mod server;
pub mod session;
mod world;

pub use order::Kind;
pub use world::World;
