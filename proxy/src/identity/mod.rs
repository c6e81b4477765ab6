//! The sidecar's own identity: a key made in the pod, signed by the control plane for the pod's token.
//!
//! Runs on the control runtime. The rest of the proxy sees files only, in the form of Envoy's SDS, so that it needs to
//! know nothing of this. Until the first certificate is there the ADS stream does not start; afterwards an outage of the
//! control plane is told in the log and changes nothing before the certificate runs out. The key is never sent anywhere.

mod ask;
mod files;
mod request;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use metrics::{Counter, Gauge};
use tokio::time::sleep;

pub use self::ask::AskError;
pub use self::files::{Directory, Held};
use self::{ask::Asker, request::KeyAndRequest};
use crate::{
    args::Args,
    telemetry::{Registry, Scope},
    upstream::Resolve,
};

/// Where the PEM of the roots stands that the signing server's certificate must come from.
pub const TRUST_BUNDLE_VARIABLE: &str = "OXMESH_TRUST_BUNDLE";

/// What an agent is told at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Host of the signing server: a name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The name that its certificate must have; the ADS server must have the same. Default: the host.
    pub name: String,
    /// File with the pod's token; read again for every request.
    pub token: PathBuf,
    /// Where key and certificates are put.
    pub directory: PathBuf,
    /// Roots that the server's certificate must come from, PEM.
    pub trust_bundle: String,
    /// SO_MARK of the agent's connections.
    pub mark: Option<u32>,
}

impl Options {
    /// From the command line and the environment; none without `--identity-server`.
    ///
    /// # Errors
    /// What is missing or can't be read, in words.
    pub fn read(args: &Args, trust_bundle: Option<String>) -> anyhow::Result<Option<Self>> {
        let Some(server) = &args.identity_server else { return Ok(None) };
        let uri: http::Uri = server.parse().with_context(|| format!("--identity-server {server:?}"))?;
        let (Some("https"), Some(host), "" | "/") = (uri.scheme_str(), uri.host(), uri.path()) else {
            bail!("--identity-server {server:?} is not https://HOST:PORT");
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        // Clap sees to it that both are there.
        let (Some(token), Some(directory)) = (&args.identity_token, &args.identity_dir) else {
            bail!("--identity-server needs --identity-token and --identity-dir");
        };
        let trust_bundle = trust_bundle.filter(|pem| !pem.trim().is_empty()).with_context(|| {
            format!("--identity-server needs the roots of its certificate (PEM) in the variable {TRUST_BUNDLE_VARIABLE}; the injector sets it")
        })?;
        ask::roots(&[&trust_bundle]).map_err(|why| anyhow::anyhow!("{TRUST_BUNDLE_VARIABLE}: {why}"))?;
        Ok(Some(Self {
            name: args.identity_server_name.clone().unwrap_or_else(|| host.clone()),
            host,
            port: uri.port_u16().unwrap_or(443),
            token: token.clone(),
            directory: std::path::absolute(directory)
                .with_context(|| format!("--identity-dir {}", directory.display()))?,
            trust_bundle,
            mark: args.upstream_mark,
        }))
    }
}

/// How far the agent is, for readiness. Clones share.
#[derive(Clone, Debug)]
pub struct Progress(Arc<ArcSwap<Option<String>>>);

impl Progress {
    fn new() -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Some("the first certificate is being asked for".to_owned()))))
    }

    /// Why there is no certificate yet; none = there was one.
    #[must_use]
    pub fn waits_for(&self) -> Option<String> {
        self.0.load().as_ref().clone()
    }
}

/// Keeps key and certificates fresh.
#[derive(Debug)]
pub struct Agent {
    directory: Directory,
    asker: Asker,
    progress: Progress,
    stats: Stats,
    /// What is in the directory now, and when it is due.
    held: Option<(Held, SystemTime)>,
}

#[derive(Debug)]
struct Stats {
    expiry: Gauge,
    renewals: Counter,
    failures: Counter,
    refusals: Counter,
}

impl Stats {
    fn new(registry: &Registry) -> Self {
        let scope = Scope::plain("identity");
        Self {
            expiry: registry.gauge(&scope, "certificate_expiry_unix_seconds"),
            renewals: registry.counter(&scope, "certificates_obtained"),
            failures: registry.counter(&scope, "requests_failed"),
            refusals: registry.counter(&scope, "requests_refused"),
        }
    }
}

impl Agent {
    /// An agent; nothing is asked before [`Self::first`]. A certificate of an earlier process that is still in the
    /// directory is used. Blocks on the file system.
    ///
    /// # Errors
    /// When the directory can't be made or written.
    pub fn new(options: Options, registry: &Registry, resolver: Arc<dyn Resolve>) -> anyhow::Result<Self> {
        let directory = Directory::open(&options.directory, &options.name)
            .with_context(|| format!("--identity-dir {}", options.directory.display()))?;
        let agent = Self {
            directory,
            asker: Asker::new(options, resolver),
            progress: Progress::new(),
            stats: Stats::new(registry),
            held: None,
        };
        Ok(agent.with_earlier())
    }

    fn with_earlier(mut self) -> Self {
        let now = SystemTime::now();
        if let Some(held) = self.directory.load().filter(|held| held.not_after > now) {
            tracing::info!(until = %moment(held.not_after), "a certificate of an earlier start is used");
            self.asker.trust(&held.bundle_pem);
            let due = renewal(held.not_before, held.not_after);
            self.hold(held, due);
        }
        self
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Returns when a valid certificate is in the directory.
    pub async fn first(&mut self) {
        let mut backoff = Backoff::new(FIRST_LONGEST);
        while self.held.is_none() {
            if let Err(error) = self.renew().await {
                let wait = backoff.next(&error);
                self.progress.0.store(Arc::new(Some(error.to_string())));
                let hint = error.hint();
                tracing::warn!(%error, hint, retry_in = ?wait, "no certificate yet, so no configuration is asked for");
                sleep(wait).await;
            }
        }
    }

    /// Renews for ever.
    pub async fn run(mut self) {
        self.first().await;
        let mut backoff = Backoff::new(LONGEST);
        loop {
            self.until_due().await;
            match self.renew().await {
                Ok(()) => backoff = Backoff::new(LONGEST),
                Err(error) => {
                    let wait = backoff.next(&error);
                    self.complain(&error, wait);
                    sleep(wait).await;
                }
            }
        }
    }

    /// By the wall clock, looked at often, since that may jump.
    async fn until_due(&self) {
        while let Some((_, due)) = &self.held
            && let Ok(left) = due.duration_since(SystemTime::now())
        {
            sleep(left.clamp(SHORTEST_SLEEP, LONGEST_SLEEP)).await;
        }
    }

    fn complain(&self, error: &AskError, wait: Duration) {
        let until = self.held.as_ref().map_or(SystemTime::UNIX_EPOCH, |(held, _)| held.not_after);
        let hint = error.hint();
        if until > SystemTime::now() {
            let until = moment(until);
            tracing::warn!(%error, hint, until, retry_in = ?wait, "certificate not renewed, the old one is used on");
        } else {
            tracing::error!(%error, hint, retry_in = ?wait, "the certificate has run out: other workloads refuse this one");
        }
    }

    async fn renew(&mut self) -> Result<(), AskError> {
        let asked = SystemTime::now();
        match self.ask().await {
            Ok(held) => {
                self.stats.renewals.increment(1);
                tracing::info!(until = %moment(held.not_after), "certificate obtained");
                self.asker.trust(&held.bundle_pem);
                let due = renewal(asked, held.not_after);
                self.hold(held, due);
                Ok(())
            }
            Err(error) => {
                let counter = if error.is_refusal() { &self.stats.refusals } else { &self.stats.failures };
                counter.increment(1);
                Err(error)
            }
        }
    }

    async fn ask(&self) -> Result<Held, AskError> {
        let KeyAndRequest { key_pem, csr_pem } = request::make().map_err(AskError::Key)?;
        let answer = self.asker.ask(&csr_pem).await?;
        let held = Held::new(key_pem, answer).map_err(AskError::Answer)?;
        self.directory.put(&held).map_err(AskError::Files)?;
        Ok(held)
    }

    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 need 31 bits")]
    fn hold(&mut self, held: Held, due: SystemTime) {
        let expiry = held.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.stats.expiry.set(expiry.as_secs() as f64);
        self.held = Some((held, due));
        self.progress.0.store(Arc::new(None));
    }
}

/// When two thirds of a life are over, and up to a twentieth earlier, so that a fleet doesn't ask in one moment.
fn renewal(begin: SystemTime, end: SystemTime) -> SystemTime {
    let life = end.duration_since(begin).unwrap_or_default();
    begin + life.mul_f64(2.0 / 3.0 - fastrand::f64() / 20.0)
}

/// Growing waits, with jitter.
struct Backoff {
    step: u32,
    longest: Duration,
}

impl Backoff {
    fn new(longest: Duration) -> Self {
        Self { step: 0, longest }
    }

    fn next(&mut self, error: &AskError) -> Duration {
        let (shortest, longest) =
            if error.is_refusal() { (REFUSED_SHORTEST, LONGEST) } else { (SHORTEST, self.longest) };
        let wait = shortest.saturating_mul(1 << self.step.min(10)).min(longest);
        self.step += 1;
        wait.mul_f64(0.75 + fastrand::f64() / 2.0).max(error.retry_after().unwrap_or_default())
    }
}

fn moment(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

/// First wait after a failure that may be over soon.
const SHORTEST: Duration = Duration::from_millis(500);
/// First wait after the server said no: the same request gets the same answer until somebody changes something.
const REFUSED_SHORTEST: Duration = Duration::from_secs(3);
/// Longest wait while a pod can't start,
const FIRST_LONGEST: Duration = Duration::from_secs(10);
/// and otherwise.
const LONGEST: Duration = Duration::from_secs(60);
const SHORTEST_SLEEP: Duration = Duration::from_millis(100);
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
