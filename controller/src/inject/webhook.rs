//! The admission webhook: a review in, a patch or a refusal with words out.
//!
//! Judges by the namespace as the API server has it now, and by the last snapshot's MeshConfig. Its one side effect, the
//! Secret of an Envoy, is left out on a dry run. Whatever goes wrong here refuses the pod: none starts without the sidecar that it should have.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request as HttpRequest, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use super::certificate::InjectorTls;
use super::guard::is_uuid;
use super::{DataPlane, Outcome, PROXY_UUID_LABEL, Request, Settings, Why, ca_bundle, inject, secrets, server};
use crate::api::Key;
use crate::identity::Issuer;
use crate::mesh::MESH_CONFIG;
use crate::metrics::{INJECTOR_REQUEST_TIME, Metrics};
use crate::readiness::Readiness;
use crate::source::Snapshot;

/// Snapshots of the source; none before the first.
pub type Snapshots = watch::Receiver<Option<Arc<Snapshot>>>;

/// Everything that reviews need.
pub struct Injector {
    settings: Settings,
    issuer: Arc<Issuer>,
    metrics: Arc<Metrics>,
    snapshots: Snapshots,
    leader: watch::Receiver<bool>,
    client: Client,
    readiness: Arc<Readiness>,
    made: secrets::Made,
}

impl std::fmt::Debug for Injector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Injector").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Injector {
    /// An injector that asks for namespaces and makes Secrets through `client`. `leader` tells whether this replica is the
    /// one that writes what only one may; a Secret whose pod has not come after `orphan_age` is removed.
    #[must_use]
    pub fn new(
        settings: Settings,
        issuer: Arc<Issuer>,
        metrics: Arc<Metrics>,
        snapshots: Snapshots,
        leader: watch::Receiver<bool>,
        client: Client,
        orphan_age: Duration,
    ) -> Self {
        let (readiness, made) = (Arc::default(), secrets::Made::new(orphan_age));
        Self { settings, issuer, metrics, snapshots, leader, client, readiness, made }
    }

    /// The same, telling here whether the API server trusts it.
    pub(crate) fn telling(self, readiness: Arc<Readiness>) -> Self {
        Self { readiness, ..self }
    }

    pub(super) fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshots.borrow().clone()
    }

    /// The roots that the API server and the sidecars trust as ours, PEM.
    pub(super) fn trust_bundle(&self) -> String {
        self.issuer.ca().cert_pem().to_owned()
    }

    pub(super) fn is_leader(&self) -> bool {
        *self.leader.borrow()
    }

    pub(super) fn made(&self) -> &secrets::Made {
        &self.made
    }

    /// The namespace as it is now: `kubectl annotate` and a restart right after belong together. Where the API server
    /// doesn't answer in time, the watch's last word counts, if there is one.
    async fn namespace(&self, name: &str, snapshot: &Snapshot) -> Result<Arc<Namespace>, String> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let problem = match timeout(NAMESPACE_PATIENCE, api.get(name)).await {
            Ok(Ok(namespace)) => return Ok(Arc::new(namespace)),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                return Err(format!("namespace {name:?} is not there"));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the API server did not answer within {NAMESPACE_PATIENCE:?}"),
        };
        warn!(namespace = name, problem, "the namespace can't be read; what the watch said last counts");
        let known = snapshot.objects.namespaces.get(&Key::new("", name)).cloned();
        known.ok_or_else(|| format!("namespace {name:?} can't be read: {problem} (try again)"))
    }

    async fn review(&self, request: &AdmissionRequest<DynamicObject>, pod: &Value) -> AdmissionResponse {
        let response = AdmissionResponse::from(request);
        let name = request.namespace.clone().unwrap_or_default();
        let refuse = |words: String| {
            warn!(namespace = name, uid = request.uid, why = words, "a pod is refused");
            self.metrics.count("oxmesh_injector_refused_count", &[]);
            AdmissionResponse::from(request).deny(format!("oxmesh injector: {words}"))
        };
        let Some(snapshot) = self.snapshot() else {
            return refuse("the control plane has not read the cluster's objects yet (try again)".to_owned());
        };
        let namespace = match self.namespace(&name, &snapshot).await {
            Ok(namespace) => namespace,
            Err(words) => return refuse(words),
        };
        let mesh_config = snapshot.objects.mesh_configs.get(&Key::new(&self.settings.osm_namespace, MESH_CONFIG));
        let bundle = self.trust_bundle();
        let facts = Request {
            namespace: &namespace,
            mesh_config: mesh_config.map(|object| &object.spec),
            uuid: &request.uid,
            trust_bundle: &bundle,
        };
        match inject(pod, &facts, &self.settings) {
            Err(refusal) => refuse(refusal.to_string()),
            Ok(Outcome::Left(why)) => {
                debug!(namespace = name, why = why.words(), "a pod gets no sidecar");
                let mut response = response;
                if why == Why::HostNetwork {
                    response.warnings = Some(vec![format!("the pod gets no sidecar: {}", why.words())]);
                }
                response
            }
            Ok(Outcome::Already(uuid)) if is_taken(&uuid, &snapshot) => refuse(format!(
                "metadata.labels[{PROXY_UUID_LABEL}]: {uuid} belongs to a pod that is there already (make the pod from its \
                 own manifest, without what injection added to the other)"
            )),
            Ok(Outcome::Already(_)) => response,
            Ok(Outcome::Injected(injection)) => {
                if injection.data_plane == DataPlane::Envoy && !request.dry_run {
                    let (uuid, settings) = (&request.uid, &self.settings);
                    let made = secrets::create(&self.client, &injection, uuid, &self.issuer, settings, &self.made);
                    if let Err(error) = made.await {
                        return refuse(error.to_string());
                    }
                }
                let mut response = match response.with_patch(injection.patch) {
                    Ok(response) => response,
                    Err(error) => return refuse(error.to_string()),
                };
                if !injection.warnings.is_empty() {
                    response.warnings = Some(injection.warnings);
                }
                if !request.dry_run {
                    info!(namespace = name, uuid = request.uid, data_plane = ?injection.data_plane, "a pod gets its sidecar");
                    self.metrics.count("osm_injector_injector_sidecar_count", &[]);
                }
                response
            }
        }
    }
}

fn is_taken(uuid: &str, snapshot: &Snapshot) -> bool {
    let label = |pod: &k8s_openapi::api::core::v1::Pod| pod.metadata.labels.as_ref()?.get(PROXY_UUID_LABEL).cloned();
    snapshot.objects.pods.values().any(|pod| label(pod).as_deref() == Some(uuid))
}

/// Serves reviews until stopped, renews the certificate, and keeps the webhook's `caBundle` and the Secrets right.
pub async fn serve(listener: TcpListener, injector: Arc<Injector>, tls: Arc<InjectorTls>, stop: CancellationToken) {
    let client = injector.client.clone();
    let beside = async {
        tokio::join!(
            renew(&tls),
            ca_bundle::keep(client.clone(), &injector),
            secrets::look_after(client.clone(), &injector),
        );
        std::future::pending::<()>().await;
    };
    let served = server::serve(listener, tls.config(), router(Arc::clone(&injector)), stop.clone());
    tokio::select! {
        () = served => {}
        () = beside => {}
    }
}

/// Renews the certificate in time. Looks at the wall clock every few seconds, since that may jump.
async fn renew(tls: &InjectorTls) {
    loop {
        if let Err(error) = tls.rotate(SystemTime::now()) {
            warn!(%error, "the injector's certificate is not renewed");
        }
        let left = tls.next_due().duration_since(SystemTime::now()).unwrap_or_default();
        sleep(left.clamp(MIN_RENEWAL_PAUSE, MAX_RENEWAL_PAUSE)).await;
    }
}

fn router(injector: Arc<Injector>) -> Router {
    Router::new()
        .route("/mutate-pod-creation", post(mutate))
        .layer(DefaultBodyLimit::max(MAX_REVIEW))
        .layer(from_fn(in_time))
        .with_state(injector)
}

/// A body that never ends holds nobody up.
async fn in_time(request: HttpRequest, next: Next) -> Response {
    match timeout(REVIEW_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "the review took too long\n").into_response(),
    }
}

async fn mutate(State(injector): State<Arc<Injector>>, headers: header::HeaderMap, body: Bytes) -> Response {
    let start = Instant::now();
    let (response, success) = match read(&headers, &body) {
        Err((status, words)) => {
            warn!(words, "a request to the webhook is not a review of a new pod");
            ((status, format!("{words}\n")).into_response(), false)
        }
        Ok((request, pod)) => {
            let answer = injector.review(&request, &pod).await;
            let allowed = answer.allowed;
            (Json(written(answer.into_review())).into_response(), allowed)
        }
    };
    let label = if success { "true" } else { "false" };
    injector.metrics.took(&INJECTOR_REQUEST_TIME, &[("success", label)], start.elapsed());
    response
}

/// The review as the API server reads it: the patch in base64, which the crate writes as a list of numbers.
fn written(review: AdmissionReview<DynamicObject>) -> Value {
    let patch = review.response.as_ref().and_then(|response| response.patch.clone());
    let mut value = serde_json::to_value(review).unwrap_or_default();
    if let (Some(bytes), Some(place)) = (patch, value.pointer_mut("/response/patch")) {
        *place = json!(ByteString(bytes));
    }
    value
}

/// The request and the pod as it came.
fn read(
    headers: &header::HeaderMap,
    body: &[u8],
) -> Result<(AdmissionRequest<DynamicObject>, Value), (StatusCode, String)> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some("application/json") {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "the content type must be application/json".to_owned()));
    }
    let bad = |words: String| (StatusCode::BAD_REQUEST, words);
    let mut review: Value = serde_json::from_slice(body).map_err(|e| bad(format!("not JSON: {e}")))?;
    let pod = review.pointer_mut("/request/object").map(Value::take).unwrap_or_default();
    let review: AdmissionReview<DynamicObject> =
        serde_json::from_value(review).map_err(|e| bad(format!("not an AdmissionReview: {e}")))?;
    // The answer takes its kind and version from the request, which takes them from the review.
    let request: AdmissionRequest<DynamicObject> =
        review.try_into().map_err(|_| bad("not an AdmissionReview v1 with a request".to_owned()))?;
    let resource = &request.resource;
    if request.types.api_version != "admission.k8s.io/v1" || request.types.kind != "AdmissionReview" {
        return Err(bad("not an AdmissionReview of admission.k8s.io/v1".to_owned()));
    }
    if (resource.group.as_str(), resource.version.as_str(), resource.resource.as_str()) != ("", "v1", "pods")
        || request.operation != Operation::Create
        || request.sub_resource.as_deref().is_some_and(|sub| !sub.is_empty())
    {
        return Err(bad("only the creation of pods is reviewed here".to_owned()));
    }
    if !is_uuid(&request.uid) || !pod.is_object() {
        return Err(bad("the review has no uid or no object".to_owned()));
    }
    Ok((request, pod))
}

/// Above what the API server can store as a pod.
const MAX_REVIEW: usize = 2 << 20;
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);
const NAMESPACE_PATIENCE: Duration = Duration::from_secs(1);
const MIN_RENEWAL_PAUSE: Duration = Duration::from_millis(200);
const MAX_RENEWAL_PAUSE: Duration = Duration::from_secs(5);

#[cfg(test)]
#[path = "webhook_tests.rs"]
mod tests;
