//! The downstream byte stream: plain or TLS, with the bytes that detection has read put back in front.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

/// A TCP stream that first gives bytes which were read from it before.
#[derive(Debug)]
pub struct Prefixed {
    prefix: Bytes,
    tcp: TcpStream,
}

impl Prefixed {
    /// `prefix` was read from `tcp` already.
    #[must_use]
    pub fn new(prefix: Bytes, tcp: TcpStream) -> Self {
        Self { prefix, tcp }
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.tcp).poll_read(cx, buf);
        }
        let count = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..count]);
        self.prefix.advance(count);
        if self.prefix.is_empty() {
            // An empty slice of a shared buffer would keep the whole buffer.
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// A downstream stream.
#[derive(Debug)]
pub enum Downstream {
    /// As it came from the network.
    Plain(Prefixed),
    /// Inside the TLS that we terminate.
    Tls(Box<TlsStream<Prefixed>>),
}

impl Downstream {
    /// The socket.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => &stream.tcp,
            Self::Tls(stream) => &stream.get_ref().0.tcp,
        }
    }

    /// Has the peer told by a reset, not by a clean end, when the stream is dropped: what it got is not the whole.
    pub fn abort(&self) {
        abort(self.tcp());
    }
}

/// Makes the close of `tcp` a reset.
pub fn abort(tcp: &TcpStream) {
    // A socket that refuses the option is closed in the ordinary way; there is nothing better to do.
    let _ = SockRef::from(tcp).set_linger(Some(std::time::Duration::ZERO));
}

impl AsyncRead for Downstream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

macro_rules! forward_write {
    ($type:ty { $($variant:pat => $inner:expr),* }) => {
        impl AsyncWrite for $type {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                match self.get_mut() { $($variant => Pin::new($inner).poll_write(cx, buf)),* }
            }
            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $($variant => Pin::new($inner).poll_flush(cx)),* }
            }
            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $($variant => Pin::new($inner).poll_shutdown(cx)),* }
            }
            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() { $($variant => Pin::new($inner).poll_write_vectored(cx, bufs)),* }
            }
            fn is_write_vectored(&self) -> bool {
                true
            }
        }
    };
}
forward_write!(Prefixed { Self { tcp, .. } => tcp });
forward_write!(Downstream { Self::Plain(stream) => stream, Self::Tls(stream) => stream });

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn bytes_read_before_come_first_and_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b" world").await.unwrap();
        client.shutdown().await.unwrap();
        let tcp = listener.accept().await.unwrap().0;
        let mut stream = Downstream::Plain(Prefixed::new(Bytes::from_static(b"hello"), tcp));
        let mut few = [0; 3];
        stream.read_exact(&mut few).await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!((&few[..], rest.as_str()), (&b"hel"[..], "lo world"));
    }

    #[tokio::test]
    async fn an_aborted_stream_ends_in_a_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let stream = Downstream::Plain(Prefixed::new(Bytes::new(), listener.accept().await.unwrap().0));
        stream.abort();
        drop(stream);
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
