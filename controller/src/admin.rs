//! Health, metrics and debug pages over plain HTTP.
//!
//! Health, metrics and version are for anybody who can reach the address; `/debug/` answers only
//! requests from this machine. No page ever shows a private key.

mod short;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::identity::SidecarIdentity;
use crate::lint::Severity;
use crate::shared::Shared;
use crate::xds::server::View as _;

/// Serves until stopped.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let service = router(shared).into_make_service_with_connect_info::<SocketAddr>();
    let served = axum::serve(listener, service).with_graceful_shutdown(stop.clone().cancelled_owned());
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_TIME).await;
    };
    tokio::select! {
        result = served => if let Err(error) = result {
            error!(%error, "the admin interface has ended");
        },
        () = drained => {}
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let debug = Router::new()
        .route("/debug/proxies", get(proxies))
        .route("/debug/findings", get(findings))
        .route("/debug/services", get(services))
        .route("/debug/config/{uuid}", get(config))
        .layer(from_fn(only_from_here));
    Router::new()
        .route("/health/ready", get(ready))
        .route("/health/alive", get(|| async { "alive\n" }))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .merge(debug)
        .with_state(shared)
}

/// Debug pages say who runs what: not for everybody on the network.
async fn only_from_here(ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request, next: Next) -> Response {
    if peer.ip().to_canonical().is_loopback() {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "debug pages answer on loopback only (use a port-forward)\n").into_response()
}

/// Ready, or what is waited for, one line each.
async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    let awaited = shared.readiness.awaited();
    if awaited.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let lines = awaited.iter().map(|words| format!("not ready: {words}\n"));
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
}

async fn version() -> Json<Value> {
    Json(json!({ "name": "oxmesh-controller", "version": env!("CARGO_PKG_VERSION") }))
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let now = SystemTime::now();
    let left = |end: SystemTime| end.duration_since(now).unwrap_or_default().as_secs_f64();
    let metrics = &shared.metrics;
    let (issued, failed) = shared.issuer.counts();
    metrics.set("osm_cert_issued_count", &[], as_f64(issued));
    metrics.set("oxmesh_cert_failed_count", &[], as_f64(failed));
    metrics.set("oxmesh_ca_expiry_seconds", &[], left(shared.issuer.ca().not_after()));
    if let Some(end) = shared.issuer.first_expiry() {
        metrics.set("oxmesh_cert_first_expiry_seconds", &[], left(end));
    }
    let report = Arc::clone(&shared.report.borrow());
    metrics.set("oxmesh_objects", &[], as_f64(report.snapshot.objects.len() as u64));
    for severity in [Severity::NoEffect, Severity::Warning, Severity::Error] {
        let count = report.findings.iter().filter(|f| f.severity == severity).count();
        metrics.set("oxmesh_findings", &[("severity", &severity.to_string())], as_f64(count as u64));
    }
    metrics.set("osm_version_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
}

async fn proxies(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!(shared.hub.proxies()))
}

async fn findings(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!(shared.report.borrow().findings))
}

/// The services of the mesh with the addresses that clients dial.
async fn services(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let world = shared.world();
    let services = world.mesh.services().values().map(|service| {
        json!({
            "service": service.name.to_string(),
            "inMesh": service.in_mesh,
            "addresses": service.dialed,
            "ports": service.ports.iter().map(|port| json!({
                "port": port.port,
                "targetPort": port.target,
                "protocol": port.protocol.name(),
            })).collect::<Vec<_>>(),
        })
    });
    Json(Value::Array(services.collect()))
}

/// What the proxy of a pod is to have, in short.
async fn config(State(shared): State<Arc<Shared>>, Path(uuid): Path<String>) -> Response {
    let world = shared.world();
    let found = world.mesh.workloads().find(|workload| workload.uuid.as_deref() == Some(uuid.as_str()));
    let Some(workload) = found else {
        return (StatusCode::NOT_FOUND, format!("no pod with label osm-proxy-uuid={uuid}\n")).into_response();
    };
    let proxy = SidecarIdentity { uuid, service: workload.identity.clone() };
    let connected = shared.hub.proxies().into_iter().find(|connected| connected.uuid == proxy.uuid);
    let keys = connected.map(|connected| connected.keys).unwrap_or_default();
    let rendered = tokio::task::spawn_blocking(move || world.state(&proxy, keys)).await;
    match rendered {
        Ok(Ok(state)) => Json(short::state(&state)).into_response(),
        Ok(Err(denied)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{denied}\n")).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "rendering failed, see the log\n").into_response(),
    }
}

/// Counts in a metric need no more than 53 bits.
fn as_f64(n: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    let n = n as f64;
    n
}

const DRAIN_TIME: Duration = Duration::from_secs(1);
