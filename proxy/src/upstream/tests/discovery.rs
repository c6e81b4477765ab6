use std::{collections::VecDeque, net::IpAddr, sync::Mutex};

use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};

use super::*;
use crate::{
    config::cluster::{Assignment, DnsEndpoint, DnsPolicy},
    upstream::{NoEndpoint, dns::ask},
};

/// Gives the listed results in turn; the last one for ever.
#[derive(Debug)]
struct Script(Mutex<VecDeque<Result<Resolved, String>>>);

impl Resolve for Script {
    fn resolve<'a>(
        &'a self,
        _: &'a str,
        _: DnsFamily,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Resolved, String>> + Send + 'a>> {
        let mut script = self.0.lock().unwrap();
        let next = if script.len() > 1 { script.pop_front() } else { script.front().cloned() };
        Box::pin(async move { next.unwrap_or_else(|| Err("nothing".to_owned())) })
    }
}

fn found(ips: &[&str], ttl: u64) -> Result<Resolved, String> {
    let addresses = ips.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect();
    Ok(Resolved { addresses, ttl: Duration::from_secs(ttl) })
}

fn name(host: &str) -> DnsEndpoint {
    DnsEndpoint { host: host.to_owned(), port: 80, weight: 1, priority: 0 }
}

fn policy(respect_ttl: bool) -> DnsPolicy {
    DnsPolicy {
        family: DnsFamily::V4Only,
        refresh: Duration::from_secs(10),
        respect_ttl,
        min_ttl: Duration::from_secs(1),
        failure_refresh: Duration::from_secs(2),
        jitter: Duration::ZERO,
    }
}

fn cluster(discovery: Discovery, script: Vec<Result<Resolved, String>>) -> Arc<Cluster> {
    let upstreams = Upstreams::new(Registry::default(), 1, Arc::new(Script(Mutex::new(script.into()))), None);
    let cluster = Cluster::new(Arc::new(spec(discovery)), &upstreams);
    cluster.start();
    cluster
}

fn addresses(cluster: &Cluster) -> Vec<String> {
    cluster.hosts().all().iter().map(|h| h.endpoint.address().to_string()).collect()
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn strict_dns_takes_all_addresses_and_keeps_the_last_good_ones() {
    let script = vec![
        found(&["10.0.0.1", "10.0.0.2"], 1),
        Err("server failure".to_owned()),
        found(&["10.0.0.2", "10.0.0.3"], 1),
        found(&[], 1),
    ];
    let cluster = cluster(Discovery::StrictDns(vec![name("a.test")], policy(false)), script);
    assert!(!cluster.is_ready());
    pass(1).await;
    assert!(cluster.is_ready());
    assert_eq!(addresses(&cluster), ["10.0.0.1:80", "10.0.0.2:80"]);
    let second = cluster.hosts().all()[1].endpoint.clone();
    pass(10).await;
    assert_eq!(addresses(&cluster), ["10.0.0.1:80", "10.0.0.2:80"], "the failure changed nothing");
    pass(2).await;
    assert_eq!(addresses(&cluster), ["10.0.0.2:80", "10.0.0.3:80"], "tried again after the failure rate");
    assert!(Arc::ptr_eq(&second, &cluster.hosts().all()[0].endpoint), "an address that stays keeps its connections");
    pass(10).await;
    assert!(addresses(&cluster).is_empty(), "a name without addresses has no endpoints");
}

#[tokio::test(start_paused = true)]
async fn logical_dns_takes_the_first_address_and_follows_the_ttl() {
    let script = vec![found(&["10.0.0.1", "10.0.0.2"], 3), found(&["10.0.0.2", "10.0.0.1"], 4), found(&[], 60)];
    let cluster = cluster(Discovery::LogicalDns(name("a.test"), policy(true)), script);
    pass(1).await;
    assert_eq!(addresses(&cluster), ["10.0.0.1:80"]);
    pass(3).await;
    assert_eq!(addresses(&cluster), ["10.0.0.2:80"]);
    pass(10).await;
    assert_eq!(addresses(&cluster), ["10.0.0.2:80"], "an empty answer changes nothing");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_never_resolves_still_ends_the_warming() {
    let cluster = cluster(Discovery::StrictDns(vec![name("a.test")], policy(false)), vec![Err("no".to_owned())]);
    pass(1).await;
    assert!(cluster.is_ready());
    assert_eq!(cluster.pick(&PickContext::default()).unwrap_err(), NoEndpoint::NoneHealthy);
}

#[tokio::test(start_paused = true)]
async fn addresses_need_no_resolver() {
    let names = vec![name("10.1.2.3"), name("[::1]")];
    let cluster = cluster(Discovery::StrictDns(names, policy(false)), vec![Err("no".to_owned())]);
    pass(1).await;
    assert_eq!(addresses(&cluster), ["10.1.2.3:80", "[::1]:80"]);
}

#[tokio::test]
async fn a_name_that_is_gone_is_an_answer_and_a_failing_server_is_not() {
    let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut name_server = NameServerConfig::udp([127, 0, 0, 1].into());
    name_server.connections[0].port = server.local_addr().unwrap().port();
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![name_server]);
    // Answers every question with the code that the name begins with: a header and the question, no records.
    tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((len, from)) = server.recv_from(&mut packet).await {
            packet[2] |= 0x80;
            packet[3] = packet[13] - b'0';
            packet[10..12].fill(0);
            let question = 12 + packet[12..len].iter().position(|b| *b == 0).unwrap() + 5;
            server.send_to(&packet[..question], from).await.unwrap();
        }
    });
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.options_mut().attempts = 0;
    let resolver = builder.build().unwrap();
    for (host, answer) in
        [("0-no-data.test.", true), ("3-no-such-name.test.", true), ("2-failure.test.", false), ("5-no.test.", false)]
    {
        let found = ask(&resolver, host).await;
        assert_eq!(found.as_ref().map(|found| found.addresses.len()).ok(), answer.then_some(0), "{host}: {found:?}");
    }
}

#[tokio::test]
async fn the_hosts_file_counts() {
    let resolver = crate::upstream::SystemResolver::default();
    let found = resolver.resolve("localhost", DnsFamily::V4Only).await.unwrap();
    assert!(found.addresses.iter().all(IpAddr::is_loopback) && !found.addresses.is_empty());
}

fn assignment(ports: &[u16], drop_ppm: u32) -> Assignment {
    let endpoints = ports.iter().map(|p| endpoint(([127, 0, 0, 1], *p).into())).collect();
    Assignment { name: "c".into(), endpoints, overprovisioning_percent: 140, drop_ppm }
}

fn eds() -> (Arc<Cluster>, Registry) {
    let registry = Registry::default();
    let upstreams = Upstreams::new(registry.clone(), 1, Arc::new(NoNames), None);
    (Cluster::new(Arc::new(spec(Discovery::Eds("c".into()))), &upstreams), registry)
}

#[test]
fn an_assignment_keeps_endpoints_whose_address_stays() {
    let (cluster, registry) = eds();
    assert!(!cluster.is_ready());
    cluster.set_assignment(&assignment(&[1, 2], 0));
    let two = cluster.hosts().all()[1].endpoint.clone();
    cluster.set_assignment(&assignment(&[2, 3, 2], 0));
    assert_eq!(cluster.hosts().all().len(), 2, "a doubled address counts once");
    assert!(Arc::ptr_eq(&two, &cluster.hosts().all()[0].endpoint));
    cluster.set_assignment(&assignment(&[2, 3], 0));
    assert_eq!(registry.value("cluster.c.membership_change"), Some(2));
    assert_eq!(registry.value("cluster.c.membership_total"), Some(2));
}

#[test]
fn previous_endpoints_are_avoided_while_there_are_others() {
    let (cluster, _registry) = eds();
    cluster.set_assignment(&assignment(&[1, 2], 0));
    let first = cluster.pick(&PickContext::default()).unwrap();
    let previous = [first.clone()];
    for _ in 0..10 {
        let next = cluster.pick(&PickContext { previous: &previous, more_picks: 3, ..PickContext::default() }).unwrap();
        assert!(!Arc::ptr_eq(&first, &next));
    }
    cluster.set_assignment(&assignment(&[first.address().port()], 0));
    let again = cluster.pick(&PickContext { previous: &previous, more_picks: 3, ..PickContext::default() }).unwrap();
    assert!(Arc::ptr_eq(&first, &again), "the last pick stands");
}

#[test]
fn the_asked_share_of_requests_is_dropped() {
    let (cluster, registry) = eds();
    cluster.set_assignment(&assignment(&[1], 1_000_000));
    assert_eq!(cluster.pick(&PickContext::default()).unwrap_err(), NoEndpoint::Dropped);
    assert_eq!(registry.value("cluster.c.upstream_rq_drop_overload"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn original_destinations_are_remembered_while_used_and_never_ourselves() {
    let upstreams = Upstreams::new(Registry::default(), 1, Arc::new(NoNames), None);
    upstreams.set_listeners(vec!["0.0.0.0:15001".parse().unwrap()]);
    let mut spec = spec(Discovery::OriginalDst);
    spec.lb = LoadBalancing::Provided;
    let cluster = Cluster::new(Arc::new(spec), &upstreams);
    cluster.start();
    let pick =
        |a: &str| cluster.pick(&PickContext { original_dst: Some(a.parse().unwrap()), ..PickContext::default() });
    let endpoint = pick("192.0.2.1:443").unwrap();
    assert!(Arc::ptr_eq(&endpoint, &pick("192.0.2.1:443").unwrap()));
    assert_eq!(pick("127.0.0.1:15001").unwrap_err(), NoEndpoint::Loop);
    assert_eq!(cluster.pick(&PickContext::default()).unwrap_err(), NoEndpoint::NoOriginalDestination);
    pass(60).await;
    assert!(Arc::ptr_eq(&endpoint, &pick("192.0.2.1:443").unwrap()), "in use");
    let weak = Arc::downgrade(&endpoint);
    drop(endpoint);
    pass(60).await;
    assert!(weak.upgrade().is_none(), "forgotten when idle");
}
