//! The traffic threads: each one a runtime of its own, on which connections live from accept to end.

use std::{io, sync::mpsc, thread, time::Duration};

use tokio::{
    runtime::{Builder, Handle},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// The running traffic threads. They end when this is dropped.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<Handle>,
    stop: CancellationToken,
}

impl Workers {
    /// Starts `count` threads, numbered from 0.
    ///
    /// # Errors
    /// When the system gives no thread or no event queue.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut workers = Self { handles: Vec::with_capacity(count), stop: stop.clone() };
        for number in 0..count {
            let (tell, told) = mpsc::channel();
            let stop = stop.clone();
            thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                let runtime = match Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(tell.send(Err(error))),
                };
                if tell.send(Ok(runtime.handle().clone())).is_ok() {
                    runtime.block_on(stop.cancelled());
                }
            })?;
            let handle = told.recv().map_err(|_| io::Error::other("a traffic thread ended at its start"))??;
            workers.handles.push(handle);
        }
        Ok(workers)
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// Runs a future on each of the threads; `make` is told the thread's number.
    pub fn on_each<F>(&self, mut make: impl FnMut(usize) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        for (number, handle) in self.handles.iter().enumerate() {
            handle.spawn(make(number));
        }
    }

    /// True if all of the threads take up a task within `limit`: they serve, and none is stuck.
    pub async fn respond(&self, limit: Duration) -> bool {
        let probes: Vec<JoinHandle<()>> = self.handles.iter().map(|handle| handle.spawn(async {})).collect();
        let all = async {
            for probe in probes {
                if probe.await.is_err() {
                    return false;
                }
            }
            true
        };
        timeout(limit, all).await.unwrap_or(false)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Workers;

    #[tokio::test]
    async fn readiness_is_that_of_the_slowest_traffic_thread() {
        let workers = Workers::start(2).unwrap();
        assert!(workers.respond(Duration::from_secs(10)).await);
        let (release, held) = std::sync::mpsc::channel::<()>();
        let mut held = Some(held);
        workers.on_each(|number| {
            let held = if number == 1 { held.take() } else { None };
            async move {
                // Stands for a task that does not let go of its thread.
                held.map(|held| held.recv());
            }
        });
        assert!(!workers.respond(Duration::from_millis(50)).await);
        drop(release);
        assert!(workers.respond(Duration::from_secs(10)).await);
    }
}
