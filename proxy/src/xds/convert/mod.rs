//! One xDS resource to our configuration types, or the whole list of reasons why not.
#![allow(deprecated, reason = "what the support table calls an alias is translated here")]

#[macro_use]
mod headers;
mod access_log;
mod action;
mod bootstrap;
mod cluster;
mod context;
mod endpoint;
mod http;
mod listener;
mod matcher;
mod outcome;
mod ratelimit;
mod rbac;
mod retry;
mod route;
mod source;
mod tls;

use std::{path::Path, sync::Arc};

use envoy_types::pb::google::protobuf::Any;

pub(crate) use self::bootstrap::{bootstrap, secrets};
use self::context::Cx;
pub use self::http::misfits;
pub use self::outcome::{MAX_ERROR_BYTES, Received, Rejected, Warnings};
use super::{
    path::{At, Report},
    schema, walk,
};
use crate::config::{
    Name,
    cluster::{Assignment, ClusterSpec},
    listener::Listener,
    route::RouteTable,
    tls::Secret,
};

/// Type URL of a listener (LDS).
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Type URL of a route table (RDS).
pub const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// Type URL of a cluster (CDS).
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Type URL of the endpoints of a cluster (EDS).
pub const ASSIGNMENT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Type URL of a secret (SDS).
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// Type URL of the wrapper around a resource (`envoy.service.discovery.v3.Resource`).
pub const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// How a resource is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where it comes from.
    pub origin: Origin,
    /// Unknown field numbers are errors (`--reject-unknown-dynamic-fields`; for files: not
    /// `--allow-unknown-static-fields`). Else they are accepted with a warning.
    pub reject_unknown_fields: bool,
}

/// Where a resource comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A management server.
    Server,
    /// The bootstrap file or a file of secrets.
    File,
}

impl Options {
    /// For resources of a management server, with Envoy's default.
    pub const SERVER: Self = Self { origin: Origin::Server, reject_unknown_fields: false };
    /// For resources in files, with Envoy's default.
    pub const FILE: Self = Self { origin: Origin::File, reject_unknown_fields: true };
}

/// A converted resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// From LDS.
    Listener(Arc<Listener>),
    /// From RDS.
    Routes(Arc<RouteTable>),
    /// From CDS.
    Cluster(Arc<ClusterSpec>),
    /// From EDS.
    Assignment(Arc<Assignment>),
    /// From SDS.
    Secret {
        /// Its name.
        name: Name,
        /// What it holds.
        secret: Arc<Secret>,
    },
}

impl Resource {
    /// The resource's name, by which it is subscribed and referred to.
    #[must_use]
    pub fn name(&self) -> &Name {
        match self {
            Self::Listener(l) => &l.name,
            Self::Routes(r) => &r.name,
            Self::Cluster(c) => &c.name,
            Self::Assignment(a) => &a.name,
            Self::Secret { name, .. } => name,
        }
    }
}

/// Converts a resource of the type `type_url`. A `discovery.v3.Resource` wrapper around it must have been taken off
/// ([`Received::unwrap`]).
///
/// # Errors
/// All that is wrong with the resource, each with the path of the field; nothing of it may be used then.
pub fn resource(type_url: &str, any: &Any, options: &Options) -> Result<(Resource, Warnings), Rejected> {
    resource_in(type_url, any, options, Path::new(""))
}

/// As [`resource`], with relative file names taken from `base`.
pub(crate) fn resource_in(
    type_url: &str,
    any: &Any,
    options: &Options,
    base: &Path,
) -> Result<(Resource, Warnings), Rejected> {
    let Some(kind) = kind(type_url) else {
        return Err(Rejected::nameless(format!("resources of the type {type_url} are not supported")));
    };
    let name = name(&any.value);
    let reject = |errors| Rejected { kind, name: name.clone(), errors };
    if any.type_url != type_url {
        return Err(reject(vec![format!("has the type {}, asked for was {type_url}", any.type_url)]));
    }
    let mut report = Report::default();
    walk::walk(schema::type_name(type_url), &any.value, options, &mut report);
    if !report.errors.is_empty() {
        return Err(reject(report.errors));
    }
    let mut cx = Cx::new(&mut report, base);
    let converted = convert(type_url, any, &mut cx);
    match converted {
        Some(resource) if report.errors.is_empty() => Ok((resource, report.warnings)),
        _ if report.errors.is_empty() => Err(reject(vec!["can't be converted".to_owned()])),
        _ => Err(reject(report.errors)),
    }
}

fn convert(type_url: &str, any: &Any, cx: &mut Cx<'_>) -> Option<Resource> {
    let at = &At::ROOT;
    Some(match type_url {
        LISTENER => Resource::Listener(Arc::new(listener::listener(&cx.decode(any, at)?, at, cx)?)),
        ROUTES => Resource::Routes(Arc::new(route::table(&cx.decode(any, at)?, false, at, cx)?)),
        CLUSTER => Resource::Cluster(Arc::new(cluster::cluster(&cx.decode(any, at)?, at, cx)?)),
        ASSIGNMENT => Resource::Assignment(Arc::new(endpoint::assignment(&cx.decode(any, at)?, at, cx)?)),
        _ => {
            let (name, secret) = tls::secret(&cx.decode(any, at)?, at, cx)?;
            Resource::Secret { name, secret: Arc::new(secret) }
        }
    })
}

/// The word for a type of resource.
fn kind(type_url: &str) -> Option<&'static str> {
    Some(match type_url {
        LISTENER => "Listener",
        ROUTES => "RouteConfiguration",
        CLUSTER => "Cluster",
        ASSIGNMENT => "ClusterLoadAssignment",
        SECRET => "Secret",
        _ => return None,
    })
}

/// The name of an encoded resource (field 1 of all of them), even if the rest of it is bad.
fn name(bytes: &[u8]) -> Option<String> {
    let fields = super::wire::fields(bytes).map_while(Result::ok);
    let names = fields.filter(|(number, _)| *number == 1).filter_map(|(_, raw)| raw.text());
    names.last().filter(|n| !n.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests;
