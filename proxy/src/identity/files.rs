//! Key and certificates in a directory, as Kubernetes lays out its volumes: each generation in a folder of its own, one
//! link that says which is in force, and names that lead through that link.
//!
//! The link is swapped by a rename, and the SDS files of a generation name files of that generation by their full path, so
//! that whoever reads gets a key and a chain that belong together, whenever it reads. The generation before stays for
//! those that are reading it.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use x509_parser::parse_x509_certificate;

use super::ask::Answer;
use crate::{
    config::{
        Name,
        tls::{CertificatePair, Secret, Validation},
    },
    xds::secrets,
};

/// A key with its certificates.
#[derive(Clone)]
pub struct Held {
    key_pem: String,
    sidecar_pem: String,
    service_pem: String,
    /// The roots to trust, PEM.
    pub bundle_pem: String,
    /// When the first of the certificates began to be valid.
    pub not_before: SystemTime,
    /// When the first of the certificates runs out.
    pub not_after: SystemTime,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl Held {
    /// Checks that certificates and key belong together and are of use.
    pub(super) fn new(key_pem: String, answer: Answer) -> Result<Self, String> {
        let Answer { sidecar, service, trust_bundle } = answer;
        Self::checked(key_pem, sidecar, service, trust_bundle)
    }

    fn checked(key_pem: String, sidecar_pem: String, service_pem: String, bundle_pem: String) -> Result<Self, String> {
        for (name, chain) in [(TLS_SECRET, &sidecar_pem), (SERVICE_SECRET, &service_pem)] {
            let chain_pem = chain.clone().into_bytes().into();
            let pair = CertificatePair { chain_pem, key_pem: key_pem.clone().into_bytes().into() };
            secrets::check(&Name::from(name), &Arc::new(Secret::Certificate(pair)))?;
        }
        let roots =
            Validation { trusted_ca_pem: bundle_pem.clone().into_bytes().into(), subject_alt_names: Vec::new() };
        if bundle_pem.is_empty() {
            return Err("the trust bundle is empty".to_owned());
        }
        secrets::check(&Name::from(VALIDATION_SECRET), &Arc::new(Secret::Validation(roots)))?;
        let (first, second) = (validity(&sidecar_pem)?, validity(&service_pem)?);
        let (not_before, not_after) = (first.0.min(second.0), first.1.min(second.1));
        Ok(Self { key_pem, sidecar_pem, service_pem, bundle_pem, not_before, not_after })
    }
}

fn validity(pem: &str) -> Result<(SystemTime, SystemTime), String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| e.to_string())?;
    let (_, certificate) = parse_x509_certificate(&der).map_err(|e| e.to_string())?;
    let validity = certificate.validity();
    Ok((validity.not_before.to_datetime().into(), validity.not_after.to_datetime().into()))
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    server_name: String,
}

impl Directory {
    /// A directory, made if it isn't there. `server_name` is the name that the ADS server must have. Blocks on the file
    /// system.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path, server_name: &str) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self { path: path.to_owned(), server_name: server_name.to_owned() })
    }

    /// What is in force, if it is whole and of use. Blocks on the file system.
    #[must_use]
    pub fn load(&self) -> Option<Held> {
        let read = |name: &str| fs::read_to_string(self.path.join(CURRENT).join(name)).ok();
        let held = Held::checked(read(KEY_FILE)?, read(SIDECAR_FILE)?, read(SERVICE_FILE)?, read(BUNDLE_FILE)?);
        held.inspect_err(|why| tracing::warn!(why, "key and certificates of an earlier start are not used")).ok()
    }

    /// Puts a new generation in force. Blocks on the file system.
    ///
    /// # Errors
    /// What the system says; the generation in force stays.
    pub fn put(&self, held: &Held) -> io::Result<()> {
        let name = format!("{GENERATION}{}", humantime::format_rfc3339_nanos(SystemTime::now()));
        let before = fs::read_link(self.path.join(CURRENT)).ok();
        let written = self.write(&name, held).and_then(|()| self.switch(&name));
        if written.is_err() {
            // The error that counts is the first; what is left is swept the next time.
            let _ = fs::remove_dir_all(self.path.join(&name));
        } else {
            self.sweep(&[Some(PathBuf::from(name)), before]);
        }
        written
    }

    fn write(&self, name: &str, held: &Held) -> io::Result<()> {
        let generation = self.path.join(name);
        fs::DirBuilder::new().mode(0o700).create(&generation)?;
        let certificate = |secret: &str, chain: &str| {
            sds(
                secret,
                "tls_certificate",
                &json!({
                    "certificate_chain": { "filename": generation.join(chain) },
                    "private_key": { "filename": generation.join(KEY_FILE) },
                }),
            )
        };
        // Without the name any workload of the mesh could pass for the control plane.
        let validation = sds(
            VALIDATION_SECRET,
            "validation_context",
            &json!({
                "trusted_ca": { "filename": generation.join(BUNDLE_FILE) },
                "match_typed_subject_alt_names": [{ "san_type": "DNS", "matcher": { "exact": self.server_name } }],
            }),
        );
        let files: [(&str, &str, u32); 7] = [
            (KEY_FILE, &held.key_pem, 0o600),
            (SIDECAR_FILE, &held.sidecar_pem, 0o644),
            (SERVICE_FILE, &held.service_pem, 0o644),
            (BUNDLE_FILE, &held.bundle_pem, 0o644),
            (TLS_SDS_FILE, &certificate(TLS_SECRET, SIDECAR_FILE), 0o644),
            (SERVICE_SDS_FILE, &certificate(SERVICE_SECRET, SERVICE_FILE), 0o644),
            (VALIDATION_SDS_FILE, &validation, 0o644),
        ];
        for (file, text, mode) in files {
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(generation.join(file))?;
            file.write_all(text.as_bytes())?;
        }
        Ok(())
    }

    fn switch(&self, name: &str) -> io::Result<()> {
        self.link(Path::new(name), CURRENT)?;
        for file in [TLS_SDS_FILE, SERVICE_SDS_FILE, VALIDATION_SDS_FILE] {
            let target = Path::new(CURRENT).join(file);
            if fs::read_link(self.path.join(file)).ok().as_ref() != Some(&target) {
                self.link(&target, file)?;
            }
        }
        Ok(())
    }

    /// Makes the name `link` lead to `target` from one moment to the next.
    fn link(&self, target: &Path, link: &str) -> io::Result<()> {
        let temporary = self.path.join(format!("{link}.new"));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(target, &temporary)?;
        fs::rename(&temporary, self.path.join(link))
    }

    /// Removes all generations but `keep`. What can't be removed now is tried again the next time.
    fn sweep(&self, keep: &[Option<PathBuf>]) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_kept = keep.iter().flatten().any(|kept| kept.as_os_str() == name);
            if name.to_string_lossy().starts_with(GENERATION) && !is_kept {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// A secret as Envoy's SDS files have it.
fn sds(name: &str, kind: &str, content: &Value) -> String {
    let resource = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": name,
        kind: content,
    });
    format!("{:#}\n", json!({ "resources": [resource] }))
}

/// The link to the generation in force.
const CURRENT: &str = "..data";
/// What the names of generations begin with.
const GENERATION: &str = "..2";
const KEY_FILE: &str = "key.pem";
const SIDECAR_FILE: &str = "sidecar.pem";
const SERVICE_FILE: &str = "service.pem";
const BUNDLE_FILE: &str = "ca.pem";
/// Names that bootstraps refer to.
const TLS_SDS_FILE: &str = "tls_certificate_sds_secret.yaml";
const VALIDATION_SDS_FILE: &str = "validation_context_sds_secret.yaml";
const TLS_SECRET: &str = "tls_sds";
const VALIDATION_SECRET: &str = "validation_context_sds";
/// Names that the control plane's listeners and clusters refer to.
const SERVICE_SDS_FILE: &str = "service_cert_sds_secret.yaml";
const SERVICE_SECRET: &str = "service-cert";
