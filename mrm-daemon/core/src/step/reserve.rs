//! What leases keep free on a device beside the weights: the memory that their holders need to run.
//!
//! It is charged with the lease, or when the want that the open waits on is admitted, and refunded
//! with the end of either. A want is in the queue for what its copy lacks and the least that one of
//! its opens wants kept free; whoever wants more waits on when that one is granted.

use super::plan::Claims;
use crate::Core;
use crate::admission::{Key, Target};
use crate::effect::Refusal;
use crate::id::{Bytes, CopyId, SessionId, Tenant};
use crate::lease::Lease;
use crate::ledger::{Amount, Tier};
use crate::planted::{Bug, planted};
use crate::violation::Violation;

impl Core {
    /// How much the leases of one user may keep free on a tier.
    pub(crate) fn user_reserve_max(&self, tier: Tier) -> Result<Bytes, Violation> {
        let Tier::Device(device) = tier else {
            return Ok(Bytes::ZERO);
        };
        let percent = u128::from(self.devices.user_reserve_percent(device)?.min(100));
        let budget = u128::from(self.ledger.account(tier).budget.bytes.0);
        Ok(Bytes(
            u64::try_from(budget * percent / 100).unwrap_or(u64::MAX),
        ))
    }

    /// Why a user may not have so much more kept free now, if so.
    pub(super) fn over_share(
        &self,
        tenant: Tenant,
        tier: Tier,
        reserve: Bytes,
    ) -> Result<Option<Refusal>, Violation> {
        if reserve == Bytes::ZERO {
            return Ok(None);
        }
        let (kept, max) = (
            self.reserves.kept_by(tenant, tier),
            self.user_reserve_max(tier)?,
        );
        Ok(
            (kept.saturating_add(reserve) > max).then_some(Refusal::OverShare {
                tier,
                reserve,
                kept,
                max,
            }),
        )
    }

    /// Keeps so much free for a session's lease, if there is room now after what the queue claims.
    pub(super) fn reserve_now(
        &mut self,
        session: SessionId,
        tier: Tier,
        reserve: Bytes,
    ) -> Result<bool, Violation> {
        if reserve == Bytes::ZERO || tier == Tier::Host {
            return Ok(true);
        }
        let tenant = self.leases.session(session)?.tenant;
        // What the queue claims is not known before it was gone through.
        if self.room_changed || !self.can_reserve(tenant, tier, reserve, self.claimed.get(tier))? {
            return Ok(false);
        }
        self.reserve(tenant, tier, reserve)?;
        Ok(true)
    }

    fn can_reserve(
        &self,
        tenant: Tenant,
        tier: Tier,
        reserve: Bytes,
        claimed: Amount,
    ) -> Result<bool, Violation> {
        let wanted = claimed.plus(Amount::bytes(reserve));
        let free = self.ledger.account(tier).free();
        let fits = wanted.fits(free) || planted(Bug::ChargeAboveLimit);
        Ok(fits && self.over_share(tenant, tier, reserve)?.is_none())
    }

    fn reserve(&mut self, tenant: Tenant, tier: Tier, reserve: Bytes) -> Result<(), Violation> {
        self.ledger.reserve(tier, reserve)?;
        self.reserves.add(tenant, tier, reserve);
        Ok(())
    }

    fn unreserve(&mut self, tenant: Tenant, tier: Tier, reserve: Bytes) {
        if reserve == Bytes::ZERO || planted(Bug::LeakReserve) {
            return;
        }
        self.ledger.unreserve(tier, reserve);
        self.reserves.take(tenant, tier, reserve);
        self.room_changed = true;
    }

    /// The least that one who waits for a copy, and whose share allows it, still wants kept free;
    /// `None` where the shares of all of them are used up.
    pub(crate) fn next_reserve(&self, copy: CopyId) -> Result<Option<Bytes>, Violation> {
        let mut least = None;
        let mut nobody = true;
        for key in self.admission.waiting_for(Target::Copy(copy)) {
            nobody = false;
            let Some(waiter) = self.admission.waiter(key) else {
                continue;
            };
            let reserve = waiter.wanted.reserve_on(copy.tier);
            if least.is_none_or(|least| reserve < least)
                && self
                    .over_share(waiter.tenant, copy.tier, reserve)?
                    .is_none()
            {
                least = Some(reserve);
            }
        }
        Ok(if nobody { Some(Bytes::ZERO) } else { least })
    }

    /// Keeps free what those who wait for an admitted copy want kept free, the least first, as far
    /// as there is room after what others claim.
    pub(super) fn reserve_for_waiting(
        &mut self,
        copy: CopyId,
        claims: &Claims,
    ) -> Result<(), Violation> {
        let tier = copy.tier;
        let claimed = claims.room.get(tier);
        let mut asked: Vec<(Bytes, Key, Tenant)> = Vec::new();
        for key in self.admission.waiting_for(Target::Copy(copy)) {
            if let Some(waiter) = self.admission.waiter(key) {
                asked.push((waiter.wanted.reserve_on(tier), key, waiter.tenant));
            }
        }
        asked.retain(|(reserve, _, _)| *reserve > Bytes::ZERO);
        // Equals stay as they came.
        asked.sort_by_key(|(reserve, _, _)| *reserve);
        for (reserve, key, tenant) in asked {
            if self.can_reserve(tenant, tier, reserve, claimed)? {
                self.reserve(tenant, tier, reserve)?;
                self.admission.set_reserved(key, reserve);
            }
        }
        Ok(())
    }

    /// Those who wait for a copy and have all that they want kept free.
    pub(super) fn ready_for(&self, copy: CopyId) -> Vec<Key> {
        let waiting = self.admission.waiting_for(Target::Copy(copy));
        let ready = waiting.filter(|key| {
            let waiter = self.admission.waiter(*key);
            waiter.is_some_and(|waiter| waiter.reserved == waiter.wanted.reserve_on(copy.tier))
        });
        ready.collect()
    }

    /// Gives back what was kept free for an open that waits.
    pub(super) fn unreserve_waiter(&mut self, key: Key) -> Result<(), Violation> {
        let Some(waiter) = self.admission.waiter(key) else {
            return Ok(());
        };
        let (tenant, reserved) = (waiter.tenant, waiter.reserved);
        if let Target::Copy(copy) = waiter.target {
            self.admission.set_reserved(key, Bytes::ZERO);
            self.unreserve(tenant, copy.tier, reserved);
        }
        Ok(())
    }

    /// The same for all that wait for a copy.
    pub(super) fn unreserve_waiting(&mut self, copy: CopyId) -> Result<(), Violation> {
        let waiting: Vec<Key> = self.admission.waiting_for(Target::Copy(copy)).collect();
        waiting
            .into_iter()
            .try_for_each(|key| self.unreserve_waiter(key))
    }

    /// A lease has ended: gives back what it kept free.
    pub(super) fn reserve_ended(
        &mut self,
        session: SessionId,
        lease: &Lease,
    ) -> Result<(), Violation> {
        if lease.reserve == Bytes::ZERO {
            return Ok(());
        }
        let tenant = self.leases.session(session)?.tenant;
        let copy = self.catalogue.copy_mut(lease.copy)?;
        copy.reserved = copy.reserved.saturating_sub(lease.reserve);
        self.unreserve(tenant, lease.copy.tier, lease.reserve);
        Ok(())
    }
}
