//! Names in the cluster that are a contract: OSM's, and the chart's.

/// On a namespace: the mesh that it belongs to.
pub(super) const MONITORED_BY: &str = "openservicemesh.io/monitored-by";
/// On a namespace: never part of a mesh.
pub(super) const IGNORE: &str = "openservicemesh.io/ignore";
/// On a namespace or a pod, as annotation: whether pods get a sidecar.
pub(super) const INJECTION: &str = "openservicemesh.io/sidecar-injection";
/// On a namespace, as annotation: whether Prometheus is told of the sidecars.
pub(super) const METRICS: &str = "openservicemesh.io/metrics";
/// On a pod: it has a sidecar.
pub(super) const PROXY_UUID: &str = "osm-proxy-uuid";
/// On a pod, as annotation: a sidecar of its own choice.
pub(super) const PROXY_IMAGE: &str = "oxmesh.io/proxy-image";
/// On the control plane's namespace, as annotation: `oxmesh install` made it.
pub(super) const MADE: &str = "oxmesh.io/made-by";
/// The Deployment, its container, Service and lease.
pub(super) const CONTROLLER: &str = "osm-controller";
/// The webhook's Service.
pub(super) const INJECTOR: &str = "osm-injector";
/// Finds the Deployments of all meshes, also OSM's own.
pub(super) const CONTROLLERS: &str = "app=osm-controller";
/// On such a Deployment: the mesh's name.
pub(super) const MESH_NAME: &str = "meshName";
/// On such a Deployment: the version.
pub(super) const VERSION: &str = "app.kubernetes.io/version";
/// The sidecar's container.
pub(super) const SIDECAR: &str = "envoy";
/// Begins the names of Secrets with real Envoy's bootstrap.
pub(super) const BOOTSTRAP_SECRETS: &str = "envoy-bootstrap-config-";
/// The default Secret of the authority.
pub(super) const CA_SECRET: &str = "osm-ca-bundle";

/// The name of a mesh's MutatingWebhookConfiguration.
pub(super) fn webhook(mesh: &str) -> String {
    format!("osm-webhook-{mesh}")
}
