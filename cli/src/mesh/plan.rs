//! Which pods the manifests ask for. Pure.
//!
//! Deployments and StatefulSets, as far as they say what to run: images are not pulled, so each
//! container needs a `command`. What can't be done here is a finding with the object's name.

use std::collections::BTreeMap;

use oxmesh_controller::api::core::{Deployment, StatefulSet};
use oxmesh_controller::api::{Key, Objects};
use serde_json::Value;

const MONITORED_BY: &str = "openservicemesh.io/monitored-by";
const INJECTION: &str = "openservicemesh.io/sidecar-injection";

/// Annotations that become options of the init program.
const REDIRECT: [(&str, &str); 4] = [
    ("openservicemesh.io/inbound-port-exclusion-list", "--inbound-ports-exclude"),
    ("openservicemesh.io/outbound-port-exclusion-list", "--outbound-ports-exclude"),
    ("openservicemesh.io/outbound-ip-range-exclusion-list", "--outbound-cidrs-exclude"),
    ("openservicemesh.io/outbound-ip-range-inclusion-list", "--outbound-cidrs-include"),
];

/// A pod to run. Two equal plans need no restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPlan {
    /// Namespace and name.
    pub key: Key,
    /// Kind and name of what asks for it.
    pub owner: (String, String),
    /// ServiceAccount; `default` when the template has none.
    pub service_account: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Name of the headless Service that gives the pod a name of its own.
    pub subdomain: Option<String>,
    /// Whether it gets a sidecar.
    pub meshed: bool,
    /// Options of the init program.
    pub redirect: Vec<String>,
    /// What to run.
    pub containers: Vec<Container>,
}

/// A container of a plan: a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its name, and its log's.
    pub name: String,
    /// Command and arguments. Empty: somebody else starts it; its ports count all the same.
    pub argv: Vec<String>,
    /// Environment beside this process's own.
    pub env: Vec<(String, String)>,
    /// Named and nameless ports.
    pub ports: Vec<(Option<String>, u16)>,
}

/// All pods that the objects ask for, and what of the objects can't be run here.
#[must_use]
pub fn plans(objects: &Objects, mesh_name: &str) -> (Vec<PodPlan>, Vec<String>) {
    let mut planned = Vec::new();
    let mut findings = Vec::new();
    let sources = objects
        .deployments
        .iter()
        .filter_map(|(key, object)| Source::of_deployment(key, object))
        .chain(objects.stateful_sets.iter().filter_map(|(key, object)| Source::of_set(key, object)));
    for source in sources {
        match source.pods(objects, mesh_name) {
            Ok(pods) => planned.extend(pods),
            Err(reason) => {
                findings.push(format!("{} {} can't run here: {reason}", source.kind, source.key));
            }
        }
    }
    (planned, findings)
}

struct Source<'a> {
    kind: &'static str,
    key: &'a Key,
    replicas: i32,
    subdomain: Option<String>,
    // As JSON: the few fields that matter here, without naming a dozen Kubernetes types.
    template: Value,
}

impl<'a> Source<'a> {
    fn of_deployment(key: &'a Key, object: &Deployment) -> Option<Self> {
        let spec = object.spec.as_ref()?;
        Some(Self {
            kind: "Deployment",
            key,
            replicas: spec.replicas.unwrap_or(1),
            subdomain: None,
            template: serde_json::to_value(&spec.template).ok()?,
        })
    }

    fn of_set(key: &'a Key, object: &StatefulSet) -> Option<Self> {
        let spec = object.spec.as_ref()?;
        Some(Self {
            kind: "StatefulSet",
            key,
            replicas: spec.replicas.unwrap_or(1),
            subdomain: spec.service_name.clone().filter(|name| !name.is_empty()),
            template: serde_json::to_value(&spec.template).ok()?,
        })
    }

    fn pods(&self, objects: &Objects, mesh_name: &str) -> Result<Vec<PodPlan>, String> {
        let spec = &self.template["spec"];
        let annotations = strings(&self.template["metadata"]["annotations"]);
        let listed = spec["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
        if spec["initContainers"].as_array().is_some_and(|list| !list.is_empty()) {
            return Err("initContainers are not supported".into());
        }
        (0..self.replicas)
            .map(|index| {
                let key = Key::new(&self.key.namespace, format!("{}-{index}", self.key.name));
                let containers = listed.iter().map(|container| read_container(container, &key));
                Ok(PodPlan {
                    containers: containers.collect::<Result<_, _>>()?,
                    owner: (self.kind.to_owned(), self.key.name.clone()),
                    service_account: spec["serviceAccountName"].as_str().unwrap_or("default").to_owned(),
                    labels: strings(&self.template["metadata"]["labels"]),
                    subdomain: self.subdomain.clone(),
                    meshed: is_meshed(objects, &key.namespace, &annotations, mesh_name),
                    redirect: redirect(&annotations),
                    annotations: annotations.clone(),
                    key,
                })
            })
            .collect()
    }
}

fn read_container(container: &Value, pod: &Key) -> Result<Container, String> {
    let name = container["name"].as_str().unwrap_or("app").to_owned();
    let list = |field: &str| -> Vec<String> {
        let items = container[field].as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let mut argv = list("command");
    if argv.is_empty() {
        return Err(format!("container {name} has no command (images are not pulled: say what to run)"));
    }
    argv.extend(list("args"));
    let variables = container["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    let env = variables.iter().map(|variable| read_variable(variable, pod));
    let ports = container["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ports = ports.iter().filter_map(|port| {
        let number = port["containerPort"].as_u64().and_then(|port| u16::try_from(port).ok())?;
        Some((port["name"].as_str().map(str::to_owned), number))
    });
    Ok(Container {
        env: env.collect::<Result<_, _>>().map_err(|reason| format!("container {name}: {reason}"))?,
        ports: ports.collect(),
        name,
        argv,
    })
}

fn read_variable(variable: &Value, pod: &Key) -> Result<(String, String), String> {
    let name = variable["name"].as_str().unwrap_or_default().to_owned();
    let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
        Some("metadata.name") => pod.name.clone(),
        Some("metadata.namespace") => pod.namespace.clone(),
        Some(other) => return Err(format!("variable {name}: fieldRef {other} is not supported")),
        None if variable["valueFrom"].is_null() => variable["value"].as_str().unwrap_or_default().to_owned(),
        None => return Err(format!("variable {name}: of valueFrom, fieldRef alone is supported")),
    };
    Ok((name, value))
}

fn is_meshed(objects: &Objects, namespace: &str, annotations: &BTreeMap<String, String>, mesh_name: &str) -> bool {
    let namespaces = objects.namespaces.iter();
    let Some((_, object)) = namespaces.into_iter().find(|(key, _)| key.name == namespace) else {
        return false;
    };
    let monitored = object.metadata.labels.as_ref().and_then(|labels| labels.get(MONITORED_BY));
    let of_namespace = object.metadata.annotations.as_ref().and_then(|all| all.get(INJECTION));
    let injection = annotations.get(INJECTION).or(of_namespace).map(String::as_str);
    monitored.is_some_and(|name| name == mesh_name) && matches!(injection, Some("enabled" | "yes" | "true"))
}

fn redirect(annotations: &BTreeMap<String, String>) -> Vec<String> {
    REDIRECT
        .iter()
        .filter_map(|(annotation, option)| Some(format!("{option}={}", annotations.get(*annotation)?)))
        .collect()
}

fn strings(value: &Value) -> BTreeMap<String, String> {
    let map = value.as_object().into_iter().flatten();
    map.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use oxmesh_controller::api::parse;
    use serde_json::json;

    use super::*;

    fn objects(documents: impl IntoIterator<Item = Value>) -> Objects {
        let mut objects = Objects::default();
        for document in documents {
            objects.insert(parse(document).expect("a valid object").object);
        }
        objects
    }

    fn namespace(annotation: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop",
            "labels": {MONITORED_BY: "osm"}, "annotations": {INJECTION: annotation}}})
    }

    fn deployment(template: Value) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"replicas": 2, "selector": {}, "template": template}})
    }

    #[test]
    fn each_replica_is_a_pod_with_the_templates_command_account_and_redirection() {
        let template = json!({
            "metadata": {"labels": {"app": "web"},
                "annotations": {"openservicemesh.io/outbound-port-exclusion-list": "5432"}},
            "spec": {"serviceAccountName": "web", "containers": [{"name": "c", "command": ["web"],
                "args": ["-v"], "ports": [{"containerPort": 80, "name": "http"}],
                "env": [{"name": "A", "value": "b"},
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}]},
        });
        let (pods, findings) = plans(&objects([namespace("enabled"), deployment(template)]), "osm");
        assert_eq!(findings, Vec::<String>::new());
        assert_eq!(pods.len(), 2);
        let pod = &pods[1];
        assert_eq!(pod.key.to_string(), "shop/web-1");
        assert!(pod.meshed);
        assert_eq!(pod.redirect, ["--outbound-ports-exclude=5432"]);
        let container = &pod.containers[0];
        assert_eq!(container.argv, ["web", "-v"]);
        assert_eq!(container.env[1], ("POD".into(), "web-1".into()));
        assert_eq!(container.ports, [(Some("http".into()), 80)]);
    }

    #[test]
    fn injection_is_off_without_the_annotation_and_in_another_mesh() {
        let template = json!({"spec": {"containers": [{"name": "c", "command": ["web"]}]}});
        for (annotation, mesh, meshed) in
            [("enabled", "osm", true), ("disabled", "osm", false), ("enabled", "other", false)]
        {
            let objects = objects([namespace(annotation), deployment(template.clone())]);
            assert_eq!(plans(&objects, mesh).0[0].meshed, meshed, "{annotation} {mesh}");
        }
    }

    #[test]
    fn what_can_not_run_is_a_finding_and_hurts_no_other_object() {
        let cases = [
            (json!({"spec": {"containers": [{"name": "c", "image": "nginx"}]}}), "no command"),
            (json!({"spec": {"initContainers": [{"name": "i"}], "containers": []}}), "initContainers"),
            (
                json!({"spec": {"containers": [{"name": "c", "command": ["x"],
                    "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]}}),
                "valueFrom",
            ),
        ];
        for (template, part) in cases {
            let (pods, findings) = plans(&objects([namespace("enabled"), deployment(template)]), "osm");
            assert!(pods.is_empty());
            assert!(findings[0].contains(part) && findings[0].contains("shop/web"), "{findings:?}");
        }
    }
}
