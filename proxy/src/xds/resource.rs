//! The names of the other resources that a converted resource needs.

use std::sync::Arc;

use super::{
    convert::{Resource, misfits},
    kind::Kind,
};
use crate::config::{
    Name, Wanted,
    cluster::{ClusterSpec, Discovery},
    http::RouteSource,
    listener::{FilterChain, Listener, Terminal},
    route::{RouteAction, RouteTable, Target},
    tls::{CommonTls, SecretSource},
};

impl Resource {
    /// The listener, if it is one.
    #[must_use]
    pub fn listener(&self) -> Option<Arc<Listener>> {
        if let Self::Listener(listener) = self { Some(Arc::clone(listener)) } else { None }
    }

    /// Calls `found` with each resource that this one asks for over ADS.
    pub fn references(&self, found: &mut dyn FnMut(Kind, &Wanted)) {
        match self {
            Self::Cluster(cluster) => cluster_references(cluster, found),
            Self::Listener(listener) => listener_references(listener, found),
            Self::Assignment(_) | Self::Secret { .. } | Self::Routes(_) => {}
        }
    }

    /// A cluster that must be known and is not, where the resource insists (`validate_clusters`).
    #[must_use]
    pub fn unknown_cluster(&self, known: &dyn Fn(&str) -> bool) -> Option<Name> {
        match self {
            Self::Routes(table) => unknown_in_table(table, known),
            Self::Listener(listener) => chains(listener).find_map(|chain| match &chain.terminal {
                Terminal::Http(hcm) => match &hcm.routes {
                    RouteSource::Inline(table) => unknown_in_table(table, known),
                    RouteSource::Rds(_) => None,
                },
                Terminal::Tcp(_) | Terminal::Close => None,
            }),
            Self::Cluster(_) | Self::Assignment(_) | Self::Secret { .. } => None,
        }
    }
}

/// A setting in a route table for a filter that a listener with this table does not have; words for people.
#[must_use]
pub fn misfit(table: &RouteTable, listeners: &[Arc<Listener>]) -> Option<String> {
    listeners.iter().flat_map(|listener| chains(listener)).find_map(|chain| match &chain.terminal {
        Terminal::Http(hcm) if rds_name(chain) == Some(&table.name) => misfits(&hcm.filters, table).into_iter().next(),
        _ => None,
    })
}

/// All chains of a listener, the default one last.
pub fn chains(listener: &Listener) -> impl Iterator<Item = &Arc<FilterChain>> {
    listener.chains.iter().chain(&listener.default_chain)
}

/// What a cluster asks for over ADS: its endpoints, its secrets.
pub fn cluster_references(cluster: &ClusterSpec, found: &mut dyn FnMut(Kind, &Wanted)) {
    if let Discovery::Eds(wanted) = &cluster.discovery {
        found(Kind::Endpoints, wanted);
    }
    if let Some(tls) = &cluster.tls {
        secret_references(&tls.common, found);
    }
}

/// What a listener asks for over ADS: its route tables, its secrets.
pub fn listener_references(listener: &Listener, found: &mut dyn FnMut(Kind, &Wanted)) {
    for chain in chains(listener) {
        if let Some(tls) = &chain.tls {
            secret_references(&tls.common, found);
        }
        if let Some(wanted) = rds(chain) {
            found(Kind::Routes, wanted);
        }
    }
}

/// The route table that a chain asks for over ADS, if it does.
#[must_use]
pub fn rds_name(chain: &FilterChain) -> Option<&Name> {
    rds(chain).map(|wanted| &wanted.name)
}

fn rds(chain: &FilterChain) -> Option<&Wanted> {
    match &chain.terminal {
        Terminal::Http(hcm) => match &hcm.routes {
            RouteSource::Rds(wanted) => Some(wanted),
            RouteSource::Inline(_) => None,
        },
        Terminal::Tcp(_) | Terminal::Close => None,
    }
}

fn secret_references(tls: &CommonTls, found: &mut dyn FnMut(Kind, &Wanted)) {
    for source in [&tls.certificate, &tls.validation].into_iter().flatten() {
        if let SecretSource::Ads(wanted) = source {
            found(Kind::Secret, wanted);
        }
    }
}

fn unknown_in_table(table: &RouteTable, known: &dyn Fn(&str) -> bool) -> Option<Name> {
    if !table.validate_clusters {
        return None;
    }
    let routes = table.virtual_hosts.iter().flat_map(|host| &host.routes);
    routes
        .filter_map(|route| match &route.action {
            RouteAction::Forward(forward) => Some(&forward.target),
            RouteAction::Redirect(_) | RouteAction::Direct(_) => None,
        })
        .find_map(|target| match target {
            Target::Cluster(name) => (!known(name)).then(|| Arc::clone(name)),
            Target::Weighted(shares) => {
                shares.iter().find(|share| !known(&share.cluster)).map(|share| Arc::clone(&share.cluster))
            }
        })
}
