use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, SanType, SignatureAlgorithm,
};

use super::*;

const OWN: OwnNames<'static> =
    OwnNames { dns: ["u1.sidecar.buyer.shop.td", "buyer.shop.td"], spiffe: "spiffe://td/buyer/shop" };

fn key(kind: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(kind).unwrap()
}

fn request(change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    change(&mut params);
    params.serialize_request(&key(&PKCS_ECDSA_P256_SHA256)).unwrap().pem().unwrap()
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// A request made by the `openssl` program.
fn openssl(arguments: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (key, out) = (dir.path().join("key"), dir.path().join("csr"));
    let done = std::process::Command::new("openssl")
        .args(["req", "-new", "-nodes", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&out)
        .args(arguments)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    std::fs::read_to_string(&out).unwrap()
}

#[test]
fn a_request_may_name_nothing_or_the_pods_own_names() {
    let plain = request(|_| {});
    check(&plain, &OWN).unwrap();
    let full = request(|params| {
        params.distinguished_name.push(DnType::CommonName, OWN.dns[1]);
        params.subject_alt_names = vec![dns(OWN.dns[0]), dns(OWN.dns[1]), SanType::URI(OWN.spiffe.try_into().unwrap())];
    });
    check(&full, &OWN).unwrap();
}

#[test]
fn keys_of_the_usual_kinds_are_taken() {
    for kind in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let pem = params.serialize_request(&key(kind)).unwrap().pem().unwrap();
        check(&pem, &OWN).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
    }
    for bits in ["rsa:2048", "rsa:4096"] {
        check(&openssl(&["-newkey", bits, "-subj", "/"]), &OWN).unwrap_or_else(|e| panic!("{bits}: {e}"));
    }
}

#[test]
fn keys_of_other_kinds_and_sizes_are_refused() {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let p521 = params.serialize_request(&key(&PKCS_ECDSA_P521_SHA512)).unwrap().pem().unwrap();
    let cases = [
        (p521, "on the elliptic curve 1.3.132.0.35"),
        (openssl(&["-newkey", "rsa:1024", "-subj", "/"]), "RSA with 1024 bits"),
        (RSA_16384.to_owned(), "RSA with 16384 bits"),
        (openssl(&["-newkey", "rsa:2048", "-pkeyopt", "rsa_keygen_pubexp:3", "-subj", "/"]), "another exponent"),
        (openssl(&["-newkey", "rsa:2048", "-subj", "/", "-sha1"]), "SHA-1"),
        (openssl(&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp256k1", "-subj", "/"]), "elliptic curve"),
    ];
    for (pem, wanted) in cases {
        let error = check(&pem, &OWN).unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
}

#[test]
fn whatever_else_a_request_asks_for_is_refused_in_words() {
    let cn = |name: &'static str| request(move |p| p.distinguished_name.push(DnType::CommonName, name));
    let san = |san: SanType| request(move |p| p.subject_alt_names = vec![dns(OWN.dns[1]), san]);
    let cases = [
        (request(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "a certificate authority"),
        (request(|p| p.is_ca = IsCa::ExplicitNoCa), "the extension 2.5.29.19"),
        (request(|p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign]), "the extension 2.5.29.15"),
        (request(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]), "the extension 2.5.29.37"),
        (cn("admin.kube-system.td"), "the common name \"admin.kube-system.td\""),
        (cn("BUYER.shop.td"), "the common name"),
        (cn(""), "the common name \"\""),
        (
            request(|p| p.distinguished_name.push(DnType::OrganizationalUnitName, "oxmesh-key-in-pod")),
            "the subject attribute 2.5.4.11",
        ),
        (san(dns("seller.shop.td")), "seller.shop.td"),
        (san(dns("*.shop.td")), "*.shop.td"),
        (san(SanType::URI("spiffe://td/seller/shop".try_into().unwrap())), "spiffe://td/seller/shop"),
        (san(SanType::IpAddress([10, 0, 0, 1].into())), "the name"),
        (san(SanType::Rfc822Name("a@b".try_into().unwrap())), "a@b"),
        (openssl(&["-newkey", "rsa:2048", "-subj", "/CN=buyer.shop.td/CN=other"]), "the common name \"other\""),
        (
            openssl(&["-newkey", "rsa:2048", "-subj", "/", "-addext", "nsComment=x"]),
            "the extension 2.16.840.1.113730.1.13",
        ),
    ];
    for (pem, wanted) in cases {
        let error = check(&pem, &OWN).unwrap_err();
        assert!(matches!(error, CsrError::AsksFor(_)), "{wanted}: {error}");
        assert!(error.to_string().contains(wanted), "{wanted}: {error}");
    }
}

#[test]
fn a_request_signed_with_another_key_is_refused() {
    use rustls_pki_types::pem::PemObject as _;
    let pem = request(|_| {});
    let mut der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
    // Some byte of the signature, which stands last.
    let at = der.len() - 5;
    der[at] ^= 1;
    let text = pem_of(&der);
    assert_eq!(check(&text, &OWN).unwrap_err(), CsrError::BadSignature);
}

fn pem_of(der: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("der");
    std::fs::write(&path, der).unwrap();
    let done = std::process::Command::new("openssl").args(["base64", "-in"]).arg(&path).output().unwrap();
    let body = String::from_utf8(done.stdout).unwrap();
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n")
}

#[test]
fn what_is_not_one_request_is_refused() {
    let one = request(|_| {});
    let mut long_tail =
        rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(one.as_bytes()).unwrap().to_vec();
    long_tail.extend([5, 0]);
    let certificate = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
    let cases = [
        (String::new(), "no PEM block"),
        ("garbage".to_owned(), "no PEM block"),
        (format!("{one}{one}"), "more than one PEM block"),
        (format!("{one}{}", certificate.cert.pem()), "more than one PEM block"),
        (certificate.cert.pem(), "not a CERTIFICATE REQUEST"),
        (certificate.signing_key.serialize_pem(), "not a CERTIFICATE REQUEST"),
        (pem_of(b"garbage"), "can't be read"),
        (pem_of(&[]), "can't be read"),
        (pem_of(&long_tail), "2 bytes follow it"),
        ("-----BEGIN CERTIFICATE REQUEST-----\n!!\n-----END CERTIFICATE REQUEST-----\n".to_owned(), "not PEM"),
        (format!("{}{one}", "x".repeat(MAX_CSR_BYTES)), "more than 8192"),
    ];
    for (pem, wanted) in cases {
        let error = check(&pem, &OWN).unwrap_err();
        assert!(matches!(error, CsrError::Malformed(_)) && error.to_string().contains(wanted), "{wanted}: {error}");
    }
}

#[test]
fn any_changed_byte_of_what_is_signed_is_refused_and_none_panics() {
    let pem = request(|params| params.subject_alt_names = vec![dns(OWN.dns[1])]);
    let der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
    let signed = X509CertificationRequest::from_der(&der).unwrap().1.certification_request_info.raw;
    let begin = signed.as_ptr() as usize - der.as_ptr() as usize;
    let signed = begin..begin + signed.len();
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 1 << (at % 8);
        // The signature itself can be written in more ways than one.
        assert!(check_der(&changed).is_err() || !signed.contains(&at), "byte {at}");
    }
    for end in 0..der.len() {
        assert!(check_der(&der[..end]).is_err(), "the first {end} bytes");
    }
}

fn check_der(der: &[u8]) -> Result<SubjectPublicKeyInfo, CsrError> {
    super::check_der(der, &OWN)
}

/// Takes a minute to make, so it is kept.
const RSA_16384: &str = include_str!("rsa16384.csr");
