//! What a certificate request asks for, and whether it may.
//!
//! Nothing of a request reaches a certificate but its public key: names, lifetime and usages are the signer's. Whatever
//! else it asks for is refused rather than left out, since somebody meant it.

use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use x509_parser::certification_request::{X509CertificationRequest, X509CertificationRequestInfo};
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_SHA1WITHRSA,
    OID_SHA1_WITH_RSA, OID_SIG_ED25519, OID_X509_COMMON_NAME,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509;

/// Longest request in PEM; one for RSA with 4096 bits has about 1.7 KB.
pub const MAX_CSR_BYTES: usize = 8 << 10;

/// Why a certificate request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// It can't be read.
    #[error("the certificate request can't be read: {0}")]
    Malformed(String),
    /// It isn't signed with the key that it names.
    #[error("the certificate request is not signed with its own key")]
    BadSignature,
    /// Its key is of a kind or size that is not taken.
    #[error(
        "the certificate request's key is {0}; taken are ECDSA P-256 and P-384, Ed25519, RSA with 2048 to 4096 bits"
    )]
    Key(String),
    /// It asks for something that is not the asking pod's.
    #[error("the certificate request asks for {0}; a request may ask for the pod's own names and for nothing else")]
    AsksFor(String),
}

/// The names that a pod may ask for.
#[derive(Debug, Clone, Copy)]
pub struct OwnNames<'a> {
    /// Of the sidecar and of its service identity.
    pub dns: [&'a str; 2],
    /// The identity's SPIFFE id.
    pub spiffe: &'a str,
}

/// Reads a request and checks it; returns its key.
///
/// # Errors
/// [`CsrError`], in words for whoever made the request.
pub fn check(pem: &str, own: &OwnNames<'_>) -> Result<SubjectPublicKeyInfo, CsrError> {
    check_der(&only_request(pem)?, own)
}

fn check_der(der: &[u8], own: &OwnNames<'_>) -> Result<SubjectPublicKeyInfo, CsrError> {
    let malformed = |e: &dyn std::fmt::Display| CsrError::Malformed(e.to_string());
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|e| malformed(&e))?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed(format!("{} bytes follow it", rest.len())));
    }
    let info = &request.certification_request_info;
    // Before the signature: a huge key makes that dear.
    check_key(&info.subject_pki)?;
    let algorithm = &request.signature_algorithm.algorithm;
    if *algorithm == OID_PKCS1_SHA1WITHRSA || *algorithm == OID_SHA1_WITH_RSA {
        return Err(CsrError::Malformed("it is signed with SHA-1".to_owned()));
    }
    request.verify_signature().map_err(|_| CsrError::BadSignature)?;
    check_subject(info, own)?;
    check_attributes(info, own)?;
    SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|e| CsrError::Key(format!("not usable: {e}")))
}

fn only_request(pem: &str) -> Result<Vec<u8>, CsrError> {
    let malformed = |why: &str| CsrError::Malformed(why.to_owned());
    if pem.len() > MAX_CSR_BYTES {
        return Err(CsrError::Malformed(format!("it has {} bytes, more than {MAX_CSR_BYTES}", pem.len())));
    }
    let mut sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes());
    match (sections.next(), sections.next()) {
        (Some(Ok((SectionKind::Csr, der))), None) => Ok(der),
        (None, _) => Err(malformed("no PEM block in it")),
        (Some(Err(e)), _) => Err(CsrError::Malformed(format!("not PEM: {e}"))),
        (Some(Ok((SectionKind::Csr, _))), Some(_)) => Err(malformed("more than one PEM block in it")),
        (Some(Ok(_)), _) => Err(malformed("its PEM block is not a CERTIFICATE REQUEST")),
    }
}

fn check_key(key: &x509::SubjectPublicKeyInfo<'_>) -> Result<(), CsrError> {
    let (kind, parameters) = (&key.algorithm.algorithm, key.algorithm.parameters.as_ref());
    if *kind == OID_SIG_ED25519 {
        return Ok(());
    }
    if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = parameters.and_then(|p| p.as_oid().ok());
        return match curve {
            Some(curve) if curve == OID_EC_P256 || curve == OID_NIST_EC_P384 => Ok(()),
            Some(curve) => Err(CsrError::Key(format!("on the elliptic curve {curve}"))),
            None => Err(CsrError::Key("on an elliptic curve without a name".to_owned())),
        };
    }
    if *kind != OID_PKCS1_RSAENCRYPTION {
        return Err(CsrError::Key(format!("of the kind {kind}")));
    }
    let Ok(PublicKey::RSA(rsa)) = key.parsed() else {
        return Err(CsrError::Key("RSA that can't be read".to_owned()));
    };
    match (bits(rsa.modulus), rsa.try_exponent()) {
        (2048..=4096, Ok(65_537)) => Ok(()),
        (2048..=4096, _) => Err(CsrError::Key("RSA with another exponent than 65537".to_owned())),
        (bits, _) => Err(CsrError::Key(format!("RSA with {bits} bits"))),
    }
}

/// Length of a big-endian number.
fn bits(number: &[u8]) -> usize {
    let significant = number.iter().position(|byte| *byte != 0).map_or(&[][..], |first| &number[first..]);
    let first = significant.first().map_or(0, |byte| byte.leading_zeros() as usize);
    significant.len() * 8 - first
}

fn check_subject(info: &X509CertificationRequestInfo<'_>, own: &OwnNames<'_>) -> Result<(), CsrError> {
    for attribute in info.subject.iter_attributes() {
        let value = attribute.as_str().unwrap_or("?");
        if *attribute.attr_type() != OID_X509_COMMON_NAME {
            return Err(CsrError::AsksFor(format!("the subject attribute {}={value:?}", attribute.attr_type())));
        }
        if !own.dns.contains(&value) {
            return Err(CsrError::AsksFor(format!("the common name {value:?}")));
        }
    }
    Ok(())
}

fn check_attributes(info: &X509CertificationRequestInfo<'_>, own: &OwnNames<'_>) -> Result<(), CsrError> {
    for attribute in info.iter_attributes() {
        match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(asked) => {
                for extension in &asked.extensions {
                    check_extension(extension.parsed_extension(), &extension.oid, own)?;
                }
            }
            _ => return Err(CsrError::AsksFor(format!("the attribute {}", attribute.oid))),
        }
    }
    Ok(())
}

fn check_extension(
    asked: &ParsedExtension<'_>,
    oid: &x509_parser::der_parser::oid::Oid<'_>,
    own: &OwnNames<'_>,
) -> Result<(), CsrError> {
    match asked {
        ParsedExtension::SubjectAlternativeName(san) => {
            let is_own = |name: &GeneralName<'_>| match name {
                GeneralName::DNSName(name) => own.dns.contains(name),
                GeneralName::URI(uri) => *uri == own.spiffe,
                _ => false,
            };
            match san.general_names.iter().find(|name| !is_own(name)) {
                Some(foreign) => Err(CsrError::AsksFor(format!("the name {foreign}"))),
                None => Ok(()),
            }
        }
        ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
            Err(CsrError::AsksFor("a certificate authority".to_owned()))
        }
        _ => Err(CsrError::AsksFor(format!("the extension {oid}"))),
    }
}

#[cfg(test)]
mod tests;
