//! The way of a downstream connection: original destination, detection, filter chain, TLS, network filters, terminal.
//!
//! Everything that can be refused before the terminal is refused here, with a counter and a log line. Nothing falls back:
//! a chain that asks for TLS is never served without it.

use std::{borrow::Cow, net::SocketAddr, ops::Deref, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{
    detect::{self, Detected, Look, Verdict},
    filter::Denied,
    original_dst::{canonical, original_destination},
    stream::{Downstream, Prefixed},
};
use crate::{
    config::{
        flags::Flag,
        listener::{ConnectionView, Direction, ListenerFilter, ListenerFilterKind, Terminal},
        rbac::PeerNames,
    },
    http,
    snapshot::{Chain, Listener, Shared},
    tcp,
    telemetry::{
        Active,
        access_log::{Connection, Loggers},
        listener::ListenerStats,
    },
    tls::{Handshake, HandshakeError, PeerIdentity},
};

/// A downstream connection that has its filter chain. Cheap to share in an `Arc`; never changes.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    /// Addresses, TLS and names, as access logs print them. Also reached by deref.
    pub connection: Arc<Connection>,
    /// Where the client dialled, when the connection was redirected to us.
    pub original_destination: Option<SocketAddr>,
    /// The TLS peer's verified identity; none when it sent no certificate or there is no TLS.
    pub identity: Option<Arc<PeerIdentity>>,
    /// ALPN protocol negotiated in our TLS handshake.
    pub alpn: Option<Vec<u8>>,
    /// Direction of the listener.
    pub direction: Direction,
    /// The worker that owns the connection.
    pub worker: usize,
}

impl Deref for ConnInfo {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl ConnInfo {
    /// Where the connection was sent to: the original destination, else our own address.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.original_destination.unwrap_or(self.connection.local)
    }

    /// What access rules see of the TLS peer; none for plaintext.
    #[must_use]
    pub fn peer_names(&self) -> Option<PeerNames<'_>> {
        self.connection.tls_version?;
        Some(self.identity.as_deref().map_or_else(PeerNames::default, |identity| PeerNames {
            uri_sans: &identity.uri_sans,
            dns_sans: &identity.dns_sans,
            subject: Some(&identity.subject_rfc2253),
        }))
    }
}

/// Longest wait for a refused peer to take note, so that it sees an end and no reset.
const FAREWELL: Duration = Duration::from_secs(1);
/// Most bytes of a refused peer that are thrown away meanwhile.
const FAREWELL_BYTES: u64 = 64 << 10;

/// Serves one accepted connection to its end. Cancel safe: dropping the future closes the connection.
pub async fn handle(tcp: TcpStream, peer: SocketAddr, listener: Arc<Listener>, shared: Arc<Shared>, worker: usize) {
    let _counted = Counted::new(&listener.stats);
    let Ok(local) = tcp.local_addr() else { return };
    let arrival = Arrival::new(tcp, canonical(peer), canonical(local), &listener.config.listener_filters);
    let _running = listener.drain.running();
    let place = shared.waiting.enter();
    let waits = Active::new(&listener.stats.downstream_pre_cx_active);
    let ready = tokio::select! {
        biased;
        ready = arrival.make_out(&listener, worker) => ready,
        () = place.pushed_out() => {
            listener.stats.downstream_cx_overflow.increment(1);
            return;
        }
        () = listener.drain.cut_off() => return,
    };
    drop((place, waits));
    let Some(Ready { io, chain, info }) = ready else { return };
    drop(listener);
    match &chain.config.terminal {
        // The chain's own future is large; few connections are in it at once compared with those at rest.
        Terminal::Http(_) => Box::pin(http::serve_connection(io, chain, info, shared)).await,
        Terminal::Tcp(_) => Box::pin(tcp::serve_connection(io, chain, info, shared)).await,
        Terminal::Close => farewell(io).await,
    }
}

/// A connection on its way to its chain.
struct Arrival {
    tcp: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
    original_destination: Option<SocketAddr>,
    look: Look,
}

/// A connection that may go to its chain's terminal.
struct Ready {
    io: Downstream,
    chain: Arc<Chain>,
    info: ConnInfo,
}

impl Arrival {
    /// Runs the listener filters that need no bytes. A filter's exception looks at the destination as the filters before
    /// it left it.
    fn new(tcp: TcpStream, peer: SocketAddr, local: SocketAddr, filters: &[ListenerFilter]) -> Self {
        let look = Look { tls: false, http: false };
        let mut arrival = Self { tcp, peer, local, original_destination: None, look };
        for filter in filters {
            let port = arrival.destination().port();
            if filter.disabled.as_ref().is_some_and(|predicate| predicate.matches(port)) {
                continue;
            }
            match filter.kind {
                ListenerFilterKind::OriginalDst => {
                    arrival.original_destination = original_destination(&arrival.tcp, local);
                }
                ListenerFilterKind::TlsInspector => arrival.look.tls = true,
                ListenerFilterKind::HttpInspector => arrival.look.http = true,
            }
        }
        arrival
    }

    fn destination(&self) -> SocketAddr {
        self.original_destination.unwrap_or(self.local)
    }

    fn connection(&self, listener: &Listener, server_name: Option<String>, chain: Option<&Chain>) -> Connection {
        Connection {
            peer: self.peer,
            local: self.destination(),
            server_name,
            tls_version: None,
            peer_uri_sans: Vec::new(),
            peer_dns_sans: Vec::new(),
            peer_subject: None,
            listener: Arc::clone(&listener.config.name),
            chain: chain.map_or_else(|| "".into(), |c| Arc::clone(&c.config.name)),
        }
    }

    /// Detects, chooses the chain, does the handshake and asks the network filters; none when the connection is over.
    async fn make_out(mut self, listener: &Arc<Listener>, worker: usize) -> Option<Ready> {
        let (prefix, detected) = match self.detect(listener).await {
            Ok(found) => found,
            Err(Undetected::Gone) => return None,
            Err(Undetected::Refused(why)) => {
                let connection = self.connection(listener, None, None);
                refuse(&listener.loggers, connection, None, Some(why.replace(' ', "_")));
                super::stream::abort(&self.tcp);
                return None;
            }
        };
        let Some(chain) = self.choose(listener, &detected) else {
            listener.stats.no_filter_chain_match.increment(1);
            let connection = self.connection(listener, detected.server_name, None);
            refuse(&listener.loggers, connection, Some((Flag::NoRouteFound, "filter_chain_not_found")), None);
            super::stream::abort(&self.tcp);
            return None;
        };
        let mut connection = self.connection(listener, detected.server_name, Some(&chain));
        let logs = || chain.tcp.as_ref().map_or(&listener.loggers, |tcp| tcp.loggers());
        let plain = Prefixed::new(prefix, self.tcp);
        if !chain.filters.admit(std::time::Instant::now()) {
            refuse(logs(), connection, Some((Flag::RateLimited, "local_rate_limited")), None);
            farewell(Downstream::Plain(plain)).await;
            return None;
        }
        let (io, handshake) = if chain.config.tls.is_some() {
            match accept_tls(plain, &chain, &listener.stats).await {
                Ok((stream, handshake)) => (Downstream::Tls(stream), Some(handshake)),
                Err(why) => {
                    refuse(logs(), connection, None, Some(why));
                    return None;
                }
            }
        } else {
            (Downstream::Plain(plain), None)
        };
        let (identity, alpn) = match handshake {
            Some(handshake) => note_handshake(&mut connection, handshake),
            None => (None, None),
        };
        let info = ConnInfo {
            connection: Arc::new(connection),
            original_destination: self.original_destination,
            identity,
            alpn,
            direction: listener.config.direction,
            worker,
        };
        if let Err(Denied(why)) = chain.filters.decide(&info) {
            refuse(logs(), (*info.connection).clone(), None, Some(why));
            farewell(io).await;
            return None;
        }
        Some(Ready { io, chain, info })
    }

    fn choose(&self, listener: &Listener, detected: &Detected) -> Option<Arc<Chain>> {
        let found = listener.index.find(&ConnectionView {
            destination: self.destination(),
            source: self.peer,
            server_name: detected.server_name.as_deref(),
            transport: detected.transport,
            application_protocols: &detected.application_protocols,
        });
        found.and_then(|at| listener.chains.get(at)).or(listener.default_chain.as_ref()).cloned()
    }

    /// Reads until the first bytes can be told, within the listener filters' time-out.
    async fn detect(&mut self, listener: &Listener) -> Result<(Bytes, Detected), Undetected> {
        if !self.look.tls && !self.look.http {
            return Ok((Bytes::new(), Detected::default()));
        }
        let stats = &listener.stats;
        let limit = listener.config.listener_filters_timeout;
        let mut bytes = BytesMut::new();
        let verdict = if limit.is_zero() {
            read_first(&mut self.tcp, &mut bytes, self.look).await
        } else {
            match timeout(limit, read_first(&mut self.tcp, &mut bytes, self.look)).await {
                Ok(verdict) => verdict,
                Err(_) => {
                    stats.downstream_pre_cx_timeout.increment(1);
                    if !listener.config.continue_on_timeout {
                        return Err(Undetected::Refused("listener filters timed out"));
                    }
                    // Nothing was found; the server may be the one to speak first.
                    Ok(Verdict::Found(Detected::default()))
                }
            }
        };
        match verdict {
            Ok(Verdict::Found(detected)) => Ok((bytes.freeze(), detected)),
            Ok(Verdict::Refused(why)) => {
                stats.downstream_listener_filter_error.increment(1);
                Err(Undetected::Refused(why))
            }
            Ok(Verdict::NeedMore) | Err(_) => {
                stats.downstream_listener_filter_remote_close.increment(1);
                Err(Undetected::Gone)
            }
        }
    }
}

/// Why detection gave nothing.
enum Undetected {
    /// The peer went away without a byte.
    Gone,
    /// To be closed.
    Refused(&'static str),
}

/// The verdict on the first bytes, which are left in `bytes`. An end after some bytes is no longer waited for: what came
/// is opaque; an end before any byte needs more, for ever. Cancel safe: what was read is in `bytes`.
async fn read_first(tcp: &mut TcpStream, bytes: &mut BytesMut, look: Look) -> std::io::Result<Verdict> {
    loop {
        // The first read is as a rule all; a ClientHello with post-quantum keys is near 2 KiB.
        bytes.reserve(if bytes.is_empty() { 2048 } else { 4096 });
        let room = (detect::MAX_BYTES - bytes.len()) as u64;
        if (&mut *tcp).take(room).read_buf(bytes).await? == 0 {
            return Ok(if bytes.is_empty() { Verdict::NeedMore } else { detect::classify_last(bytes, look) });
        }
        match detect::classify(bytes, look) {
            Verdict::NeedMore => {}
            verdict => return Ok(verdict),
        }
    }
}

/// The TLS handshake within its deadline; the error is words for the log.
async fn accept_tls(
    plain: Prefixed,
    chain: &Chain,
    stats: &ListenerStats,
) -> Result<(Box<tokio_rustls::server::TlsStream<Prefixed>>, Handshake), String> {
    let ssl = stats.ssl();
    let Some(tls) = &chain.tls else {
        ssl.secrets_not_ready.increment(1);
        return Err("tls_secrets_not_ready".to_owned());
    };
    // Boxed, because the state of a handshake is large and gone soon.
    let error = match timeout(chain.config.handshake_timeout, Box::pin(tls.accept(plain))).await {
        Ok(Ok((stream, handshake))) => {
            ssl.handshake.increment(1);
            if handshake.peer.is_none() {
                ssl.no_certificate.increment(1);
            }
            ssl.agreed(handshake.version_word(), handshake.cipher.and_then(|c| c.suite().as_str()));
            return Ok((Box::new(stream), handshake));
        }
        Ok(Err(error)) => error,
        Err(_) => {
            stats.downstream_cx_transport_socket_connect_timeout.increment(1);
            return Err("tls_handshake_timed_out".to_owned());
        }
    };
    match &error {
        HandshakeError::PeerRefused { no_certificate: true, .. } => ssl.fail_verify_no_cert.increment(1),
        HandshakeError::PeerRefused { wrong_name: true, .. } => ssl.fail_verify_san.increment(1),
        HandshakeError::PeerRefused { .. } => ssl.fail_verify_error.increment(1),
        HandshakeError::Alert(_) | HandshakeError::Protocol(_) | HandshakeError::Io(_) => {}
    }
    ssl.connection_error.increment(1);
    Err(error.to_string())
}

fn note_handshake(connection: &mut Connection, handshake: Handshake) -> (Option<Arc<PeerIdentity>>, Option<Vec<u8>>) {
    connection.tls_version = Some(handshake.version_word());
    if handshake.server_name.is_some() {
        connection.server_name = handshake.server_name;
    }
    if let Some(peer) = &handshake.peer {
        connection.peer_uri_sans.clone_from(&peer.uri_sans);
        connection.peer_dns_sans.clone_from(&peer.dns_sans);
        connection.peer_subject = Some(peer.subject_rfc2253.clone());
    }
    (handshake.peer, handshake.alpn)
}

/// Logs a connection that reaches no terminal.
fn refuse(
    loggers: &Arc<Loggers>,
    connection: Connection,
    flag: Option<(Flag, &'static str)>,
    termination: Option<String>,
) {
    let termination: Option<Cow<'static, str>> = termination.map(Into::into);
    tracing::debug!(
        listener = %connection.listener, peer = %connection.peer, destination = %connection.local,
        why = flag.map(|f| f.1).or(termination.as_deref()), "connection refused"
    );
    if let Some(mut entry) = loggers.begin(&Arc::new(connection), Instant::now()) {
        if let Some((flag, details)) = flag {
            entry.flags.set(flag);
            entry.details = Some(details.into());
        } else {
            // Envoy tells it by `CONNECTION_TERMINATION_DETAILS` alone, which OSM's log format does not hold.
            entry.details.clone_from(&termination);
        }
        entry.termination = termination;
    }
}

/// Ends a connection so that the peer sees an end and not a reset, though it may have sent what nobody reads.
async fn farewell(mut io: Downstream) {
    let goodbye = async {
        io.shutdown().await?;
        tokio::io::copy(&mut (&mut io).take(FAREWELL_BYTES), &mut tokio::io::sink()).await
    };
    // The peer may be gone or stay silent; the connection is over either way.
    let _ = timeout(FAREWELL, goodbye).await;
}

/// Counts a connection from accept to end.
struct Counted {
    stats: Arc<ListenerStats>,
    _active: Active,
    start: Instant,
}

impl Counted {
    fn new(stats: &Arc<ListenerStats>) -> Self {
        stats.downstream_cx_total.increment(1);
        Self { stats: Arc::clone(stats), _active: Active::new(&stats.downstream_cx_active), start: Instant::now() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.stats.downstream_cx_destroy.increment(1);
        self.stats.downstream_cx_length_ms.record(self.start.elapsed().as_secs_f64() * 1000.0);
    }
}
