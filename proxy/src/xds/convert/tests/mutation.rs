//! Every field of what OSM can send, changed one by one: never a panic, and each change is seen.

use super::*;

/// What OSM was recorded to send, and the rest of its shape where we accept it.
fn accepted() -> Vec<Value> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/");
    let read = |file: &str| {
        let text = std::fs::read_to_string(format!("{root}{file}")).unwrap();
        text.replace("<certificate>", "Y2VydGlmaWNhdGU=")
    };
    let mut all: Vec<Value> = serde_saphyr::from_str(&read("osm-shape.yaml")).unwrap();
    for file in [
        "01-smi/bookbuyer",
        "01-smi/echo",
        "04-egress-policy/client",
        "05-ingress/echo",
        "06-tcp/client",
        "07-retry/client",
        "08-limits/echo",
        "08-limits/client",
        "09-split-tcp-and-roots/client",
    ] {
        let document: Value = serde_saphyr::from_str(&read(&format!("osm-golden/{file}.yaml"))).unwrap();
        for kind in ["clusters", "endpoints", "listeners", "routes", "secrets"] {
            all.extend(document.get(kind).and_then(Value::as_array).into_iter().flatten().cloned());
        }
    }
    all.into_iter().filter(|r| convert(r).is_ok()).collect()
}

/// JSON pointers of all scalars in a value, without the types of extensions.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter().filter(|(k, _)| *k != "@type") {
                leaves(value, &format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        Value::Array(list) => list.iter().enumerate().for_each(|(i, v)| leaves(v, &format!("{path}/{i}"), found)),
        _ => found.push(path.to_owned()),
    }
}

/// Other values of the same JSON type; an unlikely one for each.
fn others(value: &Value) -> Vec<Value> {
    match value {
        Value::String(s) => vec![json!(""), json!(format!("{s}\n")), json!("%"), json!("*"), json!("a".repeat(70_000))],
        Value::Number(_) => vec![json!(0), json!(1), json!(u32::MAX), json!(65_536)],
        Value::Bool(b) => vec![json!(!b)],
        _ => vec![],
    }
}

#[test]
fn a_change_of_any_field_is_refused_or_seen_in_the_result() {
    let (mut changes, mut unseen) = (0, std::collections::BTreeSet::new());
    let mut tried = std::collections::HashMap::<(String, String), usize>::new();
    for resource in accepted() {
        let plain = convert(&resource).unwrap().0;
        let mut pointers = Vec::new();
        leaves(&resource, "", &mut pointers);
        for pointer in pointers {
            // The same field in another place of a list is worth a few tries, not hundreds.
            let field = pointer.split('/').filter(|s| s.parse::<usize>().is_err()).collect::<Vec<_>>().join("/");
            let times = tried.entry((resource["@type"].to_string(), field.clone())).or_default();
            *times += 1;
            if *times > 3 {
                continue;
            }
            for other in others(resource.pointer(&pointer).unwrap()) {
                let mut changed = resource.clone();
                let place = changed.pointer_mut(&pointer).unwrap();
                // White space around base64 and in lists of words, a name that is the default anyway.
                let same = |p: &str, o: &Value| {
                    pointer.ends_with(p) && o.as_str().is_some_and(|o| place.as_str() == Some(o.trim_end()))
                };
                if *place == other || same("/inline_bytes", &other) || same("/retry_on", &other) {
                    continue;
                }
                *place = other;
                // What JSON itself refuses never comes to the conversion.
                let Ok(any) = json::read(&changed) else { continue };
                changes += 1;
                let outcome = super::super::resource(&any.type_url.clone(), &any, &Options::SERVER);
                if outcome.is_ok_and(|(other, _)| other == plain) {
                    unseen.insert(field.clone());
                }
            }
        }
    }
    assert!(changes > 1000, "{changes}");
    let unseen: Vec<&str> = unseen.iter().map(String::as_str).collect();
    assert_eq!(unseen, UNSEEN);
}

/// What may change without a difference: documented as inert, or a name that is only for people.
/// `alt_stat_name` is the cluster's name, which it is by default as well.
const UNSEEN: [&str; 14] = [
    "/access_log/name",
    "/alt_stat_name",
    "/endpoints/lb_endpoints/endpoint/hostname",
    "/endpoints/load_balancing_weight",
    "/endpoints/locality/zone",
    "/filter_chains/filters/name",
    "/filter_chains/filters/typed_config/access_log/name",
    "/filter_chains/filters/typed_config/http_filters/name",
    "/filter_chains/transport_socket/name",
    "/listener_filters/name",
    "/load_assignment/cluster_name",
    "/load_assignment/endpoints/locality/zone",
    "/transport_socket/name",
    "/virtual_hosts/routes/route/weighted_clusters/total_weight",
];

#[test]
fn every_cut_and_every_flipped_byte_is_survived() {
    let small = |any: &Any| any.value.len() < 3000;
    for any in accepted().iter().map(|r| json::read(r).unwrap()).filter(small).take(40) {
        for at in 0..any.value.len() {
            let mut flipped = any.clone();
            flipped.value[at] ^= 0xff;
            let cut = Any { value: any.value[..at].to_vec(), ..any.clone() };
            for any in [flipped, cut] {
                // Whatever comes out, it comes out.
                let _ = super::super::resource(&any.type_url.clone(), &any, &Options::SERVER);
                let _ = json::render(&any.type_url, &any.value);
            }
        }
    }
}
