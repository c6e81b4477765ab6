//! The raw connection that an asked-for 101 gives.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{error::UpstreamError, pool::H1};
use crate::body::End;

/// The raw connection behind a 101. Dropping it closes the connection.
pub struct Upgrade {
    pub(super) on: OnUpgrade,
    pub(super) conn: Box<H1>,
}

impl Upgrade {
    /// The stream that follows the head.
    ///
    /// # Errors
    /// When the connection broke meanwhile.
    pub async fn into_io(self) -> Result<UpgradedIo, UpstreamError> {
        let io = self.on.await.map_err(|e| UpstreamError::of(&e, true, false))?;
        Ok(UpgradedIo { io: TokioIo::new(io), conn: self.conn })
    }
}

impl std::fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upgrade").finish_non_exhaustive()
    }
}

/// An upgraded stream. Counts as a request and a connection until it is dropped.
pub struct UpgradedIo {
    io: TokioIo<Upgraded>,
    conn: Box<H1>,
}

impl Drop for UpgradedIo {
    fn drop(&mut self) {
        if let Some(lease) = &mut self.conn.lease {
            lease.settle(End::Complete, tokio::time::Instant::now());
        }
    }
}

impl std::fmt::Debug for UpgradedIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpgradedIo").finish_non_exhaustive()
    }
}

impl AsyncRead for UpgradedIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for UpgradedIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
