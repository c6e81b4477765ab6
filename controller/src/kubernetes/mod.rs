//! The control plane as a workload of a cluster: how it reaches the API server, and what it writes there.
//!
//! Only the replica that holds the lease writes: the MeshConfig of a new mesh, and what there is to say about objects.
//! Nothing that proxies need hangs on it.

mod events;
mod leader;
mod preset;
mod status;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio_util::sync::CancellationToken;

use crate::shared::Shared;

/// Why there is no client of the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The file that was named can't be used.
    #[error("kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KubeconfigError>,
    },
    /// This runs in no pod, or in one without a service account's token.
    #[error("find the API server of this cluster: {0} (outside a pod, give --kubeconfig)")]
    NoCluster(#[from] InClusterError),
    /// The client can't be set up.
    #[error("set up the client of the API server: {0}")]
    Client(Box<kube::Error>),
}

/// A client of the API server of the cluster that this runs in, or that `kubeconfig` names. Asks nothing of it yet.
///
/// # Errors
/// [`ConnectError`] if there is no such file, or this runs in no pod.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let mut config = match kubeconfig {
        Some(path) => from_file(path)
            .await
            .map_err(|source| ConnectError::Kubeconfig { path: path.to_owned(), source: Box::new(source) })?,
        None => Config::incluster()?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))
}

async fn from_file(path: &Path) -> Result<Config, KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await
}

/// Holds the lease, if it can be had, and does what its holder does, until stopped; then gives it back.
pub(crate) async fn duties(client: Client, shared: Arc<Shared>, stop: CancellationToken) {
    let namespace = shared.settings.osm_namespace.clone();
    let lead = leader::lead(client.clone(), &namespace, &shared.leader, stop.clone());
    let write = async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = preset::make(&client, &shared) => {}
            () = status::report(&client, &shared) => {}
        }
    };
    tokio::join!(lead, write);
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
