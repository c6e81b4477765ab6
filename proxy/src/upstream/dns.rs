//! Names to endpoints: STRICT_DNS takes all addresses, LOGICAL_DNS the first. Runs on the control thread.
//!
//! A failed look-up keeps the last good addresses. A name that exists no more, or has no addresses, empties its part of a
//! STRICT_DNS cluster and changes nothing in a LOGICAL_DNS one, as in Envoy.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use futures_util::future::join_all;
use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, ResolveHosts},
};

use super::cluster::Cluster;
use crate::config::cluster::{Discovery, DnsEndpoint, DnsFamily, DnsPolicy, EndpointSpec, Health};

/// Shortest time between two look-ups of a name, whatever is configured.
const MIN_WAIT: Duration = Duration::from_millis(100);

/// A look-up's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// In the resolver's order; empty when the name exists without addresses of the family.
    pub addresses: Vec<IpAddr>,
    /// How long they hold.
    pub ttl: Duration,
}

/// A resolver. The system's in production, a table in tests.
pub trait Resolve: Send + Sync + std::fmt::Debug {
    /// Looks `host` up.
    ///
    /// # Errors
    /// In words; the last good addresses then stay in force.
    fn resolve<'a>(
        &'a self,
        host: &'a str,
        family: DnsFamily,
    ) -> Pin<Box<dyn Future<Output = Result<Resolved, String>> + Send + 'a>>;
}

/// The name servers of `/etc/resolv.conf`, after `/etc/hosts`. Read at the first look-up.
#[derive(Default)]
pub struct SystemResolver {
    by_strategy: [OnceLock<TokioResolver>; 5],
}

impl SystemResolver {
    fn resolver(&self, family: DnsFamily) -> Result<&TokioResolver, String> {
        let (at, strategy) = match family {
            DnsFamily::Auto => (0, LookupIpStrategy::Ipv6thenIpv4),
            DnsFamily::V4Only => (1, LookupIpStrategy::Ipv4Only),
            DnsFamily::V6Only => (2, LookupIpStrategy::Ipv6Only),
            DnsFamily::V4Preferred => (3, LookupIpStrategy::Ipv4thenIpv6),
            DnsFamily::All => (4, LookupIpStrategy::Ipv4AndIpv6),
        };
        if let Some(made) = self.by_strategy[at].get() {
            return Ok(made);
        }
        let mut builder = TokioResolver::builder_tokio().map_err(|e| format!("resolver configuration: {e}"))?;
        let options = builder.options_mut();
        options.ip_strategy = strategy;
        options.use_hosts_file = ResolveHosts::Always;
        // The refresh rate is the caller's; a cache in between would stretch it.
        options.cache_size = 0;
        let made = builder.build().map_err(|e| format!("resolver: {e}"))?;
        Ok(self.by_strategy[at].get_or_init(|| made))
    }
}

impl std::fmt::Debug for SystemResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SystemResolver").finish_non_exhaustive()
    }
}

impl Resolve for SystemResolver {
    fn resolve<'a>(
        &'a self,
        host: &'a str,
        family: DnsFamily,
    ) -> Pin<Box<dyn Future<Output = Result<Resolved, String>> + Send + 'a>> {
        Box::pin(async move { ask(self.resolver(family)?, host).await })
    }
}

/// "No such name" and "no addresses" are answers, and empty ones: c-ares, which Envoy asks by default, says ARES_ENOTFOUND
/// and ARES_ENODATA, and Envoy's `DnsResolverImpl` (`isResponseWithNoRecords` in `cares/dns_impl.cc`) makes both a success
/// without addresses, of which `StrictDnsClusterImpl` takes that the hosts are gone. Server failures, refusals and silence
/// are failures.
pub(super) async fn ask(resolver: &TokioResolver, host: &str) -> Result<Resolved, String> {
    match resolver.lookup_ip(host).await {
        Ok(found) => {
            let ttl = found.valid_until().saturating_duration_since(std::time::Instant::now());
            Ok(Resolved { addresses: found.iter().collect(), ttl })
        }
        Err(e) if e.is_no_records_found() => Ok(Resolved { addresses: Vec::new(), ttl: Duration::ZERO }),
        Err(e) => Err(e.to_string()),
    }
}

/// Starts the look-ups of a DNS cluster.
pub(super) fn start(cluster: &Arc<Cluster>) {
    let (names, policy, first_only) = match &cluster.spec().discovery {
        Discovery::StrictDns(names, policy) => (names.clone(), *policy, false),
        Discovery::LogicalDns(name, policy) => (vec![name.clone()], *policy, true),
        Discovery::Eds(_) | Discovery::Static(_) | Discovery::OriginalDst => return,
    };
    tokio::spawn(follow(Arc::downgrade(cluster), names, policy, first_only));
}

/// One loop for all names of a cluster: they are published together.
async fn follow(cluster: Weak<Cluster>, names: Vec<DnsEndpoint>, policy: DnsPolicy, first_only: bool) {
    let mut last: Vec<Vec<IpAddr>> = vec![Vec::new(); names.len()];
    let mut failing = vec![false; names.len()];
    loop {
        let Some(now) = cluster.upgrade() else { return };
        let resolver = now.upstreams.resolver.clone();
        let stats = now.stats.clone();
        drop(now);
        let mut wait = policy.refresh;
        stats.update_attempt.increment(names.len() as u64);
        // At once, so that a name whose server is silent does not hold up the others.
        let found = join_all(names.iter().map(|name| look_up(&*resolver, name, policy.family))).await;
        for (at, found) in found.into_iter().enumerate() {
            let host = &names[at].host;
            match found {
                Ok(found) => {
                    failing[at] = false;
                    stats.update_success.increment(1);
                    if policy.respect_ttl && !found.ttl.is_zero() {
                        wait = wait.min(found.ttl.max(policy.min_ttl));
                    }
                    if found.addresses.is_empty() {
                        stats.update_empty.increment(1);
                    }
                    if !(first_only && found.addresses.is_empty()) {
                        last[at] = found.addresses;
                    }
                }
                Err(error) => {
                    stats.update_failure.increment(1);
                    wait = wait.min(policy.failure_refresh);
                    // Once per failure, not once per try.
                    if !std::mem::replace(&mut failing[at], true) {
                        tracing::warn!(host, %error, "name not resolved, last addresses stay in force");
                    }
                }
            }
        }
        let Some(now) = cluster.upgrade() else { return };
        now.set_endpoints(&endpoints(&names, &last, first_only), 140, 0);
        drop(now);
        let jitter = policy.jitter.mul_f64(fastrand::f64());
        tokio::time::sleep(wait.max(MIN_WAIT) + jitter).await;
    }
}

async fn look_up(resolver: &dyn Resolve, name: &DnsEndpoint, family: DnsFamily) -> Result<Resolved, String> {
    if let Ok(ip) = name.host.trim_matches(['[', ']']).parse() {
        return Ok(Resolved { addresses: vec![ip], ttl: Duration::MAX });
    }
    resolver.resolve(&name.host, family).await
}

fn endpoints(names: &[DnsEndpoint], addresses: &[Vec<IpAddr>], first_only: bool) -> Vec<EndpointSpec> {
    let limit = if first_only { 1 } else { usize::MAX };
    let of = |(name, ips): (&DnsEndpoint, &Vec<IpAddr>)| {
        let (port, weight, priority) = (name.port, name.weight, name.priority);
        let spec = move |ip: &IpAddr| EndpointSpec {
            address: SocketAddr::new(*ip, port),
            weight,
            priority,
            health: Health::Healthy,
        };
        ips.iter().take(limit).map(spec).collect::<Vec<_>>()
    };
    names.iter().zip(addresses).flat_map(of).collect()
}
