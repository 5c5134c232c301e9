//! Who may use how much: limit, charged and freeing, per tier.
//!
//! A charge is taken when the decision falls and refunded when the memory is known to be free, so
//! that the sum of what is in memory and of what is on its way never passes the limit.
//!
//! ```
//! use mrm_core::{id::Bytes, ledger::{Amount, Ledger, Tier}};
//! let mut ledger = Ledger::new(Amount { bytes: Bytes(10), segments: 4 });
//! ledger.charge(Tier::Host, Amount::segment(Bytes(8)))?;
//! assert!(ledger.charge(Tier::Host, Amount::segment(Bytes(3))).is_err());
//! ledger.start_free(Tier::Host, Amount::segment(Bytes(8)));
//! assert_eq!(ledger.account(Tier::Host).free().bytes, Bytes(2));
//! assert_eq!(ledger.account(Tier::Host).coming().bytes, Bytes(10));
//! # Ok::<(), mrm_core::violation::Violation>(())
//! ```

use crate::id::Bytes;
use crate::violation::Violation;

/// A kind of memory with a budget of its own. A device tier is one more variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The node's main memory.
    Host,
}

impl Tier {
    const COUNT: usize = 1;

    const fn index(self) -> usize {
        match self {
            Self::Host => 0,
        }
    }
}

/// Bytes, and how many segments they are in. A segment costs a descriptor whatever its size, so
/// both have a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// The bytes.
    pub bytes: Bytes,
    /// The segments.
    pub segments: u64,
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self {
        bytes: Bytes::ZERO,
        segments: 0,
    };

    /// One segment of so many bytes.
    #[must_use]
    pub const fn segment(bytes: Bytes) -> Self {
        Self { bytes, segments: 1 }
    }

    /// The sum.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            segments: self.segments.saturating_add(other.segments),
        }
    }

    /// The difference; nothing where `other` has more.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            segments: self.segments.saturating_sub(other.segments),
        }
    }

    /// Whether it is at most `room`, in bytes and in segments.
    #[must_use]
    pub const fn fits(self, room: Self) -> bool {
        self.bytes.0 <= room.bytes.0 && self.segments <= room.segments
    }
}

/// The account of one tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Account {
    /// What may be charged.
    pub limit: Amount,
    /// What is charged: loading, resident and being freed.
    pub charged: Amount,
    /// The part of it that is being freed.
    pub freeing: Amount,
}

impl Account {
    /// What can be charged now.
    #[must_use]
    pub const fn free(&self) -> Amount {
        self.limit.minus(self.charged)
    }

    /// What can be charged once everything that is being freed is free.
    #[must_use]
    pub const fn coming(&self) -> Amount {
        self.limit.minus(self.charged.minus(self.freeing))
    }

    /// What is above the limit even when everything that is being freed is free.
    #[must_use]
    pub const fn excess(&self) -> Amount {
        self.charged.minus(self.freeing).minus(self.limit)
    }
}

/// The accounts of all tiers.
#[derive(Debug)]
pub struct Ledger {
    accounts: [Account; Tier::COUNT],
}

impl Ledger {
    /// Accounts with nothing charged.
    #[must_use]
    pub fn new(host: Amount) -> Self {
        Self {
            accounts: [Account {
                limit: host,
                ..Account::default()
            }],
        }
    }

    /// The account of a tier.
    #[must_use]
    pub const fn account(&self, tier: Tier) -> &Account {
        &self.accounts[tier.index()]
    }

    /// Takes `want`.
    ///
    /// # Errors
    /// When that would pass the limit: the caller was to look first.
    pub fn charge(&mut self, tier: Tier, want: Amount) -> Result<(), Violation> {
        let account = self.account_mut(tier);
        let sum = account.charged.plus(want);
        if !sum.fits(account.limit) {
            return Err(Violation::OverLimit {
                want: want.bytes,
                charged: account.charged.bytes,
                limit: account.limit.bytes,
            });
        }
        account.charged = sum;
        Ok(())
    }

    /// Notes that `what` is on its way out. It stays charged.
    pub fn start_free(&mut self, tier: Tier, what: Amount) {
        let account = self.account_mut(tier);
        account.freeing = account.freeing.plus(what);
    }

    /// Gives back what was on its way out and is out.
    pub fn end_free(&mut self, tier: Tier, what: Amount) {
        let account = self.account_mut(tier);
        account.freeing = account.freeing.minus(what);
        account.charged = account.charged.minus(what);
    }

    /// Gives back a charge of which nothing is in memory.
    pub fn refund(&mut self, tier: Tier, what: Amount) {
        let account = self.account_mut(tier);
        account.charged = account.charged.minus(what);
    }

    /// Changes the limit in bytes. What is charged above it stays charged until it is freed.
    pub fn set_limit(&mut self, tier: Tier, bytes: Bytes) {
        self.account_mut(tier).limit.bytes = bytes;
    }

    const fn account_mut(&mut self, tier: Tier) -> &mut Account {
        &mut self.accounts[tier.index()]
    }
}
