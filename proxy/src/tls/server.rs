//! The server's side of TLS.

use std::sync::Arc;

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, NoClientAuth, NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    BuildError, Handshake, HandshakeError, ResolvedSecrets,
    secrets::Parts,
    verify::{ClientVerifier, Identities},
};
use crate::config::tls::DownstreamTls;

/// A server configuration for one version of its secrets.
#[derive(Clone)]
pub struct ServerTls {
    acceptor: TlsAcceptor,
    identities: Arc<Identities>,
}

impl ServerTls {
    /// Builds the configuration: PEM parsed, key checked against its certificate.
    ///
    /// # Errors
    /// [`BuildError`] naming the secret or the part of the context at fault.
    pub fn build(spec: &DownstreamTls, secrets: &ResolvedSecrets) -> Result<Self, BuildError> {
        let Parts { provider, versions, key, trust } = Parts::new(&spec.common, secrets)?;
        let key = key.ok_or_else(|| BuildError::Context("a server needs a certificate".to_owned()))?;
        let identities = Arc::new(Identities::default());
        let asks_for_certificate = trust.is_some();
        let verifier: Arc<dyn ClientCertVerifier> = match trust {
            Some(trust) => {
                let required = spec.require_client_certificate;
                Arc::new(ClientVerifier::new(trust, required, &provider, identities.clone())?)
            }
            None if spec.require_client_certificate => {
                let why = "client certificates are required but there is nothing to check them against";
                return Err(BuildError::Context(why.to_owned()));
            }
            None => Arc::new(NoClientAuth),
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|e| BuildError::Context(format!("versions and cipher suites don't fit together: {e}")))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(OneKey { key, require_sni: spec.require_sni }));
        config.alpn_protocols = spec.common.alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if asks_for_certificate {
            // See the module `tls`: a resumed session would not be verified again.
            config.send_tls13_tickets = 0;
        } else {
            config.ticketer = aws_lc_rs::Ticketer::new()
                .map_err(|e| BuildError::Context(format!("no randomness for ticket keys: {e}")))?;
        }
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), identities })
    }

    /// Does the handshake. The caller sets the deadline. Cancel safe in that dropping it drops `io`.
    ///
    /// # Errors
    /// [`HandshakeError`] with the reason in words.
    pub async fn accept<IO>(&self, io: IO) -> Result<(TlsStream<IO>, Handshake), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = self.acceptor.accept(io).await?;
        let session = stream.get_ref().1;
        let handshake = Handshake {
            peer: session.peer_certificates().and_then(|c| c.first()).and_then(|leaf| self.identity(leaf)),
            server_name: session.server_name().map(str::to_owned),
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
            version: session.protocol_version(),
            cipher: session.negotiated_cipher_suite(),
        };
        Ok((stream, handshake))
    }

    fn identity(&self, leaf: &rustls_pki_types::CertificateDer<'_>) -> Option<Arc<super::PeerIdentity>> {
        // It may have been pushed out by many others meanwhile; it was verified in this handshake, so read it again.
        self.identities.find(leaf).or_else(|| super::PeerIdentity::of(leaf).ok().map(Arc::new))
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct OneKey {
    key: Arc<CertifiedKey>,
    require_sni: bool,
}

impl ResolvesServerCert for OneKey {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if self.require_sni && hello.server_name().is_none() {
            return None;
        }
        Some(self.key.clone())
    }
}
