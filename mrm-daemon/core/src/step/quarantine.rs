//! Memory that does not hold what it should.
//!
//! Nobody gets it any more. The leases on it stay, and keep the whole copy that they were granted,
//! but hold nothing of what the copy is from now on: that is loaded anew like any other. What is
//! being filled from it is of no use either.

use super::Turn;
use crate::Core;
use crate::admission::Target;
use crate::effect::{Effect, Reply};
use crate::event::{Fault, Part};
use crate::id::{Bytes, CopyId, SegmentId};
use crate::ledger::Tier;
use crate::planted::{Bug, planted};
use crate::quarantine::LeaseKey;
use crate::residency::{Spoilt, State};
use crate::violation::Violation;
use std::collections::BTreeSet;

impl Core {
    /// A resident segment was found damaged. One that is not resident any more needs nothing.
    pub(crate) fn damaged(
        &mut self,
        turn: &mut Turn<'_>,
        segment: SegmentId,
        fault: &Fault,
    ) -> Result<(), Violation> {
        if !self.residency.is_resident(segment) {
            return Ok(());
        }
        self.quarantine(turn, segment, fault)
    }

    /// Takes a segment, resident or just loaded, out of all copies that it is a part of.
    pub(super) fn quarantine(
        &mut self,
        turn: &mut Turn<'_>,
        segment: SegmentId,
        fault: &Fault,
    ) -> Result<(), Violation> {
        let known = self.residency.get(segment)?;
        let (tier, sources) = (known.tier, known.sources.clone());
        let pairs = self.catalogue.copies_with(tier, &sources)?;
        let copies: BTreeSet<CopyId> = pairs.iter().copied().collect();
        self.touched.extend(pairs.iter().map(|copy| copy.version));
        self.room_changed = true;
        for copy in &copies {
            if self.whole(*copy)?.is_none() {
                self.revoke_early(turn, *copy, fault)?;
            }
            self.taint_leases(turn, *copy, fault)?;
            self.end_expectation(turn, *copy)?;
            self.answer_all(turn, Target::Copy(*copy), &Reply::Failed(fault.clone()))?;
        }
        if self.holds_weights(segment)? {
            self.spoil_loads(segment, &copies, fault)?;
        }
        let mut held = 0;
        for copy in &pairs {
            held += u64::from(self.catalogue.held(*copy)?);
        }
        if planted(Bug::LendDamaged) {
            return Ok(());
        }
        let sources = self.residency.condemn(segment, held)?;
        let versions = pairs.iter().map(|copy| copy.version);
        self.policies.dropped(tier, versions)?;
        pairs.iter().for_each(|copy| self.ahead.left(copy.version));
        for source in sources {
            self.catalogue.set_segment(source, tier, None)?;
        }
        for copy in copies {
            self.catalogue.copy_mut(copy)?.whole = None;
            self.demoted(turn, copy, tier)?;
        }
        self.free_waste(turn, segment)
    }

    /// Whether what a segment holds is copied to devices: tables are not.
    fn holds_weights(&self, segment: SegmentId) -> Result<bool, Violation> {
        for source in &self.residency.get(segment)?.sources {
            if self.catalogue.source(*source)?.part != Part::Table {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lets the leases on a copy keep what they were granted, instead of the copy, and tells them.
    fn taint_leases(
        &mut self,
        turn: &mut Turn<'_>,
        copy: CopyId,
        fault: &Fault,
    ) -> Result<(), Violation> {
        let leases = self.leases.all();
        let on_copy = leases.filter(|(session, lease, held)| {
            held.copy == copy && !self.quarantine.holds((*session, *lease))
        });
        let keys: Vec<LeaseKey> = on_copy.map(|(session, id, _)| (session, id)).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let segments = self.catalogue.segments_of(copy)?;
        for (session, lease) in keys {
            for segment in &segments {
                self.residency.hold(*segment, true, turn.now)?;
            }
            self.quarantine.add((session, lease), segments.clone());
            self.change_copy(copy, turn.now, |copy| {
                copy.leases -= 1;
                copy.tainted += 1;
            })?;
            let (gone, fault) = (false, fault.clone());
            turn.effects.push(Effect::Revoke {
                session,
                lease,
                gone,
                fault,
            });
        }
        Ok(())
    }

    /// A lease on a copy that was found damaged has ended.
    pub(super) fn tainted_lease_ended(
        &mut self,
        turn: &mut Turn<'_>,
        lease: LeaseKey,
        copy: CopyId,
    ) -> Result<(), Violation> {
        self.touched.insert(copy.version);
        self.catalogue.copy_mut(copy)?.tainted -= 1;
        for segment in self.quarantine.remove(lease) {
            self.room_changed |= self.residency.hold(segment, false, turn.now)?;
            self.free_waste(turn, segment)?;
        }
        Ok(())
    }

    /// Those who had leases of the last daemon's on a copy are not waited for any more.
    fn end_expectation(&mut self, turn: &Turn<'_>, copy: CopyId) -> Result<(), Violation> {
        let expected = self.expected.iter().copied();
        let gone: Vec<_> = expected.filter(|(_, of)| *of == copy).collect();
        for kept in gone {
            self.expected.remove(&kept);
            self.change_copy(copy, turn.now, |copy| copy.expected -= 1)?;
        }
        Ok(())
    }

    /// What is being filled from one of these copies is of no use. It keeps the damaged segment
    /// until it has ended.
    fn spoil_loads(
        &mut self,
        segment: SegmentId,
        copies: &BTreeSet<CopyId>,
        fault: &Fault,
    ) -> Result<(), Violation> {
        let all = self.residency.all();
        let fed = all.filter(|(_, load)| load.fed_by.is_some_and(|copy| copies.contains(&copy)));
        let fed: Vec<SegmentId> = fed.map(|(load, _)| load).collect();
        for load in fed {
            if !planted(Bug::KeepSpoilt) && self.residency.spoil(load, segment, fault)? {
                self.residency.keep(segment)?;
            }
        }
        Ok(())
    }

    /// A load has ended, and lets go of the damaged segments that it was filled from.
    pub(super) fn end_spoilt(
        &mut self,
        turn: &mut Turn<'_>,
        load: SegmentId,
    ) -> Result<Option<Spoilt>, Violation> {
        let spoilt = self.residency.end_spoilt(load)?;
        for segment in spoilt.iter().flat_map(|spoilt| &spoilt.by) {
            self.residency.hold(*segment, false, turn.now)?;
            self.free_waste(turn, *segment)?;
        }
        Ok(spoilt)
    }

    /// Frees a damaged segment that nobody keeps any more.
    fn free_waste(&mut self, turn: &mut Turn<'_>, segment: SegmentId) -> Result<(), Violation> {
        if !self.residency.is_waste(segment) {
            return Ok(());
        }
        self.room_changed = true;
        self.evict(turn, segment)
    }

    /// What leases on a copy that was found damaged keep of a tier, beyond what the copy has now.
    pub(super) fn quarantined(&self, copy: CopyId, on: Tier) -> Result<Bytes, Violation> {
        let now = self.catalogue.segments_of(copy)?;
        let mut kept = BTreeSet::new();
        for (session, lease, held) in self.leases.all() {
            if held.copy == copy {
                kept.extend(self.quarantine.kept((session, lease)));
            }
        }
        let mut charged = Bytes::ZERO;
        for segment in kept.difference(&now) {
            let segment = self.residency.get(*segment)?;
            let damaged = matches!(segment.state, State::Damaged);
            if segment.tier == on && damaged {
                charged = charged.saturating_add(segment.charge.bytes);
            }
        }
        Ok(charged)
    }
}
