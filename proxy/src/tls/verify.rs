//! Our two certificate verifiers: webpki's chain checks (signature, dates, usage, CA flags, path length, name
//! constraints), then our own reading of the names. What passes is remembered as a [`PeerIdentity`], so that the names
//! are parsed once and not again after the handshake.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{
    BadIdentity, PeerIdentity,
    secrets::{BuildError, Trust},
};
use crate::config::tls::SanMatch;

/// Longest chain looked at, leaf included. Path building over long chains costs CPU.
const MAX_CHAIN: usize = 10;
/// Identities remembered per configuration.
const MAX_REMEMBERED: usize = 64;

/// Names of certificates that passed, found again by the certificate's bytes.
#[derive(Debug, Default)]
pub(super) struct Identities(Mutex<VecDeque<Arc<PeerIdentity>>>);

impl Identities {
    pub(super) fn find(&self, leaf: &CertificateDer<'_>) -> Option<Arc<PeerIdentity>> {
        self.0.lock().iter().rev().find(|id| id.der == *leaf).cloned()
    }

    fn check(&self, leaf: &CertificateDer<'_>, wanted: &[SanMatch]) -> Result<(), Error> {
        if self.find(leaf).is_some() {
            return Ok(());
        }
        let identity = PeerIdentity::of(leaf).map_err(refused)?;
        if !identity.matches_any(wanted) {
            return Err(refused(BadIdentity::WrongName { have: identity.names() }));
        }
        let mut known = self.0.lock();
        if known.len() == MAX_REMEMBERED {
            known.pop_front();
        }
        known.push_back(Arc::new(identity));
        Ok(())
    }
}

fn refused(why: BadIdentity) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

fn check_length(intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
    if intermediates.len() >= MAX_CHAIN {
        return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
    }
    Ok(())
}

/// True when the certificate is trusted but names nobody who is allowed.
pub(super) fn is_wrong_name(why: &CertificateError) -> bool {
    let CertificateError::Other(OtherError(inner)) = why else { return false };
    matches!(inner.downcast_ref::<BadIdentity>(), Some(BadIdentity::WrongName { .. }))
}

/// A refusal in plain words.
pub(super) fn words(why: &CertificateError) -> String {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet".to_owned(),
        CertificateError::UnknownIssuer => "its issuer is not in the trust bundle".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its extended key usage does not allow this side of a connection".to_owned()
        }
        CertificateError::BadEncoding => "it is malformed or its chain is too long".to_owned(),
        CertificateError::BadSignature => "its signature is wrong".to_owned(),
        CertificateError::Other(e) => e.0.to_string(),
        other => other.to_string(),
    }
}

/// Checks clients.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    names: Vec<SanMatch>,
    identities: Arc<Identities>,
}

impl ClientVerifier {
    pub(super) fn new(
        trust: Trust,
        required: bool,
        provider: &Arc<CryptoProvider>,
        identities: Arc<Identities>,
    ) -> Result<Self, BuildError> {
        let builder = WebPkiClientVerifier::builder_with_provider(trust.roots, provider.clone());
        let builder = if required { builder } else { builder.allow_unauthenticated() };
        let chain = builder.build().map_err(|e| BuildError::Context(format!("client verification: {e}")))?;
        Ok(Self { chain, names: trust.names, identities })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check_length(intermediates)?;
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        self.identities.check(leaf, &self.names)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Checks servers: chain and configured names, never the SNI (Envoy's rule: SNI routes, names authenticate).
#[derive(Debug)]
pub(super) struct ServerVerifier {
    trust: Option<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
    identities: Arc<Identities>,
}

impl ServerVerifier {
    /// Without `trust` any certificate passes, as in Envoy; it then gives no identity.
    pub(super) fn new(trust: Option<Trust>, provider: &CryptoProvider, identities: Arc<Identities>) -> Self {
        Self { trust, algorithms: provider.signature_verification_algorithms, identities }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trust) = &self.trust {
            check_length(intermediates)?;
            let parsed = ParsedCertificate::try_from(leaf)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &trust.roots, intermediates, now, algorithms)?;
            self.identities.check(leaf, &trust.names)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
