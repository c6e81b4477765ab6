//! `bookdb`: a TCP store that greets first, as MySQL does, so that a mesh which waits for the
//! client's first bytes is seen to hang. Commands: `ADD n`, `GET`; each is answered `TOTAL n`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::web;
use crate::signals::Shutdown;

/// Longest command.
const LINE: u64 = 256;

pub(super) async fn run(port: u16) -> anyhow::Result<()> {
    let total = Arc::new(AtomicU64::new(0));
    let mut shutdown = Shutdown::new()?;
    let listener = web::listen(port).await?;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.wait() => return Ok(()),
        };
        let (stream, peer) = accepted.context("accepting a connection")?;
        let total = Arc::clone(&total);
        tokio::spawn(async move {
            if let Err(error) = serve(stream, &total).await {
                eprintln!("{peer}: {error}");
            }
        });
    }
}

async fn serve(stream: TcpStream, total: &AtomicU64) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"BOOKDB 1 ready\n").await?;
    loop {
        let mut line = String::new();
        if (&mut stream).take(LINE).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let answer = execute(line.trim(), total);
        println!("{}: {answer}", line.trim().escape_debug());
        stream.write_all(format!("{answer}\n").as_bytes()).await?;
    }
}

fn execute(command: &str, total: &AtomicU64) -> String {
    let added = match command.split_once(' ') {
        Some(("ADD", count)) => count.parse().ok(),
        None if command == "GET" => Some(0),
        _ => None,
    };
    match added {
        Some(count) => format!("TOTAL {}", total.fetch_add(count, Ordering::Relaxed).wrapping_add(count)),
        None => "ERROR say `ADD n` or `GET`".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_a_total_and_refuses_what_it_does_not_know() {
        let total = AtomicU64::new(0);
        let answers = ["ADD 2", "GET", "ADD x", "DROP"].map(|command| execute(command, &total));
        assert_eq!(answers[..2], ["TOTAL 2", "TOTAL 2"]);
        assert!(answers[2..].iter().all(|answer| answer.starts_with("ERROR")));
    }
}
