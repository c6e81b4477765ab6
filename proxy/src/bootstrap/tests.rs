use std::path::PathBuf;

use super::*;
use crate::config::{
    cluster::{Discovery, DnsFamily, TcpKeepalive, UpstreamHttp},
    http::RouteSource,
    listener::Terminal,
    route::RouteAction,
    tls::SecretSource,
};

fn read(text: &str) -> Result<Bootstrap, Rejected> {
    parse(Some(text), None, Path::new("/etc/proxy"), &Options::FILE)
}

/// The bootstrap of a recorded OSM sidecar.
fn osm(name: &str) -> String {
    let path = format!("{}/tests/data/osm-golden/01-smi/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let document: Value = serde_saphyr::from_str(&text).unwrap();
    document["bootstrap"][0].to_string()
}

#[test]
fn the_bootstrap_of_osm_works_as_it_is() {
    let b = read(&osm("bookbuyer")).unwrap();
    assert!(b.node.id.ends_with(".sidecar.bookbuyer.bookbuyer.cluster.local"));
    assert!(b.node.metadata.is_none());
    let admin = b.admin.unwrap();
    assert_eq!((admin.address, admin.access_log.len()), ("127.0.0.1:15000".parse().unwrap(), 1));
    let ads = b.ads.unwrap();
    assert_eq!((ads.api, &*ads.cluster, ads.set_node_on_first_message_only), (Api::Grpc, "osm-controller", true));
    let wait = Some(Subscription { initial_fetch_timeout: Duration::from_secs(15) });
    assert_eq!((b.cds, b.lds), (wait, wait));
    let cluster = &b.clusters[0].config;
    let Discovery::LogicalDns(name, dns) = &cluster.discovery else { panic!("{cluster:?}") };
    assert_eq!((&*name.host, name.port), ("osm-controller.osm-system.svc.cluster.local", 15128));
    assert_eq!((dns.family, cluster.http), (DnsFamily::Auto, UpstreamHttp::Http2));
    let seconds = |s| Some(Duration::from_secs(s));
    assert_eq!(cluster.tcp_keepalive, Some(TcpKeepalive { probes: Some(5), time: seconds(60), interval: seconds(5) }));
    let tls = &cluster.tls.as_ref().unwrap().common;
    let file = |name: &str, path| Some(SecretSource::File { name: name.into(), path: PathBuf::from(path) });
    assert_eq!(tls.certificate, file("tls_sds", "/etc/envoy/tls_certificate_sds_secret.yaml"));
    assert_eq!(tls.validation, file("validation_context_sds", "/etc/envoy/validation_context_sds_secret.yaml"));
}

#[test]
fn the_probe_listeners_of_osm_rewrite_paths() {
    let b = read(&osm("echo")).unwrap();
    let names: Vec<&str> = b.listeners.iter().map(|l| &*l.config.name).collect();
    assert_eq!(names, ["liveness_listener", "startup_listener"]);
    let Terminal::Http(http) = &b.listeners[1].config.chains[0].terminal else { panic!("not HTTP") };
    let RouteSource::Inline(table) = &http.routes else { panic!("not in place") };
    let RouteAction::Forward(forward) = &table.virtual_hosts[0].routes[0].action else { panic!("not forwarded") };
    assert_eq!(forward.prefix_rewrite.as_deref(), Some("/start?x=1"));
    assert_eq!(forward.timeout, Some(Duration::from_secs(1)));
}

#[test]
fn bare_words_of_yaml_1_1_are_booleans() {
    let rejected = read("node: {id: n}").unwrap_err();
    assert_eq!(rejected.to_string(), "Bootstrap: node.id: expected a string (in YAML, put it in quotes), got false");
    assert_eq!(read("node: {id: 'n'}").unwrap().node.id, "n");
    let on = r#"
static_resources: {clusters: [{name: c, type: EDS, eds_cluster_config: {eds_config: {ads: {}}}}]}
dynamic_resources: {ads_config: {set_node_on_first_message_only: yes}}"#;
    let rejected = read(on).unwrap_err();
    assert!(!rejected.to_string().contains("set_node_on_first_message_only"), "{rejected}");
}

#[test]
fn what_is_merged_over_replaces_scalars_and_appends_lists() {
    let cluster = |name: &str| format!("{{name: {name}, type: STATIC, load_assignment: {{cluster_name: {name}}}}}");
    let file = format!("node: {{id: a, cluster: k}}\nstatic_resources: {{clusters: [{}]}}", cluster("one"));
    let over = format!("node: {{id: b}}\nstatic_resources: {{clusters: [{}]}}", cluster("two"));
    let b = parse(Some(&file), Some(&over), Path::new("."), &Options::FILE).unwrap();
    assert_eq!((&*b.node.id, &*b.node.cluster), ("b", "k"));
    assert_eq!(b.clusters.iter().map(|c| &*c.config.name).collect::<Vec<_>>(), ["one", "two"]);
}

#[test]
fn every_mistake_is_told_with_its_path() {
    let text = r#"
node: {idd: x}
tracing: {}
static_resources:
  clusters:
  - {name: c, connect_timeout: 0s, outlier_detection: {}}
  listeners:
  - name: l
    address: {socket_address: {address: 0.0.0.0, port_value: 70000}}
"#;
    let options = Options { reject_unknown_fields: false, ..Options::FILE };
    let errors = |options| parse(Some(text), None, Path::new("."), options).unwrap_err().errors;
    assert_eq!(errors(&Options::FILE), ["node.idd: no such field in Node"]);
    assert_eq!(
        errors(&options),
        [
            "static_resources.clusters[0].connect_timeout: seconds must be greater than 0, is 0",
            "static_resources.clusters[0].outlier_detection: not supported",
            "static_resources.listeners[0].address.socket_address.port_value: value must be less than or equal to 65535, \
             is 70000",
            "tracing: not supported",
        ]
    );
}

#[test]
fn inert_fields_in_a_file_are_warned_about() {
    let layers = |keys: &str| {
        read(&format!("node: {{id: x}}\nlayered_runtime: {{layers: [{{name: a, static_layer: {keys}}}]}}"))
    };
    let words = "layered_runtime.layers[0].static_layer: [\"x\"] have no effect: there are no runtime keys";
    assert_eq!(layers("{x: 1, re2.max_program_size.error_level: 7}").unwrap().warnings, [words]);
    assert!(layers("{re2.max_program_size.error_level: 7}").unwrap().warnings.is_empty());
}

#[test]
fn ads_needs_a_static_http2_cluster() {
    let text = |cluster: &str| {
        format!(
            r#"
static_resources: {{clusters: [{cluster}]}}
dynamic_resources:
  ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: c}}}}]}}
  lds_config: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}}"#
        )
    };
    let h2 = r#"{name: c, type: STATIC, load_assignment: {cluster_name: c}, typed_extension_protocol_options:
        {envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
        explicit_http_config: {http2_protocol_options: {}}}}}"#;
    let b = read(&text(h2)).unwrap();
    assert_eq!(b.ads.unwrap().api, Api::DeltaGrpc);
    assert_eq!(b.lds, Some(Subscription { initial_fetch_timeout: Duration::ZERO }));
    let path = "Bootstrap: dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name: ";
    let h1 = "{name: c, type: STATIC, load_assignment: {cluster_name: c}}";
    for (cluster, reason) in [(h1, "\"c\" needs explicit_http_config"), ("", "unknown static cluster \"c\"")] {
        let rejected = read(&text(cluster)).unwrap_err().to_string();
        assert!(rejected.starts_with(&format!("{path}{reason}")), "{rejected}");
    }
}

#[test]
fn secrets_of_a_file_are_read_with_the_files_they_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("tls.crt", "chain"), ("tls.key", "key"), ("ca.crt", "ca")] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let text = r#"
resources:
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: tls_sds
  tls_certificate: {certificate_chain: {filename: tls.crt}, private_key: {filename: tls.key}}
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: validation_context_sds
  validation_context: {trusted_ca: {filename: ca.crt}}
"#;
    let secrets = secrets_file(text, folder.path()).unwrap();
    let Secret::Certificate(pair) = &*secrets[0].1 else { panic!("not a certificate") };
    assert_eq!((&*secrets[0].0, &pair.chain_pem[..], &pair.key_pem[..]), ("tls_sds", &b"chain"[..], &b"key"[..]));
    let Secret::Validation(ca) = &*secrets[1].1 else { panic!("not a CA") };
    assert_eq!(&ca.trusted_ca_pem[..], b"ca");
    let missing = secrets_file(&text.replace("ca.crt", "no.crt"), folder.path()).unwrap_err().to_string();
    assert!(
        missing.starts_with("Secret \"validation_context_sds\": validation_context.trusted_ca.filename: "),
        "{missing}"
    );
}

#[test]
fn routes_in_place_name_static_clusters() {
    let mut document: Value = serde_json::from_str(&osm("echo")).unwrap();
    document["static_resources"]["clusters"].as_array_mut().unwrap().pop();
    let rejected = read(&document.to_string()).unwrap_err().to_string();
    assert_eq!(rejected, "Bootstrap: static_resources.listeners[1]: route: unknown cluster 'startup_cluster'");
}

#[test]
fn text_that_is_no_mapping_is_refused() {
    for (text, reason) in
        [("", "not a mapping"), ("- a", "not a mapping"), ("a: [", "not valid YAML"), ("{\"a\": 1", "YAML")]
    {
        let rejected = read(text).unwrap_err().to_string();
        assert!(rejected.contains(reason), "{text:?}: {rejected}");
        assert!(!rejected.contains('\n'));
    }
}
