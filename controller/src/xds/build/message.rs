//! Small pieces of Envoy's messages, and encoding.

use std::net::IpAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, CidrRange, ConfigSource, PathConfigSource, SocketAddress,
    TransportSocket, WatchedDirectory, address, config_source, socket_address, transport_socket,
};
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, header_matcher};
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher};
use envoy_types::pb::google::protobuf::{Any, Duration as PbDuration, UInt32Value};
use ipnet::IpNet;
use prost::{Message, Name};

/// `message` in an envelope.
pub(super) fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// `sorted`, which encodes as an `M`, in an envelope.
pub(super) fn any_as<M: Name>(sorted: &impl Message) -> Any {
    Any { type_url: M::type_url(), value: sorted.encode_to_vec() }
}

pub(super) fn uint(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(super) fn duration(value: Duration) -> Option<PbDuration> {
    let seconds = i64::try_from(value.as_secs()).unwrap_or(i64::MAX);
    // Below a thousand million, so it fits.
    Some(PbDuration { seconds, nanos: value.subsec_nanos() as i32 })
}

/// "Ask for it on the stream that this came by."
pub(super) fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource::default())),
        ..Default::default()
    })
}

/// A file that is read again whenever a name in `directory` is replaced, as by a swap of links.
pub(super) fn watched_file(path: &str, directory: &str) -> Option<ConfigSource> {
    let watched_directory = Some(WatchedDirectory { path: directory.to_owned(), ..Default::default() });
    let source = PathConfigSource { path: path.to_owned(), watched_directory, ..Default::default() };
    Some(ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::PathConfigSource(source)),
        ..Default::default()
    })
}

pub(super) fn socket_address(address: &str, port: u16, ipv4_compat: bool) -> Option<Address> {
    let socket = SocketAddress {
        address: address.to_owned(),
        ipv4_compat,
        port_specifier: Some(socket_address::PortSpecifier::PortValue(port.into())),
        ..Default::default()
    };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}

pub(super) fn cidr(range: IpNet) -> CidrRange {
    CidrRange { address_prefix: range.addr().to_string(), prefix_len: uint(range.prefix_len().into()) }
}

pub(super) fn host_cidr(ip: IpAddr) -> CidrRange {
    cidr(IpNet::from(ip))
}

pub(super) fn regex(regex: &str) -> RegexMatcher {
    RegexMatcher { regex: regex.to_owned(), ..Default::default() }
}

pub(super) fn exact(text: &str) -> StringMatcher {
    let match_pattern = Some(string_matcher::MatchPattern::Exact(text.to_owned()));
    StringMatcher { match_pattern, ..Default::default() }
}

/// A header whose whole value matches the expression.
pub(super) fn header(name: &str, expression: &str) -> HeaderMatcher {
    let match_pattern = Some(string_matcher::MatchPattern::SafeRegex(regex(expression)));
    let value = StringMatcher { match_pattern, ..Default::default() };
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(header_matcher::HeaderMatchSpecifier::StringMatch(value)),
        ..Default::default()
    }
}

pub(super) fn transport_socket(name: &str, config: Any) -> Option<TransportSocket> {
    let config_type = Some(transport_socket::ConfigType::TypedConfig(config));
    Some(TransportSocket { name: name.to_owned(), config_type })
}
