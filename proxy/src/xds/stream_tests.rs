//! The stream against a gRPC server in the same process.

use std::{collections::HashSet, net::SocketAddr, pin::Pin};

use arc_swap::ArcSwap;
use envoy_types::pb::envoy::{
    config::cluster::v3::Cluster as PbCluster,
    service::discovery::v3::aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use futures_util::{Stream as Answers, StreamExt as _};
use prost::Message as _;
use tokio::{net::TcpListener, time::timeout};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Response, Status};

use super::*;
use crate::{
    config::cluster::UpstreamHttp,
    upstream::{SystemResolver, Upstreams},
    xds::{
        assemble::{Assembler, Statics},
        control::Control,
        state::{Settings, Variant},
    },
};

type Sent = mpsc::UnboundedSender<(String, Request)>;

/// Tells all requests with the caller's metadata `who`, and hands each stream's sender of answers to the test.
struct Server {
    requests: Sent,
    streams: mpsc::UnboundedSender<mpsc::UnboundedSender<Result<DiscoveryResponse, Status>>>,
    deltas: mpsc::UnboundedSender<mpsc::UnboundedSender<Result<DeltaDiscoveryResponse, Status>>>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Server {
    type StreamAggregatedResourcesStream = Pin<Box<dyn Answers<Item = Result<DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Answers<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn stream_aggregated_resources(
        &self,
        request: tonic::Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (send, answers) = mpsc::unbounded_channel();
        let who = who(&request);
        let (mut messages, requests) = (request.into_inner(), self.requests.clone());
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                // The test may have seen enough.
                let _ = requests.send((who.clone(), Request::Sotw(message)));
            }
        });
        self.streams.send(send).unwrap();
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(answers))))
    }

    async fn delta_aggregated_resources(
        &self,
        request: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (send, answers) = mpsc::unbounded_channel();
        let who = who(&request);
        let (mut messages, requests) = (request.into_inner(), self.requests.clone());
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                // The test may have seen enough.
                let _ = requests.send((who.clone(), Request::Delta(message)));
            }
        });
        self.deltas.send(send).unwrap();
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(answers))))
    }
}

fn who<T>(request: &tonic::Request<T>) -> String {
    request.metadata().get("who").map(|who| who.to_str().unwrap().to_owned()).unwrap_or_default()
}

struct World {
    shared: Arc<Shared>,
    client: Arc<Mutex<Client>>,
    requests: mpsc::UnboundedReceiver<(String, Request)>,
    streams: mpsc::UnboundedReceiver<mpsc::UnboundedSender<Result<DiscoveryResponse, Status>>>,
    deltas: mpsc::UnboundedReceiver<mpsc::UnboundedSender<Result<DeltaDiscoveryResponse, Status>>>,
}

impl World {
    async fn new(api: Api) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, seen) = mpsc::unbounded_channel();
        let (streams, opened) = mpsc::unbounded_channel();
        let (deltas, deltas_opened) = mpsc::unbounded_channel();
        let service = AggregatedDiscoveryServiceServer::new(Server { requests, streams, deltas });
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let (shared, client) = start(api, address);
        Self { shared, client, requests: seen, streams: opened, deltas: deltas_opened }
    }

    async fn request(&mut self) -> (String, Request) {
        timeout(Duration::from_secs(30), self.requests.recv()).await.unwrap().unwrap()
    }

    async fn sotw(&mut self) -> DiscoveryRequest {
        match self.request().await.1 {
            Request::Sotw(request) => request,
            Request::Delta(request) => panic!("of the other variant: {request:?}"),
        }
    }

    async fn stream(&mut self) -> mpsc::UnboundedSender<Result<DiscoveryResponse, Status>> {
        timeout(Duration::from_secs(30), self.streams.recv()).await.unwrap().unwrap()
    }
}

/// A proxy's control side, with the server as its static cluster.
fn start(api: Api, address: SocketAddr) -> (Arc<Shared>, Arc<Mutex<Client>>) {
    let shared = Arc::new(Shared::new());
    let upstreams = Upstreams::new(shared.metrics.clone(), 1, Arc::new(SystemResolver::default()), None);
    let (changed, outgoing) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let files = Files::new(Arc::clone(&changed));
    let settings = Settings {
        variant: if api == Api::Grpc { Variant::Sotw } else { Variant::Delta },
        clusters: true,
        listeners: true,
        patience: Duration::from_secs(15),
        roots: Vec::new(),
        static_clusters: HashSet::from(["control".into()]),
        static_listeners: HashSet::new(),
    };
    let client = Arc::new(Mutex::new(Client::new(settings, Instant::now())));
    let statics = Statics { clusters: vec![Arc::new(cluster(address))], ..Statics::default() };
    let (again, none) = (Arc::clone(&changed), None);
    let control = Control {
        shared: Arc::clone(&shared),
        client: Arc::clone(&client),
        changed: Arc::clone(&changed),
        outgoing: Arc::clone(&outgoing),
        assembler: Assembler::new(Arc::clone(&shared), upstreams, none, statics, files.clone(), again),
        status: Arc::new(ArcSwap::default()),
        drain_time: Duration::from_secs(1),
    };
    let stream = Stream {
        ads: Ads {
            api,
            cluster: "control".into(),
            set_node_on_first_message_only: true,
            initial_metadata: vec![("who".to_owned(), "me".to_owned())],
            authority: None,
        },
        node: Node { id: "node".to_owned(), ..Node::default() },
        shared: Arc::clone(&shared),
        client: Arc::clone(&client),
        files,
        changed,
        outgoing,
        options: Options::SERVER,
    };
    tokio::spawn(control.run());
    tokio::spawn(stream.run());
    (shared, client)
}

fn cluster(address: SocketAddr) -> ClusterSpec {
    ClusterSpec { http: UpstreamHttp::Http2, ..crate::testing::cluster("control", crate::testing::fixed(&[address])) }
}

fn response(nonce: &str, names: &[&str]) -> DiscoveryResponse {
    let encode = |name: &&str| {
        let cluster = PbCluster { name: (*name).to_owned(), ..PbCluster::default() };
        Any { type_url: Kind::Cluster.type_url().to_owned(), value: cluster.encode_to_vec() }
    };
    DiscoveryResponse {
        type_url: Kind::Cluster.type_url().to_owned(),
        version_info: nonce.to_owned(),
        nonce: nonce.to_owned(),
        resources: names.iter().map(encode).collect(),
        ..Default::default()
    }
}

#[tokio::test]
async fn what_the_server_sends_is_put_in_force_and_acknowledged() {
    let mut world = World::new(Api::Grpc).await;
    let answers = world.stream().await;
    let (who, first) = world.request().await;
    let Request::Sotw(first) = first else { panic!("of the other variant") };
    assert_eq!((who.as_str(), first.node.unwrap().id.as_str()), ("me", "node"));
    assert_eq!(first.type_url, Kind::Cluster.type_url());
    let mut news = world.shared.store.changed();
    answers.send(Ok(response("1", &["a"]))).unwrap();
    let ack = world.sotw().await;
    assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("1", "1"));
    assert!(ack.node.is_none() && ack.error_detail.is_none());
    assert_eq!(world.sotw().await.type_url, Kind::Listener.type_url());
    let in_force = async {
        while !world.shared.store.current().clusters.contains_key("a") {
            news.changed().await.unwrap();
        }
    };
    timeout(Duration::from_secs(30), in_force).await.unwrap();
    assert_eq!(world.shared.metrics.value("control_plane.connected_state"), Some(1));
}

#[tokio::test]
async fn a_broken_stream_is_made_again_and_nothing_held_is_lost() {
    let mut world = World::new(Api::Grpc).await;
    let answers = world.stream().await;
    world.sotw().await;
    answers.send(Ok(response("7", &["a"]))).unwrap();
    world.sotw().await;
    world.sotw().await;
    answers.send(Err(Status::unavailable("going"))).unwrap();
    let _answers = world.stream().await;
    let again = world.sotw().await;
    assert_eq!((again.version_info.as_str(), again.response_nonce.as_str()), ("7", ""));
    assert_eq!(again.node.unwrap().id, "node", "a new stream knows nobody");
    assert!(world.client.lock().kind(Kind::Cluster).entries().contains_key("a"));
}

#[tokio::test]
async fn a_resource_that_is_not_supported_is_refused_by_name_over_delta() {
    let mut world = World::new(Api::DeltaGrpc).await;
    let answers = timeout(Duration::from_secs(30), world.deltas.recv()).await.unwrap().unwrap();
    world.request().await;
    let bad = PbCluster { name: "bad".to_owned(), lb_policy: 2, ..PbCluster::default() };
    let wrap = |cluster: PbCluster| envoy_types::pb::envoy::service::discovery::v3::Resource {
        name: cluster.name.clone(),
        version: "1".to_owned(),
        resource: Some(Any { type_url: Kind::Cluster.type_url().to_owned(), value: cluster.encode_to_vec() }),
        ..Default::default()
    };
    let good = PbCluster { name: "good".to_owned(), ..PbCluster::default() };
    let response = DeltaDiscoveryResponse {
        type_url: Kind::Cluster.type_url().to_owned(),
        nonce: "n".to_owned(),
        resources: vec![wrap(bad), wrap(good)],
        ..Default::default()
    };
    answers.send(Ok(response)).unwrap();
    let Request::Delta(nack) = world.request().await.1 else { panic!("of the other variant") };
    let why = nack.error_detail.unwrap().message;
    assert!(nack.response_nonce == "n" && why.starts_with("bad: lb_policy: RING_HASH"), "{why}");
    let held: Vec<String> =
        world.client.lock().kind(Kind::Cluster).entries().keys().map(|name| name.to_string()).collect();
    assert_eq!(held, ["good"]);
}

#[tokio::test]
async fn a_message_larger_than_the_usual_4_mib_does_not_end_the_stream() {
    let mut world = World::new(Api::Grpc).await;
    let answers = world.stream().await;
    world.sotw().await;
    let names: Vec<String> = (0..60_000).map(|i| format!("{i:0100}")).collect();
    let mut big = response("1", &names.iter().map(String::as_str).collect::<Vec<_>>());
    // Only the size matters here, not what they are.
    big.type_url = Kind::Routes.type_url().to_owned();
    assert!(big.encoded_len() > 5 << 20);
    answers.send(Ok(big)).unwrap();
    answers.send(Ok(response("2", &["a"]))).unwrap();
    assert_eq!(world.sotw().await.version_info, "2", "the stream goes on");
}
