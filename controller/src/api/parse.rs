//! From a document (YAML or JSON, already a [`Value`]) to a typed object.
//!
//! Pure. Custom kinds are strict: an unknown field is an error. Kubernetes' own kinds grow with every release, so there
//! an unknown field is reported beside the object ([`Parsed::unknown_fields`]) and the object still counts.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::core::{
    DaemonSet, Deployment, EndpointSlice, Namespace, Pod, ReplicaSet, Service, ServiceAccount, StatefulSet,
};
use super::{
    Egress, ExtensionService, HTTPRouteGroup, IngressBackend, MeshConfig, MeshRootCertificate, Retry, TCPRoute,
    Telemetry, TrafficSplit, TrafficTarget, UDPRoute, UpstreamTrafficSetting,
};

/// An object of one of the kinds that the mesh reads.
#[expect(missing_docs, reason = "a variant is named like its kind")]
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Namespace(Box<Namespace>),
    ServiceAccount(Box<ServiceAccount>),
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    Pod(Box<Pod>),
    Deployment(Box<Deployment>),
    StatefulSet(Box<StatefulSet>),
    DaemonSet(Box<DaemonSet>),
    ReplicaSet(Box<ReplicaSet>),
    MeshConfig(Box<MeshConfig>),
    MeshRootCertificate(Box<MeshRootCertificate>),
    ExtensionService(Box<ExtensionService>),
    Egress(Box<Egress>),
    IngressBackend(Box<IngressBackend>),
    Retry(Box<Retry>),
    UpstreamTrafficSetting(Box<UpstreamTrafficSetting>),
    Telemetry(Box<Telemetry>),
    TrafficTarget(Box<TrafficTarget>),
    HTTPRouteGroup(Box<HTTPRouteGroup>),
    TCPRoute(Box<TCPRoute>),
    UDPRoute(Box<UDPRoute>),
    TrafficSplit(Box<TrafficSplit>),
}

/// An object and what in it was not understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The object.
    pub object: Object,
    /// Paths of fields of Kubernetes' own kinds that this version does not know, such as `spec.selectr`.
    pub unknown_fields: Vec<String>,
}

/// Why a document is no object of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The document has no `apiVersion` or `kind`, or is no map.
    #[error("not a Kubernetes object: {0}")]
    NotAnObject(&'static str),
    /// A kind of somebody else. Usually to be passed over with a notice.
    #[error("{kind} ({api_version}) is not a kind that the mesh reads")]
    UnknownKind {
        /// As written.
        api_version: String,
        /// As written.
        kind: String,
    },
    /// A kind of the mesh in a version that we don't read. An error: its policy would be missing.
    #[error("{kind} {name}: version {api_version} is not supported, write it as {supported}")]
    UnknownVersion {
        /// As written.
        api_version: String,
        /// As written.
        kind: String,
        /// The object's `namespace/name`.
        name: String,
        /// What we read.
        supported: &'static str,
    },
    /// A field is unknown, missing, or has a wrong type.
    #[error("{kind} {name}: {path}: {reason}")]
    Field {
        /// As written.
        kind: String,
        /// The object's `namespace/name`.
        name: String,
        /// Path of the field, such as `spec.rules[0].kind`.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// Makes a typed object of a document.
///
/// # Errors
/// [`ParseError::UnknownKind`] for kinds of others, such as ConfigMap; the other errors are mistakes in the document.
pub fn parse(document: Value) -> Result<Parsed, ParseError> {
    let Value::Object(mut map) = document else {
        return Err(ParseError::NotAnObject("the document is not a map"));
    };
    let api_version = text(map.remove("apiVersion")).ok_or(ParseError::NotAnObject("no apiVersion"))?;
    let kind = text(map.remove("kind")).ok_or(ParseError::NotAnObject("no kind"))?;
    let name = object_name(&map);
    if map.get("metadata").and_then(|m| m.get("name")).and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(ParseError::Field { kind, name, path: "metadata.name".into(), reason: "missing".into() });
    }
    let at = At { api_version, kind, name };
    let document = Value::Object(map);
    let group = at.api_version.rsplit_once('/').map_or("", |(group, _)| group);
    let core = |parsed: Result<(Object, Vec<String>), ParseError>| {
        parsed.map(|(object, unknown_fields)| Parsed { object, unknown_fields })
    };
    let custom =
        |object: Result<Object, ParseError>| object.map(|object| Parsed { object, unknown_fields: Vec::new() });
    match (group, at.kind.as_str()) {
        ("", "Namespace") => core(at.core("v1", document, Object::Namespace)),
        ("", "ServiceAccount") => core(at.core("v1", document, Object::ServiceAccount)),
        ("", "Service") => core(at.core("v1", document, Object::Service)),
        ("", "Pod") => core(at.core("v1", document, Object::Pod)),
        ("discovery.k8s.io", "EndpointSlice") => core(at.core("discovery.k8s.io/v1", document, Object::EndpointSlice)),
        ("apps", "Deployment") => core(at.core("apps/v1", document, Object::Deployment)),
        ("apps", "StatefulSet") => core(at.core("apps/v1", document, Object::StatefulSet)),
        ("apps", "DaemonSet") => core(at.core("apps/v1", document, Object::DaemonSet)),
        ("apps", "ReplicaSet") => core(at.core("apps/v1", document, Object::ReplicaSet)),
        (CONFIG, "MeshConfig") => custom(at.custom(CONFIG_BOTH, document, Object::MeshConfig)),
        (CONFIG, "MeshRootCertificate") => custom(at.custom(CONFIG_V1ALPHA2, document, Object::MeshRootCertificate)),
        (CONFIG, "ExtensionService") => custom(at.custom(CONFIG_V1ALPHA2, document, Object::ExtensionService)),
        (POLICY, "Egress") => custom(at.custom(POLICY_V1ALPHA1, document, Object::Egress)),
        (POLICY, "IngressBackend") => custom(at.custom(POLICY_V1ALPHA1, document, Object::IngressBackend)),
        (POLICY, "Retry") => custom(at.custom(POLICY_V1ALPHA1, document, Object::Retry)),
        (POLICY, "UpstreamTrafficSetting") => {
            custom(at.custom(POLICY_V1ALPHA1, document, Object::UpstreamTrafficSetting))
        }
        (POLICY, "Telemetry") => custom(at.custom(POLICY_V1ALPHA1, document, Object::Telemetry)),
        ("access.smi-spec.io", "TrafficTarget") => {
            custom(at.custom("access.smi-spec.io/v1alpha3", document, Object::TrafficTarget))
        }
        ("specs.smi-spec.io", "HTTPRouteGroup") => custom(at.custom(SPECS, document, Object::HTTPRouteGroup)),
        ("specs.smi-spec.io", "TCPRoute") => custom(at.custom(SPECS, document, Object::TCPRoute)),
        ("specs.smi-spec.io", "UDPRoute") => custom(at.custom(SPECS, document, Object::UDPRoute)),
        ("split.smi-spec.io", "TrafficSplit") => custom(at.traffic_split(document)),
        _ => Err(ParseError::UnknownKind { api_version: at.api_version, kind: at.kind }),
    }
}

/// The document's head, for messages.
struct At {
    api_version: String,
    kind: String,
    name: String,
}

impl At {
    /// Parses one of Kubernetes' own kinds. Its types drop unknown fields, so the object is written out again and
    /// compared with the document.
    fn core<T: DeserializeOwned + Serialize>(
        &self,
        supported: &'static str,
        document: Value,
        wrap: fn(Box<T>) -> Object,
    ) -> Result<(Object, Vec<String>), ParseError> {
        self.version(supported)?;
        let object: T = self.typed(&document)?;
        let written = serde_json::to_value(&object).map_err(|e| self.field(String::new(), e.to_string()))?;
        let mut unknown = Vec::new();
        missing_paths(&document, &written, "", &mut unknown);
        Ok((wrap(Box::new(object)), unknown))
    }

    /// Parses a kind of the mesh. `supported` are the versions, separated by a blank, the best one first.
    fn custom<T: DeserializeOwned>(
        &self,
        supported: &'static str,
        document: Value,
        wrap: fn(Box<T>) -> Object,
    ) -> Result<Object, ParseError> {
        self.version(supported)?;
        self.parts(&document)?;
        let document = with_spec(document);
        Ok(wrap(Box::new(self.typed(&document)?)))
    }

    /// `matches` came with v1alpha3, so in v1alpha2 it is an unknown field.
    fn traffic_split(&self, document: Value) -> Result<Object, ParseError> {
        if self.api_version == "split.smi-spec.io/v1alpha2" && document["spec"].get("matches").is_some() {
            return Err(self.field("spec.matches".into(), "needs split.smi-spec.io/v1alpha4".into()));
        }
        self.custom(SPLITS, document, Object::TrafficSplit)
    }

    fn version(&self, supported: &'static str) -> Result<(), ParseError> {
        if supported.split(' ').any(|v| v == self.api_version) {
            return Ok(());
        }
        Err(ParseError::UnknownVersion {
            api_version: self.api_version.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            supported: supported.split(' ').next().unwrap_or(supported),
        })
    }

    /// The derived types pass over what stands beside `spec`.
    fn parts(&self, document: &Value) -> Result<(), ParseError> {
        let unknown = |name: &&String| !PARTS.contains(&name.as_str());
        match document.as_object().and_then(|parts| parts.keys().find(unknown)) {
            Some(name) => Err(self.field(name.clone(), format!("unknown field `{name}`, expected one of {PARTS:?}"))),
            None => Ok(()),
        }
    }

    fn typed<T: DeserializeOwned>(&self, document: &Value) -> Result<T, ParseError> {
        serde_path_to_error::deserialize(document).map_err(|e| {
            let path = e.path().to_string();
            self.field(path, e.into_inner().to_string())
        })
    }

    fn field(&self, path: String, reason: String) -> ParseError {
        ParseError::Field { kind: self.kind.clone(), name: self.name.clone(), path, reason }
    }
}

/// An object without `spec` asks for the defaults.
fn with_spec(mut document: Value) -> Value {
    if let Some(parts) = document.as_object_mut() {
        parts.entry("spec").or_insert_with(|| Value::Object(serde_json::Map::new()));
    }
    document
}

fn text(value: Option<Value>) -> Option<String> {
    match value {
        Some(Value::String(s)) if !s.is_empty() => Some(s),
        _ => None,
    }
}

fn object_name(map: &serde_json::Map<String, Value>) -> String {
    let field = |name| map.get("metadata").and_then(|m| m.get(name)).and_then(Value::as_str);
    match (field("namespace"), field("name").unwrap_or("(no name)")) {
        (Some(namespace), name) => format!("{namespace}/{name}"),
        (None, name) => name.to_owned(),
    }
}

/// Collects the paths of `written` document fields that the typed object did not keep. A null asks for nothing.
fn missing_paths(document: &Value, kept: &Value, path: &str, missing: &mut Vec<String>) {
    match (document, kept) {
        (Value::Object(document), Value::Object(kept)) => {
            for (name, value) in document.iter().filter(|(_, value)| !value.is_null()) {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match kept.get(name) {
                    Some(kept) => missing_paths(value, kept, &path, missing),
                    None => missing.push(path),
                }
            }
        }
        (Value::Array(document), Value::Array(kept)) => {
            for (i, (value, kept)) in document.iter().zip(kept).enumerate() {
                missing_paths(value, kept, &format!("{path}[{i}]"), missing);
            }
        }
        _ => {}
    }
}

/// The parts of an object besides `apiVersion` and `kind`.
const PARTS: [&str; 3] = ["metadata", "spec", "status"];
const CONFIG: &str = "config.openservicemesh.io";
const CONFIG_V1ALPHA2: &str = "config.openservicemesh.io/v1alpha2";
const CONFIG_BOTH: &str = "config.openservicemesh.io/v1alpha2 config.openservicemesh.io/v1alpha1";
const POLICY: &str = "policy.openservicemesh.io";
const POLICY_V1ALPHA1: &str = "policy.openservicemesh.io/v1alpha1";
const SPLITS: &str = "split.smi-spec.io/v1alpha4 split.smi-spec.io/v1alpha3 split.smi-spec.io/v1alpha2";
const SPECS: &str = "specs.smi-spec.io/v1alpha4";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(document: Value) -> String {
        parse(document).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_field_of_a_policy_is_an_error_with_its_path() {
        let document = json!({
            "apiVersion": "access.smi-spec.io/v1alpha3", "kind": "TrafficTarget",
            "metadata": {"name": "a", "namespace": "b"},
            "spec": {"destination": {"kind": "ServiceAccount", "name": "c"}, "rules": [{"kind": "TCPRoute", "name": "r", "mathes": []}]},
        });
        let error = error(document);
        assert!(error.starts_with("TrafficTarget b/a: spec.rules[0].mathes: unknown field `mathes`"), "{error}");
    }

    #[test]
    fn an_unknown_field_of_a_core_kind_is_reported_and_the_object_counts() {
        let document = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "b"},
            "spec": {"selectr": {"app": "a"}, "clusterIP": null, "ports": [{"port": 80, "nme": "http"}]},
        });
        let parsed = parse(document).unwrap();
        assert_eq!(parsed.object.key(), super::super::Key::new("b", "a"));
        assert_eq!(parsed.unknown_fields, ["spec.ports[0].nme", "spec.selectr"]);
    }

    #[test]
    fn an_old_version_of_a_policy_is_refused_and_a_kind_of_others_is_told_apart() {
        let old =
            json!({"apiVersion": "access.smi-spec.io/v1alpha1", "kind": "TrafficTarget", "metadata": {"name": "a"}});
        assert_eq!(
            error(old),
            "TrafficTarget a: version access.smi-spec.io/v1alpha1 is not supported, write it as access.smi-spec.io/v1alpha3"
        );
        let other = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
        assert!(matches!(parse(other), Err(ParseError::UnknownKind { .. })));
    }

    #[test]
    fn matches_of_a_split_need_v1alpha4() {
        let split = |version: &str| {
            json!({
                "apiVersion": format!("split.smi-spec.io/{version}"), "kind": "TrafficSplit", "metadata": {"name": "a", "namespace": "b"},
                "spec": {"service": "s", "backends": [{"service": "t", "weight": 1}], "matches": [{"kind": "HTTPRouteGroup", "name": "g"}]},
            })
        };
        assert!(parse(split("v1alpha4")).is_ok());
        assert_eq!(error(split("v1alpha2")), "TrafficSplit b/a: spec.matches: needs split.smi-spec.io/v1alpha4");
    }

    #[test]
    fn both_versions_of_mesh_config_parse_and_headers_may_be_a_list_or_a_map() {
        for version in ["v1alpha1", "v1alpha2"] {
            let document = json!({
                "apiVersion": format!("config.openservicemesh.io/{version}"), "kind": "MeshConfig",
                "metadata": {"name": "osm-mesh-config", "namespace": "osm-system"},
                "spec": {"traffic": {"enableEgress": true, "outboundIPRangeExclusionList": ["1.1.1.1/32"]},
                         "featureFlags": {"enableWASMStats": true}},
            });
            let Object::MeshConfig(config) = parse(document).unwrap().object else { panic!("not a MeshConfig") };
            assert_eq!(config.spec.traffic.enable_egress, Some(true));
        }
        for headers in [json!([{"a": "x"}, {"b": "y"}]), json!({"a": "x", "b": "y"})] {
            let parsed: HttpHeadersOnly = serde_json::from_value(json!({"headers": headers})).unwrap();
            assert_eq!(parsed.headers.iter().collect::<Vec<_>>(), [("a", "x"), ("b", "y")]);
        }
    }

    #[derive(serde::Deserialize)]
    struct HttpHeadersOnly {
        headers: super::super::HttpHeaders,
    }

    #[test]
    fn an_object_without_name_is_refused() {
        let document = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "b"}});
        assert_eq!(error(document), "Pod b/(no name): metadata.name: missing");
    }
}
