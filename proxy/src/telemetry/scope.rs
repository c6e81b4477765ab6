//! Names of series in Envoy's two views: dotted (`cluster.x.upstream_rq_total`) and Prometheus
//! (`envoy_cluster_upstream_rq_total{envoy_cluster_name="x"}`).
//!
//! Pure text; made once per handle, never per request.

use std::fmt::Write as _;

/// Where a series belongs: its dotted prefix, its Prometheus prefix and its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    text: String,
    family: String,
    labels: Vec<(&'static str, String)>,
}

impl Scope {
    /// `cluster.<name>.` with the label `envoy_cluster_name`.
    #[must_use]
    pub fn cluster(name: &str) -> Self {
        Self::tagged("cluster", "envoy_cluster_name", name)
    }

    /// `http.<prefix>.` with the label `envoy_http_conn_manager_prefix`.
    #[must_use]
    pub fn http(stat_prefix: &str) -> Self {
        Self::tagged("http", "envoy_http_conn_manager_prefix", stat_prefix)
    }

    /// `tcp.<prefix>.` with the label `envoy_tcp_prefix`.
    #[must_use]
    pub fn tcp(stat_prefix: &str) -> Self {
        Self::tagged("tcp", "envoy_tcp_prefix", stat_prefix)
    }

    /// `listener.<prefix>.` with the label `envoy_listener_address`; `:` of an address becomes `_` as Envoy writes it.
    #[must_use]
    pub fn listener(address_or_prefix: &str) -> Self {
        Self::tagged("listener", "envoy_listener_address", &address_or_prefix.replace(':', "_"))
    }

    /// `<prefix>.rbac.` (a prefix that ends in a dot gets no second one) with the label `envoy_rbac_prefix`.
    #[must_use]
    pub fn rbac(stat_prefix: &str) -> Self {
        Self::suffixed(stat_prefix, "rbac", "envoy_rbac_prefix")
    }

    /// `<prefix>.http_local_rate_limit.` with the label `envoy_local_http_ratelimit_prefix`.
    #[must_use]
    pub fn http_local_rate_limit(stat_prefix: &str) -> Self {
        Self::suffixed(stat_prefix, "http_local_rate_limit", "envoy_local_http_ratelimit_prefix")
    }

    /// `local_rate_limit.<prefix>.` with the label `envoy_local_network_ratelimit_prefix`.
    #[must_use]
    pub fn local_rate_limit(stat_prefix: &str) -> Self {
        Self::tagged("local_rate_limit", "envoy_local_network_ratelimit_prefix", stat_prefix)
    }

    /// A prefix of its own without labels: `server`, `cluster_manager`, `listener_manager`, `http.x.rbac`.
    #[must_use]
    pub fn plain(prefix: &str) -> Self {
        Self { text: format!("{prefix}."), family: format!("envoy_{}_", sanitise(prefix)), labels: Vec::new() }
    }

    /// `<kind>.<value>.` in text, `envoy_<kind>_` with one label in Prometheus.
    #[must_use]
    pub fn tagged(kind: &str, label: &'static str, value: &str) -> Self {
        Self {
            text: format!("{kind}.{value}."),
            family: format!("envoy_{}_", sanitise(kind)),
            labels: vec![(label, value.to_owned())],
        }
    }

    fn suffixed(prefix: &str, kind: &str, label: &'static str) -> Self {
        let prefix = prefix.trim_end_matches('.');
        let text = if prefix.is_empty() { format!("{kind}.") } else { format!("{prefix}.{kind}.") };
        let labels = if prefix.is_empty() { Vec::new() } else { vec![(label, prefix.to_owned())] };
        Self { text, family: format!("envoy_{kind}_"), labels }
    }

    /// A scope below this one: `http.x.` and `rbac` make `http.x.rbac.`; labels are kept.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self {
            text: format!("{}{name}.", self.text),
            family: format!("{}{}_", self.family, sanitise(name)),
            labels: self.labels.clone(),
        }
    }

    /// The identity of series `name` in this scope. Response codes become labels as in Envoy: `upstream_rq_200` is
    /// `…upstream_rq{envoy_response_code="200"}`, `upstream_rq_2xx` is `…upstream_rq_xx{envoy_response_code_class="2"}`.
    pub(super) fn series(&self, name: &str) -> SeriesName {
        let (base, code) = split_code(name);
        let labels = self.labels.iter().map(|(k, v)| (*k, v.as_str())).chain(code);
        SeriesName {
            text: format!("{}{name}", self.text),
            family: format!("{}{}", self.family, sanitise(&base)),
            labels: render_labels(labels),
        }
    }

    /// As [`Self::series`], with a last dotted part that is a label in Prometheus: `ssl.versions` and `TLSv1.3`.
    pub(super) fn series_with(&self, name: &str, label: &'static str, value: &str) -> SeriesName {
        let labels = self.labels.iter().map(|(k, v)| (*k, v.as_str())).chain([(label, value)]);
        SeriesName {
            text: format!("{}{name}.{value}", self.text),
            family: format!("{}{}", self.family, sanitise(name)),
            labels: render_labels(labels),
        }
    }
}

/// A series' names in both views.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeriesName {
    /// Dotted.
    pub(super) text: String,
    /// Prometheus family.
    pub(super) family: String,
    /// Rendered labels without braces; may be empty.
    pub(super) labels: String,
}

impl SeriesName {
    /// A series with a Prometheus name of its own, outside Envoy's naming.
    pub(super) fn native(family: &str, labels: &[(&str, &str)]) -> Self {
        let labels = render_labels(labels.iter().copied());
        let text = if labels.is_empty() { family.to_owned() } else { format!("{family}{{{labels}}}") };
        Self { text, family: sanitise(family), labels }
    }
}

fn split_code(name: &str) -> (String, Option<(&'static str, &str)>) {
    let digits = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_digit());
    if let Some((head, tail)) = name.rsplit_once('_')
        && head.ends_with("_rq")
    {
        if digits(tail, 3) {
            return (head.to_owned(), Some(("envoy_response_code", tail)));
        }
        if let Some(class) = tail.strip_suffix("xx")
            && digits(class, 1)
        {
            return (format!("{head}_xx"), Some(("envoy_response_code_class", class)));
        }
    }
    (name.to_owned(), None)
}

/// Replaces what Prometheus does not allow in a metric name.
fn sanitise(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == ':' { c } else { '_' }).collect()
}

fn render_labels<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (key, value) in labels {
        if !out.is_empty() {
            out.push(',');
        }
        let _ = write!(out, "{}=\"", sanitise(key));
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_envoys_two_views() {
        for (scope, name, text, family, labels) in [
            (
                Scope::cluster("bookstore/v1|80"),
                "upstream_rq_total",
                "cluster.bookstore/v1|80.upstream_rq_total",
                "envoy_cluster_upstream_rq_total",
                r#"envoy_cluster_name="bookstore/v1|80""#,
            ),
            (
                Scope::cluster("c"),
                "upstream_rq_2xx",
                "cluster.c.upstream_rq_2xx",
                "envoy_cluster_upstream_rq_xx",
                r#"envoy_cluster_name="c",envoy_response_code_class="2""#,
            ),
            (
                Scope::cluster("c"),
                "upstream_rq_503",
                "cluster.c.upstream_rq_503",
                "envoy_cluster_upstream_rq",
                r#"envoy_cluster_name="c",envoy_response_code="503""#,
            ),
            (
                Scope::listener("[::]:15003"),
                "ssl.handshake",
                "listener.[__]_15003.ssl.handshake",
                "envoy_listener_ssl_handshake",
                r#"envoy_listener_address="[__]_15003""#,
            ),
            (
                Scope::rbac("network-"),
                "denied",
                "network-.rbac.denied",
                "envoy_rbac_denied",
                r#"envoy_rbac_prefix="network-""#,
            ),
            (Scope::plain("server"), "live", "server.live", "envoy_server_live", ""),
            (
                Scope::http("in").child("rbac"),
                "allowed",
                "http.in.rbac.allowed",
                "envoy_http_rbac_allowed",
                r#"envoy_http_conn_manager_prefix="in""#,
            ),
        ] {
            let series = scope.series(name);
            assert_eq!((series.text.as_str(), series.family.as_str(), series.labels.as_str()), (text, family, labels));
        }
    }

    #[test]
    fn label_values_are_escaped() {
        let series = SeriesName::native("osm_request_total", &[("source_pod", "a\"b\\c\nd")]);
        assert_eq!(series.labels, r#"source_pod="a\"b\\c\nd""#);
    }
}
