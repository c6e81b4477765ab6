//! Routes that answer by themselves: redirects and direct responses.

use http::{HeaderValue, Response, header};

use super::{
    exchange::Exchange,
    reply,
    runtime::Matched,
    step::{Step, Stop},
};
use crate::{
    body::Body,
    config::{
        flags::Flags,
        hosts::without_port,
        route::{DirectResponse, PathRedirect, Redirect, RequestView, RouteAction},
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Direct;

impl Step for Direct {
    fn request(self, exchange: &mut Exchange) -> Result<(), Stop> {
        let cx = &exchange.cx;
        let Some(matched) = cx.matched.get() else { return Ok(()) };
        let stats = &cx.conn.http.stats;
        let response = match &matched.route().action {
            RouteAction::Forward(_) => return Ok(()),
            RouteAction::Redirect(redirect) => {
                stats.rq_redirect.increment(1);
                redirected(redirect, &location(redirect, matched, &exchange.view()))
            }
            RouteAction::Direct(direct) => {
                stats.rq_direct_response.increment(1);
                if cx.grpc { reply::grpc_answer(direct.status, &direct.body) } else { answered(direct) }
            }
        };
        cx.note(Flags::NONE, "direct_response");
        Err(response.into())
    }
}

fn answered(direct: &DirectResponse) -> Response<Body> {
    let mut response = Response::new(Body::full(direct.body.clone()));
    *response.status_mut() = direct.status;
    if !direct.body.is_empty() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

fn redirected(redirect: &Redirect, location: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = redirect.status;
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The absolute URL of a redirect, as Envoy builds it: a scheme change drops the old scheme's default port.
fn location(redirect: &Redirect, matched: &Matched, view: &RequestView<'_>) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(view.scheme);
    let host = match (&redirect.host, redirect.port) {
        (Some(host), None) => host.clone(),
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (None, Some(port)) => format!("{}:{port}", without_port(view.authority)),
        (None, None) => {
            let default = if view.scheme == "https" { ":443" } else { ":80" };
            let host = view.authority;
            let host = if redirect.scheme.is_some() { host.strip_suffix(default).unwrap_or(host) } else { host };
            host.to_owned()
        }
    };
    let path = match &redirect.path {
        None => view.path.to_owned(),
        Some(PathRedirect::Full(path)) => path.clone(),
        Some(PathRedirect::Prefix(prefix)) => matched.route().matcher.path.rewrite(view.path, prefix),
    };
    match view.query.filter(|_| !redirect.strip_query && !path.contains('?')) {
        Some(query) => format!("{scheme}://{host}{path}?{query}"),
        None => format!("{scheme}://{host}{path}"),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method, StatusCode};

    use super::*;
    use crate::{
        config::route::PathMatch,
        http::testing::{matched_route, route},
    };

    fn to(redirect: &Redirect) -> String {
        let mut route = route(RouteAction::Redirect(Box::new(redirect.clone())));
        route.matcher.path = PathMatch::Prefix("/a".into());
        let headers = HeaderMap::new();
        let view = RequestView {
            method: &Method::GET,
            authority: "h:80",
            path: "/a/b",
            query: Some("q=1"),
            scheme: "http",
            headers: &headers,
        };
        location(redirect, &matched_route(route), &view)
    }

    #[test]
    fn each_part_of_a_redirect_replaces_its_part_of_the_url() {
        let same = Redirect {
            status: StatusCode::FOUND,
            scheme: None,
            host: None,
            port: None,
            path: None,
            strip_query: false,
        };
        let full = |p: &str| Some(PathRedirect::Full(p.into()));
        for (redirect, expected) in [
            (same.clone(), "http://h:80/a/b?q=1"),
            (Redirect { scheme: Some("https".into()), ..same.clone() }, "https://h/a/b?q=1"),
            (Redirect { host: Some("x".into()), ..same.clone() }, "http://x/a/b?q=1"),
            (Redirect { port: Some(8443), ..same.clone() }, "http://h:8443/a/b?q=1"),
            (Redirect { path: full("/new"), ..same.clone() }, "http://h:80/new?q=1"),
            (Redirect { path: full("/new?x"), ..same.clone() }, "http://h:80/new?x"),
            (Redirect { path: Some(PathRedirect::Prefix("/c".into())), ..same.clone() }, "http://h:80/c/b?q=1"),
            (Redirect { strip_query: true, ..same }, "http://h:80/a/b"),
        ] {
            assert_eq!(to(&redirect), expected);
        }
    }
}
