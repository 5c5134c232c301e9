//! What users keep free on devices: by their leases, and by opens that were admitted; and what is
//! remembered of it.

use crate::id::{Bytes, Tenant};
use crate::ledger::Tier;
use std::collections::BTreeMap;

/// After so many grants on devices what was kept free before counts for as many more, then no more.
const GRANTS: u8 = 16;

/// The most that grants of a model on devices kept free of late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Lately {
    newer: Bytes,
    older: Bytes,
    grants: u8,
}

impl Lately {
    /// As another daemon remembered it.
    pub(crate) const fn recalled(most: Bytes) -> Self {
        Self {
            newer: Bytes::ZERO,
            older: most,
            grants: 0,
        }
    }

    /// Takes note of a grant that keeps so much free, or nothing.
    pub(crate) fn granted(&mut self, reserve: Bytes) {
        if self.grants == GRANTS {
            (self.older, self.newer, self.grants) = (self.newer, Bytes::ZERO, 0);
        }
        self.newer = self.newer.max(reserve);
        self.grants += 1;
    }

    /// The most of the last 16 grants, and of up to 16 before.
    pub(crate) fn most(self) -> Bytes {
        self.newer.max(self.older)
    }
}

/// The sum for each user on each tier, where it is not zero.
#[derive(Debug, Default)]
pub(crate) struct Reserves(BTreeMap<(Tier, Tenant), Bytes>);

impl Reserves {
    /// What a user keeps free on a tier.
    pub(crate) fn kept_by(&self, tenant: Tenant, tier: Tier) -> Bytes {
        self.0.get(&(tier, tenant)).copied().unwrap_or_default()
    }

    pub(crate) fn add(&mut self, tenant: Tenant, tier: Tier, bytes: Bytes) {
        let kept = self.0.entry((tier, tenant)).or_default();
        *kept = kept.saturating_add(bytes);
    }

    pub(crate) fn take(&mut self, tenant: Tenant, tier: Tier, bytes: Bytes) {
        let left = self.kept_by(tenant, tier).saturating_sub(bytes);
        if left == Bytes::ZERO {
            self.0.remove(&(tier, tenant));
        } else {
            self.0.insert((tier, tenant), left);
        }
    }

    /// Each of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = ((Tier, Tenant), Bytes)> {
        self.0.iter().map(|(key, bytes)| (*key, *bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_once_counts_for_a_while() {
        let mut lately = Lately::recalled(Bytes(7));
        assert_eq!(lately.most(), Bytes(7));
        lately.granted(Bytes(9));
        assert_eq!(lately.most(), Bytes(9));
        for _ in 1..32 {
            lately.granted(Bytes(2));
            assert_eq!(lately.most(), Bytes(9));
        }
        lately.granted(Bytes::ZERO);
        assert_eq!(lately.most(), Bytes(2));
        for _ in 0..32 {
            lately.granted(Bytes::ZERO);
        }
        assert_eq!(lately.most(), Bytes::ZERO);
    }
}
