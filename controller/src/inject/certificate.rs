//! The webhook's certificate: issued by the mesh's authority, renewed while running, and TLS with it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tracing::info;

use crate::identity::{CaError, Issuer, Leaf, LeafRequest};

/// Why the webhook has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum InjectorTlsError {
    /// The certificate can't be issued.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The certificate or its key isn't usable.
    #[error("TLS of the injector: {0}")]
    Material(String),
}

/// A server's certificate that is renewed in time; open connections stay.
pub struct InjectorTls {
    issuer: Arc<Issuer>,
    names: LeafRequest,
    leaf: Mutex<Leaf>,
    current: Arc<Current>,
    config: Arc<rustls::ServerConfig>,
}

impl std::fmt::Debug for InjectorTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InjectorTls").field("leaf", &*self.leaf.lock()).finish_non_exhaustive()
    }
}

struct Current(ArcSwap<CertifiedKey>);

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl InjectorTls {
    /// For the Service `osm-injector` in the control plane's namespace.
    ///
    /// # Errors
    /// [`InjectorTlsError`] if no certificate can be issued.
    pub fn new(issuer: Arc<Issuer>, osm_namespace: &str, validity: Duration) -> Result<Self, InjectorTlsError> {
        let name = format!("osm-injector.{osm_namespace}.svc");
        let dns = vec![format!("osm-injector.{osm_namespace}"), format!("{name}.cluster.local")];
        let names = LeafRequest { common_name: name, dns, uris: vec![], ips: vec![], validity };
        let leaf = issuer.ca().issue(&names, SystemTime::now())?;
        let current = Arc::new(Current(ArcSwap::from_pointee(certified(&leaf)?)));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| InjectorTlsError::Material(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { issuer, names, leaf: Mutex::new(leaf), current, config: Arc::new(config) })
    }

    /// Renews the certificate if it is due; says whether it did.
    ///
    /// # Errors
    /// [`InjectorTlsError`] if it can't be renewed; the old one stays in use.
    pub fn rotate(&self, now: SystemTime) -> Result<bool, InjectorTlsError> {
        if now < self.leaf.lock().renew_at() {
            return Ok(false);
        }
        let leaf = self.issuer.ca().issue(&self.names, now)?;
        self.current.0.store(Arc::new(certified(&leaf)?));
        info!(serial = leaf.serial, "renewed the certificate of the injector");
        *self.leaf.lock() = leaf;
        Ok(true)
    }

    /// When [`Self::rotate`] is due.
    pub fn next_due(&self) -> SystemTime {
        self.leaf.lock().renew_at()
    }

    pub(super) fn config(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.config)
    }
}

fn certified(leaf: &Leaf) -> Result<CertifiedKey, InjectorTlsError> {
    let material = |e: &dyn std::fmt::Display| InjectorTlsError::Material(e.to_string());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(leaf.chain_pem.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).map_err(|e| material(&e))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|e| material(&e))?;
    Ok(CertifiedKey::new(chain.map_err(|e| material(&e))?, key))
}
