//! Responses of a control plane, in sequences, put in force: state machine, assembler and snapshots together.
//!
//! Whatever comes, nothing panics, a refused resource leaves its last good version as it was, the others of its response are
//! taken, the answer says what happened, and what is in force and still wanted stays in force.

use std::{
    collections::{BTreeMap, HashSet},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bolero::check;
use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource as Wrapper},
    google::protobuf::Any,
};
use oxmesh_proxy::{
    config::{
        Name,
        cluster::{Discovery, DnsFamily},
    },
    snapshot::{Shared, Snapshot},
    upstream::{Resolve, Resolved, Upstreams},
    xds::{
        assemble::{Assembled, Assembler, Statics},
        convert::{Options, Received, Resource, WRAPPER},
        kind::{Kind, name_of},
        resource::{chains, rds_name},
        sds_file::Files,
        state::{Client, Request, Settings, Variant},
        stream,
    },
};
use prost::Message;
use tokio::{sync::Notify, time::Instant};

use crate::resources::resource;

/// What is made of one resource: how, name, form, and a change for those that are changed.
type Item = (u8, u8, u8, u16, u8);
/// What is done, the resources of it, names for the removed ones, version and nonce.
type Push = (u8, Vec<Item>, Vec<u8>, u8);

#[test]
fn any_sequence_of_responses_keeps_the_last_good() {
    check!().with_iterations(300).with_type::<(bool, Vec<Push>)>().for_each(|(delta, script)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("no io is asked for");
        let _entered = runtime.enter();
        let mut world = World::new(if *delta { Variant::Delta } else { Variant::Sotw });
        for push in script.iter().take(24) {
            world.play(push);
        }
    });
}

#[derive(Debug)]
struct NoNames;

impl Resolve for NoNames {
    fn resolve<'a>(
        &'a self,
        _: &'a str,
        _: DnsFamily,
    ) -> Pin<Box<dyn Future<Output = Result<Resolved, String>> + Send + 'a>> {
        Box::pin(async { Err("no names here".to_owned()) })
    }
}

struct World {
    variant: Variant,
    client: Client,
    assembler: Assembler,
    shared: Arc<Shared>,
    now: Instant,
    /// Version last acknowledged, by kind.
    good: BTreeMap<Kind, String>,
}

impl World {
    fn new(variant: Variant) -> Self {
        let shared = Arc::new(Shared::new());
        let upstreams = Upstreams::new(shared.metrics.clone(), 1, Arc::new(NoNames), None);
        let (again, now) = (Arc::new(Notify::new()), Instant::now());
        let files = Files::new(Arc::clone(&again));
        let assembler = Assembler::new(Arc::clone(&shared), upstreams, None, Statics::default(), files, again);
        let settings = Settings {
            variant,
            clusters: true,
            listeners: true,
            patience: Duration::from_secs(15),
            roots: Vec::new(),
            static_clusters: HashSet::new(),
            static_listeners: HashSet::new(),
        };
        let mut client = Client::new(settings, now);
        client.connected(now);
        client.take_requests();
        Self { variant, client, assembler, shared, now, good: BTreeMap::new() }
    }

    fn play(&mut self, push: &Push) {
        let (what, items, removed, version) = push;
        match what % 16 {
            14 => {
                self.client.disconnected();
                self.client.connected(self.now);
                self.client.take_requests();
            }
            15 => {
                self.now += Duration::from_secs(u64::from(*version));
                self.client.poll(self.now);
                self.client.take_requests();
            }
            kind => self.respond(Kind::ALL[usize::from(kind % 5)], items, removed, *version),
        }
        self.assemble();
    }

    fn respond(&mut self, kind: Kind, items: &[Item], removed: &[u8], version: u8) {
        let resources: Vec<Wrapper> = items.iter().map(|item| made(kind, *item)).collect();
        // Versions and nonces may repeat and may be empty.
        let (version, nonce) = if version == 0 {
            (String::new(), String::new())
        } else {
            (format!("v{version}"), format!("n{}", version % 8))
        };
        let removed: Vec<String> = removed.iter().take(4).map(|at| name(*at)).collect();
        let asked = self.client.kind(kind).sent.is_some();
        let before = held(&self.client, kind);
        let others: Vec<_> = Kind::ALL.into_iter().filter(|k| *k != kind).map(|k| (k, held(&self.client, k))).collect();
        let mut check =
            |kind: Kind, any: &Any| stream::check(kind, any, &Options::SERVER).map(|(resource, _)| resource);
        let (answer, received, removed) = match self.variant {
            Variant::Sotw => {
                let resources: Vec<Any> =
                    resources.into_iter().zip(items).map(|(r, item)| wrapped(r, item.0)).collect();
                let received: Vec<_> = resources.iter().map(|any| Received::unwrap(any.clone()).ok()).collect();
                let response = DiscoveryResponse {
                    version_info: version.clone(),
                    nonce: nonce.clone(),
                    type_url: kind.type_url().to_owned(),
                    resources,
                    ..Default::default()
                };
                (self.client.sotw(response, self.now, &mut check), received, Vec::new())
            }
            Variant::Delta => {
                let received: Vec<_> = resources.iter().map(|r| Some(Received::from(r.clone()))).collect();
                let response = DeltaDiscoveryResponse {
                    system_version_info: version.clone(),
                    nonce: nonce.clone(),
                    type_url: kind.type_url().to_owned(),
                    resources,
                    removed_resources: removed.clone(),
                    ..Default::default()
                };
                (self.client.delta(response, self.now, &mut check), received, removed)
            }
        };
        let after = held(&self.client, kind);
        let requests = self.client.take_requests();
        let Ok(errors) = answer else {
            assert!(!asked, "{kind:?} was asked for");
            assert!(before == after && requests.is_empty(), "what was not asked for changes nothing");
            return;
        };
        assert!(asked, "{kind:?} was not asked for");
        self.check_answer(kind, &version, &nonce, &errors, &requests);
        let asked_names = self.client.kind(kind).names();
        let wanted = |name: &Name| kind.is_wildcard() || asked_names.contains(name);
        check_resources(kind, &received, &removed, &before, &after, &errors, wanted);
        if self.variant == Variant::Sotw && kind.is_wildcard() {
            check_removals(kind, &received, &before, &after);
        }
        for (other, before) in others {
            let after = held(&self.client, other);
            assert!(after.iter().all(|(name, any)| before.get(name) == Some(any)), "{other:?} changed by {kind:?}");
        }
    }

    /// One answer, with this response's nonce; a refusal if and only if something was refused; the version is the last one
    /// that was taken whole.
    fn check_answer(&mut self, kind: Kind, version: &str, nonce: &str, errors: &[String], requests: &[Request]) {
        let answers: Vec<_> = requests
            .iter()
            .filter_map(|request| match request {
                Request::Sotw(r) => (r.type_url == kind.type_url()).then_some((
                    &r.response_nonce,
                    &r.error_detail,
                    Some(&r.version_info),
                )),
                Request::Delta(r) => {
                    (r.type_url == kind.type_url()).then_some((&r.response_nonce, &r.error_detail, None))
                }
            })
            .filter(|(answered, ..)| *answered == nonce)
            .collect();
        assert!(!answers.is_empty(), "{kind:?}: no answer to {nonce:?} with {errors:?}: {requests:?}");
        if errors.is_empty() {
            self.good.insert(kind, version.to_owned());
        }
        let good = self.good.get(&kind).cloned().unwrap_or_default();
        for (_, detail, answered) in answers {
            assert_eq!(detail.is_some(), !errors.is_empty());
            assert!(detail.as_ref().is_none_or(|status| !status.message.is_empty()));
            assert!(answered.is_none_or(|answered| *answered == good), "{answered:?} is not {good:?}");
        }
    }

    /// What is in force holds nothing that is gone, and loses nothing that is still held.
    fn assemble(&mut self) {
        let last = self.shared.store.current();
        let Assembled { snapshot, .. } = self.assembler.assemble(&self.client, self.now);
        let next = self.shared.store.publish(snapshot);
        let (clusters, listeners) = (held(&self.client, Kind::Cluster), held(&self.client, Kind::Listener));
        assert!(next.clusters.keys().all(|name| clusters.contains_key(name)));
        assert!(next.listeners.keys().all(|name| listeners.contains_key(name)));
        assert!(last.clusters.keys().all(|name| !clusters.contains_key(name) || next.clusters.contains_key(name)));
        assert!(last.listeners.keys().all(|name| !listeners.contains_key(name) || next.listeners.contains_key(name)));
        for chain in next.listeners.values().flat_map(|listener| chains(&listener.config).cloned().collect::<Vec<_>>())
        {
            assert!(rds_name(&chain).is_none_or(|name| next.routes.contains_key(name)), "listens without routes");
        }
        self.check_clusters(&next);
    }

    /// A cluster that needs nothing else is in force at once, as it is held.
    fn check_clusters(&self, next: &Snapshot) {
        for (name, entry) in self.client.kind(Kind::Cluster).entries() {
            let Resource::Cluster(spec) = &entry.resource else { panic!("{name} is no cluster") };
            let alone = matches!(spec.discovery, Discovery::Static(_) | Discovery::OriginalDst) && spec.tls.is_none();
            if alone {
                assert_eq!(next.clusters.get(name).map(|cluster| cluster.spec()), Some(spec));
            }
        }
    }
}

type Held = BTreeMap<Name, Arc<Any>>;

fn held(client: &Client, kind: Kind) -> Held {
    let entries = client.kind(kind).entries();
    entries.iter().map(|(name, entry)| (Arc::clone(name), Arc::clone(&entry.encoded))).collect()
}

/// Each resource by itself: taken as it came, or refused by its name and nothing of it taken.
fn check_resources(
    kind: Kind,
    received: &[Option<Received>],
    removed: &[String],
    before: &Held,
    after: &Held,
    errors: &[String],
    wanted: impl Fn(&Name) -> bool,
) {
    let both = |item: &Received| item.name.as_ref().is_some_and(|name| removed.contains(name));
    if kind.is_wildcard() {
        let gone =
            removed.iter().filter(|name| !received.iter().flatten().any(|item| item.name.as_ref() == Some(*name)));
        assert!(gone.into_iter().all(|name| !after.contains_key(name.as_str())), "what is removed is gone");
    }
    let mut named: BTreeMap<Name, Vec<&Received>> = BTreeMap::new();
    for item in received.iter().flatten().filter(|item| !both(item)) {
        if let Some(name) = legible(kind, item) {
            named.entry(name).or_default().push(item);
        }
    }
    for (name, items) in named.iter().filter(|(name, _)| wanted(name)) {
        let refused = errors.iter().any(|error| error.starts_with(&format!("{name}: ")));
        let unchanged = after.get(name) == before.get(name);
        let [Received { resource: Some(any), .. }] = items.as_slice() else {
            assert!(unchanged, "{name}: a doubled or empty one changes nothing");
            continue;
        };
        let taken = after.get(name).is_some_and(|held| **held == *any);
        let verdict = stream::check(kind, any, &Options::SERVER);
        let same = before.get(name).is_some_and(|held| **held == *any);
        let alone = matches!(kind, Kind::Cluster | Kind::Endpoints | Kind::Secret);
        match verdict {
            _ if same => assert!(unchanged, "{name}: as before"),
            Err(_) => assert!(refused && unchanged, "{name}: the last good one stays, and is told of: {errors:?}"),
            Ok((resource, _)) if alone && resource.name() == name => assert!(taken, "{name}: {errors:?}"),
            // Its place beside others may be what is wrong with it.
            Ok(_) => assert!(taken || (refused && unchanged), "{name}: {errors:?}"),
        }
    }
}

/// A full answer removes what it does not name, unless it holds something without a legible name.
fn check_removals(kind: Kind, received: &[Option<Received>], before: &Held, after: &Held) {
    let names: Option<Vec<Name>> = received.iter().map(|item| legible(kind, item.as_ref()?)).collect();
    match names {
        Some(names) => {
            let beat = !names.is_empty() && received.iter().flatten().all(|item| item.resource.is_none());
            assert!(beat || after.keys().all(|name| names.contains(name)), "what is not named is gone");
        }
        None => assert!(before.keys().all(|name| after.contains_key(name)), "nothing is taken for removed"),
    }
}

/// The name that a resource goes by, if there is no doubt about it.
fn legible(kind: Kind, item: &Received) -> Option<Name> {
    let wrapper = item.name.as_deref().filter(|name| !name.is_empty()).map(Name::from);
    let Some(any) = &item.resource else { return wrapper };
    if any.type_url != kind.type_url() {
        return None;
    }
    match (name_of(&any.value), wrapper) {
        (Some(name), Some(wrapper)) => (name == wrapper).then_some(name),
        (name, wrapper) => name.or(wrapper),
    }
}

fn name(at: u8) -> String {
    ["a", "b", "c", "d"][usize::from(at % 4)].to_owned()
}

/// A resource in its wrapper: good, changed in one byte, cut, noise, of another kind, under another name, or a heartbeat.
fn made(kind: Kind, (how, at, shape, place, byte): Item) -> Wrapper {
    let mut any = resource(kind, &name(at), shape);
    let mut wrapper = Wrapper { name: name(at), version: shape.to_string(), ..Wrapper::default() };
    match how % 16 {
        10 | 11 => {
            let place = usize::from(place) % any.value.len();
            any.value[place] = byte;
        }
        12 => any.value.truncate(usize::from(place) % any.value.len()),
        13 => any.value = vec![byte, shape, place as u8],
        14 => any.type_url = Kind::ALL[usize::from(byte % 5)].type_url().to_owned(),
        15 if byte % 3 == 0 => wrapper.name = name(byte),
        15 => return wrapper,
        _ => {}
    }
    wrapper.resource = Some(any);
    wrapper
}

/// With or without its wrapper.
fn wrapped(wrapper: Wrapper, how: u8) -> Any {
    match wrapper.resource {
        Some(any) if how & 0x40 == 0 => any,
        _ => Any { type_url: WRAPPER.to_owned(), value: wrapper.encode_to_vec() },
    }
}
