//! `bookwarehouse`: restocks stores, and keeps its total in the database.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::counters::Counters;
use super::web::{self, Answer};

const DB_LIMIT: Duration = Duration::from_secs(10);

struct Warehouse {
    bookdb: String,
    counters: Counters,
}

pub(super) async fn run(bookdb: &str, port: u16) -> anyhow::Result<()> {
    let warehouse = Arc::new(Warehouse { bookdb: bookdb.to_owned(), counters: Counters::new("bookwarehouse", bookdb) });
    web::serve(port, move |request| {
        let warehouse = Arc::clone(&warehouse);
        async move { warehouse.handle(request).await }
    })
    .await
}

impl Warehouse {
    async fn handle(&self, request: Request<Incoming>) -> Answer {
        if request.uri().path() == "/" && request.method() == Method::GET {
            return web::show(&self.counters);
        }
        self.counters.served();
        // The store gets its book even when the total can't be kept: a warehouse is no bank.
        let stored = match timeout(DB_LIMIT, add_book(&self.bookdb)).await {
            Ok(Ok(total)) => Ok(total),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(_) => Err(format!("no answer within {DB_LIMIT:?}")),
        };
        match &stored {
            Ok(total) => println!("restocked, {total} books in all"),
            Err(reason) => println!("restocked, but the total could not be kept: {reason}"),
        }
        self.counters.call(&stored.map(|_| "bookdb".to_owned()));
        web::answer(StatusCode::OK, "")
    }
}

/// Adds a book to the total in the database and gives the new total. The server speaks first.
async fn add_book(address: &str) -> anyhow::Result<u64> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    let mut line = String::new();
    if stream.read_line(&mut line).await.context("waiting for the greeting")? == 0 {
        bail!("closed before the greeting");
    }
    stream.write_all(b"ADD 1\n").await?;
    line.clear();
    stream.read_line(&mut line).await?;
    let total = line.trim().strip_prefix("TOTAL ").and_then(|total| total.parse().ok());
    total.with_context(|| format!("an answer that is no total: {:?}", line.trim()))
}
