//! What every conversion carries along, and the small values that occur everywhere.

use std::{collections::HashMap, net::IpAddr, path::Path, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{Address, CidrRange, DataSource, address, data_source, socket_address},
        r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
    google::protobuf::{self as wkt, Any},
};
use ipnet::IpNet;

use crate::{
    config::matcher::Pattern,
    xds::{
        path::{At, Report},
        schema,
    },
};

/// Whole of something, in parts of a million.
pub(super) const MILLION: u32 = 1_000_000;
/// Longest duration that protobuf allows, in seconds (10 000 years): sums of such durations and of moments can't overflow.
const MAX_SECONDS: u64 = 315_576_000_000;
/// Largest file taken as a data source, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Circumstances of a conversion and the place for its findings.
pub(super) struct Cx<'r> {
    /// Errors and warnings.
    pub(super) report: &'r mut Report,
    /// Where relative file names are taken from.
    pub(super) base: &'r Path,
    /// Regular expressions compiled so far.
    pub(super) patterns: HashMap<String, Pattern>,
}

impl<'r> Cx<'r> {
    /// For one resource.
    pub(super) fn new(report: &'r mut Report, base: &'r Path) -> Self {
        Self { report, base, patterns: HashMap::new() }
    }

    /// Notes an error; the result is for the caller's `return`.
    pub(super) fn refuse<T>(&mut self, at: &At<'_>, reason: impl std::fmt::Display) -> Option<T> {
        self.report.error(at, reason);
        None
    }

    /// Decodes the message in an `Any`, whose type has been checked.
    pub(super) fn decode<M: prost::Message + Default>(&mut self, any: &Any, at: &At<'_>) -> Option<M> {
        match M::decode(any.value.as_slice()) {
            Ok(message) => Some(message),
            Err(e) => self.refuse(&at.inside(&any.type_url), format_args!("can't be decoded: {e}")),
        }
    }

    /// A duration; none when unset. Negative ones are errors, and longer ones than protobuf allows.
    pub(super) fn duration(&mut self, duration: Option<&wkt::Duration>, at: &At<'_>) -> Option<Duration> {
        let duration = duration?;
        match (u64::try_from(duration.seconds), u32::try_from(duration.nanos)) {
            (Ok(seconds), _) if seconds > MAX_SECONDS => {
                self.refuse(at, format_args!("a duration can't be longer than {MAX_SECONDS}s"))
            }
            (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Some(Duration::new(seconds, nanos)),
            _ => self.refuse(at, "a duration can't be negative"),
        }
    }

    /// A duration of which zero means "none", like unset.
    pub(super) fn limit(&mut self, duration: Option<&wkt::Duration>, at: &At<'_>) -> Option<Duration> {
        self.duration(duration, at).filter(|d| !d.is_zero())
    }

    /// An IP address and port.
    pub(super) fn socket_address(&mut self, address: Option<&Address>, at: &At<'_>) -> Option<std::net::SocketAddr> {
        let (host, port) = self.host_port(address, at)?;
        match host.parse::<IpAddr>() {
            Ok(ip) => Some((ip, port).into()),
            Err(_) => {
                let at = at.field("socket_address");
                self.refuse(&at.field("address"), format_args!("malformed IP address: {host:?}"))
            }
        }
    }

    /// A host, which may be a name, and port.
    pub(super) fn host_port(&mut self, address: Option<&Address>, at: &At<'_>) -> Option<(String, u16)> {
        let Some(Address { address: Some(address::Address::SocketAddress(socket)) }) = address else {
            return self.refuse(at, "needs a socket_address");
        };
        let at = at.field("socket_address");
        let Some(socket_address::PortSpecifier::PortValue(port)) = socket.port_specifier else {
            return self.refuse(&at, "needs a port_value");
        };
        match u16::try_from(port) {
            Ok(port) => Some((socket.address.clone(), port)),
            Err(_) => self.refuse(&at.field("port_value"), format_args!("{port} is no port")),
        }
    }

    /// A network, host bits masked.
    pub(super) fn network(&mut self, range: &CidrRange, at: &At<'_>) -> Option<IpNet> {
        let Ok(ip) = range.address_prefix.parse::<IpAddr>() else {
            return self
                .refuse(&at.field("address_prefix"), format_args!("malformed IP address: {:?}", range.address_prefix));
        };
        let length = range.prefix_len.as_ref().map_or(0, |l| l.value);
        let network = u8::try_from(length).ok().and_then(|l| IpNet::new(ip, l).ok());
        match network {
            Some(network) => Some(network.trunc()),
            None => self.refuse(&at.field("prefix_len"), format_args!("{length} is too long for {ip}")),
        }
    }

    /// All networks of a list.
    pub(super) fn networks(&mut self, ranges: &[CidrRange], at: &At<'_>) -> Vec<IpNet> {
        let each = ranges.iter().enumerate();
        each.filter_map(|(i, range)| self.network(range, &at.index(i))).collect()
    }

    /// The bytes of a data source; files and variables are read now.
    pub(super) fn data(&mut self, source: &DataSource, at: &At<'_>) -> Option<Vec<u8>> {
        match source.specifier.as_ref() {
            Some(data_source::Specifier::InlineBytes(bytes)) => Some(bytes.clone()),
            Some(data_source::Specifier::InlineString(text)) => Some(text.clone().into_bytes()),
            Some(data_source::Specifier::Filename(name)) => self.file(name, &at.field("filename")),
            Some(data_source::Specifier::EnvironmentVariable(name)) => match std::env::var(name) {
                Ok(value) => Some(value.into_bytes()),
                Err(e) => self.refuse(&at.field("environment_variable"), format_args!("{name}: {e}")),
            },
            None => self.refuse(at, "is empty"),
        }
    }

    fn file(&mut self, name: &str, at: &At<'_>) -> Option<Vec<u8>> {
        let path = self.base.join(name);
        let read = || -> std::io::Result<Vec<u8>> {
            let size = std::fs::metadata(&path)?.len();
            if size > MAX_FILE_BYTES {
                return Err(std::io::Error::other(format!("{size} bytes are too many, {MAX_FILE_BYTES} are allowed")));
            }
            std::fs::read(&path)
        };
        match read() {
            Ok(bytes) => Some(bytes),
            Err(e) => self.refuse(at, format_args!("{}: {e}", path.display())),
        }
    }

    /// A name, a short check that it is not empty.
    pub(super) fn name(&mut self, name: &str, at: &At<'_>) -> Option<crate::config::Name> {
        if name.is_empty() { self.refuse(at, "is empty") } else { Some(name.into()) }
    }
}

/// A share in parts of a million.
pub(super) fn parts_per_million(fraction: &FractionalPercent) -> u32 {
    let unit = match fraction.denominator() {
        DenominatorType::Hundred => MILLION / 100,
        DenominatorType::TenThousand => MILLION / 10_000,
        DenominatorType::Million => 1,
    };
    fraction.numerator.saturating_mul(unit).min(MILLION)
}

/// A percentage in parts of a million; the walk has checked that it is between 0 and 100.
pub(super) fn percent_ppm(percent: f64) -> u32 {
    (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32
}

/// The short name of the message in an `Any`.
pub(super) fn type_of(any: &Any) -> &str {
    schema::type_name(&any.type_url)
}
