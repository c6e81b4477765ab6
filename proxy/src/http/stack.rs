//! The one composition of all HTTP policies, in the order in which a request meets them.

use std::convert::Infallible;

use http::Response;
use tower::{Service, ServiceBuilder};

use super::{
    admit::Admit, canonical::Canonicalize, deadline::DeadlineLayer, direct::Direct, edits::Edits, exchange::Exchange,
    filters::Filters, identify::Identify, record::RecordLayer, retry::RetryLayer, route::FindRoute, step::StepLayer,
    target::ChooseCluster, upgrade::Upgrades,
};
use crate::{body::Body, error::Refusal};

/// All policies around `send`, which makes one try.
///
/// The services hold no state: what they need stands in the [`Exchange`], so that a clone per request is free. None of
/// them ever waits in `poll_ready`.
pub(super) fn stack<S>(
    send: S,
) -> impl Service<Exchange, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send
where
    S: Service<Exchange, Response = Response<Body>, Error = Refusal> + Clone + Send + 'static,
    S::Future: Send,
{
    ServiceBuilder::new()
        .layer(RecordLayer) // access log, statistics, a reply for every refusal
        .layer(StepLayer(Admit)) // one meaning of host, framing, header names
        .layer(StepLayer(Identify)) // request id, x-forwarded-*, foreign internal headers off
        .layer(StepLayer(Canonicalize)) // one form of the path
        .layer(StepLayer(FindRoute)) // snapshot, virtual host, route, share of the split
        .layer(StepLayer(Filters)) // access control and rate limits, in the listener's order
        .layer(StepLayer(Edits)) // header edits, both ways
        .layer(StepLayer(Direct)) // redirects and direct responses end here
        .layer(StepLayer(Upgrades)) // WebSocket where it is allowed
        .layer(StepLayer(ChooseCluster)) // cluster, rewrites
        .layer(DeadlineLayer) // time limits over all tries
        .layer(RetryLayer) // back-off, budget, replay
        .service(send) // circuit permit, endpoint, send
}
