//! Tests of the conversion: resources are written as JSON, with changes at one place of a plain one.

mod accepted;
mod mutation;
mod refused;
mod values;

use serde_json::{Value, json};

use super::*;
use crate::xds::json;

/// What a test expects of a resource.
type Outcome = Result<(Resource, Warnings), Rejected>;

fn convert(resource: &Value) -> Outcome {
    let any = json::read(resource).unwrap_or_else(|e| panic!("{e:?} in {resource}"));
    super::resource(&any.type_url.clone(), &any, &Options::SERVER)
}

/// The errors of a resource that is refused, else an empty text.
fn errors(resource: &Value) -> String {
    convert(resource).map_or_else(|r| r.errors.join("; "), |_| String::new())
}

/// `base` with `value` at a JSON pointer; what is missing on the way is made.
fn with(base: &Value, pointer: &str, value: Value) -> Value {
    let mut changed = base.clone();
    let mut place = &mut changed;
    for step in pointer.split('/').skip(1) {
        let step = step.replace("~1", "/");
        place = match step.parse::<usize>() {
            Ok(index) if !place.is_object() => {
                let list = place.as_array_mut().expect("a list on the way");
                if index == list.len() {
                    list.push(json!({}));
                }
                &mut list[index]
            }
            _ => {
                if place.is_null() {
                    *place = json!({});
                }
                &mut place[step]
            }
        };
    }
    *place = value;
    changed
}

fn typed(name: &str, mut fields: Value) -> Value {
    fields["@type"] = json!(format!("type.googleapis.com/{name}"));
    fields
}

fn ext(name: &str, fields: Value) -> Value {
    typed(&format!("envoy.extensions.{name}"), fields)
}

fn routes() -> Value {
    typed(
        "envoy.config.route.v3.RouteConfiguration",
        json!({
            "name": "r",
            "virtual_hosts": [
                {"name": "v", "domains": ["a"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]},
            ],
        }),
    )
}

fn cluster() -> Value {
    typed(
        "envoy.config.cluster.v3.Cluster",
        json!({
            "name": "c",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}}}},
            ]}]},
        }),
    )
}

fn router() -> Value {
    json!({"name": "router", "typed_config": ext("filters.http.router.v3.Router", json!({}))})
}

fn manager() -> Value {
    ext(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "s",
            "rds": {"route_config_name": "r", "config_source": {"ads": {}, "resource_api_version": "V3"}},
            "http_filters": [router()],
        }),
    )
}

/// A listener with one chain of one connection manager.
fn listener() -> Value {
    typed(
        "envoy.config.listener.v3.Listener",
        json!({
            "name": "l",
            "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15001}},
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager()}]}],
        }),
    )
}

/// A listener with these fields of the connection manager.
fn http(pointer: &str, value: Value) -> Value {
    with(&listener(), &format!("/filter_chains/0/filters/0/typed_config{pointer}"), value)
}

fn secret() -> Value {
    ext(
        "transport_sockets.tls.v3.Secret",
        json!({"name": "s", "validation_context": {"trusted_ca": {"inline_string": "pem"}}}),
    )
}

fn rbac_filter(rules: Value) -> Value {
    json!({"name": "rbac", "typed_config": ext("filters.http.rbac.v3.RBAC", rules)})
}

fn limit(fields: Value) -> Value {
    let mut all = json!({"stat_prefix": "x"});
    all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    ext("filters.http.local_ratelimit.v3.LocalRateLimit", all)
}

/// A cluster with this upstream TLS context.
fn upstream_tls(context: Value) -> Value {
    let socket = json!({"name": "tls", "typed_config": ext("transport_sockets.tls.v3.UpstreamTlsContext", context)});
    with(&cluster(), "/transport_socket", socket)
}

/// A listener whose chain has this downstream TLS context.
fn downstream_tls(context: Value) -> Value {
    let socket = json!({"name": "tls", "typed_config": ext("transport_sockets.tls.v3.DownstreamTlsContext", context)});
    with(&listener(), "/filter_chains/0/transport_socket", socket)
}

fn sds(name: &str) -> Value {
    json!({"name": name, "sds_config": {"ads": {}, "resource_api_version": "V3"}})
}

#[test]
fn the_plain_resources_are_accepted() {
    for resource in [routes(), cluster(), listener(), secret()] {
        assert_eq!(errors(&resource), "");
    }
}
