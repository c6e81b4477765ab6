//! As much of an API server as a watch needs, in this process: lists in pages, watches, and things going wrong.
//! The real one is met by the tests on a cluster.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::BroadcastStream;

/// The server. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct ApiServer(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    version: u64,
    /// By the path of the list, then namespace and name.
    objects: BTreeMap<String, BTreeMap<(String, String), Value>>,
    watchers: BTreeMap<String, broadcast::Sender<String>>,
    unknown: BTreeSet<String>,
    away: bool,
    /// Requests as `METHOD path`.
    requests: Vec<String>,
}

impl ApiServer {
    pub(crate) fn client(&self) -> kube::Client {
        kube::Client::new(Router::new().fallback(answer).with_state(self.clone()), "default")
    }

    /// Creates or replaces an object.
    pub(crate) fn put(&self, object: &Value) {
        let mut inner = self.0.lock().unwrap();
        inner.put(&path_of(object), object.clone());
    }

    pub(crate) fn delete(&self, object: &Value) {
        let mut inner = self.0.lock().unwrap();
        let path = path_of(object);
        inner.version += 1;
        let version = inner.version;
        let Some(mut gone) = inner.objects.get_mut(&path).and_then(|all| all.remove(&key_of(object))) else { return };
        gone["metadata"]["resourceVersion"] = json!(version.to_string());
        inner.tell(&path, &json!({"type": "DELETED", "object": gone}));
    }

    /// The object of this path and name.
    pub(crate) fn get(&self, path: &str, namespace: &str, name: &str) -> Option<Value> {
        self.0.lock().unwrap().objects.get(path)?.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// All objects of a path.
    pub(crate) fn all(&self, path: &str) -> Vec<Value> {
        self.0.lock().unwrap().objects.get(path).into_iter().flat_map(|all| all.values().cloned()).collect()
    }

    /// Answers 404 to lists of this path, or no longer.
    pub(crate) fn forget_kind(&self, path: &str, forget: bool) {
        let mut inner = self.0.lock().unwrap();
        if forget {
            inner.unknown.insert(path.to_owned());
            inner.watchers.remove(path);
        } else {
            inner.unknown.remove(path);
        }
    }

    /// Cuts all watches and answers nothing, or answers again.
    pub(crate) fn go_away(&self, away: bool) {
        let mut inner = self.0.lock().unwrap();
        inner.away = away;
        inner.watchers.clear();
    }

    /// Creates or replaces an object without a word, and tells the watches of its kind that they are too old.
    pub(crate) fn put_and_forget(&self, object: &Value) {
        let mut inner = self.0.lock().unwrap();
        let path = path_of(object);
        let watchers = inner.watchers.remove(&path);
        inner.put(&path, object.clone());
        let gone = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "message": "too old resource version", "reason": "Expired", "code": 410}});
        if let Some(watchers) = watchers {
            let _ = watchers.send(format!("{gone}\n"));
        }
    }

    /// How many watches of a kind there are.
    pub(crate) fn watches(&self, path: &str) -> usize {
        self.0.lock().unwrap().watchers.get(path).map_or(0, broadcast::Sender::receiver_count)
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.0.lock().unwrap().requests.clone()
    }
}

impl Inner {
    fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let key = key_of(&object);
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if object["metadata"].get("uid").is_none() {
            object["metadata"]["uid"] = json!(format!("uid-{}-{}", key.0, key.1));
        }
        object["metadata"]["managedFields"] =
            json!([{"manager": "kubectl", "operation": "Update", "apiVersion": "v1"}]);
        let before = self.objects.entry(path.to_owned()).or_default().insert(key, object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.tell(path, &json!({"type": kind, "object": object}));
        object
    }

    fn tell(&self, path: &str, event: &Value) {
        if let Some(watchers) = self.watchers.get(path) {
            let _ = watchers.send(format!("{event}\n"));
        }
    }
}

async fn answer(State(server): State<ApiServer>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let mut inner = server.0.lock().unwrap();
    let path = parts.uri.path().to_owned();
    inner.requests.push(format!("{} {path}", parts.method));
    if inner.away {
        return status(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable");
    }
    let place = Place::of(&path);
    if inner.unknown.contains(&place.list) {
        return status(StatusCode::NOT_FOUND, "NotFound");
    }
    let query = parts.uri.query().unwrap_or_default();
    match (parts.method, place.name) {
        (Method::GET, None) if query.contains("watch=true") => watch(&mut inner, &place.list),
        (Method::GET, None) => list(&inner, &place.list, query),
        (Method::GET, Some(name)) => {
            match inner.objects.get(&place.list).and_then(|all| all.get(&(place.namespace, name))) {
                Some(object) => axum::Json(object.clone()).into_response(),
                None => status(StatusCode::NOT_FOUND, "NotFound"),
            }
        }
        (Method::POST, None) => {
            let mut object = body;
            object["metadata"]["namespace"] = json!(place.namespace);
            if inner.objects.get(&place.list).is_some_and(|all| all.contains_key(&key_of(&object))) {
                return status(StatusCode::CONFLICT, "AlreadyExists");
            }
            (StatusCode::CREATED, axum::Json(inner.put(&place.list, object))).into_response()
        }
        (Method::PATCH, Some(name)) => {
            let Some(mut object) =
                inner.objects.get(&place.list).and_then(|all| all.get(&(place.namespace, name))).cloned()
            else {
                return status(StatusCode::NOT_FOUND, "NotFound");
            };
            merge(&mut object, body);
            axum::Json(inner.put(&place.list, object)).into_response()
        }
        _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}

fn list(inner: &Inner, path: &str, query: &str) -> Response {
    // Small enough that every test turns pages, and all of a measurement's in a few.
    let page_size = if inner.objects.get(path).is_some_and(|all| all.len() > 100) { 500 } else { 3 };
    let start: usize =
        query.split('&').find_map(|pair| pair.strip_prefix("continue=from-")).map_or(0, |from| from.parse().unwrap());
    let all: Vec<&Value> = inner.objects.get(path).into_iter().flat_map(|all| all.values()).collect();
    let page: Vec<&Value> = all.iter().skip(start).take(page_size).copied().collect();
    let more = (start + page_size < all.len()).then(|| format!("from-{}", start + page_size));
    let metadata = json!({"resourceVersion": inner.version.to_string(), "continue": more.unwrap_or_default()});
    axum::Json(json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": page})).into_response()
}

fn watch(inner: &mut Inner, path: &str) -> Response {
    let sender = inner.watchers.entry(path.to_owned()).or_insert_with(|| broadcast::channel(256).0);
    let lines = BroadcastStream::new(sender.subscribe()).filter_map(Result::ok);
    Body::from_stream(lines.map(Ok::<_, Infallible>)).into_response()
}

fn status(code: StatusCode, reason: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code.as_u16()});
    (code, axum::Json(body)).into_response()
}

/// What a path names.
struct Place {
    list: String,
    namespace: String,
    name: Option<String>,
}

impl Place {
    fn of(path: &str) -> Self {
        let words: Vec<&str> = path.trim_matches('/').split('/').collect();
        let head = if words[0] == "api" { 2 } else { 3 };
        let (group, rest) = words.split_at(head);
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest[0] != "status" => (*namespace, rest),
            rest => ("", rest),
        };
        Self {
            list: format!(
                "/{}/{}",
                group.join("/").replace("split.smi-spec.io/v1alpha4", "split.smi-spec.io/v1alpha2"),
                rest[0]
            ),
            namespace: namespace.to_owned(),
            name: rest.get(1).map(|name| (*name).to_owned()),
        }
    }
}

fn key_of(object: &Value) -> (String, String) {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// The path of the list that an object stands in. Splits are stored, and watched, as v1alpha2.
fn path_of(object: &Value) -> String {
    let plural = match object["kind"].as_str().unwrap() {
        "Egress" => "egresses".to_owned(),
        "Retry" => "retries".to_owned(),
        "Telemetry" => "telemetries".to_owned(),
        kind => format!("{}s", kind.to_lowercase()),
    };
    match object["apiVersion"].as_str().unwrap() {
        "v1" => format!("/api/v1/{plural}"),
        version if version.starts_with("split.") => format!("/apis/split.smi-spec.io/v1alpha2/{plural}"),
        version => format!("/apis/{version}/{plural}"),
    }
}

/// RFC 7396.
fn merge(value: &mut Value, patch: Value) {
    match (value, patch) {
        (Value::Object(value), Value::Object(patch)) => {
            for (key, patch) in patch {
                merge(value.entry(key).or_insert(Value::Null), patch);
            }
        }
        (value, patch) => *value = patch,
    }
}
