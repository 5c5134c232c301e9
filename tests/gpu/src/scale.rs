//! How much is measured.

use crate::stats::Rounds;
use serde::{Deserialize, Serialize};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// Sizes and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scale {
    /// What the figures are for.
    Full,
    /// The same with less memory and time, for a first look.
    Quick,
    /// The fake driver, which measures nothing: as little as goes through every path.
    Fake,
}

impl Scale {
    /// Whether figures count.
    pub(crate) fn is_judged(self) -> bool {
        self != Self::Fake
    }

    /// Sizes of one allocation.
    pub(crate) fn sizes(self) -> &'static [u64] {
        match self {
            Self::Full => &[MIB, 100 * MIB, GIB, 10 * GIB],
            Self::Quick => &[MIB, 100 * MIB, GIB],
            Self::Fake => &[MIB, 5 * MIB + 13],
        }
    }

    /// How many allocations, of [`Scale::counted_bytes`] in all.
    pub(crate) fn counts(self) -> &'static [u64] {
        match self {
            Self::Full | Self::Quick => &[1, 16, 300, 1300],
            Self::Fake => &[1, 16],
        }
    }

    /// So that the smallest part is what a device hands out at least: 2 MiB.
    pub(crate) fn counted_bytes(self) -> u64 {
        match self {
            Self::Full | Self::Quick => 2600 * MIB,
            Self::Fake => 32 * MIB,
        }
    }

    pub(crate) fn rounds(self) -> Rounds {
        let (least, most, time_ms) = match self {
            Self::Full => (5, 1000, 2500),
            Self::Quick => (5, 300, 800),
            Self::Fake => (3, 5, 200),
        };
        Rounds {
            least,
            most,
            time_ms,
        }
    }

    /// What is copied to the device at a time.
    pub(crate) fn copied_bytes(self) -> u64 {
        match self {
            Self::Full => GIB,
            Self::Quick => 256 * MIB,
            Self::Fake => 8 * MIB,
        }
    }

    /// What is registered, beside [`Scale::copied_bytes`].
    pub(crate) fn registered_bytes(self) -> &'static [u64] {
        match self {
            Self::Full => &[256 * MIB, 4 * GIB],
            Self::Quick => &[64 * MIB],
            Self::Fake => &[2 * MIB],
        }
    }

    /// Memory that is lent for a question.
    pub(crate) fn lent_bytes(self) -> u64 {
        match self {
            Self::Full => GIB,
            Self::Quick => 256 * MIB,
            Self::Fake => 3 * MIB + 5,
        }
    }

    /// The model that clients share.
    pub(crate) fn service_bytes(self) -> u64 {
        match self {
            Self::Full => 2_000_000_000,
            Self::Quick => 500_000_000,
            Self::Fake => 5_000_000,
        }
    }

    /// How many clients at a time.
    pub(crate) fn clients(self) -> &'static [usize] {
        match self {
            Self::Full | Self::Quick => &[1, 4, 16],
            Self::Fake => &[1, 4],
        }
    }

    /// Models that are loaded.
    pub(crate) fn model_bytes(self) -> &'static [u64] {
        match self {
            Self::Full => &[91_000_000, 1_000_000_000, 10_000_000_000],
            Self::Quick => &[91_000_000, 1_000_000_000],
            Self::Fake => &[1_000_000, 5_000_000],
        }
    }
}
