//! What the dashboards of OSM read: its own request metrics, and the Envoy series.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    eventually,
    mesh::{Planes, TestMesh},
    shop,
};

use crate::ours;

pub(crate) fn trials(trials: &mut Vec<Trial>) {
    ours(
        trials,
        "five requests are counted with all of OSM's labels, and the dashboards' series are there",
        None,
        counted,
    );
}

/// The series that OSM's Prometheus keeps (its scrape configuration's list), as far as they need no failing server.
const SERIES: [&str; 13] = [
    "envoy_server_live",
    "envoy_cluster_upstream_rq_xx",
    "envoy_cluster_upstream_cx_active",
    "envoy_cluster_upstream_cx_tx_bytes_total",
    "envoy_cluster_upstream_cx_rx_bytes_total",
    "envoy_cluster_upstream_rq_total",
    "envoy_cluster_upstream_cx_destroy_remote_with_active_rq",
    "envoy_cluster_upstream_cx_connect_timeout",
    "envoy_cluster_upstream_cx_destroy_local_with_active_rq",
    "envoy_cluster_upstream_rq_pending_failure_eject",
    "envoy_cluster_upstream_rq_pending_overflow",
    "envoy_cluster_upstream_rq_timeout",
    "envoy_cluster_upstream_rq_rx_reset",
];

async fn counted(planes: Planes) -> Result<()> {
    let mesh = TestMesh::start(&shop::files(), planes).await?;
    mesh.served("client", "http://store-v1.shop/").await?;
    let before = requests(&mesh).await?.0;
    for _ in 0..5 {
        mesh.curl("client", &["http://store-v1.shop/books"]).await?;
    }
    eventually("the counter", Duration::from_secs(5), || async {
        let (count, line) = requests(&mesh).await?;
        ensure!(count == before + 5, "{count} after five requests more than {before}: {line}");
        for label in [
            r#"source_namespace="shop""#,
            r#"source_kind="Deployment""#,
            r#"source_name="client""#,
            r#"source_pod="client-0""#,
            r#"destination_namespace="shop""#,
            r#"destination_kind="Deployment""#,
            r#"destination_name="store-v1""#,
            r#"destination_pod="store-v1-0""#,
        ] {
            ensure!(line.contains(label), "no {label} in {line}");
        }
        Ok(())
    })
    .await?;
    let text = mesh.prometheus("client").await?;
    let bucket = |l: &&str| l.starts_with("osm_request_duration_ms_bucket{") && l.contains(r#"le="+Inf""#);
    ensure!(text.lines().any(|l| bucket(&l) && l.contains("store-v1")), "no duration of the requests");
    for series in SERIES {
        let there = text.lines().any(|l| l.strip_prefix(series).is_some_and(|rest| rest.starts_with(['{', ' '])));
        ensure!(there, "no {series}");
    }
    Ok(())
}

/// The counter of 200s to store-v1, and its line.
async fn requests(mesh: &TestMesh) -> Result<(u64, String)> {
    let text = mesh.prometheus("client").await?;
    let line = text
        .lines()
        .find(|l| {
            l.starts_with("osm_request_total{")
                && l.contains(r#"response_code="200""#)
                && l.contains(r#"destination_name="store-v1""#)
        })
        .context("osm_request_total does not count the requests")?;
    let count = line.rsplit(' ').next().context("a value")?.parse()?;
    Ok((count, line.to_owned()))
}
