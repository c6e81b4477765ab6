//! The admin interface: what is in force, how it goes, and a few levers.
//!
//! Its own small HTTP server on the control thread, so that it neither disturbs traffic nor depends on it. Pages are
//! Envoy's where Envoy has them. Private keys never leave. What changes something is POST only, and is refused when the
//! Host header is a name that a web page could have rebound to this machine.

mod clusters;
mod dump;
mod pages;
mod query;
mod routes;

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::sleep,
};

use crate::{
    app::{
        sockets::{Bound, Close},
        workers::Workers,
    },
    args::Args,
    bootstrap::{self, Bootstrap},
    identity::Progress,
    logging::Logging,
    snapshot::Shared,
    telemetry::{
        access_log::{self, Connection, Entry, Loggers},
        server::{ServerStats, State},
    },
    xds::{control::Status, state::Client},
};

/// What the admin interface asks of the process.
#[derive(Debug)]
pub enum Ask {
    /// The end, as on SIGTERM but without `--shutdown-delay`.
    Quit,
    /// Listeners stop to accept.
    CloseListeners {
        /// Which.
        which: Close,
        /// When.
        after: Duration,
    },
}

/// All that the pages show.
#[derive(Debug)]
pub struct Admin {
    args: Args,
    shared: Arc<Shared>,
    client: Arc<Mutex<Client>>,
    status: Arc<ArcSwap<Status>>,
    bound: Arc<ArcSwap<Bound>>,
    bootstrap: Arc<Bootstrap>,
    logging: Logging,
    workers: Arc<Workers>,
    identity: Option<Progress>,
    asks: mpsc::Sender<Ask>,
    stats: ServerStats,
    started: SystemTime,
    /// `/healthcheck/fail`.
    failed: AtomicBool,
    ending: AtomicBool,
}

/// A page.
#[derive(Debug)]
struct Page {
    status: StatusCode,
    kind: &'static str,
    body: String,
}

impl Admin {
    /// Counts uptime from now.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "one of each part of the process, all different")]
    pub fn new(
        args: &Args,
        shared: Arc<Shared>,
        client: Arc<Mutex<Client>>,
        status: Arc<ArcSwap<Status>>,
        bound: Arc<ArcSwap<Bound>>,
        bootstrap: Arc<Bootstrap>,
        logging: Logging,
        workers: Arc<Workers>,
        identity: Option<Progress>,
        asks: mpsc::Sender<Ask>,
    ) -> Self {
        let stats = ServerStats::new(&shared.metrics, u32::try_from(workers.count()).unwrap_or(u32::MAX));
        Self {
            args: args.clone(),
            shared,
            client,
            status,
            bound,
            bootstrap,
            logging,
            workers,
            identity,
            asks,
            stats,
            started: SystemTime::now(),
            failed: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        }
    }

    /// Says in all pages from now on that the process is going.
    pub fn ending(&self) {
        self.ending.store(true, Relaxed);
    }

    /// Binds, and serves from then on.
    ///
    /// # Errors
    /// When the address can't be bound or not be written to `address_path`.
    pub async fn listen(
        self: &Arc<Self>,
        config: &bootstrap::Admin,
        address_path: Option<&Path>,
    ) -> anyhow::Result<()> {
        let listener = TcpListener::bind(config.address)
            .await
            .with_context(|| format!("admin interface: cannot listen on {}", config.address))?;
        let address = listener.local_addr().context("admin interface")?;
        let loggers = Loggers::build(&config.access_log, &self.shared.sinks).map_err(anyhow::Error::msg)?;
        if let Some(path) = address_path {
            std::fs::write(path, address.to_string())
                .with_context(|| format!("--admin-address-path {}", path.display()))?;
        }
        tracing::info!(%address, "admin interface");
        tokio::spawn(Arc::clone(self).serve(listener, Arc::new(loggers)));
        Ok(())
    }

    async fn serve(self: Arc<Self>, listener: TcpListener, loggers: Arc<Loggers>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((io, peer)) => {
                    let (admin, loggers) = (Arc::clone(&self), Arc::clone(&loggers));
                    tokio::spawn(async move {
                        admin.connection(io, peer, loggers).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "admin interface does not accept for a moment");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, io: TcpStream, peer: SocketAddr, loggers: Arc<Loggers>) {
        // A connection that can't tell its address is gone.
        let Ok(local) = io.local_addr() else { return };
        let connection = Arc::new(Connection {
            peer,
            local,
            server_name: None,
            tls_version: None,
            peer_uri_sans: Vec::new(),
            peer_dns_sans: Vec::new(),
            peer_subject: None,
            listener: "admin".into(),
            chain: "".into(),
        });
        let service = service_fn(move |request| {
            let (admin, entry) = (Arc::clone(&self), loggers.begin(&connection, tokio::time::Instant::now()));
            async move { Ok::<_, Infallible>(admin.answer(request, local, entry).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_REQUEST_BYTES)
            .serve_connection(TokioIo::new(io), service);
        if let Err(error) = served.await {
            tracing::debug!(%error, "admin connection");
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        local: SocketAddr,
        entry: Option<Box<Entry>>,
    ) -> Response<Full<Bytes>> {
        let page = self.route(&request, local).await;
        if let Some(mut entry) = entry {
            let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
            entry.request(access_log::Request {
                version: request.version(),
                method: request.method(),
                scheme: "http",
                authority: host.unwrap_or_default(),
                path: request.uri().path_and_query().map_or("/", |path| path.as_str()),
                headers: request.headers(),
            });
            entry.status = Some(page.status);
            entry.bytes_sent = page.body.len() as u64;
        }
        let mut response = Response::new(Full::new(Bytes::from(page.body)));
        *response.status_mut() = page.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(page.kind));
        headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache, max-age=0"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
        response
    }

    /// Why there is no certificate to ask for configuration with.
    fn awaited_identity(&self) -> Option<String> {
        self.identity.as_ref()?.waits_for()
    }

    /// The first listeners are or were in force.
    #[must_use]
    pub fn has_been_ready(&self) -> bool {
        !matches!(self.state(), State::PreInitializing | State::Initializing)
    }

    fn state(&self) -> State {
        let status = self.status.load();
        if self.failed.load(Relaxed) || self.ending.load(Relaxed) {
            State::Draining
        } else if !status.clusters_settled || self.awaited_identity().is_some() {
            State::PreInitializing
        } else if !status.all_settled {
            State::Initializing
        } else {
            State::Live
        }
    }
}

impl Page {
    fn text(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, kind: "text/plain; charset=UTF-8", body: body.into() }
    }

    fn json(value: &serde_json::Value) -> Self {
        // Alternate form: people read these.
        Self { status: StatusCode::OK, kind: "application/json", body: format!("{value:#}\n") }
    }

    fn error(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, ..Self::text(body) }
    }
}

/// Envoy's word for a state.
fn word(state: State) -> &'static str {
    match state {
        State::Live => "LIVE",
        State::Draining => "DRAINING",
        State::PreInitializing => "PRE_INITIALIZING",
        State::Initializing => "INITIALIZING",
    }
}

/// Open connections; more wait in the backlog.
const MAX_CONNECTIONS: usize = 64;
const MAX_REQUEST_BYTES: usize = 64 << 10;
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
