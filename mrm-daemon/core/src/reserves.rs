//! What users keep free on devices: by their leases, and by opens that were admitted.

use crate::id::{Bytes, Tenant};
use crate::ledger::Tier;
use std::collections::BTreeMap;

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
