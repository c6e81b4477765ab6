//! Access control of requests.

use super::{
    exchange::{Context, Exchange},
    step::Stop,
};
use crate::{
    config::rbac::Rbac,
    error::{Reason, Refusal},
};

/// Lets the request pass if the rules do; without rules everything passes.
pub(super) fn check(exchange: &Exchange, rules: Option<&Rbac>) -> Result<(), Stop> {
    let Some(rules) = rules else { return Ok(()) };
    let request = exchange.view();
    let verdict = rules.decide(&exchange.cx.rbac_view(&request));
    if verdict.allowed {
        exchange.cx.conn.http.stats.rbac_allowed.increment(1);
        return Ok(());
    }
    deny(&exchange.cx, verdict.policy)
}

/// Refuses, naming the policy that denied.
pub(super) fn deny(cx: &Context, policy: Option<&str>) -> Result<(), Stop> {
    cx.conn.http.stats.rbac_denied.increment(1);
    let details = policy.map(|policy| format!("rbac_access_denied_matched_policy[{policy}]").into());
    Err(Refusal { details, ..Reason::AccessDenied.into() }.into())
}
