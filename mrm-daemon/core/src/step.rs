//! What each event does to the parts together. One file for requests, one for the operator's
//! events, one for completions, one for room.

mod complete;
mod operate;
mod request;
mod room;

use crate::Core;
use crate::admission::{Key, Stage, Target};
use crate::catalogue::Version;
use crate::effect::{Effect, Origin, Refusal, Reply};
use crate::id::{ModelId, SegmentId, Time, VersionId};
use crate::lease::Lease;
use crate::ledger::{Amount, Tier};
use crate::ops::Op;
use crate::violation::{Record, Violation};
use std::sync::Arc;

/// The event being handled: when it is, and what is to be done about it.
pub(crate) struct Turn<'a> {
    pub(crate) now: Time,
    pub(crate) effects: &'a mut Vec<Effect>,
}

impl Turn<'_> {
    pub(crate) fn reply(&mut self, (session, request): Key, reply: Reply) {
        self.effects.push(Effect::Reply {
            session,
            request,
            reply,
        });
    }
}

impl Core {
    /// Changes what a version is held by, and tells its segments. The only way to do so.
    fn change_version(
        &mut self,
        id: VersionId,
        now: Time,
        change: impl FnOnce(&mut Version),
    ) -> Result<(), Violation> {
        let version = self.catalogue.version_mut(id)?;
        let before = version.held();
        change(version);
        let after = version.held();
        if before == after {
            return Ok(());
        }
        if !after {
            self.touched.insert(id);
        }
        for (_, segment) in self.catalogue.segments_of(id)? {
            if let Some(segment) = segment {
                self.room_changed |= self.residency.hold(segment, after, now)?;
            }
        }
        Ok(())
    }

    /// The segments of a version, if all of them are resident.
    fn whole(&mut self, id: VersionId) -> Result<Option<Arc<[SegmentId]>>, Violation> {
        if let Some(whole) = &self.catalogue.version(id)?.whole {
            return Ok(Some(Arc::clone(whole)));
        }
        let mut segments = Vec::new();
        for (_, segment) in self.catalogue.segments_of(id)? {
            match segment {
                Some(segment) if self.residency.is_resident(segment) => segments.push(segment),
                Some(_) | None => return Ok(None),
            }
        }
        let whole: Arc<[SegmentId]> = segments.into();
        self.catalogue.version_mut(id)?.whole = Some(Arc::clone(&whole));
        Ok(Some(whole))
    }

    /// Answers an open with a lease on a version that is whole.
    fn grant(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        lease: Lease,
        origin: Origin,
        segments: Arc<[SegmentId]>,
    ) -> Result<(), Violation> {
        let version = lease.version;
        let lease = self.leases.grant(key.0, lease)?;
        self.change_version(version, turn.now, |version| {
            version.leases += 1;
            version.last_used = Some(turn.now);
        })?;
        turn.reply(
            key,
            Reply::Opened {
                lease,
                version,
                origin,
                segments,
            },
        );
        Ok(())
    }

    /// Gives the open its model if all of it is resident, else lets it wait for the version's want.
    fn place(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        model: ModelId,
        version: VersionId,
        deadline: Time,
    ) -> Result<(), Violation> {
        if let Some(segments) = self.whole(version)? {
            return self.grant(turn, key, Lease { model, version }, Origin::Hit, segments);
        }
        if self.admission.waiting_for_versions() >= self.waiting_max {
            self.touched.insert(version);
            let waiting = self.admission.waiting_for_versions();
            turn.reply(key, Reply::Refused(Refusal::QueueFull { waiting }));
            return Ok(());
        }
        if self.admission.stage(version).is_none() {
            if let Some(refusal) = self.too_large(version)? {
                self.touched.insert(version);
                turn.reply(key, Reply::Refused(refusal));
                return Ok(());
            }
            self.admission.enqueue(version);
            self.room_changed = true;
        }
        self.wait(key, model, deadline, Target::Version(version))
    }

    fn wait(
        &mut self,
        key: Key,
        model: ModelId,
        deadline: Time,
        target: Target,
    ) -> Result<(), Violation> {
        self.leases.session_mut(key.0)?.waiting += 1;
        self.admission
            .wait(key, model, deadline, target, Origin::Joined);
        Ok(())
    }

    /// Takes an open out of what waits. The caller answers it, unless its session is gone, and
    /// then lets go of the target.
    fn unwait(&mut self, key: Key) -> Result<crate::admission::Waiter, Violation> {
        let waiter = self
            .admission
            .remove(key)
            .ok_or(Violation::Missing(Record::Waiter(key.0, key.1)))?;
        self.leases.session_mut(key.0)?.waiting -= 1;
        Ok(waiter)
    }

    /// Ends the want behind `target` if nobody waits for it any more. Its loads go on.
    fn let_go(&mut self, turn: &Turn<'_>, target: Target) -> Result<(), Violation> {
        if self.admission.first_waiting_for(target).is_some() {
            return Ok(());
        }
        match target {
            Target::Version(version) => self.end_want(turn, version),
            // What it stands for may have been kept for those who waited.
            Target::Model(model) => {
                let known = self.catalogue.models.get(&model);
                let current = known.and_then(|model| model.current);
                self.touched.extend(current.map(|current| current.version));
                Ok(())
            }
        }
    }

    /// Whether an open that waits may get this version: directly, or through a model that stands
    /// for it and is being resolved.
    fn awaited(&self, id: VersionId) -> Result<bool, Violation> {
        let waited_for = |model| {
            self.admission
                .first_waiting_for(Target::Model(model))
                .is_some()
        };
        let version = self.catalogue.version(id)?;
        Ok(self.admission.stage(id).is_some() || version.models.iter().copied().any(waited_for))
    }

    fn end_want(&mut self, turn: &Turn<'_>, version: VersionId) -> Result<(), Violation> {
        self.touched.insert(version);
        match self.admission.end_want(version) {
            Some(Stage::Loading) => {
                self.change_version(version, turn.now, |version| version.admitted = false)
            }
            // What it had claimed is for the next in the queue.
            Some(Stage::Room) => {
                self.room_changed = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Answers all that wait for a target, oldest first, and ends its want.
    fn answer_all(
        &mut self,
        turn: &mut Turn<'_>,
        target: Target,
        reply: &Reply,
    ) -> Result<(), Violation> {
        while let Some(key) = self.admission.first_waiting_for(target) {
            self.unwait(key)?;
            turn.reply(key, reply.clone());
        }
        self.let_go(turn, target)
    }

    /// Grants all that wait for a version, if it is whole.
    fn grant_if_whole(&mut self, turn: &mut Turn<'_>, version: VersionId) -> Result<(), Violation> {
        if self.admission.stage(version) != Some(Stage::Loading) {
            return Ok(());
        }
        let Some(segments) = self.whole(version)? else {
            return Ok(());
        };
        let target = Target::Version(version);
        while let Some(key) = self.admission.first_waiting_for(target) {
            let waiter = self.unwait(key)?;
            let lease = Lease {
                model: waiter.model,
                version,
            };
            self.grant(turn, key, lease, waiter.origin, Arc::clone(&segments))?;
        }
        self.end_want(turn, version)
    }

    /// Resident, not held: on its way out. Also a load whose content was there already.
    fn evict(&mut self, turn: &mut Turn<'_>, segment: SegmentId) -> Result<(), Violation> {
        let op = self.ops.start(Op::Free { segment });
        let users = self
            .catalogue
            .users(&self.residency.get(segment)?.sources)?;
        let (charge, sources) = self.residency.evict(segment, op, users.clone())?;
        self.ledger.start_free(Tier::Host, Amount::segment(charge));
        for user in users {
            let version = self.catalogue.version_mut(user)?;
            version.whole = None;
            version.evicting.insert(segment);
            self.touched.insert(user);
        }
        for source in sources {
            self.catalogue.source_mut(source)?.segment = None;
        }
        turn.effects.push(Effect::Free { op, segment });
        Ok(())
    }

    /// Whether a version can never fit.
    fn too_large(&self, version: VersionId) -> Result<Option<Refusal>, Violation> {
        let need = self.catalogue.need(version)?;
        if need.missing_segments == 0 {
            return Ok(None);
        }
        let all = Amount {
            bytes: need.all_bytes,
            segments: need.all_segments,
        };
        let limit = self.ledger.account(Tier::Host).limit;
        let refusal = Refusal::TooLarge {
            want: all.bytes,
            limit: limit.bytes,
        };
        Ok((!all.fits(limit)).then_some(refusal))
    }
}
