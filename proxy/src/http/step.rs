//! The pattern of all policies that decide at once: look at the request, let it pass or stop it, and perhaps look at the
//! response on the way back.
//!
//! A step holds nothing: what it needs of the listener, the route and the request stands in the exchange. So the stack is
//! made once and cloning it per request costs nothing.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll, ready},
};

use http::Response;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use super::exchange::{Context, Exchange};
use crate::{
    body::Body,
    error::{Reason, Refusal},
};

/// What every layer of the stack gives back.
pub(super) type Outcome = Result<Response<Body>, Refusal>;

/// Why a request goes no further inwards.
pub(super) enum Stop {
    /// It is refused.
    Refuse(Box<Refusal>),
    /// It is answered here (redirect, direct response).
    Answer(Box<Response<Body>>),
}

impl From<Reason> for Stop {
    fn from(reason: Reason) -> Self {
        Self::Refuse(Box::new(reason.into()))
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse(Box::new(refusal))
    }
}

impl From<Response<Body>> for Stop {
    fn from(response: Response<Body>) -> Self {
        Self::Answer(Box::new(response))
    }
}

/// A policy that decides at once.
pub(super) trait Step: Copy + Send + Sync + 'static {
    /// The step also looks at responses.
    const RESPONDS: bool = false;

    /// Lets the request pass, perhaps changed, or stops it.
    fn request(self, exchange: &mut Exchange) -> Result<(), Stop>;

    /// Sees what came back from further in.
    fn response(self, _: &Context, outcome: Outcome) -> Outcome {
        outcome
    }
}

/// Makes a [`Step`] a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepLayer<T>(pub(super) T);

impl<T: Step, S> Layer<S> for StepLayer<T> {
    type Service = Stepped<T, S>;

    fn layer(&self, inner: S) -> Stepped<T, S> {
        Stepped { step: self.0, inner }
    }
}

/// A service with a [`Step`] before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stepped<T, S> {
    step: T,
    inner: S,
}

impl<T, S> Service<Exchange> for Stepped<T, S>
where
    T: Step,
    S: Service<Exchange, Response = Response<Body>, Error = Refusal>,
{
    type Response = Response<Body>;
    type Error = Refusal;
    type Future = StepFuture<T, S::Future>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, mut exchange: Exchange) -> Self::Future {
        match self.step.request(&mut exchange) {
            Ok(()) => {
                let cx = T::RESPONDS.then(|| Arc::clone(&exchange.cx));
                StepFuture::Passed { step: self.step, cx, inner: self.inner.call(exchange) }
            }
            Err(stop) => StepFuture::Stopped { stop: Some(stop) },
        }
    }
}

pin_project! {
    /// The future of a [`Stepped`] service.
    #[project = StepProjection]
    pub(super) enum StepFuture<T, F> {
        Passed { step: T, cx: Option<Arc<Context>>, #[pin] inner: F },
        Stopped { stop: Option<Stop> },
    }
}

impl<T: Step, F: Future<Output = Outcome>> Future for StepFuture<T, F> {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Outcome> {
        match self.project() {
            StepProjection::Passed { step, cx, inner } => {
                let outcome = ready!(inner.poll(task));
                Poll::Ready(match cx {
                    Some(cx) => step.response(cx, outcome),
                    None => outcome,
                })
            }
            StepProjection::Stopped { stop } => Poll::Ready(match stop.take() {
                Some(Stop::Refuse(refusal)) => Err(*refusal),
                Some(Stop::Answer(response)) => Ok(*response),
                None => Err(Reason::Panicked.into()),
            }),
        }
    }
}
