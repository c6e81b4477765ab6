//! What an installation needs of the cluster and of the user. Pure but for the question of rights.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};

use super::super::connect::{Cluster, ClusterArgs};
use super::{Outcome, mesh_of, unanswered};

/// Name of the check that `--enforce-single-mesh=false` turns off.
pub(super) const OTHERS: &str = "other-meshes";

/// Kubernetes 1.28 or later; with native sidecars from 1.29 on.
pub(super) fn version(major: &str, minor: &str, git: &str) -> Outcome {
    let number = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().ok();
    match (number(major), number(minor)) {
        (Some(1), Some(minor)) if minor < 28 => {
            Outcome::error("kubernetes", "version", format!("{git} is too old")).hint("1.28 or later is needed")
        }
        (Some(1), Some(28)) => Outcome::warning("kubernetes", "version", format!("{git} has no native sidecars"))
            .hint("with 1.29 or later, Jobs end by themselves and init containers have the mesh"),
        (Some(_), Some(_)) => Outcome::ok("kubernetes", "version", git),
        _ => Outcome::warning("kubernetes", "version", format!("can't read the version {git}")),
    }
}

/// No mesh of this name, here or elsewhere.
pub(super) fn installed(controllers: &[Deployment], args: &ClusterArgs) -> Outcome {
    let here = |deployment: &&Deployment| {
        mesh_of(deployment) == args.mesh_name || deployment.namespace().as_deref() == Some(&args.osm_namespace)
    };
    match controllers.iter().find(here) {
        None => Outcome::ok("mesh", "name", format!("{} in {} is free", args.mesh_name, args.osm_namespace)),
        Some(found) => {
            let (mesh, home) = (mesh_of(found), found.namespace().unwrap_or_default());
            Outcome::error("mesh", "name", format!("mesh {mesh} is installed in {home}")).hint(format!(
                "oxmesh uninstall mesh --mesh-name {mesh} --osm-namespace {home}, or other names by --mesh-name and --osm-namespace"
            ))
        }
    }
}

/// No other mesh of this kind.
pub(super) fn others(controllers: &[Deployment], args: &ClusterArgs) -> Outcome {
    let names: Vec<&str> = controllers.iter().map(mesh_of).filter(|name| *name != args.mesh_name).collect();
    if names.is_empty() {
        return Outcome::ok("mesh", OTHERS, "there is no other mesh");
    }
    Outcome::error("mesh", OTHERS, format!("other meshes are installed: {}", names.join(", ")))
        .hint("--enforce-single-mesh=false allows several")
}

/// What the chart makes, by group and resource; in the control plane's namespace if the third is true.
const MADE: [(&str, &str, bool); 14] = [
    ("", "namespaces", false),
    ("apiextensions.k8s.io", "customresourcedefinitions", false),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", false),
    ("apps", "deployments", true),
    ("", "services", true),
    ("", "serviceaccounts", true),
    ("", "configmaps", true),
    ("", "secrets", true),
    ("rbac.authorization.k8s.io", "roles", true),
    ("rbac.authorization.k8s.io", "rolebindings", true),
    ("networking.k8s.io", "networkpolicies", true),
    ("policy", "poddisruptionbudgets", true),
];

/// Whether the user may make all of it.
pub(super) async fn permissions(cluster: &Cluster, args: &ClusterArgs) -> Vec<Outcome> {
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let mut denied = Vec::new();
    for (group, resource, inside) in MADE {
        let attributes = ResourceAttributes {
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            verb: Some("create".to_owned()),
            namespace: inside.then(|| args.osm_namespace.clone()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), non_resource_attributes: None },
            ..SelfSubjectAccessReview::default()
        };
        match api.create(&PostParams::default(), &review).await {
            Ok(answer) if answer.status.as_ref().is_some_and(|status| status.allowed) => {}
            Ok(_) => denied.push(resource),
            Err(error) => return vec![unanswered("rights", "create", &cluster.failed("ask what you may do", error))],
        }
    }
    vec![rights(&denied)]
}

fn rights(denied: &[&str]) -> Outcome {
    if denied.is_empty() {
        return Outcome::ok("rights", "create", "you may make all that the chart makes");
    }
    Outcome::error("rights", "create", format!("you may not create {}", denied.join(", ")))
        .hint("install with an account that has the ClusterRole cluster-admin, or ask whoever runs the cluster")
}

/// Kinds that are there must serve the versions that are read; after the installation they must be there.
pub(super) fn kinds(
    wanted: &[CustomResourceDefinition],
    found: &[CustomResourceDefinition],
    must_exist: bool,
) -> Outcome {
    let found: BTreeMap<String, Vec<&str>> = found.iter().map(|kind| (kind.name_any(), served(kind))).collect();
    let (mut missing, mut foreign, mut there) = (Vec::new(), Vec::new(), 0_usize);
    for kind in wanted {
        let name = kind.name_any();
        match found.get(&name) {
            None => missing.push(name),
            Some(versions) => {
                there += 1;
                let lacks: Vec<&str> = served(kind).into_iter().filter(|version| !versions.contains(version)).collect();
                if !lacks.is_empty() {
                    foreign.push(format!("{name} lacks {}", lacks.join(", ")));
                }
            }
        }
    }
    if !foreign.is_empty() {
        return Outcome::error("objects", "kinds", format!("installed by something else: {}", foreign.join("; ")))
            .hint("apply the chart's own: kubectl apply --server-side --force-conflicts -f charts/oxmesh/crds");
    }
    if must_exist && !missing.is_empty() {
        return Outcome::error("objects", "kinds", format!("missing: {}", missing.join(", ")))
            .hint("kubectl apply --server-side -f charts/oxmesh/crds");
    }
    let all = wanted.len();
    Outcome::ok(
        "objects",
        "kinds",
        match there {
            0 if !must_exist => format!("none of the {all} is there yet"),
            _ => format!("{there} of {all} are there and serve the versions that are read"),
        },
    )
}

fn served(kind: &CustomResourceDefinition) -> Vec<&str> {
    kind.spec.versions.iter().filter(|version| version.served).map(|version| version.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::State;
    use super::*;

    #[test]
    fn versions_before_1_28_are_refused_and_without_native_sidecars_warned_of() {
        for (minor, state) in
            [("27", State::Error), ("28", State::Warning), ("29+", State::Ok), ("34", State::Ok), ("x", State::Warning)]
        {
            assert_eq!(version("1", minor, "v").state, state, "{minor}");
        }
    }

    fn controller(mesh: &str, namespace: &str) -> Deployment {
        serde_json::from_value(
            json!({"metadata": {"name": "osm-controller", "namespace": namespace, "labels": {"meshName": mesh}}}),
        )
        .unwrap()
    }

    fn args() -> ClusterArgs {
        ClusterArgs { kubeconfig: None, context: None, osm_namespace: "osm-system".into(), mesh_name: "osm".into() }
    }

    #[test]
    fn a_mesh_in_the_way_is_named_with_the_ways_out() {
        assert_eq!(installed(&[], &args()).state, State::Ok);
        assert_eq!(installed(&[controller("osm", "elsewhere")], &args()).state, State::Error);
        assert_eq!(installed(&[controller("two", "osm-system")], &args()).state, State::Error);
        assert_eq!(installed(&[controller("two", "two")], &args()).state, State::Ok);
        assert_eq!(others(&[controller("two", "two")], &args()).state, State::Error);
        assert_eq!(others(&[controller("osm", "osm-system")], &args()).state, State::Ok);
    }

    fn kind(name: &str, versions: &[(&str, bool)]) -> CustomResourceDefinition {
        let versions: Vec<_> =
            versions.iter().map(|(name, served)| json!({"name": name, "served": served, "storage": false})).collect();
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {
            "group": "g", "names": {"kind": "K", "plural": "ks"}, "scope": "Namespaced", "versions": versions,
        }}))
        .unwrap()
    }

    #[test]
    fn kinds_of_others_must_serve_what_is_read() {
        let wanted = [kind("a", &[("v1", true), ("v0", false)]), kind("b", &[("v1", true)])];
        assert_eq!(kinds(&wanted, &[], false).state, State::Ok);
        assert_eq!(kinds(&wanted, &[], true).state, State::Error);
        let whole = [kind("a", &[("v1", true), ("v2", true)]), kind("b", &[("v1", true)])];
        assert_eq!(kinds(&wanted, &whole, true).state, State::Ok);
        let old = kinds(&wanted, &[kind("b", &[("v1", false)])], false);
        assert!(old.state == State::Error && old.message.contains("b lacks v1"), "{old:?}");
    }

    #[test]
    fn missing_rights_are_listed() {
        assert_eq!(rights(&[]).state, State::Ok);
        assert!(rights(&["clusterroles"]).message.contains("clusterroles"));
    }
}
