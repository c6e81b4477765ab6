//! WebSocket over HTTP/1: who may have it, and the tunnel after a 101.
//!
//! Bytes that a client sends before the 101 stay with hyper and go nowhere unless it comes. Another answer is an ordinary
//! one. A tunnel outlives changes of configuration; it ends with either side, after silence, or when a drain is cut off.

use std::{sync::Arc, time::Duration};

use http::header;
use http_body::Body as _;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, sleep_until, timeout},
};

use super::{
    exchange::{Context, Exchange},
    record::Finish,
    step::{Step, Stop},
};
use crate::{body::End, drain::Drain, error::Reason, upstream::Upgrade};

/// Decides on requests that ask for another protocol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upgrades;

impl Step for Upgrades {
    fn request(self, exchange: &mut Exchange) -> Result<(), Stop> {
        let Some(wanted) = exchange.request.headers().get(header::UPGRADE) else { return Ok(()) };
        // HTTP/2 has no such field, and h2c is not spoken here: RFC 9110 section 7.8 lets a server ignore it.
        if exchange.cx.is_http2() || wanted.as_bytes().eq_ignore_ascii_case(b"h2c") {
            exchange.request.headers_mut().remove(header::UPGRADE);
            return Ok(());
        }
        let cx = Arc::clone(&exchange.cx);
        let websocket = wanted.as_bytes().eq_ignore_ascii_case(b"websocket");
        let of_route = cx.matched.get().and_then(|m| m.route().forward()).and_then(|forward| forward.websocket);
        let allowed = of_route.unwrap_or(cx.conn.http.config.websocket);
        // A body before the 101 would have to be forwarded before the server agrees.
        if !websocket || !allowed || !exchange.request.body().is_end_stream() {
            cx.conn.http.stats.downstream_rq_ws_on_non_ws_route.increment(u64::from(websocket));
            return Err(Reason::UpgradeRefused.into());
        }
        let _first = cx.websocket.set(());
        *cx.upgrade.lock() = Some(hyper::upgrade::on(&mut exchange.request));
        Ok(())
    }
}

/// Starts the tunnel of an exchange that was answered with 101. `finish` is told when it ends.
pub(super) fn start(cx: &Arc<Context>, finish: Box<Finish>) {
    let (downstream, upstream) = (cx.upgrade.lock().take(), cx.tunnel.lock().take());
    let (Some(downstream), Some(upstream)) = (downstream, upstream) else {
        return finish.over(End::Dropped, 0);
    };
    cx.conn.http.stats.downstream_cx_upgrades_total.increment(1);
    let config = &cx.conn.http.config;
    let of_route = cx.matched.get().and_then(|m| m.route().forward()).and_then(|forward| forward.idle_timeout);
    let idle = of_route.unwrap_or(config.stream_idle_timeout);
    let limits = Limits { idle, until: config.max_stream_duration.map(|limit| cx.started + limit) };
    let drain = cx.conn.drain.clone();
    let running = drain.running();
    tokio::spawn(async move {
        let (sent, end) = run(downstream, upstream, limits, &drain).await;
        finish.over(end, sent);
        drop(running);
    });
}

/// Time limits of a tunnel.
struct Limits {
    /// Longest silence; zero is none.
    idle: Duration,
    /// The longest life's end.
    until: Option<Instant>,
}

/// Copies until the end. Gives the bytes sent to the client.
async fn run(
    downstream: hyper::upgrade::OnUpgrade,
    upstream: Upgrade,
    limits: Limits,
    drain: &Drain,
) -> (u64, End<'static>) {
    let (Ok(client), Ok(server)) = tokio::join!(downstream, upstream.into_io()) else { return (0, End::Dropped) };
    let (client_read, client_write) = tokio::io::split(TokioIo::new(client));
    let (server_read, server_write) = tokio::io::split(server);
    let activity = Activity::default();
    let mut sent = 0;
    let mut received = 0;
    let copied = async {
        let up = copy(client_read, server_write, &mut received, &activity);
        let down = copy(server_read, client_write, &mut sent, &activity);
        tokio::try_join!(up, down)
    };
    let end = tokio::select! {
        copied = copied => if copied.is_ok() { End::Complete } else { End::Dropped },
        () = activity.silent_for(limits.idle) => End::Dropped,
        () = sleep_until(limits.until.unwrap_or_else(Instant::now)), if limits.until.is_some() => End::Dropped,
        () = drain.cut_off() => End::Dropped,
    };
    (sent, end)
}

/// Copies one direction and passes its end on.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    total: &mut u64,
    activity: &Activity,
) -> std::io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        activity.seen();
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        *total += read as u64;
    }
}

/// When bytes were last seen, in either direction.
#[derive(Default)]
struct Activity(std::sync::atomic::AtomicU64);

impl Activity {
    fn seen(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Ready when nothing was seen for `limit`; never with zero.
    async fn silent_for(&self, limit: Duration) {
        let count = || self.0.load(std::sync::atomic::Ordering::Relaxed);
        if limit.is_zero() {
            return std::future::pending().await;
        }
        let mut before = count();
        loop {
            // Looks four times per limit, so that the end comes at most a quarter late.
            for look in 0..4 {
                let _elapsed = timeout(limit / 4, std::future::pending::<()>()).await;
                let now = count();
                if now != before {
                    before = now;
                    break;
                }
                if look == 3 {
                    return;
                }
            }
        }
    }
}

const COPY_BYTES: usize = 8 << 10;
