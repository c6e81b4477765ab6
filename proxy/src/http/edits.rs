//! Header edits of routes, on the way in and on the way back.
//!
//! Order: share of the split, route, virtual host, table, so that the outermost level has the last word; the other way
//! round with `most_specific_header_mutations_wins`.

use http::HeaderMap;

use super::{
    exchange::{Context, Exchange},
    reply,
    runtime::Matched,
    step::{Outcome, Step, Stop},
};
use crate::config::{access_log::Part, headers::HeaderEdits};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edits;

impl Step for Edits {
    const RESPONDS: bool = true;

    fn request(self, exchange: &mut Exchange) -> Result<(), Stop> {
        let cx = std::sync::Arc::clone(&exchange.cx);
        let Some(matched) = cx.matched.get() else { return Ok(()) };
        if levels(matched, Side::Response).any(renders) {
            exchange.keep_head();
        }
        let mut edited = false;
        for edits in levels(matched, Side::Request) {
            // What operators see is the request as it stands before this level's edits.
            let mut headers = std::mem::take(exchange.request.headers_mut());
            let before = renders(edits).then(|| headers.clone());
            edits.apply(&mut headers, |template| {
                let view =
                    before.as_ref().map(|headers| crate::config::route::RequestView { headers, ..exchange.view() });
                cx.render(template, view.as_ref(), &HeaderMap::new())
            });
            *exchange.request.headers_mut() = headers;
            edited = true;
        }
        if edited {
            exchange.log_request();
        }
        Ok(())
    }

    fn response(self, cx: &Context, outcome: Outcome) -> Outcome {
        let Some(matched) = cx.matched.get().filter(|m| levels(m, Side::Response).next().is_some()) else {
            return outcome;
        };
        // A refusal from further in is edited like an answer, as in Envoy.
        let mut response = outcome.unwrap_or_else(|refusal| reply::make(cx, &refusal));
        for edits in levels(matched, Side::Response) {
            let before = if renders(edits) { response.headers().clone() } else { HeaderMap::new() };
            let view = cx.head.get().map(|head| head.view(cx.conn.scheme()));
            edits.apply(response.headers_mut(), |template| cx.render(template, view.as_ref(), &before));
        }
        Ok(response)
    }
}

#[derive(Clone, Copy)]
enum Side {
    Request,
    Response,
}

/// The edits of a matched route in the order in which they are done; empty ones left out.
fn levels(matched: &Matched, side: Side) -> impl Iterator<Item = &HeaderEdits> {
    let (table, host, route, share) = (matched.table(), matched.host(), matched.route(), matched.share());
    let mut all = match side {
        Side::Request => [
            share.map(|s| &s.request_headers),
            Some(&route.request_headers),
            Some(&host.request_headers),
            Some(&table.request_headers),
        ],
        Side::Response => [
            share.map(|s| &s.response_headers),
            Some(&route.response_headers),
            Some(&host.response_headers),
            Some(&table.response_headers),
        ],
    };
    if table.most_specific_wins {
        all.reverse();
    }
    all.into_iter().flatten().filter(|edits| !edits.is_empty())
}

fn renders(edits: &HeaderEdits) -> bool {
    edits.add.iter().any(|add| add.value.parts.iter().any(|part| matches!(part, Part::Operator(..))))
}
