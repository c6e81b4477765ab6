//! The picture for people.

use super::picture::Picture;
use crate::traffic::table::{edges, plain, refused};

/// The picture as text. Pure.
pub(super) fn render(picture: &Picture) -> String {
    let mut parts = vec![edges(&picture.edges)];
    if !picture.refused.is_empty() {
        parts.push(refused(&picture.refused));
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
