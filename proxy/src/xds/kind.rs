//! The five kinds of resource, in the order in which they are asked for.

use std::sync::Arc;

use prost::Message;

use super::convert;
use crate::config::Name;

/// A kind of resource. The order is that of make before break: clusters, endpoints, secrets, listeners, routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// SDS.
    Secret,
    /// LDS.
    Listener,
    /// RDS.
    Routes,
}

impl Kind {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Cluster, Self::Endpoints, Self::Secret, Self::Listener, Self::Routes];

    /// Type URL on the wire.
    #[must_use]
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => convert::CLUSTER,
            Self::Endpoints => convert::ASSIGNMENT,
            Self::Secret => convert::SECRET,
            Self::Listener => convert::LISTENER,
            Self::Routes => convert::ROUTES,
        }
    }

    /// The kind with this type URL.
    #[must_use]
    pub fn of_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Short name in logs and statistics: `cds`, `eds`, `sds`, `lds`, `rds`.
    #[must_use]
    pub fn service(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoints => "eds",
            Self::Secret => "sds",
            Self::Listener => "lds",
            Self::Routes => "rds",
        }
    }

    /// All resources are asked for without naming them, and what a full answer lacks is gone.
    #[must_use]
    pub fn is_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

/// The name of an encoded resource: field 1 in all five kinds. Works on resources whose other fields are no good, so
/// that a refusal can be pinned to its resource. None = not even that can be read, or it is empty.
#[must_use]
pub fn name_of(encoded: &[u8]) -> Option<Name> {
    #[derive(prost::Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    Named::decode(encoded).ok().filter(|named| !named.name.is_empty()).map(|named| Arc::from(named.name))
}
