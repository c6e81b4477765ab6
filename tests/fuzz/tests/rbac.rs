//! Access control: the decision of converted rules is that of a plain reading of what was written.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use bolero::check;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use oxmesh_proxy::{
    config::{
        http::HttpFilterKind,
        listener::Terminal,
        rbac::{PeerNames, Rbac, View},
        route::RequestView,
    },
    xds::{
        convert::{Options, Resource},
        json,
        kind::Kind,
        stream,
    },
};
use serde_json::{Map, Value, json};

use crate::resources::ext;

#[test]
fn rules_decide_as_they_read() {
    check!().with_iterations(500).with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(rules, request)| {
        let rules = policies(&mut Source(rules));
        let request = Asked::from(&mut Source(request));
        for action in ["ALLOW", "DENY"] {
            let compiled = converted(&json!({"action": action, "policies": rules}));
            let view = RequestView {
                method: &Method::GET,
                authority: "store",
                path: request.path,
                query: None,
                scheme: "http",
                headers: &request.headers,
            };
            let names: Vec<String> = request.names.iter().map(|name| (*name).to_owned()).collect();
            let tls = request.tls.then_some(PeerNames { uri_sans: &names, dns_sans: &[], subject: None });
            let (peer, destination) = (request.peer, request.destination);
            let view = View { request: Some(&view), peer, destination, server_name: request.server_name, tls };
            let verdict = compiled.decide(&view);
            let every = action == "ALLOW";
            let matching = rules.as_object().expect("made so").iter().find(|(_, policy)| request.fits(policy, every));
            assert_eq!(verdict.policy, matching.map(|(name, _)| name.as_str()), "{rules:#} {request:?}");
            assert_eq!(verdict.allowed, matching.is_some() == every, "{action} {rules:#} {request:?}");
        }
    });
}

fn converted(rules: &Value) -> Arc<Rbac> {
    let filter = |name: &str, config: Value| json!({"name": name, "typed_config": config});
    let access = filter("rbac", ext("filters.http.rbac.v3.RBAC", json!({"rules": rules})));
    let router = filter("router", ext("filters.http.router.v3.Router", json!({})));
    let table = json!({"name": "r", "virtual_hosts": []});
    let manager = json!({"stat_prefix": "s", "route_config": table, "http_filters": [access, router]});
    let manager = ext("filters.network.http_connection_manager.v3.HttpConnectionManager", manager);
    let listener = json!({
        "@type": Kind::Listener.type_url(),
        "name": "l",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
        "filter_chains": [{"filters": [filter("http", manager)]}],
    });
    let any = json::read(&listener).unwrap_or_else(|e| panic!("{e:?}: {rules:#}"));
    let (resource, _) =
        stream::check(Kind::Listener, &any, &Options::SERVER).unwrap_or_else(|e| panic!("{e}: {rules:#}"));
    let Resource::Listener(listener) = resource else { panic!("not a listener") };
    let Terminal::Http(manager) = &listener.chains[0].terminal else { panic!("not HTTP") };
    let HttpFilterKind::Rbac(Some(rules)) = &manager.filters[0].kind else { panic!("no rules") };
    Arc::clone(rules)
}

/// Decisions drawn from random bytes; zeros when they are used up.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }
}

const TEXTS: [&str; 6] = ["foo", "Foo", "/a", "/a/b", "spiffe://mesh/a", "22"];
const HEADERS: [&str; 2] = ["x-a", "x-b"];
const NETWORKS: [(&str, u8); 4] = [("10.0.0.0", 8), ("10.1.2.3", 32), ("::1", 128), ("0.0.0.0", 0)];
const PORTS: [u16; 2] = [80, 443];

fn policies(source: &mut Source<'_>) -> Value {
    let mut all = Map::new();
    for name in &["p0", "p1", "p2"][..usize::from(source.byte() % 3) + 1] {
        let permissions: Vec<Value> = (0..=source.byte() % 2).map(|_| rule(source, 3, true)).collect();
        let principals: Vec<Value> = (0..=source.byte() % 2).map(|_| rule(source, 3, false)).collect();
        all.insert((*name).to_owned(), json!({"permissions": permissions, "principals": principals}));
    }
    all.into()
}

/// A permission, or else a principal.
fn rule(source: &mut Source<'_>, depth: u8, permission: bool) -> Value {
    let (and, or, not, list) = words(permission);
    let kind = source.byte() % 9;
    let several = |source: &mut Source<'_>| -> Vec<Value> {
        (0..=source.byte() % 2).map(|_| rule(source, depth - 1, permission)).collect()
    };
    match kind {
        0 if depth > 0 => json!({and: {list: several(source)}}),
        1 if depth > 0 => json!({or: {list: several(source)}}),
        2 | 3 if depth > 0 => json!({not: rule(source, depth - 1, permission)}),
        4 => json!({"header": header(source)}),
        5 => json!({"url_path": {"path": text(source)}}),
        6 => {
            let (prefix, length) = source.one(&NETWORKS);
            let network = json!({"address_prefix": prefix, "prefix_len": length});
            match (permission, source.flag()) {
                (true, _) => json!({"destination_ip": network}),
                (false, true) => json!({"direct_remote_ip": network}),
                (false, false) => json!({"remote_ip": network}),
            }
        }
        7 if permission => json!({"destination_port": source.one(&PORTS)}),
        8 if permission => json!({"requested_server_name": text(source)}),
        7 => json!({"authenticated": {"principal_name": text(source)}}),
        8 => json!({"authenticated": {}}),
        _ => json!({"any": true}),
    }
}

fn words(permission: bool) -> (&'static str, &'static str, &'static str, &'static str) {
    if permission { ("and_rules", "or_rules", "not_rule", "rules") } else { ("and_ids", "or_ids", "not_id", "ids") }
}

fn text(source: &mut Source<'_>) -> Value {
    let kind = source.one(&["exact", "prefix", "suffix", "contains"]);
    let text = source.one(&TEXTS);
    let from = usize::from(source.byte()) % text.len();
    json!({kind: &text[from..], "ignore_case": source.flag()})
}

fn header(source: &mut Source<'_>) -> Value {
    let mut matcher = json!({
        "name": source.one(&HEADERS),
        "invert_match": source.flag(),
        "treat_missing_header_as_empty": source.flag(),
    });
    match source.byte() % 3 {
        0 => matcher["present_match"] = json!(source.flag()),
        1 => matcher["range_match"] = json!({"start": 1, "end": 1 + i32::from(source.byte())}),
        _ => matcher["string_match"] = text(source),
    }
    matcher
}

/// A request and its connection.
#[derive(Debug)]
struct Asked {
    path: &'static str,
    headers: HeaderMap,
    /// The same, as the plain reading looks at them.
    lines: BTreeMap<&'static str, Vec<&'static str>>,
    peer: SocketAddr,
    destination: SocketAddr,
    server_name: Option<&'static str>,
    tls: bool,
    names: Vec<&'static str>,
}

impl Asked {
    fn from(source: &mut Source<'_>) -> Self {
        let (mut headers, mut lines) = (HeaderMap::new(), BTreeMap::<_, Vec<_>>::new());
        for name in HEADERS {
            for _ in 0..source.byte() % 3 {
                let value = source.one(&["foo", "FOO", "22", "7", "", "/a/b"]);
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
                lines.entry(name).or_default().push(value);
            }
        }
        let mut address = || {
            let ip = source.one(&["10.1.2.3", "10.9.9.9", "[::1]", "[::ffff:10.1.2.3]", "192.168.0.1"]);
            format!("{ip}:{}", source.one(&PORTS)).parse().expect("an address")
        };
        let (peer, destination) = (address(), address());
        Self {
            headers,
            lines,
            peer,
            destination,
            path: source.one(&["/", "/a", "/a/b", "/A/foo", "/22"]),
            server_name: source.flag().then(|| source.one(&["foo", "FOO.b"])),
            tls: source.flag(),
            names: (0..source.byte() % 3)
                .map(|_| source.one(&["spiffe://mesh/a", "spiffe://mesh/ab", "Foo"]))
                .collect(),
        }
    }

    fn fits(&self, policy: &Value, every: bool) -> bool {
        let any = |list: &Value, permission| {
            list.as_array().expect("a list").iter().any(|r| self.holds(r, permission, every))
        };
        any(&policy["permissions"], true) && any(&policy["principals"], false)
    }

    /// `every`: of a header's lines each must match; else one is enough. A negation turns that round.
    fn holds(&self, rule: &Value, permission: bool, every: bool) -> bool {
        let (and, or, not, list) = words(permission);
        let (key, value) = rule.as_object().and_then(|rule| rule.iter().next()).expect("one key");
        let rules = || value[list].as_array().expect("a list").iter();
        match key.as_str() {
            "any" => true,
            key if key == and => rules().all(|rule| self.holds(rule, permission, every)),
            key if key == or => rules().any(|rule| self.holds(rule, permission, every)),
            key if key == not => !self.holds(value, permission, !every),
            "header" => self.header_holds(value, every),
            "url_path" => reads(&value["path"], self.path),
            "destination_ip" => inside(value, self.destination),
            "direct_remote_ip" | "remote_ip" => inside(value, self.peer),
            "destination_port" => value == self.destination.port(),
            "requested_server_name" => reads(value, self.server_name.unwrap_or_default()),
            "authenticated" => match value.get("principal_name") {
                Some(name) => self.tls && self.names.iter().any(|n| reads(name, n)),
                None => self.tls,
            },
            key => panic!("{key}"),
        }
    }

    fn header_holds(&self, matcher: &Value, every: bool) -> bool {
        let flag = |name: &str| matcher[name].as_bool().unwrap_or_default();
        let (invert, as_empty) = (flag("invert_match"), flag("treat_missing_header_as_empty"));
        let lines = self.lines.get(matcher["name"].as_str().expect("a name"));
        if let Some(present) = matcher.get("present_match") {
            return (lines.is_some() == *present) != invert;
        }
        let hit = |value: &&str| match matcher.get("range_match") {
            Some(range) => {
                value.parse().is_ok_and(|n: i64| range["start"].as_i64() <= Some(n) && Some(n) < range["end"].as_i64())
            }
            None => reads(&matcher["string_match"], value),
        };
        match lines {
            None if as_empty => hit(&"") != invert,
            None => false,
            // Inverted, "each line" means that each must not match.
            Some(lines) if every => lines.iter().all(|line| hit(line) != invert),
            Some(lines) => lines.iter().any(|line| hit(line) != invert),
        }
    }
}

fn reads(matcher: &Value, value: &str) -> bool {
    let fold = |text: &str| if matcher["ignore_case"] == true { text.to_ascii_lowercase() } else { text.to_owned() };
    let value = fold(value);
    let operand = |key: &str| matcher.get(key).and_then(Value::as_str).map(fold);
    operand("exact").is_some_and(|s| value == s)
        || operand("prefix").is_some_and(|s| value.starts_with(&s))
        || operand("suffix").is_some_and(|s| value.ends_with(&s))
        || operand("contains").is_some_and(|s| value.contains(&s))
}

/// By the bits of the address; IPv4 in IPv6 is IPv4.
fn inside(network: &Value, address: SocketAddr) -> bool {
    let bits = |ip: std::net::IpAddr| match ip.to_canonical() {
        std::net::IpAddr::V4(ip) => (32, u128::from(u32::from(ip))),
        std::net::IpAddr::V6(ip) => (128, u128::from(ip)),
    };
    let (width, value) = bits(address.ip());
    let (base_width, base) = bits(network["address_prefix"].as_str().and_then(|s| s.parse().ok()).expect("an address"));
    let length = network["prefix_len"].as_u64().expect("a length") as u32;
    width == base_width && (length == 0 || (value ^ base) >> (width - length) == 0)
}
