//! The bootstrap message: static resources, the admin interface, where dynamic resources come from.

use std::{collections::HashSet, path::Path, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            bootstrap::v3::{
                Admin as InAdmin, Bootstrap as InBootstrap, LayeredRuntime,
                bootstrap::{DynamicResources, StaticResources},
                runtime_layer::LayerSpecifier,
            },
            core::v3::{
                ApiConfigSource, ConfigSource, api_config_source::ApiType, config_source::ConfigSourceSpecifier,
                grpc_service::TargetSpecifier,
            },
        },
        service::discovery::v3::DiscoveryResponse,
    },
    google::protobuf::Any,
};
use prost::Message as _;

use super::{
    CLUSTER, LISTENER, Options, Rejected, Resource, SECRET, access_log, cluster, context::Cx, listener, resource_in,
    tls,
};
use crate::{
    bootstrap::{Admin, Ads, Api, Bootstrap, Static, Subscription},
    config::{
        Name,
        cluster::{ClusterSpec, Discovery, UpstreamHttp},
        listener::Listener,
        tls::{CommonTls, Secret, SecretSource},
    },
    xds::{
        path::{At, Report},
        walk,
    },
};

/// Type URL of the bootstrap.
const BOOTSTRAP: &str = "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap";
const RE2_BOUNDS: &str = "re2.max_program_size.";
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Converts an encoded bootstrap; relative file names are taken from `base`.
pub(crate) fn bootstrap(bytes: Vec<u8>, options: &Options, base: &Path) -> Result<Bootstrap, Rejected> {
    let mut report = Report::default();
    walk::walk("envoy.config.bootstrap.v3.Bootstrap", &bytes, options, &mut report);
    let reject = |errors| Rejected { kind: "Bootstrap", name: None, errors };
    if !report.errors.is_empty() {
        return Err(reject(report.errors));
    }
    let mut cx = Cx::new(&mut report, base);
    let any = Any { type_url: BOOTSTRAP.to_owned(), value: bytes };
    let converted = cx.decode(&any, &At::ROOT).and_then(|b| convert(&b, any, &mut cx));
    match converted {
        Some(bootstrap) if report.errors.is_empty() => Ok(Bootstrap { warnings: report.warnings, ..bootstrap }),
        _ => Err(reject(report.errors)),
    }
}

/// Converts the secrets of an encoded `DiscoveryResponse`.
pub(crate) fn secrets(bytes: &[u8], options: &Options, base: &Path) -> Result<Vec<(Name, Arc<Secret>)>, Rejected> {
    let reject = |errors| Rejected { kind: "Secrets", name: None, errors };
    let mut report = Report::default();
    walk::walk("envoy.service.discovery.v3.DiscoveryResponse", bytes, options, &mut report);
    if !report.errors.is_empty() {
        return Err(reject(report.errors));
    }
    let response = DiscoveryResponse::decode(bytes).map_err(|e| reject(vec![e.to_string()]))?;
    let mut secrets: Vec<(Name, Arc<Secret>)> = Vec::with_capacity(response.resources.len());
    for any in &response.resources {
        if let Resource::Secret { name, secret } = resource_in(SECRET, any, options, base)?.0 {
            if secrets.iter().any(|(other, _)| *other == name) {
                return Err(reject(vec![format!("duplicate secret {name} found")]));
            }
            secrets.push((name, secret));
        }
    }
    Ok(secrets)
}

/// There are no runtime keys. Those of RE2 lift bounds that we don't have, so nothing is missing without them.
fn warn_of_runtime(runtime: Option<&LayeredRuntime>, at: &At<'_>, cx: &mut Cx<'_>) {
    let at = at.field("layers");
    for (i, layer) in runtime.iter().flat_map(|r| &r.layers).enumerate() {
        let Some(LayerSpecifier::StaticLayer(keys)) = &layer.layer_specifier else { continue };
        let mut unknown: Vec<&String> = keys.fields.keys().filter(|key| !key.starts_with(RE2_BOUNDS)).collect();
        unknown.sort();
        if !unknown.is_empty() {
            let words = format!("{unknown:?} have no effect: there are no runtime keys");
            cx.report.warn(&at.index(i).field("static_layer"), words);
        }
    }
}

fn convert(b: &InBootstrap, raw: Any, cx: &mut Cx<'_>) -> Option<Bootstrap> {
    let at = &At::ROOT;
    warn_of_runtime(b.layered_runtime.as_ref(), &at.field("layered_runtime"), cx);
    let statics = statics(b.static_resources.as_ref(), &at.field("static_resources"), cx);
    let dynamic_at = at.field("dynamic_resources");
    let none = DynamicResources::default();
    let dynamic = b.dynamic_resources.as_ref().unwrap_or(&none);
    let ads = dynamic.ads_config.as_ref().map(|a| ads(a, &statics.clusters, &dynamic_at.field("ads_config"), cx));
    let has_ads = ads.is_some();
    let cds = subscription(dynamic.cds_config.as_ref(), has_ads, &dynamic_at.field("cds_config"), cx);
    let lds = subscription(dynamic.lds_config.as_ref(), has_ads, &dynamic_at.field("lds_config"), cx);
    let admin = b.admin.as_ref().and_then(|a| admin(a, &at.field("admin"), cx));
    Some(Bootstrap {
        node: b.node.clone().unwrap_or_default(),
        admin,
        listeners: statics.listeners,
        clusters: statics.clusters,
        secrets: statics.secrets,
        ads: ads.flatten(),
        cds,
        lds,
        raw,
        warnings: Vec::new(),
    })
}

#[derive(Default)]
struct Statics {
    listeners: Vec<Static<Listener>>,
    clusters: Vec<Static<ClusterSpec>>,
    secrets: Vec<(Name, Static<Secret>)>,
}

fn statics(resources: Option<&StaticResources>, at: &At<'_>, cx: &mut Cx<'_>) -> Statics {
    let Some(resources) = resources else { return Statics::default() };
    let mut statics = Statics::default();
    let (secrets_at, clusters_at, listeners_at) = (at.field("secrets"), at.field("clusters"), at.field("listeners"));
    for (i, secret) in resources.secrets.iter().enumerate() {
        if let Some((name, config)) = tls::secret(secret, &secrets_at.index(i), cx) {
            statics.secrets.push((name, kept(config, SECRET, secret)));
        }
    }
    for (i, cluster) in resources.clusters.iter().enumerate() {
        if let Some(config) = cluster::cluster(cluster, &clusters_at.index(i), cx) {
            let tls = config.tls.as_ref().map(|t| &t.common);
            known_secrets(tls, &statics.secrets, &clusters_at.index(i), cx);
            statics.clusters.push(kept(config, CLUSTER, cluster));
        }
    }
    for (i, listener) in resources.listeners.iter().enumerate() {
        if let Some(mut config) = listener::listener(listener, &listeners_at.index(i), cx) {
            if config.name.is_empty() {
                // Envoy makes up a name; the address is one that people can use.
                config.name = config.address.to_string().into();
            }
            for chain in config.chains.iter().chain(&config.default_chain) {
                let tls = chain.tls.as_ref().map(|t| &t.common);
                known_secrets(tls, &statics.secrets, &listeners_at.index(i), cx);
            }
            let kept = kept(config, LISTENER, listener);
            let known = |name: &str| statics.clusters.iter().any(|c| &*c.config.name == name);
            let unknown = Resource::Listener(Arc::clone(&kept.config)).unknown_cluster(&known);
            if let Some(cluster) = unknown {
                cx.report.error(&listeners_at.index(i), format_args!("route: unknown cluster '{cluster}'"));
            }
            statics.listeners.push(kept);
        }
    }
    unique(statics.secrets.iter().map(|(name, _)| name), &secrets_at, cx);
    unique(statics.clusters.iter().map(|c| &c.config.name), &clusters_at, cx);
    unique(statics.listeners.iter().map(|l| &l.config.name), &listeners_at, cx);
    statics
}

fn kept<T>(config: T, type_url: &str, message: &impl prost::Message) -> Static<T> {
    Static { config: Arc::new(config), raw: Any { type_url: type_url.to_owned(), value: message.encode_to_vec() } }
}

fn unique<'n>(names: impl Iterator<Item = &'n Name>, at: &At<'_>, cx: &mut Cx<'_>) {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            cx.report.error(at, format_args!("the name {name:?} is used twice"));
        }
    }
}

fn known_secrets(tls: Option<&CommonTls>, secrets: &[(Name, Static<Secret>)], at: &At<'_>, cx: &mut Cx<'_>) {
    let sources = tls.into_iter().flat_map(|t| t.certificate.iter().chain(&t.validation));
    for source in sources {
        if let SecretSource::Static(wanted) = source
            && !secrets.iter().any(|(name, _)| name == wanted)
        {
            cx.report.error(at, format_args!("unknown static secret {wanted:?}"));
        }
    }
}

fn admin(a: &InAdmin, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Admin> {
    // Without an address there is no admin interface, as in Envoy.
    a.address.as_ref()?;
    let mut logs = access_log::logs(&a.access_log, &at.field("access_log"), cx);
    if !a.access_log_path.is_empty() {
        logs.extend(access_log::default_file(&a.access_log_path, &at.field("access_log_path"), cx));
    }
    Some(Admin { address: cx.socket_address(a.address.as_ref(), &at.field("address"))?, access_log: logs })
}

fn ads(a: &ApiConfigSource, clusters: &[Static<ClusterSpec>], at: &At<'_>, cx: &mut Cx<'_>) -> Option<Ads> {
    let api = match a.api_type() {
        ApiType::Grpc => Api::Grpc,
        ApiType::DeltaGrpc => Api::DeltaGrpc,
        other => return cx.refuse(&at.field("api_type"), format_args!("{} not supported", other.as_str_name())),
    };
    if a.transport_api_version != 2 {
        return cx.refuse(&at.field("transport_api_version"), "must be V3");
    }
    let services_at = at.field("grpc_services");
    let [service] = a.grpc_services.as_slice() else {
        return cx.refuse(&services_at, format_args!("needs one, has {}", a.grpc_services.len()));
    };
    let at = services_at.index(0);
    let Some(TargetSpecifier::EnvoyGrpc(grpc)) = service.target_specifier.as_ref() else {
        return cx.refuse(&at, "needs envoy_grpc");
    };
    let grpc_at = at.field("envoy_grpc");
    let name_at = grpc_at.field("cluster_name");
    let Some(cluster) = clusters.iter().find(|c| *c.config.name == *grpc.cluster_name) else {
        return cx.refuse(&name_at, format_args!("unknown static cluster {:?}", grpc.cluster_name));
    };
    if matches!(cluster.config.discovery, Discovery::Eds(_)) {
        return cx.refuse(&name_at, format_args!("{:?} must not get its own endpoints by EDS", grpc.cluster_name));
    }
    if cluster.config.http != UpstreamHttp::Http2 {
        let reason = "needs explicit_http_config.http2_protocol_options in its HttpProtocolOptions: gRPC is HTTP/2";
        return cx.refuse(&name_at, format_args!("{:?} {reason}", grpc.cluster_name));
    }
    let metadata = service.initial_metadata.iter().map(|m| (m.key.to_ascii_lowercase(), m.value.clone()));
    Some(Ads {
        api,
        cluster: cluster.config.name.clone(),
        set_node_on_first_message_only: a.set_node_on_first_message_only,
        initial_metadata: metadata.collect(),
        authority: (!grpc.authority.is_empty()).then(|| grpc.authority.clone()),
    })
}

fn subscription(source: Option<&ConfigSource>, has_ads: bool, at: &At<'_>, cx: &mut Cx<'_>) -> Option<Subscription> {
    let source = source?;
    if !matches!(source.config_source_specifier, Some(ConfigSourceSpecifier::Ads(_))) {
        return cx.refuse(at, "only ads is supported here");
    }
    if !has_ads {
        return cx.refuse(&at.field("ads"), "needs dynamic_resources.ads_config");
    }
    let timeout = cx.duration(source.initial_fetch_timeout.as_ref(), &at.field("initial_fetch_timeout"));
    Some(Subscription { initial_fetch_timeout: timeout.unwrap_or(INITIAL_FETCH_TIMEOUT) })
}
