//! One configuration, real Envoy and our proxy: the same bytes get the same answer, the same request upstream, the same log.
//!
//! Rows are grouped into trials by subject. What differs must be listed in its row, under a heading of
//! `docs/differences.md`; what is listed and does not differ fails too.

mod bodies;
mod failures;
mod http2;
mod known;
mod observe;
mod paths;
mod policy;
mod requests;
mod routes;
mod row;
mod upstream;

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh::pod::DataPlane::{self, Envoy, Oxmesh};
use oxmesh_tests::{
    alone::{Alone, Came, free_ports},
    mesh::project,
    trial::{envoy_missing, trial},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use known::{EDGE, KNOWN, Known};
use observe::Fields;
use row::Row;
use upstream::Upstream;

pub(crate) fn trials(trials: &mut Vec<Trial>) {
    for (what, rows) in GROUPS {
        let name = format!("real Envoy and our proxy do the same with {what}");
        trials.push(trial(name, envoy_missing(), move || http1(rows())));
    }
    trials.push(trial("real Envoy and our proxy do the same with HTTP/2", envoy_missing(), http2::compare));
    trials.push(trial("every known difference belongs to a row, and every row has a name of its own", None, names));
}

/// What the rows of a table are about, and the table.
type Group = (&'static str, fn() -> Vec<Row>);

const GROUPS: [Group; 6] = [
    ("requests and their headers", requests::rows),
    ("paths", paths::rows),
    ("bodies and connections", bodies::rows),
    ("routes, rewrites and edits", routes::rows),
    ("access rules and limits", policy::rows),
    ("upstreams that fail, and retries", failures::rows),
];

async fn names() -> Result<()> {
    let mut names = http2::names();
    names.extend(GROUPS.iter().flat_map(|(_, rows)| rows()).map(|row| row.name));
    for (number, name) in names.iter().enumerate() {
        ensure!(!names[..number].contains(name), "two rows are called {name:?}");
    }
    for name in KNOWN.iter().flat_map(|known| known.rows) {
        ensure!(names.contains(name), "a difference is known of {name:?}, which is no row");
    }
    Ok(())
}

/// A proxy of `tests/data/differential.yaml` and the servers behind it.
struct Side {
    proxy: Alone,
    front: u16,
    edge: u16,
    up: Upstream,
    lines: usize,
}

impl Side {
    async fn start(plane: DataPlane) -> Result<Self> {
        let up = Upstream::start().await?;
        let [front, edge] = free_ports()?;
        let values = [("front", front), ("edge", edge), ("up", up.http1.port), ("h2", up.http2.port)];
        let proxy = Alone::start(plane, "differential.yaml", &values).await?;
        Ok(Self { proxy, front, edge, up, lines: 0 })
    }

    /// What the servers and the log tell about the last row.
    async fn aftermath(&mut self, fields: &mut Fields, expected_lines: usize) {
        let deadline = Instant::now() + Duration::from_millis(700);
        let log = loop {
            let log = self.proxy.file("access.log");
            if log.lines().count() >= self.lines + expected_lines || Instant::now() > deadline {
                break log;
            }
            sleep(Duration::from_millis(10)).await;
        };
        let lines: Vec<&str> = log.lines().skip(self.lines).collect();
        observe::log(fields, &lines);
        self.lines += lines.len();
        // How much of a broken request gets through is a matter of timing.
        let (mut requests, _part) = self.up.http1.take();
        requests.extend(self.up.http2.take());
        observe::upstream(fields, &requests);
    }

    async fn ask(&mut self, row: &Row) -> Result<Fields> {
        self.up.set(&row.steps);
        let mut stream = TcpStream::connect(("127.0.0.1", if row.edge { self.edge } else { self.front })).await?;
        // A proxy that has seen enough may be gone before all is written.
        let _gone = stream.write_all(&row.send).await;
        let head = row.send.starts_with(b"HEAD");
        let mut fields = Fields::new();
        observe::answers(&mut fields, &listen(&mut stream, head, row.answers).await, head);
        drop(stream);
        self.aftermath(&mut fields, row.answers).await;
        Ok(fields)
    }
}

/// Reads until there are so many answers, and a little longer to see whether the connection ends.
async fn listen(stream: &mut TcpStream, head: bool, answers: usize) -> Came {
    let mut came = Came::default();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let patience = if observe::whole(&came.bytes, head) >= answers { 100 } else { 3000 };
        match timeout(Duration::from_millis(patience), stream.read(&mut buffer)).await {
            Ok(Ok(read @ 1..)) => came.bytes.extend_from_slice(&buffer[..read]),
            Ok(_) => {
                came.ended = true;
                return came;
            }
            Err(_) => return came,
        }
    }
}

async fn http1(rows: Vec<Row>) -> Result<()> {
    let (envoy, ours) = tokio::join!(Side::start(Envoy), Side::start(Oxmesh));
    let (mut envoy, mut ours) = (envoy?, ours?);
    let mut verdict = Verdict::open()?;
    for row in rows {
        let (theirs, mine) = tokio::join!(envoy.ask(&row), ours.ask(&row));
        let (theirs, mine) = (theirs.context("envoy")?, mine.context("our proxy")?);
        verdict.add(row.name, row.edge, &theirs, &mine);
    }
    ours.proxy.healthy()?;
    verdict.close()
}

/// The differences that nobody has explained, and explanations without a difference.
struct Verdict {
    book: String,
    wrong: Vec<String>,
}

impl Verdict {
    fn open() -> Result<Self> {
        Ok(Self { book: fs::read_to_string(project().join("docs/differences.md"))?, wrong: Vec::new() })
    }

    fn add(&mut self, name: &str, edge: bool, envoy: &Fields, ours: &Fields) {
        let known: Vec<&Known> = KNOWN.iter().filter(|k| k.rows.contains(&name)).chain(edge.then_some(&EDGE)).collect();
        let none = "(none)".to_owned();
        let mut fields: Vec<&String> = envoy.keys().chain(ours.keys()).collect();
        fields.sort();
        fields.dedup();
        fields.retain(|field| envoy.get(*field) != ours.get(*field));
        for field in &fields {
            if !known.iter().any(|k| k.covers(field)) {
                let (theirs, mine) = (envoy.get(*field).unwrap_or(&none), ours.get(*field).unwrap_or(&none));
                self.wrong.push(format!("{name}: {field}: Envoy {theirs:?}, ours {mine:?}"));
            }
        }
        for one in known {
            for pattern in one.fields.iter().filter(|p| !p.starts_with('?')) {
                if !fields.iter().any(|field| known::matches(pattern, field)) {
                    self.wrong.push(format!("{name}: {pattern} does not differ any more ({})", one.why));
                }
            }
            if !self.book.contains(&format!("\n## {}\n", one.why)) {
                self.wrong.push(format!("{name}: docs/differences.md has no heading \"{}\"", one.why));
            }
        }
    }

    fn close(self) -> Result<()> {
        ensure!(self.wrong.is_empty(), "{} differences:\n{}", self.wrong.len(), self.wrong.join("\n"));
        Ok(())
    }
}
