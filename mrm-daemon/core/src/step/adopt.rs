//! What the last daemon left: its memory, and the leases of clients that come back.

use super::Turn;
use crate::Core;
use crate::admission::Key;
use crate::effect::{Effect, Reply};
use crate::event::{AdoptedSegment, Adoption, ResumedLease, SegmentFact};
use crate::id::{Bytes, CopyId, LeaseId, SessionId, VersionId};
use crate::lease::Lease;
use crate::ledger::Tier;
use crate::residency::{Segment, State};
use crate::violation::Violation;

impl Core {
    /// Takes a version over with what is resident of it. What is whole is held for a while, so that
    /// those who had leases on it find it there.
    pub(crate) fn adopt(
        &mut self,
        turn: &mut Turn<'_>,
        adoption: &Adoption,
    ) -> Result<(), Violation> {
        let version = adoption.resolution.version;
        self.catalogue
            .learn(&adoption.resolution, self.devices.all())?;
        self.touched.insert(version);
        if let Some(model) = adoption.model {
            self.catalogue.models.entry(model).or_default();
            self.set_current(turn, model, Some((version, turn.now)))?;
        }
        for resident in &adoption.resident {
            let slots = adoption.resolution.segments.iter();
            let slot = slots
                .copied()
                .find(|slot| slot.source == resident.source)
                .ok_or(Violation::NotOfVersion(version, resident.source))?;
            self.adopt_segment(turn, version, slot, *resident)?;
        }
        let tiers = self.catalogue.version(version)?.copies.keys();
        for tier in tiers.copied().collect::<Vec<_>>() {
            let copy = CopyId { version, tier };
            let lost = self.devices.tier_is_lost(tier);
            if !lost && self.whole(copy)?.is_some() && self.expected.insert((adoption.until, copy))
            {
                self.change_copy(copy, turn.now, |copy| copy.expected += 1)?;
            }
        }
        Ok(())
    }

    fn adopt_segment(
        &mut self,
        turn: &mut Turn<'_>,
        version: VersionId,
        slot: SegmentFact,
        resident: AdoptedSegment,
    ) -> Result<(), Violation> {
        let AdoptedSegment {
            source,
            tier,
            content,
        } = resident;
        self.devices.expect_tier(tier)?;
        if slot.part.tier(tier) != Some(tier) {
            return Err(Violation::NotOfVersion(version, source));
        }
        if self.catalogue.segment(source, tier).is_some() {
            return Ok(());
        }
        let mut held = 0;
        for user in self.catalogue.copies_with(tier, &[source])? {
            held += u64::from(self.catalogue.held(user)?);
        }
        let segment = match self.residency.holding(tier, content) {
            Some(existing) => {
                self.residency.stand_for(existing, source, held, turn.now)?;
                existing
            }
            // What is being freed already is not there a second time.
            None if !self.taken_over.insert((tier, content)) => return Ok(()),
            None => {
                self.ledger.adopt(tier, slot.amount());
                let segment = self.residency.next_id();
                let adopted = Segment {
                    state: State::Resident(content),
                    tier,
                    charge: slot.amount(),
                    sources: vec![source],
                    left_by: Vec::new(),
                    fed_by: None,
                    laid: false,
                    spoilt: None,
                    held,
                    idle_since: None,
                };
                self.residency.adopt(segment, adopted, content, turn.now)?;
                turn.effects.push(Effect::Adopted {
                    segment,
                    source,
                    tier,
                });
                segment
            }
        };
        self.catalogue.set_segment(source, tier, Some(segment))
    }

    /// Gives a client that came back the leases that it had, as far as there is what they were on.
    pub(crate) fn resume(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        leases: &[ResumedLease],
    ) -> Result<(), Violation> {
        self.leases.session(key.0)?;
        self.expect_new(key)?;
        let mut resumed = Vec::with_capacity(leases.len());
        for lease in leases {
            resumed.push(self.resume_one(turn, key.0, *lease)?);
        }
        turn.reply(key, Reply::Resumed { leases: resumed });
        Ok(())
    }

    fn resume_one(
        &mut self,
        turn: &Turn<'_>,
        session: SessionId,
        resumed: ResumedLease,
    ) -> Result<Option<LeaseId>, Violation> {
        let ResumedLease {
            model,
            copy,
            reserve,
        } = resumed;
        let holder = self.leases.session(session)?;
        let full = holder.leases + holder.waiting >= self.leases_per_session_max;
        let version = self.catalogue.versions.get(&copy.version);
        let known = version.and_then(|version| version.copies.get(&copy.tier));
        if full || self.draining || known.is_none_or(|copy| copy.lost) {
            return Ok(None);
        }
        if self.whole(copy)?.is_none() {
            return Ok(None);
        }
        // Its memory is in use whether it is counted or not: without room for that it is a lease
        // all the same.
        let kept = copy.tier != Tier::Host && self.reserve_now(session, copy.tier, reserve)?;
        let reserve = if kept { reserve } else { Bytes::ZERO };
        let lease = Lease {
            model,
            copy,
            since: turn.now,
            reserve,
        };
        let lease = self.leases.grant(session, lease)?;
        self.change_copy(copy, turn.now, |copy| {
            copy.leases += 1;
            copy.reserved = copy.reserved.saturating_add(reserve);
            copy.last_used = Some(turn.now);
        })?;
        Ok(Some(lease))
    }

    /// Ends the time for which what was taken over is held.
    pub(crate) fn end_expectations(&mut self, turn: &Turn<'_>) -> Result<(), Violation> {
        while let Some((until, copy)) = self.expected.first().copied() {
            if until > turn.now {
                break;
            }
            self.expected.pop_first();
            self.change_copy(copy, turn.now, |copy| copy.expected -= 1)?;
        }
        Ok(())
    }
}
