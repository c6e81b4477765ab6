//! The one body type of the data path: requests to upstreams and responses to downstreams are `http` messages of it.
//!
//! A body carries guards: permits, loads, log records, a pooled connection. Each guard is told exactly once how the body
//! ended (complete, failed, dropped half way) and how many bytes of data passed, so nothing outlives its stream and
//! nothing is let go while bytes still flow.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use smallvec::SmallVec;

/// Any failure as a source.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a body stopped before its end. The message that carried it must be cut, never ended cleanly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer's message broke: cut short, reset, or not valid HTTP.
    #[error("message broke off: {0}")]
    Http(#[from] hyper::Error),
    /// Nothing came for longer than allowed, or the whole took too long.
    #[error("{0}")]
    TimedOut(&'static str),
    /// Longer than allowed.
    #[error("body is longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: u64,
    },
    /// Another reason, in words.
    #[error("{0}")]
    Other(BoxError),
}

/// How a body ended.
#[derive(Clone, Copy, Debug)]
pub enum End<'a> {
    /// All of it was read, with trailers if there were any.
    Complete,
    /// It failed; the reader was given this error.
    Failed(&'a Error),
    /// The reader lost interest before the end.
    Dropped,
}

/// Something that lives as long as a body.
pub trait Guard: Send {
    /// Called once with trailers, before [`Guard::end`], if the body has some.
    fn trailers(&mut self, _trailers: &HeaderMap) {}

    /// Called exactly once. `bytes` of data were handed on, without framing.
    fn end(self: Box<Self>, end: End<'_>, bytes: u64);
}

/// A guard that is only dropped at the end.
struct Held<T>(T);

impl<T: Send> Guard for Held<T> {
    fn end(self: Box<Self>, _: End<'_>, _: u64) {}
}

/// A closure run at the end.
struct OnEnd<F>(F);

impl<F: FnOnce(End<'_>, u64) + Send> Guard for OnEnd<F> {
    fn end(self: Box<Self>, end: End<'_>, bytes: u64) {
        (self.0)(end, bytes);
    }
}

/// A body of another kind, such as one that keeps what was sent for a retry.
pub type BoxBody = Pin<Box<dyn http_body::Body<Data = Bytes, Error = Error> + Send>>;

enum Inner {
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    Boxed(BoxBody),
}

/// See the module.
#[must_use = "a body that is dropped cuts its message"]
pub struct Body {
    inner: Inner,
    guards: SmallVec<[Box<dyn Guard>; 2]>,
    bytes: u64,
}

impl Body {
    /// No data.
    pub fn empty() -> Self {
        Self::of(Inner::Empty)
    }

    /// These bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::of(if bytes.is_empty() { Inner::Empty } else { Inner::Full(bytes) })
    }

    /// As it comes from a peer.
    pub fn incoming(body: Incoming) -> Self {
        Self::of(Inner::Incoming(body))
    }

    /// Any other body.
    pub fn boxed(body: impl http_body::Body<Data = Bytes, Error = Error> + Send + 'static) -> Self {
        Self::of(Inner::Boxed(Box::pin(body)))
    }

    fn of(inner: Inner) -> Self {
        Self { inner, guards: SmallVec::new(), bytes: 0 }
    }

    /// Adds a guard. Guards are told in the order in which they were added.
    pub fn guard(&mut self, guard: Box<dyn Guard>) {
        self.guards.push(guard);
    }

    /// Keeps `value` until the body ends.
    pub fn hold(&mut self, value: impl Send + 'static) {
        self.guard(Box::new(Held(value)));
    }

    /// Runs `f` once when the body ends, with the number of data bytes.
    pub fn on_end(&mut self, f: impl FnOnce(End<'_>, u64) + Send + 'static) {
        self.guard(Box::new(OnEnd(f)));
    }

    /// True when no more data nor trailers can come.
    #[must_use]
    pub fn is_end(&self) -> bool {
        match &self.inner {
            Inner::Empty => true,
            Inner::Full(_) => false,
            Inner::Incoming(b) => b.is_end_stream(),
            Inner::Boxed(b) => b.is_end_stream(),
        }
    }

    fn finish(&mut self, end: End<'_>) {
        for guard in self.guards.drain(..) {
            guard.end(end, self.bytes);
        }
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.inner {
            Inner::Empty => Poll::Ready(None),
            Inner::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.inner = Inner::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Inner::Incoming(b) => Pin::new(b).poll_frame(cx).map_err(Error::Http),
            Inner::Boxed(b) => b.as_mut().poll_frame(cx),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = ready!(self.poll_inner(cx));
        match &polled {
            None => self.finish(End::Complete),
            Some(Err(e)) => {
                self.inner = Inner::Empty;
                self.finish(End::Failed(e));
            }
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.bytes += data.len() as u64;
                } else if let Some(trailers) = frame.trailers_ref() {
                    for guard in &mut self.guards {
                        guard.trailers(trailers);
                    }
                }
                // Nothing comes after trailers, and a writer that has no use for them doesn't ask.
                if frame.is_trailers() || self.is_end() {
                    self.finish(End::Complete);
                }
            }
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Incoming(b) => b.size_hint(),
            Inner::Boxed(b) => b.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if !self.guards.is_empty() {
            // A writer that knows the length need not ask for the end.
            let end = if self.is_end() { End::Complete } else { End::Dropped };
            self.finish(end);
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.inner {
            Inner::Empty => "empty",
            Inner::Full(_) => "full",
            Inner::Incoming(_) => "incoming",
            Inner::Boxed(_) => "boxed",
        };
        f.debug_struct("Body").field("kind", &kind).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http_body_util::BodyExt;

    use super::*;

    fn recorded(mut body: Body) -> (Body, Arc<Mutex<Vec<String>>>) {
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = log.clone();
        body.on_end(move |end, bytes| {
            let word = match end {
                End::Complete => "complete",
                End::Failed(_) => "failed",
                End::Dropped => "dropped",
            };
            sink.lock().unwrap().push(format!("{word} {bytes}"));
        });
        (body, log)
    }

    #[tokio::test]
    async fn guards_are_told_once_when_the_last_frame_was_read() {
        let (mut body, log) = recorded(Body::full("hello"));
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!(*log.lock().unwrap(), ["complete 5"]);
        drop(body);
        assert_eq!(log.lock().unwrap().len(), 1);
    }

    #[test]
    fn an_unread_body_is_dropped_and_an_empty_one_complete() {
        let (body, log) = recorded(Body::full("hello"));
        drop(body);
        assert_eq!(*log.lock().unwrap(), ["dropped 0"]);
        let (body, log) = recorded(Body::empty());
        drop(body);
        assert_eq!(*log.lock().unwrap(), ["complete 0"]);
    }

    #[tokio::test]
    async fn a_failing_body_tells_its_guards_and_its_reader() {
        let frames: [Result<Frame<Bytes>, Error>; 2] =
            [Ok(Frame::data(Bytes::from_static(b"ab"))), Err(Error::TimedOut("too slow"))];
        let (mut body, log) =
            recorded(Body::boxed(http_body_util::StreamBody::new(futures_util::stream::iter(frames))));
        assert!(body.frame().await.unwrap().is_ok());
        assert!(body.frame().await.unwrap().is_err());
        assert!(body.frame().await.is_none(), "nothing comes after a failure");
        assert_eq!(*log.lock().unwrap(), ["failed 2"]);
    }

    #[tokio::test]
    async fn trailers_pass_through_and_guards_see_them() {
        struct Seen(Arc<Mutex<bool>>, Arc<Mutex<bool>>);
        impl Guard for Seen {
            fn trailers(&mut self, t: &HeaderMap) {
                *self.0.lock().unwrap() = t.contains_key("grpc-status");
            }
            fn end(self: Box<Self>, end: End<'_>, _: u64) {
                assert!(matches!(end, End::Complete));
                *self.1.lock().unwrap() = true;
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let frames: [Result<Frame<Bytes>, Error>; 1] = [Ok(Frame::trailers(trailers))];
        let mut body = Body::boxed(http_body_util::StreamBody::new(futures_util::stream::iter(frames)));
        let (seen, ended) = (Arc::new(Mutex::new(false)), Arc::new(Mutex::new(false)));
        body.guard(Box::new(Seen(seen.clone(), ended.clone())));
        assert!(body.frame().await.unwrap().unwrap().is_trailers());
        assert!(*seen.lock().unwrap() && *ended.lock().unwrap(), "trailers are the end, read further or not");
    }
}
