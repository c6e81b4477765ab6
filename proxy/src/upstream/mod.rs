//! Clusters at run time: endpoints, picking one, limits, pooled connections, statistics.
//!
//! Owns everything that outlives a swap of configuration: loads, permits, connections. Does not decide where a request
//! goes (routes) nor whether it is tried again (retry policy). A [`Cluster`] is made once per [`ClusterSpec`] and carried
//! from snapshot to snapshot while the spec stays equal; new endpoints and new secrets are put into it.
//!
//! [`ClusterSpec`]: crate::config::cluster::ClusterSpec

mod balance;
mod checkout;
mod cluster;
mod connect;
mod dns;
mod endpoint;
mod error;
mod h2;
mod io;
mod lease;
mod limits;
mod original_dst;
mod pool;
mod send;
mod shape;
mod stats;
mod upgrade;

pub use cluster::{Cluster, PickContext, Upstreams, Version};
pub use connect::UpstreamConn;
pub use dns::{Resolve, Resolved, SystemResolver};
pub use endpoint::{Endpoint, Host, Hosts};
pub use error::{ErrorKind, NoEndpoint, Overflow, UpstreamError};
pub use limits::{RequestPermit, RetryPermit};
pub use send::{Answer, SendOptions};
pub use stats::ClusterStats;
pub use upgrade::{Upgrade, UpgradedIo};

#[cfg(test)]
mod tests;
