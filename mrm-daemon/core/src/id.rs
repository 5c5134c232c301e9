//! Identifiers, bytes and time as the decider sees them. None of them is ever serialised.
//!
//! ```
//! use mrm_core::id::{Bytes, Time};
//! assert_eq!(Bytes(3).checked_add(Bytes(4)), Some(Bytes(7)));
//! assert!(Time(5).after_ms(1) > Time(5));
//! ```

use crate::ledger::Tier;
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", stringify!($name).trim_end_matches("Id").to_lowercase(), self.0)
            }
        }
    };
}

id!(
    /// One connection. Given by the shell, never used twice.
    SessionId
);
id!(
    /// A request of a session. Unique among those of its session that are unanswered.
    RequestId
);
id!(
    /// A name that can be opened: a registered model, or one set of passed files. Given by the
    /// shell.
    ModelId
);
id!(
    /// An immutable list of sources that a model stood for at some time. Given by the shell: one
    /// list has one id.
    VersionId
);
id!(
    /// One state of one file (device, inode, size, times) or one tensor table. Given by the
    /// shell: one state has one id.
    SourceId
);
id!(
    /// One content, known by its digest. Given by the shell: one digest has one id.
    ContentId
);
id!(
    /// One contiguous allocation. Given by the core, never used twice.
    SegmentId
);
id!(
    /// One granted open. Given by the core, never used twice.
    LeaseId
);
id!(
    /// One started effect. Given by the core, never used twice.
    OpId
);

/// A device with memory of its own: its index in [`Config::devices`](crate::Config::devices).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u16);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device{}", self.0)
    }
}

/// A version on a tier: what is leased, wanted, and whole or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CopyId {
    /// The version.
    pub version: VersionId,
    /// Where it is.
    pub tier: Tier,
}

impl CopyId {
    /// The copy of a version in host memory.
    #[must_use]
    pub const fn host(version: VersionId) -> Self {
        let tier = Tier::Host;
        Self { version, tier }
    }

    /// The copy of a version on a device.
    #[must_use]
    pub const fn device(version: VersionId, device: DeviceId) -> Self {
        let tier = Tier::Device(device);
        Self { version, tier }
    }
}

impl fmt::Display for CopyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.version, self.tier)
    }
}

/// Who is charged: by default the peer's uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(pub u32);

/// An amount of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// The sum, unless it overflows.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// The sum, or the largest amount.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or nothing.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::saturating_add)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B", self.0)
    }
}

/// Microseconds since the shell started. Never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// This time and `ms` milliseconds.
    #[must_use]
    pub const fn after_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1000)))
    }

    /// Microseconds from `earlier` to this time; 0 if `earlier` is later.
    #[must_use]
    pub const fn us_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
