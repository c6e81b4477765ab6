//! Loads the snapshot, once, and finds the virtual host, the route and the share of a split.

use std::sync::Arc;

use super::{
    exchange::Exchange,
    runtime::{Matched, Routes},
    step::{Step, Stop},
};
use crate::{config::http::RouteSource, error::Reason, snapshot::Snapshot};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct FindRoute;

impl Step for FindRoute {
    fn request(self, exchange: &mut Exchange) -> Result<(), Stop> {
        let cx = Arc::clone(&exchange.cx);
        let snapshot = cx.conn.shared.store.current();
        let Some(matched) = find(exchange, &snapshot) else {
            cx.conn.http.stats.no_route.increment(1);
            return Err(Reason::RouteNotFound.into());
        };
        cx.log(|entry| {
            entry.route = Some(matched.route().name.clone());
            // Here, so that the line of a refused request names the cluster that it did not get to.
            entry.upstream_cluster = matched.cluster().filter(|name| snapshot.clusters.contains_key(*name)).cloned();
        });
        let _first = cx.matched.set(matched);
        exchange.snapshot = Some(snapshot);
        Ok(())
    }
}

fn find(exchange: &Exchange, snapshot: &Snapshot) -> Option<Matched> {
    let http = &exchange.cx.conn.http;
    let routes: &Arc<Routes> = match &http.config.routes {
        RouteSource::Rds(wanted) => snapshot.routes.get(&wanted.name)?,
        RouteSource::Inline(_) => http.inline.as_ref()?,
    };
    let view = exchange.view();
    let host = routes.host(view.authority)?;
    let random = exchange.cx.random;
    let table = &routes.table.virtual_hosts[host];
    let route = table.find_route(&view, random)?;
    let share = table.routes[route].forward().and_then(|forward| forward.pick(random));
    Some(Matched::new(Arc::clone(routes), host, route, share))
}
