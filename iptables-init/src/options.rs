//! The command line: what to redirect and what to leave alone.
//!
//! Every value is checked here, so that [`crate::rules`] can put it into rule text as it is:
//! no value can hold a space, a newline or a leading dash.

use std::fmt;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::str::FromStr;

use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use thiserror::Error;

use crate::rules::Family;

/// Redirects a pod's TCP traffic to its sidecar, for IPv4 and IPv6. Run it in the pod's network
/// namespace with CAP_NET_ADMIN before the application starts. A second run is harmless.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "oxmesh-iptables-init",
    version,
    after_help = "Examples:\n  \
        oxmesh-iptables-init\n  \
        oxmesh-iptables-init --inbound-ports-exclude 6060,7070 --outbound-cidrs-exclude 10.0.0.0/8,fd00::/8\n  \
        oxmesh-iptables-init --dry-run"
)]
pub struct Options {
    /// Port that takes redirected inbound connections.
    #[arg(long, value_name = "PORT", default_value = "15003")]
    pub inbound_port: NonZeroU16,

    /// Port that takes redirected outbound connections.
    #[arg(long, value_name = "PORT", default_value = "15001")]
    pub outbound_port: NonZeroU16,

    /// Port of the sidecar's admin server on loopback; pod IP mode leaves it there.
    #[arg(long, value_name = "PORT", default_value = "15000")]
    pub admin_port: NonZeroU16,

    /// The sidecar's own inbound ports (metrics, probes), never redirected.
    #[arg(long, value_name = "PORTS", value_delimiter = ',', default_value = "15010,15901-15904")]
    pub sidecar_ports: Vec<PortRange>,

    /// Inbound ports that go to the application directly, past the sidecar.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub inbound_ports_exclude: Vec<Port>,

    /// Redirect these inbound ports alone; without it all are redirected. Exclusions win.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub inbound_ports_include: Vec<Port>,

    /// Outbound destination ports that are not redirected.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub outbound_ports_exclude: Vec<Port>,

    /// Outbound destination ranges that are not redirected, IPv4 and IPv6 mixed.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub outbound_cidrs_exclude: Vec<Cidr>,

    /// Redirect these outbound destination ranges alone, IPv4 and IPv6 mixed. Exclusions win.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub outbound_cidrs_include: Vec<Cidr>,

    /// Interfaces whose traffic is not redirected in either direction; a trailing + matches all
    /// names that begin so.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub interfaces_exclude: Vec<Interface>,

    /// Pod IP mode: the sidecar's connections to loopback go to this address of the pod instead,
    /// for applications that listen there alone. One address per family.
    #[arg(long, value_name = "IPS", value_delimiter = ',')]
    pub pod_ip: Vec<IpAddr>,

    /// User id of the sidecar, whose own connections are not redirected.
    #[arg(long, value_name = "UID", default_value = "1500", conflicts_with = "proxy_mark")]
    pub proxy_uid: u32,

    /// Tell the sidecar's connections by this socket mark instead of its user id.
    #[arg(long, value_name = "MARK", value_parser = parse_mark)]
    pub proxy_mark: Option<NonZeroU32>,

    /// IPv6: `auto` programs it wherever the namespace has it, `on` always, `off` never.
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub ipv6: Ipv6Mode,

    /// Print the rules of both families and change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Whether IPv6 is programmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ipv6Mode {
    /// Where the namespace has IPv6; then a failure to program it is an error.
    Auto,
    /// Always; a failure is an error.
    On,
    /// Never; IPv6 traffic then passes the sidecar by, and the program says so.
    Off,
}

/// Why a set of options was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionsError {
    /// Two `--pod-ip` of one family.
    #[error("--pod-ip: {0} and {1} are both {2} (give one address per family)")]
    TwoPodIps(IpAddr, IpAddr, Family),
    /// `--pod-ip` that is loopback, unspecified or multicast.
    #[error("--pod-ip: {0} is not the address of a pod (give status.podIPs)")]
    NotAPodIp(IpAddr),
    /// A sidecar that would redirect to itself.
    #[error("--inbound-port and --outbound-port are both {0} (the sidecar can't tell the directions apart)")]
    SamePort(u16),
    /// The sidecar runs as root, as init programs and many applications do.
    #[error(
        "--proxy-uid: 0 would let everything that runs as root pass the sidecar by (give the sidecar a user id of its own, or use --proxy-mark)"
    )]
    RootUid,
}

impl Options {
    /// Checks what no single option can: the combination of several.
    ///
    /// # Errors
    /// [`OptionsError`] names the option and what to give instead.
    pub fn validate(&self) -> Result<(), OptionsError> {
        if self.inbound_port == self.outbound_port {
            return Err(OptionsError::SamePort(self.inbound_port.get()));
        }
        if self.proxy_mark.is_none() && self.proxy_uid == 0 {
            return Err(OptionsError::RootUid);
        }
        for (index, ip) in self.pod_ip.iter().enumerate() {
            if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
                return Err(OptionsError::NotAPodIp(*ip));
            }
            let same = self.pod_ip[..index].iter().find(|before| Family::of(before) == Family::of(ip));
            if let Some(before) = same {
                return Err(OptionsError::TwoPodIps(*before, *ip, Family::of(ip)));
            }
        }
        Ok(())
    }

    /// What an operator should know before traffic flows: options that leave a family open.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let includes = &self.outbound_cidrs_include;
        let mut warnings = Vec::new();
        for family in [Family::V4, Family::V6] {
            let on = family == Family::V4 || self.ipv6 != Ipv6Mode::Off;
            if on && !includes.is_empty() && !includes.iter().any(|c| c.family() == family) {
                warnings.push(format!(
                    "--outbound-cidrs-include names no {family} range: no outbound {family} connection is redirected"
                ));
            }
        }
        warnings
    }
}

/// A TCP port, 1-65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port(NonZeroU16);

impl FromStr for Port {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        text.parse().map(Self).map_err(|_| format!("`{text}` is not a port (1-65535)"))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One port or an inclusive range of at most 64 ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The ports of the range in order.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }
}

impl FromStr for PortRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first = first.parse::<Port>()?.0.get();
        let last = last.parse::<Port>()?.0.get();
        if last < first || last - first >= 64 {
            return Err(format!("`{text}` is not a range of 1 to 64 ports in rising order"));
        }
        Ok(Self { first, last })
    }
}

/// A destination range with its host bits cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr(IpNet);

impl Cidr {
    /// The family that the range belongs to.
    #[must_use]
    pub fn family(self) -> Family {
        Family::of(&self.0.addr())
    }
}

impl FromStr for Cidr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let net = match text.parse::<IpAddr>() {
            Ok(ip) => IpNet::from(ip),
            Err(_) => {
                text.parse().map_err(|_| format!("`{text}` is not an address range (write 10.0.0.0/8 or fd00::/8)"))?
            }
        };
        if let IpNet::V6(v6) = net
            && v6.addr().to_ipv4_mapped().is_some()
        {
            return Err(format!("`{text}` is IPv4 in IPv6 notation, which no packet carries (write it as IPv4)"));
        }
        Ok(Self(net.trunc()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A network interface's name, with an optional trailing `+`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface(String);

impl FromStr for Interface {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let stem = text.strip_suffix('+').unwrap_or(text);
        let plain = |c: char| c.is_ascii_alphanumeric() || "._:@-".contains(c);
        let known = !stem.is_empty() && text.len() <= 15 && stem.chars().all(plain);
        if !known || stem.starts_with('-') {
            return Err(format!(
                "`{}` is not an interface name (1-15 of letters, digits, `._:@-`, a `+` at the end matches any rest)",
                text.escape_debug()
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn parse_mark(text: &str) -> Result<NonZeroU32, String> {
    let value = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    value
        .and_then(NonZeroU32::new)
        .ok_or_else(|| format!("`{text}` is not a socket mark (1-4294967295 or 0x…; 0 means unmarked)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        let options = Options::try_parse_from([&["init"], args].concat()).map_err(|error| error.to_string())?;
        options.validate().map_err(|error| error.to_string())?;
        Ok(options)
    }

    #[test]
    fn refuses_hostile_and_senseless_values_naming_the_option() {
        let cases: &[(&[&str], &str)] = &[
            (&["--inbound-ports-exclude", "80,x"], "`x` is not a port"),
            (&["--inbound-ports-exclude", "0"], "`0` is not a port"),
            (&["--inbound-ports-exclude", "65536"], "`65536` is not a port"),
            (&["--inbound-ports-exclude", "80\n-A OUTPUT"], "is not a port"),
            (&["--sidecar-ports", "9-5"], "rising order"),
            (&["--sidecar-ports", "1-65535"], "1 to 64 ports"),
            (&["--outbound-cidrs-exclude", "10.0.0.0/33"], "not an address range"),
            (&["--outbound-cidrs-exclude", "::ffff:10.0.0.0/104"], "write it as IPv4"),
            (&["--interfaces-exclude", "eth0 -j ACCEPT"], "not an interface name"),
            (&["--interfaces-exclude", "eth0\nCOMMIT"], "not an interface name"),
            (&["--interfaces-exclude", "a-name-far-too-long"], "not an interface name"),
            (&["--interfaces-exclude=-i"], "not an interface name"),
            (&["--interfaces-exclude", "+"], "not an interface name"),
            (&["--proxy-mark", "0"], "not a socket mark"),
            (&["--proxy-mark", "1", "--proxy-uid", "1500"], "--proxy-uid"),
            (&["--proxy-uid", "0"], "--proxy-mark"),
            (&["--pod-ip", "10.0.0.1,10.0.0.2"], "both IPv4"),
            (&["--pod-ip", "127.0.0.1"], "status.podIPs"),
            (&["--inbound-port", "9", "--outbound-port", "9"], "both 9"),
        ];
        for (args, part) in cases {
            let error = parse(args).expect_err(&format!("{args:?} must be refused"));
            assert!(error.contains(part), "{args:?}: `{part}` not in `{error}`");
        }
    }

    #[test]
    fn takes_marks_in_decimal_and_hex_and_bare_addresses_as_ranges() {
        let options = parse(&["--proxy-mark", "0x5dc", "--outbound-cidrs-exclude", "10.1.2.3/8, ::2"]).expect("valid");
        assert_eq!(options.proxy_mark.map(NonZeroU32::get), Some(1500));
        let cidrs: Vec<String> = options.outbound_cidrs_exclude.iter().map(Cidr::to_string).collect();
        assert_eq!(cidrs, ["10.0.0.0/8", "::2/128"]);
    }

    #[test]
    fn warns_of_an_inclusion_list_that_leaves_a_family_out() {
        let options = parse(&["--outbound-cidrs-include", "10.0.0.0/8"]).expect("valid");
        assert_eq!(options.warnings().len(), 1);
        assert!(options.warnings()[0].contains("IPv6"));
        assert!(parse(&[]).expect("valid").warnings().is_empty());
    }
}
