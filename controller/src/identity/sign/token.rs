//! Who asks: a service account's token that is bound to a pod, judged by the API server.
//!
//! The API server knows whether a token is genuine, in time and for us; here it is read what it says of the pod.

use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{Api, PostParams};

/// The audience that tokens must be made for.
pub const TOKEN_AUDIENCE: &str = "oxmesh.io";

/// Has tokens reviewed.
pub trait TokenReviewer: Send + Sync + 'static {
    /// What the API server says of a token, asked whether it is for [`TOKEN_AUDIENCE`].
    ///
    /// # Errors
    /// In words, if there is no answer.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, String>>;
}

/// Asks the API server.
#[derive(Clone)]
pub struct ApiReviewer(pub kube::Client);

impl std::fmt::Debug for ApiReviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiReviewer").finish_non_exhaustive()
    }
}

impl TokenReviewer for ApiReviewer {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, String>> {
        Box::pin(async move {
            let spec =
                TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]) };
            let review = TokenReview { spec, ..Default::default() };
            let reviews: Api<TokenReview> = Api::all(self.0.clone());
            let answer = tokio::time::timeout(REVIEW_TIMEOUT, reviews.create(&PostParams::default(), &review)).await;
            let answer = answer.map_err(|_| format!("no answer in {REVIEW_TIMEOUT:?}"))?;
            let answer = answer.map_err(|error| error.to_string())?;
            answer.status.ok_or_else(|| "the answer has no status".to_owned())
        })
    }
}

/// What a token proves: its holder runs in this pod, as this service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundPod {
    /// The namespace of pod and service account.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// The node that the pod runs on; older API servers (before 1.30) don't say.
    pub node: Option<String>,
}

/// Why a token is no proof.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The API server doesn't know it, or no more.
    #[error("the API server refuses the token: {0}")]
    NotAuthenticated(String),
    /// It was made for somebody else.
    #[error("the token is not for the audience {TOKEN_AUDIENCE}")]
    WrongAudience,
    /// It is a user's.
    #[error("the token is {0:?}'s, which is not a service account")]
    NotAServiceAccount(String),
    /// It is a service account's, but says nothing of a pod.
    #[error("the token is not bound to a pod")]
    NotBound,
}

/// Reads what the API server says of a token.
///
/// # Errors
/// [`TokenError`] unless it is a genuine token for us that is bound to one pod.
pub fn judge(status: &TokenReviewStatus) -> Result<BoundPod, TokenError> {
    let error = status.error.as_deref().filter(|error| !error.is_empty());
    if status.authenticated != Some(true) || error.is_some() {
        return Err(TokenError::NotAuthenticated(error.unwrap_or("not authenticated").to_owned()));
    }
    // Without the echo an API server that knows no audiences would take any token.
    if !status.audiences.iter().flatten().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(TokenError::WrongAudience);
    }
    let user = status.user.as_ref();
    let name = user.and_then(|user| user.username.as_deref()).unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, service_account)) = account.filter(|(ns, sa)| !ns.is_empty() && !sa.is_empty()) else {
        return Err(TokenError::NotAServiceAccount(name.to_owned()));
    };
    let extra = |key: &str| {
        let values = user?.extra.as_ref()?.get(&format!("authentication.kubernetes.io/{key}"))?;
        let [value] = values.as_slice() else { return None };
        Some(value.clone()).filter(|value| !value.is_empty())
    };
    let (Some(pod), Some(uid)) = (extra("pod-name"), extra("pod-uid")) else { return Err(TokenError::NotBound) };
    Ok(BoundPod {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod,
        uid,
        node: extra("node-name"),
    })
}

const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn good() -> TokenReviewStatus {
        let extra = [("pod-name", "buyer-1"), ("pod-uid", "uid-1"), ("node-name", "node-1")];
        let extra = extra.map(|(key, value)| (format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]));
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]),
            error: None,
            user: Some(UserInfo {
                username: Some("system:serviceaccount:shop:buyer".to_owned()),
                extra: Some(extra.into()),
                ..Default::default()
            }),
        }
    }

    #[test]
    fn a_bound_token_tells_pod_account_and_node() {
        let pod = judge(&good()).unwrap();
        assert_eq!((pod.namespace.as_str(), pod.service_account.as_str()), ("shop", "buyer"));
        assert_eq!((pod.pod.as_str(), pod.uid.as_str(), pod.node.as_deref()), ("buyer-1", "uid-1", Some("node-1")));
    }

    #[test]
    fn tokens_that_prove_nothing_are_refused() {
        fn user(status: &mut TokenReviewStatus) -> &mut UserInfo {
            status.user.as_mut().unwrap()
        }
        fn extra<'a>(status: &'a mut TokenReviewStatus, key: &str) -> &'a mut Vec<String> {
            let key = format!("authentication.kubernetes.io/{key}");
            user(status).extra.as_mut().unwrap().get_mut(&key).unwrap()
        }
        type Change = fn(&mut TokenReviewStatus);
        let cases: [(Change, TokenError); 10] = [
            (|s| s.authenticated = None, TokenError::NotAuthenticated("not authenticated".into())),
            (|s| s.authenticated = Some(false), TokenError::NotAuthenticated("not authenticated".into())),
            (|s| s.error = Some("token expired".into()), TokenError::NotAuthenticated("token expired".into())),
            (|s| s.audiences = None, TokenError::WrongAudience),
            (|s| s.audiences = Some(vec!["https://kubernetes".into()]), TokenError::WrongAudience),
            (|s| s.user = None, TokenError::NotAServiceAccount(String::new())),
            (|s| user(s).username = Some("admin".into()), TokenError::NotAServiceAccount("admin".into())),
            (|s| user(s).extra = None, TokenError::NotBound),
            (|s| extra(s, "pod-uid").clear(), TokenError::NotBound),
            (|s| extra(s, "pod-name").push("other".into()), TokenError::NotBound),
        ];
        for (change, wanted) in cases {
            let mut status = good();
            change(&mut status);
            assert_eq!(judge(&status), Err(wanted));
        }
    }
}
