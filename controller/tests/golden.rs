//! The same objects to OSM and to us: what each sidecar gets is the same but for the differences listed here.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "golden/dump.rs"]
mod dump;
#[path = "golden/normal.rs"]
mod normal;
#[path = "golden/objects.rs"]
mod objects;

use std::collections::BTreeSet;

use normal::Difference;
use oxmesh_controller::identity::SidecarIdentity;
use oxmesh_controller::mesh::Mesh;
use oxmesh_controller::settings::Settings;
use oxmesh_controller::xds::build::{Issued, Resources, build};
use serde_json::{Value, json};

/// A difference that we mean, under a heading of `docs/differences.md`.
struct Listed {
    heading: &'static str,
    /// Beginnings of scenarios' names; empty means all.
    scenarios: &'static [&'static str],
    covers: fn(&Difference) -> bool,
}

const SCENARIOS: [(&str, &str); 10] = [
    ("01-smi", "01-smi"),
    ("02-permissive", "02-permissive"),
    ("03-egress-all", "01-smi"),
    ("04-egress-policy", "01-smi"),
    ("05-ingress", "01-smi"),
    ("06-tcp", "01-smi"),
    ("07-retry", "02-permissive"),
    ("08-limits", "02-permissive"),
    ("09-split-tcp-and-roots", "01-smi"),
    ("10-tracing-extauthz-tls", "02-permissive"),
];

const LISTED: &[Listed] = &[
    Listed {
        heading: "The workload itself is a static cluster",
        scenarios: &[],
        covers: |d| {
            ["dns_lookup_family", "respect_dns_ttl", "type"].iter().any(|f| d.path.ends_with(&format!("|local/{f}")))
                && matches!(d.ours.as_ref().and_then(Value::as_str), None | Some("STATIC"))
        },
    },
    Listed {
        heading: "Nothing waits for bytes that choose nothing",
        scenarios: &[],
        covers: |d| {
            d.path.starts_with("/listeners/outbound-listener/listener_filters/")
                && d.path.contains("_inspector/filter_disabled")
        },
    },
    Listed {
        heading: "Paths are in one form before access rules see them",
        scenarios: &[],
        covers: |d| {
            d.path.starts_with("/listeners/inbound-listener/")
                && ["/normalize_path", "/merge_slashes"].iter().any(|field| d.path.ends_with(field))
                && d.theirs.is_none()
                && d.ours == Some(json!(true))
        },
    },
    Listed {
        heading: "Opaque connections have a line in the access log",
        scenarios: &[],
        covers: |d| d.path.ends_with("/tcp_proxy/typed_config/access_log") && d.theirs.is_none(),
    },
    Listed {
        heading: "An unknown appProtocol is opaque TCP",
        scenarios: &[],
        covers: |d| d.path.ends_with("bound_apps/store_7000_tcp") && d.theirs.is_none(),
    },
    Listed {
        heading: "A headless service answers to its own name",
        scenarios: &[],
        covers: |d| {
            let names = ["/apps/shard|8080", "/inbound_apps/shard_8080_http", "root-cert-for-mtls-outbound:apps/shard"];
            d.theirs.is_none()
                && (names.iter().any(|name| d.path.ends_with(name))
                    || d.path.ends_with("/apps/shard|8080|local")
                    || d.path.ends_with("bound_virtual-host|shard.apps.svc.cluster.local"))
        },
    },
    Listed {
        heading: "A workload that may call nobody has an outbound listener",
        scenarios: &["01", "04", "05", "06", "09"],
        covers: |d| {
            d.path == "/listeners/outbound-listener"
                && d.theirs.is_none()
                && d.ours.as_ref().is_some_and(|ours| ours["filter_chains"]["outbound-nothing-allowed"].is_object())
        },
    },
    Listed {
        heading: "Limits of paths always count",
        scenarios: &["08"],
        covers: |d| {
            d.path.starts_with("/routes/rds-inbound.")
                && d.theirs.is_none()
                && d.ours.as_ref().is_some_and(|ours| ours["match"]["safe_regex"]["regex"] != ".*")
                && d.ours.as_ref().is_some_and(|ours| ours["typed_per_filter_config"][RATE_LIMIT].is_object())
        },
    },
    Listed {
        heading: "No resource that a proxy refuses",
        scenarios: &["08"],
        covers: |d| {
            d.path.ends_with("virtual-host|echo.apps.svc.cluster.local/typed_per_filter_config")
                && d.theirs.is_none()
                && d.ours.as_ref().is_some_and(|ours| ours[RATE_LIMIT].is_object())
        },
    },
    Listed {
        heading: "No resource that a proxy refuses",
        scenarios: &["09"],
        covers: |d| {
            d.path.starts_with("/routes/rds-inbound.8080/")
                && d.path.ends_with("/rbac-for-route/principals")
                && d.theirs == Some(json!([{"any": true}]))
        },
    },
    Listed {
        heading: "A backend of a split needs the root's port",
        scenarios: &["09"],
        covers: |d| d.path.ends_with("/weighted_clusters/clusters/apps/echo-again|8080") && d.ours.is_none(),
    },
    Listed {
        heading: "Not yet there",
        scenarios: &["10"],
        covers: |d| {
            let parts =
                ["/health_checks", "/http_health_check", "/clusters/envoy-tracing-cluster", "/typed_config/tracing"];
            let more = ["/typed_config/generate_request_id", "/http_external_authz"];
            d.ours.is_none() && parts.iter().chain(&more).any(|part| d.path.ends_with(part))
        },
    },
    Listed {
        heading: "Not yet there",
        scenarios: &["10"],
        covers: |d| {
            let mut theirs = d.theirs.clone().unwrap_or_default();
            if let Some(names) = theirs.as_array_mut() {
                names.retain(|name| name != "http_external_authz" && name != "http_health_check");
            }
            d.path.ends_with("/typed_config/filter_names") && d.ours == Some(theirs)
        },
    },
];

const RATE_LIMIT: &str = "envoy.filters.http.local_ratelimit";

#[test]
fn every_sidecar_gets_what_osm_sends_but_for_the_listed_differences() {
    let mut used = BTreeSet::new();
    let mut unlisted = Vec::new();
    for (scenario, base) in SCENARIOS {
        for (pod, difference) in compare(scenario, base) {
            let listed = LISTED.iter().position(|l| {
                (l.scenarios.is_empty() || l.scenarios.iter().any(|s| scenario.starts_with(s)))
                    && (l.covers)(&difference)
            });
            match listed {
                Some(i) => drop(used.insert(i)),
                None => unlisted.push((scenario, pod, difference)),
            }
        }
    }
    for (scenario, pod, Difference { path, theirs, ours }) in unlisted.iter().take(40) {
        let show =
            |v: &Option<Value>| v.as_ref().map_or("absent".to_owned(), |v| v.to_string().chars().take(400).collect());
        println!("{scenario} {pod} {path}\n  theirs: {}\n  ours:   {}", show(theirs), show(ours));
    }
    assert!(unlisted.is_empty(), "{} differences that are not listed", unlisted.len());
    for (i, listed) in LISTED.iter().enumerate() {
        assert!(used.contains(&i), "a difference that is listed no longer occurs: {}", listed.heading);
    }
}

fn compare(scenario: &str, base: &str) -> Vec<(String, Difference)> {
    let mut found = Vec::new();
    for (pod, resources) in rendered(scenario, base) {
        let differences = normal::differences(&dump::theirs(base, scenario, &pod), &dump::ours(&resources));
        found.extend(differences.into_iter().map(|d| (pod.clone(), d)));
    }
    found
}

fn rendered(scenario: &str, base: &str) -> Vec<(String, Resources)> {
    let mesh = Mesh::build(&objects::objects(scenario), &Settings::default()).mesh;
    let issued = Issued { chain_pem: "chain", key_pem: "key", roots_pem: "roots" };
    let render = |pod: String| {
        let workload = mesh.workloads().find(|w| w.pod.name == pod || w.pod.name == format!("{pod}-0")).unwrap();
        let proxy = SidecarIdentity { uuid: workload.uuid.clone().unwrap(), service: workload.identity.clone() };
        (pod, build(&mesh, &proxy, &issued).unwrap())
    };
    dump::pods(base).into_iter().map(render).collect()
}

#[test]
fn no_deprecated_field_is_sent() {
    assert!(dump::knows_deprecated("envoy.config.cluster.v3.Cluster", "max_requests_per_connection"));
    for (scenario, base) in SCENARIOS {
        for (pod, resources) in rendered(scenario, base) {
            let deprecated = dump::deprecated(&resources);
            assert!(deprecated.is_empty(), "{scenario} {pod}: {deprecated:?}");
        }
    }
}

#[test]
fn every_listed_difference_is_explained() {
    let book = include_str!("../../docs/differences.md");
    for listed in LISTED {
        assert!(book.lines().any(|line| line == format!("## {}", listed.heading)), "no heading {:?}", listed.heading);
    }
}
