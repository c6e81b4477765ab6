//! The smallest control plane: each node's resources, told once over ADS; refusals are kept.

use std::{
    collections::{BTreeSet, HashMap},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, anyhow};
use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    google::protobuf::Any,
};
use futures_util::{Stream, StreamExt};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

/// Name and resource, by type.
type Held = HashMap<String, Vec<(String, Any)>>;

#[derive(Default)]
struct Told {
    nodes: HashMap<String, Arc<Held>>,
    refusals: Vec<String>,
}

/// The server; it stops when dropped.
pub(super) struct Control {
    pub(super) port: u16,
    told: Arc<Mutex<Told>>,
    task: JoinHandle<()>,
}

impl Control {
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let told = Arc::<Mutex<Told>>::default();
        let service = AggregatedDiscoveryServiceServer::new(Ads(Arc::clone(&told)));
        let server = tonic::transport::Server::builder().add_service(service);
        let task = tokio::spawn(async move {
            let _until_dropped = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
        });
        Ok(Self { port, told, task })
    }

    /// What a node gets. To be called before it asks.
    pub(super) fn serve(&self, node: &str, resources: &[Value]) -> Result<()> {
        let mut held = Held::new();
        for json in resources {
            let any = oxmesh_proxy::xds::json::read(json).map_err(|errors| anyhow!("{}", errors.join("; ")))?;
            let name = json.get("name").or_else(|| json.get("cluster_name")).and_then(Value::as_str);
            held.entry(any.type_url.clone()).or_default().push((name.unwrap_or_default().to_owned(), any));
        }
        lock(&self.told).nodes.insert(node.to_owned(), Arc::new(held));
        Ok(())
    }

    pub(super) fn refusals(&self) -> Vec<String> {
        lock(&self.told).refusals.clone()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Ads(Arc<Mutex<Told>>);

/// One stream's state.
#[derive(Default)]
struct Session {
    held: Arc<Held>,
    node: String,
    /// Names asked for and answered, by type.
    answered: HashMap<String, BTreeSet<String>>,
    nonce: u64,
}

impl Session {
    /// The answer to a request, if it asks for something new. An acknowledgement asks for nothing.
    fn answer(&mut self, request: DiscoveryRequest, told: &Mutex<Told>) -> Option<DiscoveryResponse> {
        if let Some(node) = request.node.filter(|_| self.node.is_empty()) {
            self.held = lock(told).nodes.get(&node.id).cloned().unwrap_or_default();
            self.node = node.id;
        }
        if let Some(error) = request.error_detail {
            lock(told).refusals.push(format!("{} {}: {}", self.node, request.type_url, error.message));
        }
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        if self.answered.get(&request.type_url) == Some(&names) {
            return None;
        }
        let all = self.held.get(&request.type_url).map(Vec::as_slice).unwrap_or_default();
        // No names mean all, which is how clusters and listeners are asked for.
        let resources =
            all.iter().filter(|(name, _)| names.is_empty() || names.contains(name)).map(|(_, any)| any.clone());
        let resources = resources.collect();
        self.answered.insert(request.type_url.clone(), names);
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        Some(DiscoveryResponse {
            version_info: nonce.clone(),
            resources,
            type_url: request.type_url,
            nonce,
            ..Default::default()
        })
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (told, mut session) = (Arc::clone(&self.0), Session::default());
        let answers = request.into_inner().filter_map(move |message| {
            let answer = message.map(|request| session.answer(request, &told)).transpose();
            async move { answer }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }
}

fn lock(told: &Mutex<Told>) -> std::sync::MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}
