//! Resources that a control plane may send: small, but of every kind, and referring to each other.

use envoy_types::pb::google::protobuf::Any;
use oxmesh_proxy::xds::{json, kind::Kind};
use serde_json::{Value, json};

/// How many forms [`resource`] has of each kind.
pub(crate) const SHAPES: u8 = 4;

/// A good resource. What it refers to (endpoints, secrets, routes, clusters) has the same name.
pub(crate) fn resource(kind: Kind, name: &str, shape: u8) -> Any {
    let mut value = match kind {
        Kind::Cluster => cluster(name, shape % SHAPES),
        Kind::Endpoints => assignment(name, shape % SHAPES),
        Kind::Secret => secret(name, shape % SHAPES),
        Kind::Listener => listener(name, shape % SHAPES),
        Kind::Routes => routes(name, shape % SHAPES),
    };
    value["@type"] = json!(kind.type_url());
    json::read(&value).unwrap_or_else(|e| panic!("{kind:?} {shape}: {e:?}"))
}

/// The form of an extension.
pub(crate) fn ext(name: &str, mut fields: Value) -> Value {
    fields["@type"] = json!(format!("type.googleapis.com/envoy.extensions.{name}"));
    fields
}

fn ads() -> Value {
    json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "2s"})
}

fn host(port: u16) -> Value {
    json!({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}})
}

fn cluster(name: &str, shape: u8) -> Value {
    let hosts = json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [host(80), host(81)]}]});
    let mut cluster = json!({"name": name, "connect_timeout": "1s"});
    match shape {
        0 => cluster["load_assignment"] = hosts,
        1 => cluster["type"] = json!("ORIGINAL_DST"),
        _ => {
            cluster["type"] = json!("EDS");
            cluster["eds_cluster_config"] = json!({"eds_config": ads(), "service_name": name});
        }
    }
    if shape == 1 {
        cluster["lb_policy"] = json!("CLUSTER_PROVIDED");
    }
    if shape == 3 {
        let validation = json!({"name": name, "sds_config": ads()});
        let tls = json!({"sni": "a.b", "common_tls_context": {"validation_context_sds_secret_config": validation}});
        let tls = ext("transport_sockets.tls.v3.UpstreamTlsContext", tls);
        cluster["transport_socket"] = json!({"name": "tls", "typed_config": tls});
    }
    cluster
}

fn assignment(name: &str, shape: u8) -> Value {
    let hosts: Vec<Value> = (0..u16::from(shape)).map(|n| host(1000 + n)).collect();
    json!({"cluster_name": name, "endpoints": [{"priority": 0, "lb_endpoints": hosts}]})
}

fn secret(name: &str, shape: u8) -> Value {
    let names = json!([{"san_type": "URI", "matcher": {"exact": format!("spiffe://mesh/{shape}")}}]);
    let ca = include_str!("fuzz-ca.pem");
    let validation = json!({"trusted_ca": {"inline_string": ca}, "match_typed_subject_alt_names": names});
    json!({"name": name, "validation_context": validation})
}

fn routes(name: &str, shape: u8) -> Value {
    let action = match shape {
        0 => json!({"direct_response": {"status": 200}}),
        1 => json!({"redirect": {"https_redirect": true}}),
        2 => json!({"route": {"cluster": name}}),
        _ => {
            json!({"route": {"weighted_clusters": {"clusters": [{"name": name, "weight": 1}, {"name": "a", "weight": 2}]}}})
        }
    };
    let mut route = json!({"match": {"prefix": "/"}});
    for (key, value) in action.as_object().expect("all are objects") {
        route[key] = value.clone();
    }
    json!({"name": name, "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]})
}

fn listener(name: &str, shape: u8) -> Value {
    let filter = match shape {
        0 => {
            let tcp = json!({"stat_prefix": name, "cluster": name});
            json!({"name": "tcp", "typed_config": ext("filters.network.tcp_proxy.v3.TcpProxy", tcp)})
        }
        _ => {
            let router = json!({"name": "r", "typed_config": ext("filters.http.router.v3.Router", json!({}))});
            let mut manager = json!({"stat_prefix": name, "http_filters": [router]});
            match shape {
                1 => manager["route_config"] = routes(name, 0),
                _ => manager["rds"] = json!({"route_config_name": name, "config_source": ads()}),
            }
            let manager = ext("filters.network.http_connection_manager.v3.HttpConnectionManager", manager);
            json!({"name": "http", "typed_config": manager})
        }
    };
    let mut chain = json!({"filters": [filter]});
    if shape == 3 {
        chain["filter_chain_match"] = json!({"server_names": ["a.b"]});
    }
    json!({
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 15001}},
        "filter_chains": [chain],
    })
}
