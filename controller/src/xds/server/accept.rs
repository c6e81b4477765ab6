//! Accepting connections: TCP, TLS with a client certificate, and who that certificate says it is.
//!
//! A slow or silent peer holds up nobody: handshakes run beside each other, many at once and bounded in
//! time. The configuration is swapped whole when the server's certificate is renewed; open
//! connections stay.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tracing::{debug, info, warn};
use x509_parser::extensions::GeneralName;

use crate::identity::{Ca, CaError, KeyHome, Leaf, LeafRequest, NameError, SidecarIdentity};

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The sidecar that the client certificate names.
    pub identity: Result<SidecarIdentity, NameError>,
    /// Where the sidecar's keys are.
    pub keys: KeyHome,
    /// The address that the connection came from.
    pub address: SocketAddr,
    /// When the client certificate runs out.
    pub not_after: SystemTime,
}

/// Why the server's side of TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server's certificate can't be issued.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A certificate or key isn't usable.
    #[error("server TLS: {0}")]
    Material(String),
}

/// The server's certificate and the TLS configuration made of it, renewed in time.
pub struct ServerTls {
    ca: Arc<Ca>,
    trust_domain: String,
    names: LeafRequest,
    leaf: Mutex<Leaf>,
    config: ArcSwap<rustls::ServerConfig>,
    open: ArcSwap<rustls::ServerConfig>,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("leaf", &*self.leaf.lock()).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// A server named `name`, and by `dns` and `ips` besides.
    ///
    /// # Errors
    /// [`TlsError`] if its certificate can't be issued or used.
    pub fn new(
        ca: Arc<Ca>,
        trust_domain: &str,
        name: &str,
        dns: Vec<String>,
        ips: Vec<IpAddr>,
        validity: Duration,
    ) -> Result<Self, TlsError> {
        let names = LeafRequest { common_name: name.to_owned(), dns, uris: vec![], ips, validity };
        let leaf = ca.issue(&names, SystemTime::now())?;
        let (config, open) = (server_config(&ca, &leaf)?, open_config(&leaf)?);
        Ok(Self {
            ca,
            trust_domain: trust_domain.to_owned(),
            names,
            leaf: Mutex::new(leaf),
            config: ArcSwap::from_pointee(config),
            open: ArcSwap::from_pointee(open),
        })
    }

    /// Renews the server's certificate if it is due; says whether it did.
    ///
    /// # Errors
    /// [`TlsError`] if it can't be renewed; the old one stays in use.
    pub fn rotate(&self, now: SystemTime) -> Result<bool, TlsError> {
        if now < self.leaf.lock().renew_at() {
            return Ok(false);
        }
        let leaf = self.ca.issue(&self.names, now)?;
        let (config, open) = (server_config(&self.ca, &leaf)?, open_config(&leaf)?);
        info!(serial = leaf.serial, "renewed the certificate of the ADS server");
        *self.leaf.lock() = leaf;
        self.config.store(Arc::new(config));
        self.open.store(Arc::new(open));
        Ok(true)
    }

    /// The configuration of a server with the same certificate that asks its clients for none: HTTP/1.1 only.
    pub fn without_client_certificates(&self) -> Arc<rustls::ServerConfig> {
        self.open.load_full()
    }

    /// When [`Self::rotate`] is due.
    pub fn next_due(&self) -> SystemTime {
        self.leaf.lock().renew_at()
    }

    fn peer(&self, stream: &TlsStream<TcpStream>, address: SocketAddr) -> io::Result<Peer> {
        let certificates = stream.get_ref().1.peer_certificates();
        let leaf = certificates.and_then(|all| all.first()).ok_or_else(|| io::Error::other("no client certificate"))?;
        let (_, cert) = x509_parser::parse_x509_certificate(leaf).map_err(io::Error::other)?;
        let name = certificate_name(&cert).unwrap_or_default();
        let units = cert.subject().iter_organizational_unit().filter_map(|unit| unit.as_str().ok());
        Ok(Peer {
            identity: SidecarIdentity::parse(&name, &self.trust_domain),
            keys: KeyHome::of_units(units),
            address,
            not_after: cert.validity().not_after.to_datetime().into(),
        })
    }
}

/// The one name of a client certificate: its only DNS SAN, or without any its common name.
fn certificate_name(cert: &x509_parser::certificate::X509Certificate<'_>) -> Option<String> {
    let sans = cert.subject_alternative_name().ok().flatten();
    let names = sans.iter().flat_map(|san| &san.value.general_names);
    let dns: Vec<&str> = names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
        .collect();
    match dns.as_slice() {
        [name] => Some((*name).to_owned()),
        [] => cert.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned),
        _ => None,
    }
}

fn server_config(ca: &Ca, leaf: &Leaf) -> Result<rustls::ServerConfig, TlsError> {
    let material = |e: &dyn std::fmt::Display| TlsError::Material(e.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.cert_der().clone()).map_err(|e| material(&e))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|e| material(&e))?;
    let (chain, key) = material_of(leaf)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| material(&e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| material(&e))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the look at the client's certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn open_config(leaf: &Leaf) -> Result<rustls::ServerConfig, TlsError> {
    let material = |e: &dyn std::fmt::Display| TlsError::Material(e.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (chain, key) = material_of(leaf)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| material(&e))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| material(&e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Clients come once a day.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn material_of(leaf: &Leaf) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let material = |e: &dyn std::fmt::Display| TlsError::Material(e.to_string());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(leaf.chain_pem.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).map_err(|e| material(&e))?;
    Ok((chain.map_err(|e| material(&e))?, key))
}

/// Accepts until stopped; connections that are through the handshake go to `connections`.
pub(super) async fn accept(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    connections: mpsc::Sender<io::Result<Connection>>,
    stop: CancellationToken,
) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting an ADS connection failed");
                // Out of descriptors, most likely: others may close some meanwhile.
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let (tls, connections) = (Arc::clone(&tls), connections.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(&tls, tcp, address)).await {
                Ok(Ok(connection)) => {
                    drop(permit);
                    // Fails only when the server is going away.
                    let _ = connections.send(Ok(connection)).await;
                }
                Ok(Err(error)) => debug!(%address, %error, "TLS handshake of an ADS connection failed"),
                Err(_) => debug!(%address, "TLS handshake of an ADS connection took too long"),
            }
        });
    }
}

async fn handshake(tls: &ServerTls, tcp: TcpStream, address: SocketAddr) -> io::Result<Connection> {
    tcp.set_nodelay(true)?;
    let acceptor = TlsAcceptor::from(tls.config.load_full());
    let stream = acceptor.accept(tcp).await?;
    let peer = tls.peer(&stream, address)?;
    Ok(Connection { stream, peer })
}

/// A connection with its peer; tonic hands the peer to every request on it.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const MAX_HANDSHAKES: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
