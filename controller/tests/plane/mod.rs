//! A whole control plane in this process over folders of its own, and a client that starts from a
//! bootstrap directory as a proxy does.
#![allow(dead_code, reason = "each test program uses its part")]

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use hyper_util::rt::TokioIo;
use oxmesh_controller::app::{App, Authority, Options, Source};
use oxmesh_controller::bootstrap;
use oxmesh_controller::identity::{ServiceIdentity, SidecarIdentity};
use oxmesh_controller::settings::Settings;
use oxmesh_controller::xds::Kind;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// A control plane with its folders.
pub(crate) struct Plane {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) app: App,
}

impl Plane {
    /// Starts one over these files.
    pub(crate) async fn start(files: &[(&str, String)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("objects")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join("objects").join(name), text).unwrap();
        }
        let app = start(dir.path()).await;
        Self { dir, app }
    }

    /// Stops the control plane and starts another over the same folders.
    pub(crate) async fn restart(self) -> Self {
        self.app.stop().await;
        let app = start(self.dir.path()).await;
        Self { dir: self.dir, app }
    }

    /// Writes or replaces a file of objects, as an editor does.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let temporary = self.dir.path().join("objects/.new");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.dir.path().join("objects").join(name)).unwrap();
    }

    /// Writes a sidecar's bootstrap directory.
    pub(crate) fn bootstrap(&self, proxy: &SidecarIdentity, delta: bool) -> PathBuf {
        let out = self.dir.path().join(&proxy.uuid);
        let options = bootstrap::Options {
            controller_host: "127.0.0.1".into(),
            controller_port: self.app.xds_address().port(),
            read_dir: out.clone(),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            delta,
            ..bootstrap::Options::new("osm-system")
        };
        bootstrap::write(&out, proxy, self.app.issuer(), &options).unwrap();
        out
    }

    /// The body of an admin page, with its status.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.app.admin_address()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }
}

async fn start(dir: &Path) -> App {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let app = App::start(Options {
        source: Source::Folders(vec![dir.join("objects")]),
        authority: Authority::State(dir.join("state")),
        xds_address: any,
        identity_address: any,
        admin_address: any,
        xds_names: vec![],
        xds_ips: vec![],
        spiffe: false,
        inject: None,
        settings: Settings::default(),
    })
    .await
    .unwrap();
    timeout(WAIT, app.ready()).await.expect("ready in time");
    app
}

/// The sidecar of pod `name` in `shop`, whose uuid is its name.
pub(crate) fn sidecar(name: &str) -> SidecarIdentity {
    SidecarIdentity { uuid: name.into(), service: ServiceIdentity::new("shop", name) }
}

/// Namespace `shop` with pods `buyer` and `store`, each with a service and an account of its name.
pub(crate) fn shop() -> String {
    let mut text = "apiVersion: v1\nkind: Namespace\n\
                    metadata: {name: shop, labels: {openservicemesh.io/monitored-by: osm}}\n"
        .to_owned();
    for (n, name) in ["buyer", "store"].into_iter().enumerate() {
        text += &pod(name, &format!("127.0.1.{}", n + 1));
        text += &format!(
            "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: shop}}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}\n"
        );
    }
    text
}

/// A ready pod whose uuid is its name.
pub(crate) fn pod(name: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: shop, labels: {{app: {name}, osm-proxy-uuid: {name}}}}}\n\
         spec: {{serviceAccountName: {name}, containers: [{{name: app, image: x, ports: [{{containerPort: 8080}}]}}]}}\n\
         status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: 'True'}}]}}\n"
    )
}

/// A MeshConfig with this life of certificates.
pub(crate) fn mesh_config(permissive: bool, validity: &str) -> String {
    format!(
        "apiVersion: config.openservicemesh.io/v1alpha2\nkind: MeshConfig\n\
         metadata: {{name: osm-mesh-config, namespace: osm-system}}\n\
         spec: {{traffic: {{enablePermissiveTrafficPolicyMode: {permissive}}}, \
         certificate: {{serviceCertValidityDuration: {validity}}}}}\n"
    )
}

/// Connects as the bootstrap directory says.
pub(crate) async fn connect(dir: &Path, address: SocketAddr) -> Channel {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join(bootstrap::CA_FILE)).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_file(dir.join(bootstrap::CERT_FILE)).unwrap()];
    let key = PrivateKeyDer::from_pem_file(dir.join(bootstrap::KEY_FILE)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let connect = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        let connector = connector.clone();
        async move {
            let tcp = TcpStream::connect(address).await?;
            let name = ServerName::try_from(bootstrap::controller_name("osm-system")).map_err(io::Error::other)?;
            Ok::<_, io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
        }
    });
    Endpoint::from_static("http://ads").connect_with_connector(connect).await.unwrap()
}

/// A state-of-the-world stream.
pub(crate) struct Whole {
    node: String,
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Whole {
    /// Opens a stream and asks for these.
    pub(crate) async fn open(plane: &Plane, proxy: &SidecarIdentity, wanted: &[(Kind, &[&str])]) -> Self {
        let channel = connect(&plane.bootstrap(proxy, false), plane.app.xds_address()).await;
        let (requests, receiver) = mpsc::channel(32);
        let node = proxy.uuid.clone();
        for (kind, names) in wanted {
            requests.send(request(&node, *kind, names)).await.unwrap();
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.stream_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { node, requests, responses }
    }

    /// The next response, which is accepted.
    pub(crate) async fn next(&mut self, names: &[&str]) -> (Kind, DiscoveryResponse) {
        let response = self.unanswered().await;
        let kind = Kind::from_type_url(&response.type_url).unwrap();
        let ack = DiscoveryRequest { response_nonce: response.nonce.clone(), ..request(&self.node, kind, names) };
        self.requests.send(ack).await.unwrap();
        (kind, response)
    }

    /// The next response.
    pub(crate) async fn unanswered(&mut self) -> DiscoveryResponse {
        timeout(WAIT, self.responses.message()).await.expect("a response in time").unwrap().unwrap()
    }

    /// Whether nothing comes for this long.
    pub(crate) async fn is_silent(&mut self, time: Duration) -> bool {
        timeout(time, self.responses.message()).await.is_err()
    }
}

fn request(node: &str, kind: Kind, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Some(Node { id: node.into(), ..Node::default() }),
        type_url: kind.type_url().into(),
        resource_names: names.iter().map(ToString::to_string).collect(),
        ..DiscoveryRequest::default()
    }
}

/// The first response to a delta request for everything of a kind by somebody who holds `held`.
pub(crate) async fn delta(
    plane: &Plane,
    proxy: &SidecarIdentity,
    kind: Kind,
    held: &[(String, String)],
) -> DeltaDiscoveryResponse {
    let channel = connect(&plane.bootstrap(proxy, true), plane.app.xds_address()).await;
    let (requests, receiver) = mpsc::channel(4);
    let request = DeltaDiscoveryRequest {
        node: Some(Node { id: proxy.common_name("cluster.local"), ..Node::default() }),
        type_url: kind.type_url().into(),
        initial_resource_versions: held.iter().cloned().collect(),
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(request).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut stream = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    timeout(WAIT, stream.message()).await.expect("a response in time").unwrap().unwrap()
}

const WAIT: Duration = Duration::from_secs(10);
