//! The record of one request or connection.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use tokio::time::Instant;

use crate::config::{Name, flags::Flags};

/// What a downstream connection is, as logs print it; shared by all its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The peer.
    pub peer: SocketAddr,
    /// Where it was sent to: the original destination when it was redirected, else our own address.
    pub local: SocketAddr,
    /// Server name of the TLS ClientHello.
    pub server_name: Option<String>,
    /// TLS version of our handshake (`TLSv1.3`).
    pub tls_version: Option<&'static str>,
    /// URI names of the peer's certificate.
    pub peer_uri_sans: Vec<String>,
    /// DNS names of the peer's certificate.
    pub peer_dns_sans: Vec<String>,
    /// Subject of the peer's certificate, RFC 2253.
    pub peer_subject: Option<String>,
    /// Listener.
    pub listener: Name,
    /// Filter chain; empty when it has no name or none was found.
    pub chain: Name,
}

/// One request, or one connection without requests. Write it by way of [`super::Entry`].
#[derive(Clone, Debug)]
pub struct Record {
    /// The downstream connection.
    pub connection: Arc<Connection>,
    /// When it began, by the wall clock.
    pub start: SystemTime,
    /// When it began, for durations.
    pub started: Instant,
    /// HTTP version of the client.
    pub protocol: Option<Version>,
    /// Method; none on a raw connection.
    pub method: Option<Method>,
    /// `http` or `https`; empty on a raw connection.
    pub scheme: &'static str,
    /// Authority; may be empty.
    pub authority: String,
    /// Path with query.
    pub path: String,
    /// Those request headers that the logs need.
    pub request_headers: Kept,
    /// Those response headers that the logs need.
    pub response_headers: Kept,
    /// Those response trailers that the logs need.
    pub response_trailers: Kept,
    /// Status sent to the client.
    pub status: Option<StatusCode>,
    /// `RESPONSE_CODE_DETAILS`; spaces are printed as `_`.
    pub details: Option<Cow<'static, str>>,
    /// Response flags.
    pub flags: Flags,
    /// Body bytes from the client (of a connection: all bytes).
    pub bytes_received: u64,
    /// Body bytes to the client (of a connection: all bytes).
    pub bytes_sent: u64,
    /// From the start to the request's last byte.
    pub request_duration: Option<Duration>,
    /// From the start to the first byte of the upstream's response.
    pub response_duration: Option<Duration>,
    /// Whole duration; set by [`Record::finish`].
    pub duration: Option<Duration>,
    /// Cluster.
    pub upstream_cluster: Option<Name>,
    /// Endpoint.
    pub upstream_host: Option<SocketAddr>,
    /// Our side of the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// Why the upstream connection failed.
    pub upstream_failure: Option<Cow<'static, str>>,
    /// Tries sent upstream.
    pub attempts: u32,
    /// Name of the route.
    pub route: Option<Name>,
    /// `CONNECTION_TERMINATION_DETAILS`.
    pub termination: Option<Cow<'static, str>>,
}

/// A request's head, as [`super::Entry::request`] takes it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Method.
    pub method: &'a Method,
    /// HTTP version.
    pub version: Version,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Authority; may be empty.
    pub authority: &'a str,
    /// Path with query.
    pub path: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
}

impl Record {
    /// An empty record of something that started (just) now.
    #[must_use]
    pub fn new(connection: Arc<Connection>, started: Instant) -> Self {
        Self {
            connection,
            start: SystemTime::now(),
            started,
            protocol: None,
            method: None,
            scheme: "",
            authority: String::new(),
            path: String::new(),
            request_headers: Kept::default(),
            response_headers: Kept::default(),
            response_trailers: Kept::default(),
            status: None,
            details: None,
            flags: Flags::NONE,
            bytes_received: 0,
            bytes_sent: 0,
            request_duration: None,
            response_duration: None,
            duration: None,
            upstream_cluster: None,
            upstream_host: None,
            upstream_local: None,
            upstream_failure: None,
            attempts: 0,
            route: None,
            termination: None,
        }
    }

    /// Time since the start, or the whole duration once finished.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.duration.unwrap_or_else(|| self.started.elapsed())
    }

    /// Notes that the request's last byte came, so long after the start.
    pub fn request_ended(&mut self, after: Duration) {
        self.request_duration.get_or_insert(after);
    }

    /// Notes that the upstream's first byte came at `now`.
    pub fn response_began(&mut self, now: Instant) {
        self.response_duration.get_or_insert_with(|| now - self.started);
    }

    /// Fixes the duration; later calls change nothing.
    pub fn finish(&mut self) {
        self.duration.get_or_insert_with(|| self.started.elapsed());
    }

    pub(super) fn request(&mut self, request: Request<'_>, needs: &[HeaderName]) {
        self.method = Some(request.method.clone());
        self.protocol = Some(request.version);
        self.scheme = request.scheme;
        request.authority.clone_into(&mut self.authority);
        request.path.clone_into(&mut self.path);
        self.request_headers.keep(request.headers, needs);
    }
}

/// Header lines that the logs need. They are few, so that a list is found through faster than a map is made.
#[derive(Clone, Debug, Default)]
pub struct Kept(Vec<(HeaderName, HeaderValue)>);

impl Kept {
    /// All of `headers`.
    #[must_use]
    pub fn all(headers: &HeaderMap) -> Self {
        Self(headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// The first line of a header.
    #[must_use]
    pub fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.0.iter().find(|(kept, _)| kept == name).map(|(_, value)| value)
    }

    /// As the map that filters look at.
    pub(super) fn to_map(&self) -> HeaderMap {
        self.0.iter().cloned().collect()
    }

    /// Copies the named headers, all lines of each; what was kept before is gone.
    pub(super) fn keep(&mut self, from: &HeaderMap, names: &[HeaderName]) {
        self.0.clear();
        for name in names {
            for value in from.get_all(name) {
                if self.0.is_empty() {
                    self.0.reserve(names.len());
                }
                self.0.push((name.clone(), value.clone()));
            }
        }
    }
}

/// Whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
