//! Leaf certificates of the mesh's identities: issued when first needed, renewed in time.
//!
//! All proxies of one identity share a leaf. A leaf that is due but can't be renewed is used until
//! it expires, never longer. Nobody is told of a renewal here; [`Issuer::rotate`] says whether there
//! was one.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rcgen::SubjectPublicKeyInfo;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::{Ca, CaError, Certified, KeyHome, Leaf, LeafRequest, ServiceIdentity, SidecarIdentity};

/// What leaves should look like; from MeshConfig and the installation's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The last part of every name.
    pub trust_domain: String,
    /// Whether leaves carry a SPIFFE id as well. Default off.
    pub spiffe: bool,
    /// MeshConfig `serviceCertValidityDuration`. Default 24 h.
    pub validity: Duration,
}

impl Policy {
    /// OSM's defaults for a trust domain.
    pub fn new(trust_domain: impl Into<String>) -> Self {
        Self { trust_domain: trust_domain.into(), spiffe: false, validity: Duration::from_secs(24 * 3600) }
    }
}

/// Issues and keeps the leaves of service identities.
#[derive(Debug)]
pub struct Issuer {
    ca: Arc<Ca>,
    inner: Mutex<Inner>,
    issued: AtomicU64,
    failed: AtomicU64,
    renewed: Notify,
}

/// The certificates of a sidecar whose key is its pod's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodCertificates {
    /// With which the sidecar asks for its configuration.
    pub sidecar: Certified,
    /// With which it speaks to other workloads.
    pub service: Certified,
}

#[derive(Debug)]
struct Inner {
    policy: Policy,
    leaves: HashMap<ServiceIdentity, Held>,
}

#[derive(Debug)]
struct Held {
    leaf: Arc<Leaf>,
    /// When to replace it; later tries after a failure move it.
    due: SystemTime,
}

impl Issuer {
    /// An issuer that signs with `ca`.
    pub fn new(ca: Arc<Ca>, policy: Policy) -> Self {
        let leaves = HashMap::new();
        Self {
            ca,
            inner: Mutex::new(Inner { policy, leaves }),
            issued: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            renewed: Notify::new(),
        }
    }

    /// The authority behind it.
    pub fn ca(&self) -> &Arc<Ca> {
        &self.ca
    }

    /// What leaves look like now.
    pub fn policy(&self) -> Policy {
        self.inner.lock().policy.clone()
    }

    /// Changes what leaves look like. If it is different, every leaf is due at once, and true is
    /// returned.
    pub fn set_policy(&self, policy: Policy) -> bool {
        let mut inner = self.inner.lock();
        if inner.policy == policy {
            return false;
        }
        inner.policy = policy;
        for held in inner.leaves.values_mut() {
            held.due = SystemTime::UNIX_EPOCH;
        }
        true
    }

    /// The leaf of an identity, a new one if there is none or the old one is due.
    ///
    /// # Errors
    /// [`CaError`] if none could be issued and no valid one is left.
    pub fn leaf(&self, id: &ServiceIdentity, now: SystemTime) -> Result<Arc<Leaf>, CaError> {
        must_not_read_as_sidecar(id)?;
        let mut inner = self.inner.lock();
        match inner.leaves.get(id) {
            Some(held) if now < held.due && !held.leaf.is_expired(now) => {
                return Ok(Arc::clone(&held.leaf));
            }
            _ => {}
        }
        self.renew(&mut inner, id, now)
    }

    /// Renews what is due among the identities `in_use` and forgets all others. Returns how many
    /// got a new leaf.
    pub fn rotate(&self, in_use: &BTreeSet<ServiceIdentity>, now: SystemTime) -> usize {
        let mut inner = self.inner.lock();
        inner.leaves.retain(|id, _| in_use.contains(id));
        let due: Vec<ServiceIdentity> =
            inner.leaves.iter().filter(|(_, held)| now >= held.due).map(|(id, _)| id.clone()).collect();
        let before = self.issued.load(Ordering::Relaxed);
        for id in &due {
            if let Err(error) = self.renew(&mut inner, id, now) {
                warn!(identity = %id, %error, "the identity has no valid certificate");
            }
        }
        usize::try_from(self.issued.load(Ordering::Relaxed) - before).unwrap_or(usize::MAX)
    }

    /// Waits until a leaf is issued: [`Self::next_due`] may be earlier then. Cancel safe.
    pub async fn issued(&self) {
        self.renewed.notified().await;
    }

    /// When the next leaf is due, if there is one at all.
    pub fn next_due(&self) -> Option<SystemTime> {
        let inner = self.inner.lock();
        inner.leaves.values().map(|held| held.due).min()
    }

    /// The end of the leaf that ends first, if there is one at all.
    pub fn first_expiry(&self) -> Option<SystemTime> {
        let inner = self.inner.lock();
        inner.leaves.values().map(|held| held.leaf.not_after).min()
    }

    /// How many leaves were issued, and how many times it failed.
    pub fn counts(&self) -> (u64, u64) {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (load(&self.issued), load(&self.failed))
    }

    /// A certificate with which a sidecar asks for its configuration.
    ///
    /// # Errors
    /// [`CaError`] if it can't be issued.
    pub fn sidecar(&self, id: &SidecarIdentity, validity: Duration) -> Result<Leaf, CaError> {
        let request = LeafRequest {
            common_name: id.common_name(&self.inner.lock().policy.trust_domain),
            dns: vec![],
            uris: vec![],
            ips: vec![],
            validity,
        };
        self.ca.issue(&request, SystemTime::now())
    }

    /// Certificates for a key that the sidecar's pod made: as sidecar, marked as such, and as its service identity.
    /// They end together. No key is made or kept here.
    ///
    /// # Errors
    /// [`CaError`] if they can't be issued.
    pub fn certify(
        &self,
        id: &SidecarIdentity,
        key: &SubjectPublicKeyInfo,
        now: SystemTime,
    ) -> Result<PodCertificates, CaError> {
        must_not_read_as_sidecar(&id.service)?;
        let policy = self.policy();
        let service = policy.request(&id.service);
        let sidecar =
            LeafRequest { common_name: id.common_name(&policy.trust_domain), uris: vec![], ..service.clone() };
        Ok(PodCertificates {
            sidecar: self.ca.certify(&sidecar, Some(KeyHome::POD_UNIT), key, now)?,
            service: self.ca.certify(&service, None, key, now)?,
        })
    }

    fn renew(&self, inner: &mut Inner, id: &ServiceIdentity, now: SystemTime) -> Result<Arc<Leaf>, CaError> {
        match self.ca.issue(&inner.policy.request(id), now) {
            Ok(leaf) => {
                self.issued.fetch_add(1, Ordering::Relaxed);
                info!(identity = %id, serial = leaf.serial, "issued a certificate");
                let leaf = Arc::new(leaf);
                let due = leaf.renew_at() - leaf.renew_spread().mul_f64(fastrand::f64());
                let held = Held { leaf: Arc::clone(&leaf), due: due.max(now + RETRY) };
                inner.leaves.insert(id.clone(), held);
                self.renewed.notify_one();
                Ok(leaf)
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let Some(held) = inner.leaves.get_mut(id).filter(|h| !h.leaf.is_expired(now)) else {
                    return Err(error);
                };
                warn!(identity = %id, %error, "certificate not renewed, the old one is used on");
                held.due = now + RETRY.mul_f64(1.0 + fastrand::f64());
                Ok(Arc::clone(&held.leaf))
            }
        }
    }
}

impl Policy {
    fn request(&self, id: &ServiceIdentity) -> LeafRequest {
        let uris = if self.spiffe { vec![id.spiffe_id(&self.trust_domain)] } else { vec![] };
        LeafRequest {
            common_name: id.principal(&self.trust_domain),
            dns: vec![],
            uris,
            ips: vec![],
            validity: self.validity,
        }
    }
}

/// Shortest time between two tries for one identity.
const RETRY: Duration = Duration::from_secs(1);

fn must_not_read_as_sidecar(id: &ServiceIdentity) -> Result<(), CaError> {
    if id.reads_as_sidecar() { Err(CaError::ReadsAsSidecar(id.clone())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer(validity: u64) -> (tempfile::TempDir, Issuer) {
        let dir = tempfile::tempdir().unwrap();
        let ca = Arc::new(Ca::open_or_create(dir.path()).unwrap());
        let policy = Policy { validity: Duration::from_secs(validity), ..Policy::new("td") };
        (dir, Issuer::new(ca, policy))
    }

    fn id() -> ServiceIdentity {
        ServiceIdentity::new("shop", "buyer")
    }

    #[test]
    fn proxies_of_one_identity_share_a_leaf_until_it_is_due() {
        let (_dir, issuer) = issuer(20);
        let t0 = SystemTime::now();
        let first = issuer.leaf(&id(), t0).unwrap();
        assert_eq!(first.common_name, "buyer.shop.td");
        let again = issuer.leaf(&id(), t0 + Duration::from_secs(5)).unwrap();
        assert_eq!(first.serial, again.serial);
        let later = issuer.leaf(&id(), t0 + Duration::from_secs(11)).unwrap();
        assert_ne!(first.serial, later.serial);
    }

    #[test]
    fn twenty_second_leaves_are_always_valid_under_rotation() {
        let (_dir, issuer) = issuer(20);
        let t0 = SystemTime::now();
        issuer.leaf(&id(), t0).unwrap();
        let in_use = BTreeSet::from([id()]);
        let mut renewed = 0;
        for second in 0..120 {
            let now = t0 + Duration::from_secs(second);
            renewed += issuer.rotate(&in_use, now);
            let leaf = issuer.leaf(&id(), now).unwrap();
            assert!(leaf.not_after - Duration::from_secs(8) > now);
        }
        assert!((10..=14).contains(&renewed), "{renewed}");
    }

    #[test]
    fn an_account_that_reads_as_anothers_sidecar_gets_no_leaf() {
        let (_dir, issuer) = issuer(3600);
        let error = issuer.leaf(&ServiceIdentity::new("shop", "u1.sidecar.buyer"), SystemTime::now()).unwrap_err();
        assert!(error.to_string().contains("shop/u1.sidecar.buyer"), "{error}");
    }

    #[test]
    fn identities_out_of_use_are_forgotten() {
        let (_dir, issuer) = issuer(20);
        issuer.leaf(&id(), SystemTime::now()).unwrap();
        let late = SystemTime::now() + Duration::from_secs(30);
        assert_eq!(issuer.rotate(&BTreeSet::new(), late), 0);
        assert_eq!(issuer.next_due(), None);
    }

    #[test]
    fn a_change_of_policy_renews_everything_once() {
        let (_dir, issuer) = issuer(3600);
        let first = issuer.leaf(&id(), SystemTime::now()).unwrap();
        let mut policy = issuer.policy();
        assert!(!issuer.set_policy(policy.clone()));
        policy.spiffe = true;
        assert!(issuer.set_policy(policy));
        let in_use = BTreeSet::from([id()]);
        assert_eq!(issuer.rotate(&in_use, SystemTime::now()), 1);
        assert_eq!(issuer.rotate(&in_use, SystemTime::now()), 0);
        let second = issuer.leaf(&id(), SystemTime::now()).unwrap();
        assert_ne!(first.serial, second.serial);
    }

    #[test]
    fn without_an_authority_a_leaf_serves_until_it_expires_and_no_longer() {
        let (_dir, issuer) = issuer(3600);
        let end = issuer.ca().not_after();
        let leaf = issuer.leaf(&id(), end - Duration::from_secs(1800)).unwrap();
        assert_eq!(leaf.not_after, end);
        let kept = issuer.leaf(&id(), end).unwrap();
        assert_eq!(kept.serial, leaf.serial);
        let late = issuer.leaf(&id(), end + Duration::from_secs(1));
        assert!(matches!(late, Err(CaError::Expired(_))));
    }
}
