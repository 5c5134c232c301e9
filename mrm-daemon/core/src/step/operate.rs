//! What the operator asks.

use super::Turn;
use crate::Core;
use crate::admission::{Key, Target};
use crate::effect::{Refusal, Reply};
use crate::event::Wishes;
use crate::id::{Bytes, CopyId, ModelId, OpId, SegmentId, Time, VersionId};
use crate::ledger::Tier;
use crate::planted::{Bug, planted};
use crate::residency::State;
use crate::violation::Violation;
use std::collections::BTreeSet;

impl Core {
    pub(crate) fn evict_version(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        version: VersionId,
        tier: Option<Tier>,
    ) -> Result<(), Violation> {
        self.leases.session(key.0)?;
        self.expect_new(key)?;
        self.devices.expect_tier(tier.unwrap_or(Tier::Host))?;
        let Some(known) = self.catalogue.versions.get(&version) else {
            turn.reply(key, Reply::Evicted { freed: Bytes::ZERO });
            return Ok(());
        };
        let tiers = known.copies.keys().copied();
        let asked = tiers.filter(|of| tier.is_none_or(|tier| tier == *of));
        let copies: Vec<CopyId> = asked.map(|tier| CopyId { version, tier }).collect();
        let going = self.goes_with(&copies)?;
        if let Some((user, on)) = self.in_use(&copies, &going)? {
            let holder = self.holder(user, on)?;
            turn.reply(key, Reply::Refused(Refusal::InUse(holder)));
            return Ok(());
        }
        for segment in &going {
            if self.residency.is_idle(*segment) {
                self.evict(turn, *segment)?;
                self.room_changed = true;
            }
        }
        // Frees of it that were under way already count: the answer says that the memory is free.
        let mut ops: Vec<OpId> = Vec::new();
        for id in &self.catalogue.version(version)?.evicting {
            let segment = self.residency.get(*id)?;
            let asked = tier.is_none_or(|tier| tier == segment.tier) || going.contains(id);
            if let State::Evicting(op) = segment.state
                && asked
            {
                ops.push(op);
            }
        }
        if ops.is_empty() {
            turn.reply(key, Reply::Evicted { freed: Bytes::ZERO });
        } else {
            self.evictions.wait(key.0, key.1, &ops);
        }
        Ok(())
    }

    /// The segments that go with these copies: their own, and the table if no other copy that uses
    /// it has anything.
    fn goes_with(&self, copies: &[CopyId]) -> Result<BTreeSet<SegmentId>, Violation> {
        let mut going = BTreeSet::new();
        for copy in copies {
            let own = self.catalogue.own_segments(*copy)?;
            for id in self.catalogue.segments_of(*copy)? {
                let segment = self.residency.get(id)?;
                let mut needed = false;
                for user in self.catalogue.copies_with(segment.tier, &segment.sources)? {
                    let other = !copies.contains(&user);
                    needed |= other && !self.catalogue.own_segments(user)?.is_empty();
                }
                if !needed || own.contains(&id) {
                    going.insert(id);
                }
            }
        }
        Ok(going)
    }

    /// Who keeps these copies of a version from being evicted, and where: one of them, or, when
    /// all that is resident of them is shared, a copy that holds that.
    fn in_use(
        &self,
        copies: &[CopyId],
        going: &BTreeSet<SegmentId>,
    ) -> Result<Option<(CopyId, Tier)>, Violation> {
        for copy in copies {
            if self.catalogue.held(*copy)? || self.admission.stage(*copy).is_some() {
                return Ok(Some((*copy, copy.tier)));
            }
        }
        let (mut idle, mut holder) = (false, None);
        for copy in copies {
            let segments = self.catalogue.segments_of(*copy)?;
            for segment in segments.intersection(going) {
                let segment = self.residency.get(*segment)?;
                match segment.state {
                    State::Loading(_) => return Ok(Some((*copy, copy.tier))),
                    State::Resident(_) | State::Damaged | State::Evicting(_) => {
                        idle |= segment.held == 0;
                    }
                }
                for user in self.catalogue.copies_with(segment.tier, &segment.sources)? {
                    if self.catalogue.held(user)? {
                        holder = Some((user, segment.tier));
                    }
                }
            }
        }
        Ok(holder.filter(|_| !idle))
    }

    pub(crate) fn configure(
        &mut self,
        turn: &Turn<'_>,
        model: ModelId,
        wishes: Wishes,
    ) -> Result<(), Violation> {
        let entry = self.catalogue.models.entry(model).or_default();
        let before = std::mem::replace(&mut entry.wishes, wishes);
        let current = entry.current;
        if let Some(current) = current {
            self.touched.insert(current.version);
            self.change_version(current.version, turn.now, |version| {
                version.pins += usize::from(wishes.pinned);
                version.pins -= usize::from(before.pinned);
            })?;
        }
        self.catalogue.tidy_model(model);
        Ok(())
    }

    /// Lets a model stand for another version, or for none that is known. Its pin goes along.
    pub(crate) fn set_current(
        &mut self,
        turn: &Turn<'_>,
        model: ModelId,
        current: Option<(VersionId, Time)>,
    ) -> Result<(), Violation> {
        let entry = self.catalogue.model_mut(model)?;
        let wishes = entry.wishes;
        let pins = usize::from(wishes.pinned);
        let before = entry.current.take();
        entry.current = current.map(|(version, checked_at)| crate::catalogue::Current {
            version,
            checked_at,
        });
        let (old, new) = (
            before.map(|before| before.version),
            current.map(|(version, _)| version),
        );
        if old == new {
            return Ok(());
        }
        if let Some(new) = new {
            self.touched.insert(new);
            self.change_version(new, turn.now, |version| {
                version.models.insert(model);
                version.pins += pins;
            })?;
        }
        if let Some(old) = old {
            self.touched.insert(old);
            self.change_version(old, turn.now, |version| {
                version.models.remove(&model);
                version.orphan_eager = wishes.eager;
                version.pins -= pins;
            })?;
        }
        Ok(())
    }

    pub(crate) fn model_changed(
        &mut self,
        turn: &Turn<'_>,
        model: ModelId,
    ) -> Result<(), Violation> {
        let Some(entry) = self.catalogue.models.get_mut(&model) else {
            return Ok(());
        };
        if let Some(resolving) = &mut entry.resolving {
            resolving.outdated = true;
        }
        self.set_current(turn, model, None)?;
        self.catalogue.tidy_model(model);
        Ok(())
    }

    pub(crate) fn set_limit(
        &mut self,
        tier: Tier,
        budget: Bytes,
        limit: Bytes,
    ) -> Result<(), Violation> {
        self.devices.expect_tier(tier)?;
        if !self.devices.tier_is_lost(tier) {
            self.ledger.set_limit(tier, budget, limit);
            self.room_changed |= !planted(Bug::KeepAboveLimit);
        }
        Ok(())
    }

    pub(crate) fn drain(&mut self, turn: &mut Turn<'_>) -> Result<(), Violation> {
        self.draining = true;
        self.stop_ahead();
        let targets: Vec<Target> = self
            .admission
            .all()
            .map(|(_, waiter)| waiter.target)
            .collect();
        for target in targets {
            self.answer_all(turn, target, &Reply::Refused(Refusal::Draining))?;
        }
        Ok(())
    }
}
