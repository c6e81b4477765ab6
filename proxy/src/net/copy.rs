//! Copies bytes both ways between two streams until both have ended.
//!
//! An end in one direction is passed on as an end of that direction alone (half-close). A reset is never passed on as a
//! clean end. A connection at rest holds no buffer: reads go through one buffer per thread, and only what the other side
//! does not take at once is kept.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use metrics::Counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// Bytes read at once, and the most kept for a side that does not take them.
const CHUNK_BYTES: usize = 32 << 10;

thread_local! {
    /// Borrowed only inside one poll, so connections of a thread can share it.
    static CHUNK: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK_BYTES]);
}

/// How a copy ended.
#[derive(Debug)]
pub enum End {
    /// Both sides ended cleanly.
    Closed,
    /// Nothing passed for the idle time-out.
    Idle,
    /// The first side broke.
    FirstBroke(io::Error),
    /// The second side broke.
    SecondBroke(io::Error),
}

/// A copy between a first side (downstream) and a second one (upstream). Counts may be read after the copy was dropped.
#[derive(Debug)]
pub struct Copy<A, B> {
    /// The first side.
    pub first: A,
    /// The second side.
    pub second: B,
    forth: Half,
    back: Half,
}

/// One direction.
#[derive(Debug)]
struct Half {
    /// Read but not written; empty as a rule.
    kept: Vec<u8>,
    written: usize,
    state: State,
    unflushed: bool,
    bytes: u64,
    counter: Counter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The reader has ended; the writer has not been told.
    Ending,
    Done,
}

/// Which stream of a direction failed.
enum Fault {
    Reader(io::Error),
    Writer,
}

impl<A, B> Copy<A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    /// A copy; `forth` counts the bytes from first to second as they pass, `back` those from second to first.
    pub fn new(first: A, second: B, forth: Counter, back: Counter) -> Self {
        Self { first, second, forth: Half::new(forth), back: Half::new(back) }
    }

    /// Bytes read from the first side.
    #[must_use]
    pub fn forth_bytes(&self) -> u64 {
        self.forth.bytes
    }

    /// Bytes read from the second side.
    #[must_use]
    pub fn back_bytes(&self) -> u64 {
        self.back.bytes
    }

    /// Copies until both directions have ended, one side breaks or nothing passes for `idle`. Cancel safe: what passed has
    /// passed.
    pub async fn run(&mut self, idle: Option<Duration>) -> End {
        let mut idle = idle.map(Idle::new);
        poll_fn(|cx| self.poll(cx, idle.as_mut())).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, idle: Option<&mut Idle>) -> Poll<End> {
        let before = (self.forth.progress(), self.back.progress());
        if let Poll::Ready(Err(error)) = self.forth.poll(cx, &mut self.first, &mut self.second) {
            return Poll::Ready(End::FirstBroke(error));
        }
        if let Poll::Ready(Err(error)) = self.back.poll(cx, &mut self.second, &mut self.first) {
            return Poll::Ready(End::SecondBroke(error));
        }
        if self.forth.state == State::Done && self.back.state == State::Done {
            return Poll::Ready(End::Closed);
        }
        if let Some(idle) = idle {
            if before != (self.forth.progress(), self.back.progress()) {
                idle.last = Instant::now();
            }
            ready!(idle.poll(cx));
            return Poll::Ready(End::Idle);
        }
        Poll::Pending
    }
}

impl Half {
    fn new(counter: Counter) -> Self {
        Self { kept: Vec::new(), written: 0, state: State::Open, unflushed: false, bytes: 0, counter }
    }

    /// Changes whenever a byte is read or written, or the direction ends.
    fn progress(&self) -> (u64, usize, State) {
        (self.bytes, self.kept.len() - self.written, self.state)
    }

    /// Ready when this direction is done, with the reader's error if it broke.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        match ready!(self.poll_open(cx, reader, writer)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(Fault::Reader(error)) => Poll::Ready(Err(error)),
            Err(Fault::Writer) => {
                // It takes nothing more, but may still have an answer to give in the other direction, whose end or error
                // then decides.
                self.state = State::Done;
                self.kept = Vec::new();
                self.written = 0;
                Poll::Ready(Ok(()))
            }
        }
    }

    fn poll_open<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if self.written < self.kept.len() {
                let count = ready!(write(cx, writer, &self.kept[self.written..]))?;
                self.written += count;
                if self.written == self.kept.len() {
                    self.kept = Vec::new();
                    self.written = 0;
                }
                continue;
            }
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::Ending => {
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(|_| Fault::Writer)?;
                    self.state = State::Done;
                }
                State::Open => match CHUNK.with_borrow_mut(|chunk| self.poll_chunk(cx, chunk, reader, writer)) {
                    Poll::Ready(done) => done?,
                    Poll::Pending if self.unflushed => {
                        ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(|_| Fault::Writer)?;
                        self.unflushed = false;
                        return Poll::Pending;
                    }
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }

    /// Reads once and writes as much of it as is taken at once; keeps the rest.
    fn poll_chunk<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut [u8],
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut buf = ReadBuf::new(chunk);
        match ready!(Pin::new(reader).poll_read(cx, &mut buf)) {
            Ok(()) => {}
            // TLS without close_notify: many peers end so, and Envoy takes it for an end.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Poll::Ready(Err(Fault::Reader(error))),
        }
        let mut read = buf.filled();
        if read.is_empty() {
            self.state = State::Ending;
            return Poll::Ready(Ok(()));
        }
        self.bytes += read.len() as u64;
        self.counter.increment(read.len() as u64);
        self.unflushed = true;
        while !read.is_empty() {
            match write(cx, writer, read) {
                Poll::Ready(count) => read = &read[count?..],
                Poll::Pending => {
                    self.kept = read.to_vec();
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn write<W: AsyncWrite + Unpin>(cx: &mut Context<'_>, writer: &mut W, bytes: &[u8]) -> Poll<Result<usize, Fault>> {
    match ready!(Pin::new(writer).poll_write(cx, bytes)) {
        Ok(0) | Err(_) => Poll::Ready(Err(Fault::Writer)),
        Ok(count) => Poll::Ready(Ok(count)),
    }
}

/// The idle time-out; its timer is not moved with each byte, but looked at when it rings.
struct Idle {
    limit: Duration,
    last: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        let last = Instant::now();
        Self { limit, last, timer: Box::pin(sleep_until(last + limit)) }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let end = self.last + self.limit;
            if Instant::now() >= end {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        net::{TcpListener, TcpStream},
        time::timeout,
    };

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    type Task = tokio::task::JoinHandle<(End, u64, u64)>;

    fn start(idle: Option<Duration>) -> (DuplexStream, DuplexStream, Task) {
        let ((client, first), (second, server)) = (duplex(512), duplex(512));
        let mut copy = Copy::new(first, second, Counter::noop(), Counter::noop());
        let task = tokio::spawn(async move {
            let end = copy.run(idle).await;
            (end, copy.forth_bytes(), copy.back_bytes())
        });
        (client, server, task)
    }

    #[tokio::test]
    async fn an_end_in_one_direction_leaves_the_other_open() {
        let (mut client, mut server, task) = start(None);
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        server.write_all(b"the answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "the answer");
        let (end, forth, back) = timeout(LIMIT, task).await.unwrap().unwrap();
        assert!(matches!(end, End::Closed));
        assert_eq!((forth, back), (8, 10));
    }

    #[tokio::test]
    async fn a_slow_reader_gets_every_byte_in_order() {
        let (mut client, mut server, task) = start(None);
        let sent: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        let (expected, writer) = (
            sent.clone(),
            tokio::spawn(async move {
                client.write_all(&sent).await.unwrap();
                client.shutdown().await.unwrap();
                client
            }),
        );
        let mut got = Vec::new();
        let mut some = [0; 97];
        loop {
            let count = server.read(&mut some).await.unwrap();
            if count == 0 {
                break;
            }
            got.extend_from_slice(&some[..count]);
            tokio::task::yield_now().await;
        }
        assert!(got == expected);
        drop((server, writer.await.unwrap()));
        assert!(matches!(timeout(LIMIT, task).await.unwrap().unwrap().0, End::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_every_byte_puts_that_off() {
        let (mut client, mut server, task) = start(Some(Duration::from_secs(10)));
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(8)).await;
            client.write_all(b"x").await.unwrap();
            server.read_u8().await.unwrap();
        }
        assert!(!task.is_finished());
        let before = Instant::now();
        assert!(matches!(task.await.unwrap().0, End::Idle));
        assert_eq!(before.elapsed().as_secs(), 10);
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_reset_is_told_from_an_end() {
        let ((client, first), (second, _server)) = (pair().await, pair().await);
        let mut copy = Copy::new(first, second, Counter::noop(), Counter::noop());
        crate::net::stream::abort(&client);
        drop(client);
        assert!(matches!(timeout(LIMIT, copy.run(None)).await.unwrap(), End::FirstBroke(_)));
    }

    #[tokio::test]
    async fn an_answer_arrives_though_its_sender_reads_no_more() {
        let ((mut client, first), (second, mut server)) = (duplex(64), duplex(1 << 20));
        let mut copy = Copy::new(first, second, Counter::noop(), Counter::noop());
        server.write_all(b"go away").await.unwrap();
        drop(server);
        let task = tokio::spawn(async move {
            let end = copy.run(None).await;
            drop(copy);
            end
        });
        client.write_all(b"more and more").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "go away");
        drop(client);
        assert!(matches!(timeout(LIMIT, task).await.unwrap().unwrap(), End::Closed));
    }
}
