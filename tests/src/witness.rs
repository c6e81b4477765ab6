//! A server that sees everything: it records what each connection brought and answers each request by its path.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::alone::message_end;

/// A server of the test's own, stopped when dropped.
pub struct Witness {
    /// Where it listens, on loopback.
    pub port: u16,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    connections: u64,
    requests: Vec<Vec<u8>>,
    /// What did not become a whole request.
    rest: Vec<u8>,
}

/// One request as the server saw it.
pub struct Asked {
    /// Head and body as they came.
    pub bytes: Vec<u8>,
    /// The target of the request line.
    pub path: String,
}

impl Witness {
    /// `answer` gets each whole request and writes what it likes; `false` ends the connection.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start<F>(answer: impl Fn(Asked, TcpStream) -> F + Clone + Send + 'static) -> Result<Self>
    where
        F: Future<Output = Option<TcpStream>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let seen = Arc::<Mutex<Seen>>::default();
        let record = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                lock(&record).connections += 1;
                tokio::spawn(serve(stream, Arc::clone(&record), answer.clone()));
            }
        });
        Ok(Self { port, seen, task })
    }

    /// Answers every request with 200 and a short body.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn ok() -> Result<Self> {
        Self::start(|_, stream| say(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec())).await
    }

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        lock(&self.seen).connections
    }

    /// Whole requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        lock(&self.seen).requests.iter().map(|r| String::from_utf8_lossy(r).into_owned()).collect()
    }

    /// Forgets what was seen and returns it: whole requests, and bytes that never became one.
    #[must_use]
    pub fn take(&self) -> (Vec<String>, String) {
        let mut seen = lock(&self.seen);
        let requests = std::mem::take(&mut seen.requests);
        let rest = std::mem::take(&mut seen.rest);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (requests.iter().map(|r| text(r)).collect(), text(&rest))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Writes an answer and keeps the connection.
pub async fn say(mut stream: TcpStream, answer: Vec<u8>) -> Option<TcpStream> {
    stream.write_all(&answer).await.ok()?;
    Some(stream)
}

/// Writes an answer and closes.
pub async fn say_last(mut stream: TcpStream, answer: Vec<u8>) -> Option<TcpStream> {
    stream.write_all(&answer).await.ok()?;
    // The end is seen before the socket is gone, so that no reset overtakes the answer.
    stream.shutdown().await.ok()?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    None
}

async fn serve<F>(mut stream: TcpStream, record: Arc<Mutex<Seen>>, answer: impl Fn(Asked, TcpStream) -> F)
where
    F: Future<Output = Option<TcpStream>>,
{
    let mut pending = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        while let Some(end) = message_end(&pending, true) {
            let rest = pending.split_off(end);
            let bytes = std::mem::replace(&mut pending, rest);
            let path = String::from_utf8_lossy(&bytes).split(' ').nth(1).unwrap_or_default().to_owned();
            lock(&record).requests.push(bytes.clone());
            match answer(Asked { bytes, path }, stream).await {
                Some(kept) => stream = kept,
                None => return,
            }
        }
        match stream.read(&mut buffer).await {
            Ok(read @ 1..) => pending.extend_from_slice(&buffer[..read]),
            _ => break,
        }
    }
    lock(&record).rest.extend(pending);
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
