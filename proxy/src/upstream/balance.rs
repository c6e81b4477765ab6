//! Picks an endpoint: priorities, health and panic first, then the policy among those that remain.
//!
//! Pure: reads loads, changes nothing but its own turn; the caller counts the request. The share of each priority is
//! worked out when membership changes, as Envoy does: load of P = min(100, available % x overprovisioning), in turn; a
//! priority whose available share is below the panic threshold uses all of its endpoints, unless the priorities together
//! can take everything.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use fastrand::Rng;
use parking_lot::Mutex;

use super::endpoint::{Endpoint, Host};
use crate::config::cluster::{Health, LoadBalancing};

/// Percent of available endpoints below which a priority panics (Envoy's `healthy_panic_threshold` default).
const PANIC_BELOW_PERCENT: u64 = 50;

/// Endpoints arranged for picking. Immutable but for whose turn it is.
#[derive(Debug)]
pub(super) struct Balancer {
    /// Groups with their share in percent; shares add up to 100, groups without share are left out.
    groups: Vec<(u32, Group)>,
    policy: LoadBalancing,
}

impl Balancer {
    pub(super) fn new(hosts: &[Host], policy: LoadBalancing, overprovisioning_percent: u32) -> Self {
        let mut levels: BTreeMap<u32, Vec<&Host>> = BTreeMap::new();
        for host in hosts {
            levels.entry(host.priority).or_default().push(host);
        }
        let levels: Vec<Level<'_>> =
            levels.into_values().map(|hosts| Level::new(hosts, overprovisioning_percent)).collect();
        let groups = shares(&levels)
            .into_iter()
            .filter(|(share, hosts)| *share > 0 && !hosts.is_empty())
            .map(|(share, hosts)| (share, Group::new(&hosts, policy)))
            .collect();
        Self { groups, policy }
    }

    /// None when there is no endpoint at all.
    pub(super) fn pick(&self, rng: &mut Rng) -> Option<&Arc<Endpoint>> {
        let group = match self.groups.as_slice() {
            [] => return None,
            [(_, only)] => only,
            groups => {
                let total: u32 = groups.iter().map(|(share, _)| share).sum();
                let mut ticket = rng.u32(..total);
                let hit = groups.iter().find(|(share, _)| {
                    let here = ticket < *share;
                    ticket = ticket.saturating_sub(*share);
                    here
                });
                &hit?.1
            }
        };
        group.pick(self.policy, rng)
    }
}

/// One priority.
struct Level<'a> {
    all: Vec<&'a Host>,
    healthy: Vec<&'a Host>,
    degraded: Vec<&'a Host>,
    /// Percent of the load that the healthy, and the degraded, could take.
    healthy_percent: u64,
    degraded_percent: u64,
}

impl<'a> Level<'a> {
    fn new(all: Vec<&'a Host>, overprovisioning_percent: u32) -> Self {
        let of = |health: Health| all.iter().copied().filter(|h| h.health == health).collect::<Vec<_>>();
        let (healthy, degraded) = (of(Health::Healthy), of(Health::Degraded));
        let percent = |n: usize| {
            if all.is_empty() {
                return 0;
            }
            (n as u64 * u64::from(overprovisioning_percent) / all.len() as u64).min(100)
        };
        let (healthy_percent, degraded_percent) = (percent(healthy.len()), percent(degraded.len()));
        Self { healthy_percent, degraded_percent, all, healthy, degraded }
    }

    fn would_panic(&self) -> bool {
        let available = (self.healthy.len() + self.degraded.len()) as u64;
        available * 100 < PANIC_BELOW_PERCENT * self.all.len() as u64
    }
}

/// Shares of the load, each with the endpoints that take it.
fn shares<'a>(levels: &[Level<'a>]) -> Vec<(u32, Vec<&'a Host>)> {
    let available: u64 = levels.iter().map(|l| l.healthy_percent + l.degraded_percent).sum::<u64>().min(100);
    if available < 100 && levels.iter().all(Level::would_panic) {
        return panic_shares(levels);
    }
    let panics = |l: &Level<'a>| available < 100 && l.would_panic();
    let mut rest = 100_u64;
    let mut out = Vec::new();
    let mut give = |percent: u64, hosts: Vec<&'a Host>| {
        let share = (percent * 100).div_ceil(available.max(1)).min(rest);
        rest -= share;
        out.push((u32::try_from(share).unwrap_or(100), hosts));
    };
    for level in levels {
        let hosts = if panics(level) { &level.all } else { &level.healthy };
        give(level.healthy_percent, hosts.clone());
    }
    for level in levels {
        let hosts = if panics(level) { &level.all } else { &level.degraded };
        give(level.degraded_percent, hosts.clone());
    }
    out
}

/// All priorities panic: each takes load by its number of endpoints.
fn panic_shares<'a>(levels: &[Level<'a>]) -> Vec<(u32, Vec<&'a Host>)> {
    levels.iter().map(|l| (u32::try_from(l.all.len()).unwrap_or(u32::MAX), l.all.clone())).collect()
}

/// Endpoints that share a load by weight.
#[derive(Debug)]
struct Group {
    hosts: Vec<Arc<Endpoint>>,
    weights: Weights,
    turn: AtomicUsize,
}

#[derive(Debug)]
enum Weights {
    Equal,
    /// Running sums, for random picks.
    Sums(Vec<u64>, Vec<u32>),
    /// Earliest deadline first, for picks in turn.
    Turns(Mutex<Turns>),
}

impl Group {
    fn new(hosts: &[&Host], policy: LoadBalancing) -> Self {
        let endpoints: Vec<_> = hosts.iter().map(|h| h.endpoint.clone()).collect();
        let weights: Vec<u32> = hosts.iter().map(|h| h.weight.max(1)).collect();
        let equal = weights.windows(2).all(|w| w[0] == w[1]);
        let weights = match policy {
            _ if equal => Weights::Equal,
            LoadBalancing::RoundRobin => Weights::Turns(Mutex::new(Turns::new(&weights))),
            _ => {
                let sums = weights.iter().scan(0_u64, |sum, w| {
                    *sum += u64::from(*w);
                    Some(*sum)
                });
                Weights::Sums(sums.collect(), weights)
            }
        };
        // Each proxy starts at another endpoint, so that many proxies don't all begin with the first.
        let turn = AtomicUsize::new(fastrand::usize(..endpoints.len().max(1)));
        Self { hosts: endpoints, weights, turn }
    }

    fn pick(&self, policy: LoadBalancing, rng: &mut Rng) -> Option<&Arc<Endpoint>> {
        let n = self.hosts.len();
        if n <= 1 {
            return self.hosts.first();
        }
        let at = match policy {
            LoadBalancing::RoundRobin => match &self.weights {
                Weights::Turns(turns) => turns.lock().next(),
                _ => self.turn.fetch_add(1, Relaxed) % n,
            },
            LoadBalancing::LeastRequest { choices } => self.least_of(choices, rng),
            LoadBalancing::Random | LoadBalancing::Provided => self.at_random(rng),
        };
        self.hosts.get(at)
    }

    fn at_random(&self, rng: &mut Rng) -> usize {
        match &self.weights {
            Weights::Sums(sums, _) => {
                let ticket = rng.u64(..sums.last().copied().unwrap_or(1));
                sums.partition_point(|sum| *sum <= ticket)
            }
            _ => rng.usize(..self.hosts.len()),
        }
    }

    /// Draws by weight and compares load per weight: with no load this is a draw by weight, under load it evens out.
    fn least_of(&self, choices: u32, rng: &mut Rng) -> usize {
        let load = |at: usize| u64::from(self.hosts[at].active());
        let weight = |at: usize| match &self.weights {
            Weights::Sums(_, weights) => u64::from(weights[at]),
            _ => 1,
        };
        let mut best = self.at_random(rng);
        for _ in 1..choices.max(1) {
            let other = self.at_random(rng);
            if load(other) * weight(best) < load(best) * weight(other) {
                best = other;
            }
        }
        best
    }
}

/// Earliest deadline first: an endpoint of weight w comes every 1/w.
#[derive(Debug)]
struct Turns {
    queue: BinaryHeap<Reverse<Turn>>,
    order: u64,
}

#[derive(Debug)]
struct Turn {
    deadline: f64,
    /// Breaks ties: first come, first served.
    order: u64,
    at: usize,
    step: f64,
}

impl Turns {
    fn new(weights: &[u32]) -> Self {
        let turn = |(at, weight): (usize, &u32)| {
            let step = 1.0 / f64::from(*weight);
            Reverse(Turn { deadline: step, order: at as u64, at, step })
        };
        Self { queue: weights.iter().enumerate().map(turn).collect(), order: weights.len() as u64 }
    }

    fn next(&mut self) -> usize {
        let Some(mut first) = self.queue.peek_mut() else { return 0 };
        let at = first.0.at;
        first.0.deadline += first.0.step;
        first.0.order = self.order;
        self.order += 1;
        at
    }
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        self.deadline.total_cmp(&other.deadline).then(self.order.cmp(&other.order))
    }
}
impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Turn {}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn host(port: u16, weight: u32, priority: u32, health: Health) -> Host {
        let endpoint = Arc::new(Endpoint::new(([127, 0, 0, 1], port).into(), 1));
        Host { endpoint, weight, priority, health }
    }

    /// Picks `n` times; counts by port.
    fn count(hosts: &[Host], policy: LoadBalancing, n: u32) -> HashMap<u16, u32> {
        let balancer = Balancer::new(hosts, policy, 140);
        let mut rng = Rng::with_seed(7);
        let mut seen = HashMap::new();
        for _ in 0..n {
            *seen.entry(balancer.pick(&mut rng).unwrap().address().port()).or_default() += 1;
        }
        seen
    }

    fn level(priority: u32, healthy: u16, unhealthy: u16) -> Vec<Host> {
        let base = u16::try_from(priority).unwrap() * 1000 + 1;
        (0..healthy + unhealthy)
            .map(|i| host(base + i, 1, priority, if i < healthy { Health::Healthy } else { Health::Unhealthy }))
            .collect()
    }

    #[test]
    fn round_robin_takes_turns_by_weight_and_spreads_them() {
        let hosts = [host(1, 5, 0, Health::Healthy), host(2, 1, 0, Health::Healthy), host(3, 1, 0, Health::Healthy)];
        let seen = count(&hosts, LoadBalancing::RoundRobin, 70);
        assert_eq!((seen[&1], seen[&2], seen[&3]), (50, 10, 10));
        let equal = [host(1, 3, 0, Health::Healthy), host(2, 3, 0, Health::Healthy)];
        let balancer = Balancer::new(&equal, LoadBalancing::RoundRobin, 140);
        let mut rng = Rng::with_seed(1);
        let ports: Vec<_> = (0..4).map(|_| balancer.pick(&mut rng).unwrap().address().port()).collect();
        assert_eq!((ports[0], ports[1]), (ports[2], ports[3]));
        assert_ne!(ports[0], ports[1]);
    }

    #[test]
    fn random_follows_weights() {
        let hosts = [host(1, 9, 0, Health::Healthy), host(2, 1, 0, Health::Healthy)];
        let seen = count(&hosts, LoadBalancing::Random, 10_000);
        assert!((8_700..9_300).contains(&seen[&1]), "{seen:?}");
    }

    #[test]
    fn least_request_avoids_the_busy_and_respects_weights_when_idle() {
        let hosts = [host(1, 1, 0, Health::Healthy), host(2, 1, 0, Health::Healthy)];
        let _busy: Vec<_> = (0..5).map(|_| hosts[0].endpoint.enter()).collect();
        let seen = count(&hosts, LoadBalancing::LeastRequest { choices: 2 }, 10_000);
        assert!((2_200..2_800).contains(&seen[&1]), "only when both draws are the busy one: {seen:?}");
        let hosts = [host(1, 9, 0, Health::Healthy), host(2, 1, 0, Health::Healthy)];
        let seen = count(&hosts, LoadBalancing::LeastRequest { choices: 2 }, 10_000);
        assert!((8_700..9_300).contains(&seen[&1]), "{seen:?}");
    }

    #[test]
    fn priorities_share_as_envoys_table_says() {
        // Envoy's documentation, priority levels: healthy of P0 and P1 in percent -> shares.
        for (p0, p1, wanted) in
            [(100, 100, (100, 0)), (72, 72, (100, 0)), (71, 71, (99, 1)), (50, 50, (70, 30)), (0, 100, (0, 100))]
        {
            let mut hosts = level(0, p0, 100 - p0);
            hosts.extend(level(1, p1, 100 - p1));
            let balancer = Balancer::new(&hosts, LoadBalancing::RoundRobin, 140);
            let share = |from: u16, to: u16| -> u32 {
                let of = |g: &Group| (from..to).contains(&g.hosts[0].address().port());
                balancer.groups.iter().filter(|(_, g)| of(g)).map(|(s, _)| *s).sum()
            };
            assert_eq!((share(1, 1000), share(1000, 2000)), wanted, "P0 {p0} %, P1 {p1} %");
        }
    }

    #[test]
    fn unhealthy_endpoints_get_nothing_until_the_priority_panics() {
        let seen = count(&level(0, 8, 2), LoadBalancing::RoundRobin, 100);
        assert_eq!(seen.len(), 8, "80 % x 1.4 is enough");
        let seen = count(&level(0, 6, 4), LoadBalancing::RoundRobin, 100);
        assert_eq!(seen.len(), 6, "60 % is above the panic threshold");
        let seen = count(&level(0, 4, 6), LoadBalancing::RoundRobin, 100);
        assert_eq!(seen.len(), 10, "40 % is panic: all are used");
        let seen = count(&level(0, 0, 3), LoadBalancing::RoundRobin, 30);
        assert_eq!(seen.len(), 3, "all unhealthy is panic too");
    }

    #[test]
    fn degraded_endpoints_take_what_the_healthy_cannot() {
        let mut hosts = level(0, 5, 0);
        hosts.extend((100..105).map(|p| host(p, 1, 0, Health::Degraded)));
        let seen = count(&hosts, LoadBalancing::Random, 10_000);
        let degraded: u32 = seen.iter().filter(|(p, _)| **p >= 100).map(|(_, n)| n).sum();
        assert!((2_700..3_300).contains(&degraded), "half healthy x 1.4 = 70 %: {degraded}");
    }

    #[test]
    fn a_higher_priority_below_the_threshold_does_not_panic_while_others_can_take_its_load() {
        let mut hosts = level(0, 1, 9);
        hosts.extend(level(1, 10, 0));
        let seen = count(&hosts, LoadBalancing::RoundRobin, 1_000);
        assert!(seen.keys().all(|p| *p == 1 || *p > 1000), "{seen:?}");
    }

    #[test]
    fn nothing_is_picked_from_nothing() {
        assert!(Balancer::new(&[], LoadBalancing::RoundRobin, 140).pick(&mut Rng::with_seed(1)).is_none());
    }
}
