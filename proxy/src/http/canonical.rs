//! Puts the path's canonical form in place of the path, before any rule looks at it.

use http::{Response, StatusCode, Uri, header, uri::PathAndQuery};

use super::{
    exchange::Exchange,
    path::{Canonical, canonical},
    step::{Step, Stop},
};
use crate::{body::Body, config::flags::Flags, error::Reason};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Canonicalize;

impl Step for Canonicalize {
    fn request(self, exchange: &mut Exchange) -> Result<(), Stop> {
        let done = canonicalize(exchange);
        exchange.log_request();
        done
    }
}

fn canonicalize(exchange: &mut Exchange) -> Result<(), Stop> {
    let uri = exchange.request.uri();
    let path = match canonical(uri.path(), exchange.cx.conn.http.config.path) {
        Ok(Canonical::Forward(std::borrow::Cow::Borrowed(_))) => return Ok(()),
        Ok(Canonical::Forward(std::borrow::Cow::Owned(path))) => path,
        Ok(Canonical::Redirect(path)) => {
            exchange.cx.note(Flags::NONE, "path_normalization_redirect");
            return Err(redirect(&with_query(path, uri.query())).into());
        }
        Err(_) => return Err(Reason::PathRefused.into()),
    };
    let target = PathAndQuery::try_from(with_query(path, uri.query())).map_err(|_| Reason::PathRefused)?;
    *exchange.request.uri_mut() = Uri::from(target);
    Ok(())
}

fn with_query(mut path: String, query: Option<&str>) -> String {
    if let Some(query) = query {
        path.push('?');
        path.push_str(query);
    }
    path
}

fn redirect(to: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    if let Ok(to) = http::HeaderValue::from_str(to) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response
}
