//! A real client over real TLS against the server, in both protocols.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::google::rpc::Status as RpcStatus;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::identity::{Ca, Issuer, KeyHome, Leaf, Policy, ServiceIdentity, SidecarIdentity};
use crate::metrics::Metrics;
use crate::xds::Kind;
use crate::xds::cache::{Resource, State};

const NAME: &str = "osm-controller.osm-system.svc.cluster.local";
const TRUST_DOMAIN: &str = "cluster.local";

/// Pods by uuid, each with the content of its one cluster `c`.
#[derive(Clone, Default)]
struct Pods {
    pods: BTreeMap<String, (ServiceIdentity, String)>,
    limit: Option<usize>,
}

impl View for Pods {
    fn state(&self, proxy: &SidecarIdentity, _keys: KeyHome) -> Result<State, Denied> {
        let pod = self.pods.get(&proxy.uuid).filter(|(service, _)| *service == proxy.service);
        let (_, content) = pod.ok_or_else(|| Denied::NoSuchPod(proxy.clone()))?;
        let mut state = State::default();
        state.insert(Kind::Cluster, Resource::new(Kind::Cluster, "c", content.clone().into()));
        state.insert(Kind::Listener, Resource::new(Kind::Listener, "l", b"listener".to_vec()));
        Ok(state)
    }

    fn max_proxies(&self) -> Option<usize> {
        self.limit
    }
}

/// A running server and what is needed to talk to it.
struct Fixture {
    _dir: tempfile::TempDir,
    issuer: Issuer,
    tls: Arc<ServerTls>,
    hub: Arc<Hub>,
    view: watch::Sender<Arc<dyn View>>,
    pods: Mutex<Pods>,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn buyer(uuid: &str) -> SidecarIdentity {
    SidecarIdentity { uuid: uuid.into(), service: ServiceIdentity::new("shop", "buyer") }
}

async fn fixture(server_validity: Duration) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let ca = Arc::new(Ca::open_or_create(dir.path()).unwrap());
    let issuer = Issuer::new(Arc::clone(&ca), Policy::new(TRUST_DOMAIN));
    let tls = ServerTls::new(ca, TRUST_DOMAIN, NAME, vec![], vec![], server_validity).unwrap();
    let tls = Arc::new(tls);
    let mut pods = Pods::default();
    for uuid in ["u1", "u2"] {
        pods.pods.insert(uuid.into(), (buyer(uuid).service, "c1".into()));
    }
    let (view, watch): (_, watch::Receiver<Arc<dyn View>>) = watch::channel(Arc::new(pods.clone()));
    let hub = Arc::new(Hub::new(watch, TRUST_DOMAIN, Arc::new(Metrics::default())));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(serve(listener, Arc::clone(&tls), Arc::clone(&hub), stop.clone()));
    Fixture { _dir: dir, issuer, tls, hub, view, pods: Mutex::new(pods), address, stop }
}

impl Fixture {
    fn change(&self, change: impl FnOnce(&mut Pods)) {
        let mut pods = self.pods.lock();
        change(&mut pods);
        self.view.send_replace(Arc::new(pods.clone()));
    }

    fn certificate(&self, id: &SidecarIdentity) -> Leaf {
        self.issuer.sidecar(id, Duration::from_secs(3600)).unwrap()
    }

    async fn channel(&self, leaf: Option<&Leaf>) -> Result<Channel, tonic::transport::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.ca().cert_der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match leaf {
            Some(leaf) => {
                let chain = CertificateDer::from_pem_slice(leaf.chain_pem.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![chain], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let address = self.address;
        let connect = tower::service_fn(move |_: tonic::codegen::http::Uri| {
            let connector = connector.clone();
            async move {
                let tcp = TcpStream::connect(address).await?;
                let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
                Ok::<_, io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
            }
        });
        Endpoint::from_static("http://ads").connect_with_connector(connect).await
    }

    /// A state-of-the-world stream that sent one request for clusters with this node id.
    async fn stream(&self, id: &SidecarIdentity, node: &str) -> Result<Client, tonic::Status> {
        let channel = self.channel(Some(&self.certificate(id))).await.unwrap();
        Client::open(channel, node).await
    }
}

struct Client {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Client {
    async fn open(channel: Channel, node: &str) -> Result<Self, tonic::Status> {
        let (requests, receiver) = mpsc::channel(16);
        requests.send(ask(Kind::Cluster, node)).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.stream_aggregated_resources(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { requests, responses })
    }

    async fn next(&mut self) -> Result<DiscoveryResponse, tonic::Status> {
        let next = timeout(Duration::from_secs(10), self.responses.message()).await.expect("a response in time");
        next.map(|response| response.expect("the stream goes on"))
    }

    async fn answer(&self, response: &DiscoveryResponse, error: Option<&str>) {
        let request = DiscoveryRequest {
            response_nonce: response.nonce.clone(),
            type_url: response.type_url.clone(),
            error_detail: error.map(|e| RpcStatus { message: e.into(), ..RpcStatus::default() }),
            ..DiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }
}

fn node(id: &str) -> Option<Node> {
    Some(Node { id: id.into(), user_agent_name: "test".into(), ..Node::default() })
}

fn ask(kind: Kind, node_id: &str) -> DiscoveryRequest {
    DiscoveryRequest { node: node(node_id), type_url: kind.type_url().into(), ..DiscoveryRequest::default() }
}

fn bodies(response: &DiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|any| std::str::from_utf8(&any.value).unwrap()).collect()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn a_sidecar_gets_its_resources_and_what_changes() {
    let f = fixture(DAY).await;
    let mut client = f.stream(&buyer("u1"), "u1").await.unwrap();
    let first = client.next().await.unwrap();
    assert_eq!(bodies(&first), ["c1"]);
    client.answer(&first, None).await;
    f.change(|pods| pods.pods.get_mut("u1").unwrap().1 = "c2".into());
    let second = client.next().await.unwrap();
    assert_eq!(bodies(&second), ["c2"]);
    assert_ne!(first.version_info, second.version_info);
}

#[tokio::test]
async fn the_delta_protocol_is_served_and_versions_survive_a_new_stream() {
    let f = fixture(DAY).await;
    let mut held = std::collections::HashMap::new();
    for (expected, node_id) in [(1, "u1"), (0, "u1.sidecar.buyer.shop.cluster.local")] {
        let channel = f.channel(Some(&f.certificate(&buyer("u1")))).await.unwrap();
        let (requests, receiver) = mpsc::channel(4);
        let request = DeltaDiscoveryRequest {
            node: node(node_id),
            type_url: Kind::Cluster.type_url().into(),
            initial_resource_versions: held.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(request).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let stream = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await;
        let response = stream.unwrap().into_inner().message().await.unwrap().unwrap();
        assert_eq!(response.resources.len(), expected);
        held.extend(response.resources.into_iter().map(|r| (r.name, r.version)));
    }
}

#[tokio::test]
async fn a_node_id_of_another_is_refused() {
    let f = fixture(DAY).await;
    for stranger in ["u2", "", "u1.sidecar.seller.shop.cluster.local"] {
        let mut client = f.stream(&buyer("u1"), stranger).await.unwrap();
        let error = client.next().await.unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied, "{stranger:?}");
        assert!(error.message().contains("u1"), "{error}");
    }
    assert_eq!(f.hub.proxies().len(), 0);
}

#[tokio::test]
async fn a_pod_that_does_not_exist_or_runs_as_another_is_refused() {
    let f = fixture(DAY).await;
    let seller = SidecarIdentity { uuid: "u1".into(), service: ServiceIdentity::new("shop", "seller") };
    for id in [buyer("u3"), seller] {
        let mut client = f.stream(&id, &id.uuid).await.unwrap();
        let error = client.next().await.unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied);
        assert!(error.message().contains("osm-proxy-uuid"), "{error}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_no_sidecars_is_refused() {
    let f = fixture(DAY).await;
    let leaf = f.issuer.leaf(&buyer("u1").service, std::time::SystemTime::now()).unwrap();
    let channel = f.channel(Some(&leaf)).await.unwrap();
    let mut client = Client::open(channel, "u1").await.unwrap();
    assert_eq!(client.next().await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn without_a_certificate_of_our_authority_nobody_gets_through_the_handshake() {
    let f = fixture(DAY).await;
    let stranger_dir = tempfile::tempdir().unwrap();
    let stranger = Ca::open_or_create(stranger_dir.path()).unwrap();
    let stranger = Issuer::new(Arc::new(stranger), Policy::new(TRUST_DOMAIN));
    let foreign = stranger.sidecar(&buyer("u1"), DAY).unwrap();
    for leaf in [None, Some(&foreign)] {
        // With TLS 1.3 a client learns of it at its first read.
        let refused = match f.channel(leaf).await {
            Err(_) => true,
            Ok(channel) => match Client::open(channel, "u1").await {
                Err(_) => true,
                Ok(mut client) => client.next().await.is_err(),
            },
        };
        assert!(refused);
    }
    assert_eq!(f.hub.proxies().len(), 0);
}

#[tokio::test]
async fn the_stream_of_a_deleted_pod_ends() {
    let f = fixture(DAY).await;
    let mut client = f.stream(&buyer("u1"), "u1").await.unwrap();
    client.next().await.unwrap();
    f.change(|pods| drop(pods.pods.remove("u1")));
    assert_eq!(client.next().await.unwrap_err().code(), Code::PermissionDenied);
    eventually("the proxy is forgotten", || f.hub.proxies().is_empty()).await;
}

#[tokio::test]
async fn a_refusal_is_kept_and_shown_and_the_rest_goes_on() {
    let f = fixture(DAY).await;
    let mut client = f.stream(&buyer("u1"), "u1").await.unwrap();
    let first = client.next().await.unwrap();
    client.answer(&first, None).await;
    f.change(|pods| pods.pods.get_mut("u1").unwrap().1 = "bad".into());
    let bad = client.next().await.unwrap();
    client.answer(&bad, Some("cluster 'c': no good")).await;
    let again = client.next().await.unwrap();
    assert_eq!(bodies(&again), ["c1"]);
    client.answer(&again, None).await;
    client.requests.send(ask(Kind::Listener, "u1")).await.unwrap();
    assert_eq!(bodies(&client.next().await.unwrap()), ["listener"]);

    let proxies = f.hub.proxies();
    let clusters = &proxies[0].kinds[0];
    assert_eq!((clusters.nacks, clusters.refused.len()), (1, 1));
    assert_eq!(clusters.refused[0].name, "c");
    assert_eq!(clusters.refused[0].error, "cluster 'c': no good");
    assert_eq!(proxies[0].user_agent, "test");
    assert!(f.hub.metrics().render().contains("oxmesh_proxy_nack_count{proxy_uuid=\"u1\""));
}

#[tokio::test]
async fn a_slow_client_gets_the_newest_state_and_not_every_one_in_between() {
    let f = fixture(DAY).await;
    let mut client = f.stream(&buyer("u1"), "u1").await.unwrap();
    client.next().await.unwrap();
    let big = "x".repeat(300_000);
    for n in 0..300 {
        f.change(|pods| pods.pods.get_mut("u1").unwrap().1 = format!("{n} {big}"));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut read = 0;
    loop {
        let response = client.next().await.unwrap();
        read += 1;
        if bodies(&response)[0].starts_with("299 ") {
            break;
        }
    }
    assert!(read < 30, "{read} messages waited for a client that did not read");
}

#[tokio::test]
async fn more_proxies_than_allowed_are_refused() {
    let f = fixture(DAY).await;
    f.change(|pods| pods.limit = Some(1));
    let mut first = f.stream(&buyer("u1"), "u1").await.unwrap();
    first.next().await.unwrap();
    let mut second = f.stream(&buyer("u2"), "u2").await.unwrap();
    assert_eq!(second.next().await.unwrap_err().code(), Code::ResourceExhausted);
    drop(first);
    eventually("the place is free again", || f.hub.proxies().is_empty()).await;
    let mut second = f.stream(&buyer("u2"), "u2").await.unwrap();
    second.next().await.unwrap();
}

#[tokio::test]
async fn one_proxy_cannot_take_all_the_room() {
    let f = fixture(DAY).await;
    let mut open = vec![];
    let refused = loop {
        let mut client = f.stream(&buyer("u1"), "u1").await.unwrap();
        match client.next().await {
            Ok(_) => open.push(client),
            Err(error) => break error,
        }
        assert!(open.len() < 100);
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    f.stream(&buyer("u2"), "u2").await.unwrap().next().await.unwrap();
}

#[tokio::test]
async fn renewal_of_the_servers_certificate_leaves_streams_alone() {
    let f = fixture(Duration::from_secs(60)).await;
    let mut client = f.stream(&buyer("u1"), "u1").await.unwrap();
    client.next().await.unwrap();
    let now = std::time::SystemTime::now();
    assert!(!f.tls.rotate(now).unwrap());
    assert!(f.tls.rotate(f.tls.next_due()).unwrap());
    f.change(|pods| pods.pods.get_mut("u1").unwrap().1 = "c2".into());
    assert_eq!(bodies(&client.next().await.unwrap()), ["c2"]);
    let mut other = f.stream(&buyer("u2"), "u2").await.unwrap();
    other.next().await.unwrap();
}

#[tokio::test]
async fn a_request_beyond_the_bound_ends_only_its_own_stream() {
    let f = fixture(DAY).await;
    let mut good = f.stream(&buyer("u1"), "u1").await.unwrap();
    good.next().await.unwrap();
    let mut greedy = f.stream(&buyer("u2"), "u2").await.unwrap();
    greedy.next().await.unwrap();
    let huge = DiscoveryRequest { resource_names: vec!["x".repeat(5 << 20)], ..ask(Kind::Endpoint, "u2") };
    greedy.requests.send(huge).await.unwrap();
    let ended = timeout(Duration::from_secs(10), greedy.responses.message()).await.unwrap();
    assert!(!matches!(ended, Ok(Some(_))));
    f.change(|pods| pods.pods.get_mut("u1").unwrap().1 = "c2".into());
    assert_eq!(bodies(&good.next().await.unwrap()), ["c2"]);
}

#[tokio::test]
async fn silent_and_talking_strangers_hold_up_nobody() {
    let f = fixture(DAY).await;
    let mut strangers = vec![];
    for n in 0..200u32 {
        let mut tcp = TcpStream::connect(f.address).await.unwrap();
        if n % 2 == 0 {
            let noise: Vec<u8> = (0..200).map(|_| fastrand::u8(..)).collect();
            tokio::io::AsyncWriteExt::write_all(&mut tcp, &noise).await.unwrap();
        }
        strangers.push(tcp);
    }
    f.stream(&buyer("u1"), "u1").await.unwrap().next().await.unwrap();
}

#[tokio::test]
async fn stopping_the_server_ends_its_streams_with_a_reason() {
    let f = fixture(DAY).await;
    let mut client = f.stream(&buyer("u1"), "u1").await.unwrap();
    client.next().await.unwrap();
    f.stop.cancel();
    assert_eq!(client.next().await.unwrap_err().code(), Code::Unavailable);
}
