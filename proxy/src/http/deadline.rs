//! Time limits of a stream: the route's time-out with all tries, silence, the request's own time-out, the longest life.
//!
//! One timer for all of them, set to the earliest, and registered only when there is something to wait for. It covers the
//! wait for the response and goes on in the response's body, which is cut when a limit passes there.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use http_body::{Body as _, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::{Layer, Service};

use super::{
    exchange::{Context, Exchange},
    step::Outcome,
};
use crate::{
    body::{Body, Error},
    config::route::RouteAction,
    error::{Reason, Refusal},
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner }
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline<S> {
    inner: S,
}

impl<S> Service<Exchange> for Deadline<S>
where
    S: Service<Exchange, Response = Response<Body>, Error = Refusal>,
{
    type Response = Response<Body>;
    type Error = Refusal;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, exchange: Exchange) -> Self::Future {
        let watch = Watch::new(&exchange.cx);
        DeadlineFuture { watch: Some(watch), inner: self.inner.call(exchange) }
    }
}

pin_project! {
    /// The future of [`Deadline`].
    pub(super) struct DeadlineFuture<F> {
        watch: Option<Watch>,
        #[pin]
        inner: F,
    }
}

impl<F: Future<Output = Outcome>> Future for DeadlineFuture<F> {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Outcome> {
        let this = self.project();
        if let Poll::Ready(outcome) = this.inner.poll(task) {
            let watch = this.watch.take();
            return Poll::Ready(outcome.map(|response| match watch {
                Some(watch) => watch.over(response),
                None => response,
            }));
        }
        let Some(watch) = this.watch else { return Poll::Pending };
        watch.poll(task).map(|rule| Err(rule.in_headers(&watch.cx).into()))
    }
}

/// A limit that has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Route,
    Idle,
    Request,
    Life,
}

impl Rule {
    /// The refusal while the response has not begun.
    fn in_headers(self, cx: &Context) -> Reason {
        let stats = &cx.conn.http.stats;
        match self {
            Self::Route => {
                if let Some(cluster) = cx.cluster.get() {
                    cluster.stats().upstream_rq_timeout.increment(1);
                }
                Reason::RouteTimeout
            }
            Self::Idle => {
                stats.downstream_rq_idle_timeout.increment(1);
                if cx.upload.is_done() { Reason::IdleResponse } else { Reason::IdleRequest }
            }
            Self::Request => {
                stats.downstream_rq_timeout.increment(1);
                Reason::RequestTimeout
            }
            Self::Life => {
                stats.downstream_rq_max_duration_reached.increment(1);
                Reason::MaxStreamDuration
            }
        }
    }

    /// The reason for a cut in the middle of the response.
    fn in_body(self, cx: &Context) -> Reason {
        match self.in_headers(cx) {
            Reason::RouteTimeout => Reason::TimeoutInBody,
            Reason::MaxStreamDuration => Reason::StreamTooLongInBody,
            Reason::RequestTimeout => Reason::RequestTimeout,
            _ => Reason::IdleBody,
        }
    }
}

/// The limits of one exchange and its timer.
struct Watch {
    cx: Arc<Context>,
    route: Option<Duration>,
    idle: Option<Duration>,
    request: Option<Duration>,
    life: Option<Duration>,
    /// Last data of the response, after the start; up to date when none is [`Self::fresh`].
    seen: Duration,
    /// Data came since the time was last read. Most responses come whole, so that it never is.
    fresh: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Watch {
    fn new(cx: &Arc<Context>) -> Self {
        let config = &cx.conn.http.config;
        let some = |limit: Duration| (!limit.is_zero()).then_some(limit);
        let forward = match cx.matched.get().map(|m| &m.route().action) {
            Some(RouteAction::Forward(forward)) => Some(forward),
            _ => None,
        };
        // A tunnel has no end to wait for.
        let websocket = cx.websocket.get().is_some();
        Self {
            route: forward.and_then(|f| f.timeout).filter(|_| !websocket),
            idle: forward.and_then(|f| f.idle_timeout).map_or(some(config.stream_idle_timeout), some),
            request: some(config.request_timeout),
            life: config.max_stream_duration.and_then(some),
            seen: Duration::ZERO,
            fresh: false,
            timer: None,
            cx: Arc::clone(cx),
        }
    }

    /// The earliest limit, after the start.
    fn next(&self) -> Option<(Duration, Rule)> {
        let upload = &self.cx.upload;
        let done = upload.is_done();
        // The route's time-out runs from the end of the request, so that a slow upload is not the server's fault.
        let route = self.route.filter(|_| done).map(|limit| (upload.last() + limit, Rule::Route));
        let idle = self.idle.map(|limit| (upload.last().max(self.seen) + limit, Rule::Idle));
        let request = self.request.filter(|_| !done).map(|limit| (limit, Rule::Request));
        let life = self.life.map(|limit| (limit, Rule::Life));
        [route, request, life, idle].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Ready with the limit that has passed.
    fn poll(&mut self, task: &mut Task<'_>) -> Poll<Rule> {
        if !self.cx.upload.is_done() {
            self.cx.upload.wait(task.waker());
        }
        if std::mem::take(&mut self.fresh) {
            self.seen = self.cx.started.elapsed();
        }
        while let Some((after, rule)) = self.next() {
            let due = self.cx.started + after;
            match &mut self.timer {
                Some(timer) => {
                    // A later limit is found when the timer fires; only an earlier one needs it moved now.
                    if due < timer.deadline() {
                        timer.as_mut().reset(due);
                    }
                    std::task::ready!(timer.as_mut().poll(task));
                    if Instant::now() >= due {
                        return Poll::Ready(rule);
                    }
                    timer.as_mut().reset(due);
                }
                None => self.timer = Some(Box::pin(sleep_until(due))),
            }
        }
        Poll::Pending
    }

    /// Goes on watching in the response's body.
    fn over(mut self, response: Response<Body>) -> Response<Body> {
        if response.body().is_end_stream() || response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return response;
        }
        if self.route.is_none() && self.idle.is_none() && self.life.is_none() {
            return response;
        }
        self.fresh = true;
        response.map(|inner| Body::boxed(Watched { inner, watch: self }))
    }
}

/// A response's body under time limits.
struct Watched {
    inner: Body,
    watch: Watch,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(task) {
            this.watch.fresh = true;
            return Poll::Ready(frame);
        }
        this.watch.poll(task).map(|rule| {
            let reason = rule.in_body(&this.watch.cx);
            this.watch.cx.note_reason(reason);
            Some(Err(Error::TimedOut(reason.row().words)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
