//! What the sidecar is told over ADS: one listener with TLS on a port of the system's choice, in front of an application
//! that echoes. Real listeners have fixed ports, which need a network namespace.

use std::{net::SocketAddr, path::PathBuf};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{Cluster, cluster},
            core::v3::{
                Address, ConfigSource, DataSource, PathConfigSource, SocketAddress, TransportSocket, WatchedDirectory,
                address, config_source::ConfigSourceSpecifier, data_source, socket_address, transport_socket,
            },
            endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint},
            listener::v3::{Filter, FilterChain, Listener, filter},
        },
        extensions::{
            filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
            transport_sockets::tls::v3::{
                CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
                common_tls_context::ValidationContextType,
            },
        },
    },
    google::protobuf::{Any, BoolValue},
};
use oxmesh_controller::{
    identity::{KeyHome, SidecarIdentity},
    xds::{
        Kind, World,
        build::{SERVICE_CERT_FILE, SERVICE_CERT_SECRET},
        cache::{Resource, State},
        server::{Denied, View},
    },
};
use prost::{Message, Name};

/// Serves what its world would serve, but for the ports.
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) identity: PathBuf,
    pub(crate) app: SocketAddr,
    pub(crate) roots_pem: String,
}

impl View for Stage {
    fn state(&self, proxy: &SidecarIdentity, keys: KeyHome) -> Result<State, Denied> {
        // Whether it is served at all, and whether a key is made for it, is the world's business.
        self.world.state(proxy, keys)?;
        let mut state = State::default();
        state.insert(Kind::Cluster, Resource::new(Kind::Cluster, "app", any(&self.cluster()).value));
        state.insert(Kind::Listener, Resource::new(Kind::Listener, "inbound", any(&self.listener()).value));
        Ok(state)
    }

    fn max_proxies(&self) -> Option<usize> {
        None
    }
}

impl Stage {
    fn cluster(&self) -> Cluster {
        let endpoint = Endpoint { address: address(self.app), ..Default::default() };
        let endpoint =
            LbEndpoint { host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)), ..Default::default() };
        let group = LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() };
        Cluster {
            name: "app".to_owned(),
            cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Static.into())),
            load_assignment: Some(ClusterLoadAssignment {
                cluster_name: "app".to_owned(),
                endpoints: vec![group],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn listener(&self) -> Listener {
        let proxy = TcpProxy {
            stat_prefix: "app".to_owned(),
            cluster_specifier: Some(ClusterSpecifier::Cluster("app".to_owned())),
            ..Default::default()
        };
        let proxy = Filter { name: "tcp".to_owned(), config_type: Some(filter::ConfigType::TypedConfig(any(&proxy))) };
        let socket = TransportSocket {
            name: "tls".to_owned(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(any(&self.tls()))),
        };
        let chain = FilterChain { filters: vec![proxy], transport_socket: Some(socket), ..Default::default() };
        Listener {
            name: "inbound".to_owned(),
            address: address(SocketAddr::from(([127, 0, 0, 1], 0))),
            filter_chains: vec![chain],
            ..Default::default()
        }
    }

    /// As the controller renders it, in another directory.
    fn tls(&self) -> DownstreamTlsContext {
        let name = PathBuf::from(SERVICE_CERT_FILE);
        let path = self.identity.join(name.file_name().unwrap()).display().to_string();
        let watched = WatchedDirectory { path: self.identity.display().to_string(), ..Default::default() };
        let source = PathConfigSource { path, watched_directory: Some(watched), ..Default::default() };
        let source = ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::PathConfigSource(source)),
            ..Default::default()
        };
        let certificate = SdsSecretConfig { name: SERVICE_CERT_SECRET.to_owned(), sds_config: Some(source) };
        let roots = Some(data_source::Specifier::InlineString(self.roots_pem.clone()));
        let roots = CertificateValidationContext {
            trusted_ca: Some(DataSource { specifier: roots, ..Default::default() }),
            ..Default::default()
        };
        DownstreamTlsContext {
            common_tls_context: Some(CommonTlsContext {
                tls_certificate_sds_secret_configs: vec![certificate],
                validation_context_type: Some(ValidationContextType::ValidationContext(roots)),
                ..Default::default()
            }),
            require_client_certificate: Some(BoolValue { value: true }),
            ..Default::default()
        }
    }
}

fn address(at: SocketAddr) -> Option<Address> {
    let socket = SocketAddress {
        address: at.ip().to_string(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(at.port().into())),
        ..Default::default()
    };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}
