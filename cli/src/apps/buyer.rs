//! `bookbuyer` and `bookthief`: the same loop, under two identities.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};

use super::counters::Counters;
use super::web;
use crate::signals::Shutdown;

/// Buys until SIGTERM or SIGINT, one line per attempt; the round in hand is finished. The thief, too, says that it is
/// `client-app: bookbuyer`: it is told by its certificate, not by what it says.
pub(super) async fn run(app: &str, store: &str, port: u16, pause: Duration) -> anyhow::Result<()> {
    let counters = Arc::new(Counters::new(app, store));
    let shown = Arc::clone(&counters);
    let server = web::serve(port, move |_| {
        let answer = web::show(&shown);
        async move { answer }
    });
    let buying = async {
        let mut shutdown = Shutdown::new()?;
        loop {
            for path in ["/books-bought", "/buy-a-book/new"] {
                let outcome = buy(store, path).await;
                counters.call(&outcome);
                report(path, &outcome, &counters);
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.wait() => return Ok(()),
            }
        }
    };
    tokio::try_join!(server, buying).map(|_| ())
}

async fn buy(store: &str, path: &str) -> Result<String, String> {
    let headers = [("client-app", "bookbuyer")];
    let reply = web::call(Method::GET, store, path, &headers).await?;
    if reply.status != StatusCode::OK {
        return Err(refusal(&reply));
    }
    let identity = reply.headers.get("identity").and_then(|value| value.to_str().ok());
    Ok(identity.unwrap_or("unnamed").to_owned())
}

/// The status, and the mesh's own word for it where there is one.
fn refusal(reply: &web::Reply) -> String {
    let why = reply.headers.get("x-oxmesh-why").and_then(|value| value.to_str().ok());
    let body = std::str::from_utf8(&reply.body).ok().filter(|text| text.len() <= 100);
    match why.or(body).map(str::trim) {
        Some(words) if !words.is_empty() => format!("{}: {words}", reply.status.as_u16()),
        _ => reply.status.as_u16().to_string(),
    }
}

fn report(path: &str, outcome: &Result<String, String>, counters: &Counters) {
    let counts = counters.snapshot();
    let total = format!("{} of {} ok", counts.ok, counts.attempts);
    match outcome {
        Ok(identity) => println!("GET {path}: 200 from {identity} ({total})"),
        Err(reason) => println!("GET {path}: {reason} ({total})"),
    }
}
