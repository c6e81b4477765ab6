//! The picture for people.

use comfy_table::Table;
use comfy_table::presets;

use super::picture::{Edge, Picture};

/// The picture as text. Pure.
pub(super) fn render(picture: &Picture) -> String {
    let mut parts = vec![edges(&picture.edges)];
    if !picture.refused.is_empty() {
        let mut table = plain(&["REFUSED", "TO", "TIMES", "WHY"]);
        for refused in &picture.refused {
            table.add_row([&refused.from, &refused.to, &refused.count.to_string(), &refused.why]);
        }
        parts.push(table.to_string());
    }
    let mut pods = plain(&["POD", "IP", "SIDECAR", "STATE"]);
    for pod in &picture.pods {
        pods.add_row([&pod.name, &pod.ip, &pod.sidecar, &pod.state]);
    }
    parts.push(pods.to_string());
    parts.extend(picture.findings.iter().map(|finding| format!("‼ {finding}")));
    if let Some(expected) = &picture.expected {
        let unmet = expected.unmet.iter().map(|reason| format!("× {reason}"));
        parts.extend(unmet);
        if expected.met {
            parts.push("√ the bookstore does what its policies say".to_owned());
        }
    }
    parts.push(format!("manifests: {} (edits take effect at once)", picture.manifests));
    parts.join("\n\n")
}

fn edges(edges: &[Edge]) -> String {
    let mut table = plain(&["FROM", "TO", "PROTOCOL", "CALLS", "RPS", "OK%", "SHARE", "P50", "MTLS"]);
    for edge in edges {
        table.add_row([
            edge.from.clone(),
            edge.to.clone(),
            edge.protocol.to_owned(),
            edge.count.to_string(),
            optional(edge.rps, |rps| format!("{rps:.1}")),
            percent(edge.ok, edge.count),
            optional(edge.share, |share| format!("{:.0}%", share * 100.0)),
            optional(edge.p50_ms, |p50| format!("{p50:.1}ms")),
            if edge.mtls { "yes".to_owned() } else { "no".to_owned() },
        ]);
    }
    table.to_string()
}

fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    table
}

fn optional(value: Option<f64>, format: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), format)
}

fn percent(part: u64, whole: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "counts of a demo are small")]
    let percent = part as f64 * 100.0 / whole.max(1) as f64;
    format!("{percent:.1}")
}
