//! The hosts file of a pod, which stands in for cluster DNS. Pure.

use std::fmt::Write as _;
use std::net::IpAddr;

/// A Service as a name to resolve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    /// The Service's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// ClusterIPs, or the pods' addresses when headless. A name without one is left out, and
    /// doesn't resolve.
    pub ips: Vec<IpAddr>,
}

/// The hosts file of a pod in `namespace`: its own name, and each Service by its short name
/// (own namespace alone), `svc.ns`, `svc.ns.svc` and `svc.ns.svc.cluster.local`.
#[must_use]
pub fn render(pod: &str, namespace: &str, pod_ips: &[IpAddr], services: &[ServiceName]) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost\n");
    for ip in pod_ips {
        writeln!(text, "{ip} {pod}").expect("writing to a String can't fail");
    }
    for ServiceName { name, namespace: ns, ips } in services {
        let short = if ns == namespace { format!(" {name}") } else { String::new() };
        for ip in ips {
            writeln!(text, "{ip} {name}.{ns}.svc.cluster.local {name}.{ns}.svc {name}.{ns}{short}")
                .expect("writing to a String can't fail");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_resolve_in_their_own_namespace_alone() {
        let service = |namespace: &str, ip: &str| ServiceName {
            name: "web".into(),
            namespace: namespace.into(),
            ips: vec![ip.parse().expect("an address")],
        };
        let services = [service("shop", "10.96.0.1"), service("lab", "10.96.0.2")];
        let text = render("p-1", "shop", &["10.244.0.2".parse().expect("an address")], &services);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "10.244.0.2 p-1",
                "10.96.0.1 web.shop.svc.cluster.local web.shop.svc web.shop web",
                "10.96.0.2 web.lab.svc.cluster.local web.lab.svc web.lab",
            ]
        );
    }
}
