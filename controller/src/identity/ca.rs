//! The built-in certificate authority: one ECDSA P-256 root, kept as two files.
//!
//! Several processes may start on an empty directory at once: the key is put in place by a hard
//! link, which only one can win, and the certificate is made from whichever key is in place. A
//! crash in between heals at the next start. A key that others may read is refused.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;

use super::ServiceIdentity;
use super::leaf::{BACKDATE, Certified, Leaf, LeafRequest};

/// The certificate authority's certificate inside its directory.
pub const CERT_FILE: &str = "ca.crt";
/// The certificate authority's private key inside its directory.
pub const KEY_FILE: &str = "ca.key";
/// The common name of a root that we make.
pub const ROOT_COMMON_NAME: &str = "oxmesh-ca";
/// How long a root that we make is valid: ten years.
pub const ROOT_VALIDITY: Duration = Duration::from_secs(87_600 * 3600);

/// Why the certificate authority can't be used or can't sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file or directory could not be read or written.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The private key can be read by others.
    #[error(
        "{} has mode {mode:04o}, so others can read the mesh's private key (chmod 600 it, and make a new authority if somebody may have read it)",
        path.display()
    )]
    KeyMode {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// There is a certificate but no key.
    #[error(
        "{} is there but {KEY_FILE} is missing (restore the key, or remove {CERT_FILE} to start a new authority that no running proxy trusts)",
        path.display()
    )]
    KeyMissing {
        /// The certificate's file.
        path: PathBuf,
    },
    /// A file's content is not what it should be.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file, or the Secret and the key in it.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The API server did not give or take the Secret.
    #[error("{what} Secret {secret}: {source}{hint}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// The Secret's namespace and name.
        secret: String,
        /// What the API server said.
        source: Box<kube::Error>,
        /// What to do, if that is known; begins with a blank.
        hint: &'static str,
    },
    /// Key and certificate are not a pair.
    #[error("the key {} does not belong to the certificate {}", key.display(), cert.display())]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        cert: PathBuf,
    },
    /// The authority's own certificate has run out.
    #[error("the authority's certificate ran out on {0} (make a new one)")]
    Expired(OffsetDateTime),
    /// The account's name could be read as another's sidecar.
    #[error(
        "service account {0} gets no certificate: its name reads as a sidecar's (choose one whose second part isn't `sidecar`)"
    )]
    ReadsAsSidecar(ServiceIdentity),
    /// Signing failed.
    #[error("issue a certificate for {name:?}: {source}")]
    Sign {
        /// The common name asked for.
        name: String,
        /// What the library said.
        source: rcgen::Error,
    },
}

/// A certificate authority that signs leaves.
pub struct Ca {
    cert_pem: String,
    cert_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    not_after: SystemTime,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl Ca {
    /// Opens the authority in `dir`, making a new one if the directory holds none.
    /// Blocks on the file system.
    ///
    /// # Errors
    /// [`CaError`] if the files can't be read or written, are readable by others, or don't fit
    /// each other.
    pub fn open_or_create(dir: &Path) -> Result<Self, CaError> {
        let (cert, key) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        // Looked at before the key: whoever made the certificate had put the key in place earlier.
        let had_cert = cert.exists();
        if !key.exists() {
            if had_cert {
                return Err(CaError::KeyMissing { path: cert });
            }
            let pair = new_key_pair("root")?;
            put_if_absent(&key, pair.serialize_pem().as_bytes(), 0o600)?;
        }
        if !cert.exists() {
            let pair = read_key(&key)?;
            put_if_absent(&cert, new_root(&pair)?.as_bytes(), 0o644)?;
        }
        Self::from_files(&cert, &key)
    }

    /// Opens an authority given as two PEM files. Blocks on the file system.
    ///
    /// # Errors
    /// [`CaError`] if they can't be read, the key is readable by others, or they don't fit each
    /// other.
    pub fn from_files(cert: &Path, key: &Path) -> Result<Self, CaError> {
        let pair = read_key(key)?;
        let cert_pem = fs::read_to_string(cert).map_err(io_error("read", cert))?;
        Self::of(cert, cert_pem, key, pair)
    }

    /// Opens an authority whose certificate and key are at hand; `cert` and `key` say in errors where they stand.
    ///
    /// # Errors
    /// [`CaError`] if one of them can't be read or they don't fit each other.
    pub(super) fn from_pem(cert: &Path, cert_pem: String, key: &Path, key_pem: &str) -> Result<Self, CaError> {
        let pair = parse_key(key, key_pem)?;
        Self::of(cert, cert_pem, key, pair)
    }

    fn of(cert: &Path, cert_pem: String, key: &Path, pair: KeyPair) -> Result<Self, CaError> {
        let cert_der = only_certificate(cert, &cert_pem)?;
        let not_after = check_certificate(cert, key, &cert_der, &pair)?;
        let issuer = Issuer::from_ca_cert_der(&cert_der, pair)
            .map_err(|e| content(cert, format!("not usable as an authority: {e}")))?;
        Ok(Self { cert_pem, cert_der, issuer, not_after })
    }

    /// The authority's certificate in PEM: what peers must trust.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The authority's certificate in DER.
    pub fn cert_der(&self) -> &CertificateDer<'static> {
        &self.cert_der
    }

    /// When the authority's own certificate runs out.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Makes a key and signs a leaf certificate, for clients and servers both, that ends at the
    /// latest when the authority's certificate does. About 0.1 ms of computing.
    ///
    /// # Errors
    /// [`CaError::Expired`] if the authority has run out, [`CaError::Sign`] if a name can't be
    /// written in a certificate.
    pub fn issue(&self, request: &LeafRequest, now: SystemTime) -> Result<Leaf, CaError> {
        let pair = new_key_pair(&request.common_name)?;
        let Certified { chain_pem, serial, not_after } = self.sign(request, None, &pair, now)?;
        Ok(Leaf {
            common_name: request.common_name.clone(),
            serial,
            chain_pem,
            key_pem: pair.serialize_pem(),
            issued: whole_seconds(now),
            not_after,
        })
    }

    /// Signs a leaf certificate like [`Self::issue`], for a key that somebody else has. `unit` becomes the subject's
    /// organizational unit.
    ///
    /// # Errors
    /// As [`Self::issue`].
    pub fn certify(
        &self,
        request: &LeafRequest,
        unit: Option<&str>,
        key: &SubjectPublicKeyInfo,
        now: SystemTime,
    ) -> Result<Certified, CaError> {
        self.sign(request, unit, key, now)
    }

    fn sign(
        &self,
        request: &LeafRequest,
        unit: Option<&str>,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Certified, CaError> {
        if now >= self.not_after {
            return Err(CaError::Expired(self.not_after.into()));
        }
        let now = whole_seconds(now);
        let not_after = (now + request.validity).min(self.not_after);
        let signed = leaf_params(request, now, not_after)
            .and_then(|mut params| {
                if let Some(unit) = unit {
                    params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
                }
                params.signed_by(key, &self.issuer)
            })
            .map_err(|source| CaError::Sign { name: request.common_name.clone(), source })?;
        Ok(Certified { serial: serial_of(signed.der()), chain_pem: signed.pem(), not_after })
    }
}

fn leaf_params(
    request: &LeafRequest,
    now: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&request.common_name);
    for dns in std::iter::once(&request.common_name).chain(&request.dns) {
        let san = SanType::DnsName(dns.as_str().try_into()?);
        if !params.subject_alt_names.contains(&san) {
            params.subject_alt_names.push(san);
        }
    }
    for uri in &request.uris {
        let san = SanType::URI(uri.as_str().try_into()?);
        params.subject_alt_names.push(san);
    }
    let ips = request.ips.iter().copied().map(SanType::IpAddress);
    params.subject_alt_names.extend(ips);
    params.not_before = (now - BACKDATE).into();
    params.not_after = not_after.into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A new authority: its certificate and its key, both PEM.
///
/// # Errors
/// [`CaError::Sign`] if the system has no randomness.
pub(super) fn new_authority() -> Result<(String, String), CaError> {
    let pair = new_key_pair("root")?;
    Ok((new_root(&pair)?, pair.serialize_pem()))
}

fn new_root(pair: &KeyPair) -> Result<String, CaError> {
    let now = whole_seconds(SystemTime::now());
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(ROOT_COMMON_NAME);
    params.distinguished_name.push(DnType::OrganizationName, "oxmesh");
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ROOT_VALIDITY).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let signed =
        params.self_signed(pair).map_err(|source| CaError::Sign { name: ROOT_COMMON_NAME.to_owned(), source })?;
    Ok(signed.pem())
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

fn new_key_pair(name: &str) -> Result<KeyPair, CaError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|source| CaError::Sign { name: name.to_owned(), source })
}

fn read_key(path: &Path) -> Result<KeyPair, CaError> {
    let mode = fs::metadata(path).map_err(io_error("read", path))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(CaError::KeyMode { path: path.to_owned(), mode });
    }
    let pem = fs::read_to_string(path).map_err(io_error("read", path))?;
    parse_key(path, &pem)
}

fn parse_key(path: &Path, pem: &str) -> Result<KeyPair, CaError> {
    KeyPair::from_pem(pem).map_err(|e| content(path, format!("not a PKCS #8 private key: {e}")))
}

fn only_certificate(path: &Path, pem: &str) -> Result<CertificateDer<'static>, CaError> {
    let mut all = CertificateDer::pem_slice_iter(pem.as_bytes());
    match (all.next(), all.next()) {
        (Some(Ok(cert)), None) => Ok(cert),
        (Some(Err(e)), _) => Err(content(path, format!("not a PEM certificate: {e}"))),
        (None, _) => Err(content(path, "no certificate in it".to_owned())),
        (Some(Ok(_)), Some(_)) => {
            Err(content(path, "more than one certificate (give only the one that signs)".to_owned()))
        }
    }
}

/// Checks that the certificate is an authority's and belongs to the key; returns its end.
fn check_certificate(cert: &Path, key: &Path, der: &CertificateDer<'_>, pair: &KeyPair) -> Result<SystemTime, CaError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der)
        .map_err(|e| content(cert, format!("not an X.509 certificate: {e}")))?;
    if !parsed.is_ca() {
        let reason = "its basic constraints don't say that it is an authority".to_owned();
        return Err(content(cert, reason));
    }
    if parsed.public_key().raw != pair.subject_public_key_info().as_slice() {
        return Err(CaError::Mismatch { key: key.to_owned(), cert: cert.to_owned() });
    }
    let end = parsed.validity().not_after.to_datetime();
    if end <= OffsetDateTime::now_utc() {
        return Err(CaError::Expired(end));
    }
    Ok(end.into())
}

fn serial_of(der: &CertificateDer<'_>) -> String {
    let parsed = x509_parser::parse_x509_certificate(der);
    parsed.map(|(_, cert)| cert.raw_serial_as_string()).unwrap_or_default()
}

/// Writes the whole file under a name of its own, then links it into place, which fails if
/// somebody was faster: theirs stays.
fn put_if_absent(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    let temporary = path.with_extension(format!("new.{:016x}", fastrand::u64(..)));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        match fs::hard_link(&temporary, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    };
    let written = write().map_err(io_error("write", path));
    let removed = fs::remove_file(&temporary).map_err(io_error("remove", &temporary));
    written.and(removed)
}

fn whole_seconds(t: SystemTime) -> SystemTime {
    let since = t.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path = path.to_owned();
    move |source| CaError::Io { what, path, source }
}

fn content(path: &Path, reason: String) -> CaError {
    CaError::Content { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn request(name: &str, validity: u64) -> LeafRequest {
        LeafRequest {
            common_name: name.into(),
            dns: vec![],
            uris: vec![format!("spiffe://td/{name}")],
            ips: vec![[127, 0, 0, 1].into()],
            validity: Duration::from_secs(validity),
        }
    }

    #[test]
    fn a_second_start_finds_the_same_authority() {
        let dir = tempfile::tempdir().unwrap();
        let first = Ca::open_or_create(dir.path()).unwrap();
        let second = Ca::open_or_create(dir.path()).unwrap();
        assert_eq!(first.cert_pem(), second.cert_pem());
        let mode = |name| fs::metadata(dir.path().join(name)).unwrap().mode() & 0o777;
        assert_eq!((mode(CERT_FILE), mode(KEY_FILE)), (0o644, 0o600));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn processes_that_race_on_an_empty_directory_end_with_one_authority() {
        let dir = tempfile::tempdir().unwrap();
        let roots: Vec<String> = std::thread::scope(|scope| {
            let open = || Ca::open_or_create(dir.path()).unwrap().cert_pem().to_owned();
            let racers: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            racers.into_iter().map(|r| r.join().unwrap()).collect()
        });
        assert!(roots.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn a_crash_between_key_and_certificate_heals() {
        let dir = tempfile::tempdir().unwrap();
        Ca::open_or_create(dir.path()).unwrap();
        fs::remove_file(dir.path().join(CERT_FILE)).unwrap();
        Ca::open_or_create(dir.path()).unwrap();
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Ca::open_or_create(dir.path()).unwrap();
        let key = dir.path().join(KEY_FILE);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Ca::open_or_create(dir.path()).unwrap_err();
        assert!(matches!(error, CaError::KeyMode { mode: 0o640, .. }));
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Ca::open_or_create(a.path()).unwrap();
        Ca::open_or_create(b.path()).unwrap();
        let mixed = Ca::from_files(&a.path().join(CERT_FILE), &b.path().join(KEY_FILE));
        assert!(matches!(mixed, Err(CaError::Mismatch { .. })));
    }

    #[test]
    fn a_certificate_without_its_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Ca::open_or_create(dir.path()).unwrap();
        fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
        let error = Ca::open_or_create(dir.path()).unwrap_err();
        assert!(matches!(error, CaError::KeyMissing { .. }));
    }

    #[test]
    fn a_leaf_certificate_cannot_be_used_as_an_authority() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path()).unwrap();
        let leaf = ca.issue(&request("a.b.td", 60), SystemTime::now()).unwrap();
        let (cert, key) = (dir.path().join("leaf.crt"), dir.path().join("leaf.key"));
        fs::write(&cert, &leaf.chain_pem).unwrap();
        fs::write(&key, &leaf.key_pem).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let error = Ca::from_files(&cert, &key).unwrap_err();
        assert!(error.to_string().contains("basic constraints"), "{error}");
    }

    #[test]
    fn a_leaf_says_what_was_asked_and_is_backdated() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path()).unwrap();
        let now = whole_seconds(SystemTime::now());
        let leaf = ca.issue(&request("a.b.td", 60), now).unwrap();
        let der = CertificateDer::from_pem_slice(leaf.chain_pem.as_bytes()).unwrap();
        let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
        let at = |t: SystemTime| OffsetDateTime::from(t);
        assert_eq!(cert.validity().not_before.to_datetime(), at(now - BACKDATE));
        assert_eq!(cert.validity().not_after.to_datetime(), at(now + Duration::from_secs(60)));
        assert!(!cert.is_ca());
        let usage = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && usage.server_auth);
        let sans = cert.subject_alternative_name().unwrap().unwrap();
        assert_eq!(sans.value.general_names.len(), 3);
        let issuer_key = x509_parser::parse_x509_certificate(ca.cert_der()).unwrap().1;
        cert.verify_signature(Some(issuer_key.public_key())).unwrap();
    }

    #[test]
    fn a_leaf_never_outlives_its_authority() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path()).unwrap();
        let late = ca.not_after() - Duration::from_secs(10);
        let leaf = ca.issue(&request("a", 3600), late).unwrap();
        assert_eq!(leaf.not_after, ca.not_after());
        let after = ca.issue(&request("a", 3600), ca.not_after());
        assert!(matches!(after, Err(CaError::Expired(_))));
    }
}
