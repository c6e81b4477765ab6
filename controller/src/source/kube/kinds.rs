//! Which kinds are watched, and how each becomes an object of the mesh.

use std::fmt::Debug;

use kube::api::{ApiResource, DynamicObject};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;

use super::slim;
use super::watch::{News, Taken, key, watch};
use crate::api::core::{EndpointSlice, Namespace, Pod, Service, ServiceAccount};
use crate::api::{Object, custom_resources, parse};

/// All kinds that are watched.
pub(super) const NAMES: &[&str] = &[
    "Namespace",
    "ServiceAccount",
    "Service",
    "EndpointSlice",
    "Pod",
    "MeshConfig",
    "MeshRootCertificate",
    "ExtensionService",
    "Egress",
    "IngressBackend",
    "Retry",
    "UpstreamTrafficSetting",
    "Telemetry",
    "TrafficTarget",
    "HTTPRouteGroup",
    "TCPRoute",
    "UDPRoute",
    "TrafficSplit",
];

/// Kinds that clusters with OSM's own definitions lack: there they have no objects, which is no reason to wait.
pub(super) const MAY_BE_MISSING: &[&str] = &["ExtensionService", "Telemetry", "UDPRoute"];

/// Starts the watch of namespaces, which alone is never filtered.
pub(super) fn watch_namespaces(client: &Client, news: &mpsc::Sender<News>, watches: &mut JoinSet<()>) {
    // Kept by the watch itself: it is never told to list anew.
    let (keep, generation) = channel::channel(0);
    let api = Api::<Namespace>::all(client.clone());
    let news = news.clone();
    watches.spawn(async move {
        let take = |o: Namespace| taken(o, slim::namespace, Object::Namespace);
        watch(api, "Namespace", take, news, generation).await;
        drop(keep);
    });
}

/// Starts the watches of all other kinds.
pub(super) fn watch_others(
    client: &Client,
    news: &mpsc::Sender<News>,
    generation: &channel::Sender<u64>,
    watches: &mut JoinSet<()>,
) {
    let mut to = Starter { client, news, generation, watches };
    to.core("ServiceAccount", |o: ServiceAccount| taken(o, slim::service_account, Object::ServiceAccount));
    to.core("Service", |o: Service| taken(o, slim::service, Object::Service));
    to.core("EndpointSlice", |o: EndpointSlice| taken(o, slim::endpoint_slice, Object::EndpointSlice));
    to.core("Pod", |o: Pod| taken(o, slim::pod, Object::Pod));
    for resource in custom_resources() {
        to.custom(&resource);
    }
}

struct Starter<'a> {
    client: &'a Client,
    news: &'a mpsc::Sender<News>,
    generation: &'a channel::Sender<u64>,
    watches: &'a mut JoinSet<()>,
}

impl Starter<'_> {
    fn core<K>(&mut self, kind: &'static str, take: impl Fn(K) -> Taken + Send + 'static)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let api = Api::<K>::all(self.client.clone());
        self.watches.spawn(watch(api, kind, take, self.news.clone(), self.generation.subscribe()));
    }

    /// Custom kinds are taken as they come and parsed as strictly as those in files.
    fn custom(&mut self, resource: &ApiResource) {
        let Some(kind) = NAMES.iter().find(|name| **name == resource.kind).copied() else { return };
        let api = Api::<DynamicObject>::all_with(self.client.clone(), resource);
        let version = written_as(kind, &resource.api_version);
        let take = move |object: DynamicObject| parsed(object, kind, &version);
        self.watches.spawn(watch(api, kind, take, self.news.clone(), self.generation.subscribe()));
    }
}

/// A split is stored as v1alpha2 with the later versions' fields.
fn written_as(kind: &str, api_version: &str) -> String {
    if kind == "TrafficSplit" { "split.smi-spec.io/v1alpha4".to_owned() } else { api_version.to_owned() }
}

fn taken<K: Resource>(mut object: K, slim: fn(&mut K), wrap: fn(Box<K>) -> Object) -> Taken {
    slim::metadata(object.meta_mut());
    slim(&mut object);
    Taken { key: key(object.meta()), object: Ok(wrap(Box::new(object))) }
}

fn parsed(mut object: DynamicObject, kind: &'static str, api_version: &str) -> Taken {
    slim::metadata(&mut object.metadata);
    let key = key(&object.metadata);
    let mut document = object.data;
    if let Value::Object(parts) = &mut document {
        parts.insert("apiVersion".to_owned(), json!(api_version));
        parts.insert("kind".to_owned(), json!(kind));
        parts.insert("metadata".to_owned(), json!(object.metadata));
        // What a controller answered is no input.
        parts.remove("status");
    }
    Taken { key, object: parse(document).map(|parsed| parsed.object) }
}
