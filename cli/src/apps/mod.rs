//! The bookstore: small programs that give a mesh something to do, as OSM's demo has them.
//!
//! `bookbuyer` and `bookthief` buy from `bookstore`, which restocks from `bookwarehouse`, which
//! keeps its total in `bookdb`. All but `bookdb` show their counters as JSON on `/`. They know
//! nothing of the mesh.

mod bookdb;
mod bookstore;
mod bookwarehouse;
mod buyer;
mod counters;
mod web;

use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

pub use counters::Counts;

/// Which application to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum App {
    /// Buys books, and has the right to.
    Bookbuyer,
    /// Does the same without the right to.
    Bookthief,
    /// Sells books.
    Bookstore,
    /// Restocks the stores.
    Bookwarehouse,
    /// Keeps the warehouse's total; a server that speaks first.
    Bookdb,
}

/// The application's command line. Its environment has the names that OSM's demo uses.
#[derive(Debug, Args)]
pub struct AppArgs {
    /// The application.
    app: App,
    /// Port to listen on. Default 14001, for bookdb 3306.
    #[arg(long)]
    port: Option<u16>,
    /// Pause between two rounds of a buyer, in seconds; fractions are allowed.
    #[arg(long, env = "CI_SLEEP_BETWEEN_REQUESTS_SECONDS", default_value = "1")]
    pause: f64,
    /// Name that the store answers with.
    #[arg(long, env = "IDENTITY", default_value = "unidentified")]
    identity: String,
    /// Host of the store.
    #[arg(long, env = "BOOKSTORE_SVC", default_value = "bookstore")]
    bookstore: String,
    /// Namespace of the store.
    #[arg(long, env = "BOOKSTORE_NAMESPACE", default_value = "bookstore")]
    bookstore_namespace: String,
    /// Namespace of the warehouse.
    #[arg(long, env = "BOOKWAREHOUSE_NAMESPACE", default_value = "bookwarehouse")]
    bookwarehouse_namespace: String,
    /// Address of the database, `host:port`.
    #[arg(long, env = "BOOKDB", default_value = "bookdb.bookwarehouse:3306")]
    bookdb: String,
}

/// Runs the application until SIGTERM or SIGINT.
///
/// # Errors
/// When it can't listen.
pub async fn run(args: AppArgs) -> anyhow::Result<()> {
    let port = args.port.unwrap_or(if args.app == App::Bookdb { 3306 } else { 14001 });
    let pause = Duration::try_from_secs_f64(args.pause).with_context(|| format!("a pause of {} s", args.pause))?;
    let store = format!("{}.{}:14001", args.bookstore, args.bookstore_namespace);
    let warehouse = format!("bookwarehouse.{}:14001", args.bookwarehouse_namespace);
    match args.app {
        App::Bookbuyer => buyer::run("bookbuyer", &store, port, pause).await,
        App::Bookthief => buyer::run("bookthief", &store, port, pause).await,
        App::Bookstore => bookstore::run(&args.identity, &warehouse, port).await,
        App::Bookwarehouse => bookwarehouse::run(&args.bookdb, port).await,
        App::Bookdb => bookdb::run(port).await,
    }
}
