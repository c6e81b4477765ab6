//! The static configuration: Envoy's bootstrap as YAML or JSON, as our own types.
//!
//! It goes through the same table and conversion as dynamic resources; what isn't supported is an error with its path.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use envoy_types::pb::{envoy::config::core::v3::Node, google::protobuf::Any};
use serde_json::Value;

use crate::{
    config::{Name, access_log::AccessLog, cluster::ClusterSpec, listener::Listener, tls::Secret},
    xds::{
        convert::{self, Options, Rejected, Warnings},
        json,
    },
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
    let mut errors = Vec::new();
    let (mut bytes, mut warnings) = (Vec::new(), Vec::new());
    for (text, origin) in [(file, "file"), (merged, "--config-yaml")] {
        let Some(text) = text else { continue };
        match encoded("envoy.config.bootstrap.v3.Bootstrap", text, options) {
            // One encoding after the other is, by protobuf's rules, the one merged over the other.
            Ok((encoded, warned)) => {
                bytes.extend(encoded);
                warnings.extend(warned);
            }
            Err(wrong) if file.is_some() && merged.is_some() => {
                errors.extend(wrong.into_iter().map(|e| format!("{origin}: {e}")));
            }
            Err(wrong) => errors.extend(wrong),
        }
    }
    if file.is_none() && merged.is_none() {
        errors.push("neither a file nor --config-yaml was given".to_owned());
    }
    if !errors.is_empty() {
        return Err(Rejected { kind: "Bootstrap", name: None, errors });
    }
    let mut bootstrap = convert::bootstrap(bytes, options, base)?;
    bootstrap.warnings.splice(0..0, warnings);
    Ok(bootstrap)
}

/// Reads the secrets of a file for SDS by `path`: YAML or JSON with a list `resources`, as of a `DiscoveryResponse`.
/// Contents of `filename` data sources are read now; relative ones are taken from `base`.
///
/// # Errors
/// All that is wrong, with the paths of the fields.
pub fn secrets_file(text: &str, base: &Path) -> Result<Vec<(Name, Arc<Secret>)>, Rejected> {
    let options = &Options::FILE;
    let (bytes, _) = encoded("envoy.service.discovery.v3.DiscoveryResponse", text, options)
        .map_err(|errors| Rejected { kind: "Secrets", name: None, errors })?;
    convert::secrets(&bytes, options, base)
}

/// The encoded message of a text in YAML or JSON, and warnings.
fn encoded(type_name: &str, text: &str, options: &Options) -> Result<(Vec<u8>, Warnings), Vec<String>> {
    let json = document(text).map_err(|e| vec![e])?;
    json::encoded(type_name, &json, options.reject_unknown_fields)
}

/// A text in YAML 1.1, or in JSON, which is nearly a part of it. As in Envoy a bare `y`, `no` or `on` is a boolean.
fn document(text: &str) -> Result<Value, String> {
    let wrong = |e: &dyn std::fmt::Display| e.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let json = if text.trim_start().starts_with('{') { serde_json::from_str(text).ok() } else { None };
    let value: Value = match json {
        Some(json) => json,
        None => {
            let options = serde_saphyr::options! { strict_booleans: false, with_snippet: false };
            serde_saphyr::from_str_with_options(text, options).map_err(|e| format!("not valid YAML: {}", wrong(&e)))?
        }
    };
    if value.is_object() { Ok(value) } else { Err("is not a mapping of field names to values".to_owned()) }
}

#[cfg(test)]
mod tests;
