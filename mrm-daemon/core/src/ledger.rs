//! Who may use how much: budget, limit, charged and freeing, per tier.
//!
//! A charge is taken when the decision falls and refunded when the memory is known to be free, so
//! that the sum of what is in memory and of what is on its way never passes the limit.
//!
//! ```
//! use mrm_core::{id::Bytes, ledger::{Amount, Ledger, Tier}};
//! let mut ledger = Ledger::new(Amount { bytes: Bytes(10), segments: 4 }, &[]);
//! ledger.charge(Tier::Host, Amount::segment(Bytes(8)))?;
//! assert!(ledger.charge(Tier::Host, Amount::segment(Bytes(3))).is_err());
//! ledger.start_free(Tier::Host, Amount::segment(Bytes(8)));
//! assert_eq!(ledger.account(Tier::Host).free().bytes, Bytes(2));
//! assert_eq!(ledger.account(Tier::Host).coming().bytes, Bytes(10));
//! # Ok::<(), mrm_core::violation::Violation>(())
//! ```

use crate::id::{Bytes, DeviceId};
use crate::planted::{Bug, planted};
use crate::violation::Violation;
use std::collections::BTreeMap;
use std::fmt;

/// A kind of memory with a budget of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The node's main memory.
    Host,
    /// The memory of a device.
    Device(DeviceId),
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Device(device) => write!(f, "{device}"),
        }
    }
}

/// Bytes, and how many pieces they are in. A piece costs a descriptor whatever its size, so both
/// have a limit. In host memory a segment is one piece, on a device it may be several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// The bytes.
    pub bytes: Bytes,
    /// The pieces of all segments.
    pub segments: u64,
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self {
        bytes: Bytes::ZERO,
        segments: 0,
    };

    /// One segment of so many bytes in one piece.
    #[must_use]
    pub const fn segment(bytes: Bytes) -> Self {
        Self { bytes, segments: 1 }
    }

    /// So many bytes in no piece: room that nothing is in.
    #[must_use]
    pub const fn bytes(bytes: Bytes) -> Self {
        Self { bytes, segments: 0 }
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
    /// What is configured: what is larger never fits.
    pub budget: Amount,
    /// What may be charged now: the budget, or less while others use the device.
    pub limit: Amount,
    /// What is charged: loading, resident, being freed, and kept free.
    pub charged: Amount,
    /// The part of it that is being freed.
    pub freeing: Amount,
    /// The part of it that is kept free for those who hold leases; it is in no pieces.
    pub reserved: Bytes,
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
    accounts: BTreeMap<Tier, Account>,
}

/// The account of a tier that is not there.
const NOTHING: Account = Account {
    budget: Amount::ZERO,
    limit: Amount::ZERO,
    charged: Amount::ZERO,
    freeing: Amount::ZERO,
    reserved: Bytes::ZERO,
};

impl Ledger {
    /// Accounts with nothing charged: the host's budget, and that of each device.
    #[must_use]
    pub fn new(host: Amount, devices: &[Amount]) -> Self {
        let ids = (0..=u16::MAX).map(|index| Tier::Device(DeviceId(index)));
        let devices = ids.zip(devices.iter().copied());
        let account = |(tier, budget)| {
            let account = Account {
                budget,
                limit: budget,
                ..NOTHING
            };
            (tier, account)
        };
        Self {
            accounts: std::iter::once((Tier::Host, host))
                .chain(devices)
                .map(account)
                .collect(),
        }
    }

    /// The tiers, the host's first.
    pub fn tiers(&self) -> impl DoubleEndedIterator<Item = Tier> {
        self.accounts.keys().copied()
    }

    /// The account of a tier; one without a budget if there is no such tier.
    #[must_use]
    pub fn account(&self, tier: Tier) -> &Account {
        self.accounts.get(&tier).unwrap_or(&NOTHING)
    }

    /// Takes `want`.
    ///
    /// # Errors
    /// When that would pass the limit: the caller was to look first.
    pub fn charge(&mut self, tier: Tier, want: Amount) -> Result<(), Violation> {
        let account = *self.account(tier);
        let sum = account.charged.plus(want);
        if !sum.fits(account.limit) && !planted(Bug::ChargeAboveLimit) {
            return Err(Violation::OverLimit {
                want: want.bytes,
                charged: account.charged.bytes,
                limit: account.limit.bytes,
            });
        }
        self.change(tier, |account| account.charged = sum);
        Ok(())
    }

    /// Takes note of what is in memory already, whether there is room for it or not.
    pub(crate) fn adopt(&mut self, tier: Tier, what: Amount) {
        self.change(tier, |account| account.charged = account.charged.plus(what));
    }

    /// Notes that `what` is on its way out. It stays charged.
    pub fn start_free(&mut self, tier: Tier, what: Amount) {
        self.change(tier, |account| account.freeing = account.freeing.plus(what));
    }

    /// Gives back what was on its way out and is out.
    pub fn end_free(&mut self, tier: Tier, what: Amount) {
        self.change(tier, |account| {
            account.freeing = account.freeing.minus(what);
            account.charged = account.charged.minus(what);
        });
    }

    /// Takes what is to be kept free.
    ///
    /// # Errors
    /// When that would pass the limit: the caller was to look first.
    pub fn reserve(&mut self, tier: Tier, bytes: Bytes) -> Result<(), Violation> {
        self.charge(tier, Amount::bytes(bytes))?;
        self.change(tier, |account| {
            account.reserved = account.reserved.saturating_add(bytes);
        });
        Ok(())
    }

    /// Gives back what was kept free.
    pub fn unreserve(&mut self, tier: Tier, bytes: Bytes) {
        self.refund(tier, Amount::bytes(bytes));
        self.change(tier, |account| {
            account.reserved = account.reserved.saturating_sub(bytes);
        });
    }

    /// Gives back a charge of which nothing is in memory.
    pub fn refund(&mut self, tier: Tier, what: Amount) {
        self.change(tier, |account| {
            account.charged = account.charged.minus(what)
        });
    }

    /// Changes budget and limit in bytes; a limit above the budget is the budget. What is charged
    /// above it stays charged until it is freed.
    pub fn set_limit(&mut self, tier: Tier, budget: Bytes, limit: Bytes) {
        self.change(tier, |account| {
            account.budget.bytes = budget;
            account.limit.bytes = limit.min(budget);
        });
    }

    /// Takes budget and limit away, in bytes and pieces.
    pub fn close(&mut self, tier: Tier) {
        self.change(tier, |account| {
            account.budget = Amount::ZERO;
            account.limit = Amount::ZERO;
        });
    }

    fn change(&mut self, tier: Tier, change: impl FnOnce(&mut Account)) {
        if let Some(account) = self.accounts.get_mut(&tier) {
            change(account);
        }
    }
}

/// An amount for each tier that has one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Amounts(BTreeMap<Tier, Amount>);

impl Amounts {
    pub(crate) fn get(&self, tier: Tier) -> Amount {
        self.0.get(&tier).copied().unwrap_or(Amount::ZERO)
    }

    pub(crate) fn add(&mut self, tier: Tier, amount: Amount) {
        let sum = self.get(tier).plus(amount);
        self.0.insert(tier, sum);
    }

    /// The tiers that have one that is not zero, the host's first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (Tier, Amount)> {
        let all = self.0.iter().map(|(tier, amount)| (*tier, *amount));
        all.filter(|(_, amount)| *amount != Amount::ZERO)
    }
}
