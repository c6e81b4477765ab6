//! The authority's certificate, and the webhook that is trusted by it. Pure.

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use x509_parser::pem::Pem;

use super::super::labels::MONITORED_BY;
use super::Outcome;

/// A certificate that ends sooner is warned of.
const SOON_DAYS: i64 = 30;

/// The authority can sign, and for how long.
pub(super) fn secret(secret: &Secret, now: Timestamp) -> Outcome {
    let name = secret.name_any();
    let Some(bundle) = bundle(secret) else {
        return Outcome::error("identity", "authority", format!("Secret {name} has no ca.crt"));
    };
    let days = match days_left(bundle, now) {
        Ok(days) => days,
        Err(why) => return Outcome::error("identity", "authority", format!("ca.crt of Secret {name}: {why}")),
    };
    let hint = "put a new authority's ca.crt and private.key into the Secret and restart the controller, then the pods";
    match days {
        ..0 => {
            Outcome::error("identity", "authority", format!("the root certificate ({name}) expired {} days ago", -days))
                .hint(hint)
        }
        0..SOON_DAYS => {
            Outcome::warning("identity", "authority", format!("the root certificate ({name}) expires in {days} days"))
                .hint(hint)
        }
        _ => Outcome::ok("identity", "authority", format!("the root certificate ({name}) is valid for {days} days")),
    }
}

/// The webhook covers the mesh's namespaces, fails closed, and is trusted.
pub(super) fn webhook(
    found: &MutatingWebhookConfiguration,
    mesh: &str,
    authority: Option<&Secret>,
    now: Timestamp,
) -> Outcome {
    let name = found.name_any();
    let Some(hook) = found.webhooks.iter().flatten().find(|hook| hook.name == HOOK) else {
        return Outcome::error("injection", "webhook", format!("{name} has no webhook {HOOK}: no pod gets a sidecar"));
    };
    if let Some(why) = distrust(hook, authority, now) {
        return Outcome::error(
            "injection",
            "webhook",
            format!("{name}: {why}: no pod can be made in the mesh's namespaces"),
        )
        .hint("the controller keeps caBundle right while it runs: see its log");
    }
    let selects = hook.namespace_selector.as_ref().and_then(|selector| selector.match_labels.as_ref());
    if selects.and_then(|labels| labels.get(MONITORED_BY)).map(String::as_str) != Some(mesh) {
        return Outcome::error("injection", "webhook", format!("{name} doesn't select the namespaces of mesh {mesh}"));
    }
    if hook.failure_policy.as_deref() == Some("Ignore") {
        return Outcome::warning("injection", "webhook", format!("{name}: failurePolicy Ignore lets pods without sidecar through"))
            .hint(format!("kubectl patch mutatingwebhookconfiguration {name} --type=json -p '[{{\"op\":\"replace\",\"path\":\"/webhooks/0/failurePolicy\",\"value\":\"Fail\"}}]'"));
    }
    Outcome::ok("injection", "webhook", format!("{name} is trusted and fails closed"))
}

fn distrust(hook: &MutatingWebhook, authority: Option<&Secret>, now: Timestamp) -> Option<String> {
    let bytes = hook.client_config.ca_bundle.as_ref().map_or(&[][..], |bundle| &bundle.0);
    if bytes.is_empty() {
        return Some("caBundle is empty".to_owned());
    }
    match days_left(bytes, now) {
        Err(why) => return Some(format!("caBundle: {why}")),
        Ok(..0) => return Some("caBundle has expired".to_owned()),
        Ok(_) => {}
    }
    let own = certificates(bundle(authority?)?).ok()?;
    let trusted = certificates(bytes).ok()?;
    let holds = own.iter().any(|certificate| trusted.contains(certificate));
    (!holds).then(|| "caBundle is another authority's".to_owned())
}

fn bundle(secret: &Secret) -> Option<&[u8]> {
    Some(&secret.data.as_ref()?.get("ca.crt")?.0)
}

/// DER of each certificate.
fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let all: Result<Vec<Pem>, _> = Pem::iter_from_buffer(pem).collect();
    let all = all.map_err(|error| format!("not PEM: {error}"))?;
    if all.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    Ok(all.into_iter().map(|pem| pem.contents).collect())
}

/// Whole days until the last certificate of the bundle ends; negative when it has.
fn days_left(pem: &[u8], now: Timestamp) -> Result<i64, String> {
    let ends = certificates(pem)?.into_iter().map(|der| {
        let (_, certificate) =
            x509_parser::parse_x509_certificate(&der).map_err(|error| format!("not a certificate: {error}"))?;
        Ok(certificate.validity().not_after.timestamp())
    });
    let ends = ends.collect::<Result<Vec<i64>, String>>()?;
    let last = ends.into_iter().max().expect("a bundle without certificates was refused");
    Ok((last - now.as_second()).div_euclid(86_400))
}

const HOOK: &str = "osm-inject.k8s.io";

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use oxmesh_controller::identity::Ca;
    use serde_json::json;

    use super::super::State;
    use super::*;

    fn authority() -> Vec<u8> {
        let state = tempfile::tempdir().unwrap();
        Ca::open_or_create(state.path()).unwrap().cert_pem().as_bytes().to_vec()
    }

    fn as_secret(pem: &[u8]) -> Secret {
        let data = [("ca.crt".to_owned(), ByteString(pem.to_vec()))].into();
        Secret { data: Some(data), ..Secret::default() }
    }

    fn hook(bundle: &[u8], policy: &str) -> MutatingWebhookConfiguration {
        let mut found: MutatingWebhookConfiguration = serde_json::from_value(json!({
            "metadata": {"name": "osm-webhook-osm"},
            "webhooks": [{"name": HOOK, "admissionReviewVersions": ["v1"], "sideEffects": "None", "clientConfig": {},
                "failurePolicy": policy, "namespaceSelector": {"matchLabels": {MONITORED_BY: "osm"}}}],
        }))
        .unwrap();
        found.webhooks.as_mut().unwrap()[0].client_config.ca_bundle = Some(ByteString(bundle.to_vec()));
        found
    }

    #[test]
    fn an_authority_is_judged_by_the_days_that_are_left() {
        let pem = authority();
        let left = days_left(&pem, Timestamp::now()).unwrap();
        let on = |days: i64| Timestamp::from_second(Timestamp::now().as_second() + days * 86_400).unwrap();
        assert_eq!(secret(&as_secret(&pem), Timestamp::now()).state, State::Ok);
        assert_eq!(secret(&as_secret(&pem), on(left - 10)).state, State::Warning);
        assert_eq!(secret(&as_secret(&pem), on(left + 2)).state, State::Error);
        assert_eq!(secret(&as_secret(b"nonsense"), Timestamp::now()).state, State::Error);
        assert_eq!(secret(&Secret::default(), Timestamp::now()).state, State::Error);
    }

    #[test]
    fn a_webhook_must_be_trusted_by_the_meshs_own_authority() {
        let (pem, other) = (authority(), authority());
        let judge = |bundle: &[u8], policy, mesh| {
            webhook(&hook(bundle, policy), mesh, Some(&as_secret(&pem)), Timestamp::now())
        };
        assert_eq!(judge(&pem, "Fail", "osm").state, State::Ok);
        assert_eq!(judge(&[], "Fail", "osm").state, State::Error);
        assert!(judge(&other, "Fail", "osm").message.contains("another authority"));
        assert_eq!(judge(&pem, "Fail", "two").state, State::Error);
        assert_eq!(judge(&pem, "Ignore", "osm").state, State::Warning);
    }
}
