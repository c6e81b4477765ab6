//! A mesh installed on the cluster under test by `oxmesh install`, as a user does it.
//!
//! Meshes don't see each other: each test has its own, with a control plane in a namespace of its own, and tests run side
//! by side. Everything goes when it is dropped.

use std::{
    collections::BTreeSet,
    process::{Command as Blocking, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use oxmesh::pod::Binaries;
use serde_json::Value;
use tokio::process::Command;

use crate::cluster::{Cluster, Namespace};

/// Which program the sidecars are, where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPlane {
    /// Ours.
    Oxmesh,
    /// Real Envoy.
    Envoy,
}

/// A control plane that is ready, and the command line for it.
#[derive(Debug)]
pub struct Installed {
    cluster: &'static Cluster,
    name: String,
}

impl Installed {
    /// Installs a mesh in policy mode without egress, with our images; `values` are further `KEY=VALUE` of the chart.
    ///
    /// # Errors
    /// When `oxmesh install` fails; with its words.
    pub async fn new(cluster: &'static Cluster, data_plane: DataPlane, values: &[&str]) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mesh-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mesh = Self { cluster, name };
        mesh.install(data_plane, values).await?;
        Ok(mesh)
    }

    /// Installs it again after [`Self::oxmesh`] has uninstalled it.
    ///
    /// # Errors
    /// When `oxmesh install` fails; with its words.
    pub async fn install(&self, data_plane: DataPlane, values: &[&str]) -> Result<()> {
        let (registry, tag) = self.cluster.registry_and_tag();
        let plane = match data_plane {
            DataPlane::Oxmesh => "oxmesh",
            DataPlane::Envoy => "envoy",
        };
        let settings = [
            format!("osm.image.registry={registry}"),
            format!("osm.image.tag={tag}"),
            format!("osm.sidecarImage={}", self.cluster.envoy_image()),
            format!("osm.dataPlane={plane}"),
            "osm.enablePermissiveTrafficPolicy=false".to_owned(),
            "osm.enableEgress=false".to_owned(),
            // The test node is small.
            "osm.osmController.resource.requests.cpu=10m".to_owned(),
        ];
        let mut arguments = vec!["install", "--enforce-single-mesh=false", "--timeout=120s"];
        for setting in settings.iter().map(String::as_str).chain(values.iter().copied()) {
            arguments.extend(["--set", setting]);
        }
        self.oxmesh(arguments).await.map(|_| ())
    }

    /// The mesh's name, which is also that of its control plane's namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `kubectl` prints, told to work in the control plane's namespace.
    ///
    /// # Errors
    /// When it fails; with its words.
    pub async fn kubectl<'a>(&'a self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        self.cluster.kubectl(["-n", &self.name].into_iter().chain(arguments)).await
    }

    /// What `oxmesh` prints on standard output, told to work on this mesh.
    ///
    /// # Errors
    /// When its status isn't 0; with its words.
    pub async fn oxmesh<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let output = self.command(arguments)?.output().await?;
        let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        ensure!(output.status.success(), "oxmesh: {}: {}", output.status, said.join("\n"));
        let [out, _] = said;
        Ok(out)
    }

    /// `oxmesh` with these arguments, told to work on this mesh; killed when dropped.
    ///
    /// # Errors
    /// When it isn't built.
    pub fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<Command> {
        let mut command = Command::new(Binaries::beside_self().find("oxmesh")?);
        command
            .args(arguments)
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .env("OSM_MESH_NAME", &self.name)
            .env("OSM_NAMESPACE", &self.name)
            .env("OXMESH_HELM", self.cluster.helm_program())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }

    /// A namespace of the mesh, whose pods get sidecars.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn namespace(&self, prefix: &str) -> Result<Namespace> {
        let namespace = self.cluster.namespace(prefix).await?;
        self.oxmesh(["namespace", "add", namespace.name()]).await?;
        Ok(namespace)
    }

    /// Changes the mesh's settings: `{"traffic": {"enableEgress": true}}` is merged into MeshConfig's `spec`.
    ///
    /// # Errors
    /// When the API server refuses it; with its words.
    pub async fn configure(&self, spec: Value) -> Result<()> {
        let patch = serde_json::json!({ "spec": spec }).to_string();
        self.kubectl(["patch", "meshconfig", "osm-mesh-config", "--type=merge", "-p", &patch]).await.map(|_| ())
    }

    /// Waits until the control plane's pods are all ready and up to date.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn ready(&self, limit: Duration) -> Result<()> {
        let limit = format!("--timeout={}s", limit.as_secs());
        self.kubectl(["rollout", "status", "deploy/osm-controller", &limit]).await.map(|_| ())
    }

    /// Names of the control plane's pods, without those that are going: they may answer no more.
    ///
    /// # Errors
    /// When the API server doesn't answer.
    pub async fn controllers(&self) -> Result<BTreeSet<String>> {
        let names =
            "go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}{{end}}";
        let said = self.kubectl(["get", "pods", "-l", "app=osm-controller", "-o", names]).await?;
        Ok(said.split_whitespace().map(ToOwned::to_owned).collect())
    }

    /// Updates that sidecars have refused since the control plane's pods started.
    ///
    /// # Errors
    /// When a pod of the control plane doesn't answer.
    pub async fn nacks(&self) -> Result<u64> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
        Ok(self.metric("oxmesh_proxy_nack_count").await? as u64)
    }

    /// The sum of a metric over its labels and the control plane's pods.
    ///
    /// # Errors
    /// When a pod of the control plane doesn't answer.
    pub async fn metric(&self, metric: &str) -> Result<f64> {
        let mut sum = 0.0;
        for name in self.controllers().await? {
            let path = format!("/api/v1/namespaces/{}/pods/{name}:9091/proxy/metrics", self.name);
            let text = self.cluster.kubectl(["get", "--raw", &path]).await?;
            let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(metric));
            for line in lines {
                let value = line.rsplit(' ').next().context("a value")?;
                sum += value.parse::<f64>().with_context(|| line.to_owned())?;
            }
        }
        Ok(sum)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let Ok(program) = Binaries::beside_self().find("oxmesh") else { return };
        // What is left of a mesh that did not come up is not this test's to complain about.
        let _unheard = Blocking::new(program)
            .args(["uninstall", "mesh", "-f", "--delete-namespace"])
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .env("OSM_MESH_NAME", &self.name)
            .env("OSM_NAMESPACE", &self.name)
            .env("OXMESH_HELM", self.cluster.helm_program())
            .stdin(Stdio::null())
            .output();
    }
}
