//! Keeps the listening sockets in step with the snapshot.
//!
//! A listener that changes in place keeps its socket as long as its address stays; one that moves keeps its old socket until
//! the new one is bound, unless the old one is in the way (a narrower address on the same port, two listeners that change
//! places): then the old one goes first. A socket that can't be bound is reported, tried again, and hurts no other listener.

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
        for config in &wanted {
            let config = Arc::clone(config);
            if let Some(open) = self.open.get_mut(&config.name)
                && same_socket(&open.config, &config)
            {
                if open.config.backlog != config.backlog
                    && let Err(error) = listen::set_backlog(&open.socket, config.backlog)
                {
                    faults.insert(Arc::clone(&config.name), format!("listener {}: backlog: {error}", config.name));
                }
                open.config = config;
                continue;
            }
            let reused = free.iter().position(|open| same_socket(&open.config, &config)).map(|at| free.swap_remove(at));
            let socket = match reused {
                Some(open) => {
                    open.accepting.begin();
                    Ok(open.socket)
                }
                None => listen::bind(&config).map_err(|error| {
                    if error.is_in_use() {
                        self.clear_way(&config, &wanted);
                    }
                    error.to_string()
                }),
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

    /// Closes the sockets on the port of `config` that their own listeners no longer want: they would keep it from ever being
    /// bound, and go on to take what it shall not. The next try finds the port free.
    fn clear_way(&mut self, config: &Listener, wanted: &[Arc<Listener>]) {
        self.open.retain(|name, open| {
            let outdated = wanted.iter().any(|w| w.name == *name && !same_socket(&open.config, w));
            let in_the_way = outdated && open.config.address.port() == config.address.port();
            if in_the_way {
                open.accepting.begin();
            }
            !in_the_way
        });
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
    a.address == b.address && a.ipv4_compat == b.ipv4_compat
}

/// Wait before a socket that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::{
        config::listener::ChainIndex,
        snapshot::{self, Snapshot},
        telemetry::{access_log::Loggers, listener::ListenerStats},
    };

    const LIMIT: Duration = Duration::from_secs(20);

    fn config(name: &str, address: &str) -> Listener {
        Listener {
            name: name.into(),
            address: address.parse().unwrap(),
            ipv4_compat: false,
            direction: Direction::Unspecified,
            listener_filters: Vec::new(),
            listener_filters_timeout: Duration::ZERO,
            continue_on_timeout: false,
            chains: Vec::new(),
            default_chain: None,
            access_log: Vec::new(),
            stat_prefix: None,
            backlog: None,
        }
    }

    /// Sockets of a proxy whose control plane wants what it is told.
    struct World(Sockets);

    impl World {
        fn new() -> Self {
            let workers = Arc::new(Workers::start(1).unwrap());
            Self(Sockets::new(Arc::new(Shared::new()), workers, Arc::default()))
        }

        fn want(&mut self, configs: &[Listener]) {
            let shared = &self.0.shared;
            let listener = |config: &Listener| snapshot::Listener {
                index: ChainIndex::new(&config.chains),
                stats: ListenerStats::new(&shared.metrics, &config.name),
                loggers: Arc::new(Loggers::build(&[], &shared.sinks).unwrap()),
                chains: Vec::new(),
                default_chain: None,
                drain: shared.drain.child(),
                config: Arc::new(config.clone()),
            };
            let listeners = configs.iter().map(|c| (Arc::clone(&c.name), Arc::new(listener(c)))).collect();
            self.0.shared.store.publish(Snapshot { listeners, ..Snapshot::default() });
        }

        /// Reconciles until every listener has its socket.
        async fn settled(&mut self) -> BTreeMap<Name, SocketAddr> {
            tokio::time::timeout(LIMIT, async {
                loop {
                    self.0.reconcile();
                    let bound = self.0.bound.load_full();
                    if bound.faults.is_empty() {
                        return bound.addresses.clone();
                    }
                    sleep(Duration::from_millis(10)).await;
                }
            })
            .await
            .expect("all listeners are bound in the end")
        }
    }

    fn free_port() -> u16 {
        TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn a_listener_that_narrows_its_address_lets_go_of_the_wide_one() {
        let port = free_port();
        let mut world = World::new();
        world.want(&[config("l", &format!("0.0.0.0:{port}"))]);
        world.settled().await;
        assert!(TcpStream::connect(("127.0.0.2", port)).is_ok());
        world.want(&[config("l", &format!("127.0.0.1:{port}"))]);
        let bound = world.settled().await;
        assert_eq!(bound["l"].to_string(), format!("127.0.0.1:{port}"));
        assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
        assert!(TcpStream::connect(("127.0.0.2", port)).is_err(), "the wide socket still listens");
    }

    #[tokio::test]
    async fn two_listeners_change_places() {
        let [a, b] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
        let mut world = World::new();
        world.want(&[config("x", &a), config("y", &b)]);
        world.settled().await;
        world.want(&[config("x", &b), config("y", &a)]);
        let bound = world.settled().await;
        assert_eq!((bound["x"].to_string(), bound["y"].to_string()), (b, a));
    }

    #[tokio::test]
    async fn another_backlog_needs_no_other_socket() {
        let mut world = World::new();
        world.want(&[config("l", "127.0.0.1:0")]);
        let before = world.settled().await;
        world.want(&[Listener { backlog: Some(7), ..config("l", "127.0.0.1:0") }]);
        assert_eq!(world.settled().await, before);
    }
}
