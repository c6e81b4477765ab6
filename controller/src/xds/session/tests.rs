//! Scripts of messages, then a seeded random run of both protocols against a model client.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::rpc::Status;

use super::*;

/// A state from `(kind, name, content)`.
fn state(resources: &[(Kind, &str, &str)]) -> Arc<State> {
    let mut state = State::default();
    for (kind, name, content) in resources {
        let added = state.insert(*kind, Resource::new(*kind, *name, content.as_bytes().into()));
        assert!(added, "{name} twice");
    }
    Arc::new(state)
}

fn session(protocol: Protocol, resources: &[(Kind, &str, &str)]) -> Session {
    Session::new(protocol, state(resources), Accepted::default())
}

fn ask(kind: Kind, names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: kind.type_url().into(),
        resource_names: names.iter().map(|n| n.to_string()).collect(),
        response_nonce: nonce.into(),
        node: Some(Node::default()),
        ..Default::default()
    }
}

fn refuse(kind: Kind, names: &[&str], nonce: &str, words: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        error_detail: Some(Status { code: 13, message: words.into(), details: vec![] }),
        ..ask(kind, names, nonce)
    }
}

fn subscribe(kind: Kind, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().into(),
        resource_names_subscribe: names.iter().map(|n| n.to_string()).collect(),
        ..Default::default()
    }
}

fn unsubscribe(kind: Kind, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_unsubscribe: names.iter().map(|n| n.to_string()).collect(),
        ..subscribe(kind, &[])
    }
}

fn delta_answer(kind: Kind, nonce: &str, error: Option<&str>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        response_nonce: nonce.into(),
        error_detail: error.map(|words| Status { code: 13, message: words.into(), details: vec![] }),
        ..subscribe(kind, &[])
    }
}

/// All responses that are due, as `CDS a=1 b=2 -c`; and the nonces.
fn drain(session: &mut Session, now: Instant) -> Vec<(String, String)> {
    std::iter::from_fn(|| session.poll(now)).map(text).collect()
}

fn texts(session: &mut Session, now: Instant) -> Vec<String> {
    drain(session, now).into_iter().map(|(text, _)| text).collect()
}

fn text(message: Message) -> (String, String) {
    let (url, nonce, mut parts) = match message {
        Message::StateOfTheWorld(r) => {
            let body = |any: envoy_types::pb::google::protobuf::Any| String::from_utf8(any.value).unwrap();
            let parts: Vec<String> = r.resources.into_iter().map(body).collect();
            (r.type_url, r.nonce, parts)
        }
        Message::Delta(r) => {
            let body = |r: WireResource| String::from_utf8(r.resource.unwrap().value).unwrap();
            let mut parts: Vec<String> = r.resources.into_iter().map(body).collect();
            parts.extend(r.removed_resources.into_iter().map(|n| format!("-{n}")));
            (r.type_url, r.nonce, parts)
        }
    };
    parts.insert(0, Kind::from_type_url(&url).unwrap().to_string());
    (parts.join(" "), nonce)
}

use Kind::{Cluster as C, Endpoint as E, Listener as L, Route as R, Secret as S};
use Protocol::{Delta, StateOfTheWorld as Sotw};

#[test]
fn a_wildcard_is_answered_in_full_and_an_acceptance_with_silence() {
    let mut s = session(Sotw, &[(C, "a", "a1"), (C, "b", "b1"), (L, "l", "l1")]);
    let now = Instant::now();
    s.on_request(&ask(C, &[], ""), now).unwrap();
    let sent = drain(&mut s, now);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].0, "CDS a1 b1");
    let seen = s.on_request(&ask(C, &[], &sent[0].1), now).unwrap();
    assert_eq!(seen, Seen::Ack(C));
    assert_eq!(texts(&mut s, now), [""; 0]);
}

#[test]
fn only_the_kinds_that_changed_are_sent_again() {
    let mut s = session(Sotw, &[(C, "a", "a1"), (E, "a", "e1"), (L, "l", "l1")]);
    let now = Instant::now();
    for request in [ask(C, &[], ""), ask(E, &["a"], ""), ask(L, &[], "")] {
        s.on_request(&request, now).unwrap();
    }
    assert_eq!(texts(&mut s, now), ["CDS a1", "EDS e1", "LDS l1"]);
    s.set_state(state(&[(C, "a", "a1"), (E, "a", "e2"), (L, "l", "l1")]));
    assert_eq!(texts(&mut s, now), ["EDS e2"]);
    s.set_state(state(&[(C, "a", "a1"), (E, "a", "e2"), (L, "l", "l1")]));
    assert_eq!(texts(&mut s, now), [""; 0]);
}

#[test]
fn a_whole_kind_without_resources_is_answered_and_a_named_kind_is_not() {
    let mut s = session(Sotw, &[]);
    let now = Instant::now();
    for request in [ask(L, &[], ""), ask(C, &[], ""), ask(E, &["x"], "")] {
        s.on_request(&request, now).unwrap();
    }
    assert_eq!(texts(&mut s, now), ["CDS", "LDS"]);
}

#[test]
fn named_kinds_are_never_wildcards() {
    for empty in [vec![], vec!["*"]] {
        let mut s = session(Sotw, &[(E, "a", "e1"), (S, "k", "s1"), (R, "r", "r1")]);
        for kind in [E, S, R] {
            s.on_request(&ask(kind, &empty, ""), Instant::now()).unwrap();
        }
        assert_eq!(texts(&mut s, Instant::now()), [""; 0]);
    }
}

#[test]
fn an_empty_list_after_names_unsubscribes_from_everything() {
    let mut s = session(Sotw, &[(C, "a", "a1"), (C, "b", "b1")]);
    let now = Instant::now();
    s.on_request(&ask(C, &["a"], ""), now).unwrap();
    let sent = drain(&mut s, now);
    assert_eq!(sent[0].0, "CDS a1");
    s.on_request(&ask(C, &[], &sent[0].1), now).unwrap();
    s.set_state(state(&[(C, "a", "a2")]));
    assert_eq!(texts(&mut s, now), [""; 0]);
}

#[test]
fn names_that_grow_before_the_first_answer_was_seen_are_answered() {
    let mut s = session(Sotw, &[(S, "cert", "s1"), (S, "root", "t1")]);
    let now = Instant::now();
    s.on_request(&ask(S, &["cert"], ""), now).unwrap();
    let first = drain(&mut s, now);
    assert_eq!(first[0].0, "SDS s1");
    s.on_request(&ask(S, &["root", "cert"], ""), now).unwrap();
    assert_eq!(texts(&mut s, now), ["SDS t1"]);
    s.on_request(&ask(S, &["root", "cert"], &first[0].1), now).unwrap();
    assert_eq!(texts(&mut s, now), [""; 0]);
}

#[test]
fn a_stale_request_is_not_answered() {
    let mut s = session(Sotw, &[(E, "a", "e1"), (E, "b", "f1")]);
    let now = Instant::now();
    s.on_request(&ask(E, &["a"], ""), now).unwrap();
    let old = drain(&mut s, now).remove(0).1;
    s.set_state(state(&[(E, "a", "e2"), (E, "b", "f1")]));
    let new = drain(&mut s, now).remove(0).1;
    s.on_request(&ask(E, &["a", "b"], &old), now).unwrap();
    assert_eq!(texts(&mut s, now), [""; 0]);
    s.on_request(&ask(E, &["a", "b"], &new), now).unwrap();
    assert_eq!(texts(&mut s, now), ["EDS f1"]);
}

#[test]
fn a_changed_cluster_brings_its_unchanged_endpoints_again() {
    for protocol in [Sotw, Delta] {
        let mut s = session(protocol, &[(C, "a", "a1"), (C, "b", "b1"), (E, "a", "e1"), (E, "b", "f1")]);
        let now = Instant::now();
        start(&mut s, now, &[(C, &[]), (E, &["a", "b"])]);
        assert_eq!(texts(&mut s, now).len(), 2);
        s.set_state(state(&[(C, "a", "a2"), (C, "b", "b1"), (E, "a", "e1"), (E, "b", "f1")]));
        let sent = texts(&mut s, now);
        assert_eq!(sent[1..], ["EDS e1"], "{protocol:?}");
    }
}

/// First requests in either protocol.
fn start(s: &mut Session, now: Instant, wanted: &[(Kind, &[&str])]) {
    for (kind, names) in wanted {
        match s.protocol() {
            Sotw => s.on_request(&ask(*kind, names, ""), now).unwrap(),
            Delta => s.on_delta_request(&subscribe(*kind, names), now).unwrap(),
        };
    }
}

#[test]
fn a_cluster_goes_only_after_the_route_that_named_it_was_replaced() {
    let now = Instant::now();
    let before = [(C, "old", "c-old"), (R, "r", "r-old")];
    let after = [(C, "new", "c-new"), (R, "r", "r-new")];
    for (protocol, expected) in
        [(Sotw, ["CDS c-new c-old", "RDS r-new", "CDS c-new"]), (Delta, ["CDS c-new", "RDS r-new", "CDS -old"])]
    {
        let mut s = session(protocol, &before);
        start(&mut s, now, &[(C, &[]), (R, &["r"])]);
        drain(&mut s, now);
        s.set_state(state(&after));
        let sent = drain(&mut s, now);
        let made: Vec<_> = sent.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(made, expected[..2]);
        // Without a word about the route it goes after a while, with one at once.
        let later = s.wake_at().unwrap();
        assert_eq!(later, now + SWITCH_TIME);
        match protocol {
            Sotw => s.on_request(&ask(R, &["r"], &sent[1].1), now).unwrap(),
            Delta => s.on_delta_request(&delta_answer(R, &sent[1].1, None), now).unwrap(),
        };
        assert_eq!(texts(&mut s, now), expected[2..]);
    }
}

#[test]
fn a_client_that_says_nothing_about_routes_loses_old_clusters_all_the_same() {
    let now = Instant::now();
    let mut s = session(Delta, &[(C, "old", "c"), (R, "r", "r1")]);
    start(&mut s, now, &[(C, &[]), (R, &["r"])]);
    drain(&mut s, now);
    s.set_state(state(&[(R, "r", "r2")]));
    assert_eq!(texts(&mut s, now), ["RDS r2"]);
    assert_eq!(texts(&mut s, now + SWITCH_TIME), ["CDS -old"]);
}

#[test]
fn a_refused_cluster_is_left_out_and_the_last_good_one_put_in_its_place() {
    let now = Instant::now();
    let mut s = session(Sotw, &[(C, "a", "a1"), (C, "b", "b1")]);
    s.on_request(&ask(C, &[], ""), now).unwrap();
    let nonce = drain(&mut s, now).remove(0).1;
    s.on_request(&ask(C, &[], &nonce), now).unwrap();
    s.set_state(state(&[(C, "a", "a2-bad"), (C, "b", "b1"), (C, "n", "n1-bad"), (C, "o", "o1")]));
    let nonce = drain(&mut s, now).remove(0).1;
    let words = "Error adding/updating cluster(s) a: no, n: no";
    let seen = s.on_request(&refuse(C, &[], &nonce, words), now).unwrap();
    assert_eq!(seen, Seen::Nack(C, words.into()));
    assert_eq!(texts(&mut s, now), ["CDS a1 b1 o1"]);

    let report = s.report().remove(0);
    let names: Vec<_> = report.refused.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["a", "n"]);
    assert_eq!(report.last_error.as_deref(), Some(words));

    // The same versions are not tried again, others are.
    s.set_state(state(&[(C, "a", "a2-bad"), (C, "b", "b1"), (C, "n", "n2"), (C, "o", "o1")]));
    assert_eq!(texts(&mut s, now), ["CDS a1 b1 n2 o1"]);
}

#[test]
fn a_refused_new_cluster_is_named_as_removed_in_delta() {
    let now = Instant::now();
    let mut s = session(Delta, &[(C, "a", "a1-bad"), (C, "b", "b1")]);
    start(&mut s, now, &[(C, &[])]);
    let nonce = drain(&mut s, now).remove(0).1;
    s.on_delta_request(&delta_answer(C, &nonce, Some("cluster 'a' is bad")), now).unwrap();
    assert_eq!(texts(&mut s, now), ["CDS b1 -a"]);
}

#[test]
fn a_refusal_that_names_nothing_holds_back_all_that_was_new() {
    let now = Instant::now();
    let mut s = session(Delta, &[(R, "r", "r1"), (R, "q", "q1")]);
    start(&mut s, now, &[(R, &["r", "q"])]);
    let nonce = drain(&mut s, now).remove(0).1;
    s.on_delta_request(&delta_answer(R, &nonce, None), now).unwrap();
    s.set_state(state(&[(R, "r", "r2"), (R, "q", "q1")]));
    let nonce = drain(&mut s, now).remove(0).1;
    s.on_delta_request(&delta_answer(R, &nonce, Some("no")), now).unwrap();
    assert_eq!(texts(&mut s, now), ["RDS r1"]);
    assert_eq!(s.report()[0].refused[0].name, "r");
}

#[test]
fn a_client_that_refuses_everything_gets_one_response_in_ten_seconds() {
    let t0 = Instant::now();
    let mut s = session(Sotw, &[(C, "a", "a0")]);
    s.on_request(&ask(C, &[], ""), t0).unwrap();
    let mut sent = 0;
    for tenth in 0..1200u32 {
        let now = t0 + Duration::from_millis(100) * tenth;
        for (_, nonce) in drain(&mut s, now) {
            sent += 1;
            s.on_request(&refuse(C, &[], &nonce, "a: no"), now).unwrap();
        }
        s.set_state(state(&[(C, "a", &format!("a{tenth}"))]));
    }
    assert!((12..=14).contains(&sent), "{sent}");
}

#[test]
fn a_client_that_withholds_its_answer_about_clusters_is_helped_out_once() {
    let t0 = Instant::now();
    for (protocol, retreat, again) in [(Sotw, "CDS a1", "CDS a1 n1"), (Delta, "CDS -n -odd", "CDS n1")] {
        let mut s = session(protocol, &[(C, "a", "a1")]);
        start(&mut s, t0, &[(C, &[])]);
        let nonce = drain(&mut s, t0).remove(0).1;
        answer(&mut s, C, &nonce, None);
        s.set_state(state(&[(C, "a", "a1"), (C, "n", "n1"), (C, "odd", "odd1")]));
        drain(&mut s, t0);
        let later = s.wake_at().unwrap();
        assert_eq!(later, t0 + Duration::from_secs(45));
        let sent = drain(&mut s, later);
        assert_eq!(sent[0].0, retreat, "{protocol:?}");
        // Now it can speak: late words with the newest nonce.
        answer(&mut s, C, &sent[0].1, Some("Error adding/updating cluster(s) odd: no"));
        let sent = drain(&mut s, later);
        assert_eq!(sent[0].0, again, "{protocol:?}");
        assert_eq!(s.report()[0].refused[0].name, "odd");
        answer(&mut s, C, &sent[0].1, None);
        assert_eq!(texts(&mut s, later + Duration::from_secs(100)), [""; 0]);
    }
}

#[test]
fn nothing_is_taken_back_twice_or_from_a_client_that_accepted_nothing() {
    let t0 = Instant::now();
    let mut s = session(Sotw, &[(C, "a", "a1")]);
    start(&mut s, t0, &[(C, &[])]);
    let nonce = drain(&mut s, t0).remove(0).1;
    assert_eq!(texts(&mut s, t0 + Duration::from_secs(100)), [""; 0]);
    answer(&mut s, C, &nonce, None);
    s.set_state(state(&[(C, "a", "a1"), (C, "b", "b1")]));
    assert_eq!(texts(&mut s, t0), ["CDS a1 b1"]);
    let later = t0 + Duration::from_secs(45);
    let nonce = drain(&mut s, later).remove(0).1;
    answer(&mut s, C, &nonce, None);
    assert_eq!(texts(&mut s, later), ["CDS a1 b1"]);
    assert_eq!(texts(&mut s, later + Duration::from_secs(100)), [""; 0]);
}

fn answer(s: &mut Session, kind: Kind, nonce: &str, error: Option<&str>) {
    let now = Instant::now();
    match (s.protocol(), error) {
        (Sotw, None) => s.on_request(&ask(kind, &[], nonce), now).unwrap(),
        (Sotw, Some(words)) => s.on_request(&refuse(kind, &[], nonce, words), now).unwrap(),
        (Delta, _) => s.on_delta_request(&delta_answer(kind, nonce, error), now).unwrap(),
    };
}

#[test]
fn good_words_after_refusals_end_the_holding_back() {
    let now = Instant::now();
    let mut s = session(Sotw, &[(C, "a", "a0")]);
    s.on_request(&ask(C, &[], ""), now).unwrap();
    let nonce = drain(&mut s, now).remove(0).1;
    s.on_request(&refuse(C, &[], &nonce, "a: no"), now).unwrap();
    let nonce = drain(&mut s, now).remove(0).1;
    s.on_request(&ask(C, &[], &nonce), now).unwrap();
    s.set_state(state(&[(C, "a", "a1")]));
    assert_eq!(texts(&mut s, now), ["CDS a1"]);
}

#[test]
fn a_client_that_asks_for_listeners_only_gets_clusters_unasked() {
    for protocol in [Sotw, Delta] {
        let now = Instant::now();
        let mut s = session(protocol, &[(C, "a", "a1"), (L, "l", "l1")]);
        start(&mut s, now, &[(L, &[])]);
        assert_eq!(texts(&mut s, now), ["LDS l1"]);
        assert_eq!(s.wake_at(), Some(now + SILENCE));
        let sent = drain(&mut s, now + SILENCE);
        assert_eq!(sent[0].0, "CDS a1");
        match protocol {
            Sotw => s.on_request(&ask(C, &[], &sent[0].1), now).unwrap(),
            Delta => s.on_delta_request(&delta_answer(C, &sent[0].1, None), now).unwrap(),
        };
        assert_eq!(texts(&mut s, now + SILENCE), [""; 0]);
    }
}

#[test]
fn a_client_that_asks_for_clusters_in_time_gets_nothing_unasked() {
    let now = Instant::now();
    let mut s = session(Sotw, &[(C, "a", "a1"), (L, "l", "l1")]);
    start(&mut s, now, &[(L, &[])]);
    drain(&mut s, now);
    start(&mut s, now + Duration::from_secs(4), &[(C, &[])]);
    assert_eq!(texts(&mut s, now + Duration::from_secs(4)), ["CDS a1"]);
    assert_eq!(texts(&mut s, now + Duration::from_secs(6)), [""; 0]);
}

#[test]
fn delta_answers_every_name_that_is_subscribed() {
    let now = Instant::now();
    let mut s = session(Delta, &[(E, "a", "e1")]);
    start(&mut s, now, &[(E, &["a", "x"])]);
    assert_eq!(texts(&mut s, now), ["EDS e1 -x"]);
    start(&mut s, now, &[(E, &["a"])]);
    assert_eq!(texts(&mut s, now), ["EDS e1"]);
    s.on_delta_request(&unsubscribe(E, &["a"]), now).unwrap();
    s.set_state(state(&[(E, "a", "e2")]));
    assert_eq!(texts(&mut s, now), [""; 0]);
}

#[test]
fn delta_honours_what_a_client_already_holds() {
    let now = Instant::now();
    let mut s = session(Delta, &[(C, "a", "a1"), (C, "b", "b2"), (E, "a", "e1")]);
    let version = |kind, name: &str| state_of(&s, kind, name);
    let mut first = subscribe(C, &[]);
    for (name, version) in [("a", version(C, "a")), ("b", "old".into()), ("gone", "old".into())] {
        first.initial_resource_versions.insert(name.into(), version);
    }
    let mut endpoints = subscribe(E, &["a"]);
    let version = version(E, "a");
    endpoints.initial_resource_versions.insert("a".into(), version);
    s.on_delta_request(&first, now).unwrap();
    s.on_delta_request(&endpoints, now).unwrap();
    assert_eq!(texts(&mut s, now), ["CDS b2", "CDS -gone"]);
}

fn state_of(s: &Session, kind: Kind, name: &str) -> String {
    s.state().of(kind)[name].version.to_string()
}

#[test]
fn an_empty_delta_wildcard_is_answered() {
    let now = Instant::now();
    let mut s = session(Delta, &[]);
    start(&mut s, now, &[(C, &[]), (L, &["*"]), (R, &[])]);
    assert_eq!(texts(&mut s, now), ["CDS", "LDS"]);
}

#[test]
fn a_name_unsubscribed_under_a_wildcard_is_sent_or_removed() {
    let now = Instant::now();
    let mut s = session(Delta, &[(C, "a", "a1")]);
    start(&mut s, now, &[(C, &["*", "a", "x"])]);
    assert_eq!(texts(&mut s, now), ["CDS a1 -x"]);
    s.on_delta_request(&unsubscribe(C, &["a", "x"]), now).unwrap();
    assert_eq!(texts(&mut s, now), ["CDS a1 -x"]);
    s.on_delta_request(&unsubscribe(C, &["*"]), now).unwrap();
    s.set_state(state(&[(C, "a", "a2")]));
    assert_eq!(texts(&mut s, now), [""; 0]);
}

#[test]
fn unknown_kinds_are_ignored() {
    let mut s = session(Sotw, &[]);
    let odd = DiscoveryRequest { type_url: String::new(), response_nonce: "1".into(), ..Default::default() };
    let seen = s.on_request(&odd, Instant::now()).unwrap();
    assert_eq!(seen, Seen::Ignored(String::new()));
    assert_eq!(texts(&mut s, Instant::now()), [""; 0]);
}

#[test]
fn a_client_cannot_subscribe_to_names_without_bound() {
    let names: Vec<String> = (0..70_000).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut s = session(Sotw, &[]);
    let refusal = s.on_request(&ask(E, &names, ""), Instant::now());
    assert!(matches!(refusal, Err(Refusal::TooManyNames { .. })));
    let mut s = session(Delta, &[]);
    let refusal = s.on_delta_request(&subscribe(E, &names), Instant::now());
    assert!(matches!(refusal, Err(Refusal::TooManyNames { .. })));
}

#[test]
fn what_was_accepted_on_one_stream_is_the_fallback_on_the_next() {
    let now = Instant::now();
    let mut s = session(Sotw, &[(C, "a", "a1")]);
    s.on_request(&ask(C, &[], ""), now).unwrap();
    let nonce = drain(&mut s, now).remove(0).1;
    s.on_request(&ask(C, &[], &nonce), now).unwrap();
    let mut next = Session::new(Sotw, state(&[(C, "a", "a2")]), s.into_accepted());
    next.on_request(&ask(C, &[], ""), now).unwrap();
    let nonce = drain(&mut next, now).remove(0).1;
    next.on_request(&refuse(C, &[], &nonce, "a: no"), now).unwrap();
    assert_eq!(texts(&mut next, now), ["CDS a1"]);
}

/// A client that behaves as the protocol says, over a wire with delays, and refuses what its
/// `poison` says.
struct Client {
    protocol: Protocol,
    wire: VecDeque<Message>,
    held: [BTreeMap<String, String>; 5],
    names: [BTreeSet<String>; 5],
    nonces: BTreeSet<String>,
    latest: [String; 5],
    /// Routes that were gone for a time, so that nothing kept their clusters, with the number of
    /// the last response before that.
    loose: BTreeMap<String, u64>,
    poison: bool,
}

impl Client {
    fn wildcard(kind: Kind) -> bool {
        kind.is_whole()
    }

    /// Takes one message off the wire and returns the answer to it.
    fn read(&mut self, s: &mut Session, now: Instant) {
        match self.wire.pop_front() {
            None => {}
            Some(Message::StateOfTheWorld(r)) => {
                let kind = Kind::from_type_url(&r.type_url).unwrap();
                assert!(self.nonces.insert(r.nonce.clone()), "nonce twice");
                let got: Vec<(String, String)> = r.resources.iter().map(split).collect();
                let error = self.apply(kind, got, &[], &r.nonce);
                self.latest[kind.index()] = r.nonce.clone();
                let names: Vec<&str> = self.names[kind.index()].iter().map(|n| n.as_str()).collect();
                let names = if Self::wildcard(kind) { vec![] } else { names };
                let answer = match &error {
                    None => ask(kind, &names, &r.nonce),
                    Some(words) => refuse(kind, &names, &r.nonce, words),
                };
                s.on_request(&answer, now).unwrap();
            }
            Some(Message::Delta(r)) => {
                let kind = Kind::from_type_url(&r.type_url).unwrap();
                assert!(self.nonces.insert(r.nonce.clone()), "nonce twice");
                let body = |r: &WireResource| split(r.resource.as_ref().unwrap());
                let got: Vec<_> = r.resources.iter().map(body).collect();
                for (name, _) in &got {
                    assert!(!r.removed_resources.contains(name), "sent and removed");
                }
                let error = self.apply(kind, got, &r.removed_resources, &r.nonce);
                let answer = delta_answer(kind, &r.nonce, error.as_deref());
                s.on_delta_request(&answer, now).unwrap();
            }
        }
    }

    fn apply(&mut self, kind: Kind, got: Vec<(String, String)>, removed: &[String], nonce: &str) -> Option<String> {
        let number: u64 = nonce.parse().unwrap();
        let whole = self.protocol == Sotw && kind.is_whole();
        let held = &mut self.held[kind.index()];
        let names: BTreeSet<String> = got.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names.len(), got.len(), "a name twice");
        if whole {
            held.retain(|name, _| names.contains(name));
        }
        for name in removed {
            held.remove(name);
        }
        let mut bad = vec![];
        for (name, content) in got {
            if !Self::wildcard(kind) && !self.names[kind.index()].contains(&name) {
                continue; // dropped while this was on its way
            }
            if self.poison && content.contains("bad") {
                bad.push(name);
            } else {
                if kind == R && self.loose.get(&name).is_some_and(|before| *before < number) {
                    self.loose.remove(&name);
                }
                held.insert(name, content);
            }
        }
        (!bad.is_empty()).then(|| format!("refused: {}", bad.join(", ")))
    }
}

/// Content is `name@anything`.
fn split(any: &envoy_types::pb::google::protobuf::Any) -> (String, String) {
    let content = String::from_utf8(any.value.clone()).unwrap();
    (content.split('@').next().unwrap().to_owned(), content)
}

/// A random state: routes name clusters that are there.
fn random_state(random: &mut fastrand::Rng, poison: bool) -> Arc<State> {
    let mut resources: Vec<(Kind, String, String)> = vec![];
    let clusters: Vec<String> = (0..6).filter(|_| random.bool()).map(|n| format!("n{n}")).collect();
    let content = |name: &str, random: &mut fastrand::Rng| {
        let bad = poison && random.u8(0..5) == 0;
        format!("{name}@{}{}", random.u8(0..3), if bad { "bad" } else { "" })
    };
    for name in &clusters {
        resources.push((C, name.clone(), content(name, random)));
        if random.u8(0..4) > 0 {
            resources.push((E, name.clone(), content(name, random)));
        }
    }
    for n in 0..4 {
        let name = format!("n{n}");
        if !clusters.is_empty() && random.bool() {
            let cluster = &clusters[random.usize(..clusters.len())];
            resources.push((R, name.clone(), format!("{}@{cluster}", content(&name, random))));
        }
        for kind in [L, S] {
            if random.bool() {
                resources.push((kind, name.clone(), content(&name, random)));
            }
        }
    }
    let borrowed: Vec<_> = resources.iter().map(|(k, n, c)| (*k, n.as_str(), c.as_str())).collect();
    state(&borrowed)
}

/// Runs a session with random states, subscriptions and delays, then lets it come to rest.
fn random_run(seed: u64, protocol: Protocol, poison: bool) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut now = Instant::now();
    let mut s = Session::new(protocol, random_state(&mut random, poison), Accepted::default());
    let mut client = Client {
        protocol,
        wire: VecDeque::new(),
        held: Default::default(),
        names: Default::default(),
        nonces: BTreeSet::new(),
        latest: Default::default(),
        loose: BTreeMap::new(),
        poison,
    };
    for kind in [C, L] {
        start(&mut s, now, &[(kind, &[])]);
    }
    for _ in 0..200 {
        now += Duration::from_millis(random.u64(0..20));
        match random.u8(0..6) {
            0 => {
                s.set_state(random_state(&mut random, poison));
                let routes = s.state().of(R);
                let names = (0..4).map(|n| format!("n{n}"));
                let gone = names.filter(|name| !routes.contains_key(name.as_str()));
                client.loose.extend(gone.map(|name| (name, s.nonces)));
            }
            1 => change_names(&mut random, &mut s, &mut client, now),
            2 | 3 => client.wire.extend(s.poll(now)),
            _ => client.read(&mut s, now),
        }
        if !poison {
            routes_have_their_clusters(&client, seed);
        }
    }
    for _ in 0..400 {
        let next = s.poll(now);
        if next.is_none() && client.wire.is_empty() {
            now += Duration::from_secs(1);
        }
        client.wire.extend(next);
        client.read(&mut s, now);
        if !poison {
            routes_have_their_clusters(&client, seed);
        }
    }
    let rest = (client.wire.len(), s.poll(now).map(text));
    assert_eq!(rest, (0, None), "{seed}: not at rest, {protocol:?} {poison}");
    assert_eq!(s.wake_at(), None, "{seed}: not at rest");
    client_holds_the_state(&client, &s, seed);
}

/// Subscribes to or drops a random name of a named kind.
fn change_names(random: &mut fastrand::Rng, s: &mut Session, client: &mut Client, now: Instant) {
    let kind = [E, R, S][random.usize(..3)];
    let name = format!("n{}", random.u8(0..6));
    let names = &mut client.names[kind.index()];
    if kind == R && !client.poison && names.contains(&name) {
        return; // a route that is dropped and taken again may miss its cluster for a moment
    }
    let dropped = names.remove(&name);
    if dropped {
        client.held[kind.index()].remove(&name);
    } else {
        names.insert(name.clone());
    }
    match client.protocol {
        Delta if dropped => s.on_delta_request(&unsubscribe(kind, &[&name]), now).unwrap(),
        Delta => s.on_delta_request(&subscribe(kind, &[&name]), now).unwrap(),
        Sotw => {
            let names: Vec<&str> = names.iter().map(|n| n.as_str()).collect();
            let nonce = client.latest[kind.index()].clone();
            s.on_request(&ask(kind, &names, &nonce), now).unwrap()
        }
    };
}

/// Holds while the client answers within the time that removals wait for it.
fn routes_have_their_clusters(client: &Client, seed: u64) {
    for (name, content) in &client.held[R.index()] {
        if client.loose.contains_key(name) {
            continue;
        }
        let cluster = content.split('@').nth(2).unwrap();
        // A route that was subscribed before the first clusters came says nothing.
        if !client.held[C.index()].is_empty() {
            assert!(client.held[C.index()].contains_key(cluster), "{seed}: {content}");
        }
    }
}

fn client_holds_the_state(client: &Client, s: &Session, seed: u64) {
    for kind in Kind::ALL {
        let held = &client.held[kind.index()];
        for resource in s.state().of(kind).values() {
            let name = resource.name.as_ref();
            let covered = Client::wildcard(kind) || client.names[kind.index()].contains(name);
            let wanted = String::from_utf8(resource.body.value.clone()).unwrap();
            let is_bad = client.poison && wanted.contains("bad");
            match held.get(name) {
                Some(content) if covered && !is_bad => assert_eq!(*content, wanted, "{seed} {kind}"),
                Some(content) if covered => assert!(!content.contains("bad"), "{seed} {kind}"),
                Some(_) => panic!("{seed}: {kind} {name} is held but not subscribed"),
                None => assert!(!covered || is_bad, "{seed}: {kind} {name} is missing"),
            }
        }
        let is_gone = |name: &String| !s.state().of(kind).contains_key(name.as_str());
        // State of the world can't tell a client that a named resource is gone.
        if kind.is_whole() || client.protocol == Delta {
            assert!(!held.keys().any(is_gone), "{seed}: {kind} keeps what is gone");
        }
    }
}

#[test]
fn any_order_of_events_ends_with_a_client_that_holds_its_state() {
    for seed in 0..150 {
        for protocol in [Sotw, Delta] {
            random_run(seed, protocol, false);
            random_run(seed, protocol, true);
        }
    }
}
