//! Peers that break the rules on purpose, against the real program: nothing smuggled, nothing unbounded, neighbours served.

mod answers;
mod framing;
mod http2;
mod paths;
mod stalls;

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use oxmesh::pod::DataPlane::Oxmesh;
use oxmesh_tests::{
    alone::{Alone, free_ports, talk},
    trial::trial,
    witness::Witness,
};

pub(crate) fn trials(trials: &mut Vec<Trial>) {
    answers::trials(trials);
    framing::trials(trials);
    http2::trials(trials);
    paths::trials(trials);
    stalls::trials(trials);
}

/// Adds a scenario that needs nothing but our programs.
fn add<F>(trials: &mut Vec<Trial>, name: &str, scenario: fn() -> F)
where
    F: Future<Output = Result<()>> + 'static,
{
    trials.push(trial(name, None, scenario));
}

/// The proxy of `tests/data/hostile.yaml` before a server.
struct Front {
    proxy: Alone,
    /// Plain HTTP.
    front: u16,
    /// mTLS.
    secure: u16,
}

impl Front {
    async fn before(up: &Witness) -> Result<Self> {
        let [front, secure] = free_ports()?;
        let values = [("front", front), ("secure", secure), ("up", up.port)];
        Ok(Self { proxy: Alone::start(Oxmesh, "hostile.yaml", &values).await?, front, secure })
    }

    /// A well-behaved client is served within `limit`.
    async fn serves(&self, limit: Duration) -> Result<()> {
        let began = std::time::Instant::now();
        let request = b"GET /neighbour HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        let came = talk(self.front, request, Duration::from_secs(10)).await?;
        let took = began.elapsed();
        ensure!(came.text().starts_with("HTTP/1.1 200"), "a neighbour got {:?}", came.text());
        ensure!(took < limit, "a neighbour waited {took:?}");
        Ok(())
    }
}

/// All failures of a table at once.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn check(&mut self, good: bool, words: impl FnOnce() -> String) {
        if !good {
            self.0.push(words());
        }
    }

    fn none(self) -> Result<()> {
        ensure!(self.0.is_empty(), "{} rows failed:\n{}", self.0.len(), self.0.join("\n"));
        Ok(())
    }
}
