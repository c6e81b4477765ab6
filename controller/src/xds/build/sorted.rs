//! Messages with maps, encoded in key order.
//!
//! The generated types keep maps in hash order, which changes from run to run, and with it the bytes and the version.
//! These encode as the same messages (the tests decode them as such) and have only the fields that we send.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::config::rbac::v3::Policy;
use envoy_types::pb::envoy::config::route::v3::{RouteAction, RouteMatch};
use envoy_types::pb::google::protobuf::{Any, BoolValue};

/// `envoy.config.route.v3.RouteConfiguration`
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RouteConfiguration {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) virtual_hosts: Vec<VirtualHost>,
    #[prost(message, repeated, tag = "4")]
    pub(super) response_headers_to_add: Vec<HeaderValueOption>,
    #[prost(message, optional, tag = "7")]
    pub(super) validate_clusters: Option<BoolValue>,
}

/// `envoy.config.route.v3.VirtualHost`
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct VirtualHost {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) domains: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    pub(super) routes: Vec<Route>,
    #[prost(btree_map = "string, message", tag = "15")]
    pub(super) typed_per_filter_config: BTreeMap<String, Any>,
}

/// `envoy.config.route.v3.Route`
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Route {
    #[prost(message, optional, tag = "1")]
    pub(super) r#match: Option<RouteMatch>,
    #[prost(message, optional, tag = "2")]
    pub(super) route: Option<RouteAction>,
    #[prost(btree_map = "string, message", tag = "13")]
    pub(super) typed_per_filter_config: BTreeMap<String, Any>,
}

/// `envoy.config.rbac.v3.RBAC`; the action is ALLOW, the default.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Rules {
    #[prost(btree_map = "string, message", tag = "2")]
    pub(super) policies: BTreeMap<String, Policy>,
}

/// `envoy.extensions.filters.network.rbac.v3.RBAC`
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct NetworkRbac {
    #[prost(message, optional, tag = "1")]
    pub(super) rules: Option<Rules>,
    #[prost(string, tag = "3")]
    pub(super) stat_prefix: String,
}

/// `envoy.extensions.filters.http.rbac.v3.RBAC`
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HttpRbac {
    #[prost(message, optional, tag = "1")]
    pub(super) rules: Option<Rules>,
}

/// `envoy.extensions.filters.http.rbac.v3.RBACPerRoute`
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RbacPerRoute {
    #[prost(message, optional, tag = "2")]
    pub(super) rbac: Option<HttpRbac>,
}

/// `google.protobuf.Struct`
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    pub(super) fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Value {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub(super) kind: Option<Kind>,
}

/// The arms of `google.protobuf.Value`.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Kind {
    #[prost(int32, tag = "1")]
    Null(i32),
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    String(String),
    #[prost(bool, tag = "4")]
    Bool(bool),
    #[prost(message, tag = "5")]
    Struct(Struct),
    #[prost(message, tag = "6")]
    List(List),
}

/// `google.protobuf.ListValue`
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct List {
    #[prost(message, repeated, tag = "1")]
    pub(super) values: Vec<Value>,
}

/// `envoy.config.core.v3.SubstitutionFormatString` with a JSON format
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct JsonFormat {
    #[prost(message, optional, tag = "2")]
    pub(super) json_format: Option<Struct>,
}

/// `envoy.extensions.access_loggers.stream.v3.StdoutAccessLog` with a JSON format
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StdoutJsonAccessLog {
    #[prost(message, optional, tag = "1")]
    pub(super) log_format: Option<JsonFormat>,
}

impl From<&serde_json::Map<String, serde_json::Value>> for Struct {
    fn from(map: &serde_json::Map<String, serde_json::Value>) -> Self {
        Self { fields: map.iter().map(|(name, value)| (name.clone(), value.into())).collect() }
    }
}

impl From<&serde_json::Value> for Value {
    fn from(value: &serde_json::Value) -> Self {
        use serde_json::Value as Json;
        let kind = match value {
            Json::Null => Kind::Null(0),
            Json::Bool(b) => Kind::Bool(*b),
            Json::Number(n) => Kind::Number(n.as_f64().unwrap_or(f64::NAN)),
            Json::String(s) => Kind::String(s.clone()),
            Json::Array(list) => Kind::List(List { values: list.iter().map(Self::from).collect() }),
            Json::Object(map) => Kind::Struct(map.into()),
        };
        Self { kind: Some(kind) }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::SubstitutionFormatString;
    use envoy_types::pb::envoy::config::rbac::v3 as rbac;
    use envoy_types::pb::envoy::config::route::v3 as route;
    use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::StdoutAccessLog;
    use envoy_types::pb::envoy::extensions::filters::{http, network};
    use prost::Message;

    use super::*;

    /// Encodes `sorted`, decodes it as the generated `M`, and sees that nothing was lost on the way.
    fn as_generated<M: Message + Default>(sorted: &impl Message) -> M {
        let bytes = sorted.encode_to_vec();
        let generated = M::decode(bytes.as_slice()).unwrap();
        assert_eq!(generated.encoded_len(), bytes.len());
        generated
    }

    #[test]
    fn routes_decode_as_the_generated_messages() {
        let config = BTreeMap::from([("a".to_owned(), Any::default()), ("b".to_owned(), Any::default())]);
        let route = Route {
            r#match: Some(RouteMatch::default()),
            route: Some(RouteAction::default()),
            typed_per_filter_config: config.clone(),
        };
        let host = VirtualHost {
            name: "h".into(),
            domains: vec!["d".into()],
            routes: vec![route],
            typed_per_filter_config: config,
        };
        let sorted = RouteConfiguration {
            name: "n".into(),
            virtual_hosts: vec![host],
            response_headers_to_add: vec![HeaderValueOption::default()],
            validate_clusters: Some(BoolValue { value: true }),
        };
        let generated: route::RouteConfiguration = as_generated(&sorted);
        let host = &generated.virtual_hosts[0];
        assert_eq!((generated.name.as_str(), host.name.as_str(), host.domains[0].as_str()), ("n", "h", "d"));
        assert_eq!((generated.response_headers_to_add.len(), generated.validate_clusters.unwrap().value), (1, true));
        assert_eq!((host.typed_per_filter_config.len(), host.routes[0].typed_per_filter_config.len()), (2, 2));
        assert!(host.routes[0].r#match.is_some());
        assert!(matches!(host.routes[0].action, Some(route::route::Action::Route(_))));
    }

    #[test]
    fn access_rules_decode_as_the_generated_messages() {
        let rules = Rules { policies: BTreeMap::from([("p".to_owned(), Policy::default())]) };
        let generated: rbac::Rbac = as_generated(&rules);
        assert_eq!((generated.action(), generated.policies.len()), (rbac::rbac::Action::Allow, 1));
        let l4: network::rbac::v3::Rbac =
            as_generated(&NetworkRbac { rules: Some(rules.clone()), stat_prefix: "s".into() });
        assert_eq!((l4.rules.unwrap().policies.len(), l4.stat_prefix.as_str()), (1, "s"));
        let per_route: http::rbac::v3::RbacPerRoute =
            as_generated(&RbacPerRoute { rbac: Some(HttpRbac { rules: Some(rules) }) });
        assert_eq!(per_route.rbac.unwrap().rules.unwrap().policies.len(), 1);
    }

    #[test]
    fn json_formats_decode_as_the_generated_messages() {
        let json = serde_json::json!({"s": "x", "n": 1.5, "b": true, "z": null, "l": ["y"], "o": {"k": "v"}});
        let fields = Struct::from(json.as_object().unwrap());
        let log = StdoutJsonAccessLog { log_format: Some(JsonFormat { json_format: Some(fields.clone()) }) };
        let generated: StdoutAccessLog = as_generated(&log);
        assert!(generated.access_log_format.is_some());
        let format: SubstitutionFormatString = as_generated(&JsonFormat { json_format: Some(fields) });
        assert!(format.format.is_some());
    }
}
