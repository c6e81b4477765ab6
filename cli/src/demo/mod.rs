//! `oxmesh demo`: the bookstore as a whole mesh on this machine, live.
//!
//! The manifests are copied to a folder that the user may edit while it runs; every second the
//! folder is read again, pods follow, and the table shows what the sidecars and applications say.

mod gather;
mod picture;
mod table;

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use oxmesh_controller::api::Objects;
use oxmesh_controller::settings::Settings;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::mesh::{Edition, PodPlan, Session, SessionOptions, edition, plans, read};
use crate::output::{self, Format};
use crate::pod::{DataPlane, Topology, TopologyOptions};
use crate::signals::Shutdown;
use gather::Gatherer;
pub use picture::{Apps, Expected, Picture, PodRow};

pub use crate::traffic::{Edge, Refused};

/// The manifests that come with the program.
const MANIFESTS: [(&str, &str); 8] = [
    ("access.yaml", include_str!("../../../demo/access.yaml")),
    ("bookbuyer.yaml", include_str!("../../../demo/bookbuyer.yaml")),
    ("bookstore.yaml", include_str!("../../../demo/bookstore.yaml")),
    ("bookthief.yaml", include_str!("../../../demo/bookthief.yaml")),
    ("bookwarehouse.yaml", include_str!("../../../demo/bookwarehouse.yaml")),
    ("egress.yaml.example", include_str!("../../../demo/egress.yaml.example")),
    ("mesh-config.yaml", include_str!("../../../demo/mesh-config.yaml")),
    ("split.yaml", include_str!("../../../demo/split.yaml")),
];

/// Which sidecars the pods get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// Ours.
    Oxmesh,
    /// Real Envoy.
    Envoy,
    /// Both, in turn.
    Mixed,
}

impl Choice {
    fn needs(self) -> &'static [DataPlane] {
        match self {
            Self::Oxmesh => &[DataPlane::Oxmesh],
            Self::Envoy => &[DataPlane::Envoy],
            Self::Mixed => &[DataPlane::Oxmesh, DataPlane::Envoy],
        }
    }

    /// The sidecar of the pod that is made as number `made`.
    fn of(self, made: usize) -> DataPlane {
        let kinds = self.needs();
        kinds[made % kinds.len()]
    }
}

/// Options of `oxmesh demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Sidecars of the pods.
    #[arg(long, value_name = "KIND", default_value = "oxmesh")]
    data_plane: Choice,
    /// How long to run, such as 30s; without it until Ctrl-C. With --once: how long to measure,
    /// 5s by default.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Print the picture once when it has been measured, and end: status 0 if the bookstore does
    /// what it should, else 1.
    #[arg(long)]
    once: bool,
    /// Form of the output.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Format,
    /// Run the objects of this folder in place of the bookstore's.
    #[arg(long, value_name = "FOLDER")]
    manifests: Option<PathBuf>,
    /// Keep the folder with manifests and logs.
    #[arg(long)]
    keep: bool,
}

/// Time that everything has to come up.
const START_LIMIT: Duration = Duration::from_secs(60);
const MEASURE: Duration = Duration::from_secs(5);
/// The pause of a buyer, in seconds.
const PAUSE: &str = "CI_SLEEP_BETWEEN_REQUESTS_SECONDS";
const POLL: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_secs(2);
const SHOW: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the demo.
///
/// # Errors
/// When the mesh can't be started, or the controller ends.
pub async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let mut shutdown = Shutdown::new()?;
    let start = Instant::now();
    let mut topology = Topology::new(TopologyOptions::new()?).await?;
    if args.keep {
        topology.folder_mut().keep()?;
    }
    for data_plane in args.data_plane.needs() {
        topology.binaries().find(data_plane.program())?;
    }
    note(start, &format!("node ready, {}", topology.exempt().describe()));
    let manifests = match &args.manifests {
        Some(folder) => folder.canonicalize().with_context(|| format!("folder {}", folder.display()))?,
        None => copy_manifests(topology.folder().path())?,
    };
    let options = SessionOptions { topology, manifests, settings: Settings::default(), delta: false };
    let session = tokio::select! {
        session = Session::start(options) => session?,
        () = shutdown.wait() => return Ok(ExitCode::FAILURE),
    };
    note(start, "controller ready");
    let mut demo = Demo::new(args, session, start);
    let result = demo.live(&mut shutdown).await;
    if result.is_ok() && !demo.args.once {
        demo.show_last().await?;
    }
    demo.session.stop().await;
    result
}

struct Demo {
    args: DemoArgs,
    session: Session,
    gatherer: Gatherer,
    objects: Objects,
    /// The manifests as they were last looked at, and as the pods follow them.
    seen: Edition,
    edition: Edition,
    /// When pods that could not be started are tried again.
    retry: Option<Instant>,
    findings: Vec<String>,
    start: Instant,
    /// When the mesh stood.
    stood: Option<Instant>,
    pods_made: usize,
}

impl Demo {
    fn new(args: DemoArgs, session: Session, start: Instant) -> Self {
        Self {
            args,
            session,
            gatherer: Gatherer::default(),
            objects: Objects::default(),
            seen: Edition::new(),
            edition: Edition::new(),
            retry: None,
            findings: Vec::new(),
            start,
            stood: None,
            pods_made: 0,
        }
    }

    async fn live(&mut self, shutdown: &mut Shutdown) -> anyhow::Result<ExitCode> {
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut shown = Instant::now();
        loop {
            tokio::select! {
                () = shutdown.wait() => return Ok(ExitCode::SUCCESS),
                _ = poll.tick() => {}
            }
            self.follow_manifests().await?;
            self.session.advance().await?;
            if self.stood.is_none() {
                self.look_whether_it_stands().await?;
            }
            if let Some(status) = self.finished().await? {
                return Ok(status);
            }
            // A pod that hangs shows in the table even when the mesh never stands.
            let worth = self.stood.is_some() || self.start.elapsed() >= PATIENCE;
            if worth && !self.args.once && shown.elapsed() >= SHOW {
                shown = Instant::now();
                self.show().await?;
            }
        }
    }

    /// Reads the manifests if they changed, and lets the pods follow.
    async fn follow_manifests(&mut self) -> anyhow::Result<()> {
        let now = edition(self.session.manifests())?;
        // A file that is being written may be empty at this moment: what has changed must stand for a while.
        let settled = self.edition.is_empty() || now == self.seen;
        self.seen.clone_from(&now);
        let due = now != self.edition || self.retry.is_some_and(|at| Instant::now() >= at);
        if !settled || !due {
            return Ok(());
        }
        self.edition = now;
        let manifests = self.session.manifests().to_owned();
        let settings = Settings::default();
        let snapshot = read(&[&manifests], &settings);
        let (mut plans, mut findings) = plans(&snapshot.objects, &settings.mesh_name);
        if self.args.once {
            plans.iter_mut().for_each(hurry);
        }
        let before = findings.len();
        let errors = snapshot.findings.iter().filter(|finding| finding.is_error());
        findings.extend(errors.map(ToString::to_string));
        // A file with a mistake may hold a Deployment: its pods stay until the file says otherwise.
        let keep = findings.len() > before;
        self.objects = snapshot.objects;
        let (choice, made) = (self.args.data_plane, &mut self.pods_made);
        let data_plane = |_: &_| {
            *made += 1;
            choice.of(*made)
        };
        let unstarted = self.session.reconcile(plans, keep, data_plane).await;
        self.retry = (!unstarted.is_empty()).then(|| Instant::now() + RETRY);
        findings.extend(unstarted);
        self.findings = findings;
        self.session.write_hosts()
    }

    /// The mesh stands when all pods are ready and the bookstore's first calls have come through.
    async fn look_whether_it_stands(&mut self) -> anyhow::Result<()> {
        if !self.session.settled() {
            return Ok(());
        }
        let apps = self.gatherer.apps(&self.session).await;
        // A buyer that pauses a second may take many to meet both versions; by its second round the
        // sidecars know of both.
        let (versions, calls) = if self.args.once { (2, 2) } else { (1, 3) };
        let works = [("bookbuyer", versions, calls), ("bookstore", 1, 1), ("bookwarehouse", 1, 1)].iter().all(
            |(app, versions, calls)| {
                apps.get(*app).is_none_or(|counts| counts.by_identity.len() >= *versions && counts.ok >= *calls)
            },
        );
        let bookstore = apps.contains_key("bookbuyer");
        if works && (bookstore || self.start.elapsed() > SHOW) {
            self.gatherer.rebase(&self.session, apps).await;
            self.stood = Some(Instant::now());
            self.announce();
        }
        Ok(())
    }

    fn announce(&self) {
        note(self.start, &format!("mesh ready, {} pods", self.session.pods().len()));
        if self.args.once {
            return;
        }
        let mesh = self.session.topology().folder().path().display();
        note(self.start, &format!("edit the manifests while it runs: {}", self.session.manifests().display()));
        note(self.start, &format!("look inside: oxmesh exec --mesh {mesh} NAMESPACE/POD -- COMMAND"));
        note(self.start, &format!("join it: oxmesh run --mesh {mesh} --name NAME -- PROGRAM"));
    }

    /// The exit status, once the time is over.
    async fn finished(&mut self) -> anyhow::Result<Option<ExitCode>> {
        if !self.args.once {
            let over = self.args.duration.is_some_and(|limit| self.start.elapsed() >= limit);
            return Ok(over.then_some(ExitCode::SUCCESS));
        }
        let measured = match self.stood {
            Some(stood) => stood.elapsed() >= self.args.duration.unwrap_or(MEASURE),
            None => self.start.elapsed() >= START_LIMIT,
        };
        if !measured {
            return Ok(None);
        }
        let mut picture = self.picture().await;
        if self.stood.is_none() {
            let unmet = vec![format!("the mesh did not stand within {START_LIMIT:?}")];
            picture.expected.get_or_insert_default().unmet.extend(unmet);
        }
        let met = picture.expected.as_mut().is_none_or(|expected| {
            expected.met = expected.unmet.is_empty();
            expected.met
        });
        output::print(self.args.output, &picture, table::render)?;
        Ok(Some(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
    }

    async fn show(&mut self) -> anyhow::Result<()> {
        let table = self.args.output == Format::Table;
        if table && !std::io::stdout().is_terminal() {
            // Nobody looks at a table that scrolls by; the last one is printed at the end.
            return Ok(());
        }
        if table {
            // Home, and clear what stood there.
            print!("\x1b[H\x1b[J");
        }
        let picture = self.picture().await;
        output::print(self.args.output, &picture, table::render)?;
        std::io::stdout().flush()?;
        Ok(())
    }

    /// For a file or a pipe, which got no table while it ran.
    async fn show_last(&mut self) -> anyhow::Result<()> {
        if self.args.output == Format::Table && !std::io::stdout().is_terminal() {
            let picture = self.picture().await;
            output::print(Format::Table, &picture, table::render)?;
        }
        Ok(())
    }

    async fn picture(&mut self) -> Picture {
        let mut picture = self.gatherer.picture(&self.session, &self.objects).await;
        picture.findings.clone_from(&self.findings);
        if !self.args.once {
            // The user plays with it: what the untouched manifests should give is no measure.
            picture.expected = None;
            self.gatherer.drop_ceased(&mut picture.refused);
        }
        picture
    }
}

/// Buyers that pause a second need minutes for a split that can be measured.
fn hurry(plan: &mut PodPlan) {
    let variables = plan.containers.iter_mut().flat_map(|container| &mut container.env);
    for (_, value) in variables.filter(|(name, _)| name == PAUSE) {
        "0.05".clone_into(value);
    }
}

/// Progress goes to standard error: standard output holds the picture alone.
fn note(start: Instant, words: &str) {
    eprintln!("{:>5.1} s  {words}", start.elapsed().as_secs_f64());
}

fn copy_manifests(folder: &Path) -> anyhow::Result<PathBuf> {
    let folder = folder.join("manifests");
    for (name, text) in MANIFESTS {
        fs::write(folder.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_name_the_image_of_this_version() {
        let images =
            MANIFESTS.iter().flat_map(|(_, text)| text.lines()).filter_map(|line| line.trim().strip_prefix("image: "));
        let images: Vec<&str> = images.collect();
        assert_eq!(images.len(), 6);
        for image in images {
            assert_eq!(image, concat!("oxmesh/app:", env!("CARGO_PKG_VERSION")));
        }
    }

    #[test]
    fn the_manifests_can_be_put_behind_one_another() {
        for (name, text) in MANIFESTS.iter().filter(|(name, _)| name.ends_with(".yaml")) {
            assert!(text.starts_with("---\n"), "{name}");
        }
    }
}
