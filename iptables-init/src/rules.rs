//! The rules as text for `iptables-restore --noflush`. Pure.
//!
//! The chains and their order are OSM's, so that an operator who knows those finds them here.
//! A chain named in the head of the table is emptied by the restore, and the two jumps are
//! removed first where they stand (see [`Options`] and [`crate::apply`]), so a second run has
//! the same result as the first. NAT rules see the first packet of a connection alone:
//! connections that stand already, and answers to clients, are never touched.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use crate::options::{Cidr, Options, Port};

/// Inbound connections arrive here from PREROUTING.
pub const INBOUND: &str = "OSM_PROXY_INBOUND";
/// Sends to the sidecar's inbound port.
pub const IN_REDIRECT: &str = "OSM_PROXY_IN_REDIRECT";
/// Connections of the pod's own processes arrive here from OUTPUT.
pub const OUTBOUND: &str = "OSM_PROXY_OUTBOUND";
/// Sends to the sidecar's outbound port.
pub const OUT_REDIRECT: &str = "OSM_PROXY_OUT_REDIRECT";
/// All chains that this program owns.
pub const CHAINS: [&str; 4] = [INBOUND, IN_REDIRECT, OUTBOUND, OUT_REDIRECT];

/// Most ports that one `multiport` match holds.
const MULTIPORT_MAX: usize = 15;

/// An address family, each with tables of its own in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4, `iptables`.
    V4,
    /// IPv6, `ip6tables`.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(ip: &IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The one loopback address that the sidecar reaches the application by.
    fn loopback(self) -> &'static str {
        match self {
            Self::V4 => "127.0.0.1/32",
            Self::V6 => "::1/128",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The rules of one family for a namespace that has none of ours yet.
#[must_use]
pub fn render(options: &Options, family: Family) -> String {
    render_over(options, family, &[])
}

/// The rules of one family, after the removal of `stale` rules: bodies (`CHAIN match… -j TARGET`)
/// as `iptables-save` printed them behind `-A`.
#[must_use]
pub fn render_over(options: &Options, family: Family, stale: &[String]) -> String {
    let mut text = String::from("*nat\n");
    for chain in CHAINS {
        line(&mut text, format_args!(":{chain} - [0:0]"));
    }
    for rule in stale {
        line(&mut text, format_args!("-D {rule}"));
    }
    let rules = inbound(options).into_iter().chain(outbound(options, family)).chain(jumps(options));
    for rule in rules {
        line(&mut text, format_args!("-A {rule}"));
    }
    text.push_str("COMMIT\n");
    text
}

fn line(text: &mut String, content: fmt::Arguments<'_>) {
    writeln!(text, "{content}").expect("writing to a String can't fail");
}

/// The jumps come last: chains are whole before traffic enters them, should a restore ever not
/// be atomic.
fn jumps(options: &Options) -> Vec<String> {
    vec![
        format!("{IN_REDIRECT} -p tcp -j REDIRECT --to-ports {}", options.inbound_port),
        format!("{OUT_REDIRECT} -p tcp -j REDIRECT --to-ports {}", options.outbound_port),
        format!("PREROUTING -p tcp -j {INBOUND}"),
        format!("OUTPUT -p tcp -j {OUTBOUND}"),
    ]
}

fn inbound(options: &Options) -> Vec<String> {
    let mut rules = multiport(INBOUND, &options.inbound_ports_exclude, "RETURN");
    for name in &options.interfaces_exclude {
        rules.push(format!("{INBOUND} -i {name} -j RETURN"));
    }
    for port in options.sidecar_ports.iter().flat_map(|range| range.ports()) {
        rules.push(format!("{INBOUND} -p tcp --dport {port} -j RETURN"));
    }
    if options.inbound_ports_include.is_empty() {
        rules.push(format!("{INBOUND} -p tcp -j {IN_REDIRECT}"));
    } else {
        rules.extend(multiport(INBOUND, &options.inbound_ports_include, IN_REDIRECT));
    }
    rules
}

fn outbound(options: &Options, family: Family) -> Vec<String> {
    let loopback = family.loopback();
    let is_proxy = proxy_match(options, false);
    let not_proxy = proxy_match(options, true);
    let mut rules = Vec::new();
    if let Some(ip) = options.pod_ip.iter().find(|ip| Family::of(ip) == family) {
        // The sidecar's own admin server listens on loopback alone and must stay reachable there.
        let admin = options.admin_port;
        rules.push(format!(
            "{OUTBOUND} -o lo -d {loopback} -p tcp ! --dport {admin} {is_proxy} -j DNAT --to-destination {ip}"
        ));
    }
    // A pod that calls its own service: the sidecar's outbound side connects to the pod's own
    // address, and must come in by the inbound side as any other client.
    rules.push(format!("{OUTBOUND} -o lo ! -d {loopback} {is_proxy} -j {IN_REDIRECT}"));
    rules.push(format!("{OUTBOUND} -o lo {not_proxy} -j RETURN"));
    rules.push(format!("{OUTBOUND} {is_proxy} -j RETURN"));
    rules.push(format!("{OUTBOUND} -d {loopback} -j RETURN"));
    for name in &options.interfaces_exclude {
        rules.push(format!("{OUTBOUND} -o {name} -j RETURN"));
    }
    for cidr in of_family(&options.outbound_cidrs_exclude, family) {
        rules.push(format!("{OUTBOUND} -d {cidr} -j RETURN"));
    }
    rules.extend(multiport(OUTBOUND, &options.outbound_ports_exclude, "RETURN"));
    if options.outbound_cidrs_include.is_empty() {
        rules.push(format!("{OUTBOUND} -j {OUT_REDIRECT}"));
    } else {
        for cidr in of_family(&options.outbound_cidrs_include, family) {
            rules.push(format!("{OUTBOUND} -d {cidr} -j {OUT_REDIRECT}"));
        }
        rules.push(format!("{OUTBOUND} -j RETURN"));
    }
    rules
}

fn proxy_match(options: &Options, negated: bool) -> String {
    let not = if negated { "! " } else { "" };
    match options.proxy_mark {
        Some(mark) => format!("-m mark {not}--mark {mark:#x}"),
        None => format!("-m owner {not}--uid-owner {}", options.proxy_uid),
    }
}

fn multiport(chain: &str, ports: &[Port], target: &str) -> Vec<String> {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    ports
        .chunks(MULTIPORT_MAX)
        .map(|chunk| {
            let list: Vec<String> = chunk.iter().map(Port::to_string).collect();
            format!("{chain} -p tcp -m multiport --dports {} -j {target}", list.join(","))
        })
        .collect()
}

fn of_family(cidrs: &[Cidr], family: Family) -> impl Iterator<Item = &Cidr> {
    cidrs.iter().filter(move |cidr| cidr.family() == family)
}
