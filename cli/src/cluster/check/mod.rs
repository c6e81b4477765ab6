//! `oxmesh check` of a cluster: before the installation what it needs, after it whether all is well.
//!
//! Each check is one [`Outcome`]. Those that read the cluster live here; what an object means is judged by the pure
//! functions of the submodules.

mod authority;
pub(super) mod control_plane;
mod needs;
mod report;
mod sidecars;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use tokio::time::Instant;

pub use report::{Form, Outcome, Report, State};

use super::connect::{Cluster, ClusterArgs, is_absent};
use super::labels::{CA_SECRET, CONTROLLER, INJECTOR, MONITORED_BY, webhook};
use super::{chart, helm, mesh};
use crate::output;

/// Checks the installation, or when there is none, what one needs; prints `shown` of it.
///
/// # Errors
/// Never for what a check found; only when nothing can be configured at all.
pub async fn run(args: &ClusterArgs, before: bool, shown: Form) -> anyhow::Result<bool> {
    let start = Instant::now();
    let outcomes = collect(args, before).await;
    let report = Report::new(outcomes, start.elapsed());
    match shown {
        Form::Table => output::say(&report::table(&report, output::colours()))?,
        Form::Short => output::say(&report::short(&report, output::colours()))?,
        Form::Json => output::say(&serde_json::to_string_pretty(&report)?)?,
        Form::Yaml => output::say(&serde_saphyr::to_string(&report)?)?,
    }
    Ok(report.status != State::Error)
}

async fn collect(args: &ClusterArgs, before: bool) -> Vec<Outcome> {
    let (cluster, mut outcomes) = match reach(args).await {
        Ok(reached) => reached,
        Err(outcome) => return vec![outcome],
    };
    let controllers = match mesh::controllers(&cluster).await {
        Ok(controllers) => controllers,
        Err(error) => {
            outcomes.push(unanswered("kubernetes", "meshes", &error));
            return outcomes;
        }
    };
    let mine = controllers.iter().find(|deployment| mesh_of(deployment) == args.mesh_name && !before);
    match mine {
        Some(deployment) => outcomes.extend(after(args, &cluster, deployment).await),
        None => outcomes.extend(needed(args, &cluster, &controllers).await),
    }
    outcomes
}

/// What an installation needs of the cluster; for `oxmesh install`.
pub(super) async fn before_install(
    args: &ClusterArgs,
    enforce_single: bool,
) -> anyhow::Result<(Cluster, Vec<Outcome>)> {
    let (cluster, mut outcomes) = reach(args).await.map_err(|outcome| anyhow::anyhow!("{}", outcome.message))?;
    let controllers = mesh::controllers(&cluster).await?;
    outcomes.extend(needed(args, &cluster, &controllers).await);
    if !enforce_single {
        outcomes.retain(|outcome| outcome.name != needs::OTHERS);
    }
    Ok((cluster, outcomes))
}

fn mesh_of(deployment: &Deployment) -> &str {
    deployment.labels().get(super::labels::MESH_NAME).map_or("", String::as_str)
}

/// The cluster and its version, or the check that failed.
async fn reach(args: &ClusterArgs) -> Result<(Cluster, Vec<Outcome>), Outcome> {
    let failed = |error: &anyhow::Error| unanswered("kubernetes", "api", error);
    let cluster = args.connect().await.map_err(|error| failed(&error))?;
    let version = cluster.client.apiserver_version().await;
    let version = version.map_err(|error| failed(&cluster.failed("ask for the version", error)))?;
    let outcomes = vec![
        Outcome::ok("kubernetes", "api", format!("{} answers", cluster.url)),
        needs::version(&version.major, &version.minor, &version.git_version),
    ];
    Ok((cluster, outcomes))
}

fn unanswered(category: &'static str, name: &'static str, error: &anyhow::Error) -> Outcome {
    Outcome::error(category, name, format!("{error:#}"))
}

async fn needed(args: &ClusterArgs, cluster: &Cluster, controllers: &[Deployment]) -> Vec<Outcome> {
    let mut outcomes = vec![match helm::Helm::new().version().await {
        Ok(version) => Outcome::ok("tools", "helm", format!("helm {version}")),
        Err(error) => unanswered("tools", "helm", &error),
    }];
    outcomes.push(needs::installed(controllers, args));
    outcomes.push(needs::others(controllers, args));
    outcomes.extend(needs::permissions(cluster, args).await);
    outcomes.push(kinds(cluster, false).await);
    outcomes
}

/// The kinds of objects: all there, none in a form that this version can't use.
async fn kinds(cluster: &Cluster, must_exist: bool) -> Outcome {
    let wanted = match chart::kinds() {
        Ok(kinds) => kinds,
        Err(error) => return unanswered("objects", "kinds", &error),
    };
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    match cluster.all(&api, ListParams::default(), "kinds of objects").await {
        Ok(found) => needs::kinds(&wanted, &found, must_exist),
        Err(error) => unanswered("objects", "kinds", &error),
    }
}

async fn after(args: &ClusterArgs, cluster: &Cluster, deployment: &Deployment) -> Vec<Outcome> {
    let home = deployment.namespace().unwrap_or_else(|| args.osm_namespace.clone());
    let mut outcomes = vec![control_plane::version(deployment), control_plane::replicas(deployment)];
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &home);
    let own = cluster.all(&pods, ListParams::default().labels(super::labels::CONTROLLERS), "pods").await;
    match &own {
        Ok(own) => outcomes.extend(control_plane::troubles(own)),
        Err(error) => outcomes.push(unanswered("control plane", "pods", error)),
    }
    outcomes.extend(services(cluster, &home).await);
    outcomes.push(settings(cluster, &home).await);
    outcomes.push(kinds(cluster, true).await);
    outcomes.extend(trust(args, cluster, &home, deployment).await);
    outcomes.extend(members(args, cluster, deployment).await);
    if let Ok(own) = own {
        outcomes.push(sidecars::nacks(&pods, &own).await);
    }
    outcomes
}

/// Services that must lead somewhere, or sidecars get no configuration and pods can't be made.
async fn services(cluster: &Cluster, home: &str) -> Vec<Outcome> {
    let api: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), home);
    let mut outcomes = Vec::new();
    for service in [CONTROLLER, INJECTOR] {
        let params = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        outcomes.push(match cluster.all(&api, params, "endpoints").await {
            Ok(slices) => control_plane::endpoints(service, &slices),
            Err(error) => unanswered("control plane", "services", &error),
        });
    }
    outcomes
}

/// The authority, and the webhook that the API server must trust by it.
async fn trust(args: &ClusterArgs, cluster: &Cluster, home: &str, deployment: &Deployment) -> Vec<Outcome> {
    let name = control_plane::argument(deployment, "--ca-secret=").unwrap_or_else(|| CA_SECRET.to_owned());
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), home);
    let now = Timestamp::now();
    let (authority, secret) = match secrets.get(&name).await {
        Ok(secret) => (authority::secret(&secret, now), Some(secret)),
        Err(error) if is_absent(&error) => {
            let message = format!("there is no Secret {home}/{name}");
            let hint = format!("the controller makes it at its start: kubectl -n {home} logs deploy/{CONTROLLER}");
            (Outcome::error("identity", "authority", message).hint(hint), None)
        }
        Err(error) => {
            (unanswered("identity", "authority", &cluster.failed("read the authority's Secret", error)), None)
        }
    };
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let name = webhook(&args.mesh_name);
    let found = match webhooks.get(&name).await {
        Ok(found) => authority::webhook(&found, &args.mesh_name, secret.as_ref(), now),
        Err(error) if is_absent(&error) => Outcome::error(
            "injection",
            "webhook",
            format!("there is no MutatingWebhookConfiguration {name}: no pod gets a sidecar"),
        )
        .hint(format!("helm -n {home} upgrade {} CHART --reuse-values makes it again", args.mesh_name)),
        Err(error) => unanswered("injection", "webhook", &cluster.failed("read the webhook", error)),
    };
    vec![authority, found]
}

/// Reads MeshConfig without its type: what is in it is the controller's business.
async fn settings(cluster: &Cluster, home: &str) -> Outcome {
    let kind = kube::core::GroupVersionKind::gvk("config.openservicemesh.io", "v1alpha2", "MeshConfig");
    let resource = kube::core::ApiResource::from_gvk(&kind);
    let api: Api<kube::core::DynamicObject> = Api::namespaced_with(cluster.client.clone(), home, &resource);
    match api.get(MESH_CONFIG).await {
        Ok(found) => control_plane::settings(&found.data),
        Err(error) if is_absent(&error) => Outcome::warning(
            "control plane",
            "settings",
            format!("there is no MeshConfig {home}/{MESH_CONFIG}: defaults count"),
        )
        .hint("the controller makes it of the ConfigMap preset-mesh-config at its start"),
        Err(error) => unanswered("control plane", "settings", &cluster.failed("read MeshConfig", error)),
    }
}

/// Namespaces of the mesh and their pods.
async fn members(args: &ClusterArgs, cluster: &Cluster, deployment: &Deployment) -> Vec<Outcome> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let label = format!("{MONITORED_BY}={}", args.mesh_name);
    let namespaces = match cluster.all(&api, ListParams::default().labels(&label), "namespaces").await {
        Ok(namespaces) => namespaces,
        Err(error) => return vec![unanswered("injection", "namespaces", &error)],
    };
    let mut outcomes = vec![sidecars::namespaces(&namespaces)];
    let images = sidecars::Images::of(deployment);
    let (mut all, mut sets) = (Vec::new(), Vec::new());
    for namespace in &namespaces {
        let api: Api<ReplicaSet> = Api::namespaced(cluster.client.clone(), &namespace.name_any());
        match cluster.all(&api, ListParams::default(), "replicasets").await {
            Ok(found) => sets.extend(found),
            Err(error) => outcomes.push(unanswered("injection", "pods", &error)),
        }
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace.name_any());
        match cluster.all(&pods, ListParams::default(), "pods").await {
            Ok(pods) => all.extend(pods.into_iter().map(|pod| (namespace, pod))),
            Err(error) => outcomes.push(unanswered("injection", "pods", &error)),
        }
    }
    outcomes.push(sidecars::refused(&sets));
    outcomes.extend(sidecars::judge(&all, &images));
    outcomes.extend(sidecars::certificates(cluster, &all).await);
    outcomes
}

const MESH_CONFIG: &str = "osm-mesh-config";
