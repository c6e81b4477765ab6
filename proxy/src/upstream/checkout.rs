//! Finds a connection for a request: an idle one, or a new one within the limits, after a wait if need be.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    cluster::{Cluster, TlsGeneration},
    connect,
    endpoint::Endpoint,
    error::{ErrorKind, UpstreamError},
    h2::{H2, Stream},
    limits::{ConnectionPermit, PendingPermit},
    pool::{H1, Slot},
};

impl Cluster {
    /// An HTTP/1 connection for one request, and the time that opening it took if it is new.
    pub(super) async fn checkout_http1(
        &self,
        slot: &Slot,
        endpoint: &Endpoint,
    ) -> Result<(Box<H1>, Option<Duration>), UpstreamError> {
        match slot.take(self.tls_number()) {
            Some(conn) => Ok((conn, None)),
            // In a box of its own, so that requests that find a connection don't carry its size.
            None => Box::pin(self.open_http1(slot, endpoint)).await,
        }
    }

    async fn open_http1(&self, slot: &Slot, endpoint: &Endpoint) -> Result<(Box<H1>, Option<Duration>), UpstreamError> {
        let since = Instant::now();
        let pending = Pending::enter(self)?;
        match self.wait_for_connection(slot, || slot.take(self.tls_number())).await? {
            Found::Idle(conn) => Ok((conn, None)),
            Found::Permit(permit) => {
                let tls = self.tls_or_refuse()?;
                let key = slot.key(tls.as_ref().map_or(0, |t| t.number));
                let gate = Some(slot.gate().clone());
                let dialled = connect::dial(self, endpoint.address(), tls.as_deref(), permit, gate).await?;
                drop(pending);
                let (sender, flags) = connect::http1(self, dialled.socket).await?;
                Ok((H1::new(sender, flags, dialled.facts, key), Some(since.elapsed())))
            }
        }
    }

    /// A place on an HTTP/2 connection, and the time that opening it took if it is new.
    pub(super) async fn checkout_http2(
        &self,
        slot: &Slot,
        endpoint: &Endpoint,
    ) -> Result<(Stream, Option<Duration>), UpstreamError> {
        match slot.multiplexed().take(self.tls_number(), slot.gate()) {
            Some(stream) => Ok((stream, None)),
            None => Box::pin(self.open_http2(slot, endpoint)).await,
        }
    }

    async fn open_http2(&self, slot: &Slot, endpoint: &Endpoint) -> Result<(Stream, Option<Duration>), UpstreamError> {
        let (multiplexed, gate) = (slot.multiplexed(), slot.gate());
        let since = Instant::now();
        let pending = Pending::enter(self)?;
        let mut dialling = multiplexed.dialling.lock().await;
        if let Some((_, kind)) = dialling.as_ref().filter(|(when, _)| *when >= since) {
            return Err(UpstreamError::unsent(kind.clone()));
        }
        match self.wait_for_connection(slot, || multiplexed.take(self.tls_number(), gate)).await? {
            Found::Idle(stream) => Ok((stream, None)),
            Found::Permit(permit) => {
                let stream = self.dial_http2(slot, endpoint, permit).await.inspect_err(|e| {
                    *dialling = Some((Instant::now(), e.kind.clone()));
                })?;
                drop(pending);
                Ok((stream, Some(since.elapsed())))
            }
        }
    }

    async fn dial_http2(
        &self,
        slot: &Slot,
        endpoint: &Endpoint,
        permit: ConnectionPermit,
    ) -> Result<Stream, UpstreamError> {
        let tls = self.tls_or_refuse()?;
        let gate = slot.gate();
        let dialled = connect::dial(self, endpoint.address(), tls.as_deref(), permit, Some(gate.clone())).await?;
        let max_streams = Arc::new(AtomicUsize::new(1));
        let told = max_streams.clone();
        let (sender, flags) = connect::http2(self, dialled.socket, move |max| told.store(max, Relaxed)).await?;
        let number = tls.as_ref().map_or(0, |t| t.number);
        let limit = self.spec().max_requests_per_connection;
        let conn = H2::new(sender, flags, dialled.facts, number, max_streams, limit);
        let stream = conn.enter(gate).ok_or_else(|| UpstreamError::unsent(ErrorKind::Refused))?;
        // Secrets may have changed meanwhile: this request was admitted before, the next ones go elsewhere.
        if number == self.tls_number() {
            slot.multiplexed().add(conn);
            slot.sweep(self.spec().idle_timeout, &self.stats);
        }
        Ok(stream)
    }

    fn tls_or_refuse(&self) -> Result<Option<Arc<TlsGeneration>>, UpstreamError> {
        self.tls().map_err(|why| UpstreamError::unsent(ErrorKind::Tls(why.to_owned())))
    }

    /// Waits until `take` finds something or another connection may be opened.
    async fn wait_for_connection<T>(
        &self,
        slot: &Slot,
        mut take: impl FnMut() -> Option<T>,
    ) -> Result<Found<T>, UpstreamError> {
        let mut waited = false;
        loop {
            // Listening begins before the look, so that nothing freed in between is missed.
            let mut near = pin!(slot.gate().freed.notified());
            let mut far = pin!(self.freed.notified());
            near.as_mut().enable();
            far.as_mut().enable();
            if let Some(found) = take() {
                return Ok(Found::Idle(found));
            }
            let none_open = slot.gate().open.load(Relaxed) == 0;
            if let Ok(permit) = self.breakers.connection(none_open) {
                return Ok(Found::Permit(permit));
            }
            if !std::mem::replace(&mut waited, true) {
                self.stats.upstream_cx_overflow.increment(1);
            }
            tokio::select! {
                () = near => {}
                () = far => {}
            }
        }
    }
}

enum Found<T> {
    Idle(T),
    Permit(ConnectionPermit),
}

/// A request that waits for a connection.
struct Pending<'a> {
    cluster: &'a Cluster,
    _permit: PendingPermit,
}

impl<'a> Pending<'a> {
    fn enter(cluster: &'a Cluster) -> Result<Self, UpstreamError> {
        let stats = &cluster.stats;
        let permit = cluster.breakers.pending().map_err(|o| {
            stats.upstream_rq_pending_overflow.increment(1);
            UpstreamError::unsent(ErrorKind::Overflow(o))
        })?;
        stats.upstream_rq_pending_total.increment(1);
        stats.upstream_rq_pending_active.increment(1.0);
        Ok(Self { cluster, _permit: permit })
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.cluster.stats.upstream_rq_pending_active.decrement(1.0);
    }
}
