//! The ADS server: our own TLS accept loop under tonic, one task per stream.
//!
//! A client certificate of the mesh's authority is required in the handshake; who a proxy is comes
//! from it alone. Every stream is driven by a [`super::session::Session`]; nothing is queued for a
//! slow client but one message, the next is made when there is room for it.

mod accept;
mod hub;
mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures_util::{Stream, StreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub use self::accept::{Peer, ServerTls, TlsError};
pub use self::hub::{Denied, Hub, ProxyReport, View};
use self::stream::{Incoming, StreamTask};
use super::session::{Message, Protocol};

/// Serves ADS on `listener` until `stop` is cancelled, then ends every stream and returns.
///
/// # Errors
/// Whatever ends the server otherwise; single connections never do.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    hub: Arc<Hub>,
    stop: CancellationToken,
) -> io::Result<()> {
    let (connections, incoming) = mpsc::channel(ACCEPT_BACKLOG);
    let accepting = tokio::spawn(accept::accept(listener, tls, connections, stop.clone()));
    let service = AggregatedDiscoveryServiceServer::new(Ads { hub, stop: stop.clone() })
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.clone().cancelled_owned());
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_TIME).await;
    };
    let result = tokio::select! {
        result = served => result.map_err(io::Error::other),
        () = drained => Ok(()),
    };
    accepting.abort();
    result
}

struct Ads {
    hub: Arc<Hub>,
    stop: CancellationToken,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let messages = self.run(Protocol::StateOfTheWorld, request, Incoming::StateOfTheWorld)?;
        Ok(Response::new(Box::pin(messages.map(|message| match message? {
            Message::StateOfTheWorld(response) => Ok(response),
            Message::Delta(_) => Err(Status::internal("a delta response on a state-of-the-world stream")),
        }))))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let messages = self.run(Protocol::Delta, request, Incoming::Delta)?;
        Ok(Response::new(Box::pin(messages.map(|message| match message? {
            Message::Delta(response) => Ok(response),
            Message::StateOfTheWorld(_) => Err(Status::internal("a state-of-the-world response on a delta stream")),
        }))))
    }
}

impl Ads {
    fn run<T: Send + 'static>(
        &self,
        protocol: Protocol,
        request: Request<Streaming<T>>,
        wrap: fn(T) -> Incoming,
    ) -> Result<ReceiverStream<Result<Message, Status>>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("no client certificate"))?;
        let requests = request.into_inner().map(move |item| item.map(wrap)).boxed();
        let (responses, receiver) = mpsc::channel(1);
        let task =
            StreamTask { hub: Arc::clone(&self.hub), peer, protocol, requests, responses, stop: self.stop.clone() };
        tokio::spawn(task.run());
        Ok(ReceiverStream::new(receiver))
    }
}

/// Envoy's node alone is 61 KB; lists of names come on top.
const MAX_REQUEST_BYTES: usize = 4 << 20;
const MAX_STREAMS_PER_CONNECTION: u32 = 16;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that are through the handshake but not taken by the server yet.
const ACCEPT_BACKLOG: usize = 64;
/// Longest wait for streams to end at shutdown.
const DRAIN_TIME: Duration = Duration::from_secs(3);
