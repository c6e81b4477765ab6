//! Names of identities, as they stand in certificates.
//!
//! A service account's principal is `<sa>.<ns>.<trust domain>`; the certificate with which a
//! sidecar asks for configuration is `<uuid>.sidecar.<sa>.<ns>.<trust domain>`. A service account
//! may contain dots, a namespace and a uuid may not, so both forms parse without doubt.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A Kubernetes service account: what policies call an identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceIdentity {
    /// The namespace of the service account.
    pub namespace: String,
    /// The name of the service account.
    pub service_account: String,
}

impl ServiceIdentity {
    /// An identity from its namespace and service account.
    pub fn new(namespace: impl Into<String>, service_account: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), service_account: service_account.into() }
    }

    /// `<sa>.<ns>.<trust domain>`: common name and DNS SAN of the leaf certificate.
    pub fn principal(&self, trust_domain: &str) -> String {
        format!("{}.{}.{trust_domain}", self.service_account, self.namespace)
    }

    /// Whether the principal could be read as a sidecar's name: an account called `x.sidecar.y` would be the sidecar `x` of
    /// the account `y`. Such accounts get no certificate at all.
    pub fn reads_as_sidecar(&self) -> bool {
        let parts: Vec<&str> = self.service_account.splitn(3, '.').collect();
        matches!(parts.as_slice(), [_, KIND, _])
    }

    /// `spiffe://<trust domain>/<sa>/<ns>`, in OSM's order.
    pub fn spiffe_id(&self, trust_domain: &str) -> String {
        format!("spiffe://{trust_domain}/{}/{}", self.service_account, self.namespace)
    }
}

impl fmt::Display for ServiceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}

/// One sidecar: a pod's uuid together with the identity that its pod runs as.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SidecarIdentity {
    /// The value of the pod's label `osm-proxy-uuid`.
    pub uuid: String,
    /// The pod's service account.
    pub service: ServiceIdentity,
}

/// Where the private key of a sidecar's certificates is made and kept.
///
/// Read from the certificate with which the sidecar asks for its configuration; nothing that a sidecar says of itself
/// counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyHome {
    /// The controller makes it and hands it out over SDS, as OSM does.
    #[default]
    Controller,
    /// The pod makes it and had it signed; it never leaves the pod.
    Pod,
}

impl KeyHome {
    /// The organizational unit that marks a certificate which was signed for a key of the pod's own. Requests can't ask
    /// for a unit, so only the signer sets it.
    pub const POD_UNIT: &'static str = "oxmesh-key-in-pod";

    /// By the organizational units in a certificate's subject.
    pub fn of_units<'a>(mut units: impl Iterator<Item = &'a str>) -> Self {
        if units.any(|unit| unit == Self::POD_UNIT) { Self::Pod } else { Self::Controller }
    }
}

/// Why a certificate's name is not a sidecar's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has another trust domain.
    #[error("{name:?} is not of trust domain {trust_domain:?}")]
    ForeignTrustDomain {
        /// The name as it stood in the certificate.
        name: String,
        /// Our own trust domain.
        trust_domain: String,
    },
    /// The name has another form.
    #[error("{0:?} is not <uuid>.sidecar.<service account>.<namespace>.<trust domain>")]
    NotASidecar(String),
}

impl SidecarIdentity {
    /// `<uuid>.sidecar.<sa>.<ns>.<trust domain>`: common name and DNS SAN of the certificate with
    /// which the sidecar asks for its configuration.
    pub fn common_name(&self, trust_domain: &str) -> String {
        format!("{}.{KIND}.{}", self.uuid, self.service.principal(trust_domain))
    }

    /// Reads the identity out of a certificate's name.
    ///
    /// # Errors
    /// [`NameError`] if the name is of another trust domain or not a sidecar's.
    pub fn parse(name: &str, trust_domain: &str) -> Result<Self, NameError> {
        let own = name.strip_suffix(trust_domain).and_then(|rest| rest.strip_suffix('.')).ok_or_else(|| {
            NameError::ForeignTrustDomain { name: name.to_owned(), trust_domain: trust_domain.to_owned() }
        })?;
        let mut parts = own.splitn(3, '.');
        let (uuid, kind, rest) = (parts.next(), parts.next(), parts.next());
        match (uuid, kind, rest.and_then(|r| r.rsplit_once('.'))) {
            (Some(uuid), Some(KIND), Some((account, namespace)))
                if !uuid.is_empty() && !account.is_empty() && !namespace.is_empty() =>
            {
                Ok(Self { uuid: uuid.to_owned(), service: ServiceIdentity::new(namespace, account) })
            }
            _ => Err(NameError::NotASidecar(name.to_owned())),
        }
    }
}

impl fmt::Display for SidecarIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.uuid, self.service)
    }
}

/// The one kind of proxy that OSM's newer releases know.
const KIND: &str = "sidecar";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_name_survives_the_way_through_a_certificate() {
        for account in ["bookbuyer", "dotted.account.name"] {
            let id = SidecarIdentity { uuid: "8281f730-d0ba".into(), service: ServiceIdentity::new("shop", account) };
            let name = id.common_name("cluster.local");
            assert_eq!(SidecarIdentity::parse(&name, "cluster.local"), Ok(id));
        }
    }

    #[test]
    fn names_that_are_not_sidecars_are_refused() {
        for name in [
            "",
            "cluster.local",
            ".cluster.local",
            "bookbuyer.shop.cluster.local",
            "u.sidecar.cluster.local",
            "u.sidecar.shop.cluster.local",
            "u.gateway.a.shop.cluster.local",
            ".sidecar.a.shop.cluster.local",
            "u.sidecar..shop.cluster.local",
            "u.sidecar.a..cluster.local",
            "u.sidecar.a.shop.cluster.localx",
            "u.sidecar.a.shop.xcluster.local",
        ] {
            assert!(SidecarIdentity::parse(name, "cluster.local").is_err(), "{name}");
        }
    }

    #[test]
    fn an_account_reads_as_a_sidecar_exactly_when_its_principal_parses_as_one() {
        for (account, reads) in [
            ("x.sidecar.y", true),
            ("x.sidecar.y.z", true),
            ("buyer", false),
            ("sidecar", false),
            ("x.sidecar", false),
            ("sidecar.y", false),
            ("a.b.sidecar.c", false),
            ("x.sidecars.y", false),
        ] {
            let id = ServiceIdentity::new("shop", account);
            assert_eq!(id.reads_as_sidecar(), reads, "{account}");
            assert_eq!(SidecarIdentity::parse(&id.principal("td"), "td").is_ok(), reads, "{account}");
        }
    }

    #[test]
    fn principals_are_written_in_osms_order() {
        let id = ServiceIdentity::new("shop", "buyer");
        assert_eq!(id.principal("td"), "buyer.shop.td");
        assert_eq!(id.spiffe_id("td"), "spiffe://td/buyer/shop");
    }
}
