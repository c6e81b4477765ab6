//! From what is asked for to what is in force: the next snapshot, made of the last one and of the resources held.
//!
//! Runs on the control thread. What did not change is carried over as the same `Arc`. Make before break: what is not
//! ready yet (a cluster without endpoints or secrets, a listener without routes) is left out, and its predecessor of the
//! same name stays in force with all that it needs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    convert::{Resource, misfits},
    kind::Kind,
    resource::{chains, cluster_references, listener_references, rds_name},
    sds_file::Files,
    secrets::Places,
    state::Client,
};
use crate::{
    config::{
        Name, Wanted,
        cluster::{Assignment, ClusterSpec, Discovery},
        listener::{self, ChainIndex, FilterChain, Terminal},
        tls::{CommonTls, Secret, SecretSource},
    },
    drain::Drain,
    http::{HttpRuntime, Routes},
    net::filter::Filters,
    snapshot::{Chain, Listener, Shared, Snapshot},
    tcp::TcpRuntime,
    telemetry::{access_log::Loggers, listener::ListenerStats, mesh::MeshStats},
    tls::{ClientTls, ResolvedSecrets, ServerTls},
    upstream::{Cluster, Upstreams},
};

/// What the bootstrap holds in place.
#[derive(Debug, Default)]
pub struct Statics {
    /// `static_resources.clusters`.
    pub clusters: Vec<Arc<ClusterSpec>>,
    /// `static_resources.listeners`.
    pub listeners: Vec<Arc<listener::Listener>>,
    /// `static_resources.secrets`.
    pub secrets: HashMap<Name, Arc<Secret>>,
}

/// Makes snapshots, one after the other.
#[derive(Debug)]
pub struct Assembler {
    shared: Arc<Shared>,
    upstreams: Arc<Upstreams>,
    mesh: Option<Arc<MeshStats>>,
    statics: Statics,
    files: Files,
    /// Told when something that was awaited is there, so that assembling again is worth while.
    again: Arc<Notify>,
    active: HashMap<Name, Tended>,
    warming: BTreeMap<Name, Tended>,
    waiting_listeners: BTreeSet<Name>,
    faults: BTreeMap<String, String>,
}

/// A cluster and what was put into it.
#[derive(Debug)]
struct Tended {
    cluster: Arc<Cluster>,
    assignment: Option<Arc<Assignment>>,
    /// The last that were found, good or not.
    secrets: Option<ResolvedSecrets>,
    /// What is wrong with them.
    fault: Option<String>,
}

/// The next snapshot, and what ends with it.
#[derive(Debug)]
pub struct Assembled {
    /// To be published.
    pub snapshot: Snapshot,
    /// To begin once it is.
    pub retired: Vec<Drain>,
}

impl Assembler {
    /// Nothing assembled yet.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        upstreams: Arc<Upstreams>,
        mesh: Option<Arc<MeshStats>>,
        statics: Statics,
        files: Files,
        again: Arc<Notify>,
    ) -> Self {
        let (active, warming) = (HashMap::new(), BTreeMap::new());
        let (waiting_listeners, faults) = (BTreeSet::new(), BTreeMap::new());
        Self { shared, upstreams, mesh, statics, files, again, active, warming, waiting_listeners, faults }
    }

    /// What can't be put in force and why, by resource. Last good ones stay.
    #[must_use]
    pub fn faults(&self) -> &BTreeMap<String, String> {
        &self.faults
    }

    /// Clusters that wait for endpoints or secrets.
    #[must_use]
    pub fn warming(&self) -> Vec<Name> {
        self.warming.keys().cloned().collect()
    }

    /// Listeners that wait for routes or secrets.
    #[must_use]
    pub fn waiting_listeners(&self) -> &BTreeSet<Name> {
        &self.waiting_listeners
    }

    /// The secrets that clusters and chains use.
    #[must_use]
    pub fn secrets(&self, snapshot: &Snapshot) -> BTreeMap<Name, Arc<Secret>> {
        let upstream = self.active.values().filter_map(|tended| tended.secrets.as_ref());
        let chains = snapshot.listeners.values().flat_map(|l| l.chains.iter().chain(&l.default_chain));
        let downstream = chains.map(|chain| &chain.secrets);
        let both = upstream.chain(downstream).flat_map(|s| [&s.certificate, &s.validation]);
        both.flatten().cloned().collect()
    }

    /// All clusters of the bootstrap are in force.
    #[must_use]
    pub fn static_clusters_ready(&self) -> bool {
        self.statics.clusters.iter().all(|spec| self.active.contains_key(&spec.name))
    }

    /// Makes the next snapshot. Must be called on the control runtime: clusters start their tasks there.
    pub fn assemble(&mut self, client: &Client, now: Instant) -> Assembled {
        let last = self.shared.store.current();
        let before = std::mem::take(&mut self.faults);
        let specs = self.cluster_specs(client);
        let listeners = self.listener_configs(client);
        self.files.want(&secret_files(&specs, &listeners));
        for (path, fault) in self.files.faults() {
            self.faults.insert(format!("secret file {}", path.display()), fault);
        }
        let clusters = self.clusters(specs, client, now);
        let mut retired = Vec::new();
        let listeners = self.listeners(listeners, client, now, &last, &mut retired);
        let routes = self.routes(&listeners, client, &last);
        for (what, why) in self.faults.iter().filter(|(what, why)| before.get(*what) != Some(*why)) {
            tracing::error!(what, why, "not in force, the last good one stays if there is one");
        }
        self.upstreams.set_listeners(listeners.values().map(|listener| listener.config.address).collect());
        Assembled { snapshot: Snapshot { version: 0, listeners, routes, clusters }, retired }
    }

    fn cluster_specs(&self, client: &Client) -> Vec<Arc<ClusterSpec>> {
        let dynamic = client.kind(Kind::Cluster).entries().values().filter_map(|entry| match &entry.resource {
            Resource::Cluster(spec) => Some(spec),
            _ => None,
        });
        self.statics.clusters.iter().chain(dynamic).cloned().collect()
    }

    fn listener_configs(&self, client: &Client) -> Vec<Arc<listener::Listener>> {
        let dynamic = client.kind(Kind::Listener).entries().values().filter_map(|entry| match &entry.resource {
            Resource::Listener(config) => Some(config),
            _ => None,
        });
        self.statics.listeners.iter().chain(dynamic).cloned().collect()
    }

    fn clusters(&mut self, specs: Vec<Arc<ClusterSpec>>, client: &Client, now: Instant) -> HashMap<Name, Arc<Cluster>> {
        let (mut active, mut warming) = (HashMap::new(), BTreeMap::new());
        for spec in specs {
            let name = Arc::clone(&spec.name);
            let old = self.active.remove(&name);
            let fits = |tended: &Tended| *tended.cluster.spec() == spec;
            let (mut tended, old) = match old {
                Some(old) if fits(&old) => (old, None),
                old => match self.warming.remove(&name).filter(fits) {
                    Some(warm) => (warm, old),
                    None => (self.new_cluster(spec), old),
                },
            };
            let ready = self.tend(&mut tended, client, now);
            if ready {
                active.insert(name, tended);
                continue;
            }
            if let Some(old) = old {
                active.insert(Arc::clone(&name), old);
            }
            warming.insert(name, tended);
        }
        (self.active, self.warming) = (active, warming);
        self.active.iter().map(|(name, tended)| (Arc::clone(name), Arc::clone(&tended.cluster))).collect()
    }

    fn new_cluster(&self, spec: Arc<ClusterSpec>) -> Tended {
        let cluster = Cluster::new(spec, &self.upstreams);
        cluster.start();
        let (mut known, again) = (cluster.endpoints_known(), Arc::clone(&self.again));
        if !*known.borrow_and_update() {
            tokio::spawn(async move {
                // An error says that the cluster is gone.
                if known.wait_for(|known| *known).await.is_ok() {
                    again.notify_one();
                }
            });
        }
        Tended { cluster, assignment: None, secrets: None, fault: None }
    }

    /// Puts news into a cluster. True if it can be used, or was waited for long enough.
    fn tend(&mut self, tended: &mut Tended, client: &Client, now: Instant) -> bool {
        let spec = Arc::clone(tended.cluster.spec());
        if let Discovery::Eds(Wanted { name, .. }) = &spec.discovery {
            match client.kind(Kind::Endpoints).entries().get(name).map(|entry| &entry.resource) {
                Some(Resource::Assignment(next)) if tended.assignment.as_ref() != Some(next) => {
                    tended.cluster.set_assignment(next);
                    tended.assignment = Some(Arc::clone(next));
                }
                Some(_) => {}
                None if client.settled(Kind::Endpoints, name, now) => tended.cluster.give_up_waiting(),
                None => {}
            }
        }
        if let Some(tls) = &spec.tls {
            let places = Places { client, statics: &self.statics.secrets, files: &self.files };
            if let Some(found) = places.resolve(&tls.common)
                && tended.secrets.as_ref() != Some(&found)
            {
                tended.fault = match ClientTls::build(tls, &found) {
                    Ok(tls) => {
                        tended.cluster.set_tls(Arc::new(tls));
                        None
                    }
                    Err(error) => Some(error.to_string()),
                };
                tended.secrets = Some(found);
            }
            if let Some(fault) = &tended.fault {
                self.fault("cluster", &spec.name, fault);
            }
        }
        let mut awaited = true;
        cluster_references(&spec, &mut |kind, wanted| awaited &= client.settled(kind, &wanted.name, now));
        tended.cluster.is_ready() || (awaited && *tended.cluster.endpoints_known().borrow())
    }

    fn listeners(
        &mut self,
        configs: Vec<Arc<listener::Listener>>,
        client: &Client,
        now: Instant,
        last: &Snapshot,
        retired: &mut Vec<Drain>,
    ) -> HashMap<Name, Arc<Listener>> {
        self.waiting_listeners.clear();
        let mut next = HashMap::new();
        for config in configs {
            let name = Arc::clone(&config.name);
            let old = last.listeners.get(&name);
            let made = if awaits(&config, client, now) {
                self.waiting_listeners.insert(Arc::clone(&name));
                None
            } else {
                self.listener(&config, old, client).map_err(|error| self.fault("listener", &name, &error)).ok()
            };
            if let Some(listener) = made.or_else(|| old.cloned()) {
                next.insert(name, listener);
            }
        }
        for (name, old) in &last.listeners {
            retire(old, next.get(name), retired);
        }
        next
    }

    fn listener(
        &mut self,
        config: &Arc<listener::Listener>,
        old: Option<&Arc<Listener>>,
        client: &Client,
    ) -> Result<Arc<Listener>, String> {
        let same = old.filter(|old| differ_in_chains_only(&old.config, config));
        let drain = same.map_or_else(|| self.shared.drain.child(), |old| old.drain.clone());
        let mut build = |chain: &Arc<FilterChain>| self.chain(chain, config, &drain, old, same.is_some(), client);
        let chains = config.chains.iter().map(&mut build).collect::<Result<Vec<_>, _>>()?;
        let default_chain = config.default_chain.as_ref().map(&mut build).transpose()?;
        if let Some(old) = same
            && old.chains.len() == chains.len()
            && old.chains.iter().zip(&chains).all(|(a, b)| Arc::ptr_eq(a, b))
            && old.default_chain.as_ref().map(Arc::as_ptr) == default_chain.as_ref().map(Arc::as_ptr)
        {
            return Ok(Arc::clone(old));
        }
        let loggers = match same {
            Some(old) => Arc::clone(&old.loggers),
            None => Arc::new(Loggers::build(&config.access_log, &self.shared.sinks)?),
        };
        let stats = match same {
            Some(old) => Arc::clone(&old.stats),
            None => {
                let prefix =
                    config.stat_prefix.as_ref().map_or_else(|| config.address.to_string(), ToString::to_string);
                ListenerStats::new(&self.shared.metrics, &prefix)
            }
        };
        let index = ChainIndex::new(&config.chains);
        Ok(Arc::new(Listener { config: Arc::clone(config), index, stats, loggers, chains, default_chain, drain }))
    }

    fn chain(
        &mut self,
        config: &Arc<FilterChain>,
        listener: &listener::Listener,
        drain: &Drain,
        old: Option<&Arc<Listener>>,
        carry: bool,
        client: &Client,
    ) -> Result<Arc<Chain>, String> {
        let olds = || old.iter().flat_map(|old| old.chains.iter().chain(&old.default_chain));
        let equal = olds().find(|old| carry && old.config == *config);
        let alike = equal.or_else(|| olds().find(|old| is_alike(&old.config, config)));
        let (tls, secrets) = self.chain_tls(config, &listener.name, equal.or(alike), client);
        if let Some(old) = equal {
            if old.tls.as_ref().map(Arc::as_ptr) == tls.as_ref().map(Arc::as_ptr) {
                return Ok(Arc::clone(old));
            }
            return Ok(Arc::new(Chain {
                config: Arc::clone(&old.config),
                http: old.http.clone(),
                tcp: old.tcp.clone(),
                filters: Arc::clone(&old.filters),
                tls,
                secrets,
                drain: old.drain.clone(),
            }));
        }
        let http = match &config.terminal {
            Terminal::Http(hcm) => {
                let table = rds_name(config).and_then(|name| client.kind(Kind::Routes).entries().get(name));
                if let Some(Resource::Routes(table)) = table.map(|entry| &entry.resource)
                    && let Some(misfit) = misfits(&hcm.filters, table).into_iter().next()
                {
                    return Err(misfit);
                }
                let loggers = Arc::new(Loggers::build(&hcm.access_log, &self.shared.sinks)?);
                let previous = alike.and_then(|old| old.http.as_deref());
                let (mesh, metrics) = (self.mesh.clone(), &self.shared.metrics);
                let hcm = Arc::clone(hcm);
                Some(Arc::new(HttpRuntime::new(hcm, listener.direction, loggers, mesh, metrics, previous)))
            }
            Terminal::Tcp(_) | Terminal::Close => None,
        };
        let tcp = match &config.terminal {
            Terminal::Tcp(tcp) => Some(TcpRuntime::new(Arc::clone(tcp), &self.shared.metrics, &self.shared.sinks)?),
            Terminal::Http(_) | Terminal::Close => None,
        };
        let filters = Filters::new(config, &self.shared.metrics, alike.map(|old| &*old.filters));
        Ok(Arc::new(Chain { config: Arc::clone(config), http, tcp, filters, tls, secrets, drain: drain.child() }))
    }

    /// TLS of a chain. Bad secrets leave what `old` has in force, if that was made for the same context.
    fn chain_tls(
        &mut self,
        config: &FilterChain,
        listener: &Name,
        old: Option<&Arc<Chain>>,
        client: &Client,
    ) -> (Option<Arc<ServerTls>>, ResolvedSecrets) {
        let Some(tls) = &config.tls else { return (None, ResolvedSecrets::default()) };
        let old = old.filter(|old| old.config.tls.as_ref() == Some(tls));
        let kept = || old.map(|old| (old.tls.clone(), old.secrets.clone())).unwrap_or_default();
        let places = Places { client, statics: &self.statics.secrets, files: &self.files };
        let Some(found) = places.resolve(&tls.common) else { return kept() };
        if old.is_some_and(|old| old.tls.is_some() && old.secrets == found) {
            return kept();
        }
        match ServerTls::build(tls, &found) {
            Ok(built) => (Some(Arc::new(built)), found),
            Err(error) => {
                self.fault("listener", listener, &error);
                kept()
            }
        }
    }

    fn routes(
        &self,
        listeners: &HashMap<Name, Arc<Listener>>,
        client: &Client,
        last: &Snapshot,
    ) -> HashMap<Name, Arc<Routes>> {
        let mut routes: HashMap<Name, Arc<Routes>> = HashMap::new();
        for name in listeners.values().flat_map(|l| chains(&l.config)).filter_map(|chain| rds_name(chain)) {
            if routes.contains_key(name) {
                continue;
            }
            let old = last.routes.get(name);
            let made = match client.kind(Kind::Routes).entries().get(name).map(|entry| &entry.resource) {
                Some(Resource::Routes(table)) => match old {
                    Some(old) if old.table == *table => Some(Arc::clone(old)),
                    old => {
                        let old = old.map(|old| &**old);
                        Some(Arc::new(Routes::new(Arc::clone(table), old, &self.shared.metrics)))
                    }
                },
                // A listener that is kept until its successor is ready keeps its routes too.
                _ => old.cloned(),
            };
            if let Some(made) = made {
                routes.insert(Arc::clone(name), made);
            }
        }
        routes
    }

    fn fault(&mut self, kind: &str, name: &str, error: &(impl ToString + ?Sized)) {
        self.faults.insert(format!("{kind} {name}"), error.to_string());
    }
}

/// Must a listener wait? For its routes without end, for its secrets as long as is configured.
fn awaits(config: &listener::Listener, client: &Client, now: Instant) -> bool {
    let mut awaited = false;
    listener_references(config, &mut |kind, wanted| {
        awaited |= match kind {
            Kind::Routes => !client.kind(kind).entries().contains_key(&wanted.name),
            _ => !client.settled(kind, &wanted.name, now),
        };
    });
    awaited
}

/// Collects what ends: a listener that is gone or replaced, or single chains of one that goes on.
fn retire(old: &Arc<Listener>, new: Option<&Arc<Listener>>, retired: &mut Vec<Drain>) {
    let Some(new) = new.filter(|new| differ_in_chains_only(&old.config, &new.config)) else {
        retired.push(old.drain.clone());
        return;
    };
    for chain in old.chains.iter().chain(&old.default_chain) {
        let goes_on = |next: &Arc<Chain>| Arc::ptr_eq(&next.config, &chain.config);
        if !new.chains.iter().chain(&new.default_chain).any(goes_on) {
            retired.push(chain.drain.clone());
        }
    }
}

/// The successor of a changed chain, as far as its limiters are concerned.
fn is_alike(old: &FilterChain, new: &FilterChain) -> bool {
    if old.name.is_empty() || new.name.is_empty() { old.matcher == new.matcher } else { old.name == new.name }
}

fn differ_in_chains_only(old: &listener::Listener, new: &listener::Listener) -> bool {
    let listener::Listener {
        name,
        address,
        ipv4_compat,
        direction,
        listener_filters,
        listener_filters_timeout,
        continue_on_timeout,
        chains: _,
        default_chain: _,
        access_log,
        stat_prefix,
        backlog,
    } = old;
    *name == new.name
        && *address == new.address
        && *ipv4_compat == new.ipv4_compat
        && *direction == new.direction
        && *listener_filters == new.listener_filters
        && *listener_filters_timeout == new.listener_filters_timeout
        && *continue_on_timeout == new.continue_on_timeout
        && *access_log == new.access_log
        && *stat_prefix == new.stat_prefix
        && *backlog == new.backlog
}

fn secret_files(clusters: &[Arc<ClusterSpec>], listeners: &[Arc<listener::Listener>]) -> BTreeSet<PathBuf> {
    let upstream = clusters.iter().filter_map(|spec| spec.tls.as_ref()).map(|tls| &tls.common);
    let downstream =
        listeners.iter().flat_map(|l| chains(l)).filter_map(|chain| chain.tls.as_ref()).map(|tls| &tls.common);
    let sources = |tls: &CommonTls| [tls.certificate.clone(), tls.validation.clone()];
    upstream
        .chain(downstream)
        .flat_map(sources)
        .filter_map(|source| match source {
            Some(SecretSource::File { path, .. }) => Some(path),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
