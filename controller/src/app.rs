//! Puts the control plane together: source, mesh, authority, ADS server, admin interface.
//!
//! Everything flows one way: folders give snapshots, a snapshot gives a mesh, a mesh with the
//! authority is the world that streams render from. ADS accepts nobody before the first snapshot,
//! so no proxy ever sees half a mesh.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin;
use crate::error::StartError;
use crate::identity::sign::{self, ApiReviewer, Pods, Signer};
use crate::identity::{Ca, Issuer, Policy, ca_secret};
use crate::inject;
use crate::kubernetes;
use crate::lint::{self, Finding};
use crate::mesh::{Built, Mesh};
use crate::readiness::{Part, Readiness};
use crate::settings::Settings;
use crate::shared::{Report, Shared};
use crate::source::{Snapshot, watch_cluster, watch_folders};
use crate::xds::server;

/// Where the objects come from.
#[derive(Clone)]
pub enum Source {
    /// Folders of manifests, watched.
    Folders(Vec<PathBuf>),
    /// An API server, watched.
    Kubernetes(kube::Client),
}

/// Who signs the mesh's certificates.
#[derive(Clone)]
pub enum Authority {
    /// The built-in authority, kept in this directory; made at the first start.
    State(PathBuf),
    /// A certificate and its key, both PEM.
    Files {
        /// The certificate.
        cert: PathBuf,
        /// Its key, PKCS #8.
        key: PathBuf,
    },
    /// The built-in authority, kept in a Secret of the control plane's namespace; made if there is none.
    Secret {
        /// How to reach the API server.
        client: kube::Client,
        /// The Secret's name. OSM's is `osm-ca-bundle`.
        name: String,
    },
}

/// What a control plane is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the objects come from.
    pub source: Source,
    /// Who signs the mesh's certificates.
    pub authority: Authority,
    /// Where ADS listens. OSM's port is 15128.
    pub xds_address: SocketAddr,
    /// Where certificates are signed for keys that pods made; with [`Source::Kubernetes`] only, whose API server knows
    /// pods by their tokens.
    pub identity_address: SocketAddr,
    /// Where health, metrics and debug pages are. OSM's port is 9091.
    pub admin_address: SocketAddr,
    /// Names of the ADS server besides OSM's own.
    pub xds_names: Vec<String>,
    /// Addresses that stand in the ADS server's certificate.
    pub xds_ips: Vec<IpAddr>,
    /// Write SPIFFE ids into leaf certificates besides the DNS names.
    pub spiffe: bool,
    /// The injector; none in folder mode.
    pub inject: Option<inject::Options>,
    /// Facts of the installation.
    pub settings: Settings,
}

/// A control plane that runs.
#[derive(Debug)]
pub struct App {
    shared: Arc<Shared>,
    xds_address: SocketAddr,
    admin_address: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folders(folders) => f.debug_tuple("Folders").field(folders).finish(),
            Self::Kubernetes(_) => f.write_str("Kubernetes"),
        }
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::State(dir) => f.debug_tuple("State").field(dir).finish(),
            Self::Files { cert, key } => f.debug_struct("Files").field("cert", cert).field("key", key).finish(),
            Self::Secret { name, .. } => f.debug_tuple("Secret").field(name).finish(),
        }
    }
}

impl App {
    /// Starts everything; returns when both addresses are listened on. Work goes on in tasks.
    ///
    /// # Errors
    /// [`StartError`] if the authority, a folder or an address isn't usable.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        if let Source::Folders(folders) = &options.source {
            for path in folders {
                std::fs::read_dir(path).map_err(|source| StartError::Folder { path: path.clone(), source })?;
            }
        }
        let xds = listen("ADS", "--xds-addr", options.xds_address).await?;
        let admin = listen("the admin interface", "--admin-addr", options.admin_address).await?;
        let injector = match &options.inject {
            Some(chosen) => Some((listen("the injector", "--webhook-addr", chosen.address).await?, chosen.clone())),
            None => None,
        };
        let identity = match &options.source {
            Source::Folders(_) => None,
            Source::Kubernetes(client) => {
                let listener = listen("signing certificates", "--identity-addr", options.identity_address).await?;
                Some((listener, client.clone()))
            }
        };
        let ca = authority(&options).await?;
        let shared = Arc::new(Shared::new(
            options.settings.clone(),
            ca,
            options.spiffe,
            options.xds_names.clone(),
            options.xds_ips.clone(),
            awaited(&options),
        )?);
        let stop = CancellationToken::new();
        let address = |listener: &TcpListener, wanted| listener.local_addr().unwrap_or(wanted);
        let mut app = Self {
            xds_address: address(&xds, options.xds_address),
            admin_address: address(&admin, options.admin_address),
            shared: Arc::clone(&shared),
            stop: stop.clone(),
            tasks: JoinSet::new(),
        };
        info!(xds = %app.xds_address, admin = %app.admin_address, source = ?options.source, "control plane starts");
        let snapshots = match options.source {
            Source::Folders(folders) => watch_folders(folders, options.settings.service_cidr, stop.clone()),
            Source::Kubernetes(client) => {
                let duties = kubernetes::duties(client.clone(), Arc::clone(&shared), stop.clone());
                app.tasks.spawn(duties);
                let snapshots =
                    watch_cluster(client.clone(), options.settings, shared.readiness.kinds.clone(), stop.clone());
                if let Some((listener, chosen)) = injector {
                    let (shared, snapshots) = (Arc::clone(&shared), snapshots.clone());
                    app.tasks.spawn(inject::run(listener, chosen, client, shared, snapshots, stop.clone()));
                }
                snapshots
            }
        };
        if let Some((listener, client)) = identity {
            let signer = Arc::new(signer(&shared, client, snapshots.clone()));
            app.tasks.spawn(sign::server::serve(listener, Arc::clone(&shared.tls), signer, stop.clone()));
        }
        app.tasks.spawn(until(stop.clone(), follow(Arc::clone(&shared), snapshots, options.spiffe)));
        app.tasks.spawn(until(stop.clone(), rotate(Arc::clone(&shared))));
        app.tasks.spawn(serve_ads(Arc::clone(&shared), xds, stop.clone()));
        app.tasks.spawn(admin::serve(admin, shared, stop));
        Ok(app)
    }

    /// Where ADS listens.
    pub fn xds_address(&self) -> SocketAddr {
        self.xds_address
    }

    /// Where the admin interface listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// The authority: for bootstrap directories.
    pub fn issuer(&self) -> &Arc<Issuer> {
        &self.shared.issuer
    }

    /// What there is to say about the objects now.
    pub fn findings(&self) -> Vec<Finding> {
        self.shared.report.borrow().findings.clone()
    }

    /// The connected proxies and how they take what they are sent.
    pub fn proxies(&self) -> Vec<server::ProxyReport> {
        self.shared.hub.proxies()
    }

    /// Waits until every folder was read once and ADS accepts proxies.
    pub async fn ready(&self) {
        // The sender lives as long as `self`.
        let _ = self.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Ends every stream, tells why, and waits for all tasks. Proxies keep what they have.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        info!("control plane has stopped");
    }
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn listen(what: &'static str, flag: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { what, address, flag, source })
}

async fn authority(options: &Options) -> Result<Ca, StartError> {
    Ok(match &options.authority {
        Authority::State(dir) => Ca::open_or_create(dir)?,
        Authority::Files { cert, key } => Ca::from_files(cert, key)?,
        Authority::Secret { client, name } => {
            ca_secret::open_or_create(client, &options.settings.osm_namespace, name).await?
        }
    })
}

/// Signs for the pods of a cluster.
fn signer(shared: &Shared, client: kube::Client, snapshots: watch::Receiver<Option<Arc<Snapshot>>>) -> Signer {
    let pods = Pods {
        snapshots,
        api: Some(client.clone()),
        mesh_name: shared.settings.mesh_name.clone(),
        patience: NEW_POD_PATIENCE,
    };
    let reviewer = Arc::new(ApiReviewer(client));
    Signer::new(Arc::clone(&shared.issuer), reviewer, pods, Arc::clone(&shared.metrics))
}

/// What a control plane that has just started waits for.
fn awaited(options: &Options) -> Readiness {
    let readiness = Readiness::default();
    readiness.wait(Part::Objects, "the objects have not been read yet");
    readiness.wait(Part::Ads, "ADS is not served yet");
    if options.inject.is_some() {
        readiness.wait(Part::Injector, "new pods are not reviewed yet");
        inject::await_ca_bundle(&readiness, &options.settings.mesh_name);
    }
    readiness
}

/// Makes a mesh of every new snapshot.
async fn follow(shared: Arc<Shared>, mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>, spiffe: bool) {
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        if let Some(snapshot) = snapshot {
            take(&shared, snapshot, spiffe).await;
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

async fn take(shared: &Shared, snapshot: Arc<Snapshot>, spiffe: bool) {
    let (objects, settings) = (Arc::clone(&snapshot), shared.settings.clone());
    let built = tokio::task::spawn_blocking(move || Mesh::build(&objects.objects, &settings)).await;
    let Ok(Built { mesh, findings }) = built else {
        error!("working out the mesh failed; the last one stays in force");
        return;
    };
    let findings = lint::all(&snapshot, &findings);
    say(&findings, &shared.report.borrow().findings);
    shared.metrics.count("oxmesh_mesh_generation", &[]);
    shared.report.send_replace(Arc::new(Report { snapshot, findings }));
    shared.issuer.set_policy(Policy {
        spiffe,
        validity: mesh.config().service_cert_validity,
        ..Policy::new(&shared.settings.trust_domain)
    });
    shared.publish(Some(mesh));
    shared.readiness.done(Part::Objects);
    shared.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
}

/// Logs what is new, the worst first and not without end.
fn say(findings: &[Finding], before: &[Finding]) {
    let mut new: Vec<&Finding> = findings.iter().filter(|f| before.binary_search(f).is_err()).collect();
    new.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    for finding in new.iter().take(MAX_LOGGED) {
        if finding.severity == lint::Severity::NoEffect {
            info!("{finding}");
        } else {
            warn!("{finding}");
        }
    }
    if new.len() > MAX_LOGGED {
        warn!("and {} more, see /debug/findings", new.len() - MAX_LOGGED);
    }
}

/// Renews certificates in time. Looks at the wall clock every few seconds, since that may jump.
async fn rotate(shared: Arc<Shared>) {
    let mut last_push = Instant::now();
    loop {
        let now = SystemTime::now();
        let renewed = shared.issuer.rotate(&shared.hub.identities(), now);
        if let Err(error) = shared.tls.rotate(now) {
            warn!(%error, "the ADS server's certificate is not renewed");
        }
        let resync = shared.world().mesh.config().resync;
        let is_resync_due = resync.is_some_and(|interval| last_push.elapsed() >= interval);
        if renewed > 0 || is_resync_due {
            shared.publish(None);
            last_push = Instant::now();
        }
        tokio::select! {
            () = sleep(until_due(&shared, SystemTime::now())) => {}
            // A leaf may be due sooner than all that were there.
            () = shared.issuer.issued() => sleep(ROTATION_PAUSE).await,
        }
    }
}

fn until_due(shared: &Shared, now: SystemTime) -> Duration {
    let due = shared.issuer.next_due().into_iter().chain([shared.tls.next_due()]).min();
    let left = due.map_or(ROTATION_CHECK, |due| due.duration_since(now).unwrap_or_default());
    left.clamp(ROTATION_PAUSE, ROTATION_CHECK)
}

async fn serve_ads(shared: Arc<Shared>, listener: TcpListener, stop: CancellationToken) {
    let mut synced = shared.synced.subscribe();
    tokio::select! {
        () = stop.cancelled() => return,
        synced = synced.wait_for(|synced| *synced) => if synced.is_err() { return },
    }
    shared.readiness.done(Part::Ads);
    let served = server::serve(listener, Arc::clone(&shared.tls), Arc::clone(&shared.hub), stop).await;
    shared.readiness.wait(Part::Ads, "ADS is served no longer");
    if let Err(error) = served {
        error!(%error, "the ADS server has ended");
    }
}

/// How long a pod that the watch has not brought yet is waited for.
const NEW_POD_PATIENCE: Duration = Duration::from_secs(3);
const ROTATION_CHECK: Duration = Duration::from_secs(5);
const ROTATION_PAUSE: Duration = Duration::from_millis(200);
const MAX_LOGGED: usize = 20;
