//! The outermost service: counts, times and logs each request, and sees to it that every one is answered.
//!
//! What it started ends with the last byte of the response, in [`Finish`], which the response's body holds.

use std::{
    any::Any,
    convert::Infallible,
    future::{Future, Ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll, ready},
};

use futures_util::{
    FutureExt,
    future::{CatchUnwind, Either},
};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Body as _;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::{Layer, Service};

use super::{
    exchange::{Context, Exchange},
    reply,
    step::Outcome,
    upgrade,
};
use crate::{
    body::{Body, End, Error, Guard},
    config::{flags::Flag, http::ServerHeader},
    error::{Reason, Refusal},
    telemetry::mesh::Workload,
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordLayer;

impl<S> Layer<S> for RecordLayer {
    type Service = Recorded<S>;

    fn layer(&self, inner: S) -> Recorded<S> {
        Recorded { inner }
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recorded<S> {
    inner: S,
}

impl<S> Service<Exchange> for Recorded<S>
where
    S: Service<Exchange, Response = Response<Body>, Error = Refusal>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = RecordFuture<S::Future>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), Infallible>> {
        // No layer of the stack ever waits to be ready; a refusal here would come again in `call`.
        let _refusal = ready!(self.inner.poll_ready(task));
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, exchange: Exchange) -> Self::Future {
        let finish = Finish::begin(&exchange.cx);
        // Most policies decide within this call, the others in its future: a fault of either is caught.
        let inner = match catch_unwind(AssertUnwindSafe(|| self.inner.call(exchange))) {
            Ok(future) => Either::Left(AssertUnwindSafe(future).catch_unwind()),
            Err(panic) => Either::Right(std::future::ready(Err(panic))),
        };
        RecordFuture { finish: Some(finish), inner }
    }
}

pin_project! {
    /// The future of [`Recorded`].
    pub(super) struct RecordFuture<F> {
        finish: Option<Box<Finish>>,
        #[pin]
        inner: Caught<F>,
    }
}

type Caught<F> = Either<CatchUnwind<AssertUnwindSafe<F>>, Ready<Result<Outcome, Box<dyn Any + Send>>>>;

impl<F: Future<Output = Outcome>> Future for RecordFuture<F> {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = ready!(this.inner.poll(task));
        // Polled once after it was ready at most, which hyper does not do.
        let Some(finish) = this.finish.take() else { return Poll::Pending };
        let outcome = outcome.unwrap_or_else(|panic| Err(panicked(&finish.cx, panic.as_ref())));
        Poll::Ready(Ok(finish.respond(outcome)))
    }
}

fn panicked(cx: &Context, panic: &(dyn Any + Send)) -> Refusal {
    let words = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = words.unwrap_or("no words"), "a request hit a fault of the proxy");
    cx.conn.http.stats.downstream_rq_panicked.increment(1);
    Reason::Panicked.into()
}

/// What is to be done when an exchange ends, however it ends.
pub(super) struct Finish {
    cx: Arc<Context>,
    /// Set when the response has begun.
    status: Option<StatusCode>,
    destination: Option<Workload>,
    ended: bool,
}

impl Finish {
    fn begin(cx: &Arc<Context>) -> Box<Self> {
        let stats = &cx.conn.http.stats;
        stats.downstream_rq_total.increment(1);
        if cx.is_http2() {
            stats.downstream_rq_http2_total.increment(1);
        } else {
            stats.downstream_rq_http1_total.increment(1);
        }
        stats.downstream_rq_active.increment(1.0);
        cx.conn.life.request_began();
        Box::new(Self { cx: Arc::clone(cx), status: None, destination: None, ended: false })
    }

    /// Turns the outcome into the response that goes out.
    fn respond(mut self: Box<Self>, outcome: Outcome) -> Response<Body> {
        let cx = Arc::clone(&self.cx);
        let mut response = outcome.unwrap_or_else(|refusal| reply::make(&cx, &refusal));
        let status = response.status();
        self.status = Some(status);
        drop_unsendable_body(&cx, &mut response);
        let headers = response.headers_mut();
        set_server(&cx, headers);
        if cx.conn.http.mesh.is_some() {
            self.destination = Some(Workload::take(headers));
        }
        if !cx.is_http2() && status != StatusCode::SWITCHING_PROTOCOLS && cx.conn.life.closes_after_this() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        cx.conn.http.stats.charge(status);
        let mut notes = cx.notes.lock();
        if notes.attempts > 0 {
            // Whoever refused has said so by now.
            notes.details.get_or_insert(std::borrow::Cow::Borrowed("via_upstream"));
        }
        if let Some(entry) = &mut notes.entry {
            entry.status = Some(status);
            entry.response(headers);
        }
        drop(notes);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            upgrade::start(&cx, self);
        } else {
            response.body_mut().guard(self);
        }
        response
    }

    /// The exchange is over; `sent` bytes went to the client.
    pub(super) fn over(mut self, end: End<'_>, sent: u64) {
        self.ended = true;
        self.note_end(end);
        self.settle(sent);
    }

    fn note_end(&self, end: End<'_>) {
        let cx = &self.cx;
        match end {
            End::Complete => {}
            End::Failed(Error::Http(_)) => {
                // What was noted when the answer began no longer tells the story.
                let row = Reason::CutInBody.row();
                let mut notes = cx.notes.lock();
                notes.flags = notes.flags.union(row.flags);
                notes.details = Some(row.details.into());
                cx.conn.http.stats.downstream_rq_tx_reset.increment(1);
            }
            End::Failed(_) => cx.conn.http.stats.downstream_rq_tx_reset.increment(1),
            End::Dropped => {
                cx.conn.http.stats.downstream_rq_rx_reset.increment(1);
                let mut notes = cx.notes.lock();
                notes.flags.set(Flag::DownstreamConnectionTermination);
                notes.details = Some("downstream_remote_disconnect".into());
            }
        }
    }

    fn settle(&self, sent: u64) {
        let (cx, conn) = (&self.cx, &self.cx.conn);
        let now = Instant::now();
        let duration = now - cx.started;
        conn.http.stats.downstream_rq_active.decrement(1.0);
        conn.http.stats.finished(duration);
        conn.life.request_ended(now);
        if let (Some(mesh), Some(destination), Some(status)) = (&conn.http.mesh, &self.destination, self.status) {
            mesh.record(destination, status, duration);
        }
        let mut notes = cx.notes.lock();
        let (flags, details) = (notes.flags, notes.details.take());
        if let Some(mut entry) = notes.entry.take() {
            drop(notes);
            entry.duration = Some(duration);
            entry.flags = flags;
            entry.details = details;
            entry.bytes_sent = sent;
            entry.bytes_received = cx.upload.bytes();
            // Dropping it writes it.
        }
    }
}

impl Guard for Finish {
    fn trailers(&mut self, trailers: &HeaderMap) {
        self.cx.log(|entry| entry.trailers(trailers));
    }

    fn end(self: Box<Self>, end: End<'_>, bytes: u64) {
        self.over(end, bytes);
    }
}

impl Drop for Finish {
    /// The client went away before there was a response.
    fn drop(&mut self) {
        if !self.ended {
            self.note_end(End::Dropped);
            self.settle(0);
        }
    }
}

/// A body that may not be sent is taken away, so that it doesn't look like one that the client left.
fn drop_unsendable_body(cx: &Context, response: &mut Response<Body>) {
    let none = cx.is_head || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if none && !response.body().is_end() {
        let body = std::mem::take(response.body_mut());
        if let Some(length) = body.size_hint().exact().filter(|_| cx.is_head) {
            response.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
        }
    }
}

fn set_server(cx: &Context, headers: &mut HeaderMap) {
    let http = &cx.conn.http;
    let Some(name) = &http.server else { return };
    let absent_only = matches!(http.config.server_header, ServerHeader::AppendIfAbsent(_));
    if !(absent_only && headers.contains_key(header::SERVER)) {
        headers.insert(header::SERVER, name.clone());
    }
}
