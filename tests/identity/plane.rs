//! A control plane in this process, whose API server's answers about tokens are played.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use oxmesh_controller::{
    api::{Key, Objects, core::Pod},
    identity::{
        Ca, Issuer, LeafRequest, Policy,
        sign::{Pods, Signer, TOKEN_AUDIENCE, TokenReviewer, server as signing},
    },
    mesh::Mesh,
    metrics::Metrics,
    settings::Settings,
    source::Snapshot,
    xds::{
        World,
        server::{self, Hub, ServerTls, View},
    },
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Mutex, watch},
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use x509_parser::parse_x509_certificate;

use crate::stage::Stage;

/// The control plane's name.
pub(crate) const NAME: &str = "osm-controller.osm-system.svc.cluster.local";
const TD: &str = "cluster.local";

/// Knows tokens of the form `<pod>:<uid>`.
struct Reviewer(Arc<AtomicUsize>);

impl TokenReviewer for Reviewer {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, String>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            if token == "expired" {
                let error = Some("service account token has expired".to_owned());
                return Ok(TokenReviewStatus { error, ..Default::default() });
            }
            let audience = if token == "audience" { "elsewhere" } else { TOKEN_AUDIENCE };
            let extra: BTreeMap<_, _> = token
                .split_once(':')
                .map(|(pod, uid)| [("pod-name", pod), ("pod-uid", uid)])
                .into_iter()
                .flatten()
                .map(|(key, value)| (format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]))
                .collect();
            Ok(TokenReviewStatus {
                authenticated: Some(true),
                audiences: Some(vec![audience.to_owned()]),
                user: Some(UserInfo {
                    username: Some("system:serviceaccount:shop:buyer".to_owned()),
                    extra: Some(extra),
                    ..Default::default()
                }),
                error: None,
            })
        })
    }
}

/// The control plane.
pub(crate) struct Plane {
    dir: tempfile::TempDir,
    issuer: Arc<Issuer>,
    hub: Arc<Hub>,
    tokens: Arc<AtomicUsize>,
    pub(crate) signer: SocketAddr,
    pub(crate) ads: SocketAddr,
    signing: Mutex<Option<JoinHandle<()>>>,
    stop_signing: CancellationToken,
    stop: CancellationToken,
    _view: watch::Sender<Arc<dyn View>>,
    _snapshots: watch::Sender<Option<Arc<Snapshot>>>,
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.stop_signing.cancel();
        self.stop.cancel();
    }
}

impl Plane {
    /// Certificates live for `validity`.
    pub(crate) async fn start(validity: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Arc::new(Ca::open_or_create(dir.path()).unwrap());
        let issuer = Arc::new(Issuer::new(Arc::clone(&ca), Policy { validity, ..Policy::new(TD) }));
        let tls =
            Arc::new(ServerTls::new(Arc::clone(&ca), TD, NAME, vec![], vec![], Duration::from_secs(3600)).unwrap());
        let objects = objects();
        let mesh = Mesh::build(&objects, &Settings::default()).mesh;
        let world = World { mesh: Arc::new(mesh), issuer: Arc::clone(&issuer) };
        let stage = Stage {
            world,
            identity: dir.path().join("identity"),
            app: echo_server().await,
            roots_pem: ca.cert_pem().to_owned(),
        };
        let (view, views): (watch::Sender<Arc<dyn View>>, _) = watch::channel(Arc::new(stage));
        let metrics = Arc::new(Metrics::default());
        let hub = Arc::new(Hub::new(views, TD, Arc::clone(&metrics)));
        let (stop, stop_signing) = (CancellationToken::new(), CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ads = listener.local_addr().unwrap();
        tokio::spawn(server::serve(listener, Arc::clone(&tls), Arc::clone(&hub), stop.clone()));
        let (snapshots, watched) = watch::channel(Some(Arc::new(Snapshot { objects, ..Default::default() })));
        let pods =
            Pods { snapshots: watched, api: None, mesh_name: "osm".to_owned(), patience: Duration::from_millis(100) };
        let tokens = Arc::new(AtomicUsize::new(0));
        let signing = Signer::new(Arc::clone(&issuer), Arc::new(Reviewer(Arc::clone(&tokens))), pods, metrics);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let signer = listener.local_addr().unwrap();
        let signing = tokio::spawn(signing::serve(listener, tls, Arc::new(signing), stop_signing.clone()));
        Self {
            dir,
            issuer,
            hub,
            tokens,
            signer,
            ads,
            signing: Mutex::new(Some(signing)),
            stop_signing,
            stop,
            _view: view,
            _snapshots: snapshots,
        }
    }

    /// Where the sidecar's identity should be.
    pub(crate) fn identity_dir(&self) -> PathBuf {
        self.dir.path().join("identity")
    }

    pub(crate) fn roots_pem(&self) -> &str {
        self.issuer.ca().cert_pem()
    }

    /// Where the keys of the connected sidecars are.
    pub(crate) fn key_homes(&self) -> Vec<String> {
        let homes = self.hub.proxies().into_iter().map(|proxy| json!(proxy.keys).as_str().unwrap().to_owned());
        homes.collect()
    }

    /// When the next key that the controller made is due.
    pub(crate) fn issuer_keys(&self) -> Option<SystemTime> {
        self.issuer.next_due()
    }

    pub(crate) fn tokens_seen(&self) -> usize {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Returns when nothing listens any more.
    pub(crate) async fn stop_signer(&self) {
        self.stop_signing.cancel();
        if let Some(signing) = self.signing.lock().await.take() {
            signing.await.unwrap();
        }
    }

    /// A connection of another workload to an inbound listener; with the serial number of the certificate there.
    pub(crate) async fn connect_as_peer(&self, address: SocketAddr) -> anyhow::Result<(TlsStream<TcpStream>, String)> {
        let request = LeafRequest {
            common_name: format!("seller.shop.{TD}"),
            dns: vec![],
            uris: vec![],
            ips: vec![],
            validity: Duration::from_secs(600),
        };
        let leaf = self.issuer.ca().issue(&request, SystemTime::now())?;
        let chain = vec![CertificateDer::from_pem_slice(leaf.chain_pem.as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes())?;
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.ca().cert_der().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.resumption = rustls::client::Resumption::disabled();
        let tcp = TcpStream::connect(address).await?;
        // The name in the certificate is the service account's.
        let name = ServerName::try_from(format!("buyer.shop.{TD}"))?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let peer = stream.get_ref().1.peer_certificates().and_then(|all| all.first()).context("no certificate")?;
        let (_, certificate) = parse_x509_certificate(peer)?;
        let serial = certificate.raw_serial_as_string();
        Ok((stream, serial))
    }
}

async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                // Ends with the connection, however that ends.
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    address
}

/// Sends a line through the sidecar, to an application that answers with the same.
pub(crate) async fn echo(stream: &mut TlsStream<TcpStream>, line: &str) -> anyhow::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    let mut answer = vec![0; line.len()];
    tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut answer)).await??;
    anyhow::ensure!(answer == line.as_bytes());
    Ok(())
}

fn objects() -> Objects {
    let mut objects = Objects::default();
    let label = json!({ "openservicemesh.io/monitored-by": "osm" });
    let namespace = json!({ "metadata": { "name": "shop", "labels": label } });
    objects.namespaces.insert(Key::new("", "shop"), serde_json::from_value(namespace).unwrap());
    for (name, uid, account, uuid) in [("buyer-1", "uid-1", "buyer", "u1"), ("seller-1", "uid-2", "seller", "u2")] {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "shop", "uid": uid, "labels": { "osm-proxy-uuid": uuid, "app": name } },
            "spec": { "serviceAccountName": account, "nodeName": "n", "containers": [] },
            "status": { "podIP": "127.0.0.1" },
        }))
        .unwrap();
        objects.pods.insert(Key::of(&pod.metadata), Arc::new(pod));
    }
    objects
}
