//! The listener's HTTP filters, in the listener's order, with the settings of the most specific level of the route.

use super::{
    exchange::Exchange,
    rate_limit, rbac,
    runtime::Setting,
    step::{Step, Stop},
};
use crate::config::http::HttpFilterKind;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filters;

impl Step for Filters {
    fn request(self, exchange: &mut Exchange) -> Result<(), Stop> {
        let cx = &exchange.cx;
        let http = &cx.conn.http;
        for (at, filter) in http.config.filters.iter().enumerate() {
            let setting = cx.matched.get().and_then(|matched| matched.setting(&filter.name));
            if matches!(setting, Some(Setting::Disabled)) || (filter.disabled && setting.is_none()) {
                continue;
            }
            match (&filter.kind, setting) {
                (HttpFilterKind::Rbac(_), Some(Setting::Rbac(rules))) => rbac::check(exchange, rules.as_deref())?,
                (HttpFilterKind::Rbac(rules), None) => rbac::check(exchange, rules.as_deref())?,
                (HttpFilterKind::LocalRateLimit(_), Some(Setting::Limit(limiter))) => {
                    rate_limit::check(cx, limiter)?;
                }
                (HttpFilterKind::LocalRateLimit(_), None) => {
                    if let Some(limiter) = http.limiters.get(at).and_then(Option::as_ref) {
                        rate_limit::check(cx, limiter)?;
                    }
                }
                // Settings of another kind under this filter's name: nobody knows what was meant, so nobody passes.
                (_, Some(_)) => rbac::deny(cx, None)?,
            }
        }
        Ok(())
    }
}
