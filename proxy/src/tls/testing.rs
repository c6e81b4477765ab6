//! Certificates for tests of this crate.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};

use super::ResolvedSecrets;
use crate::config::tls::{
    CertificatePair, CommonTls, DownstreamTls, SanMatch, Secret, SecretSource, TlsParams, UpstreamTls, Validation,
};

/// A certificate authority.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn issuer(&self) -> &rcgen::Issuer<'static, KeyPair> {
        &self.0
    }

    /// A leaf for both sides of a connection, changed by `edit`.
    pub(crate) fn leaf(&self, edit: impl FnOnce(&mut CertificateParams)) -> CertificatePair {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        edit(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        CertificatePair { chain_pem: cert.pem().into_bytes().into(), key_pem: key.serialize_pem().into_bytes().into() }
    }

    /// A leaf with one DNS name.
    pub(crate) fn named(&self, dns: &str) -> CertificatePair {
        self.leaf(|p| p.subject_alt_names = vec![SanType::DnsName(dns.try_into().unwrap())])
    }

    /// An authority signed by this one.
    pub(crate) fn below(&self, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.0).unwrap())
    }

    pub(crate) fn validation(&self, names: Vec<SanMatch>) -> Validation {
        Validation { trusted_ca_pem: self.pem().into_bytes().into(), subject_alt_names: names }
    }
}

/// A context with these secrets under the names `cert` and `ca`.
pub(crate) fn common(
    certificate: Option<CertificatePair>,
    validation: Option<Validation>,
) -> (CommonTls, ResolvedSecrets) {
    let source = |name: &str| SecretSource::Ads(name.into());
    let common = CommonTls {
        params: TlsParams::default(),
        alpn: Vec::new(),
        certificate: certificate.as_ref().map(|_| source("cert")),
        validation: validation.as_ref().map(|_| source("ca")),
        default_validation: None,
    };
    let secrets = ResolvedSecrets {
        certificate: certificate.map(|c| ("cert".into(), Arc::new(Secret::Certificate(c)))),
        validation: validation.map(|v| ("ca".into(), Arc::new(Secret::Validation(v)))),
    };
    (common, secrets)
}

pub(crate) fn downstream(common: CommonTls, require_client_certificate: bool) -> DownstreamTls {
    DownstreamTls { common, require_client_certificate, require_sni: false }
}

pub(crate) fn upstream(common: CommonTls, sni: Option<&str>) -> UpstreamTls {
    UpstreamTls { common, sni: sni.map(str::to_owned) }
}
