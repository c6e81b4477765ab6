//! The five kinds of resources and the order in which a change of them is safe.
//!
//! Make before break: a cluster and its endpoints are there before a listener or route names them,
//! and a cluster goes only after everything that named it has been replaced.

use std::fmt;

/// A kind of resource, in push order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `envoy.config.cluster.v3.Cluster`
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`
    Endpoint,
    /// `envoy.config.listener.v3.Listener`
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration`
    Route,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret`
    Secret,
}

impl Kind {
    /// Every kind in push order: CDS, EDS, LDS, RDS, SDS.
    pub const ALL: [Self; 5] = [Self::Cluster, Self::Endpoint, Self::Listener, Self::Route, Self::Secret];

    /// The type URL on the wire.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// The kind with this type URL, if it is one that we serve.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// The usual short name: `CDS`, `EDS`, `LDS`, `RDS`, `SDS`.
    pub fn short(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::Endpoint => "EDS",
            Self::Listener => "LDS",
            Self::Route => "RDS",
            Self::Secret => "SDS",
        }
    }

    /// Whether a response of the state-of-the-world protocol is the full state, so that absence
    /// means removal, and whether an empty subscription means everything.
    pub fn is_whole(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// This kind's place in arrays of five.
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}
