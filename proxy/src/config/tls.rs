//! TLS contexts and secrets as data. The rustls configurations are built from these in `tls`.

use std::{path::PathBuf, sync::Arc};

use super::{Name, Wanted, matcher::StringMatch};

/// Secret material (Envoy's `Secret`).
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// A certificate chain with its key.
    Certificate(CertificatePair),
    /// What peers are checked against.
    Validation(Validation),
}

/// PEM certificate chain and private key. `Debug` never prints the key.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificatePair {
    /// Leaf first.
    pub chain_pem: Arc<[u8]>,
    /// PKCS#8, SEC1 or PKCS#1.
    pub key_pem: Arc<[u8]>,
}

/// Peer validation (Envoy's `CertificateValidationContext`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validation {
    /// Trusted roots, PEM.
    pub trusted_ca_pem: Arc<[u8]>,
    /// Names of which the peer must have at least one; empty = any name.
    pub subject_alt_names: Vec<SanMatch>,
}

/// Envoy's `SubjectAltNameMatcher`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SanMatch {
    /// Which kind of name.
    pub kind: SanKind,
    /// How it is compared.
    pub matcher: StringMatch,
}

/// Kind of a subject alternative name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SanKind {
    /// DNS name.
    Dns,
    /// URI.
    Uri,
    /// IP address, as text.
    Ip,
    /// E-mail.
    Email,
    /// Any kind (the deprecated `match_subject_alt_names`).
    Any,
}

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// SDS over the ADS stream.
    Ads(Wanted),
    /// SDS from a file, watched (Envoy's `path` / `path_config_source`).
    File {
        /// Name of the secret inside.
        name: Name,
        /// The file.
        path: PathBuf,
    },
    /// `static_resources.secrets`.
    Static(Name),
    /// Written in place.
    Inline(Arc<Secret>),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Certificate(c) => c.fmt(f),
            Self::Validation(v) => v.fmt(f),
        }
    }
}

impl std::fmt::Debug for CertificatePair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificatePair").field("chain_pem", &self.chain_pem.len()).finish_non_exhaustive()
    }
}

/// TLS protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// Versions, suites and groups (Envoy's `TlsParameters`), already checked to be usable with our TLS stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsParams {
    /// Lowest version; TLS 1.2 by default.
    pub min: TlsVersion,
    /// Highest version; TLS 1.3 by default.
    pub max: TlsVersion,
    /// TLS 1.2 suites by IANA name as rustls prints them (`TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256`); empty = default.
    pub cipher_suites: Vec<String>,
    /// Key exchange groups by IANA name (`X25519`, `secp256r1`, `secp384r1`); empty = default.
    pub groups: Vec<String>,
}

impl Default for TlsParams {
    fn default() -> Self {
        Self { min: TlsVersion::V1_2, max: TlsVersion::V1_3, cipher_suites: Vec::new(), groups: Vec::new() }
    }
}

/// Common to both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommonTls {
    /// Versions, suites, groups.
    pub params: TlsParams,
    /// ALPN protocols offered (upstream) or accepted (downstream), in order.
    pub alpn: Vec<String>,
    /// Our certificate.
    pub certificate: Option<SecretSource>,
    /// What the peer is checked against; upstream without one = the server is not verified.
    pub validation: Option<SecretSource>,
    /// `combined_validation_context.default_validation_context` SAN matchers, used beside a dynamic CA.
    pub default_validation: Option<Arc<Validation>>,
}

/// Server side (Envoy's `DownstreamTlsContext`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownstreamTls {
    /// Common part.
    pub common: CommonTls,
    /// The client must present a certificate; conversion refuses it without a validation context.
    pub require_client_certificate: bool,
    /// A ClientHello without SNI is refused.
    pub require_sni: bool,
}

/// Client side (Envoy's `UpstreamTlsContext`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Common part.
    pub common: CommonTls,
    /// Server name sent; none = no SNI extension.
    pub sni: Option<String>,
}
