//! The static configuration: Envoy's bootstrap as YAML or JSON, as our own types.
//!
//! It goes through the same table and conversion as dynamic resources; what isn't supported is an error with its path.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use envoy_types::pb::{envoy::config::core::v3::Node, google::protobuf::Any};

use crate::{
    config::{Name, access_log::AccessLog, cluster::ClusterSpec, listener::Listener, tls::Secret},
    xds::convert::{Options, Rejected, Warnings},
};

/// A bootstrap, converted.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// The node as it goes into discovery requests; command-line overrides are the caller's.
    pub node: Node,
    /// Admin interface.
    pub admin: Option<Admin>,
    /// `static_resources.listeners`.
    pub listeners: Vec<Static<Listener>>,
    /// `static_resources.clusters`.
    pub clusters: Vec<Static<ClusterSpec>>,
    /// `static_resources.secrets`.
    pub secrets: Vec<(Name, Static<Secret>)>,
    /// The ADS stream; always there when [`Self::cds`] or [`Self::lds`] is.
    pub ads: Option<Ads>,
    /// Clusters come from ADS.
    pub cds: Option<Subscription>,
    /// Listeners come from ADS.
    pub lds: Option<Subscription>,
    /// Time between flushes of statistics to sinks; kept for admin pages only, there are no sinks. 5 s.
    pub stats_flush_interval: Duration,
    /// The whole message (`envoy.config.bootstrap.v3.Bootstrap`), for `/config_dump`.
    pub raw: Any,
    /// To be logged once.
    pub warnings: Warnings,
}

/// A static resource and the message it was made from.
#[derive(Clone, Debug)]
pub struct Static<T> {
    /// Converted.
    pub config: Arc<T>,
    /// As written, for `/config_dump`.
    pub raw: Any,
}

/// Admin interface.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where it listens.
    pub address: SocketAddr,
    /// Logs of its requests.
    pub access_log: Vec<AccessLog>,
}

/// How the ADS stream is made (`dynamic_resources.ads_config`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ads {
    /// Delta or state of the world.
    pub api: Api,
    /// A static cluster.
    pub cluster: Name,
    /// The node goes only into the first message of a stream.
    pub set_node_on_first_message_only: bool,
    /// Metadata of the stream (`initial_metadata`), in order.
    pub initial_metadata: Vec<(String, String)>,
    /// `:authority` of the stream; none = the cluster's name, as Envoy.
    pub authority: Option<String>,
}

/// Variant of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// State of the world.
    Grpc,
    /// Incremental.
    DeltaGrpc,
}

/// A subscription over ADS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Longest wait for the first answer; 15 s, zero = for ever.
    pub initial_fetch_timeout: Duration,
}

/// Reads a bootstrap: `file` (YAML or JSON text), with `merged` (`--config-yaml`) merged over it as Envoy does: messages
/// field by field, lists appended, scalars replaced. Relative file names are taken from `base`.
///
/// # Errors
/// All that is wrong, with the paths of the fields.
pub fn parse(file: Option<&str>, merged: Option<&str>, base: &Path, options: &Options) -> Result<Bootstrap, Rejected> {
    let _ = (file, merged, base, options);
    Err(Rejected::nameless("the bootstrap is not convertible yet".into()))
}

/// Reads the secrets of a file for SDS by `path`: YAML or JSON with a list `resources`, as of a `DiscoveryResponse`.
/// Contents of `filename` data sources are read now; relative ones are taken from `base`.
///
/// # Errors
/// All that is wrong, with the paths of the fields.
pub fn secrets_file(text: &str, base: &Path) -> Result<Vec<(Name, Arc<Secret>)>, Rejected> {
    let _ = (text, base);
    Err(Rejected::nameless("files of secrets are not convertible yet".into()))
}
