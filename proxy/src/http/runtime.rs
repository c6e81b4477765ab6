//! What the HTTP connection manager and the route tables keep between requests: compiled indexes, token buckets,
//! statistics handles.
//!
//! Made on the control thread when a snapshot is; requests only read. A limiter whose rule did not change is carried over
//! from the table or manager before, with its tokens.

use std::{collections::HashMap, sync::Arc, time::Instant};

use http::HeaderValue;

use super::stats::HttpStats;
use crate::{
    config::{
        Name,
        access_log::LogFilter,
        hosts::HostIndex,
        http::{HttpConnectionManager, HttpFilterKind, RouteSource},
        listener::Direction,
        ratelimit::{Bucket, HttpLocalRateLimit},
        rbac::Rbac,
        route::{PerRouteFilter, PerRouteFilters, RetryPolicy, Route, RouteTable, Target, VirtualHost},
        route_match::share,
    },
    telemetry::{Registry, Scope, access_log::Loggers, mesh::MeshStats},
};

/// An HTTP connection manager with its runtime state.
#[derive(Debug)]
pub struct HttpRuntime {
    /// What was asked for.
    pub config: Arc<HttpConnectionManager>,
    /// Direction of the listener: outbound replies tell the reason in `x-oxmesh-why`, and feed OSM's request metrics.
    pub direction: Direction,
    pub(super) stats: HttpStats,
    pub(super) loggers: Arc<Loggers>,
    pub(super) mesh: Option<Arc<MeshStats>>,
    pub(super) inline: Option<Arc<Routes>>,
    /// One for each filter, for those that limit.
    pub(super) limiters: Vec<Option<Arc<Limiter>>>,
    /// A local reply's header edits depend on request headers, so these are kept.
    pub(super) keeps_head: bool,
    pub(super) server: Option<HeaderValue>,
}

impl HttpRuntime {
    /// Makes the runtime state of a manager. `previous` is that of the same chain before, whose limiters are carried over.
    #[must_use]
    pub fn new(
        config: Arc<HttpConnectionManager>,
        direction: Direction,
        loggers: Arc<Loggers>,
        mesh: Option<Arc<MeshStats>>,
        registry: &Registry,
        previous: Option<&Self>,
    ) -> Self {
        let carried = |at: usize| previous?.limiters.get(at)?.clone();
        let limiters = config.filters.iter().enumerate().map(|(at, filter)| match &filter.kind {
            HttpFilterKind::LocalRateLimit(limit) => Some(Limiter::carry(limit, carried(at), registry)),
            HttpFilterKind::Rbac(_) => None,
        });
        let inline = match &config.routes {
            RouteSource::Inline(table) => {
                let before = previous.and_then(|p| p.inline.as_deref());
                Some(Arc::new(Routes::new(Arc::clone(table), before, registry)))
            }
            RouteSource::Rds(_) => None,
        };
        let server = match &config.server_header {
            crate::config::http::ServerHeader::Overwrite(name)
            | crate::config::http::ServerHeader::AppendIfAbsent(name) => HeaderValue::from_str(name).ok(),
            crate::config::http::ServerHeader::PassThrough => None,
        };
        Self {
            direction,
            stats: HttpStats::new(&config.stat_prefix, registry),
            loggers,
            mesh: mesh.filter(|_| direction == Direction::Outbound),
            inline,
            limiters: limiters.collect(),
            keeps_head: config.local_replies.iter().any(|mapper| needs_head(&mapper.filter)),
            server,
            config,
        }
    }
}

fn needs_head(filter: &LogFilter) -> bool {
    match filter {
        LogFilter::Header(_) => true,
        LogFilter::And(all) | LogFilter::Or(all) => all.iter().any(needs_head),
        LogFilter::NotHealthCheck | LogFilter::StatusCode(_) | LogFilter::Duration(_) | LogFilter::ResponseFlag(_) => {
            false
        }
    }
}

/// A route table with what its routes keep between requests.
#[derive(Debug)]
pub struct Routes {
    /// What was asked for.
    pub table: Arc<RouteTable>,
    index: HostIndex,
    hosts: Vec<Vec<RouteState>>,
    /// By place in the table, to be carried over.
    limiters: HashMap<String, Arc<Limiter>>,
}

/// Per route: filter settings, most specific first already applied.
#[derive(Debug)]
struct RouteState {
    settings: Settings,
    /// One for each share of a split that has settings of its own.
    shares: Vec<Option<Settings>>,
    /// `x-envoy-expected-rq-timeout-ms`.
    expected_timeout: Option<HeaderValue>,
}

type Settings = Arc<[(Name, Setting)]>;

/// What a route says of one filter.
#[derive(Clone, Debug)]
pub(super) enum Setting {
    Disabled,
    Rbac(Option<Arc<Rbac>>),
    Limit(Arc<Limiter>),
}

impl Routes {
    /// Compiles a table. `previous` is the table of the same name before, whose limiters are carried over where their
    /// rule did not change.
    #[must_use]
    pub fn new(table: Arc<RouteTable>, previous: Option<&Self>, registry: &Registry) -> Self {
        let index = HostIndex::new(table.virtual_hosts.iter().map(Arc::as_ref), table.ignore_port);
        let mut build = Build { registry, previous, limiters: HashMap::new() };
        let base = build.merge(&Arc::from([]), &table.filters, String::new);
        let hosts = table.virtual_hosts.iter().map(|host| build.host(host, &base)).collect();
        let limiters = build.limiters;
        Self { table, index, hosts, limiters }
    }

    pub(super) fn host(&self, authority: &str) -> Option<usize> {
        self.index.find(authority)
    }
}

struct Build<'a> {
    registry: &'a Registry,
    previous: Option<&'a Routes>,
    limiters: HashMap<String, Arc<Limiter>>,
}

impl Build<'_> {
    fn host(&mut self, host: &VirtualHost, base: &Settings) -> Vec<RouteState> {
        let of_host = self.merge(base, &host.filters, || host.name.to_string());
        host.routes.iter().enumerate().map(|(at, route)| self.route(host, at, route, &of_host)).collect()
    }

    fn route(&mut self, host: &VirtualHost, at: usize, route: &Route, of_host: &Settings) -> RouteState {
        // Routes have no unique name; the place among routes of equal name is stable enough.
        let place = || format!("{}/{at}/{}", host.name, route.name);
        let settings = self.merge(of_host, &route.filters, place);
        let forward = route.forward();
        let shares = match forward.map(|f| &f.target) {
            Some(Target::Weighted(targets)) => targets
                .iter()
                .map(|target| {
                    let own = !target.filters.by_name.is_empty();
                    own.then(|| self.merge(&settings, &target.filters, || format!("{}/{}", place(), target.cluster)))
                })
                .collect(),
            _ => Vec::new(),
        };
        let expected_timeout = forward.and_then(|forward| {
            let retry = forward.retry.as_ref().or(host.retry.as_ref());
            let timeout = retry.and_then(|r| r.per_try_timeout).or(forward.timeout)?;
            HeaderValue::from_str(itoa::Buffer::new().format(timeout.as_millis())).ok()
        });
        RouteState { settings, shares, expected_timeout }
    }

    /// `base` with `filters` laid over it.
    fn merge(&mut self, base: &Settings, filters: &PerRouteFilters, place: impl Fn() -> String) -> Settings {
        if filters.by_name.is_empty() {
            return Arc::clone(base);
        }
        let mut merged: Vec<_> = base.iter().filter(|(name, _)| !filters.by_name.contains_key(name)).cloned().collect();
        for (name, filter) in &filters.by_name {
            let setting = match filter {
                PerRouteFilter::Disabled => Setting::Disabled,
                PerRouteFilter::Rbac(rules) => Setting::Rbac(rules.clone()),
                PerRouteFilter::LocalRateLimit(limit) => {
                    let key = format!("{}#{name}", place());
                    let before = self.previous.and_then(|p| p.limiters.get(&key)).cloned();
                    let limiter = Limiter::carry(limit, before, self.registry);
                    self.limiters.insert(key, Arc::clone(&limiter));
                    Setting::Limit(limiter)
                }
            };
            merged.push((Name::clone(name), setting));
        }
        merged.into()
    }
}

/// The route that a request matched, kept for as long as the request.
#[derive(Clone, Debug)]
pub(super) struct Matched {
    routes: Arc<Routes>,
    host: usize,
    route: usize,
    share: Option<usize>,
}

impl Matched {
    /// `host`, `route` and `share` must be positions in `routes`.
    pub(super) fn new(routes: Arc<Routes>, host: usize, route: usize, share: Option<usize>) -> Self {
        Self { routes, host, route, share }
    }

    pub(super) fn table(&self) -> &RouteTable {
        &self.routes.table
    }

    pub(super) fn host(&self) -> &VirtualHost {
        &self.routes.table.virtual_hosts[self.host]
    }

    pub(super) fn route(&self) -> &Route {
        &self.host().routes[self.route]
    }

    pub(super) fn share(&self) -> Option<&crate::config::route::WeightedTarget> {
        match &self.route().forward()?.target {
            Target::Weighted(targets) => targets.get(self.share?),
            Target::Cluster(_) => None,
        }
    }

    /// Name of the cluster that the route, or its share, forwards to.
    pub(super) fn cluster(&self) -> Option<&Arc<str>> {
        match &self.route().forward()?.target {
            Target::Cluster(name) => Some(name),
            Target::Weighted(_) => Some(&self.share()?.cluster),
        }
    }

    fn state(&self) -> &RouteState {
        &self.routes.hosts[self.host][self.route]
    }

    /// What the most specific level says of a filter.
    pub(super) fn setting(&self, filter: &str) -> Option<&Setting> {
        let state = self.state();
        let own = self.share.and_then(|share| state.shares.get(share)?.as_ref());
        let settings = own.unwrap_or(&state.settings);
        settings.iter().find(|(name, _)| &**name == filter).map(|(_, setting)| setting)
    }

    pub(super) fn retry(&self) -> Option<&Arc<RetryPolicy>> {
        self.route().forward().and_then(|forward| forward.retry.as_ref()).or(self.host().retry.as_ref())
    }

    pub(super) fn expected_timeout(&self) -> Option<&HeaderValue> {
        self.state().expected_timeout.as_ref()
    }
}

/// A local rate limit with its tokens.
#[derive(Debug)]
pub(super) struct Limiter {
    pub(super) config: Arc<HttpLocalRateLimit>,
    bucket: Option<Bucket>,
    stats: LimiterStats,
}

#[derive(Debug)]
struct LimiterStats {
    enabled: metrics::Counter,
    ok: metrics::Counter,
    rate_limited: metrics::Counter,
    enforced: metrics::Counter,
}

impl Limiter {
    /// `before` when its rule is the same, else a new, full one.
    fn carry(config: &Arc<HttpLocalRateLimit>, before: Option<Arc<Self>>, registry: &Registry) -> Arc<Self> {
        if let Some(before) = before.filter(|before| before.config == *config) {
            return before;
        }
        let scope = Scope::http_local_rate_limit(&config.stat_prefix);
        let counter = |name| registry.counter(&scope, name);
        Arc::new(Self {
            config: Arc::clone(config),
            bucket: config.bucket.map(|spec| Bucket::new(spec, Instant::now())),
            stats: LimiterStats {
                enabled: counter("enabled"),
                ok: counter("ok"),
                rate_limited: counter("rate_limited"),
                enforced: counter("enforced"),
            },
        })
    }

    /// True when the request must be refused. The two halves of `random` decide on the shares checked and enforced.
    pub(super) fn refuses(&self, now: Instant, random: u64) -> bool {
        let Some(bucket) = &self.bucket else { return false };
        if !share(random as u32, self.config.enabled_ppm) {
            return false;
        }
        self.stats.enabled.increment(1);
        if bucket.take(now) {
            self.stats.ok.increment(1);
            return false;
        }
        self.stats.rate_limited.increment(1);
        let enforced = share((random >> 32) as u32, self.config.enforced_ppm);
        if enforced {
            self.stats.enforced.increment(1);
        }
        enforced
    }
}
