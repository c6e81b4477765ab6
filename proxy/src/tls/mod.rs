//! TLS: configurations built from `config::tls` and resolved secrets, and who the peer is.
//!
//! Owns certificates, verification and handshakes; does not decide what a peer may do. The one provider is aws-lc-rs,
//! handed over explicitly. A configuration is built once per secret version and never changed: a new secret means a new
//! [`ServerTls`] or [`ClientTls`], so nothing that was checked against an old trust bundle is trusted by a new one.
//!
//! Resumption: a resumed session skips certificate verification. So it is off wherever a peer's certificate is checked
//! (servers that ask for one, all clients). Servers that ask for none use tickets whose keys live and die with the
//! configuration.

mod client;
mod identity;
mod secrets;
mod server;
mod verify;

pub use client::ClientTls;
pub use identity::{BadIdentity, PeerIdentity};
pub use secrets::{BuildError, ResolvedSecrets};
pub use server::ServerTls;

use std::{io, sync::Arc};

use rustls::{ProtocolVersion, SupportedCipherSuite};

/// What a finished handshake agreed on.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// The peer's verified identity. None when it sent no certificate, or (client side) when no validation context is
    /// configured: an unverified certificate is no identity.
    pub peer: Option<Arc<PeerIdentity>>,
    /// Server name the client asked for.
    pub server_name: Option<String>,
    /// Protocol negotiated by ALPN.
    pub alpn: Option<Vec<u8>>,
    /// Protocol version.
    pub version: Option<ProtocolVersion>,
    /// Cipher suite.
    pub cipher: Option<SupportedCipherSuite>,
}

impl Handshake {
    /// Version as Envoy logs it: `TLSv1.3`.
    #[must_use]
    pub fn version_word(&self) -> &'static str {
        match self.version {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "",
        }
    }
}

/// Why a handshake failed, with words for logs (`UPSTREAM_TRANSPORT_FAILURE_REASON` and its downstream twin).
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's certificate was refused by us.
    #[error("peer certificate refused: {why}")]
    PeerRefused {
        /// In words.
        why: String,
        /// It is trusted, but none of its names is allowed.
        wrong_name: bool,
        /// There was none.
        no_certificate: bool,
    },
    /// The peer sent an alert: usually it refused ours.
    #[error("peer sent alert {0}")]
    Alert(String),
    /// Not TLS, or no common version, suite or protocol.
    #[error("TLS error: {0}")]
    Protocol(String),
    /// The transport broke.
    #[error("connection broke during the TLS handshake: {0}")]
    Io(io::Error),
}

impl From<io::Error> for HandshakeError {
    fn from(e: io::Error) -> Self {
        let tls = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::InvalidCertificate(why)) => Self::PeerRefused {
                why: verify::words(why),
                wrong_name: verify::is_wrong_name(why),
                no_certificate: false,
            },
            Some(rustls::Error::NoCertificatesPresented) => {
                Self::PeerRefused { why: "it presented none".to_owned(), wrong_name: false, no_certificate: true }
            }
            Some(rustls::Error::AlertReceived(alert)) => Self::Alert(format!("{alert:?}")),
            Some(other) => Self::Protocol(other.to_string()),
            None => Self::Io(e),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
