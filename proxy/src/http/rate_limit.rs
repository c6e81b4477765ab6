//! Local rate limits of requests.

use std::sync::Arc;

use super::{exchange::Context, runtime::Limiter, step::Stop};
use crate::error::{Reason, Refusal};

/// Takes a token, or refuses.
pub(super) fn check(cx: &Context, limiter: &Arc<Limiter>) -> Result<(), Stop> {
    // Not the request's own random number: that one has decided on the route.
    if !limiter.refuses(cx.started.into_std(), fastrand::u64(..)) {
        return Ok(());
    }
    let _first = cx.limiter.set(Arc::clone(limiter));
    Err(Refusal { status: Some(limiter.config.status), ..Reason::RateLimited.into() }.into())
}
