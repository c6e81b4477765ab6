//! `/clusters`: endpoints, limits and loads, as Envoy prints them.

use std::{fmt::Write as _, sync::Arc};

use serde_json::{Value, json};

use super::{
    Admin, Page,
    query::{Query, bad},
};
use crate::{
    config::{cluster::Health, cluster::Limits},
    upstream::{Cluster, Host},
    xds::kind::Kind,
};

impl Admin {
    pub(super) fn clusters(&self, query: &Query) -> Result<Page, Page> {
        query.only(&["format", "filter"])?;
        let filter = query.regex("filter")?;
        let snapshot = self.shared.store.current();
        let mut clusters: Vec<&Arc<Cluster>> = snapshot.clusters.values().collect();
        clusters.retain(|cluster| filter.as_ref().is_none_or(|filter| filter.is_match(&cluster.spec().name)));
        clusters.sort_by(|a, b| a.spec().name.cmp(&b.spec().name));
        let dynamic =
            |cluster: &Cluster| self.client.lock().kind(Kind::Cluster).entries().contains_key(&cluster.spec().name);
        match query.value("format") {
            None | Some("" | "text") => {
                let mut body = String::new();
                for cluster in clusters {
                    text(&mut body, cluster, dynamic(cluster));
                }
                Ok(Page::text(body))
            }
            Some("json") => {
                let all: Vec<Value> = clusters.iter().map(|cluster| as_json(cluster, dynamic(cluster))).collect();
                Ok(Page::json(&json!({ "cluster_statuses": all })))
            }
            Some(other) => Err(bad(format!("format {other:?} is neither text nor json\n"))),
        }
    }
}

fn text(body: &mut String, cluster: &Cluster, dynamic: bool) {
    let name = &cluster.spec().name;
    let mut line = |what: std::fmt::Arguments<'_>| {
        // Writing to a string can't fail.
        let _ = writeln!(body, "{name}::{what}");
    };
    line(format_args!("observability_name::{}", cluster.spec().stat_name));
    let Limits { max_connections, max_pending_requests, max_requests, max_retries, .. } = cluster.spec().limits;
    line(format_args!("default_priority::max_connections::{max_connections}"));
    line(format_args!("default_priority::max_pending_requests::{max_pending_requests}"));
    line(format_args!("default_priority::max_requests::{max_requests}"));
    line(format_args!("default_priority::max_retries::{max_retries}"));
    line(format_args!("added_via_api::{dynamic}"));
    for Host { endpoint, weight, priority, health } in cluster.hosts().all() {
        let address = endpoint.address();
        let (total, failed) = (endpoint.requests(), endpoint.failures());
        line(format_args!("{address}::rq_active::{}", endpoint.active()));
        line(format_args!("{address}::rq_error::{failed}"));
        line(format_args!("{address}::rq_success::{}", total.saturating_sub(failed)));
        line(format_args!("{address}::rq_total::{total}"));
        line(format_args!("{address}::health_flags::{}", flags(*health)));
        line(format_args!("{address}::weight::{weight}"));
        line(format_args!("{address}::priority::{priority}"));
    }
}

fn as_json(cluster: &Cluster, dynamic: bool) -> Value {
    let hosts = cluster.hosts();
    let host = |host: &Host| {
        let Host { endpoint, weight, priority, health } = host;
        let address = endpoint.address();
        let (total, failed) = (endpoint.requests(), endpoint.failures());
        json!({
            "address": {"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}},
            "stats": [
                {"name": "rq_active", "type": "GAUGE", "value": endpoint.active().to_string()},
                {"name": "rq_error", "value": failed.to_string()},
                {"name": "rq_success", "value": total.saturating_sub(failed).to_string()},
                {"name": "rq_total", "value": total.to_string()},
            ],
            "health_status": {"eds_health_status": word(*health)},
            "weight": weight,
            "priority": priority,
        })
    };
    let Limits { max_connections, max_pending_requests, max_requests, max_retries, .. } = cluster.spec().limits;
    json!({
        "name": cluster.spec().name,
        "observability_name": cluster.spec().stat_name,
        "added_via_api": dynamic,
        "circuit_breakers": {"thresholds": [{
            "max_connections": max_connections,
            "max_pending_requests": max_pending_requests,
            "max_requests": max_requests,
            "max_retries": max_retries,
        }]},
        "host_statuses": hosts.all().iter().map(host).collect::<Vec<_>>(),
    })
}

fn flags(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Degraded => "/eds_status_degraded",
        Health::Unhealthy => "/failed_eds_health",
    }
}

fn word(health: Health) -> &'static str {
    match health {
        Health::Healthy => "HEALTHY",
        Health::Degraded => "DEGRADED",
        Health::Unhealthy => "UNHEALTHY",
    }
}
