//! The cluster that the request goes to, and the request as that cluster's servers shall see it.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Uri, header, uri::PathAndQuery};

use super::{
    exchange::Exchange,
    identify::ORIGINAL_PATH,
    step::{Step, Stop},
};
use crate::{
    config::route::Forward,
    error::{Reason, Refusal},
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChooseCluster;

impl Step for ChooseCluster {
    fn request(self, exchange: &mut Exchange) -> Result<(), Stop> {
        let cx = Arc::clone(&exchange.cx);
        let Some(matched) = cx.matched.get() else { return Err(Reason::RouteNotFound.into()) };
        let Some(forward) = matched.route().forward() else { return Err(Reason::RouteNotFound.into()) };
        let Some(name) = matched.cluster() else { return Err(Reason::ClusterNotFound.into()) };
        // The snapshot has served its turn; a long stream must not keep an old one alive.
        let snapshot = exchange.snapshot.take();
        let Some(cluster) = snapshot.as_ref().and_then(|s| s.clusters.get(name)) else {
            cx.conn.http.stats.no_cluster.increment(1);
            return Err(Refusal { status: Some(forward.cluster_not_found), ..Reason::ClusterNotFound.into() }.into());
        };
        let _first = cx.cluster.set(Arc::clone(cluster));
        if rewrite(exchange, forward, |path, prefix| matched.route().matcher.path.rewrite(path, prefix))? {
            exchange.log_request();
        }
        if let Some(timeout) = matched.expected_timeout() {
            exchange.request.headers_mut().insert(EXPECTED_TIMEOUT, timeout.clone());
        }
        Ok(())
    }
}

/// Rewrites path and host. True when it changed something.
fn rewrite(exchange: &mut Exchange, forward: &Forward, replace: impl Fn(&str, &str) -> String) -> Result<bool, Stop> {
    if let Some(prefix) = &forward.prefix_rewrite {
        let uri = exchange.request.uri();
        let mut target = replace(uri.path(), prefix);
        if let Some(query) = uri.query() {
            target.push('?');
            target.push_str(query);
        }
        let original = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let original = HeaderValue::from_str(original).map_err(|_| Reason::PathRefused)?;
        let target = PathAndQuery::try_from(target).map_err(|_| Reason::PathRefused)?;
        *exchange.request.uri_mut() = Uri::from(target);
        exchange.request.headers_mut().insert(ORIGINAL_PATH, original);
    }
    if let Some(host) = &forward.host_rewrite {
        let host = HeaderValue::from_str(host).map_err(|_| Reason::BadHost)?;
        if let Some(original) = exchange.request.headers_mut().insert(header::HOST, host) {
            exchange.request.headers_mut().insert(ORIGINAL_HOST, original);
        }
    }
    Ok(forward.prefix_rewrite.is_some() || forward.host_rewrite.is_some())
}

const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
