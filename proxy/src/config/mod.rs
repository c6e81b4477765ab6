//! What was asked for, as data that cannot hold an invalid value, and the pure match functions over it.
//!
//! Nothing here knows tokio, sockets or protobuf: `xds::convert` makes these types, everything else reads them.
//! All types are cheap to share (`Arc`) and comparable, so that a new snapshot can carry over what did not change.

pub mod access_log;
pub mod chain_index;
pub mod cluster;
pub mod flags;
pub mod headers;
pub mod hosts;
pub mod http;
pub mod listener;
pub mod matcher;
pub mod ratelimit;
pub mod rbac;
pub mod route;
pub mod route_match;
pub mod tls;

use std::{sync::Arc, time::Duration};

/// A name shared by many owners: of a cluster, a route table, a listener, a secret.
pub type Name = Arc<str>;

/// A resource that another one asks for over ADS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: Name,
    /// How long it is waited for (`ConfigSource.initial_fetch_timeout`), zero = without end; none = as long as the stream's
    /// clusters and listeners are waited for.
    pub patience: Option<Duration>,
}

impl<N: Into<Name>> From<N> for Wanted {
    fn from(name: N) -> Self {
        Self { name: name.into(), patience: None }
    }
}
