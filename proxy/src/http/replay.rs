//! A request body that can be sent more than once.
//!
//! The first try streams the body and keeps what passed; the next one gets what was kept and then the rest. Above the
//! limit nothing more is kept, and the request can't be tried again. Only the newest body of a request gives data: one of
//! an abandoned try fails, so that no two tries share the stream.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;

use crate::body::{Body, Error};

/// See the module.
pub(super) struct Replay {
    state: Option<Arc<Mutex<State>>>,
}

struct State {
    source: Body,
    kept: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    bytes: usize,
    limit: usize,
    /// Too long to be kept, or broken.
    spent: bool,
    /// Number of the newest body.
    newest: u32,
}

impl Replay {
    /// Keeps up to `limit` bytes of `source`. A body that is empty is not wrapped at all.
    pub(super) fn new(source: Body, limit: usize) -> Self {
        if source.is_end_stream() {
            return Self { state: None };
        }
        let spent = source.size_hint().lower() > limit as u64;
        let state = State { source, kept: Vec::new(), trailers: None, bytes: 0, limit, spent, newest: 0 };
        Self { state: Some(Arc::new(Mutex::new(state))) }
    }

    /// The body for the next try.
    pub(super) fn body(&self) -> Body {
        let Some(state) = &self.state else { return Body::empty() };
        let number = {
            let mut state = state.lock();
            state.newest += 1;
            state.newest
        };
        Body::boxed(Try { state: Arc::clone(state), number, next: 0, trailers_sent: false })
    }

    /// True while another body would be complete.
    pub(super) fn is_possible(&self) -> bool {
        self.state.as_ref().is_none_or(|state| !state.lock().spent)
    }
}

/// The body of one try.
struct Try {
    state: Arc<Mutex<State>>,
    number: u32,
    /// Position in what was kept.
    next: usize,
    trailers_sent: bool,
}

impl State {
    fn keep(&mut self, data: &Bytes) {
        self.bytes += data.len();
        if self.bytes > self.limit {
            self.spent = true;
            self.kept = Vec::new();
        } else if !self.spent {
            self.kept.push(data.clone());
        }
    }
}

impl http_body::Body for Try {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let mut state = this.state.lock();
        if state.newest != this.number {
            return Poll::Ready(Some(Err(Error::Other("the request is tried again".into()))));
        }
        if let Some(data) = state.kept.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if let Some(trailers) = &state.trailers {
            let trailers = (!this.trailers_sent).then(|| trailers.clone());
            this.trailers_sent = true;
            return Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))));
        }
        let polled = ready!(Pin::new(&mut state.source).poll_frame(task));
        match &polled {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    state.keep(data);
                    this.next = state.kept.len();
                } else if let Some(trailers) = frame.trailers_ref() {
                    state.trailers = Some(trailers.clone());
                    this.trailers_sent = true;
                }
            }
            Some(Err(_)) => state.spent = true,
            None => {}
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        let state = self.state.lock();
        state.newest == self.number
            && self.next >= state.kept.len()
            && state.source.is_end_stream()
            && (state.trailers.is_none() || self.trailers_sent)
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.state.lock();
        let replayed: u64 = state.kept[self.next.min(state.kept.len())..].iter().map(|b| b.len() as u64).sum();
        let rest = state.source.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + replayed);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + replayed);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn source(parts: &[&'static str], trailers: bool) -> Body {
        let mut frames: Vec<Result<Frame<Bytes>, Error>> =
            parts.iter().map(|p| Ok(Frame::data(Bytes::from_static(p.as_bytes())))).collect();
        if trailers {
            let mut map = HeaderMap::new();
            map.insert("t", http::HeaderValue::from_static("1"));
            frames.push(Ok(Frame::trailers(map)));
        }
        Body::boxed(StreamBody::new(futures_util::stream::iter(frames)))
    }

    async fn text(body: Body) -> String {
        let all = body.collect().await.unwrap();
        let trailers = all.trailers().map_or(0, HeaderMap::len);
        format!("{}+{trailers}", String::from_utf8(all.to_bytes().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_second_try_gets_the_whole_body_with_its_trailers() {
        let replay = Replay::new(source(&["a", "b"], true), 10);
        assert_eq!(text(replay.body()).await, "ab+1");
        assert_eq!(text(replay.body()).await, "ab+1");
        assert!(replay.is_possible());
    }

    #[tokio::test]
    async fn a_try_that_was_given_up_half_way_fails_and_the_next_goes_on() {
        let replay = Replay::new(source(&["a", "b"], false), 10);
        let mut first = replay.body();
        assert!(first.frame().await.unwrap().is_ok());
        let second = replay.body();
        assert!(first.frame().await.unwrap().is_err(), "the stream belongs to the second");
        assert_eq!(text(second).await, "ab+0");
    }

    #[tokio::test]
    async fn a_body_above_the_limit_is_sent_once() {
        let replay = Replay::new(source(&["aaa", "bbb", "c"], false), 5);
        assert_eq!(text(replay.body()).await, "aaabbbc+0");
        assert!(!replay.is_possible());
        assert!(!Replay::new(Body::full("too long"), 3).is_possible());
    }

    #[tokio::test]
    async fn no_body_needs_no_buffer() {
        let replay = Replay::new(Body::empty(), 1);
        assert!(replay.is_possible() && replay.body().is_end_stream());
    }
}
