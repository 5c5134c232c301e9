//! Who keeps memory from being freed.

use super::plan::Claims;
use crate::Core;
use crate::admission::Stage;
use crate::effect::{HOLDERS_MAX, Holder, Refusal};
use crate::id::{Bytes, CopyId};
use crate::ledger::Tier;
use crate::residency::State;
use crate::violation::Violation;

impl Core {
    /// What a copy takes of a tier, and why it cannot be evicted.
    pub(crate) fn holder(&self, id: CopyId, on: Tier) -> Result<Holder, Violation> {
        let version = self.catalogue.version(id.version)?;
        let copy = self.catalogue.copy(id)?;
        let mut charged = Bytes::ZERO;
        let mut loading = self.admission.stage(id).is_some() || copy.feeding > 0;
        for segment in self.catalogue.segments_of(id)? {
            let segment = self.residency.get(segment)?;
            loading |= matches!(segment.state, State::Loading(_));
            if segment.tier == on {
                charged = charged.saturating_add(segment.charge.bytes);
            }
        }
        if id.tier == on {
            charged = charged.saturating_add(copy.reserved);
        }
        if copy.tainted > 0 {
            charged = charged.saturating_add(self.quarantined(id, on)?);
        }
        Ok(Holder {
            version: id.version,
            tier: id.tier,
            charged,
            leases: copy.leases + copy.tainted,
            pinned: version.pins > 0,
            loading,
        })
    }

    /// The largest copies that keep memory of a tier from being freed, largest first.
    pub(crate) fn holders(&self, on: Tier) -> Result<Vec<Holder>, Violation> {
        let mut holders = Vec::new();
        for (version, known) in &self.catalogue.versions {
            for tier in known.copies.keys() {
                let id = CopyId {
                    version: *version,
                    tier: *tier,
                };
                let mut holder = self.holder(id, on)?;
                // A want that only waits for room takes nothing.
                holder.loading &= self.admission.stage(id) != Some(Stage::Room);
                let used = holder.leases > 0 || holder.loading;
                // A pin is told of where there is something of the copy itself.
                holder.pinned &= used || *tier == on;
                if (used || holder.pinned) && holder.charged > Bytes::ZERO {
                    holders.push(holder);
                }
            }
        }
        holders.sort_by_key(|holder| {
            let copy = (holder.version, holder.tier);
            (std::cmp::Reverse(holder.charged), copy)
        });
        holders.truncate(HOLDERS_MAX);
        Ok(holders)
    }

    /// The tier on which an open in the queue has no room, with what it wants kept free.
    pub(crate) fn short_of(&self, copy: CopyId, reserve: Bytes) -> Result<Tier, Violation> {
        let least = self.least(copy, reserve)?;
        let blocked = self.blocked_on(&least, &Claims::default())?;
        Ok(blocked.unwrap_or(copy.tier))
    }

    pub(crate) fn no_room(
        &self,
        (copy, reserve): (CopyId, Bytes),
        tier: Tier,
        holders: Vec<Holder>,
    ) -> Result<Refusal, Violation> {
        let account = self.ledger.account(tier);
        Ok(Refusal::NoRoom {
            tier,
            want: self.least(copy, reserve)?.missing.get(tier).bytes,
            reserve: if tier == copy.tier {
                reserve
            } else {
                Bytes::ZERO
            },
            limit: account.limit.bytes,
            charged: account.charged.bytes,
            holders,
        })
    }
}
