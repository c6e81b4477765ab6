//! The way to the API server, and errors of it in words that help.

use std::error::Error as _;
use std::fmt::Debug;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Args;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams};
use kube::config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config};
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

/// How to reach the cluster, and which mesh is meant.
#[derive(Debug, Clone, Args)]
pub struct ClusterArgs {
    /// File with the way to the cluster. Default: the one that $KUBECONFIG names, ~/.kube/config, or the pod's own account.
    #[arg(long, value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// Context in that file.
    #[arg(long, value_name = "NAME", global = true)]
    pub context: Option<String>,
    /// Namespace of the control plane.
    #[arg(long, value_name = "NAME", default_value = "osm-system", env = "OSM_NAMESPACE", global = true)]
    pub osm_namespace: String,
    /// Name of the mesh.
    #[arg(long, value_name = "NAME", default_value = "osm", env = "OSM_MESH_NAME", global = true)]
    pub mesh_name: String,
}

/// A cluster that can be asked.
pub struct Cluster {
    pub(super) client: Client,
    pub(super) url: String,
}

impl ClusterArgs {
    /// Reads how to reach the cluster; asks it nothing yet.
    ///
    /// # Errors
    /// When no cluster is configured, or the file can't be used.
    pub async fn connect(&self) -> anyhow::Result<Cluster> {
        let mut config = match &self.kubeconfig {
            Some(file) => self.of_file(file).await?,
            None if self.context.is_some() => {
                let kubeconfig = Kubeconfig::read().context("--context names an entry of a kubeconfig file")?;
                Config::from_custom_kubeconfig(kubeconfig, &self.options()).await?
            }
            None => Config::infer().await.map_err(unconfigured)?,
        };
        config.connect_timeout = Some(CONNECT);
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).with_context(|| format!("the configuration for {url}"))?;
        Ok(Cluster { client, url })
    }

    async fn of_file(&self, file: &Path) -> anyhow::Result<Config> {
        let kubeconfig = Kubeconfig::read_from(file).with_context(|| format!("kubeconfig {}", file.display()))?;
        Config::from_custom_kubeconfig(kubeconfig, &self.options())
            .await
            .with_context(|| format!("kubeconfig {}", file.display()))
    }

    fn options(&self) -> KubeConfigOptions {
        KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() }
    }
}

fn unconfigured(error: InferConfigError) -> anyhow::Error {
    match error.source().and_then(|source| source.downcast_ref::<KubeconfigError>()) {
        Some(KubeconfigError::ReadConfig(why, file)) if why.kind() == ErrorKind::NotFound => anyhow!(
            "no cluster is configured: there is no {}; name a file by --kubeconfig or $KUBECONFIG",
            file.display()
        ),
        Some(why) => anyhow!("no cluster is configured: {why}; name another file by --kubeconfig or $KUBECONFIG"),
        None => error.into(),
    }
}

impl Cluster {
    /// Says what was being done, whose fault the error is, and what to do.
    pub(super) fn failed(&self, doing: &str, error: kube::Error) -> anyhow::Error {
        match error {
            kube::Error::Api(status) if status.code == 401 => {
                anyhow!("can't {doing}: {} doesn't know you; log in again, or choose another --context", self.url)
            }
            kube::Error::Api(status) if status.code == 403 => {
                anyhow!("can't {doing}: not allowed ({}); ask whoever runs the cluster for this right", status.message)
            }
            kube::Error::Api(status) => anyhow!("can't {doing}: {}", status.message),
            error @ (kube::Error::Service(_) | kube::Error::HyperError(_)) => anyhow::Error::new(error).context(
                format!("can't {doing}: {} doesn't answer; is the cluster up, and is it the one you mean?", self.url),
            ),
            error => anyhow::Error::new(error).context(format!("can't {doing}")),
        }
    }

    /// All objects of a list, page by page.
    pub(super) async fn all<K>(&self, api: &Api<K>, params: ListParams, what: &str) -> anyhow::Result<Vec<K>>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let mut params = params.limit(PAGE);
        let mut objects = Vec::new();
        loop {
            let page = api.list(&params).await.map_err(|error| self.failed(&format!("list {what}"), error))?;
            objects.extend(page.items);
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => params = params.continue_token(&token),
                _ => return Ok(objects),
            }
        }
    }
}

impl Cluster {
    /// Deletes a namespace and waits until it is gone; that it isn't there is fine.
    ///
    /// # Errors
    /// When it can't be deleted, or still holds something after a minute.
    pub(super) async fn remove_namespace(&self, name: &str) -> anyhow::Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let gone = async {
            loop {
                match api.delete(name, &DeleteParams::default()).await {
                    Err(error) if is_absent(&error) => return Ok(()),
                    // 409: it is going already.
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    Err(error) => return Err(self.failed(&format!("remove namespace {name}"), error)),
                    Ok(_) => {}
                }
                sleep(Duration::from_millis(500)).await;
            }
        };
        timeout(GOING, gone).await.unwrap_or_else(|_| {
            Err(anyhow!(
                "namespace {name} isn't gone after a minute; what holds it: kubectl get namespace {name} -o yaml"
            ))
        })
    }
}

/// True for an answer that there is no such object.
pub(super) fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

const CONNECT: Duration = Duration::from_secs(5);
const GOING: Duration = Duration::from_secs(60);
const PAGE: u32 = 500;
