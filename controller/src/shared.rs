//! What the parts of a control plane have in common: the authority, the connected proxies, the newest report and mesh.
//!
//! Made once at start; what changes is behind channels and locks. It starts nothing: that is [`crate::app`]'s part.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::bootstrap::controller_name;
use crate::error::StartError;
use crate::identity::{Ca, Issuer, Policy};
use crate::lint::Finding;
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::settings::Settings;
use crate::source::Snapshot;
use crate::xds::World;
use crate::xds::server::{Hub, ServerTls, View};

/// What the parts of a control plane have in common.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) tls: Arc<ServerTls>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) report: watch::Sender<Arc<Report>>,
    /// Whether this replica is the one that writes what only one may write. Never in folder mode.
    pub(crate) leader: watch::Sender<bool>,
    pub(crate) synced: watch::Sender<bool>,
    pub(crate) readiness: Arc<Readiness>,
    world: Mutex<Arc<World>>,
    view: watch::Sender<Arc<dyn View>>,
}

/// What is known about the objects now.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The objects in force.
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) findings: Vec<Finding>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("hub", &self.hub).finish_non_exhaustive()
    }
}

impl Shared {
    /// Before the first objects. `names` and `ips` stand in the ADS server's certificate besides OSM's own name.
    pub(crate) fn new(
        settings: Settings,
        ca: Ca,
        spiffe: bool,
        names: Vec<String>,
        ips: Vec<IpAddr>,
        readiness: Readiness,
    ) -> Result<Self, StartError> {
        let ca = Arc::new(ca);
        let policy = Policy { spiffe, ..Policy::new(&settings.trust_domain) };
        let issuer = Arc::new(Issuer::new(Arc::clone(&ca), policy));
        let tls = ServerTls::new(
            ca,
            &settings.trust_domain,
            &controller_name(&settings.osm_namespace),
            names,
            ips,
            SERVER_CERTIFICATE_VALIDITY,
        )?;
        let metrics = Arc::new(Metrics::default());
        let world = Arc::new(World { mesh: Arc::new(Mesh::default()), issuer: Arc::clone(&issuer) });
        let (view, watch): (watch::Sender<Arc<dyn View>>, _) = watch::channel(Arc::clone(&world) as Arc<dyn View>);
        let hub = Arc::new(Hub::new(watch, &settings.trust_domain, Arc::clone(&metrics)));
        Ok(Self {
            settings,
            issuer,
            tls: Arc::new(tls),
            hub,
            metrics,
            report: watch::Sender::default(),
            leader: watch::Sender::new(false),
            synced: watch::Sender::new(false),
            readiness: Arc::new(readiness),
            world: Mutex::new(world),
            view,
        })
    }

    /// The world that streams render from now.
    pub(crate) fn world(&self) -> Arc<World> {
        Arc::clone(&self.world.lock())
    }

    /// Tells all streams to render anew, from a new mesh if there is one.
    pub(crate) fn publish(&self, mesh: Option<Mesh>) {
        let mut world = self.world.lock();
        if let Some(mesh) = mesh {
            *world = Arc::new(World { mesh: Arc::new(mesh), issuer: Arc::clone(&self.issuer) });
        }
        self.view.send_replace(Arc::clone(&world) as Arc<dyn View>);
        self.metrics.count("osm_proxy_broadcast_event_count", &[]);
    }
}

const SERVER_CERTIFICATE_VALIDITY: Duration = Duration::from_secs(24 * 3600);
