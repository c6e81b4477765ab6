//! Binding a listener and accepting its connections.
//!
//! A socket is bound once and cloned to every worker; whoever accepts a connection keeps it for life.

use std::{io, net::SocketAddr, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::{connection, stream::abort};
use crate::{
    config::{Name, listener::Listener},
    drain::Drain,
    snapshot::Shared,
};

/// Wait after `accept` failed for want of file descriptors or memory; doubled up to [`LONGEST_REST`].
const REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// A listener could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("listener {name:?}: cannot listen on {address}: {source}{}", hint(source))]
pub struct BindError {
    /// The listener.
    name: Name,
    /// Where.
    address: SocketAddr,
    /// Why not.
    source: io::Error,
}

impl BindError {
    /// Something listens there already: another process, or a socket of ours that must go first.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.source.kind() == io::ErrorKind::AddrInUse
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (another process listens there)",
        io::ErrorKind::PermissionDenied => " (ports below 1024 need CAP_NET_BIND_SERVICE)",
        io::ErrorKind::AddrNotAvailable => " (no such address on this machine)",
        _ => "",
    }
}

/// Binds a listener and begins to queue connections. The socket is non-blocking.
///
/// # Errors
/// [`BindError`] naming listener and address.
pub fn bind(config: &Listener) -> Result<std::net::TcpListener, BindError> {
    bind_socket(config).map_err(|source| BindError { name: Arc::clone(&config.name), address: config.address, source })
}

fn bind_socket(config: &Listener) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(config.address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections of the last run in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if config.address.is_ipv6() {
        socket.set_only_v6(!config.ipv4_compat)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&config.address.into())?;
    let socket: std::net::TcpListener = socket.into();
    set_backlog(&socket, config.backlog)?;
    Ok(socket)
}

/// Begins to queue connections, or changes how many may wait; none asks for the most.
///
/// # Errors
/// The system's.
pub fn set_backlog(socket: &std::net::TcpListener, backlog: Option<u32>) -> io::Result<()> {
    // The system's own limit (somaxconn) applies to whatever is asked for.
    SockRef::from(socket).listen(backlog.and_then(|b| i32::try_from(b).ok()).unwrap_or(i32::MAX))
}

/// Accepts connections of the listener `name` and spawns a task for each, until `drain` begins or `socket` fails for good.
/// The listener's configuration is looked up in the snapshot of the moment, so a push needs no new socket.
///
/// # Errors
/// When the socket can't be used on this runtime.
pub async fn serve(
    socket: std::net::TcpListener,
    name: Name,
    shared: Arc<Shared>,
    worker: usize,
    drain: Drain,
) -> io::Result<()> {
    let socket = TcpListener::from_std(socket)?;
    let mut rest = REST;
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.draining() => return Ok(()),
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                rest = REST;
                take(tcp, peer, &name, &shared, worker);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if let Some(listener) = shared.store.current().listeners.get(&name) {
                    listener.stats.downstream_global_cx_overflow.increment(1);
                }
                tracing::warn!(listener = %name, %error, "accept failed, trying again in a moment");
                tokio::time::sleep(rest).await;
                rest = (rest * 2).min(LONGEST_REST);
            }
        }
    }
}

fn take(tcp: TcpStream, peer: SocketAddr, name: &Name, shared: &Arc<Shared>, worker: usize) {
    let Some(listener) = shared.store.current().listeners.get(name).cloned() else {
        // Removed a moment ago: the socket is about to be closed.
        return abort(&tcp);
    };
    // Small writes must not wait for acknowledgements. A connection that fails here is gone, and is found so later.
    let _ = tcp.set_nodelay(true);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let stats = Arc::clone(&listener.stats);
        let handled = AssertUnwindSafe(connection::handle(tcp, peer, listener, shared, worker)).catch_unwind();
        if handled.await.is_err() {
            stats.downstream_cx_panicked.increment(1);
        }
    });
}

/// Errors of the connection that was to be accepted, not of the listener (accept(2), "Error handling").
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::TimedOut
            | io::ErrorKind::PermissionDenied
    )
}
