//! Envoy's response flags: what went wrong with a request or connection, in a small set.

use std::fmt;

/// One response flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is Envoy's flag of the same long name")]
pub enum Flag {
    NoHealthyUpstream,
    UpstreamConnectionFailure,
    UpstreamOverflow,
    NoRouteFound,
    UpstreamRetryLimitExceeded,
    DownstreamConnectionTermination,
    UpstreamConnectionTermination,
    UpstreamRemoteReset,
    LocalReset,
    UpstreamRequestTimeout,
    UpstreamProtocolError,
    DownstreamProtocolError,
    RateLimited,
    StreamIdleTimeout,
    DurationTimeout,
    NoClusterFound,
    OverloadManager,
    DownstreamRemoteReset,
    UnauthorizedExternalService,
    UpstreamMaxStreamDurationReached,
    DropOverload,
}

impl Flag {
    /// All of them with their short and long names.
    pub const ALL: [(Self, &'static str, &'static str); 21] = [
        (Self::NoHealthyUpstream, "UH", "NoHealthyUpstream"),
        (Self::UpstreamConnectionFailure, "UF", "UpstreamConnectionFailure"),
        (Self::UpstreamOverflow, "UO", "UpstreamOverflow"),
        (Self::NoRouteFound, "NR", "NoRouteFound"),
        (Self::UpstreamRetryLimitExceeded, "URX", "UpstreamRetryLimitExceeded"),
        (Self::NoClusterFound, "NC", "NoClusterFound"),
        (Self::DurationTimeout, "DT", "DurationTimeout"),
        (Self::DownstreamConnectionTermination, "DC", "DownstreamConnectionTermination"),
        (Self::LocalReset, "LR", "LocalReset"),
        (Self::UpstreamRemoteReset, "UR", "UpstreamRemoteReset"),
        (Self::UpstreamConnectionTermination, "UC", "UpstreamConnectionTermination"),
        (Self::RateLimited, "RL", "RateLimited"),
        (Self::UnauthorizedExternalService, "UAEX", "UnauthorizedExternalService"),
        (Self::StreamIdleTimeout, "SI", "StreamIdleTimeout"),
        (Self::DownstreamProtocolError, "DPE", "DownstreamProtocolError"),
        (Self::UpstreamProtocolError, "UPE", "UpstreamProtocolError"),
        (Self::UpstreamMaxStreamDurationReached, "UMSDR", "UpstreamMaxStreamDurationReached"),
        (Self::UpstreamRequestTimeout, "UT", "UpstreamRequestTimeout"),
        (Self::OverloadManager, "OM", "OverloadManagerTerminated"),
        (Self::DownstreamRemoteReset, "DR", "DownstreamRemoteReset"),
        (Self::DropOverload, "DO", "DropOverload"),
    ];

    /// Short and long name.
    #[must_use]
    pub fn names(self) -> (&'static str, &'static str) {
        Self::ALL.iter().find(|(flag, ..)| *flag == self).map_or(("-", "-"), |(_, short, long)| (short, long))
    }

    /// The flag of a short name (`UF`).
    #[must_use]
    pub fn parse(short: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name, _)| *name == short).map(|(flag, ..)| *flag)
    }
}

/// A set of flags that remembers the order in which they were set, as Envoy's output does. Holds up to eight.
#[derive(Clone, Copy, Default)]
pub struct Flags(u64);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);

    /// This flag alone.
    #[must_use]
    pub const fn of(flag: Flag) -> Self {
        Self(flag as u64 + 1)
    }

    /// Those of `self`, then those of `other`.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        let (mut set, mut rest) = (self, other.0);
        while rest != 0 {
            let flag = rest & 0xff;
            if !set.holds(flag) {
                // One byte a flag, the first one lowest. A ninth would fall off the end; no path sets so many.
                let used = (64 - set.0.leading_zeros()).div_ceil(8) * 8;
                if let Some(shifted) = flag.checked_shl(used) {
                    set.0 |= shifted;
                }
            }
            rest >>= 8;
        }
        set
    }

    const fn holds(self, flag: u64) -> bool {
        let mut rest = self.0;
        while rest != 0 {
            if rest & 0xff == flag {
                return true;
            }
            rest >>= 8;
        }
        false
    }

    /// Adds a flag.
    pub fn set(&mut self, flag: Flag) {
        *self = self.union(Self::of(flag));
    }

    /// True when `flag` is in the set.
    #[must_use]
    pub const fn contains(self, flag: Flag) -> bool {
        self.holds(flag as u64 + 1)
    }

    /// True when no flag is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The flags in the order set.
    pub fn iter(self) -> impl Iterator<Item = Flag> {
        self.0.to_le_bytes().into_iter().filter_map(|byte| {
            let at = usize::from(byte).checked_sub(1)?;
            Flag::ALL.iter().map(|(flag, ..)| *flag).find(|flag| *flag as usize == at)
        })
    }

    /// Writes short (`URX,UF`) or long names, `-` for none.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(self, out: &mut impl fmt::Write, long: bool) -> fmt::Result {
        if self.is_empty() {
            return out.write_char('-');
        }
        for (at, flag) in self.iter().enumerate() {
            if at > 0 {
                out.write_char(',')?;
            }
            out.write_str(if long { flag.names().1 } else { flag.names().0 })?;
        }
        Ok(())
    }
}

impl PartialEq for Flags {
    /// The order does not matter.
    fn eq(&self, other: &Self) -> bool {
        self.iter().all(|f| other.contains(f)) && other.iter().all(|f| self.contains(f))
    }
}
impl Eq for Flags {}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_written_in_the_order_set_with_a_dash_for_none() {
        let mut flags = Flags::NONE;
        assert_eq!(flags.to_string(), "-");
        flags.set(Flag::UpstreamRetryLimitExceeded);
        flags.set(Flag::UpstreamRequestTimeout);
        flags.set(Flag::UpstreamRetryLimitExceeded);
        assert_eq!(flags.to_string(), "URX,UT");
        let mut long = String::new();
        flags.write(&mut long, true).unwrap();
        assert_eq!(long, "UpstreamRetryLimitExceeded,UpstreamRequestTimeout");
        let turned = Flags::of(Flag::UpstreamRequestTimeout).union(Flags::of(Flag::UpstreamRetryLimitExceeded));
        assert_eq!(turned, flags);
    }

    #[test]
    fn every_flag_has_a_bit_and_a_name_of_its_own() {
        for (flag, short, _) in Flag::ALL {
            assert_eq!(Flags::of(flag).to_string(), short);
            assert_eq!(Flag::parse(short), Some(flag));
        }
        assert_eq!(Flag::parse("XX"), None);
    }
}
