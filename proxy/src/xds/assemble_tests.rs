//! Make before break and carry-over, over resources fed through [`Client`] as they come from a control plane.

use std::{collections::HashSet, time::Duration};

use envoy_types::pb::{envoy::service::discovery::v3::DiscoveryResponse, google::protobuf::Any};

use super::*;
use crate::{
    config::{
        cluster::DnsFamily,
        http::{HttpConnectionManager, RouteSource},
        listener::{ChainMatch, Direction, TcpProxy},
        route::{RouteTable, Target},
        tls::{CertificatePair, DownstreamTls, TlsParams, UpstreamTls},
    },
    upstream::{Resolve, Resolved},
    xds::state::{Settings, Variant},
};

#[derive(Debug)]
struct NoNames;

impl Resolve for NoNames {
    fn resolve<'a>(
        &'a self,
        _: &'a str,
        _: DnsFamily,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Resolved, String>> + Send + 'a>> {
        Box::pin(async { Err("no names here".to_owned()) })
    }
}

/// An assembler with a control plane that says what the test wants.
struct World {
    shared: Arc<Shared>,
    assembler: Assembler,
    client: Client,
    now: Instant,
    nonce: u32,
}

impl World {
    fn new() -> Self {
        let shared = Arc::new(Shared::new());
        let upstreams = Upstreams::new(shared.metrics.clone(), 1, Arc::new(NoNames), None);
        let (again, now) = (Arc::new(Notify::new()), Instant::now());
        let files = Files::new(Arc::clone(&again));
        let assembler = Assembler::new(Arc::clone(&shared), upstreams, None, Statics::default(), files, again);
        let settings = Settings {
            variant: Variant::Sotw,
            clusters: true,
            listeners: true,
            patience: Duration::from_secs(15),
            roots: Vec::new(),
            static_clusters: HashSet::new(),
            static_listeners: HashSet::new(),
        };
        let mut client = Client::new(settings, now);
        client.connected(now);
        Self { shared, assembler, client, now, nonce: 0 }
    }

    /// The full state of a kind; its turn has come.
    fn push(&mut self, kind: Kind, resources: Vec<Resource>) {
        self.nonce += 1;
        #[derive(prost::Message)]
        struct Named {
            #[prost(string, tag = "1")]
            name: String,
            #[prost(uint32, tag = "2")]
            nonce: u32,
        }
        let encode = |resource: &Resource| Any {
            type_url: kind.type_url().into(),
            value: prost::Message::encode_to_vec(&Named { name: resource.name().to_string(), nonce: self.nonce }),
        };
        let response = DiscoveryResponse {
            type_url: kind.type_url().into(),
            nonce: self.nonce.to_string(),
            version_info: self.nonce.to_string(),
            resources: resources.iter().map(encode).collect(),
            ..Default::default()
        };
        let mut check = |_: Kind, any: &Any| {
            let name = crate::xds::kind::name_of(&any.value).unwrap();
            Ok(resources.iter().find(|resource| *resource.name() == name).unwrap().clone())
        };
        let errors = self.client.sotw(response, self.now, &mut check).unwrap();
        assert!(errors.is_empty(), "{errors:?}");
    }

    /// Assembles and publishes; gives what ended.
    fn step(&mut self) -> (Arc<Snapshot>, Vec<Drain>) {
        let Assembled { snapshot, retired } = self.assembler.assemble(&self.client, self.now);
        (self.shared.store.publish(snapshot), retired)
    }
}

fn cluster(name: &str) -> ClusterSpec {
    crate::testing::cluster(name, Discovery::Eds(name.into()))
}

fn clusters(all: &[ClusterSpec]) -> Vec<Resource> {
    all.iter().map(|spec| Resource::Cluster(Arc::new(spec.clone()))).collect()
}

fn endpoints(name: &str) -> Vec<Resource> {
    let assignment =
        Assignment { name: name.into(), endpoints: Vec::new(), overprovisioning_percent: 140, drop_ppm: 0 };
    vec![Resource::Assignment(Arc::new(assignment))]
}

fn chain(name: &str, terminal: Terminal) -> Arc<FilterChain> {
    Arc::new(FilterChain {
        name: name.into(),
        matcher: ChainMatch::default(),
        tls: None,
        handshake_timeout: Duration::from_secs(10),
        filters: Vec::new(),
        terminal,
    })
}

fn tcp(cluster: &str) -> Terminal {
    Terminal::Tcp(Arc::new(TcpProxy {
        stat_prefix: "t".into(),
        target: Target::Cluster(cluster.into()),
        access_log: Vec::new(),
        idle_timeout: None,
        max_connect_attempts: 1,
        max_duration: None,
    }))
}

fn http(rds: &str) -> Terminal {
    Terminal::Http(Arc::new(HttpConnectionManager {
        routes: RouteSource::Rds(rds.into()),
        ..crate::http::testing::manager()
    }))
}

fn listener(name: &str, chains: Vec<Arc<FilterChain>>) -> listener::Listener {
    listener::Listener {
        name: name.into(),
        address: "127.0.0.1:0".parse().unwrap(),
        ipv4_compat: false,
        direction: Direction::Inbound,
        listener_filters: Vec::new(),
        listener_filters_timeout: Duration::from_secs(15),
        continue_on_timeout: false,
        chains,
        default_chain: None,
        access_log: Vec::new(),
        stat_prefix: None,
        backlog: None,
    }
}

fn listeners(all: &[listener::Listener]) -> Vec<Resource> {
    all.iter().map(|config| Resource::Listener(Arc::new(config.clone()))).collect()
}

fn routes(name: &str, ignore_port: bool) -> Vec<Resource> {
    vec![Resource::Routes(Arc::new(RouteTable {
        name: name.into(),
        virtual_hosts: Vec::new(),
        request_headers: Default::default(),
        response_headers: Default::default(),
        most_specific_wins: false,
        ignore_port,
        validate_clusters: false,
        filters: Default::default(),
    }))]
}

fn with_secret(name: &str) -> CommonTls {
    CommonTls {
        params: TlsParams::default(),
        alpn: Vec::new(),
        certificate: Some(SecretSource::Ads(name.into())),
        validation: None,
        default_validation: None,
    }
}

fn secret(name: &str) -> Vec<Resource> {
    let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
    let pair = CertificatePair {
        chain_pem: made.cert.pem().into_bytes().into(),
        key_pem: made.signing_key.serialize_pem().into_bytes().into(),
    };
    vec![Resource::Secret { name: name.into(), secret: Arc::new(Secret::Certificate(pair)) }]
}

/// The state in which listeners are asked for.
fn started() -> World {
    let mut world = World::new();
    world.push(Kind::Cluster, Vec::new());
    world
}

#[tokio::test]
async fn a_cluster_is_in_force_when_its_endpoints_are_there_or_were_waited_for() {
    let mut world = World::new();
    world.push(Kind::Cluster, clusters(&[cluster("a"), cluster("b")]));
    assert!(world.step().0.clusters.is_empty());
    world.push(Kind::Endpoints, endpoints("a"));
    let (snapshot, _) = world.step();
    assert_eq!(snapshot.clusters.keys().map(|name| &**name).collect::<Vec<_>>(), ["a"]);
    assert_eq!(world.assembler.warming(), ["b".into()]);
    world.now += Duration::from_secs(15);
    let (later, _) = world.step();
    assert_eq!(later.clusters.len(), 2);
    assert!(Arc::ptr_eq(&later.clusters["a"], &snapshot.clusters["a"]), "carried over");
}

#[tokio::test]
async fn a_changed_cluster_takes_over_only_when_it_is_ready() {
    let mut world = World::new();
    world.push(Kind::Cluster, clusters(&[cluster("a")]));
    world.push(Kind::Endpoints, endpoints("a"));
    let old = Arc::clone(&world.step().0.clusters["a"]);
    let moved = ClusterSpec { discovery: Discovery::Eds("elsewhere".into()), ..cluster("a") };
    world.push(Kind::Cluster, clusters(&[moved]));
    assert!(Arc::ptr_eq(&world.step().0.clusters["a"], &old));
    world.push(Kind::Endpoints, endpoints("elsewhere"));
    assert!(!Arc::ptr_eq(&world.step().0.clusters["a"], &old));
}

#[tokio::test]
async fn a_listener_does_not_listen_before_its_routes_are_there_however_long_that_takes() {
    let mut world = started();
    world.push(Kind::Listener, listeners(&[listener("l", vec![chain("", http("r"))]), listener("t", vec![])]));
    world.now += Duration::from_secs(3600);
    let (snapshot, _) = world.step();
    assert_eq!(snapshot.listeners.keys().map(|name| &**name).collect::<Vec<_>>(), ["t"], "others are not held up");
    world.push(Kind::Routes, routes("r", false));
    let (snapshot, _) = world.step();
    assert!(snapshot.listeners.contains_key("l") && snapshot.routes.contains_key("r"));
}

#[tokio::test]
async fn a_listener_that_moves_to_routes_still_to_come_keeps_its_old_ones_until_then() {
    let mut world = started();
    world.push(Kind::Listener, listeners(&[listener("l", vec![chain("c", http("old"))])]));
    world.push(Kind::Routes, routes("old", false));
    let before = world.step().0;
    world.push(Kind::Listener, listeners(&[listener("l", vec![chain("c", http("new"))])]));
    let (between, retired) = world.step();
    assert!(Arc::ptr_eq(&between.listeners["l"], &before.listeners["l"]) && retired.is_empty());
    assert!(Arc::ptr_eq(&between.routes["old"], &before.routes["old"]), "its routes stay though nobody asks for them");
    world.push(Kind::Routes, routes("new", false));
    let (after, retired) = world.step();
    assert_eq!(after.routes.keys().map(|name| &**name).collect::<Vec<_>>(), ["new"]);
    assert_eq!(retired.len(), 1, "the old chain");
}

#[tokio::test]
async fn only_what_changed_is_made_anew_and_only_that_ends() {
    let mut world = started();
    let two = |second: &str| listener("l", vec![chain("a", tcp("x")), chain("b", tcp(second))]);
    world.push(Kind::Listener, listeners(&[two("x"), listener("other", vec![])]));
    let before = world.step().0;
    world.push(Kind::Listener, listeners(&[two("y"), listener("other", vec![])]));
    let (after, retired) = world.step();
    assert!(Arc::ptr_eq(&before.listeners["other"], &after.listeners["other"]));
    let (old, new) = (&before.listeners["l"], &after.listeners["l"]);
    assert!(Arc::ptr_eq(&old.chains[0], &new.chains[0]) && !Arc::ptr_eq(&old.chains[1], &new.chains[1]));
    retired.iter().for_each(Drain::begin);
    assert!(old.chains[1].drain.is_draining() && !new.chains[1].drain.is_draining());
    assert!(!new.chains[0].drain.is_draining() && !new.drain.is_draining());
}

#[tokio::test]
async fn a_change_of_the_listener_itself_or_its_removal_ends_all_of_its_chains() {
    let mut world = started();
    let first = listener("l", vec![chain("a", tcp("x"))]);
    world.push(Kind::Listener, listeners(std::slice::from_ref(&first)));
    let before = world.step().0;
    world.push(Kind::Listener, listeners(&[listener::Listener { direction: Direction::Outbound, ..first }]));
    let (changed, retired) = world.step();
    retired.iter().for_each(Drain::begin);
    assert!(before.listeners["l"].chains[0].drain.is_draining());
    assert!(!changed.listeners["l"].chains[0].drain.is_draining());
    world.push(Kind::Listener, Vec::new());
    world.step().1.iter().for_each(Drain::begin);
    assert!(changed.listeners["l"].chains[0].drain.is_draining());
}

#[tokio::test]
async fn new_routes_replace_old_ones_under_listeners_that_go_on() {
    let mut world = started();
    world.push(Kind::Listener, listeners(&[listener("l", vec![chain("", http("r"))])]));
    world.push(Kind::Routes, routes("r", false));
    let before = world.step().0;
    world.push(Kind::Routes, routes("r", true));
    let (after, retired) = world.step();
    assert!(after.routes["r"].table.ignore_port && retired.is_empty());
    assert!(Arc::ptr_eq(&before.listeners["l"], &after.listeners["l"]));
}

#[tokio::test]
async fn a_chain_without_its_secrets_has_no_tls_and_gets_it_without_an_end_of_connections() {
    let mut world = started();
    let tls = DownstreamTls { common: with_secret("s"), require_client_certificate: false, require_sni: false };
    let secured = FilterChain { tls: Some(tls), ..(*chain("a", tcp("x"))).clone() };
    world.push(Kind::Listener, listeners(&[listener("l", vec![Arc::new(secured)])]));
    assert!(world.step().0.listeners.is_empty(), "secrets are waited for");
    world.now += Duration::from_secs(15);
    let (without, _) = world.step();
    assert!(without.listeners["l"].chains[0].tls.is_none(), "refuses, never plaintext");
    world.push(Kind::Secret, secret("s"));
    let (with, retired) = world.step();
    let first = Arc::clone(with.listeners["l"].chains[0].tls.as_ref().unwrap());
    assert!(retired.is_empty());
    world.push(Kind::Secret, secret("s"));
    let (rotated, retired) = world.step();
    let second = rotated.listeners["l"].chains[0].tls.as_ref().unwrap();
    assert!(!Arc::ptr_eq(&first, second) && retired.is_empty(), "a rotation ends nothing");
}

#[tokio::test]
async fn bad_secrets_leave_the_last_good_ones_in_force_and_are_told() {
    let mut world = World::new();
    let tls = UpstreamTls { common: with_secret("s"), sni: None };
    let spec = ClusterSpec { discovery: Discovery::Static(Vec::new()), tls: Some(tls), ..cluster("a") };
    world.push(Kind::Cluster, clusters(&[spec]));
    assert!(world.step().0.clusters.is_empty());
    world.push(Kind::Secret, secret("s"));
    assert!(world.step().0.clusters["a"].is_ready());
    let bad = CertificatePair { chain_pem: Arc::from(*b"no"), key_pem: Arc::from(*b"pem") };
    let bad = Resource::Secret { name: "s".into(), secret: Arc::new(Secret::Certificate(bad)) };
    world.push(Kind::Secret, vec![bad]);
    for _ in 0..2 {
        assert!(world.step().0.clusters["a"].is_ready());
        assert!(world.assembler.faults()["cluster a"].contains("secret s"), "{:?}", world.assembler.faults());
    }
}
