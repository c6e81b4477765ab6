//! The aggregated stream to the control plane: connects, sends what the state wants sent, feeds it what comes.
//!
//! Runs on the control runtime and never ends. The connection goes through the bootstrap's static cluster like any
//! upstream connection, so that its TLS, names and statistics are those of the cluster. A broken stream changes nothing
//! that is held.

use std::{error::Error, io, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::protobuf::Any,
};
use http::Uri;
use hyper_util::rt::TokioIo;
use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
    transport::{Channel, Endpoint},
};

use super::{
    convert::{self, Options, Resource, Warnings},
    kind::Kind,
    sds_file::Files,
    secrets,
    state::{Client, Request},
};
use crate::{
    bootstrap::{Ads, Api},
    config::cluster::{ClusterSpec, Http2Keepalive},
    snapshot::Shared,
    telemetry::Scope,
    upstream::{Cluster, PickContext, UpstreamConn},
};

/// All that a stream needs.
#[derive(Debug)]
pub struct Stream {
    /// How it is made.
    pub ads: Ads,
    /// Who we are.
    pub node: Node,
    /// Where the cluster is found.
    pub shared: Arc<Shared>,
    /// What is asked and held.
    pub client: Arc<Mutex<Client>>,
    /// Read again before each connection, so that fresh certificates are used at once.
    pub files: Files,
    /// Told when what is held changed.
    pub changed: Arc<Notify>,
    /// Tells that the state has requests to send.
    pub outgoing: Arc<Notify>,
    /// How resources are judged.
    pub options: Options,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("cluster {0} has no endpoint or secrets yet")]
    NotReady(Arc<str>),
    #[error("no connection: {0}")]
    Connect(String),
    #[error("{0}")]
    Status(String),
    #[error("the server ended the stream")]
    Closed,
    #[error("the server does not read what it is sent")]
    Stuck,
}

impl Stream {
    /// Keeps a stream for ever.
    pub async fn run(self) {
        let connected = self.shared.metrics.gauge(&Scope::plain("control_plane"), "connected_state");
        let unknown = self.shared.metrics.counter(&Scope::plain("server"), "dynamic_unknown_fields");
        let mut backoff = Backoff::default();
        loop {
            let mut session = Session { stream: &self, connected: &connected, unknown: &unknown, heard: false };
            let Err(ended) = session.run().await;
            if session.heard {
                backoff = Backoff::default();
            }
            connected.set(0.0);
            self.client.lock().disconnected();
            let wait = backoff.next();
            tracing::warn!(cluster = %self.ads.cluster, error = %ended, retry_in = ?wait, "no stream to the control plane");
            sleep(wait).await;
            self.files.reload();
        }
    }
}

struct Session<'a> {
    stream: &'a Stream,
    connected: &'a Gauge,
    unknown: &'a Counter,
    heard: bool,
}

impl Session<'_> {
    async fn run(&mut self) -> Result<std::convert::Infallible, Ended> {
        let channel = self.connect().await?;
        tracing::info!(cluster = %self.stream.ads.cluster, "connected to the control plane");
        self.connected.set(1.0);
        let authority = self.stream.ads.authority.as_deref().unwrap_or(&self.stream.ads.cluster);
        let origin = Uri::builder().scheme("http").authority(authority).path_and_query("").build();
        let origin = origin.map_err(|error| Ended::Connect(format!("authority {authority:?}: {error}")))?;
        let mut grpc =
            AggregatedDiscoveryServiceClient::with_origin(channel, origin).max_decoding_message_size(MAX_MESSAGE_BYTES);
        self.stream.client.lock().connected(Instant::now());
        match self.stream.ads.api {
            Api::Grpc => {
                let (send, requests) = mpsc::channel(MAX_QUEUED);
                let request = self.request(ReceiverStream::new(requests));
                self.talk::<Sotw>(send, grpc.stream_aggregated_resources(request)).await
            }
            Api::DeltaGrpc => {
                let (send, requests) = mpsc::channel(MAX_QUEUED);
                let request = self.request(ReceiverStream::new(requests));
                self.talk::<Delta>(send, grpc.delta_aggregated_resources(request)).await
            }
        }
    }

    async fn connect(&self) -> Result<Channel, Ended> {
        let cluster = self.cluster().await?;
        let limit = cluster.spec().connect_timeout;
        let keepalive = cluster.spec().http2_keepalive.unwrap_or(PINGS);
        let connector = tower::service_fn(move |_: Uri| {
            let cluster = Arc::clone(&cluster);
            async move { dial(&cluster).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://control-plane")
            .connect_timeout(limit)
            .http2_keep_alive_interval(keepalive.interval)
            .keep_alive_timeout(keepalive.timeout)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(|error| Ended::Connect(chain(&error)))
    }

    /// The cluster, once it is ready: its name may have to be resolved first.
    async fn cluster(&self) -> Result<Arc<Cluster>, Ended> {
        let (store, name) = (&self.stream.shared.store, &self.stream.ads.cluster);
        let mut news = store.changed();
        let ready = async {
            loop {
                let cluster = store.current().clusters.get(name).cloned();
                if let Some(cluster) = cluster.filter(|cluster| cluster.is_ready()) {
                    return cluster;
                }
                if news.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        timeout(READY_PATIENCE, ready).await.map_err(|_| Ended::NotReady(Arc::clone(name)))
    }

    fn request<T>(&self, messages: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(messages);
        add_metadata(request.metadata_mut(), &self.stream.ads.initial_metadata);
        request
    }

    async fn talk<W: Wire>(
        &mut self,
        send: mpsc::Sender<W::Request>,
        call: impl Future<Output = Result<tonic::Response<Streaming<W::Response>>, tonic::Status>>,
    ) -> Result<std::convert::Infallible, Ended> {
        let mut call = std::pin::pin!(call);
        let mut first = true;
        self.send::<W>(&send, &mut first)?;
        // The answer's head may come only with the first response, and requests must be able to go out before it.
        let mut answers: Option<Streaming<W::Response>> = None;
        loop {
            let next = async {
                match &mut answers {
                    Some(answers) => answers.message().await.map(Some),
                    None => {
                        let answer = call.as_mut().await?;
                        answers = Some(answer.into_inner());
                        Ok(None)
                    }
                }
            };
            tokio::select! {
                message = next => match message.map_err(|status| Ended::Status(words(&status)))? {
                    Some(Some(response)) => self.take::<W>(response),
                    Some(None) => return Err(Ended::Closed),
                    None => {}
                },
                () = self.stream.outgoing.notified() => {}
            }
            self.send::<W>(&send, &mut first)?;
        }
    }

    fn take<W: Wire>(&mut self, response: W::Response) {
        self.heard = true;
        let options = self.stream.options;
        let unknown = self.unknown;
        let mut check = |kind: Kind, any: &Any| check_and_tell(kind, any, &options, unknown);
        let mut client = self.stream.client.lock();
        match W::take(&mut client, response, &mut check) {
            Ok(errors) if errors.is_empty() => {}
            Ok(errors) => tracing::warn!(errors = errors.join("; "), "configuration refused"),
            Err(error) => tracing::warn!(error, "response ignored"),
        }
        if client.take_changed() {
            self.stream.changed.notify_one();
        }
    }

    fn send<W: Wire>(&self, send: &mpsc::Sender<W::Request>, first: &mut bool) -> Result<(), Ended> {
        for request in self.stream.client.lock().take_requests() {
            let node = *first || !self.stream.ads.set_node_on_first_message_only;
            *first = false;
            let Some(request) = W::request(request, node.then(|| self.stream.node.clone())) else { continue };
            send.try_send(request).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Ended::Stuck,
                mpsc::error::TrySendError::Closed(_) => Ended::Closed,
            })?;
        }
        Ok(())
    }
}

/// One of the protocol's two variants.
trait Wire {
    type Request;
    type Response;
    fn request(request: Request, node: Option<Node>) -> Option<Self::Request>;
    fn take(
        client: &mut Client,
        response: Self::Response,
        check: &mut super::subscription::Check<'_>,
    ) -> Result<Vec<String>, String>;
}

struct Sotw;
struct Delta;

impl Wire for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn request(request: Request, node: Option<Node>) -> Option<DiscoveryRequest> {
        match request {
            Request::Sotw(request) => Some(DiscoveryRequest { node, ..request }),
            Request::Delta(_) => None,
        }
    }

    fn take(
        client: &mut Client,
        response: DiscoveryResponse,
        check: &mut super::subscription::Check<'_>,
    ) -> Result<Vec<String>, String> {
        client.sotw(response, Instant::now(), check)
    }
}

impl Wire for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn request(request: Request, node: Option<Node>) -> Option<DeltaDiscoveryRequest> {
        match request {
            Request::Delta(request) => Some(DeltaDiscoveryRequest { node, ..request }),
            Request::Sotw(_) => None,
        }
    }

    fn take(
        client: &mut Client,
        response: DeltaDiscoveryResponse,
        check: &mut super::subscription::Check<'_>,
    ) -> Result<Vec<String>, String> {
        client.delta(response, Instant::now(), check)
    }
}

/// Converts a resource from the control plane; secrets must be of use as well.
///
/// # Errors
/// All that is wrong with it, in words.
pub fn check(kind: Kind, any: &Any, options: &Options) -> Result<(Resource, Warnings), String> {
    let (resource, warnings) =
        convert::resource(kind.type_url(), any, options).map_err(|rejected| rejected.errors.join("; "))?;
    if let Resource::Secret { name, secret } = &resource {
        secrets::check(name, secret)?;
    }
    Ok((resource, warnings))
}

/// As [`check`]; warnings are counted and logged.
fn check_and_tell(kind: Kind, any: &Any, options: &Options, unknown: &Counter) -> Result<Resource, String> {
    let (resource, warnings) = check(kind, any, options)?;
    for warning in warnings {
        if warning.contains("unknown field") {
            unknown.increment(1);
        }
        tracing::warn!(kind = kind.service(), name = %resource.name(), warning, "configuration taken with a warning");
    }
    Ok(resource)
}

async fn dial(cluster: &Arc<Cluster>) -> io::Result<UpstreamConn> {
    let endpoint = cluster.pick(&PickContext::default()).map_err(|error| io::Error::other(error.to_string()))?;
    let conn = cluster.connect_tcp(&endpoint).await.map_err(|error| io::Error::other(error.to_string()))?;
    notice_half_open(&conn, cluster.spec())?;
    Ok(conn)
}

/// A control plane whose host is gone must be noticed though nothing is sent for hours. HTTP/2 pings can't be frequent:
/// gRPC servers end connections that ping more than every five minutes.
fn notice_half_open(conn: &UpstreamConn, spec: &ClusterSpec) -> io::Result<()> {
    let socket = SockRef::from(conn.tcp());
    socket.set_tcp_user_timeout(Some(Duration::from_secs(60)))?;
    if spec.tcp_keepalive.is_none() {
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    Ok(())
}

fn add_metadata(metadata: &mut MetadataMap, pairs: &[(String, String)]) {
    for (key, value) in pairs {
        match (key.parse::<AsciiMetadataKey>(), value.parse::<AsciiMetadataValue>()) {
            (Ok(key), Ok(value)) => {
                metadata.append(key, value);
            }
            _ => tracing::warn!(key, "initial_metadata that is no header is left out"),
        }
    }
}

fn words(status: &tonic::Status) -> String {
    with_causes(format!("{:?}: {}", status.code(), status.message()), status.source())
}

fn chain(error: &dyn Error) -> String {
    with_causes(error.to_string(), error.source())
}

/// Words with their causes, without saying anything twice.
fn with_causes(mut words: String, mut cause: Option<&dyn Error>) -> String {
    while let Some(error) = cause {
        let next = error.to_string();
        if !words.contains(&next) {
            words = format!("{words}: {next}");
        }
        cause = error.source();
    }
    words
}

/// Full jitter over a doubling bound.
struct Backoff {
    bound: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { bound: BACKOFF_BASE }
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let wait = self.bound.mul_f64(fastrand::f64());
        self.bound = (self.bound * 2).min(BACKOFF_MAX);
        wait
    }
}

/// First bound of the wait before the next try.
const BACKOFF_BASE: Duration = Duration::from_millis(500);
/// Last bound.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Longest wait for the cluster's endpoints and secrets before that is told.
const READY_PATIENCE: Duration = Duration::from_secs(5);
/// Unless the cluster says otherwise.
const PINGS: Http2Keepalive = Http2Keepalive { interval: Duration::from_secs(310), timeout: Duration::from_secs(20) };
/// Largest response taken.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Requests that may wait for the server to read.
const MAX_QUEUED: usize = 256;

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
