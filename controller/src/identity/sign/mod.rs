//! Signing certificates for keys that pods made: who asks is told by a bound service account token, what it gets by the
//! pod. Owns the checks and the audit; [`server`] is the way in over HTTPS.
//!
//! Nothing that a caller says of itself counts. Every issue and every refusal is one line in the log and one in the
//! metrics.

pub mod csr;
mod limit;
pub mod pods;
pub mod server;
pub mod token;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use self::csr::{CsrError, OwnNames};
use self::limit::Buckets;
pub use self::pods::{PodError, Pods};
pub use self::token::{ApiReviewer, BoundPod, TOKEN_AUDIENCE, TokenError, TokenReviewer};
use super::{CaError, Issuer, PodCertificates, SidecarIdentity};
use crate::metrics::Metrics;

/// Signs for pods.
pub struct Signer {
    issuer: Arc<Issuer>,
    reviewer: Arc<dyn TokenReviewer>,
    pods: Pods,
    metrics: Arc<Metrics>,
    by_address: Buckets<IpAddr>,
    by_pod: Buckets<String>,
    reviews: Semaphore,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("pods", &self.pods).finish_non_exhaustive()
    }
}

/// What a pod gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Chain with which the sidecar asks for its configuration, PEM.
    pub sidecar: String,
    /// Chain with which it speaks to other workloads, PEM.
    pub service: String,
    /// The roots that it should trust, PEM.
    pub trust_bundle: String,
    /// When the first of the certificates runs out, RFC 3339.
    pub not_after: String,
}

/// What a pod asks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    csr: String,
}

/// Why a pod gets nothing.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request has no token.
    #[error("the request has no bearer token")]
    NoToken,
    /// The token proves nothing.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The pod is not entitled.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// The body isn't the JSON that it should be.
    #[error("the request's body can't be read: {0}")]
    Body(String),
    /// The certificate request is not granted.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// Too many requests from one pod or address.
    #[error("too many requests of {who}")]
    TooMany {
        /// A pod or an address.
        who: String,
        /// When to ask again.
        wait: Duration,
    },
    /// The API server doesn't review tokens now.
    #[error("the token can't be reviewed now: {0}")]
    NoReview(String),
    /// The authority can't sign now.
    #[error("the authority can't sign now: {0}")]
    Authority(#[from] CaError),
}

impl Refusal {
    /// The HTTP status that says it.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoToken | Self::Token(TokenError::NotAuthenticated(_) | TokenError::WrongAudience) => {
                StatusCode::UNAUTHORIZED
            }
            Self::Pod(PodError::NotSynced | PodError::Unavailable(..)) | Self::NoReview(_) | Self::Authority(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Token(_) | Self::Pod(_) | Self::Csr(CsrError::AsksFor(_)) => StatusCode::FORBIDDEN,
            Self::Body(_) | Self::Csr(_) => StatusCode::BAD_REQUEST,
            Self::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// A word for programs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoToken => "token_missing",
            Self::Token(TokenError::NotAuthenticated(_)) => "token_refused",
            Self::Token(TokenError::WrongAudience) => "token_audience",
            Self::Token(TokenError::NotAServiceAccount(_) | TokenError::NotBound) => "token_not_bound",
            Self::Pod(PodError::NotSynced) => "not_synced",
            Self::Pod(PodError::NamespaceNotInMesh(_)) => "namespace_not_in_mesh",
            Self::Pod(PodError::Unknown(..)) => "pod_unknown",
            Self::Pod(PodError::Differs { .. }) => "pod_differs",
            Self::Pod(PodError::NoWorkload(_) | PodError::NoSidecar(_)) => "pod_without_sidecar",
            Self::Pod(PodError::BadName(..)) => "pod_bad_name",
            Self::Body(_) => "body_invalid",
            Self::Csr(CsrError::AsksFor(_)) => "csr_forbidden",
            Self::Csr(_) => "csr_invalid",
            Self::TooMany { .. } => "too_many_requests",
            Self::Pod(PodError::Unavailable(..)) | Self::NoReview(_) => "api_server_unavailable",
            Self::Authority(_) => "authority_unavailable",
        }
    }

    /// When to ask again, if that is what helps.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooMany { wait, .. } => Some(*wait),
            _ => (self.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(Duration::ZERO),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoToken => "send Authorization: Bearer with the pod's projected token",
            Self::Token(TokenError::NotAuthenticated(_)) => {
                "read the token file again; if it stays so, the pod or its service account was deleted, or the clocks differ"
            }
            Self::Token(_) => {
                "use the projected service account token with audience oxmesh.io; the injector adds it to the pod"
            }
            Self::Pod(PodError::NotSynced) => "try again; the controller's /health/ready says what it waits for",
            Self::Pod(PodError::NamespaceNotInMesh(_)) => "add the namespace: oxmesh namespace add NAME",
            Self::Pod(PodError::Unknown(..) | PodError::Differs { .. }) => {
                "the pod was deleted or made anew; its new pod gets a certificate of its own"
            }
            Self::Pod(PodError::NoWorkload(_) | PodError::NoSidecar(_)) => {
                "restart the pod so that the injector sees it"
            }
            Self::Pod(PodError::BadName(..)) => "choose another name, or let the injector set the label",
            Self::Body(_) => "send JSON: {\"csr\": PEM}, at most 16 KiB",
            Self::Csr(_) => "send a plain request with a new key and no extensions, as the sidecar does",
            Self::TooMany { .. } => "wait as Retry-After says",
            Self::Pod(PodError::Unavailable(..)) | Self::NoReview(_) => {
                "try again; if it stays so, see whether the controller reaches the API server and may create tokenreviews"
            }
            Self::Authority(_) => "see the controller's log; the authority's certificate may have run out",
        }
    }
}

/// Who asks, as far as that is known.
#[derive(Debug, Default)]
struct Caller {
    token: Option<BoundPod>,
    sidecar: Option<SidecarIdentity>,
}

impl Signer {
    /// A signer for the pods of `pods`, whose tokens `reviewer` has reviewed.
    pub fn new(issuer: Arc<Issuer>, reviewer: Arc<dyn TokenReviewer>, pods: Pods, metrics: Arc<Metrics>) -> Self {
        Self {
            issuer,
            reviewer,
            pods,
            metrics,
            by_address: Buckets::new(ADDRESS_BURST, ADDRESS_REFILL),
            by_pod: Buckets::new(POD_BURST, POD_REFILL),
            reviews: Semaphore::new(MAX_REVIEWS),
        }
    }

    /// Judges one request that came from `peer`, and signs.
    ///
    /// # Errors
    /// [`Refusal`], which has been logged and counted already.
    pub async fn sign(&self, peer: IpAddr, bearer: Option<&str>, body: &[u8]) -> Result<Answer, Refusal> {
        let mut caller = Caller::default();
        let signed = self.judge(peer, bearer, body, &mut caller).await;
        self.audit(peer, &caller, &signed);
        let certificates = signed?;
        let end = certificates.sidecar.not_after.min(certificates.service.not_after);
        Ok(Answer {
            sidecar: certificates.sidecar.chain_pem,
            service: certificates.service.chain_pem,
            trust_bundle: self.issuer.ca().cert_pem().to_owned(),
            not_after: rfc3339(end),
        })
    }

    async fn judge(
        &self,
        peer: IpAddr,
        bearer: Option<&str>,
        body: &[u8],
        caller: &mut Caller,
    ) -> Result<PodCertificates, Refusal> {
        // Before the API server is troubled.
        let from = self.by_address.take(&peer, Instant::now());
        from.map_err(|wait| Refusal::TooMany { who: peer.to_string(), wait })?;
        let bearer = bearer.filter(|token| !token.is_empty()).ok_or(Refusal::NoToken)?;
        let token = &*caller.token.insert(token::judge(&self.review(bearer).await?)?);
        let of_pod = self.by_pod.take(&token.uid, Instant::now());
        let who = || format!("pod {}/{}", token.namespace, token.pod);
        of_pod.map_err(|wait| Refusal::TooMany { who: who(), wait })?;
        let policy = self.issuer.policy();
        let sidecar = &*caller.sidecar.insert(self.pods.sidecar(token).await?);
        let asked: Asked = serde_json::from_slice(body).map_err(|e| Refusal::Body(e.to_string()))?;
        let (name, principal) =
            (sidecar.common_name(&policy.trust_domain), sidecar.service.principal(&policy.trust_domain));
        let own = OwnNames { dns: [&name, &principal], spiffe: &sidecar.service.spiffe_id(&policy.trust_domain) };
        let key = csr::check(&asked.csr, &own)?;
        Ok(self.issuer.certify(sidecar, &key, SystemTime::now())?)
    }

    async fn review(&self, bearer: &str) -> Result<k8s_openapi::api::authentication::v1::TokenReviewStatus, Refusal> {
        let busy = || Refusal::NoReview(format!("{MAX_REVIEWS} reviews are under way"));
        // The semaphore is never closed.
        let _permit = timeout(REVIEW_PATIENCE, self.reviews.acquire()).await.map_err(|_| busy())?;
        self.reviewer.review(bearer).await.map_err(Refusal::NoReview)
    }

    fn audit(&self, peer: IpAddr, caller: &Caller, signed: &Result<PodCertificates, Refusal>) {
        let token = caller.token.as_ref();
        let pod = token.map(|token| format!("{}/{}", token.namespace, token.pod)).unwrap_or_default();
        let account = token.map(|token| token.service_account.as_str()).unwrap_or_default();
        let uid = token.map(|token| token.uid.as_str()).unwrap_or_default();
        let node = token.and_then(|token| token.node.as_deref()).unwrap_or_default();
        let uuid = caller.sidecar.as_ref().map(|sidecar| sidecar.uuid.as_str()).unwrap_or_default();
        match signed {
            Ok(PodCertificates { sidecar, service }) => {
                self.metrics.count("oxmesh_csr_signed_count", &[]);
                let (serial, service_serial, until) = (&sidecar.serial, &service.serial, rfc3339(service.not_after));
                info!(%peer, pod, account, uid, node, uuid, serial, service_serial, until, "certificate request signed");
            }
            Err(refusal) => {
                self.metrics.count("oxmesh_csr_refused_count", &[("reason", refusal.code())]);
                let reason = refusal.code();
                warn!(%peer, pod, account, uid, node, uuid, reason, error = %refusal, "certificate request refused");
            }
        }
    }
}

fn rfc3339(t: SystemTime) -> String {
    // Every time that a certificate can hold has a year of four digits.
    OffsetDateTime::from(t).format(&Rfc3339).unwrap_or_default()
}

/// Requests of one address at once, and then one per refill. Some pods may share an address on their way here.
const ADDRESS_BURST: u32 = 60;
const ADDRESS_REFILL: Duration = Duration::from_secs(1);
/// Requests of one pod at once, and then one per refill. It needs one, and one per two thirds of a certificate's life.
const POD_BURST: u32 = 10;
const POD_REFILL: Duration = Duration::from_secs(6);
/// Token reviews under way at once.
const MAX_REVIEWS: usize = 32;
const REVIEW_PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
