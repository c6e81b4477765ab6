use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage as _, SerializeOptions};
use serde_json::{Value as Json, json};

use super::*;
use crate::xds::path::{At, Report};

const TYPE: &str = "type.googleapis.com/";

fn pool() -> DescriptorPool {
    DescriptorPool::decode(&include_bytes!("../../../data/envoy.fds")[..]).unwrap()
}

fn encoded(name: &str, json: &Json) -> Result<Vec<u8>, Vec<String>> {
    let mut report = Report::default();
    let bytes = encode(name, json, true, &At::ROOT, &mut report);
    if report.errors.is_empty() { Ok(bytes) } else { Err(report.errors) }
}

#[test]
fn both_directions_agree_with_another_implementation() {
    let pool = pool();
    let file = include_str!("../../../tests/data/osm-shape.yaml");
    let resources: Json = serde_saphyr::from_str(file).unwrap();
    let all: Vec<&Json> = resources.as_array().unwrap().iter().collect();
    assert_eq!(all.len(), 23);
    for json in all {
        let type_url = json["@type"].as_str().unwrap();
        let name = crate::xds::schema::type_name(type_url);
        let bytes = encoded(name, json).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let theirs = DynamicMessage::decode(pool.get_message_by_name(name).unwrap(), bytes.as_slice()).unwrap();
        let mut without_type = json.clone();
        without_type.as_object_mut().unwrap().remove("@type");
        let expected = DynamicMessage::deserialize(theirs.descriptor(), &without_type).unwrap();
        let printed = printed(&theirs, type_url);
        assert_eq!(printed, self::printed(&expected, type_url), "{name} is read alike");
        let mut ours = render(type_url, &bytes);
        if let Some(key) = ours.pointer_mut("/tls_certificate/private_key/inline_string") {
            assert_eq!(*key, json!("[redacted]"), "private keys are not shown");
            *key = printed["tls_certificate"]["private_key"]["inline_string"].clone();
        }
        assert_eq!(normal(ours), normal(printed), "{name} is printed alike");
    }
}

/// Their JSON of a message.
fn printed(message: &DynamicMessage, type_url: &str) -> Json {
    let options = SerializeOptions::new().use_proto_field_name(true);
    let mut json = message.serialize_with_options(serde_json::value::Serializer, &options).unwrap();
    json.as_object_mut().unwrap().insert("@type".into(), type_url.into());
    json
}

/// Numbers of both sides as doubles.
fn normal(json: Json) -> Json {
    match json {
        Json::Number(n) => json!(n.as_f64()),
        Json::Array(list) => list.into_iter().map(normal).collect(),
        Json::Object(object) => object.into_iter().map(|(k, v)| (k, normal(v))).collect(),
        other => other,
    }
}

#[test]
fn well_known_types_have_their_own_forms() {
    let name = "envoy.config.core.v3.Node";
    let json = json!({
        "id": "a",
        "metadata": {"s": "x", "n": 1.5, "b": true, "z": null, "l": [1, {"k": "v"}], "e": {}},
        "user_agent_build_version": {"version": {"major_number": 1}},
    });
    let bytes = encoded(name, &json).unwrap();
    let mut expected = json;
    expected["@type"] = json!(format!("{TYPE}{name}"));
    assert_eq!(normal(render(&format!("{TYPE}{name}"), &bytes)), normal(expected));
}

#[test]
fn durations_are_exact() {
    let name = "envoy.config.route.v3.RouteAction";
    for (text, shown) in [("0.100s", "0.100s"), ("1s", "1s"), ("-0.5s", "-0.500s"), ("3.000000001s", "3.000000001s")] {
        let bytes = encoded(name, &json!({"timeout": text})).unwrap();
        assert_eq!(render(&format!("{TYPE}{name}"), &bytes)["timeout"], json!(shown));
    }
    for text in ["1", "1m", "s", ".s", "1.0000000001s", "1e3s"] {
        assert!(encoded(name, &json!({"timeout": text})).is_err(), "{text}");
    }
}

#[test]
fn every_mistake_is_told_with_its_path() {
    let json = json!({
        "name": 7, "type": "NOPE", "conect_timeout": "1s", "lb_policy": "MAGLEV",
        "load_assignment": {"cluster_name": "x", "endpoints": [{"priority": -1}, "e"]},
        "transport_socket": {"name": "t", "typed_config": {"@type": "type.googleapis.com/no.Such", "x": 1}},
    });
    let errors = encoded("envoy.config.cluster.v3.Cluster", &json).unwrap_err();
    let expected = [
        "conect_timeout: no such field in Cluster",
        "load_assignment.endpoints[0].priority: expected a whole number of 32 bits without sign, got -1",
        "load_assignment.endpoints[1]: expected an object, got \"e\"",
        "name: expected a string (in YAML, put it in quotes), got 7",
        "transport_socket.typed_config: Didn't find a registered implementation with type URL 'type.googleapis.com/no.Such'",
        "type: expected a value of DiscoveryType, got \"NOPE\"",
    ];
    assert_eq!(errors, expected);
}

#[test]
fn two_arms_of_a_oneof_are_an_error() {
    let errors =
        encoded("envoy.config.core.v3.DataSource", &json!({"filename": "a", "inline_string": "b"})).unwrap_err();
    assert_eq!(errors, ["inline_string: only one of filename and inline_string may be set"]);
}
