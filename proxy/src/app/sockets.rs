//! Keeps the listening sockets in step with the snapshot.
//!
//! A listener that changes in place keeps its socket as long as its address stays. A socket that can't be bound is
//! reported, tried again, and hurts no other listener.

use std::{
    collections::{BTreeMap, HashMap},
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use metrics::Counter;
use tokio::{sync::mpsc, time::sleep};

use super::workers::Workers;
use crate::{
    config::{
        Name,
        listener::{Direction, Listener},
    },
    drain::Drain,
    net::listen,
    snapshot::Shared,
    telemetry::Scope,
};

/// What is open, for people.
#[derive(Clone, Debug, Default)]
pub struct Bound {
    /// Addresses as bound, by listener.
    pub addresses: BTreeMap<Name, SocketAddr>,
    /// Why a listener has no socket.
    pub faults: BTreeMap<Name, String>,
}

/// Which listeners are closed although the snapshot has them (`/drain_listeners`, the end of the process).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// All of them.
    All,
    /// Those towards the local application.
    Inbound,
}

/// See the module.
#[derive(Debug)]
pub struct Sockets {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    open: HashMap<Name, Open>,
    closed: Option<Close>,
    bound: Arc<ArcSwap<Bound>>,
    failures: Counter,
}

#[derive(Debug)]
struct Open {
    config: Arc<Listener>,
    socket: TcpListener,
    accepting: Drain,
}

impl Sockets {
    /// Nothing open. `bound` is kept up to date.
    #[must_use]
    pub fn new(shared: Arc<Shared>, workers: Arc<Workers>, bound: Arc<ArcSwap<Bound>>) -> Self {
        let failures = shared.metrics.counter(&Scope::plain("listener_manager"), "listener_create_failure");
        Self { shared, workers, open: HashMap::new(), closed: None, bound, failures }
    }

    /// Follows the snapshot for ever. What comes over `close` is closed and stays so; the answer tells that it is done.
    pub async fn run(mut self, mut close: mpsc::Receiver<(Close, tokio::sync::oneshot::Sender<()>)>) {
        let mut news = self.shared.store.changed();
        loop {
            news.mark_unchanged();
            self.reconcile();
            let again = async {
                match self.bound.load().faults.is_empty() {
                    true => std::future::pending().await,
                    false => sleep(RETRY).await,
                }
            };
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                Some((which, done)) = close.recv() => {
                    self.closed = Some(if self.closed == Some(Close::All) { Close::All } else { which });
                    self.reconcile();
                    // Nobody waits for it any more: fine.
                    let _ = done.send(());
                }
                () = again => {}
            }
        }
    }

    /// Opens and closes what the snapshot of the moment asks for.
    pub fn reconcile(&mut self) {
        let snapshot = self.shared.store.current();
        let wanted: Vec<Arc<Listener>> = snapshot
            .listeners
            .values()
            .map(|l| Arc::clone(&l.config))
            .filter(|config| !self.is_closed(config))
            .collect();
        let mut free = self.take_unwanted(&wanted);
        let mut faults = BTreeMap::new();
        for config in wanted {
            if let Some(open) = self.open.get_mut(&config.name)
                && same_socket(&open.config, &config)
            {
                open.config = config;
                continue;
            }
            let reused = free.iter().position(|open| same_socket(&open.config, &config)).map(|at| free.swap_remove(at));
            let socket = match reused {
                Some(open) => {
                    open.accepting.begin();
                    Ok(open.socket)
                }
                None => listen::bind(&config).map_err(|error| error.to_string()),
            };
            match socket.and_then(|socket| self.accept(&config, socket)) {
                Ok(()) => {}
                Err(error) => {
                    self.failures.increment(1);
                    faults.insert(Arc::clone(&config.name), error);
                }
            }
        }
        free.iter().for_each(|open| open.accepting.begin());
        self.tell(faults);
    }

    fn is_closed(&self, config: &Listener) -> bool {
        match self.closed {
            None => false,
            Some(Close::All) => true,
            Some(Close::Inbound) => config.direction == Direction::Inbound,
        }
    }

    fn take_unwanted(&mut self, wanted: &[Arc<Listener>]) -> Vec<Open> {
        let gone: Vec<Name> =
            self.open.keys().filter(|name| wanted.iter().all(|config| config.name != **name)).cloned().collect();
        gone.iter().filter_map(|name| self.open.remove(name)).collect()
    }

    /// Accepts on all workers. A listener that moved keeps its old socket until this has worked.
    fn accept(&mut self, config: &Arc<Listener>, socket: TcpListener) -> Result<(), String> {
        let accepting = self.shared.drain.child();
        let count = self.workers.count();
        let clones: Result<Vec<TcpListener>, _> = (0..count).map(|_| socket.try_clone()).collect();
        let mut clones = clones.map_err(|error| format!("listener {}: {error}", config.name))?.into_iter();
        self.workers.on_each(|worker| {
            let (name, shared, accepting) = (Arc::clone(&config.name), Arc::clone(&self.shared), accepting.clone());
            let clone = clones.next();
            async move {
                let Some(clone) = clone else { return };
                if let Err(error) = listen::serve(clone, Arc::clone(&name), shared, worker, accepting).await {
                    tracing::error!(listener = %name, worker, %error, "does not accept");
                }
            }
        });
        let address = socket.local_addr().unwrap_or(config.address);
        tracing::info!(listener = %config.name, %address, "listening");
        let open = Open { config: Arc::clone(config), socket, accepting };
        if let Some(old) = self.open.insert(Arc::clone(&config.name), open) {
            old.accepting.begin();
        }
        Ok(())
    }

    fn tell(&self, faults: BTreeMap<Name, String>) {
        let before = self.bound.load();
        for (listener, fault) in faults.iter().filter(|(name, fault)| before.faults.get(*name) != Some(*fault)) {
            tracing::error!(%listener, error = fault, "does not listen, tried again every second");
        }
        let addresses =
            self.open.iter().filter_map(|(name, open)| Some((Arc::clone(name), open.socket.local_addr().ok()?)));
        self.bound.store(Arc::new(Bound { addresses: addresses.collect(), faults }));
    }
}

fn same_socket(a: &Listener, b: &Listener) -> bool {
    a.address == b.address && a.ipv4_compat == b.ipv4_compat && a.backlog == b.backlog
}

/// Wait before a socket that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(1);
