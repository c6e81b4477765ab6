//! The client's side of TLS.

use std::sync::Arc;

use rustls::{
    ClientConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    sign::CertifiedKey,
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    BuildError, Handshake, HandshakeError, ResolvedSecrets,
    secrets::Parts,
    verify::{Identities, ServerVerifier},
};
use crate::config::tls::UpstreamTls;

/// A client configuration for one version of its secrets.
#[derive(Clone)]
pub struct ClientTls {
    connector: TlsConnector,
    /// Sent as SNI when `send_sni`; else only a placeholder that rustls asks for.
    server_name: ServerName<'static>,
    verified: bool,
    identities: Arc<Identities>,
}

impl ClientTls {
    /// Builds the configuration: PEM parsed, key checked against its certificate. Without a validation context the
    /// server is not verified (Envoy's semantics).
    ///
    /// # Errors
    /// [`BuildError`] naming the secret or the part of the context at fault.
    pub fn build(spec: &UpstreamTls, secrets: &ResolvedSecrets) -> Result<Self, BuildError> {
        let Parts { provider, versions, key, trust } = Parts::new(&spec.common, secrets)?;
        let identities = Arc::new(Identities::default());
        let verified = trust.is_some();
        let verifier = ServerVerifier::new(trust, &provider, identities.clone());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|e| BuildError::Context(format!("versions and cipher suites don't fit together: {e}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match key {
            Some(key) => builder.with_client_cert_resolver(Arc::new(OneKey(key))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = spec.common.alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        config.resumption = Resumption::disabled();
        let (server_name, send_sni) = match spec.sni.as_deref().filter(|s| !s.is_empty()) {
            Some(sni) => (
                ServerName::try_from(sni.to_owned())
                    .map_err(|_| BuildError::Context(format!("sni {sni:?} is not a DNS name")))?,
                true,
            ),
            None => (ServerName::from(std::net::Ipv4Addr::UNSPECIFIED), false),
        };
        config.enable_sni = send_sni;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), server_name, verified, identities })
    }

    /// Does the handshake. The caller sets the deadline. Cancel safe in that dropping it drops `io`.
    ///
    /// # Errors
    /// [`HandshakeError`] with the reason in words.
    pub async fn connect<IO>(&self, io: IO) -> Result<(TlsStream<IO>, Handshake), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = self.connector.connect(self.server_name.clone(), io).await?;
        let session = stream.get_ref().1;
        let leaf = session.peer_certificates().and_then(|c| c.first()).filter(|_| self.verified);
        let handshake = Handshake {
            peer: leaf.and_then(|leaf| self.identities.find(leaf)),
            server_name: None,
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
            version: session.protocol_version(),
            cipher: session.negotiated_cipher_suite(),
        };
        Ok((stream, handshake))
    }
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// Presents our certificate whatever issuers the server hints at, as Envoy does.
#[derive(Debug)]
struct OneKey(Arc<CertifiedKey>);

impl ResolvesClientCert for OneKey {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.key.choose_scheme(schemes).map(|_| self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
