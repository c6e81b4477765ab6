//! A peer's identity, read from its certificate once.
//!
//! Refuses certificates whose names could be read in two ways: control or non-ASCII bytes, several URI names, malformed
//! SPIFFE IDs, kinds of names that nobody asked for. The certificate's signature is checked elsewhere (`verify`).

use std::{fmt::Write as _, net::IpAddr};

use rustls_pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    oid_registry::{OidRegistry, asn1_rs::Oid},
    x509::{AttributeTypeAndValue, X509Name},
};

use crate::config::{
    matcher::{StringMatch, StringMatchKind},
    tls::{SanKind, SanMatch},
};

/// The names of a verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// DNS names, as written.
    pub dns_sans: Vec<String>,
    /// URI names: at most one, a valid SPIFFE ID if its scheme is `spiffe`.
    pub uri_sans: Vec<String>,
    /// IP addresses.
    pub ip_sans: Vec<IpAddr>,
    /// E-mail addresses.
    pub email_sans: Vec<String>,
    /// Subject as RFC 2253 writes it (`CN=a,O=b`); empty if the certificate has none.
    pub subject_rfc2253: String,
    /// Serial number in lower-case hex.
    pub serial: String,
    /// The certificate itself.
    pub der: CertificateDer<'static>,
}

/// Why a certificate gives no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadIdentity {
    /// Not X.509, or an extension is broken or doubled.
    #[error("certificate is malformed")]
    Malformed,
    /// A name holds bytes outside printable ASCII.
    #[error("a {0} name holds bytes that no such name may hold")]
    HostileName(&'static str),
    /// Several URI names: which one is the identity is not defined.
    #[error("certificate has {0} URI names, at most one is allowed")]
    SeveralUris(usize),
    /// A URI name that is not one.
    #[error("URI name {0:?} is not valid")]
    BadUri(String),
    /// A kind of name that can't be an identity here.
    #[error("certificate has an alternative name of an unsupported kind ({0})")]
    OddKind(&'static str),
    /// The key may not sign, so it may not do a handshake.
    #[error("key usage of the certificate does not allow digital signatures")]
    KeyUsage,
    /// None of the names is one that was asked for.
    #[error("none of its names ({have}) is one of those allowed")]
    WrongName {
        /// The names that it has.
        have: String,
    },
}

impl PeerIdentity {
    /// Reads the names of a certificate.
    ///
    /// # Errors
    /// [`BadIdentity`], all variants but [`BadIdentity::WrongName`].
    pub fn of(der: &CertificateDer<'_>) -> Result<Self, BadIdentity> {
        let (rest, cert) = x509_parser::parse_x509_certificate(der).map_err(|_| BadIdentity::Malformed)?;
        if !rest.is_empty() {
            return Err(BadIdentity::Malformed);
        }
        if let Some(usage) = cert.key_usage().map_err(|_| BadIdentity::Malformed)?
            && !usage.value.digital_signature()
        {
            return Err(BadIdentity::KeyUsage);
        }
        let mut identity = Self {
            dns_sans: Vec::new(),
            uri_sans: Vec::new(),
            ip_sans: Vec::new(),
            email_sans: Vec::new(),
            subject_rfc2253: rfc2253(cert.subject()),
            serial: hex(cert.raw_serial()),
            der: der.clone().into_owned(),
        };
        identity.read_sans(&cert)?;
        match identity.uri_sans.len() {
            0 | 1 => Ok(identity),
            n => Err(BadIdentity::SeveralUris(n)),
        }
    }

    fn read_sans(&mut self, cert: &X509Certificate<'_>) -> Result<(), BadIdentity> {
        let Some(sans) = cert.subject_alternative_name().map_err(|_| BadIdentity::Malformed)? else {
            return Ok(());
        };
        for name in &sans.value.general_names {
            match name {
                GeneralName::DNSName(s) => self.dns_sans.push(plain("DNS", s)?),
                GeneralName::RFC822Name(s) => self.email_sans.push(plain("e-mail", s)?),
                GeneralName::URI(s) => self.uri_sans.push(uri(s)?),
                GeneralName::IPAddress(bytes) => self.ip_sans.push(ip(bytes)?),
                GeneralName::DirectoryName(_) => return Err(BadIdentity::OddKind("directoryName")),
                GeneralName::OtherName(..) => return Err(BadIdentity::OddKind("otherName")),
                GeneralName::X400Address(_) => return Err(BadIdentity::OddKind("x400Address")),
                GeneralName::EDIPartyName(_) => return Err(BadIdentity::OddKind("ediPartyName")),
                GeneralName::RegisteredID(_) => return Err(BadIdentity::OddKind("registeredID")),
                GeneralName::Invalid(..) => return Err(BadIdentity::Malformed),
            }
        }
        Ok(())
    }

    /// True when at least one of `wanted` matches a name, or when `wanted` is empty. The subject never counts.
    #[must_use]
    pub fn matches_any(&self, wanted: &[SanMatch]) -> bool {
        wanted.is_empty() || wanted.iter().any(|w| self.matches(w))
    }

    fn matches(&self, wanted: &SanMatch) -> bool {
        let dns = || self.dns_sans.iter().any(|s| dns_matches(s, &wanted.matcher));
        let uri = || self.uri_sans.iter().any(|s| wanted.matcher.matches(s));
        let ip = || self.ip_sans.iter().any(|a| wanted.matcher.matches(&a.to_string()));
        let email = || self.email_sans.iter().any(|s| wanted.matcher.matches(s));
        match wanted.kind {
            SanKind::Dns => dns(),
            SanKind::Uri => uri(),
            SanKind::Ip => ip(),
            SanKind::Email => email(),
            SanKind::Any => dns() || uri() || ip() || email(),
        }
    }

    /// All names, for messages.
    pub(super) fn names(&self) -> String {
        let mut all: Vec<&str> = self.uri_sans.iter().chain(&self.dns_sans).map(String::as_str).collect();
        all.extend(self.email_sans.iter().map(String::as_str));
        let ips: Vec<String> = self.ip_sans.iter().map(IpAddr::to_string).collect();
        all.extend(ips.iter().map(String::as_str));
        if all.is_empty() { "it has none".to_owned() } else { all.join(", ") }
    }
}

/// An exact match on a DNS name ignores case and honours a wildcard in the certificate (Envoy's `dnsNameMatch`).
fn dns_matches(san: &str, matcher: &StringMatch) -> bool {
    let StringMatchKind::Exact(wanted) = &matcher.kind else { return matcher.matches(san) };
    if san.eq_ignore_ascii_case(wanted) {
        return true;
    }
    let covered = san.strip_prefix("*.").zip(wanted.split_once('.'));
    covered.is_some_and(|(rest, (label, parent))| !label.is_empty() && rest.eq_ignore_ascii_case(parent))
}

/// A name of printable ASCII without blanks.
fn plain(kind: &'static str, name: &str) -> Result<String, BadIdentity> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(BadIdentity::HostileName(kind));
    }
    Ok(name.to_owned())
}

fn uri(name: &str) -> Result<String, BadIdentity> {
    let name = plain("URI", name)?;
    let scheme_ok = name.split_once(':').is_some_and(|(scheme, rest)| {
        !rest.is_empty()
            && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    });
    let is_spiffe = name.get(..7).is_some_and(|s| s.eq_ignore_ascii_case("spiffe:"));
    if !scheme_ok || (is_spiffe && !valid_spiffe_id(&name)) {
        return Err(BadIdentity::BadUri(name));
    }
    Ok(name)
}

/// The grammar of SPIFFE-ID 2.1-2.3, byte for byte.
fn valid_spiffe_id(id: &str) -> bool {
    let Some(rest) = id.strip_prefix("spiffe://") else { return false };
    let (domain, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let domain_ok = !domain.is_empty()
        && domain.len() <= 255
        && domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b));
    let segment_ok = |s: &str| {
        !s.is_empty() && s != "." && s != ".." && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    domain_ok && id.len() <= 2048 && (path.is_empty() || path[1..].split('/').all(segment_ok))
}

fn ip(bytes: &[u8]) -> Result<IpAddr, BadIdentity> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).map(IpAddr::from).map_err(|_| BadIdentity::HostileName("IP"))
}

/// RFC 2253: last RDN first, `,` between RDNs, `+` within one.
fn rfc2253(name: &X509Name<'_>) -> String {
    let rdns: Vec<_> = name.iter_rdn().collect();
    let mut out = String::new();
    for (i, rdn) in rdns.iter().rev().enumerate() {
        if i > 0 {
            out.push(',');
        }
        for (j, attribute) in rdn.iter().enumerate() {
            if j > 0 {
                out.push('+');
            }
            write_attribute(&mut out, attribute);
        }
    }
    out
}

fn write_attribute(out: &mut String, attribute: &AttributeTypeAndValue<'_>) {
    match short_name(attribute.attr_type()) {
        Some(word) => out.push_str(&word),
        None => out.push_str(&attribute.attr_type().to_id_string()),
    }
    out.push('=');
    let Ok(value) = attribute.as_str() else {
        out.push('#');
        out.push_str(&hex(attribute.as_slice()));
        return;
    };
    let last = value.chars().count().saturating_sub(1);
    for (i, c) in value.chars().enumerate() {
        let edge_blank = c == ' ' && (i == 0 || i == last);
        if ",+\"\\<>;".contains(c) || edge_blank || (c == '#' && i == 0) {
            out.push('\\');
            out.push(c);
        } else if c.is_ascii_graphic() || c == ' ' {
            out.push(c);
        } else {
            // As OpenSSL does: bytes outside printable ASCII are escaped, so that a log line can't be broken.
            let mut utf8 = [0; 4];
            for b in c.encode_utf8(&mut utf8).bytes() {
                let _ = write!(out, "\\{b:02X}");
            }
        }
    }
}

fn short_name(oid: &Oid<'_>) -> Option<String> {
    let registry = SHORT_NAMES.get_or_init(|| OidRegistry::default().with_x509());
    let entry = registry.get(oid)?;
    Some(match entry.sn() {
        "commonName" => "CN".to_owned(),
        "countryName" => "C".to_owned(),
        "localityName" => "L".to_owned(),
        "stateOrProvinceName" => "ST".to_owned(),
        "organizationName" => "O".to_owned(),
        "organizationalUnit" | "organizationalUnitName" => "OU".to_owned(),
        "domainComponent" => "DC".to_owned(),
        other => other.to_owned(),
    })
}

static SHORT_NAMES: std::sync::OnceLock<OidRegistry<'static>> = std::sync::OnceLock::new();

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, KeyUsagePurpose, SanType};

    use super::*;

    fn of(build: impl FnOnce(&mut CertificateParams)) -> Result<PeerIdentity, BadIdentity> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        build(&mut params);
        let cert = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        PeerIdentity::of(cert.der())
    }

    fn uri_san(s: &str) -> SanType {
        SanType::URI(s.try_into().unwrap())
    }

    /// A subjectAltName extension with one name of the given tag and bytes.
    fn raw_san(tag: u8, bytes: &[u8]) -> CustomExtension {
        let mut der = vec![0x30, u8::try_from(bytes.len() + 2).unwrap(), tag, u8::try_from(bytes.len()).unwrap()];
        der.extend_from_slice(bytes);
        CustomExtension::from_oid_content(&[2, 5, 29, 17], der)
    }

    #[test]
    fn reads_the_names_of_a_mesh_certificate() {
        let id = of(|p| {
            p.distinguished_name.push(DnType::OrganizationName, "Open Service Mesh");
            p.distinguished_name.push(DnType::CommonName, "a.b.cluster.local");
            p.subject_alt_names = vec![
                SanType::DnsName("a.b.cluster.local".try_into().unwrap()),
                uri_san("spiffe://cluster.local/a/b"),
                SanType::IpAddress("10.0.0.7".parse().unwrap()),
            ];
        })
        .unwrap();
        assert_eq!(id.dns_sans, ["a.b.cluster.local"]);
        assert_eq!(id.uri_sans, ["spiffe://cluster.local/a/b"]);
        assert_eq!(id.subject_rfc2253, "CN=a.b.cluster.local,O=Open Service Mesh");
        for (kind, value, wanted) in [
            (SanKind::Dns, "a.b.cluster.local", true),
            (SanKind::Uri, "a.b.cluster.local", false),
            (SanKind::Uri, "spiffe://cluster.local/a/b", true),
            (SanKind::Ip, "10.0.0.7", true),
            (SanKind::Any, "10.0.0.7", true),
            (SanKind::Email, "a.b.cluster.local", false),
        ] {
            let m = SanMatch { kind, matcher: StringMatch::exact(value) };
            assert_eq!(id.matches_any(std::slice::from_ref(&m)), wanted, "{m:?}");
        }
    }

    #[test]
    fn an_exact_dns_name_ignores_case_and_honours_a_wildcard_of_one_label() {
        for (san, wanted, matches) in [
            ("a.b.c", "A.b.C", true),
            ("*.b.c", "a.b.c", true),
            ("*.b.c", "x.a.b.c", false),
            ("*.b.c", ".b.c", false),
            ("*.b.c", "b.c", false),
            ("a*.b.c", "ab.b.c", false),
        ] {
            assert_eq!(dns_matches(san, &StringMatch::exact(wanted)), matches, "{san} {wanted}");
        }
        let prefix = StringMatch { kind: StringMatchKind::Prefix("a.".into()), ignore_case: false };
        assert!(!dns_matches("*.b.c", &prefix));
    }

    #[test]
    fn the_subject_is_never_a_name() {
        let id = of(|p| p.distinguished_name.push(DnType::CommonName, "a.b")).unwrap();
        let m = SanMatch { kind: SanKind::Any, matcher: StringMatch::exact("a.b") };
        assert!(!id.matches_any(&[m]));
    }

    #[test]
    fn several_uris_and_odd_kinds_are_refused() {
        let several = of(|p| p.subject_alt_names = vec![uri_san("spiffe://a/b"), uri_san("spiffe://a/c")]);
        assert_eq!(several.unwrap_err(), BadIdentity::SeveralUris(2));
        let registered = of(|p| p.custom_extensions = vec![raw_san(0x88, &[0x2a, 0x03])]);
        assert_eq!(registered.unwrap_err(), BadIdentity::OddKind("registeredID"));
    }

    #[test]
    fn hostile_names_are_refused() {
        let nul = of(|p| p.custom_extensions = vec![raw_san(0x82, b"good.example\0.evil")]);
        assert_eq!(nul.unwrap_err(), BadIdentity::HostileName("DNS"));
        let blank = of(|p| p.custom_extensions = vec![raw_san(0x86, b"spiffe://a/b c")]);
        assert_eq!(blank.unwrap_err(), BadIdentity::HostileName("URI"));
        let not_utf8 = of(|p| p.custom_extensions = vec![raw_san(0x82, b"\xff\xfe")]);
        assert_eq!(not_utf8.unwrap_err(), BadIdentity::Malformed);
        let short_ip = of(|p| p.custom_extensions = vec![raw_san(0x87, &[10, 0, 0])]);
        assert!(short_ip.is_err());
    }

    #[test]
    fn spiffe_ids_follow_their_grammar() {
        for good in ["spiffe://td", "spiffe://td.example/ns/x/sa/y", "spiffe://td/a.b_c-D"] {
            assert!(valid_spiffe_id(good), "{good}");
        }
        for bad in [
            "spiffe://",
            "spiffe:///a",
            "spiffe://TD/a",
            "SPIFFE://td/a",
            "spiffe://td/",
            "spiffe://td//a",
            "spiffe://td/../a",
            "spiffe://td/a%2fb",
            "spiffe://u@td/a",
            "spiffe://td:1/a",
            "spiffe://td/a?b",
        ] {
            assert!(uri(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_certificate_that_may_not_sign_is_refused() {
        let e = of(|p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
        assert_eq!(e.unwrap_err(), BadIdentity::KeyUsage);
    }

    #[test]
    fn the_subject_is_escaped() {
        let id = of(|p| p.distinguished_name.push(DnType::CommonName, " a,b\n\"é ")).unwrap();
        assert_eq!(id.subject_rfc2253, "CN=\\ a\\,b\\0A\\\"\\C3\\A9\\ ");
    }
}
