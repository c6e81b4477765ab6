//! From PEM to what rustls wants, with words that name the secret at fault.

use std::sync::Arc;

use rustls::{
    RootCertStore, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::config::{
    Name,
    tls::{CertificatePair, CommonTls, SanMatch, Secret, TlsParams, TlsVersion, Validation},
};

/// The secrets that a TLS context asked for, each with the name used in messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedSecrets {
    /// For `CommonTls::certificate`.
    pub certificate: Option<(Name, Arc<Secret>)>,
    /// For `CommonTls::validation`.
    pub validation: Option<(Name, Arc<Secret>)>,
}

/// Why no TLS configuration can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The context asks for a secret that was not given.
    #[error("secret for {0} is not there yet")]
    Missing(&'static str),
    /// The secret is of the other kind.
    #[error("secret {name}: is not a {wanted}")]
    WrongKind {
        /// Secret.
        name: Name,
        /// What is needed.
        wanted: &'static str,
    },
    /// The secret's content can't be used.
    #[error("secret {name}: {why}")]
    Unusable {
        /// Secret.
        name: Name,
        /// In words.
        why: String,
    },
    /// The context itself can't be used.
    #[error("TLS context: {0}")]
    Context(String),
}

/// Parts common to both sides.
pub(super) struct Parts {
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) versions: Vec<&'static SupportedProtocolVersion>,
    pub(super) key: Option<Arc<CertifiedKey>>,
    pub(super) trust: Option<Trust>,
}

/// What peers are checked against.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) names: Vec<SanMatch>,
}

impl Parts {
    pub(super) fn new(common: &CommonTls, secrets: &ResolvedSecrets) -> Result<Self, BuildError> {
        let provider = Arc::new(provider(&common.params)?);
        let key = match (&common.certificate, &secrets.certificate) {
            (None, _) => None,
            (Some(_), None) => return Err(BuildError::Missing("the certificate")),
            (Some(_), Some((name, secret))) => match &**secret {
                Secret::Certificate(pair) => Some(Arc::new(certified_key(name, pair, &provider)?)),
                Secret::Validation(_) => {
                    return Err(BuildError::WrongKind { name: name.clone(), wanted: "TLS certificate" });
                }
            },
        };
        Ok(Self { versions: versions(&common.params)?, provider, key, trust: trust(common, secrets)? })
    }
}

fn trust(common: &CommonTls, secrets: &ResolvedSecrets) -> Result<Option<Trust>, BuildError> {
    let dynamic = match (&common.validation, &secrets.validation) {
        (None, _) => None,
        (Some(_), None) => return Err(BuildError::Missing("the validation context")),
        (Some(_), Some((name, secret))) => match &**secret {
            Secret::Validation(v) => Some((name.clone(), v)),
            Secret::Certificate(_) => {
                return Err(BuildError::WrongKind { name: name.clone(), wanted: "validation context" });
            }
        },
    };
    let default = common.default_validation.as_deref().map(|v| (Name::from("default_validation_context"), v));
    let all: Vec<&(Name, &Validation)> = default.iter().chain(dynamic.iter()).collect();
    if all.is_empty() {
        return Ok(None);
    }
    // Envoy merges the two: the dynamic CA replaces the default one, matchers add up.
    let Some((name, holder)) = all.iter().rev().find(|(_, v)| !v.trusted_ca_pem.is_empty()) else {
        return Err(BuildError::Context("a validation context without trusted CA verifies nothing".to_owned()));
    };
    let roots = Arc::new(roots(name, &holder.trusted_ca_pem)?);
    let names = all.iter().flat_map(|(_, v)| v.subject_alt_names.iter().cloned()).collect();
    Ok(Some(Trust { roots, names }))
}

fn certificates(name: &Name, pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, BuildError> {
    let bad = |why: String| BuildError::Unusable { name: name.clone(), why };
    let certs: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| bad(format!("{what} is not PEM: {e}")))?;
    if certs.is_empty() {
        return Err(bad(format!("{what} holds no certificate")));
    }
    Ok(certs)
}

fn roots(name: &Name, pem: &[u8]) -> Result<RootCertStore, BuildError> {
    let mut store = RootCertStore::empty();
    for (i, cert) in certificates(name, pem, "trusted CA")?.into_iter().enumerate() {
        store.add(cert).map_err(|e| BuildError::Unusable {
            name: name.clone(),
            why: format!("trusted CA certificate {} of the bundle is not valid: {e}", i + 1),
        })?;
    }
    Ok(store)
}

fn certified_key(name: &Name, pair: &CertificatePair, provider: &CryptoProvider) -> Result<CertifiedKey, BuildError> {
    let bad = |why: String| BuildError::Unusable { name: name.clone(), why };
    let chain = certificates(name, &pair.chain_pem, "certificate chain")?;
    let key = PrivateKeyDer::from_pem_slice(&pair.key_pem)
        .map_err(|_| bad("private key is not PEM of PKCS#8, SEC1 or PKCS#1".to_owned()))?;
    let key = provider.key_provider.load_private_key(key).map_err(|e| {
        bad(format!("private key can't be used (RSA of 2048 bits or more, P-256, P-384, Ed25519): {e}"))
    })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(bad("private key does not belong to the first certificate of the chain".to_owned()))
        }
        Err(e) => Err(bad(format!("certificate is not valid: {e}"))),
    }
}

fn versions(params: &TlsParams) -> Result<Vec<&'static SupportedProtocolVersion>, BuildError> {
    let all = [(TlsVersion::V1_3, &rustls::version::TLS13), (TlsVersion::V1_2, &rustls::version::TLS12)];
    let wanted: Vec<_> = all.iter().filter(|(v, _)| (params.min..=params.max).contains(v)).map(|(_, r)| *r).collect();
    if wanted.is_empty() {
        return Err(BuildError::Context("lowest TLS version is above the highest".to_owned()));
    }
    Ok(wanted)
}

fn provider(params: &TlsParams) -> Result<CryptoProvider, BuildError> {
    let mut provider = aws_lc_rs::default_provider();
    if !params.cipher_suites.is_empty() {
        let known = |suite: &rustls::SupportedCipherSuite| suite.suite().as_str().unwrap_or_default().to_owned();
        // The order configured is the order preferred; TLS 1.3 suites are not configurable, as in Envoy.
        let all = std::mem::take(&mut provider.cipher_suites);
        provider.cipher_suites.extend(all.iter().filter(|s| s.tls13().is_some()));
        for wanted in &params.cipher_suites {
            let suite = all.iter().find(|s| s.tls13().is_none() && known(s) == *wanted);
            provider.cipher_suites.push(*suite.ok_or_else(|| {
                BuildError::Context(format!("cipher suite {wanted} is not supported by our TLS library"))
            })?);
        }
    }
    if !params.groups.is_empty() {
        let mut groups = Vec::with_capacity(params.groups.len());
        for wanted in &params.groups {
            let group = aws_lc_rs::ALL_KX_GROUPS.iter().find(|g| g.name().as_str() == Some(wanted.as_str()));
            groups
                .push(*group.ok_or_else(|| BuildError::Context(format!("key exchange group {wanted} is not known")))?);
        }
        provider.kx_groups = groups;
    }
    Ok(provider)
}
