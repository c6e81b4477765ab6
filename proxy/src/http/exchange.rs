//! One request on its way, and what is known of it until its last byte.
//!
//! An [`Exchange`] moves inwards through the stack. Its [`Context`] is shared: layers that answer on the way back, the
//! request's body and the response's body all hold it, and what it noted is written when the response ends.

use std::{
    borrow::Cow,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
    time::Duration,
};

use futures_util::task::AtomicWaker;
use http::{HeaderMap, Method, Request, Uri, Version, header};
use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    admit::Seen,
    life::Life,
    runtime::{HttpRuntime, Limiter, Matched},
};
use crate::{
    body::Body,
    config::{
        access_log::Template,
        flags::Flags,
        rbac::View,
        route::{RequestView, RetryPolicy},
        route_match::is_grpc,
    },
    drain::Drain,
    error::Reason,
    net::connection::ConnInfo,
    snapshot::{Shared, Snapshot},
    telemetry::access_log::{Entry, Kept, Record, render},
    upstream::{Cluster, Endpoint, Upgrade},
};

/// A downstream connection that speaks HTTP.
pub(super) struct Conn {
    pub(super) info: ConnInfo,
    pub(super) http: Arc<HttpRuntime>,
    pub(super) shared: Arc<Shared>,
    pub(super) life: Arc<Life>,
    /// The chain's end.
    pub(super) drain: Drain,
}

impl Conn {
    /// `https` when the client speaks TLS with us.
    pub(super) fn scheme(&self) -> &'static str {
        if self.info.tls_version.is_some() { "https" } else { "http" }
    }
}

/// A request on its way inwards. Once admitted, its URI is in origin form and `host` is there, once.
pub(super) struct Exchange {
    pub(super) request: Request<Body>,
    pub(super) cx: Arc<Context>,
    /// What the look at its headers found.
    pub(super) seen: Seen,
    /// Loaded once, from the route step to the choice of the cluster.
    pub(super) snapshot: Option<Arc<Snapshot>>,
}

/// What is known of a request.
pub(super) struct Context {
    pub(super) conn: Arc<Conn>,
    pub(super) started: Instant,
    /// Decides on fractions and splits.
    pub(super) random: u64,
    pub(super) version: Version,
    /// The client wants no body.
    pub(super) is_head: bool,
    /// The client speaks gRPC, so that refusals are gRPC statuses.
    pub(super) grpc: bool,
    pub(super) matched: OnceLock<Matched>,
    pub(super) cluster: OnceLock<Arc<Cluster>>,
    /// A copy of the request's head, where something looks at it on the way back.
    pub(super) head: OnceLock<Box<Head>>,
    /// The limiter that refused.
    pub(super) limiter: OnceLock<Arc<Limiter>>,
    /// The client asked for a WebSocket and may have one.
    pub(super) websocket: OnceLock<()>,
    /// The client's side of the connection after a 101.
    pub(super) upgrade: Mutex<Option<OnUpgrade>>,
    /// The server's side of it.
    pub(super) tunnel: Mutex<Option<Upgrade>>,
    pub(super) upload: UploadState,
    pub(super) notes: Mutex<Notes>,
}

/// What changes on the way.
#[derive(Default)]
pub(super) struct Notes {
    /// The access log's record; none when nothing is logged.
    pub(super) entry: Option<Box<Entry>>,
    pub(super) flags: Flags,
    pub(super) details: Option<Cow<'static, str>>,
    /// Endpoints tried already.
    pub(super) tried: SmallVec<[Arc<Endpoint>; 2]>,
    pub(super) attempts: u32,
}

/// A copy of a request's head.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
}

impl Exchange {
    /// A request just read from `conn`.
    pub(super) fn new(request: Request<Body>, conn: Arc<Conn>) -> Self {
        let started = Instant::now();
        let entry = conn.http.loggers.begin(&conn.info.connection, started);
        let cx = Context {
            started,
            random: fastrand::u64(..),
            version: request.version(),
            is_head: request.method() == Method::HEAD,
            grpc: is_grpc(request.headers()),
            matched: OnceLock::new(),
            cluster: OnceLock::new(),
            head: OnceLock::new(),
            limiter: OnceLock::new(),
            websocket: OnceLock::new(),
            upgrade: Mutex::new(None),
            tunnel: Mutex::new(None),
            upload: UploadState::default(),
            notes: Mutex::new(Notes { entry, ..Notes::default() }),
            conn,
        };
        Self { request, cx: Arc::new(cx), seen: Seen::default(), snapshot: None }
    }

    /// The request as rules see it.
    pub(super) fn view(&self) -> RequestView<'_> {
        view(self.request.method(), self.request.uri(), self.request.headers(), self.cx.conn.scheme())
    }

    /// Keeps a copy of the head for those who look at it on the way back.
    pub(super) fn keep_head(&self) {
        self.cx.head.get_or_init(|| {
            Box::new(Head {
                method: self.request.method().clone(),
                uri: self.request.uri().clone(),
                headers: self.request.headers().clone(),
            })
        });
    }

    /// Tells the access log what the request is now.
    pub(super) fn log_request(&self) {
        if let Some(entry) = &mut self.cx.notes.lock().entry {
            let headers = self.request.headers();
            let authority = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
            let path = self.request.uri().path_and_query().map_or("", |p| p.as_str());
            entry.request(crate::telemetry::access_log::Request {
                method: self.request.method(),
                version: self.cx.version,
                scheme: self.cx.conn.scheme(),
                authority,
                path,
                headers,
            });
        }
    }
}

impl Head {
    pub(super) fn view(&self, scheme: &'static str) -> RequestView<'_> {
        view(&self.method, &self.uri, &self.headers, scheme)
    }
}

fn view<'a>(method: &'a Method, uri: &'a Uri, headers: &'a HeaderMap, scheme: &'static str) -> RequestView<'a> {
    RequestView {
        method,
        authority: headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default(),
        path: uri.path(),
        query: uri.query(),
        scheme,
        headers,
    }
}

impl Context {
    /// The client speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.version == Version::HTTP_2
    }

    /// What an access rule sees.
    pub(super) fn rbac_view<'a>(&'a self, request: &'a RequestView<'a>) -> View<'a> {
        let info = &self.conn.info;
        View {
            request: Some(request),
            peer: info.peer,
            destination: info.destination(),
            server_name: info.server_name.as_deref(),
            tls: info.peer_names(),
        }
    }

    /// The retry policy of the matched route, if there is one that allows any.
    pub(super) fn retry(&self) -> Option<Arc<RetryPolicy>> {
        self.matched.get()?.retry().filter(|policy| policy.num_retries > 0).cloned()
    }

    /// Fills the access log's record, if there is one.
    pub(super) fn log(&self, fill: impl FnOnce(&mut Entry)) {
        if let Some(entry) = &mut self.notes.lock().entry {
            fill(entry);
        }
    }

    /// Notes why the exchange ends as it does. The first reason stays.
    pub(super) fn note(&self, flags: Flags, details: impl Into<Cow<'static, str>>) {
        let mut notes = self.notes.lock();
        notes.flags = notes.flags.union(flags);
        notes.details.get_or_insert_with(|| details.into());
    }

    /// Notes a reason of the table.
    pub(super) fn note_reason(&self, reason: Reason) {
        self.note(reason.row().flags, reason.row().details);
    }

    /// The text of a header value with operators.
    pub(super) fn render(
        &self,
        template: &Template,
        request: Option<&RequestView<'_>>,
        response: &HeaderMap,
    ) -> String {
        let mut record = Record::new(Arc::clone(&self.conn.info.connection), self.started);
        if let Some(request) = request {
            record.method = Some(request.method.clone());
            record.authority = request.authority.to_owned();
            record.path = match request.query {
                Some(query) => format!("{}?{query}", request.path),
                None => request.path.to_owned(),
            };
            record.request_headers = Kept::all(request.headers);
        }
        record.protocol = Some(self.version);
        record.scheme = self.conn.scheme();
        record.response_headers = Kept::all(response);
        record.upstream_cluster = self.cluster.get().map(|c| c.spec().name.clone());
        record.route = self.matched.get().map(|m| m.route().name.clone());
        let notes = self.notes.lock();
        record.flags = notes.flags;
        record.details = notes.details.clone();
        record.attempts = notes.attempts;
        record.upstream_host = notes.tried.last().map(|e| e.address());
        drop(notes);
        render(template, &record)
    }
}

/// How far the request's body is.
#[derive(Default)]
pub(super) struct UploadState {
    done: AtomicBool,
    bytes: AtomicU64,
    /// When the last frame came, in milliseconds after the start.
    last: AtomicU64,
    /// The task that waits for the response, and arms the route's time-out when the request is complete.
    waiter: AtomicWaker,
}

impl UploadState {
    /// The request is complete.
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Relaxed)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Time of the last frame, after the start.
    pub(super) fn last(&self) -> Duration {
        Duration::from_millis(self.last.load(Relaxed))
    }

    pub(super) fn wait(&self, waker: &Waker) {
        self.waiter.register(waker);
    }

    pub(super) fn frame(&self, bytes: usize, at: Duration) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
        self.last.store(u64::try_from(at.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Nothing more comes.
    pub(super) fn finish(&self, at: Duration) {
        self.last.store(u64::try_from(at.as_millis()).unwrap_or(u64::MAX), Relaxed);
        self.done.store(true, Relaxed);
        self.waiter.wake();
    }
}
