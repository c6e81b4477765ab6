//! `oxmesh uninstall mesh`: takes away what the installation and the control plane made.
//!
//! Without `-a`, what a later installation goes on with stays: the kinds, their objects, and the authority.

use std::fmt::Debug;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde::de::DeserializeOwned;

use super::connect::{Cluster, ClusterArgs, is_absent};
use super::helm::Helm;
use super::labels::{BOOTSTRAP_SECRETS, CA_SECRET, CONTROLLER, IGNORE, MADE, MONITORED_BY, PROXY_UUID, webhook};
use super::{chart, mesh, namespace};

/// Options of `oxmesh uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Remove a mesh's control plane.
    #[command(
        after_help = "Examples:\n  oxmesh uninstall mesh\n  oxmesh uninstall mesh -f -a --delete-namespace     nothing stays"
    )]
    Mesh(MeshArgs),
}

#[derive(Debug, Args)]
struct MeshArgs {
    /// Don't ask; and don't mind if there is no such mesh.
    #[arg(short, long)]
    force: bool,
    /// Also remove the kinds with all their objects (policies!), the authority, and the namespaces' membership.
    #[arg(short = 'a', long)]
    delete_cluster_wide_resources: bool,
    /// Also remove the control plane's namespace.
    #[arg(long)]
    delete_namespace: bool,
    /// Secret of the authority.
    #[arg(long, value_name = "NAME", default_value = CA_SECRET)]
    ca_bundle_secret_name: String,
    /// As in OSM; no local port is opened.
    #[arg(short = 'p', long, value_name = "PORT", hide = true)]
    local_port: Option<u16>,
}

/// Removes the mesh.
///
/// # Errors
/// When there is no such mesh, nobody agrees, or something can't be removed.
pub async fn run(args: UninstallArgs) -> anyhow::Result<ExitCode> {
    let Command::Mesh(mesh) = args.command;
    let cluster = args.cluster.connect().await?;
    let work = Uninstall { helm: Helm::new(), cluster, place: args.cluster, args: mesh };
    work.run().await
}

struct Uninstall {
    helm: Helm,
    cluster: Cluster,
    place: ClusterArgs,
    args: MeshArgs,
}

impl Uninstall {
    async fn run(&self) -> anyhow::Result<ExitCode> {
        let (mesh, home) = (&self.place.mesh_name, &self.place.osm_namespace);
        let released = self.helm.has_release(&self.place).await?;
        if !released && !self.args.force {
            bail!(
                "there is no mesh {mesh} in namespace {home}: oxmesh mesh list shows all; -f removes what is left of one"
            );
        }
        if !self.args.force && !agreed(&self.question())? {
            bail!("nothing was removed");
        }
        self.say_who_stays().await?;
        if released {
            eprintln!("removing the chart's objects");
            self.helm.output(self.helm.command(&self.place, &["uninstall", mesh, "--wait"])).await?;
        }
        self.control_plane_leftovers().await?;
        if self.args.delete_cluster_wide_resources {
            self.cluster_wide().await?;
        }
        if self.args.delete_namespace {
            eprintln!("removing namespace {home}");
            self.cluster.remove_namespace(home).await?;
        } else {
            self.unlabel_home().await?;
        }
        println!("oxmesh [mesh name: {mesh}] in namespace [{home}] uninstalled");
        if !self.args.delete_cluster_wide_resources {
            let secret = match self.args.delete_namespace {
                true => String::new(),
                false => format!(", Secret {home}/{}", self.args.ca_bundle_secret_name),
            };
            eprintln!(
                "kept for a later installation: the kinds with their objects{secret}, the namespaces' labels; to remove them too: \
                 oxmesh uninstall mesh -f -a --mesh-name {mesh} --osm-namespace {home}"
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    fn question(&self) -> String {
        let (mesh, home) = (&self.place.mesh_name, &self.place.osm_namespace);
        let more = match (self.args.delete_cluster_wide_resources, self.args.delete_namespace) {
            (false, false) => String::new(),
            (true, false) => ", with ALL POLICIES of the cluster and the authority".to_owned(),
            (false, true) => format!(", with all that is in namespace {home}"),
            (true, true) => {
                format!(", with ALL POLICIES of the cluster, the authority, and all that is in namespace {home}")
            }
        };
        format!("Uninstall mesh {mesh} in namespace {home} of {}{more}?", self.cluster.url)
    }

    /// Pods keep their sidecars, which nobody renews.
    async fn say_who_stays(&self) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::all(self.cluster.client.clone());
        let with = self.cluster.all(&pods, ListParams::default().labels(PROXY_UUID), "pods").await?;
        if !with.is_empty() {
            let mut namespaces: Vec<String> = with.iter().filter_map(ResourceExt::namespace).collect();
            namespaces.sort();
            namespaces.dedup();
            eprintln!(
                "‼ {} pods keep their sidecars, whose certificates nobody renews; afterwards restart the workloads of: {}",
                with.len(),
                namespaces.join(", ")
            );
        }
        Ok(())
    }

    /// What the control plane itself made in its namespace, and the webhook of an installation without helm.
    async fn control_plane_leftovers(&self) -> anyhow::Result<()> {
        let client = &self.cluster.client;
        let (mesh, home) = (&self.place.mesh_name, &self.place.osm_namespace);
        self.remove::<MutatingWebhookConfiguration>(Api::all(client.clone()), "webhook", &webhook(mesh)).await?;
        self.remove::<Lease>(Api::namespaced(client.clone(), home), "lease", CONTROLLER).await
    }

    async fn cluster_wide(&self) -> anyhow::Result<()> {
        let client = &self.cluster.client;
        let home = &self.place.osm_namespace;
        let secrets: Api<Secret> = Api::namespaced(client.clone(), home);
        self.remove(secrets, "the authority's Secret", &self.args.ca_bundle_secret_name).await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let label = format!("{MONITORED_BY}={}", self.place.mesh_name);
        for member in self.cluster.all(&namespaces, ListParams::default().labels(&label), "namespaces").await? {
            let name = member.name_any();
            self.bootstrap_secrets(&name).await?;
            eprintln!("taking namespace {name} out of the mesh");
            let patch = Patch::Merge(namespace::left());
            let left = namespaces.patch(&name, &PatchParams::default(), &patch).await;
            left.map_err(|error| self.cluster.failed(&format!("label namespace {name}"), error))?;
        }
        let others = mesh::controllers(&self.cluster).await?;
        if let Some(other) = others.first() {
            eprintln!(
                "‼ the kinds of objects stay: {} has a mesh that needs them",
                other.namespace().unwrap_or_default()
            );
            return Ok(());
        }
        for kind in chart::kinds()? {
            self.remove::<CustomResourceDefinition>(Api::all(client.clone()), "kind", &kind.name_any()).await?;
        }
        Ok(())
    }

    /// Secrets of pods with real Envoy.
    async fn bootstrap_secrets(&self, namespace: &str) -> anyhow::Result<()> {
        let api: Api<Secret> = Api::namespaced(self.cluster.client.clone(), namespace);
        let all = api.list_metadata(&ListParams::default()).await;
        let all = all.map_err(|error| self.cluster.failed(&format!("list Secrets of {namespace}"), error))?;
        for secret in
            all.items.iter().map(ResourceExt::name_any).filter(|name: &String| name.starts_with(BOOTSTRAP_SECRETS))
        {
            self.remove(api.clone(), "Secret", &secret).await?;
        }
        Ok(())
    }

    /// The labels that the installation gave; a namespace that it made goes too if nothing is left in it.
    async fn unlabel_home(&self) -> anyhow::Result<()> {
        let api: Api<Namespace> = Api::all(self.cluster.client.clone());
        let home = &self.place.osm_namespace;
        let namespace = match api.get(home).await {
            Ok(namespace) => namespace,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(self.cluster.failed(&format!("read namespace {home}"), error)),
        };
        if namespace.annotations().contains_key(MADE) && self.args.delete_cluster_wide_resources {
            eprintln!("namespace {home} stays, made by oxmesh install; --delete-namespace removes it");
        }
        let patch = Patch::Merge(serde_json::json!({"metadata": {"labels": {IGNORE: null, "name": null}}}));
        let done = api.patch(home, &PatchParams::default(), &patch).await;
        done.map(drop).map_err(|error| self.cluster.failed(&format!("label namespace {home}"), error))
    }

    /// Deletes one object; that it isn't there is fine.
    async fn remove<K>(&self, api: Api<K>, what: &str, name: &str) -> anyhow::Result<()>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => eprintln!("removing {what} {name}"),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(self.cluster.failed(&format!("remove {what} {name}"), error)),
        }
        Ok(())
    }
}

/// Asks at the terminal.
fn agreed(question: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("{question} Nobody is there to ask; -f goes on without asking");
    }
    eprint!("{question} [y/n] ");
    std::io::stderr().flush().context("asking")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("reading the answer")?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
