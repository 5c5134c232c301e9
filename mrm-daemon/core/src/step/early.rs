//! Leases on what is still being filled.
//!
//! Who asks for the layout alone is granted once all of the copy is charged, its table is resident,
//! and all else is resident or has its memory. From then on the lease holds the copy like any other.
//! If one of the loads fails, it is revoked. If one brings a content that is resident in another
//! segment already, the new segment cannot be freed as it otherwise would be, for it is lent: it is
//! kept as a *twin*, until no copy that has it is leased any more. So is one that was lent before it was
//! known what it holds.

use super::Turn;
use crate::Core;
use crate::admission::{Stage, Target};
use crate::effect::Effect;
use crate::event::{Fault, Part, Wanted};
use crate::id::{CopyId, LeaseId, OpId, SegmentId, SessionId, VersionId};
use crate::lease::Lease;
use crate::ledger::Tier;
use crate::ops::Op;
use crate::planted::{Bug, planted};
use crate::violation::Violation;
use std::sync::Arc;

impl Core {
    /// The memory of a load is there.
    pub(crate) fn laid(&mut self, turn: &mut Turn<'_>, op: OpId) -> Result<(), Violation> {
        let segment = self.loaded_by(op)?;
        self.residency.lay(segment)?;
        let there = self.residency.get(segment)?;
        let (tier, sources) = (there.tier, there.sources.clone());
        for user in self.catalogue.copies_with(tier, &sources)? {
            self.grant_if_laid(turn, user)?;
        }
        Ok(())
    }

    /// The memory of a load is there no more: it is filled in other memory, which nobody is lent
    /// before that is whole.
    pub(crate) fn unlaid(
        &mut self,
        turn: &mut Turn<'_>,
        op: OpId,
        fault: &Fault,
    ) -> Result<(), Violation> {
        let segment = self.loaded_by(op)?;
        self.residency.unlay(segment)?;
        let there = self.residency.get(segment)?;
        let (tier, sources) = (there.tier, there.sources.clone());
        self.touched.extend(self.catalogue.users(&sources)?);
        for user in self.catalogue.copies_with(tier, &sources)? {
            self.revoke_early(turn, user, fault)?;
        }
        Ok(())
    }

    fn loaded_by(&self, op: OpId) -> Result<SegmentId, Violation> {
        match self.ops.get(op) {
            Some(Op::Load { segment }) => Ok(segment),
            Some(Op::Resolve { .. } | Op::Free { .. }) => Err(Violation::WrongCompletion(op)),
            None => Err(Violation::UnknownOp(op)),
        }
    }

    /// The segments of a copy in host memory, if its table is resident and all else can be lent.
    pub(crate) fn laid_out(&self, copy: CopyId) -> Result<Option<Arc<[SegmentId]>>, Violation> {
        if copy.tier != Tier::Host {
            return Ok(None);
        }
        let mut segments = Vec::new();
        for (slot, _, segment) in self.catalogue.places(copy)? {
            match segment {
                Some(segment) if self.can_be_lent(slot.part, segment) => segments.push(segment),
                Some(_) | None => return Ok(None),
            }
        }
        Ok(Some(segments.into()))
    }

    /// Whether a segment can be lent to one who asked for the layout alone.
    pub(crate) fn can_be_lent(&self, part: Part, segment: SegmentId) -> bool {
        match part {
            Part::Table => self.residency.is_resident(segment),
            Part::File | Part::Image => self.residency.is_laid(segment) || planted(Bug::LendUnlaid),
        }
    }

    /// Grants those that wait for a copy and asked for the layout alone, if that is there.
    pub(super) fn grant_if_laid(
        &mut self,
        turn: &mut Turn<'_>,
        copy: CopyId,
    ) -> Result<(), Violation> {
        if self.admission.stage(copy) != Some(Stage::Loading) {
            return Ok(());
        }
        let target = Target::Copy(copy);
        let early = self.admission.waiting_for(target).filter(|key| {
            let waiter = self.admission.waiter(*key);
            waiter.is_some_and(|waiter| waiter.wanted == Wanted::Layout)
        });
        let early: Vec<_> = early.collect();
        if early.is_empty() {
            return Ok(());
        }
        let Some(segments) = self.laid_out(copy)? else {
            return Ok(());
        };
        for key in early {
            let waiter = self.unwait(key)?;
            let lease = Lease {
                model: waiter.model,
                copy,
                since: turn.now,
                reserve: waiter.reserved,
            };
            self.grant(turn, key, lease, waiter.origin, Arc::clone(&segments))?;
        }
        self.let_go(turn, target)
    }

    /// A part of a copy cannot be loaded: whoever leases it was granted before it was whole, and
    /// will never have all of it.
    pub(super) fn revoke_early(
        &mut self,
        turn: &mut Turn<'_>,
        copy: CopyId,
        fault: &Fault,
    ) -> Result<(), Violation> {
        if self.catalogue.copy(copy)?.leases == 0 || planted(Bug::KeepFailedLease) {
            return Ok(());
        }
        let leases = self.leases.all();
        let of_copy = leases.filter(|(session, id, held)| {
            held.copy == copy && !self.quarantine.holds((*session, *id))
        });
        let gone: Vec<(SessionId, LeaseId, Lease)> = of_copy
            .map(|(session, id, held)| (session, id, *held))
            .collect();
        for (session, lease, held) in gone {
            self.leases.release(session, lease);
            self.lease_ended(turn, (session, lease), held)?;
            let (gone, fault) = (true, fault.clone());
            turn.effects.push(Effect::Revoke {
                session,
                lease,
                gone,
                fault,
            });
        }
        Ok(())
    }

    /// Whether a copy that has a segment is leased, or a lease on what a copy was keeps it.
    pub(crate) fn is_lent(&self, id: SegmentId) -> Result<bool, Violation> {
        let there = self.residency.get(id)?;
        for user in self.catalogue.copies_with(there.tier, &there.sources)? {
            if self.catalogue.copy(user)?.leases > 0 {
                return Ok(true);
            }
        }
        Ok(self.quarantine.leases_on(id) > 0)
    }

    /// Ends the twins of a version that are not lent any more: the segment that stands for the
    /// content stands for their sources too. Where there is none now, the twin is that.
    pub(super) fn merge_twins(
        &mut self,
        turn: &mut Turn<'_>,
        id: VersionId,
    ) -> Result<(), Violation> {
        if !self.residency.has_twins() || !self.catalogue.versions.contains_key(&id) {
            return Ok(());
        }
        for twin in self.catalogue.all_segments(id)? {
            let Some(content) = self.residency.twin(twin) else {
                continue;
            };
            let there = self.residency.get(twin)?;
            let (tier, sources) = (there.tier, there.sources.clone());
            if self.is_lent(twin)? {
                continue;
            }
            let Some(existing) = self.residency.holding(tier, content) else {
                self.residency.stand_alone(twin)?;
                continue;
            };
            for copy in self.catalogue.copies_with(tier, &sources)? {
                self.catalogue.copy_mut(copy)?.whole = None;
            }
            for source in self.residency.redirect(twin, existing, turn.now)? {
                self.catalogue.set_segment(source, tier, Some(existing))?;
            }
            self.evict(turn, twin)?;
            self.room_changed = true;
        }
        Ok(())
    }
}
