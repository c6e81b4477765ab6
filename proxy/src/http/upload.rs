//! The request's body as it streams in: counted, and its end told to those who wait for it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body as _, Frame, SizeHint};

use super::exchange::Context;
use crate::body::{Body, Error};

/// See the module.
struct Upload {
    inner: Body,
    cx: Arc<Context>,
}

/// Watches a request's body. A request without one is complete at once and costs nothing.
pub(super) fn watch(body: Body, cx: &Arc<Context>) -> Body {
    if body.is_end_stream() {
        cx.upload.finish(Duration::ZERO);
        cx.log(|entry| entry.request_ended(Duration::ZERO));
        return body;
    }
    Body::boxed(Upload { inner: body, cx: Arc::clone(cx) })
}

impl Upload {
    fn finish(&self, after: Duration) {
        self.cx.upload.finish(after);
        self.cx.log(|entry| entry.request_ended(after));
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut polled = ready!(Pin::new(&mut self.inner).poll_frame(task));
        let after = self.cx.started.elapsed();
        match &mut polled {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    remove_forbidden(trailers);
                }
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.cx.upload.frame(bytes, after);
                if self.inner.is_end_stream() {
                    self.finish(after);
                }
            }
            Some(Err(_)) | None => self.finish(after),
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Trailers that a server could take for the head's: RFC 9110 section 6.5.1 forbids them.
fn remove_forbidden(trailers: &mut HeaderMap) {
    for name in [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::HOST,
        header::CONNECTION,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
        header::EXPECT,
        header::CONTENT_ENCODING,
        header::CONTENT_TYPE,
        header::CONTENT_RANGE,
        header::AUTHORIZATION,
        header::PROXY_AUTHORIZATION,
        header::COOKIE,
    ] {
        trailers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_bring_no_framing_and_no_credentials() {
        let names = ["content-length", "transfer-encoding", "host", "authorization", "grpc-status", "x-checksum"];
        let mut trailers: HeaderMap =
            names.iter().map(|n| (n.parse().unwrap(), http::HeaderValue::from_static("1"))).collect();
        remove_forbidden(&mut trailers);
        let mut left: Vec<_> = trailers.keys().map(http::HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["grpc-status", "x-checksum"]);
    }
}
