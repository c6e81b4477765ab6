//! Retries, circuit breaking and local rate limits, with the counters that OSM's own tests expect.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    eventually,
    mesh::{Planes, TestMesh},
    shop,
};

use crate::matrix;

pub(crate) fn trials(trials: &mut Vec<Trial>) {
    matrix(trials, "a failing request is retried five times and counted as OSM's test expects", None, retries);
    matrix(trials, "circuit limits turn requests away and count them", None, breaking);
    matrix(trials, "a local rate limit answers with its status once the burst is used", None, rate_limit);
}

const PATIENCE: Duration = Duration::from_secs(15);

const RETRY: &str = r#"apiVersion: policy.openservicemesh.io/v1alpha1
kind: Retry
metadata: { name: again, namespace: shop }
spec:
  source: { kind: ServiceAccount, name: client, namespace: shop }
  destinations: [{ kind: Service, name: store-v1, namespace: shop }]
  retryPolicy: { retryOn: "5xx", perTryTimeout: 1s, numRetries: 5, retryBackoffBaseInterval: 10ms }
"#;

async fn retries(planes: Planes) -> Result<()> {
    let mut files = shop::files();
    files.push(("retry.yaml", RETRY.to_owned()));
    let mesh = TestMesh::start(&files, planes).await?;
    mesh.served("client", "http://store-v1.shop/").await?;
    let answer = mesh.curl("client", &["http://store-v1.shop/status/503"]).await?;
    ensure!(answer.status == 503, "answered {}", answer.text);
    let cluster = "cluster.shop/store-v1|8080";
    for (counter, expected) in [
        ("upstream_rq_retry", 5),
        ("upstream_rq_retry_limit_exceeded", 1),
        ("upstream_rq_retry_backoff_exponential", 5),
    ] {
        let seen = mesh.stat("client", &format!("{cluster}.{counter}")).await?;
        ensure!(seen == expected, "{counter} is {seen}, not {expected}");
    }
    mesh.no_nacks().await
}

const LIMITS: &str = r#"apiVersion: policy.openservicemesh.io/v1alpha1
kind: UpstreamTrafficSetting
metadata: { name: store-v1, namespace: shop }
spec:
  host: store-v1.shop.svc.cluster.local
  connectionSettings:
    tcp: { maxConnections: 1 }
    http: { maxPendingRequests: 1, maxRequests: 1 }
"#;

async fn breaking(planes: Planes) -> Result<()> {
    let mut files = shop::files();
    files.push(("limits.yaml", LIMITS.to_owned()));
    let mesh = TestMesh::start(&files, planes).await?;
    mesh.served("client", "http://store-v1.shop/").await?;
    let load = mesh.load("client", "http://store-v1.shop/slow/100", 100, 2.0).await?;
    ensure!(load.errors.is_empty(), "{load:?}");
    let (ok, overflow) = (load.status.get("200").copied(), load.status.get("503").copied());
    ensure!(
        ok.is_some() && overflow.is_some(),
        "of more requests than allowed some are served and some are not: {load:?}"
    );
    let cluster = "cluster.shop/store-v1|8080";
    let overflowed = mesh.stat("client", &format!("{cluster}.upstream_rq_pending_overflow")).await?
        + mesh.stat("client", &format!("{cluster}.upstream_cx_overflow")).await?;
    ensure!(overflowed > 0, "no overflow was counted");
    mesh.no_nacks().await
}

const RATE: &str = r#"apiVersion: policy.openservicemesh.io/v1alpha1
kind: UpstreamTrafficSetting
metadata: { name: store-v1, namespace: shop }
spec:
  host: store-v1.shop.svc.cluster.local
  rateLimit:
    local:
      http: { requests: 3, unit: minute, burst: 2, responseStatusCode: 429, responseHeadersToAdd: [{ name: x-limited, value: "yes" }] }
"#;

async fn rate_limit(planes: Planes) -> Result<()> {
    let mesh = TestMesh::start(&shop::files(), planes).await?;
    mesh.served("client", "http://store-v1.shop/").await?;
    mesh.write("rate.yaml", RATE)?;
    let limited = eventually("the limit holds", PATIENCE, || async {
        let answer = mesh.curl("client", &["http://store-v1.shop/"]).await?;
        ensure!(answer.status == 429, "answered {}", answer.text);
        Ok(answer)
    })
    .await?;
    ensure!(limited.header("x-limited") == Some("yes"), "{}", limited.text);
    let other = mesh.curl("client", &["http://store-v2.shop/"]).await?;
    ensure!(other.status == 200, "the other version is limited too: {}", other.text);
    mesh.no_nacks().await
}
