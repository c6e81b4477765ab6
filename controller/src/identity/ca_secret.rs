//! The built-in certificate authority, kept in a Secret as OSM keeps it: `ca.crt` and `private.key`.
//!
//! Replicas that start at once agree: a Secret can be created once only, and who comes too late takes the other's.
//! A Secret that is there is never written to, whatever is in it.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::ca::{self, Ca, CaError};

/// The key of the certificate in the Secret.
pub const CERT_KEY: &str = "ca.crt";
/// The key of the private key in the Secret.
pub const PRIVATE_KEY_KEY: &str = "private.key";

/// Opens the authority in Secret `name`, making a new one if there is none. Waits up to half a minute for an API server
/// that does not answer.
///
/// # Errors
/// [`CaError`] if the API server refuses or stays away, or the Secret holds no usable authority.
pub async fn open_or_create(client: &Client, namespace: &str, name: &str) -> Result<Ca, CaError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match find_or_make(&secrets, namespace, name).await {
            Err(CaError::Api { source, .. }) if is_passing(&source) && Instant::now() < deadline => {
                warn!(error = %source, "the certificate authority's Secret can't be had yet; trying again");
                sleep(RETRY_PAUSE).await;
            }
            done => return done,
        }
    }
}

async fn find_or_make(secrets: &Api<Secret>, namespace: &str, name: &str) -> Result<Ca, CaError> {
    let fail = |what| api_error(what, format!("{namespace}/{name}"));
    if let Some(secret) = secrets.get_opt(name).await.map_err(fail("read"))? {
        return of_secret(&secret, namespace, name);
    }
    let (cert, key) = ca::new_authority()?;
    let secret = Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some(
            [(CERT_KEY, cert), (PRIVATE_KEY_KEY, key)].map(|(k, v)| (k.to_owned(), ByteString(v.into_bytes()))).into(),
        ),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(made) => {
            info!(namespace, name, "made a certificate authority");
            of_secret(&made, namespace, name)
        }
        Err(kube::Error::Api(status)) if status.code == CONFLICT => {
            of_secret(&secrets.get(name).await.map_err(fail("read"))?, namespace, name)
        }
        Err(error) => Err(fail("create")(error)),
    }
}

fn of_secret(secret: &Secret, namespace: &str, name: &str) -> Result<Ca, CaError> {
    let place = |key: &str| PathBuf::from(format!("Secret {namespace}/{name}, key {key}"));
    let text = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key)).ok_or_else(|| CaError::Content {
            path: place(key),
            reason: "missing (restore it, or delete the Secret to start a new authority that no running proxy trusts)"
                .to_owned(),
        })?;
        String::from_utf8(bytes.0.clone())
            .map_err(|_| CaError::Content { path: place(key), reason: "not PEM".to_owned() })
    };
    Ca::from_pem(&place(CERT_KEY), text(CERT_KEY)?, &place(PRIVATE_KEY_KEY), &text(PRIVATE_KEY_KEY)?)
}

fn api_error(what: &'static str, secret: String) -> impl FnOnce(kube::Error) -> CaError {
    move |source| {
        let hint = match &source {
            kube::Error::Api(status) if status.code == FORBIDDEN => {
                " (the controller's Role must let it get and create Secrets in its namespace)"
            }
            kube::Error::Api(status) if status.code == NOT_FOUND => " (is there such a namespace? see --osm-namespace)",
            _ => "",
        };
        CaError::Api { what, secret, source: Box::new(source), hint }
    }
}

/// Whether waiting may help: nobody answers, or the server says that it can't now.
fn is_passing(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code >= 500 || status.code == TOO_MANY_REQUESTS,
        kube::Error::HyperError(_) | kube::Error::Service(_) => true,
        _ => false,
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const FORBIDDEN: u16 = 403;
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;
const TOO_MANY_REQUESTS: u16 = 429;
