//! Drives the session of one stream: requests, changes of the mesh and time in, responses out.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{debug, info, warn};

use super::accept::Peer;
use super::hub::{Denied, Hub, ProxyReport, View, seconds_since_1970};
use crate::identity::{KeyHome, SidecarIdentity};
use crate::xds::session::{Accepted, Message, Protocol, Refusal, Seen, Session};

/// A request of either protocol.
#[derive(Debug)]
pub(super) enum Incoming {
    StateOfTheWorld(DiscoveryRequest),
    Delta(DeltaDiscoveryRequest),
}

impl Incoming {
    fn node(&self) -> Option<&Node> {
        match self {
            Self::StateOfTheWorld(request) => request.node.as_ref(),
            Self::Delta(request) => request.node.as_ref(),
        }
    }
}

/// Everything that a stream's task needs.
pub(super) struct StreamTask {
    pub(super) hub: Arc<Hub>,
    pub(super) peer: Peer,
    pub(super) protocol: Protocol,
    pub(super) requests: BoxStream<'static, Result<Incoming, Status>>,
    /// Holds one message: the next is made only when the client has taken the last.
    pub(super) responses: mpsc::Sender<Result<Message, Status>>,
    pub(super) stop: CancellationToken,
}

/// Why a stream's loop ended.
enum End {
    /// The client is gone.
    Closed,
    /// We end it, and say why.
    Status(Status),
    /// The proxy must not come back.
    Revoked(Status),
}

impl StreamTask {
    pub(super) async fn run(mut self) {
        if let Err(status) = self.serve().await {
            // A client that is gone already, or doesn't read, needs no reason.
            let _ = timeout(LAST_WORDS_TIMEOUT, self.responses.send(Err(status))).await;
        }
    }

    async fn serve(&mut self) -> Result<(), Status> {
        let address = self.peer.address;
        let proxy = self.peer.identity.clone().map_err(|error| {
            self.hub.metrics().count("oxmesh_proxy_denied_count", &[("reason", "certificate")]);
            warn!(%address, %error, "a client certificate that is not a sidecar's");
            Status::permission_denied(error.to_string())
        })?;
        let Some(first) = self.first_request(&proxy).await? else {
            return Ok(());
        };
        let report = self.report(&proxy, &first);
        let user_agent = report.user_agent.clone();
        let (id, accepted) =
            self.hub.enter(report, &proxy).map_err(|full| Status::resource_exhausted(full.to_string()))?;
        let mut view = self.hub.view();
        let current = Arc::clone(&view.borrow_and_update());
        let state = match self.hub.build(current, &proxy, self.peer.keys).await {
            Ok(state) => Arc::new(state),
            Err(denied) => {
                self.hub.leave(id, &proxy, None);
                return Err(self.deny(&proxy, &denied));
            }
        };
        info!(%proxy, %address, user_agent, protocol = ?self.protocol, "proxy connected");
        let session = Session::new(self.protocol, state, accepted);
        let mut driver = Driver { hub: &self.hub, proxy: &proxy, keys: self.peer.keys, id, session };
        let end = driver.drive(first, &mut self.requests, &self.responses, &mut view, &self.peer, &self.stop).await;
        let accepted = driver.session.into_accepted();
        self.leave(id, &proxy, end, accepted)
    }

    fn leave(&self, id: u64, proxy: &SidecarIdentity, end: End, accepted: Accepted) -> Result<(), Status> {
        let keep = (!matches!(end, End::Revoked(_))).then_some(accepted);
        self.hub.leave(id, proxy, keep);
        match end {
            End::Closed => {
                info!(%proxy, "proxy disconnected");
                Ok(())
            }
            End::Status(status) | End::Revoked(status) => {
                info!(%proxy, reason = status.message(), "ended the stream of a proxy");
                Err(status)
            }
        }
    }

    /// The first request, whose node must be the one that the certificate names.
    async fn first_request(&mut self, proxy: &SidecarIdentity) -> Result<Option<Incoming>, Status> {
        let first = match timeout(FIRST_REQUEST_TIMEOUT, self.requests.next()).await {
            Ok(Some(Ok(first))) => first,
            Ok(Some(Err(_)) | None) => return Ok(None),
            Err(_) => return Err(Status::deadline_exceeded("no request on the stream")),
        };
        let Some(node) = first.node() else {
            return Err(Status::invalid_argument("the first request has no node"));
        };
        check_node(node, proxy, self.hub.trust_domain()).inspect_err(|status| {
            self.hub.metrics().count("oxmesh_proxy_denied_count", &[("reason", "node")]);
            warn!(%proxy, address = %self.peer.address, error = status.message(), "a proxy asks for another's resources");
        })?;
        Ok(Some(first))
    }

    fn deny(&self, proxy: &SidecarIdentity, denied: &Denied) -> Status {
        warn!(%proxy, address = %self.peer.address, error = %denied, "a proxy is not served");
        match denied {
            Denied::NoSuchPod(_) => {
                self.hub.metrics().count("oxmesh_proxy_denied_count", &[("reason", "pod")]);
                Status::permission_denied(denied.to_string())
            }
            Denied::Unavailable(_) => Status::unavailable(denied.to_string()),
        }
    }

    fn report(&self, proxy: &SidecarIdentity, first: &Incoming) -> ProxyReport {
        ProxyReport {
            uuid: proxy.uuid.clone(),
            identity: proxy.service.to_string(),
            address: self.peer.address,
            keys: self.peer.keys,
            protocol: self.protocol,
            user_agent: first.node().map(user_agent).unwrap_or_default(),
            since: seconds_since_1970(),
            kinds: Vec::new(),
            service: proxy.service.clone(),
        }
    }
}

/// A session with what it needs to be driven.
struct Driver<'a> {
    hub: &'a Hub,
    proxy: &'a SidecarIdentity,
    keys: KeyHome,
    id: u64,
    session: Session,
}

impl Driver<'_> {
    async fn drive(
        &mut self,
        first: Incoming,
        requests: &mut BoxStream<'static, Result<Incoming, Status>>,
        responses: &mpsc::Sender<Result<Message, Status>>,
        view: &mut watch::Receiver<Arc<dyn View>>,
        peer: &Peer,
        stop: &CancellationToken,
    ) -> End {
        let mut next = Some(first);
        loop {
            if let Some(request) = next.take()
                && let Err(end) = self.take(&request)
            {
                return end;
            }
            let now = Instant::now();
            let may_send = self.session.may_send(now);
            let check = now + EXPIRY_CHECK;
            let wake = if may_send { check } else { self.session.wake_at().unwrap_or(check).min(check) };
            tokio::select! {
                biased;
                () = stop.cancelled() => return End::Status(Status::unavailable("the controller is going away")),
                changed = view.changed() => {
                    if changed.is_err() {
                        return End::Status(Status::unavailable("the controller is going away"));
                    }
                    let current = Arc::clone(&view.borrow_and_update());
                    if let Err(end) = self.rebuild(current).await {
                        return end;
                    }
                }
                request = requests.next() => match request {
                    Some(Ok(request)) => next = Some(request),
                    Some(Err(status)) => {
                        debug!(proxy = %self.proxy, error = status.message(), "stream broke");
                        return End::Closed;
                    }
                    None => return End::Closed,
                },
                permit = responses.reserve(), if may_send => match permit {
                    Ok(permit) => {
                        if let Some(message) = self.session.poll(Instant::now()) {
                            self.sent(&message);
                            permit.send(Ok(message));
                        }
                    }
                    Err(_) => return End::Closed,
                },
                () = sleep_until(wake) => {}
            }
            if SystemTime::now() > peer.not_after {
                return End::Status(Status::unauthenticated("the client certificate has run out meanwhile"));
            }
        }
    }

    fn take(&mut self, request: &Incoming) -> Result<(), End> {
        if let Some(node) = request.node() {
            check_node(node, self.proxy, self.hub.trust_domain()).map_err(End::Status)?;
        }
        let now = Instant::now();
        let seen = match request {
            Incoming::StateOfTheWorld(request) => self.session.on_request(request, now),
            Incoming::Delta(request) => self.session.on_delta_request(request, now),
        };
        self.saw(&seen.map_err(|refusal: Refusal| End::Status(Status::invalid_argument(refusal.to_string())))?);
        Ok(())
    }

    fn saw(&self, seen: &Seen) {
        let kind = match seen {
            Seen::Request(kind) | Seen::Ack(kind) => *kind,
            Seen::Nack(kind, words) => {
                warn!(proxy = %self.proxy, %kind, error = words, "a proxy refuses what it was sent");
                self.count("oxmesh_proxy_nack_count", kind.short());
                *kind
            }
            Seen::Ignored(type_url) => {
                debug!(proxy = %self.proxy, type_url, "a kind that is not served");
                return;
            }
        };
        self.count("osm_proxy_xds_request_count", kind.short());
        self.hub.update(self.id, self.session.report());
    }

    fn sent(&self, message: &Message) {
        let type_url = match message {
            Message::StateOfTheWorld(response) => &response.type_url,
            Message::Delta(response) => &response.type_url,
        };
        let kind = crate::xds::Kind::from_type_url(type_url).map_or("", crate::xds::Kind::short);
        debug!(proxy = %self.proxy, kind, "sent");
        self.count("osm_proxy_response_send_success_count", kind);
        self.hub.update(self.id, self.session.report());
    }

    /// The mesh has changed: works out the proxy's state anew.
    async fn rebuild(&mut self, view: Arc<dyn View>) -> Result<(), End> {
        match self.hub.build(view, self.proxy, self.keys).await {
            Ok(state) => self.session.set_state(Arc::new(state)),
            Err(denied @ Denied::NoSuchPod(_)) => {
                return Err(End::Revoked(Status::permission_denied(denied.to_string())));
            }
            // It keeps what it has; the next change or renewal tries again.
            Err(denied) => warn!(proxy = %self.proxy, error = %denied, "the proxy's state is not renewed"),
        }
        Ok(())
    }

    fn count(&self, name: &'static str, kind: &str) {
        let identity = self.proxy.service.to_string();
        let labels = [("proxy_uuid", self.proxy.uuid.as_str()), ("identity", &identity), ("type", kind)];
        self.hub.metrics().count(name, &labels);
    }
}

/// OSM puts the uuid there, its releases up to 1.2 the whole common name.
fn check_node(node: &Node, proxy: &SidecarIdentity, trust_domain: &str) -> Result<(), Status> {
    if node.id == proxy.uuid || node.id == proxy.common_name(trust_domain) {
        return Ok(());
    }
    let id: String = node.id.chars().take(256).collect();
    let uuid = &proxy.uuid;
    Err(Status::permission_denied(format!("node id {id:?} is not {uuid:?}, which the client certificate names")))
}

fn user_agent(node: &Node) -> String {
    let version = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
            .version
            .as_ref()
            .map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch))
            .unwrap_or_default(),
        None => String::new(),
    };
    let text: String = format!("{} {version}", node.user_agent_name).chars().take(128).collect();
    text.trim().to_owned()
}

const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the client certificate's end is looked at by the wall clock.
const EXPIRY_CHECK: Duration = Duration::from_secs(5);
