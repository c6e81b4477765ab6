//! One request to the signing server: `POST /v1/certificates` over TLS, proved by the pod's token.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde::Deserialize;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::Options;
use crate::{config::cluster::DnsFamily, upstream::Resolve};

/// What the server answers.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer {
    pub(super) sidecar: String,
    pub(super) service: String,
    pub(super) trust_bundle: String,
}

/// The server's words for a refusal.
#[derive(Clone, Debug, Default, Deserialize)]
struct Fault {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    hint: String,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No key can be made.
    #[error("a key can't be made: {0}")]
    Key(String),
    /// The pod's token can't be read.
    #[error("the pod's token {} can't be read: {source}", path.display())]
    Token {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server can't be reached.
    #[error("signing server {server}: {why}")]
    Unreachable {
        /// Its name and port.
        server: String,
        /// In words.
        why: String,
    },
    /// The server says no.
    #[error("signing server {server} answers {status} {code}: {message}")]
    Refused {
        /// Its name and port.
        server: String,
        /// The HTTP status.
        status: StatusCode,
        /// Its word for the reason.
        code: String,
        /// Its sentence.
        message: String,
        /// Its advice.
        hint: String,
        /// When to ask again, if it says so.
        retry_after: Option<Duration>,
    },
    /// What it sent is of no use.
    #[error("the signing server's answer is of no use: {0}")]
    Answer(String),
    /// The files can't be written.
    #[error("key and certificates can't be written: {0}")]
    Files(io::Error),
}

impl AskError {
    /// Whether asking again helps only after somebody changed something.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { status, .. }
            if matches!(*status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST))
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &str {
        match self {
            Self::Key(_) => "the system's random numbers or the cryptography library fail; see the node",
            Self::Token { .. } => {
                "the pod needs a projected service account token with audience oxmesh.io there; restart it so that the injector adds one"
            }
            Self::Unreachable { .. } => {
                "see whether the controller runs (kubectl get pods -n osm-system) and a NetworkPolicy lets this pod reach it"
            }
            Self::Refused { hint, .. } if !hint.is_empty() => hint,
            Self::Refused { .. } | Self::Answer(_) => "see the controller's log; do its version and the proxy's fit?",
            Self::Files(_) => "the identity directory must be writable for the proxy's user and have some KB left",
        }
    }

    /// When to ask again, if the server says so; at most five minutes.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => retry_after.map(|wait| wait.min(MAX_RETRY_AFTER)),
            _ => None,
        }
    }
}

/// Asks.
pub(super) struct Asker {
    options: Options,
    resolver: Arc<dyn Resolve>,
    /// The roots that the server itself named last; they follow a change of the authority.
    told: Mutex<String>,
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Asker {
    pub(super) fn new(options: Options, resolver: Arc<dyn Resolve>) -> Self {
        Self { options, resolver, told: Mutex::default() }
    }

    /// Trusts these roots too; they came from the server, over a connection that was trusted.
    pub(super) fn trust(&self, bundle_pem: &str) {
        bundle_pem.clone_into(&mut self.told.lock());
    }

    pub(super) async fn ask(&self, csr_pem: &str) -> Result<Answer, AskError> {
        let token = self.token().await?;
        let exchange = timeout(TIMEOUT, self.exchange(&token, csr_pem)).await;
        exchange.map_err(|_| self.unreachable(format!("no answer in {TIMEOUT:?}")))?
    }

    async fn token(&self) -> Result<String, AskError> {
        let path = &self.options.token;
        let wrong = |source| AskError::Token { path: path.clone(), source };
        let token = tokio::fs::read_to_string(path).await.map_err(wrong)?;
        let token = token.trim();
        if token.is_empty() {
            return Err(wrong(io::Error::new(io::ErrorKind::InvalidData, "it is empty")));
        }
        Ok(token.to_owned())
    }

    async fn exchange(&self, token: &str, csr_pem: &str) -> Result<Answer, AskError> {
        let failed = |e: &dyn std::fmt::Display| self.unreachable(e.to_string());
        let stream = self.connect().await.map_err(|why| self.unreachable(why))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
        let body = serde_json::json!({ "csr": csr_pem }).to_string();
        let request = Request::post(PATH)
            .header(header::HOST, format!("{}:{}", self.options.name, self.options.port))
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("oxmesh-proxy/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| failed(&e))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|e| failed(&e))?;
            Ok((head, body.to_bytes()))
        };
        let (head, body) = tokio::select! {
            answer = answer => answer?,
            // The connection ends by itself only when the server cuts it.
            Err(error) = connection => return Err(failed(&error)),
        };
        if head.status == StatusCode::OK {
            return serde_json::from_slice(&body).map_err(|e| AskError::Answer(e.to_string()));
        }
        let fault: Fault = serde_json::from_slice(&body).unwrap_or_default();
        let retry_after = head.headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        Err(AskError::Refused {
            server: self.server(),
            status: head.status,
            code: fault.code,
            message: fault.message,
            hint: fault.hint,
            retry_after: retry_after.map(Duration::from_secs),
        })
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>, String> {
        let config = self.config()?;
        let name = ServerName::try_from(self.options.name.clone()).map_err(|e| format!("its name: {e}"))?;
        let tcp = self.dial().await?;
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, tcp).await.map_err(|error| format!("TLS: {error}"))
    }

    async fn dial(&self) -> Result<TcpStream, String> {
        let Options { host, port, .. } = &self.options;
        let addresses = match host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => self.resolver.resolve(host, DnsFamily::All).await?.addresses,
        };
        let mut last = format!("{host} has no address");
        for ip in addresses {
            let address = SocketAddr::new(ip, *port);
            match timeout(CONNECT_TIMEOUT, self.dial_one(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = format!("{address}: {error}"),
                Err(_) => last = format!("{address}: no connection in {CONNECT_TIMEOUT:?}"),
            }
        }
        Err(last)
    }

    async fn dial_one(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(mark) = self.options.mark {
            socket2::SockRef::from(&socket).set_mark(mark)?;
        }
        socket.set_nodelay(true)?;
        socket.connect(address).await
    }

    fn config(&self) -> Result<ClientConfig, String> {
        let roots = roots(&[&self.options.trust_bundle, &self.told.lock()])?;
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn server(&self) -> String {
        format!("{}:{}", self.options.host, self.options.port)
    }

    fn unreachable(&self, why: String) -> AskError {
        AskError::Unreachable { server: self.server(), why }
    }
}

/// The roots in some PEM texts.
pub(super) fn roots(bundles: &[&str]) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for bundle in bundles {
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            let certificate = certificate.map_err(|error| format!("not PEM: {error}"))?;
            store.add(certificate).map_err(|error| format!("a certificate in it is not valid: {error}"))?;
        }
    }
    if store.is_empty() { Err("no certificate in it".to_owned()) } else { Ok(store) }
}

const PATH: &str = "/v1/certificates";
/// From the look-up of the name to the answer's last byte; the server may wait some seconds for news of a new pod.
const TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
const MAX_ANSWER_BYTES: usize = 256 << 10;
