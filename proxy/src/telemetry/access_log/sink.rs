//! Where lines go: one writer thread per file or stream, shared by all logs that name it.
//!
//! Producers never wait: lines queue up to a bound in bytes, what comes above is dropped and counted. The thread writes
//! what has queued up at once, and ends with the last handle.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use metrics::Counter;
use parking_lot::Mutex;

use crate::{
    config::access_log::Sink,
    telemetry::{Registry, Scope},
};

/// Most bytes that wait for one sink.
const MAX_QUEUED_BYTES: usize = 4 << 20;
/// Bytes after which a batch is written though more wait.
const BATCH_BYTES: usize = 64 << 10;

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

#[derive(Debug)]
struct Queue {
    jobs: mpsc::Sender<Job>,
    queued: Arc<AtomicUsize>,
}

enum Job {
    Line(String),
    Reopen,
    Flush(mpsc::Sender<()>),
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
        let (jobs, work) = mpsc::channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let writer =
            Writer { target, work, queued: Arc::clone(&queued), stats: Arc::clone(&self.stats), batch: Vec::new() };
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| format!("access log {}: no thread: {e}", path.display()))?;
        let queue = Arc::new(Queue { jobs, queued });
        open.insert(path, Arc::downgrade(&queue));
        Ok(SinkHandle { queue, stats: Arc::clone(&self.stats) })
    }

    /// Has all files opened anew (SIGUSR1, after a log rotation). Lines queued before go to the old file.
    pub fn reopen(&self) {
        for queue in self.open.lock().values().filter_map(Weak::upgrade) {
            // A writer that has ended has nothing to reopen.
            let _ = queue.jobs.send(Job::Reopen);
        }
    }

    /// Waits until all lines queued so far are written, at most `limit` per sink. Blocks: for the end of the process.
    pub fn flush(&self, limit: Duration) {
        let queues: Vec<_> = self.open.lock().values().filter_map(Weak::upgrade).collect();
        for queue in queues {
            let (done, wait) = mpsc::channel();
            if queue.jobs.send(Job::Flush(done)).is_ok() {
                let _ = wait.recv_timeout(limit);
            }
        }
    }
}

impl SinkHandle {
    /// Queues a line; drops it (counted) when the sink is too far behind.
    pub fn write(&self, line: String) {
        let length = line.len();
        if self.queue.queued.fetch_add(length, Relaxed) + length > MAX_QUEUED_BYTES
            || self.queue.jobs.send(Job::Line(line)).is_err()
        {
            self.queue.queued.fetch_sub(length, Relaxed);
            self.stats.dropped.increment(1);
        }
    }
}

struct Writer {
    target: Target,
    work: mpsc::Receiver<Job>,
    queued: Arc<AtomicUsize>,
    stats: Arc<Stats>,
    batch: Vec<u8>,
}

impl Writer {
    fn run(mut self) {
        let mut lines = 0;
        while let Ok(job) = self.work.recv() {
            let mut next = Some(job);
            while let Some(job) = next {
                match job {
                    Job::Line(line) => {
                        self.batch.extend_from_slice(line.as_bytes());
                        lines += 1;
                    }
                    Job::Reopen => {
                        self.write(&mut lines);
                        self.reopen();
                    }
                    Job::Flush(done) => {
                        self.write(&mut lines);
                        // The one who asked may have given up.
                        let _ = done.send(());
                    }
                }
                if self.batch.len() >= BATCH_BYTES {
                    self.write(&mut lines);
                }
                next = self.work.try_recv().ok();
            }
            self.write(&mut lines);
        }
    }

    fn write(&mut self, lines: &mut u64) {
        if self.batch.is_empty() {
            return;
        }
        match self.target.write(&self.batch) {
            Ok(()) => self.stats.written.increment(*lines),
            Err(error) => {
                self.stats.failed.increment(*lines);
                tracing::debug!(%error, "access log write failed");
            }
        }
        self.queued.fetch_sub(self.batch.len(), Relaxed);
        *lines = 0;
        self.batch.clear();
        self.batch.shrink_to(BATCH_BYTES);
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
            one.write(format!("{i}\n"));
        }
        two.write("end\n".to_owned());
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
        handle.write("before\n".to_owned());
        sinks.flush(LIMIT);
        std::fs::rename(&path, &old).unwrap();
        sinks.reopen();
        handle.write("after\n".to_owned());
        sinks.flush(LIMIT);
        assert_eq!(std::fs::read_to_string(old).unwrap(), "before\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "after\n");
    }

    #[test]
    fn a_stalled_sink_drops_and_counts_what_is_above_the_bound() {
        let registry = Registry::default();
        let (jobs, _stalled) = mpsc::channel();
        let stats = Sinks::new(&registry).stats;
        let handle = SinkHandle { queue: Arc::new(Queue { jobs, queued: Arc::default() }), stats };
        for _ in 0..5_000 {
            handle.write("x".repeat(1_000));
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
