//! The smaller pages: listeners, certificates, server, memory, what is waited for.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::SystemTime};

use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use super::{
    Admin, Page,
    query::{Query, bad},
    word,
};
use crate::config::{Name, tls::Secret};

impl Admin {
    pub(super) fn listeners(&self, query: &Query) -> Result<Page, Page> {
        query.only(&["format"])?;
        let bound = self.bound.load();
        match query.value("format") {
            None | Some("" | "text") => {
                let mut body = String::new();
                for (name, address) in &bound.addresses {
                    // Writing to a string can't fail.
                    let _ = writeln!(body, "{name}::{address}");
                }
                Ok(Page::text(body))
            }
            Some("json") => {
                let status = |(name, address): (&Name, &std::net::SocketAddr)| {
                    let (ip, port) = (address.ip().to_string(), address.port());
                    json!({"name": name, "local_address": {"socket_address": {"address": ip, "port_value": port}}})
                };
                let all: Vec<Value> = bound.addresses.iter().map(status).collect();
                Ok(Page::json(&json!({ "listener_statuses": all })))
            }
            Some(other) => Err(bad(format!("format {other:?} is neither text nor json\n"))),
        }
    }

    /// What can't be in force or has not come, for people who ask why something does not work yet.
    pub(super) fn init_dump(&self) -> Page {
        let (status, bound) = (self.status.load(), self.bound.load());
        let refused: BTreeMap<String, String> = {
            let client = self.client.lock();
            let of = |kind: crate::xds::kind::Kind| {
                let refused = client.kind(kind).refused().iter();
                refused
                    .map(move |(name, r)| (format!("{} {name}", kind.service()), r.details.clone()))
                    .collect::<Vec<_>>()
            };
            crate::xds::kind::Kind::ALL.into_iter().flat_map(of).collect()
        };
        Page::json(&json!({
            "awaited_identity": self.awaited_identity(),
            "warming_clusters": status.warming,
            "waiting_listeners": status.waiting_listeners,
            "not_in_force": status.faults,
            "not_listening": bound.faults,
            "refused": refused,
        }))
    }

    pub(super) fn certs(&self) -> Page {
        let all: Vec<Value> =
            self.status.load().secrets.iter().map(|(name, secret)| secret_json(name, secret)).collect();
        Page::json(&json!({ "certificates": all }))
    }

    pub(super) fn server_info(&self) -> Page {
        let uptime = self.started.elapsed().unwrap_or_default().as_secs();
        let node = &self.bootstrap.node;
        let args = &self.args;
        Page::json(&json!({
            "version": concat!("oxmesh-proxy/", env!("CARGO_PKG_VERSION")),
            "state": word(self.state()),
            "hot_restart_version": "disabled",
            "uptime_current_epoch": format!("{uptime}s"),
            "uptime_all_epochs": format!("{uptime}s"),
            "command_line_options": {
                "config_path": args.config_path,
                "config_yaml": args.config_yaml,
                "concurrency": self.workers.count(),
                "log_level": args.log_level.word(),
                "service_cluster": args.service_cluster,
                "service_node": args.service_node,
                "service_zone": args.service_zone,
                "drain_time": format!("{}s", args.drain_time.as_secs()),
                "shutdown_grace": format!("{}s", args.shutdown_grace.as_secs_f64()),
                "shutdown_delay": format!("{}s", args.shutdown_delay.as_secs_f64()),
                "mode": "Serve",
            },
            "node": {"id": node.id, "cluster": node.cluster},
        }))
    }
}

/// From `/proc`; zeros where there is none.
pub(super) fn memory() -> Page {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let kib: u64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0);
        (kib * 1024).to_string()
    };
    Page::json(&json!({
        "allocated": bytes("RssAnon"),
        "heap_size": bytes("VmData"),
        "total_physical_bytes": bytes("VmRSS"),
        "peak_physical_bytes": bytes("VmHWM"),
    }))
}

fn secret_json(name: &Name, secret: &Arc<Secret>) -> Value {
    match &**secret {
        Secret::Certificate(pair) => json!({"name": name, "ca_cert": [], "cert_chain": certificates(&pair.chain_pem)}),
        Secret::Validation(v) => json!({"name": name, "ca_cert": certificates(&v.trusted_ca_pem), "cert_chain": []}),
    }
}

fn certificates(pem: &[u8]) -> Vec<Value> {
    let all = CertificateDer::pem_slice_iter(pem).flatten();
    all.filter_map(|der| {
        let (_, certificate) = parse_x509_certificate(&der).ok()?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let names: Vec<Value> =
            names.iter().flat_map(|names| &names.value.general_names).filter_map(alternative_name).collect();
        let expiry = certificate.validity().not_after.timestamp();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let left = expiry.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX)).max(0);
        Some(json!({
            "serial_number": certificate.raw_serial_as_string().replace(':', ""),
            "subject_alt_names": names,
            "days_until_expiration": (left / 86_400).to_string(),
            "valid_from": moment(certificate.validity().not_before.timestamp()),
            "expiration_time": moment(expiry),
        }))
    })
    .collect()
}

fn alternative_name(name: &GeneralName<'_>) -> Option<Value> {
    match name {
        GeneralName::DNSName(name) => Some(json!({ "dns": name })),
        GeneralName::URI(uri) => Some(json!({ "uri": uri })),
        _ => None,
    }
}

fn moment(seconds: i64) -> Value {
    let at = time::OffsetDateTime::from_unix_timestamp(seconds).ok();
    let text = at.and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok());
    text.map_or(Value::Null, Value::String)
}
