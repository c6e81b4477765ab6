//! A new key, and the request to have it certified.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};

/// A key with its certificate request.
pub(super) struct KeyAndRequest {
    /// PKCS #8.
    pub(super) key_pem: String,
    /// PKCS #10. It asks for nothing: who this is the server knows from the token.
    pub(super) csr_pem: String,
}

pub(super) fn make() -> Result<KeyAndRequest, String> {
    let made = || {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr_pem = params.serialize_request(&key)?.pem()?;
        Ok(KeyAndRequest { key_pem: key.serialize_pem(), csr_pem })
    };
    made().map_err(|error: rcgen::Error| error.to_string())
}
