//! What is known of a downstream connection.

use std::{net::SocketAddr, ops::Deref, sync::Arc};

use crate::{
    config::{listener::Direction, rbac::PeerNames},
    telemetry::access_log::Connection,
    tls::PeerIdentity,
};

/// A downstream connection that has its filter chain. Cheap to share in an `Arc`; never changes.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    /// Addresses, TLS and names, as access logs print them. Also reached by deref.
    pub connection: Arc<Connection>,
    /// Where the client dialled, when the connection was redirected to us.
    pub original_destination: Option<SocketAddr>,
    /// The TLS peer's verified identity; none when it sent no certificate or there is no TLS.
    pub identity: Option<Arc<PeerIdentity>>,
    /// ALPN protocol negotiated in our TLS handshake.
    pub alpn: Option<Vec<u8>>,
    /// Direction of the listener.
    pub direction: Direction,
    /// The worker that owns the connection.
    pub worker: usize,
}

impl Deref for ConnInfo {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl ConnInfo {
    /// Where the connection was sent to: the original destination, else our own address.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.original_destination.unwrap_or(self.connection.local)
    }

    /// What access rules see of the TLS peer; none for plaintext.
    #[must_use]
    pub fn peer_names(&self) -> Option<PeerNames<'_>> {
        self.connection.tls_version?;
        Some(self.identity.as_deref().map_or_else(PeerNames::default, |identity| PeerNames {
            uri_sans: &identity.uri_sans,
            dns_sans: &identity.dns_sans,
            subject: Some(&identity.subject_rfc2253),
        }))
    }
}
