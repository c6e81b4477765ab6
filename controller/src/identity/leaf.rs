//! A leaf certificate with its key, and when to replace it.
//!
//! Expiry is judged by the wall clock on every look, so a jump of the clock or a long sleep of the
//! machine can never stretch a certificate's life.

use std::fmt;
use std::time::{Duration, SystemTime};

/// What a leaf certificate should say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafRequest {
    /// The common name, which is a DNS SAN as well.
    pub common_name: String,
    /// Further DNS SANs.
    pub dns: Vec<String>,
    /// URI SANs.
    pub uris: Vec<String>,
    /// IP address SANs.
    pub ips: Vec<std::net::IpAddr>,
    /// How long it is valid from now on (it is backdated by [`BACKDATE`] besides).
    pub validity: Duration,
}

/// How far in the past certificates begin, so that clocks may differ by as much.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// A certificate, its chain and its private key, all in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The common name.
    pub common_name: String,
    /// The certificate, then intermediates if there are any.
    pub chain_pem: String,
    /// The private key, PKCS #8.
    pub key_pem: String,
    /// When it was issued.
    pub issued: SystemTime,
    /// The last moment at which it is valid.
    pub not_after: SystemTime,
    /// The serial number in hexadecimal.
    pub serial: String,
}

/// A certificate for a key that somebody else has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// The certificate in PEM, then intermediates if there are any.
    pub chain_pem: String,
    /// The serial number in hexadecimal.
    pub serial: String,
    /// The last moment at which it is valid.
    pub not_after: SystemTime,
}

impl Leaf {
    /// When it should be replaced: when a third of its life, or five minutes but never more than
    /// half of its life, is left. OSM's rule, made safe for short lives.
    pub fn renew_at(&self) -> SystemTime {
        let life = self.life();
        self.not_after - (life / 3).max(RENEW_FLOOR.min(life / 2))
    }

    /// How much earlier than [`Self::renew_at`] it may be replaced, so that a fleet issued in one
    /// moment isn't renewed in one moment.
    pub fn renew_spread(&self) -> Duration {
        self.life() / 20
    }

    /// Whether it has run out.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.not_after
    }

    fn life(&self) -> Duration {
        self.not_after.duration_since(self.issued).unwrap_or_default()
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("common_name", &self.common_name)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

const RENEW_FLOOR: Duration = Duration::from_secs(5 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_renewed_well_before_its_end_whatever_its_life() {
        let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (life, renew_after) in [(20, 10), (600, 300), (3600, 2400), (86_400, 57_600)] {
            let leaf = Leaf {
                common_name: "a".into(),
                chain_pem: String::new(),
                key_pem: String::new(),
                issued,
                not_after: issued + Duration::from_secs(life),
                serial: "01".into(),
            };
            assert_eq!(leaf.renew_at(), issued + Duration::from_secs(renew_after), "{life}");
            assert!(leaf.renew_at() - leaf.renew_spread() > issued);
        }
    }

    #[test]
    fn a_leafs_key_is_not_printed() {
        let leaf = Leaf {
            common_name: "a".into(),
            chain_pem: "chain".into(),
            key_pem: "very secret".into(),
            issued: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
            serial: "01".into(),
        };
        assert!(!format!("{leaf:?}").contains("secret"));
    }
}
