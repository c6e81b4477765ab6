//! The recorded resources of real OSM, put on a stage: our addresses, ports and certificates in place of the cluster's,
//! served to each sidecar by its name.
//!
//! Addresses keep their look (10.79.1.2 becomes 127.79.1.2, which every Linux answers for), so chains are found by
//! destination as in a pod: a connection's own address stands for its original destination. One port of the
//! recording is driven at a time; it becomes the port that the listener really has.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use oxmesh::pod::{Binaries, DataPlane};
use oxmesh_controller::identity::{Ca, LeafRequest};
use oxmesh_tests::{
    alone::free_ports,
    mesh::{project, tools},
};
use serde_json::{Value, json};
use tokio::process::Command;

use super::control::Control;
use crate::standalone::Run;

/// A sidecar on the stage.
pub(super) struct Pod {
    /// Name of the node.
    pub(super) node: &'static str,
    pub(super) plane: DataPlane,
    /// Whose recording it gets.
    pub(super) recording: &'static str,
    /// Account and namespace in its certificate.
    pub(super) identity: &'static str,
    /// Its address in the recording.
    pub(super) address: &'static str,
    /// Words of the recording to replace, as when one pod plays another.
    pub(super) replace: Option<(&'static str, &'static str)>,
    /// Where its application listens.
    pub(super) app: u16,
}

/// Which recording, and which of its ports are driven.
pub(super) struct Play {
    /// `01-smi` or `02-permissive`.
    pub(super) base: &'static str,
    /// What differs from it.
    pub(super) scenario: Option<&'static str>,
    /// The service's port.
    pub(super) outbound: u16,
    /// The pod's port.
    pub(super) inbound: u16,
}

/// Running sidecars, killed when dropped.
pub(super) struct Stage {
    run: Run,
    control: Control,
    pods: Vec<(&'static str, Ports)>,
}

#[derive(Clone, Copy)]
struct Ports {
    outbound: u16,
    inbound: u16,
    admin: u16,
}

impl Stage {
    pub(super) async fn set(play: &Play, pods: &[Pod]) -> Result<Self> {
        let run = Run::new()?;
        let dir = run.folder().to_owned();
        let ca = Ca::open_or_create(&dir.join("ca"))?;
        let control = Control::start().await?;
        let ads = control.port;
        let mut stage = Self { run, control, pods: Vec::new() };
        for pod in pods {
            let [outbound, inbound, admin] = free_ports()?;
            stage.pods.push((pod.node, Ports { outbound, inbound, admin }));
        }
        let addresses: Vec<(String, u16)> =
            pods.iter().zip(&stage.pods).map(|(pod, (_, ports))| (local(pod.address), ports.inbound)).collect();
        let binaries = Binaries::beside_self().with_folder(tools().join("bin"));
        let bootstrap = fs::read_to_string(project().join("tests/data/xds-example/bootstrap.yaml"))?;
        for (pod, (_, ports)) in pods.iter().zip(stage.pods.clone()) {
            let local =
                Local { play, pod, ports, addresses: &addresses, leaf: leaf(&ca, pod.identity)?, ca: ca.cert_pem() };
            stage.control.serve(pod.node, &local.resources()?)?;
            let text = [
                ("{{node}}", pod.node.to_owned()),
                ("{{admin}}", ports.admin.to_string()),
                ("{{ads}}", ads.to_string()),
                ("{{api}}", "GRPC".to_owned()),
            ]
            .iter()
            .fold(bootstrap.clone(), |text, (name, value)| text.replace(name, value));
            let file = dir.join(format!("boot-{}.yaml", pod.node));
            fs::write(&file, text)?;
            let mut command = Command::new(binaries.find(pod.plane.program())?);
            command.arg("-c").arg(&file).args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning"]);
            stage.run.spawn(pod.node, command)?;
        }
        Ok(stage)
    }

    fn ports(&self, node: &str) -> Ports {
        let found = self.pods.iter().find(|(name, _)| *name == node);
        found.expect("scenarios ask for the pods that they have set").1
    }

    /// The outbound listener's port.
    pub(super) fn outbound(&self, node: &str) -> u16 {
        self.ports(node).outbound
    }

    /// The inbound listener's port.
    pub(super) fn inbound(&self, node: &str) -> u16 {
        self.ports(node).inbound
    }

    /// A certificate with this identity, and the CA's, as files.
    pub(super) fn certificate(&self, identity: &str) -> Result<()> {
        let dir = self.run.folder();
        let ca = Ca::open_or_create(&dir.join("ca"))?;
        let (chain, key) = leaf(&ca, identity)?;
        fs::write(dir.join("client.pem"), chain)?;
        fs::write(dir.join("client.key"), key)?;
        Ok(())
    }

    pub(super) fn folder(&self) -> &Path {
        self.run.folder()
    }

    /// What the processes said.
    pub(super) fn words(&self) -> String {
        self.pods.iter().map(|(name, _)| format!("{name}:\n{}\n", self.run.log(name))).collect()
    }

    /// Refusals of resources, as the control plane heard them.
    pub(super) fn refusals(&self) -> Vec<String> {
        self.control.refusals()
    }
}

fn leaf(ca: &Ca, identity: &str) -> Result<(String, String)> {
    let name = format!("{identity}.cluster.local");
    let request = LeafRequest {
        common_name: name.clone(),
        dns: vec![name],
        uris: Vec::new(),
        ips: Vec::new(),
        validity: Duration::from_secs(3600),
    };
    let leaf = ca.issue(&request, SystemTime::now())?;
    Ok((leaf.chain_pem, leaf.key_pem))
}

/// An address of the recording, as one of this machine's.
fn local(text: &str) -> String {
    ["78", "79", "99"]
        .iter()
        .fold(text.to_owned(), |text, net| text.replace(&format!("10.{net}."), &format!("127.{net}.")))
}

/// How one pod's resources become local.
struct Local<'a> {
    play: &'a Play,
    pod: &'a Pod,
    ports: Ports,
    addresses: &'a [(String, u16)],
    leaf: (String, String),
    ca: &'a str,
}

const KINDS: [&str; 5] = ["clusters", "endpoints", "listeners", "routes", "secrets"];

impl Local<'_> {
    /// The base's resources with the scenario's in their place.
    fn resources(&self) -> Result<Vec<Value>> {
        let mut all: Vec<Value> = Vec::new();
        for scenario in [Some(self.play.base), self.play.scenario].into_iter().flatten() {
            let file = format!("proxy/tests/data/osm-golden/{scenario}/{}.yaml", self.pod.recording);
            let mut text = local(&fs::read_to_string(project().join(&file)).with_context(|| file.clone())?);
            if let Some((from, to)) = self.pod.replace {
                text = text.replace(from, to);
            }
            let document: Value = serde_saphyr::from_str(&text)?;
            for kind in KINDS {
                for resource in document.get(kind).and_then(Value::as_array).into_iter().flatten() {
                    all.retain(|old| !same(old, resource));
                    all.push(resource.clone());
                }
            }
        }
        for resource in &mut all {
            self.adapt(resource);
        }
        Ok(all)
    }

    fn adapt(&self, resource: &mut Value) {
        let type_url = resource["@type"].as_str().unwrap_or_default().to_owned();
        match type_url.rsplit('.').next().unwrap_or_default() {
            "Listener" => self.listener(resource),
            "Secret" => self.secret(resource),
            "Cluster" | "ClusterLoadAssignment" => self.addresses(resource),
            _ => {}
        }
    }

    fn listener(&self, listener: &mut Value) {
        let (recorded, port) = match listener["name"].as_str() {
            Some("outbound-listener") => (self.play.outbound, self.ports.outbound),
            _ => (self.play.inbound, self.ports.inbound),
        };
        listener["address"]["socket_address"]["port_value"] = json!(port);
        destinations(listener, recorded, port);
    }

    fn secret(&self, secret: &mut Value) {
        if let Some(certificate) = secret.get_mut("tls_certificate") {
            certificate["certificate_chain"] = json!({ "inline_string": self.leaf.0 });
            certificate["private_key"] = json!({ "inline_string": self.leaf.1 });
        }
        if let Some(context) = secret.get_mut("validation_context") {
            context["trusted_ca"] = json!({ "inline_string": self.ca });
        }
    }

    /// Addresses and ports of endpoints, wherever they stand.
    fn addresses(&self, value: &mut Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| self.addresses(item)),
            Value::Object(fields) => {
                // A weight of 0 is how the dump prints that none was set.
                if fields.get("load_balancing_weight") == Some(&json!(0)) {
                    fields.remove("load_balancing_weight");
                }
                if let Some(address) = fields.get("address").and_then(Value::as_str) {
                    let pod = self.addresses.iter().find(|(own, _)| own == address).map(|(_, port)| *port);
                    if let Some(port) = pod {
                        fields.insert("port_value".into(), json!(port));
                    } else if address == "127.0.0.1" || address.ends_with(".example.org") {
                        fields.insert("address".into(), json!("127.0.0.1"));
                        fields.insert("port_value".into(), json!(self.pod.app));
                    }
                }
                fields.values_mut().for_each(|field| self.addresses(field));
            }
            _ => {}
        }
    }
}

/// Puts a port in the place of another in chain matches and access rules.
fn destinations(value: &mut Value, from: u16, to: u16) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| destinations(item, from, to)),
        Value::Object(fields) => {
            if fields.get("destination_port") == Some(&json!(from)) {
                fields.insert("destination_port".into(), json!(to));
            }
            fields.values_mut().for_each(|field| destinations(field, from, to));
        }
        _ => {}
    }
}

/// Two versions of one resource.
fn same(a: &Value, b: &Value) -> bool {
    let name = |v: &Value| v.get("name").or_else(|| v.get("cluster_name")).cloned();
    a["@type"] == b["@type"] && name(a) == name(b)
}
