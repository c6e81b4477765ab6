//! Serving: starts everything, waits for the end, ends gracefully.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Parts,
    signals::{Asked, Signals},
    sockets::{Bound, Close, Sockets},
    workers::Workers,
};
use crate::{
    admin::{Admin, Ask},
    args::Args,
    drain::Drain,
    healthcheck::Healthcheck,
    identity::Agent,
    logging::Logging,
    snapshot::Shared,
    xds::stream::Stream,
};

/// Serves until a signal or `/quitquitquit`.
pub(super) async fn serve(args: &Args, parts: Parts, logging: Logging, workers: usize) -> anyhow::Result<()> {
    let Parts { shared, bootstrap, client, files, control, dynamic, agent } = parts;
    let mut signals = Signals::listen().context("signal handlers")?;
    refuse_faulty_statics(&control.status.load().faults)?;
    let workers = Arc::new(Workers::start(workers).context("traffic threads")?);
    let bound = Arc::new(ArcSwap::from_pointee(Bound::default()));
    let mut sockets = Sockets::new(Arc::clone(&shared), Arc::clone(&workers), Arc::clone(&bound));
    sockets.reconcile();
    if let Some(fault) = bound.load().faults.values().next() {
        bail!("{fault}");
    }
    let (asks, mut asked) = mpsc::channel(8);
    let admin = Arc::new(Admin::new(
        args,
        Arc::clone(&shared),
        Arc::clone(&client),
        Arc::clone(&control.status),
        bound,
        Arc::clone(&bootstrap),
        logging.clone(),
        Arc::clone(&workers),
        agent.as_ref().map(Agent::progress),
        asks,
    ));
    let (close, closes) = mpsc::channel(8);
    if let Some(config) = &bootstrap.admin {
        admin.listen(config, args.admin_address_path.as_deref()).await?;
    }
    if let Some(probes) = Healthcheck::listen(args).await? {
        tokio::spawn(probes.serve());
    }
    tokio::spawn(sockets.run(closes));
    tokio::spawn(files.clone().watch());
    let stream = bootstrap.ads.as_ref().map(|ads| {
        let stream = Stream {
            ads: ads.clone(),
            node: bootstrap.node.clone(),
            shared: Arc::clone(&shared),
            client,
            files,
            changed: Arc::clone(&control.changed),
            outgoing: Arc::clone(&control.outgoing),
            options: dynamic,
        };
        stream.run()
    });
    tokio::spawn(begin(agent, stream));
    tokio::spawn(control.run());
    tracing::info!(version = env!("CARGO_PKG_VERSION"), workers = workers.count(), "serving");
    let reopen_logs = || {
        logging.reopen();
        shared.sinks.reopen();
    };
    // What has never been ready has nothing to serve on.
    let delay = || if admin.has_been_ready() { args.shutdown_delay } else { Duration::ZERO };
    serve_on(delay, &mut signals, &mut asked, &close, reopen_logs).await;
    admin.ending();
    close_listeners(&close, Close::All).await;
    let grace = args.shutdown_grace;
    tokio::select! {
        () = end(&shared, grace) => {}
        // A second one means now.
        () = asked_to_end(&mut signals) => {}
    }
    let sinks = shared.sinks.clone();
    // The writers are threads of their own; nothing else is left to do for this one.
    sinks.flush(FLUSH);
    Ok(())
}

/// Asks for configuration, once there is a certificate to ask with.
async fn begin(agent: Option<Agent>, stream: Option<impl Future<Output = ()> + Send + 'static>) {
    let mut agent = agent;
    if let Some(agent) = &mut agent {
        agent.first().await;
    }
    if let Some(stream) = stream {
        tokio::spawn(stream);
    }
    if let Some(agent) = agent {
        agent.run().await;
    }
}

/// Returns `delay`, as it is then, after the first signal to end, or at the second one or at `/quitquitquit`.
async fn serve_on(
    delay: impl Fn() -> Duration,
    signals: &mut Signals,
    asked: &mut mpsc::Receiver<Ask>,
    close: &mpsc::Sender<(Close, oneshot::Sender<()>)>,
    reopen_logs: impl Fn(),
) {
    let mut end: Option<Instant> = None;
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Asked::End if end.is_some() => return,
                Asked::End => {
                    let delay = delay();
                    if delay.is_zero() {
                        return;
                    }
                    tracing::info!(?delay, "told to end; serving on until then");
                    end = Some(Instant::now() + delay);
                }
                Asked::ReopenLogs => reopen_logs(),
            },
            ask = asked.recv() => match ask {
                Some(Ask::Quit) | None => return,
                Some(Ask::CloseListeners { which, after }) => {
                    let close = close.clone();
                    tokio::spawn(async move {
                        sleep(after).await;
                        close_listeners(&close, which).await;
                    });
                }
            },
            () = at(end) => return,
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn asked_to_end(signals: &mut Signals) {
    while signals.next().await != Asked::End {}
}

async fn close_listeners(close: &mpsc::Sender<(Close, oneshot::Sender<()>)>, which: Close) {
    let (done, closed) = oneshot::channel();
    if close.send((which, done)).await.is_ok() {
        // An error says that the sockets are gone already.
        let _ = closed.await;
    }
}

/// Lets open work finish for `grace`, then cuts it.
async fn end(shared: &Shared, grace: Duration) {
    let drain: &Drain = &shared.drain;
    tracing::info!(open = drain.count(), ?grace, "ending");
    drain.begin();
    if timeout(grace, drain.finished()).await.is_ok() {
        tracing::info!("all work finished");
        return;
    }
    tracing::warn!(open = drain.count(), "cutting what still runs");
    drain.cut();
    // They only have to log and close.
    let _ = timeout(LAST_WORDS, drain.finished()).await;
}

/// A bootstrap whose listeners or clusters can't be in force is refused at start. A secret file may come later.
fn refuse_faulty_statics(faults: &std::collections::BTreeMap<String, String>) -> anyhow::Result<()> {
    match faults.iter().find(|(what, _)| !what.starts_with("secret file")) {
        Some((what, why)) => bail!("{what}: {why}"),
        None => Ok(()),
    }
}

/// Longest wait for the writers of access logs at the end.
const FLUSH: Duration = Duration::from_secs(1);
/// Longest wait for connections that were cut.
const LAST_WORDS: Duration = Duration::from_millis(200);
