//! What the shell has done.

use super::Turn;
use crate::Core;
use crate::admission::Target;
use crate::effect::Reply;
use crate::event::{Fault, LoadFailure, Resolution};
use crate::id::{ContentId, CopyId, ModelId, OpId, SegmentId, Time};
use crate::ledger::Tier;
use crate::ops::Op;
use crate::planted::{Bug, planted};
use crate::residency::State;
use crate::violation::Violation;

impl Core {
    pub(crate) fn resolved(
        &mut self,
        turn: &mut Turn<'_>,
        op: OpId,
        outcome: Result<Resolution, Fault>,
    ) -> Result<(), Violation> {
        let Op::Resolve { model, asked_at } = self.ops.end(op)? else {
            return Err(Violation::WrongCompletion(op));
        };
        let target = Target::Model(model);
        let resolving = self.catalogue.model_mut(model)?.resolving.take();
        let mut found = None;
        if resolving.is_some_and(|resolving| resolving.outdated) {
            if self.admission.first_waiting_for(target).is_some() {
                self.resolve(turn, model);
            }
        } else {
            match outcome {
                Ok(resolution) => {
                    self.resolved_to(turn, model, asked_at, &resolution)?;
                    found = Some(resolution.version);
                }
                // What it stood for is kept, and with it a pin; the next open asks again.
                Err(fault) => self.answer_all(turn, target, &Reply::Failed(fault))?,
            }
        }
        self.resolved_ahead(turn, model, found)?;
        self.catalogue.tidy_model(model);
        Ok(())
    }

    fn resolved_to(
        &mut self,
        turn: &mut Turn<'_>,
        model: ModelId,
        asked_at: Time,
        resolution: &Resolution,
    ) -> Result<(), Violation> {
        let version = resolution.version;
        self.catalogue.learn(resolution, self.devices.all())?;
        self.set_current(turn, model, Some((version, asked_at)))?;
        self.touched.insert(version);
        while let Some(key) = self.admission.first_waiting_for(Target::Model(model)) {
            let waiter = self.unwait(key)?;
            let what = (model, waiter.wanted);
            self.place(turn, key, what, version, waiter.deadline)?;
        }
        Ok(())
    }

    pub(crate) fn took(&mut self, op: OpId, took_us: u64) -> Result<(), Violation> {
        match self.ops.get(op) {
            Some(Op::Load { segment }) => {
                self.policies.reloads.took(segment, took_us);
                Ok(())
            }
            Some(Op::Resolve { .. } | Op::Free { .. }) => Err(Violation::WrongCompletion(op)),
            None => Err(Violation::UnknownOp(op)),
        }
    }

    pub(crate) fn loaded(
        &mut self,
        turn: &mut Turn<'_>,
        op: OpId,
        outcome: Result<ContentId, LoadFailure>,
    ) -> Result<(), Violation> {
        let Op::Load { segment } = self.ops.end(op)? else {
            return Err(Violation::WrongCompletion(op));
        };
        let loading = self.residency.get(segment)?;
        let (tier, sources) = (loading.tier, loading.sources.clone());
        let users = self.catalogue.copies_with(tier, &sources)?;
        self.touched.extend(self.catalogue.users(&sources)?);
        self.room_changed = true;
        self.note_load(segment, outcome.is_ok(), turn.now);
        if let Some(feeding) = self.residency.end_feed(segment)? {
            self.change_copy(feeding, turn.now, |copy| copy.feeding -= 1)?;
        }
        let spoilt = self.end_spoilt(turn, segment)?;
        match (outcome, spoilt) {
            // What came to a device that is lost never is resident.
            (Ok(_), _) if self.devices.tier_is_lost(tier) => self.evict(turn, segment),
            (Ok(_), Some(spoilt)) => self.quarantine(turn, segment, &spoilt.fault),
            (Ok(content), None) => {
                self.arrived(turn, segment, tier, content)?;
                for user in users {
                    self.grant_if_whole(turn, user)?;
                    self.grant_if_laid(turn, user)?;
                }
                Ok(())
            }
            (Err(failure), _) => {
                let ended = self.residency.end(segment)?;
                if !planted(Bug::ForgetRefund) {
                    self.ledger.refund(tier, ended.charge);
                }
                for source in sources {
                    self.catalogue.set_segment(source, tier, None)?;
                }
                let versions = users.iter().map(|user| user.version);
                self.policies.dropped(tier, versions)?;
                for user in users {
                    self.load_failed(turn, user, tier, &failure)?;
                }
                Ok(())
            }
        }
    }

    fn load_failed(
        &mut self,
        turn: &mut Turn<'_>,
        copy: CopyId,
        tier: Tier,
        failure: &LoadFailure,
    ) -> Result<(), Violation> {
        match (failure, tier) {
            (LoadFailure::OutOfMemory(_), Tier::Device(_)) => self.out_of_memory(turn, copy),
            (LoadFailure::OutOfMemory(fault), Tier::Host) | (LoadFailure::Fault(fault), _) => {
                self.revoke_early(turn, copy, fault)?;
                let failed = Reply::Failed(fault.clone());
                self.answer_all(turn, Target::Copy(copy), &failed)
            }
        }
    }

    /// A load brought a content: it is resident now, or was already in another segment of the tier.
    /// Then the new one goes, unless it is lent already.
    fn arrived(
        &mut self,
        turn: &mut Turn<'_>,
        segment: SegmentId,
        tier: Tier,
        content: ContentId,
    ) -> Result<(), Violation> {
        let Some(existing) = self.residency.holding(tier, content) else {
            return self.residency.arrive(segment, content, turn.now);
        };
        if self.is_lent(segment)? && !planted(Bug::FreeTwin) {
            return self.residency.arrive_as_twin(segment, content, turn.now);
        }
        for source in self.residency.redirect(segment, existing, turn.now)? {
            self.catalogue.set_segment(source, tier, Some(existing))?;
        }
        self.evict(turn, segment)
    }

    /// A segment that was lent before it was hashed is known for what it is. If that is there already,
    /// it is merged with it as soon as nobody is lent it.
    pub(crate) fn identified(
        &mut self,
        segment: SegmentId,
        content: ContentId,
    ) -> Result<(), Violation> {
        if !self.residency.is_resident(segment) {
            return Ok(());
        }
        self.residency.identify(segment, content)?;
        let sources = self.residency.get(segment)?.sources.clone();
        self.touched.extend(self.catalogue.users(&sources)?);
        Ok(())
    }

    pub(crate) fn freed(&mut self, turn: &mut Turn<'_>, op: OpId) -> Result<(), Violation> {
        let Op::Free { segment } = self.ops.end(op)? else {
            return Err(Violation::WrongCompletion(op));
        };
        let ended = self.residency.end(segment)?;
        let State::Evicting(_) = ended.state else {
            return Err(Violation::WrongState(segment));
        };
        if !planted(Bug::LeakCharge) {
            self.ledger.end_free(ended.tier, ended.charge);
        }
        self.room_changed |= !planted(Bug::SleepThroughFree);
        for id in ended.left_by {
            self.catalogue.version_mut(id)?.evicting.remove(&segment);
            self.touched.insert(id);
        }
        for (session, request, freed) in self.evictions.freed(op, ended.charge.bytes) {
            turn.reply((session, request), Reply::Evicted { freed });
        }
        Ok(())
    }
}
