//! Scripts of messages against [`Client`], and a seeded random run against a toy server.

use std::collections::BTreeMap;

use envoy_types::pb::{envoy::service::discovery::v3::Resource as Wrapper, google::protobuf::Duration as PbDuration};
use prost::Message as _;

use super::*;
use crate::config::{
    cluster::{ClusterSpec, Discovery},
    http::{HttpConnectionManager, RouteSource},
    listener::{ChainMatch, Direction, FilterChain, Listener, Terminal},
    route::RouteTable,
    tls::{CertificatePair, CommonTls, Secret, SecretSource, TlsParams, UpstreamTls},
};
use crate::xds::convert::WRAPPER;

/// Stands for any resource: real enough to have a name, to need others, to be bad.
#[derive(Clone, PartialEq, prost::Message)]
struct Toy {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    eds: String,
    #[prost(string, tag = "3")]
    sds: String,
    #[prost(string, tag = "4")]
    rds: String,
    #[prost(bool, tag = "5")]
    bad: bool,
    #[prost(uint32, tag = "6")]
    generation: u32,
    /// Seconds that its `eds` is waited for.
    #[prost(uint64, optional, tag = "7")]
    patience: Option<u64>,
}

fn toy(name: &str) -> Toy {
    Toy { name: name.into(), ..Toy::default() }
}

fn any(kind: Kind, toy: &Toy) -> Any {
    Any { type_url: kind.type_url().into(), value: toy.encode_to_vec() }
}

fn check(kind: Kind, any: &Any) -> Result<Resource, String> {
    let toy = Toy::decode(any.value.as_slice()).map_err(|error| error.to_string())?;
    if toy.bad {
        return Err("is bad".into());
    }
    let name: Name = toy.name.as_str().into();
    Ok(match kind {
        Kind::Cluster => Resource::Cluster(Arc::new(cluster(&toy))),
        Kind::Endpoints => Resource::Assignment(Arc::new(crate::config::cluster::Assignment {
            name,
            endpoints: Vec::new(),
            overprovisioning_percent: 140,
            drop_ppm: 0,
        })),
        Kind::Secret => {
            let pair = CertificatePair { chain_pem: Arc::default(), key_pem: Arc::default() };
            Resource::Secret { name, secret: Arc::new(Secret::Certificate(pair)) }
        }
        Kind::Listener => Resource::Listener(Arc::new(listener(&toy))),
        Kind::Routes => Resource::Routes(Arc::new(RouteTable {
            name,
            virtual_hosts: Vec::new(),
            request_headers: Default::default(),
            response_headers: Default::default(),
            most_specific_wins: false,
            ignore_port: false,
            validate_clusters: false,
            filters: Default::default(),
        })),
    })
}

fn cluster(toy: &Toy) -> ClusterSpec {
    let common = CommonTls {
        params: TlsParams::default(),
        alpn: Vec::new(),
        certificate: Some(SecretSource::Ads(toy.sds.as_str().into())),
        validation: None,
        default_validation: None,
    };
    let discovery = match toy.eds.as_str() {
        "" => Discovery::Static(Vec::new()),
        eds => Discovery::Eds(Wanted { name: eds.into(), patience: toy.patience.map(Duration::from_secs) }),
    };
    ClusterSpec {
        tls: (!toy.sds.is_empty()).then_some(UpstreamTls { common, sni: None }),
        ..crate::testing::cluster(&toy.name, discovery)
    }
}

fn listener(toy: &Toy) -> Listener {
    let terminal = if toy.rds.is_empty() { Terminal::Close } else { Terminal::Http(Arc::new(hcm(&toy.rds))) };
    let chain = FilterChain {
        name: "".into(),
        matcher: ChainMatch::default(),
        tls: None,
        handshake_timeout: Duration::from_secs(10),
        filters: Vec::new(),
        terminal,
    };
    Listener {
        name: toy.name.as_str().into(),
        address: "127.0.0.1:0".parse().unwrap(),
        ipv4_compat: false,
        direction: Direction::Unspecified,
        listener_filters: Vec::new(),
        listener_filters_timeout: Duration::from_secs(15),
        continue_on_timeout: false,
        chains: vec![Arc::new(chain)],
        default_chain: None,
        access_log: Vec::new(),
        stat_prefix: None,
        backlog: None,
    }
}

fn hcm(rds: &str) -> crate::config::http::HttpConnectionManager {
    HttpConnectionManager { routes: RouteSource::Rds(rds.into()), ..crate::http::testing::manager() }
}

fn settings(variant: Variant) -> Settings {
    Settings {
        variant,
        clusters: true,
        listeners: true,
        patience: Duration::from_secs(15),
        roots: Vec::new(),
        static_clusters: HashSet::from(["fixed".into()]),
        static_listeners: HashSet::new(),
    }
}

fn sotw(kind: Kind, version: &str, nonce: &str, toys: &[Toy]) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: version.into(),
        nonce: nonce.into(),
        type_url: kind.type_url().into(),
        resources: toys.iter().map(|toy| any(kind, toy)).collect(),
        ..Default::default()
    }
}

fn delta(kind: Kind, nonce: &str, toys: &[(&str, Toy)], removed: &[&str]) -> DeltaDiscoveryResponse {
    let wrap = |(version, toy): &(&str, Toy)| Wrapper {
        name: toy.name.clone(),
        version: (*version).into(),
        resource: Some(any(kind, toy)),
        ..Default::default()
    };
    DeltaDiscoveryResponse {
        nonce: nonce.into(),
        type_url: kind.type_url().into(),
        resources: toys.iter().map(wrap).collect(),
        removed_resources: removed.iter().map(|name| (*name).into()).collect(),
        ..Default::default()
    }
}

/// One line per request: `cds v= n= [a,b]`, with `NACK: …` if it refuses; delta: `cds +[] -[] init{} n=`.
fn lines(client: &mut Client) -> Vec<String> {
    let nack = |status: &Option<Status>| match status {
        Some(status) => format!(" NACK {}: {}", status.code, status.message),
        None => String::new(),
    };
    let line = |request: &Request| match request {
        Request::Sotw(r) => {
            let kind = Kind::of_type_url(&r.type_url).unwrap().service();
            let names = r.resource_names.join(",");
            format!("{kind} v={} n={} [{names}]{}", r.version_info, r.response_nonce, nack(&r.error_detail))
        }
        Request::Delta(r) => {
            let kind = Kind::of_type_url(&r.type_url).unwrap().service();
            let init: BTreeMap<_, _> = r.initial_resource_versions.iter().collect();
            let init: Vec<String> = init.iter().map(|(n, v)| format!("{n}={v}")).collect();
            format!(
                "{kind} +[{}] -[{}] {{{}}} n={}{}",
                r.resource_names_subscribe.join(","),
                r.resource_names_unsubscribe.join(","),
                init.join(","),
                r.response_nonce,
                nack(&r.error_detail)
            )
        }
    };
    client.take_requests().iter().map(line).collect()
}

fn started(variant: Variant) -> (Client, Instant) {
    let now = Instant::now();
    let mut client = Client::new(settings(variant), now);
    client.connected(now);
    (client, now)
}

fn held(client: &Client, kind: Kind) -> Vec<String> {
    client.kind(kind).entries().keys().map(|name| name.to_string()).collect()
}

#[test]
fn asks_for_clusters_then_what_they_need_then_listeners_then_routes() {
    let (mut client, now) = started(Variant::Sotw);
    assert_eq!(lines(&mut client), ["cds v= n= []"]);
    let a = Toy { eds: "a-eds".into(), sds: "root".into(), ..toy("a") };
    client.sotw(sotw(Kind::Cluster, "1", "n1", &[a]), now, &mut check).unwrap();
    assert_eq!(lines(&mut client), ["eds v= n= [a-eds]", "sds v= n= [root]", "cds v=1 n=n1 []"]);
    client.sotw(sotw(Kind::Endpoints, "1", "n2", &[toy("a-eds")]), now, &mut check).unwrap();
    assert_eq!(lines(&mut client), ["eds v=1 n=n2 [a-eds]"], "listeners wait for the secret");
    assert!(!client.clusters_settled(now));
    client.sotw(sotw(Kind::Secret, "1", "n3", &[toy("root")]), now, &mut check).unwrap();
    assert_eq!(lines(&mut client), ["sds v=1 n=n3 [root]", "lds v= n= []"]);
    let l = Toy { rds: "r".into(), ..toy("l") };
    client.sotw(sotw(Kind::Listener, "1", "n4", &[l]), now, &mut check).unwrap();
    assert_eq!(lines(&mut client), ["rds v= n= [r]", "lds v=1 n=n4 []"]);
    assert!(!client.all_settled(now));
    client.sotw(sotw(Kind::Routes, "1", "n5", &[toy("r")]), now, &mut check).unwrap();
    assert_eq!(lines(&mut client), ["rds v=1 n=n5 [r]"]);
    assert!(client.all_settled(now));
}

#[test]
fn listeners_do_not_wait_longer_than_the_initial_fetch_timeout() {
    let (mut client, now) = started(Variant::Sotw);
    client.sotw(sotw(Kind::Cluster, "1", "n1", &[Toy { eds: "x".into(), ..toy("a") }]), now, &mut check).unwrap();
    lines(&mut client);
    assert_eq!(client.next_poll(now), Some(now + Duration::from_secs(15)));
    client.poll(now + Duration::from_secs(14));
    assert_eq!(lines(&mut client), [""; 0]);
    client.poll(now + Duration::from_secs(15));
    assert_eq!(lines(&mut client), ["lds v= n= []"]);
}

#[test]
fn a_zero_initial_fetch_timeout_waits_for_ever() {
    let now = Instant::now();
    let mut client = Client::new(Settings { patience: Duration::ZERO, ..settings(Variant::Sotw) }, now);
    client.connected(now);
    assert_eq!(client.next_poll(now), None);
    client.poll(now + Duration::from_secs(86_400));
    assert_eq!(lines(&mut client), ["cds v= n= []"]);
}

#[test]
fn a_resource_may_be_waited_for_longer_or_shorter_than_the_stream_says() {
    let wait = |patience| {
        let (mut client, now) = (Client::new(settings(Variant::Sotw), Instant::now()), Instant::now());
        client.connected(now);
        lines(&mut client);
        let all: Vec<Toy> =
            [("a", Some(3)), ("b", patience)].map(|(n, patience)| Toy { eds: "x".into(), patience, ..toy(n) }).into();
        client.sotw(sotw(Kind::Cluster, "1", "n1", &all), now, &mut check).unwrap();
        (
            client.next_poll(now).map(|at| at - now),
            client.settled(Kind::Endpoints, "x", now + Duration::from_secs(3600)),
        )
    };
    let seconds = |s| Some(Duration::from_secs(s));
    assert_eq!(wait(Some(2)), (seconds(3), true), "the longest of those who wait for the same");
    assert_eq!(wait(None), (seconds(15), true), "15 s by default");
    assert_eq!(wait(Some(60)), (seconds(60), true));
    assert_eq!(wait(Some(0)), (None, false), "zero is without end");
}

#[test]
fn one_bad_resource_is_named_while_the_others_are_taken_and_its_last_good_stays() {
    let (mut client, now) = started(Variant::Sotw);
    client.sotw(sotw(Kind::Cluster, "1", "n1", &[toy("a"), toy("b")]), now, &mut check).unwrap();
    lines(&mut client);
    let bad = Toy { bad: true, ..toy("a") };
    let errors = client.sotw(sotw(Kind::Cluster, "2", "n2", &[bad, toy("c")]), now, &mut check).unwrap();
    assert_eq!(errors, ["a: is bad"]);
    assert_eq!(lines(&mut client), ["cds v=1 n=n2 [] NACK 3: a: is bad"]);
    assert_eq!(held(&client, Kind::Cluster), ["a", "c"], "b is gone, a is the last good one");
    assert_eq!(client.kind(Kind::Cluster).entries()["a"].version, "1");
    assert_eq!(client.kind(Kind::Cluster).refused()["a"].details, "is bad");
    client.sotw(sotw(Kind::Cluster, "3", "n3", &[toy("a")]), now, &mut check).unwrap();
    assert_eq!(lines(&mut client), ["cds v=3 n=n3 []"]);
    assert!(client.kind(Kind::Cluster).refused().is_empty());
}

#[test]
fn nothing_is_removed_by_a_response_with_an_illegible_resource() {
    let (mut client, now) = started(Variant::Sotw);
    client.sotw(sotw(Kind::Cluster, "1", "n1", &[toy("a"), toy("b")]), now, &mut check).unwrap();
    let mut response = sotw(Kind::Cluster, "2", "n2", &[toy("b")]);
    response.resources.push(Any { type_url: Kind::Cluster.type_url().into(), value: vec![0xff; 8] });
    let errors = client.sotw(response, now, &mut check).unwrap();
    assert_eq!(errors, ["a resource without a legible name"]);
    assert_eq!(held(&client, Kind::Cluster), ["a", "b"]);
}

#[test]
fn duplicates_wrong_types_and_static_names_are_refused() {
    let (mut client, now) = started(Variant::Sotw);
    let mut response = sotw(Kind::Cluster, "1", "n1", &[toy("twice"), toy("twice"), toy("fixed"), toy("good")]);
    response.resources.push(any(Kind::Listener, &toy("l")));
    let errors = client.sotw(response, now, &mut check).unwrap();
    assert_eq!(
        errors,
        [
            "a resource: type type.googleapis.com/envoy.config.listener.v3.Listener in a response of type \
             type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "fixed: has the name of a static resource",
            "twice: occurs more than once",
        ]
    );
    assert_eq!(held(&client, Kind::Cluster), ["good"]);
}

#[test]
fn a_type_that_was_not_asked_for_is_not_answered() {
    let (mut client, now) = started(Variant::Sotw);
    lines(&mut client);
    assert!(client.sotw(sotw(Kind::Secret, "1", "n1", &[toy("s")]), now, &mut check).is_err());
    let other = DiscoveryResponse { type_url: "type.googleapis.com/other".into(), ..Default::default() };
    assert!(client.sotw(other, now, &mut check).is_err());
    assert_eq!(lines(&mut client), [""; 0]);
}

#[test]
fn an_empty_full_state_removes_all_and_unsubscribes_what_they_needed() {
    let (mut client, now) = started(Variant::Sotw);
    client.sotw(sotw(Kind::Cluster, "1", "n1", &[Toy { eds: "x".into(), ..toy("a") }]), now, &mut check).unwrap();
    client.sotw(sotw(Kind::Endpoints, "1", "n2", &[toy("x")]), now, &mut check).unwrap();
    lines(&mut client);
    client.sotw(sotw(Kind::Cluster, "2", "n3", &[]), now, &mut check).unwrap();
    assert_eq!(lines(&mut client), ["eds v=1 n=n2 []", "cds v=2 n=n3 []"]);
    assert!(held(&client, Kind::Cluster).is_empty() && held(&client, Kind::Endpoints).is_empty());
}

#[test]
fn a_partial_answer_of_a_named_kind_takes_nothing_away_and_names_not_asked_for_are_passed_over() {
    let (mut client, now) = started(Variant::Sotw);
    let toys = [Toy { eds: "x".into(), ..toy("a") }, Toy { eds: "y".into(), ..toy("b") }];
    client.sotw(sotw(Kind::Cluster, "1", "n1", &toys), now, &mut check).unwrap();
    client.sotw(sotw(Kind::Endpoints, "1", "n2", &[toy("x"), toy("y")]), now, &mut check).unwrap();
    let alien = Toy { bad: true, ..toy("alien") };
    let errors = client.sotw(sotw(Kind::Endpoints, "2", "n3", &[toy("x"), alien]), now, &mut check).unwrap();
    assert!(errors.is_empty());
    assert_eq!(held(&client, Kind::Endpoints), ["x", "y"]);
}

#[test]
fn a_new_stream_asks_for_all_names_again_with_the_versions_held_and_no_nonce() {
    let (mut client, now) = started(Variant::Sotw);
    client.sotw(sotw(Kind::Cluster, "7", "n1", &[Toy { eds: "x".into(), ..toy("a") }]), now, &mut check).unwrap();
    client.sotw(sotw(Kind::Endpoints, "8", "n2", &[toy("x")]), now, &mut check).unwrap();
    client.disconnected();
    assert_eq!(lines(&mut client), [""; 0]);
    client.connected(now);
    assert_eq!(lines(&mut client), ["cds v=7 n= []", "eds v=8 n= [x]", "lds v= n= []"]);
    assert_eq!(held(&client, Kind::Endpoints), ["x"]);
}

#[test]
fn a_new_delta_stream_tells_what_is_held() {
    let (mut client, now) = started(Variant::Delta);
    assert_eq!(lines(&mut client), ["cds +[] -[] {} n="]);
    let a = Toy { eds: "x".into(), ..toy("a") };
    let b = Toy { eds: "y".into(), ..toy("b") };
    client.delta(delta(Kind::Cluster, "n1", &[("1", a), ("2", b)], &[]), now, &mut check).unwrap();
    assert_eq!(lines(&mut client), ["eds +[x,y] -[] {} n=", "cds +[] -[] {} n=n1"]);
    client.delta(delta(Kind::Endpoints, "n2", &[("3", toy("x"))], &["y"]), now, &mut check).unwrap();
    assert_eq!(lines(&mut client), ["eds +[] -[] {} n=n2", "lds +[] -[] {} n="], "y does not exist: nobody waits");
    client.delta(delta(Kind::Cluster, "n3", &[], &["b", "never-there"]), now, &mut check).unwrap();
    assert_eq!(lines(&mut client), ["eds +[] -[y] {} n=", "cds +[] -[] {} n=n3"]);
    client.connected(now);
    assert_eq!(lines(&mut client), ["cds +[] -[] {a=1} n=", "eds +[x] -[] {x=3} n=", "lds +[] -[] {} n="]);
}

#[test]
fn delta_refusals_name_the_resource_and_are_not_recorded_as_held() {
    let (mut client, now) = started(Variant::Delta);
    client.delta(delta(Kind::Cluster, "n1", &[("1", toy("a"))], &[]), now, &mut check).unwrap();
    lines(&mut client);
    let bad = Toy { bad: true, ..toy("a") };
    let mut response = delta(Kind::Cluster, "n2", &[("2", bad), ("1", toy("z"))], &["z"]);
    response.resources.push(Wrapper { name: "w".into(), ..response.resources[1].clone() });
    client.delta(response, now, &mut check).unwrap();
    assert_eq!(
        lines(&mut client),
        ["cds +[] -[] {} n=n2 NACK 3: z: is both added and removed\n\
          w: the wrapper's name differs from the resource's own, z\na: is bad"]
    );
    client.connected(now);
    assert_eq!(lines(&mut client)[0], "cds +[] -[] {a=1} n=");
}

#[test]
fn removed_endpoints_of_a_live_cluster_stay_but_are_not_claimed_later() {
    let (mut client, now) = started(Variant::Delta);
    client
        .delta(delta(Kind::Cluster, "n1", &[("1", Toy { eds: "x".into(), ..toy("a") })], &[]), now, &mut check)
        .unwrap();
    client.delta(delta(Kind::Endpoints, "n2", &[("1", toy("x"))], &[]), now, &mut check).unwrap();
    client.delta(delta(Kind::Endpoints, "n3", &[], &["x"]), now, &mut check).unwrap();
    assert_eq!(held(&client, Kind::Endpoints), ["x"]);
    client.connected(now);
    assert!(lines(&mut client).contains(&"eds +[x] -[] {} n=".to_owned()));
}

#[test]
fn a_resource_with_a_ttl_goes_unless_a_heartbeat_renews_it() {
    let (mut client, now) = started(Variant::Sotw);
    let wrapper = |resource: Option<Any>| Any {
        type_url: WRAPPER.into(),
        value: Wrapper {
            name: "a".into(),
            resource,
            ttl: Some(PbDuration { seconds: 10, nanos: 0 }),
            ..Default::default()
        }
        .encode_to_vec(),
    };
    let mut first = sotw(Kind::Cluster, "1", "n1", &[toy("b")]);
    first.resources.push(wrapper(Some(any(Kind::Cluster, &toy("a")))));
    client.sotw(first, now, &mut check).unwrap();
    let later = now + Duration::from_secs(8);
    let mut beat = sotw(Kind::Cluster, "1", "n2", &[]);
    beat.resources.push(wrapper(None));
    client.sotw(beat, later, &mut check).unwrap();
    client.poll(now + Duration::from_secs(12));
    assert_eq!(held(&client, Kind::Cluster), ["a", "b"], "renewed, and heartbeats alone remove nothing");
    assert_eq!(client.next_poll(later), Some(now + Duration::from_secs(15)), "first listeners are awaited until then");
    client.poll(now + Duration::from_secs(18));
    assert_eq!(held(&client, Kind::Cluster), ["b"]);
}

#[test]
fn a_refusal_stays_small_whatever_was_sent() {
    let (mut client, now) = started(Variant::Sotw);
    let toys: Vec<Toy> = (0..5000).map(|i| Toy { bad: true, ..toy(&format!("resource-{i}")) }).collect();
    client.sotw(sotw(Kind::Cluster, "1", "n1", &toys), now, &mut check).unwrap();
    let Some(Request::Sotw(nack)) = client.take_requests().into_iter().nth(1) else { panic!("the NACK comes second") };
    let message = nack.error_detail.unwrap().message;
    assert!(message.len() < 17_000 && message.ends_with("… (more)"), "{}", message.len());
}

/// A server that knows the protocol, and a world that changes at random. After each quiet moment the client must hold
/// the last good form of exactly what is referred to.
#[test]
fn a_random_world_is_followed_in_both_variants() {
    for seed in 0..60 {
        for variant in [Variant::Sotw, Variant::Delta] {
            random_run(seed, variant);
        }
    }
}

fn random_run(seed: u64, variant: Variant) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut client, now) = started(variant);
    let mut server = Server::default();
    for step in 0..60 {
        server.change(&mut random);
        if random.u8(..10) == 0 {
            server = Server { world: std::mem::take(&mut server.world), ..Server::default() };
            client.connected(now);
        }
        for _ in 0..20 {
            for request in client.take_requests() {
                server.receive(request);
            }
            server.send(&mut client, now);
        }
        server.assert_followed(&client, &format!("seed {seed}, {variant:?}, step {step}"));
    }
}

#[derive(Default)]
struct Server {
    world: BTreeMap<(Kind, String), Toy>,
    /// What each kind's subscription names; wildcard kinds have it empty.
    names: BTreeMap<Kind, BTreeSet<String>>,
    /// What the client was sent last or claims to hold, by generation.
    known: BTreeMap<(Kind, String), Toy>,
    awaited: BTreeMap<Kind, String>,
    nonce: u32,
    /// Wildcard kinds whose first answer is due; it is sent even if empty.
    due: BTreeSet<Kind>,
    variant_delta: bool,
}

impl Server {
    fn change(&mut self, random: &mut fastrand::Rng) {
        for _ in 0..random.usize(1..4) {
            let kind = Kind::ALL[random.usize(..5)];
            let key = (kind, format!("{}{}", kind.service(), random.u8(..4)));
            if random.u8(..4) == 0 {
                self.world.remove(&key);
                continue;
            }
            let pick = |random: &mut fastrand::Rng, kind: Kind| format!("{}{}", kind.service(), random.u8(..4));
            let toy = Toy {
                patience: None,
                eds: if kind == Kind::Cluster { pick(random, Kind::Endpoints) } else { String::new() },
                rds: if kind == Kind::Listener { pick(random, Kind::Routes) } else { String::new() },
                sds: if kind == Kind::Cluster && random.bool() { pick(random, Kind::Secret) } else { String::new() },
                bad: random.u8(..8) == 0,
                generation: random.u32(..),
                name: key.1.clone(),
            };
            self.world.insert(key, toy);
        }
    }

    fn receive(&mut self, request: Request) {
        let (type_url, nonce) = match &request {
            Request::Sotw(r) => (&r.type_url, &r.response_nonce),
            Request::Delta(r) => (&r.type_url, &r.response_nonce),
        };
        let kind = Kind::of_type_url(type_url).unwrap();
        if self.awaited.get(&kind).is_some_and(|awaited| awaited == nonce) {
            self.awaited.remove(&kind);
        }
        if kind.is_wildcard() && !self.names.contains_key(&kind) {
            self.due.insert(kind);
        }
        match request {
            Request::Sotw(r) => {
                let names: BTreeSet<String> = r.resource_names.into_iter().collect();
                let first = !self.names.contains_key(&kind);
                assert!(!first || kind.is_wildcard() || !names.is_empty(), "an empty first request would mean all");
                let before = self.names.insert(kind, names.clone()).unwrap_or_default();
                for name in names.symmetric_difference(&before) {
                    self.known.remove(&(kind, name.clone()));
                }
            }
            Request::Delta(r) => {
                self.variant_delta = true;
                let first = !self.names.contains_key(&kind);
                assert!(first || r.initial_resource_versions.is_empty());
                assert!(!first || kind.is_wildcard() || !r.resource_names_subscribe.is_empty());
                let names = self.names.entry(kind).or_default();
                for name in r.resource_names_unsubscribe {
                    assert!(names.remove(&name), "{name} was subscribed");
                    self.known.remove(&(kind, name));
                }
                for name in r.resource_names_subscribe {
                    assert!(names.insert(name.clone()), "{name} was not subscribed");
                    self.known.remove(&(kind, name));
                }
                for (name, version) in r.initial_resource_versions {
                    let claimed = Toy { generation: version.parse().unwrap(), ..toy(&name) };
                    self.known.insert((kind, name), claimed);
                }
            }
        }
    }

    fn send(&mut self, client: &mut Client, now: Instant) {
        let asked: Vec<Kind> = self.names.keys().copied().filter(|kind| !self.awaited.contains_key(kind)).collect();
        for kind in asked {
            let names = &self.names[&kind];
            let visible: Vec<&Toy> = self
                .world
                .iter()
                .filter(|((k, name), _)| *k == kind && (kind.is_wildcard() || names.contains(name)))
                .map(|(_, toy)| toy)
                .collect();
            let is_new = |toy: &Toy| {
                self.known.get(&(kind, toy.name.clone())).is_none_or(|known| known.generation != toy.generation)
            };
            let gone: Vec<String> = self
                .known
                .keys()
                .filter(|(k, name)| *k == kind && !self.world.contains_key(&(kind, name.clone())))
                .map(|(_, name)| name.clone())
                .collect();
            let new: Vec<Toy> = visible.iter().filter(|toy| is_new(toy)).map(|toy| (*toy).clone()).collect();
            if new.is_empty() && gone.is_empty() && !self.due.remove(&kind) {
                continue;
            }
            self.nonce += 1;
            let nonce = format!("{}", self.nonce);
            if self.variant_delta {
                let toys: Vec<(String, Toy)> = new.iter().map(|t| (t.generation.to_string(), t.clone())).collect();
                let toys: Vec<(&str, Toy)> = toys.iter().map(|(v, t)| (v.as_str(), t.clone())).collect();
                let removed: Vec<&str> = gone.iter().map(String::as_str).collect();
                client.delta(delta(kind, &nonce, &toys, &removed), now, &mut check).unwrap();
            } else {
                let all: Vec<Toy> = visible.into_iter().cloned().collect();
                client.sotw(sotw(kind, &nonce, &nonce, &all), now, &mut check).unwrap();
            }
            for toy in new {
                self.known.insert((kind, toy.name.clone()), toy);
            }
            for name in gone {
                self.known.remove(&(kind, name));
            }
            self.awaited.insert(kind, nonce);
        }
    }

    fn assert_followed(&self, client: &Client, when: &str) {
        assert!(self.awaited.is_empty(), "{when}: every response is answered with its nonce: {:?}", self.awaited);
        let mut wanted: BTreeSet<(Kind, String)> = BTreeSet::new();
        for kind in Kind::ALL {
            for entry in client.kind(kind).entries().values() {
                entry.resource.references(&mut |kind, name| {
                    wanted.insert((kind, name.name.to_string()));
                });
            }
        }
        for ((kind, name), toy) in &self.world {
            let asked =
                self.names.contains_key(kind) && (kind.is_wildcard() || wanted.contains(&(*kind, name.clone())));
            let held = client.kind(*kind).entries().get(name.as_str());
            if asked && !toy.bad {
                let held = held.unwrap_or_else(|| panic!("{when}: {name} is held"));
                let held = Toy::decode(held.encoded.value.as_slice()).unwrap();
                assert_eq!(held.generation, toy.generation, "{when}: {name} is the newest");
            }
            if let Some(held) = held {
                let held = Toy::decode(held.encoded.value.as_slice()).unwrap();
                assert!(asked && !held.bad, "{when}: {name} is good, and asked for");
            }
            assert_eq!(toy.bad && asked, client.kind(*kind).refused().contains_key(name.as_str()), "{when}: {name}");
        }
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_wildcard()) {
            for name in client.kind(kind).entries().keys() {
                assert!(self.world.contains_key(&(kind, name.to_string())), "{when}: {name} still exists");
            }
        }
    }
}
