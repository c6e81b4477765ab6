//! Calls as tables for people.

use comfy_table::Table;
use comfy_table::presets;

use super::{Edge, Refused};

/// Who calls whom.
pub(crate) fn edges(edges: &[Edge]) -> String {
    let mut table = plain(&["FROM", "TO", "PROTOCOL", "CALLS", "RPS", "OK%", "SHARE", "P50", "MTLS", "WHY"]);
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
            edge.why.clone(),
        ]);
    }
    table.to_string()
}

/// Calls that did not get through.
pub(crate) fn refused(rows: &[Refused]) -> String {
    let mut table = plain(&["REFUSED", "TO", "TIMES", "WHY"]);
    for row in rows {
        table.add_row([&row.from, &row.to, &row.count.to_string(), &row.why]);
    }
    table.to_string()
}

/// A table without lines.
pub(crate) fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    table
}

fn optional(value: Option<f64>, format: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), format)
}

fn percent(part: u64, whole: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "counts of a demo are small")]
    let percent = part as f64 * 100.0 / whole as f64;
    if whole == 0 { "-".to_owned() } else { format!("{percent:.1}") }
}
