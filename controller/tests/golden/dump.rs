//! Both sides of the comparison as trees: OSM's from its dumps, ours from the renderer.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use oxmesh_controller::xds::Kind;
use oxmesh_controller::xds::build::Resources;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, ReflectMessage, SerializeOptions};
use serde_json::Value;

use crate::normal::{KINDS, Tree, normal};
use crate::objects::folder;

/// What OSM sends to `pod` in `scenario`, which changes the resources of `base`.
pub(crate) fn theirs(base: &str, scenario: &str, pod: &str) -> Tree {
    let mut tree = read(base, pod);
    if scenario != base {
        for (kind, resources) in read(scenario, pod) {
            tree.entry(kind).or_default().extend(resources);
        }
    }
    without_leftovers(&mut tree);
    tree
}

/// The pods of which there is a dump in the scenario.
pub(crate) fn pods(scenario: &str) -> BTreeSet<String> {
    let files = fs::read_dir(folder(scenario)).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    files.filter_map(|f| f.strip_suffix(".yaml").map(str::to_owned)).filter(|f| f != "scenario").collect()
}

fn read(scenario: &str, pod: &str) -> Tree {
    let file = folder(scenario).join(format!("{pod}.yaml"));
    let Ok(text) = fs::read_to_string(&file) else { return Tree::new() };
    let dump: Value = serde_saphyr::from_str(&text).unwrap();
    let resources = |kind: &str, name_field: &str| {
        let list = dump[kind].as_array().into_iter().flatten();
        list.map(|r| (r[name_field].as_str().unwrap().to_owned(), normal(r.clone()))).collect()
    };
    KINDS.iter().map(|(kind, name_field)| ((*kind).to_owned(), resources(kind, name_field))).collect()
}

/// A dump also has what Envoy computed itself, what its bootstrap file holds, and what nothing refers to any more.
fn without_leftovers(tree: &mut Tree) {
    let eds: BTreeSet<String> =
        tree["clusters"].iter().filter(|(_, c)| c["type"] == "EDS").map(|(name, _)| name.clone()).collect();
    tree.get_mut("endpoints").unwrap().retain(|name, _| eds.contains(name));
    let listeners = serde_json::to_string(&tree["listeners"]).unwrap();
    tree.get_mut("routes").unwrap().retain(|name, _| listeners.contains(&format!("\"route_config_name\":\"{name}\"")));
    tree.get_mut("secrets").unwrap().retain(|name, _| !matches!(name.as_str(), "tls_sds" | "validation_context_sds"));
}

/// What we send.
pub(crate) fn ours(resources: &Resources) -> Tree {
    let all = KINDS.iter().zip(Kind::ALL).map(|((name, _), kind)| {
        let resources = resources.of(kind).iter().map(|(name, any)| (name.clone(), normal(json(any))));
        ((*name).to_owned(), resources.collect())
    });
    all.collect()
}

fn json(any: &envoy_types::pb::google::protobuf::Any) -> Value {
    let message = decode(&any.type_url, &any.value);
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false);
    message.serialize_with_options(serde_json::value::Serializer, &options).unwrap()
}

/// The messages that the proxy knows, so nothing that we send is strange to it.
fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy/data/envoy.fds");
        DescriptorPool::decode(fs::read(file).unwrap().as_slice()).unwrap()
    })
}

/// Paths of the deprecated fields that are set in our resources.
pub(crate) fn deprecated(resources: &Resources) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for any in Kind::ALL.into_iter().flat_map(|kind| resources.of(kind).values()) {
        search(&decode(&any.type_url, &any.value), &mut found);
    }
    found
}

fn search(message: &DynamicMessage, found: &mut BTreeSet<String>) {
    if message.descriptor().full_name() == "google.protobuf.Any" {
        let field = |name| message.get_field_by_name(name).unwrap().into_owned();
        let (url, value) = (field("type_url"), field("value"));
        return search(&decode(url.as_str().unwrap(), value.as_bytes().unwrap()), found);
    }
    for (field, value) in message.fields() {
        if is_deprecated(&field) {
            found.insert(field.full_name().to_owned());
        }
        search_value(value, found);
    }
}

fn is_deprecated(field: &FieldDescriptor) -> bool {
    field.options().get_field_by_name("deprecated").and_then(|d| d.as_bool()) == Some(true)
}

/// Whether the descriptors still say that `field` of `message` is deprecated.
pub(crate) fn knows_deprecated(message: &str, field: &str) -> bool {
    is_deprecated(&pool().get_message_by_name(message).unwrap().get_field_by_name(field).unwrap())
}

fn search_value(value: &prost_reflect::Value, found: &mut BTreeSet<String>) {
    match value {
        prost_reflect::Value::Message(message) => search(message, found),
        prost_reflect::Value::List(list) => list.iter().for_each(|value| search_value(value, found)),
        prost_reflect::Value::Map(map) => map.values().for_each(|value| search_value(value, found)),
        _ => {}
    }
}

fn decode(type_url: &str, bytes: &[u8]) -> DynamicMessage {
    let name = type_url.rsplit('/').next().unwrap();
    let descriptor = pool().get_message_by_name(name).unwrap_or_else(|| panic!("no descriptor of {name}"));
    DynamicMessage::decode(descriptor, bytes).unwrap()
}
