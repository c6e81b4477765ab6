//! Where lines go: one writer thread per file or stream, shared by all logs that name it.
//!
//! Producers never wait for a write: lines gather in one buffer up to a bound in bytes, what comes above is dropped and
//! counted. The thread wakes for the first line, lets more gather for a moment, and writes them at once; so a busy proxy pays
//! for no wake-up and no system call per line. It ends with the last handle.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    mem,
    path::PathBuf,
    sync::{Arc, Weak, mpsc},
    time::Duration,
};

use metrics::Counter;
use parking_lot::{Condvar, Mutex};

use crate::{
    config::access_log::Sink,
    telemetry::{Registry, Scope},
};

/// Most bytes that wait for one sink.
const MAX_QUEUED_BYTES: usize = 4 << 20;
/// Bytes that are written without waiting for more.
const BATCH_BYTES: usize = 64 << 10;
/// How long lines gather.
const GATHER: Duration = Duration::from_millis(20);

/// The sinks in use.
#[derive(Clone, Debug)]
pub struct Sinks {
    open: Arc<Mutex<HashMap<PathBuf, Weak<Queue>>>>,
    stats: Arc<Stats>,
}

#[derive(Debug)]
struct Stats {
    written: Counter,
    dropped: Counter,
    failed: Counter,
    reopen_failed: Counter,
}

/// A way into a sink.
#[derive(Clone, Debug)]
pub struct SinkHandle {
    queue: Arc<Queue>,
    stats: Arc<Stats>,
}

/// The producers' end; its end is the writer's.
#[derive(Debug)]
struct Queue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

/// What the writer finds.
#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    lines: u64,
    /// Bytes that the writer has taken and not yet written.
    in_hand: usize,
    /// The file is opened anew behind this many of the bytes.
    reopen: Option<usize>,
    flush: Vec<mpsc::Sender<()>>,
    closed: bool,
}

enum Target {
    Stdout,
    Stderr,
    File(File, PathBuf),
}

impl Sinks {
    /// No sink is open. Counts `access_log_file.{write_completed,lines_dropped,write_failed,reopen_failed}`.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        let counter = |name| registry.counter(&Scope::plain("access_log_file"), name);
        let stats = Stats {
            written: counter("write_completed"),
            dropped: counter("lines_dropped"),
            failed: counter("write_failed"),
            reopen_failed: counter("reopen_failed"),
        };
        Self { open: Arc::default(), stats: Arc::new(stats) }
    }

    /// A handle to the sink, opened (files: created, appended to) unless it is open already.
    /// A path of `/dev/stdout` or `/dev/stderr` is that stream.
    ///
    /// # Errors
    /// Words with the path when the file can't be opened or no thread can be started.
    pub fn open(&self, sink: &Sink) -> Result<SinkHandle, String> {
        let path = match sink {
            Sink::Stdout => PathBuf::from("/dev/stdout"),
            Sink::Stderr => PathBuf::from("/dev/stderr"),
            Sink::File(path) => path.clone(),
        };
        let mut open = self.open.lock();
        open.retain(|_, queue| queue.strong_count() > 0);
        if let Some(queue) = open.get(&path).and_then(Weak::upgrade) {
            return Ok(SinkHandle { queue, stats: Arc::clone(&self.stats) });
        }
        let target = Target::open(&path).map_err(|e| format!("access log {}: {e}", path.display()))?;
        let shared = Arc::<Shared>::default();
        let writer = Writer { target, shared: Arc::clone(&shared), stats: Arc::clone(&self.stats) };
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| format!("access log {}: no thread: {e}", path.display()))?;
        let queue = Arc::new(Queue(shared));
        open.insert(path, Arc::downgrade(&queue));
        Ok(SinkHandle { queue, stats: Arc::clone(&self.stats) })
    }

    /// Has all files opened anew (SIGUSR1, after a log rotation). Lines queued before go to the old file.
    pub fn reopen(&self) {
        for queue in self.open.lock().values().filter_map(Weak::upgrade) {
            queue.0.tell(|waiting| waiting.reopen = Some(waiting.bytes.len()));
        }
    }

    /// Waits until all lines queued so far are written, at most `limit` per sink. Blocks: for the end of the process.
    pub fn flush(&self, limit: Duration) {
        let queues: Vec<_> = self.open.lock().values().filter_map(Weak::upgrade).collect();
        for queue in queues {
            let (done, wait) = mpsc::channel();
            queue.0.tell(|waiting| waiting.flush.push(done));
            // A writer that hangs is not waited for longer.
            let _ = wait.recv_timeout(limit);
        }
    }
}

impl SinkHandle {
    /// Queues a line; drops it (counted) when the sink is too far behind.
    pub fn write(&self, line: &str) {
        let shared = &self.queue.0;
        let mut waiting = shared.waiting.lock();
        let before = waiting.bytes.len();
        if before + waiting.in_hand + line.len() > MAX_QUEUED_BYTES {
            drop(waiting);
            self.stats.dropped.increment(1);
            return;
        }
        waiting.bytes.extend_from_slice(line.as_bytes());
        waiting.lines += 1;
        let full = waiting.bytes.len() >= BATCH_BYTES && before < BATCH_BYTES;
        drop(waiting);
        if before == 0 || full {
            shared.wake.notify_one();
        }
    }
}

impl Shared {
    fn tell(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.waiting.lock());
        self.wake.notify_one();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.0.tell(|waiting| waiting.closed = true);
    }
}

impl Waiting {
    fn is_urgent(&self) -> bool {
        self.reopen.is_some() || self.closed || !self.flush.is_empty() || self.bytes.len() >= BATCH_BYTES
    }
}

struct Writer {
    target: Target,
    shared: Arc<Shared>,
    stats: Arc<Stats>,
}

impl Writer {
    fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let (lines, reopen, flush, closed) = self.next(&mut batch);
            let (old, new) = batch.split_at(reopen.unwrap_or(batch.len()));
            let mut written = self.write(old);
            if reopen.is_some() {
                self.reopen();
                written &= self.write(new);
            }
            if written { &self.stats.written } else { &self.stats.failed }.increment(lines);
            batch.clear();
            batch.shrink_to(2 * BATCH_BYTES);
            for done in flush {
                // The one who asked may have given up.
                let _ = done.send(());
            }
            if closed {
                return;
            }
        }
    }

    /// Waits for work, lets lines gather, and takes all there is.
    fn next(&self, batch: &mut Vec<u8>) -> (u64, Option<usize>, Vec<mpsc::Sender<()>>, bool) {
        let mut waiting = self.shared.waiting.lock();
        waiting.in_hand = 0;
        while waiting.bytes.is_empty() && !waiting.is_urgent() {
            self.shared.wake.wait(&mut waiting);
        }
        if !waiting.is_urgent() {
            self.shared.wake.wait_for(&mut waiting, GATHER);
        }
        mem::swap(&mut waiting.bytes, batch);
        waiting.in_hand = batch.len();
        let lines = mem::take(&mut waiting.lines);
        (lines, mem::take(&mut waiting.reopen), mem::take(&mut waiting.flush), waiting.closed)
    }

    /// False when it failed.
    fn write(&mut self, bytes: &[u8]) -> bool {
        match self.target.write(bytes) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "access log write failed");
                false
            }
        }
    }

    fn reopen(&mut self) {
        if let Target::File(_, path) = &self.target {
            match Target::open(&path.clone()) {
                Ok(target) => self.target = target,
                Err(error) => {
                    self.stats.reopen_failed.increment(1);
                    tracing::warn!(path = %path.display(), %error, "access log not reopened, the old file stays in use");
                }
            }
        }
    }
}

impl Target {
    fn open(path: &PathBuf) -> io::Result<Self> {
        match path.to_str() {
            Some("/dev/stdout") => Ok(Self::Stdout),
            Some("/dev/stderr") => Ok(Self::Stderr),
            _ => Ok(Self::File(File::options().create(true).append(true).open(path)?, path.clone())),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            Self::Stderr => io::stderr().lock().write_all(bytes),
            Self::File(file, _) => file.write_all(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn lines_of_all_handles_reach_the_file_whole_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let registry = Registry::default();
        let sinks = Sinks::new(&registry);
        let (one, two) =
            (sinks.open(&Sink::File(path.clone())).unwrap(), sinks.open(&Sink::File(path.clone())).unwrap());
        for i in 0..1_000 {
            one.write(&format!("{i}\n"));
        }
        two.write("end\n");
        sinks.flush(LIMIT);
        let written = std::fs::read_to_string(&path).unwrap();
        let expected: String = (0..1_000).map(|i| format!("{i}\n")).chain(["end\n".to_owned()]).collect();
        assert_eq!(written, expected);
        assert_eq!(registry.value("access_log_file.write_completed"), Some(1_001));
    }

    #[test]
    fn a_rotated_file_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
        let sinks = Sinks::new(&Registry::default());
        let handle = sinks.open(&Sink::File(path.clone())).unwrap();
        handle.write("before\n");
        sinks.flush(LIMIT);
        std::fs::rename(&path, &old).unwrap();
        sinks.reopen();
        handle.write("after\n");
        sinks.flush(LIMIT);
        assert_eq!(std::fs::read_to_string(old).unwrap(), "before\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "after\n");
    }

    #[test]
    fn a_stalled_sink_drops_and_counts_what_is_above_the_bound() {
        let registry = Registry::default();
        let stats = Sinks::new(&registry).stats;
        // Nobody writes what waits here.
        let handle = SinkHandle { queue: Arc::new(Queue(Arc::default())), stats };
        for _ in 0..5_000 {
            handle.write(&"x".repeat(1_000));
        }
        let dropped = registry.value("access_log_file.lines_dropped").unwrap();
        assert_eq!(dropped, 5_000 - i64::try_from(MAX_QUEUED_BYTES / 1_000).unwrap());
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let error = Sinks::new(&Registry::default()).open(&Sink::File("/nonexistent/log".into())).unwrap_err();
        assert!(error.contains("/nonexistent/log"), "{error}");
    }
}
