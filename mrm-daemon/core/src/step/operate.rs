//! What the operator asks.

use super::Turn;
use crate::Core;
use crate::admission::{Key, Target};
use crate::effect::{Refusal, Reply};
use crate::event::Wishes;
use crate::id::{Bytes, ModelId, OpId, SegmentId, Time, VersionId};
use crate::ledger::Tier;
use crate::residency::State;
use crate::violation::Violation;

impl Core {
    pub(crate) fn evict_version(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        version: VersionId,
    ) -> Result<(), Violation> {
        self.leases.session(key.0)?;
        self.expect_new(key)?;
        if !self.catalogue.versions.contains_key(&version) {
            turn.reply(key, Reply::Evicted { freed: Bytes::ZERO });
            return Ok(());
        }
        if let Some(user) = self.in_use(version)? {
            let holder = self.holder(user)?;
            turn.reply(key, Reply::Refused(Refusal::InUse(holder)));
            return Ok(());
        }
        for segment in self.idle_of(version)? {
            self.evict(turn, segment)?;
            self.room_changed = true;
        }
        // Frees of it that were under way already count: the answer says that the memory is free.
        let mut ops: Vec<OpId> = Vec::new();
        for segment in &self.catalogue.version(version)?.evicting {
            if let State::Evicting(op) = self.residency.get(*segment)?.state {
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

    /// Who keeps a version from being evicted: the version itself, or, when all that is resident
    /// of it is shared, a version that holds that.
    fn in_use(&self, version: VersionId) -> Result<Option<VersionId>, Violation> {
        if self.catalogue.version(version)?.held() || self.admission.stage(version).is_some() {
            return Ok(Some(version));
        }
        let mut holder = None;
        for segment in self.catalogue.distinct_segments(version)? {
            let segment_now = self.residency.get(segment)?;
            match segment_now.state {
                State::Loading(_) => return Ok(Some(version)),
                State::Resident(_) if segment_now.held == 0 => return Ok(None),
                State::Resident(_) | State::Evicting(_) => {}
            }
            for user in self.catalogue.users(&segment_now.sources)? {
                if self.catalogue.version(user)?.held() {
                    holder = Some(user);
                }
            }
        }
        Ok(holder)
    }

    /// The segments of a version that can be evicted.
    pub(crate) fn idle_of(&self, version: VersionId) -> Result<Vec<SegmentId>, Violation> {
        let mut segments: Vec<_> = self
            .catalogue
            .distinct_segments(version)?
            .into_iter()
            .collect();
        segments.retain(|segment| self.residency.is_idle(*segment));
        Ok(segments)
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

    pub(crate) fn set_limit(&mut self, limit: Bytes) -> Result<(), Violation> {
        self.ledger.set_limit(Tier::Host, limit);
        self.room_changed = true;
        Ok(())
    }

    pub(crate) fn drain(&mut self, turn: &mut Turn<'_>) -> Result<(), Violation> {
        self.draining = true;
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
