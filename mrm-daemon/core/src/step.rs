//! What each event does to the parts together. One file for requests, one for the operator's
//! events, one for completions, one for devices that are lost or short, one for memory that is
//! damaged; then which copy an open
//! gets, what that takes, how room is made for it, and who holds it.

mod adopt;
mod ahead;
mod complete;
mod device;
mod early;
mod holders;
mod operate;
mod place;
mod plan;
mod quarantine;
mod request;
mod reserve;
mod room;
mod victims;
mod worth;

use crate::Core;
use crate::admission::{Key, Stage, Target, Waiter};
use crate::catalogue::{Copy, Version};
use crate::effect::{Effect, Origin, Reply};
use crate::event::{Part, Wanted};
use crate::id::{CopyId, ModelId, SegmentId, Time, VersionId};
use crate::lease::Lease;
use crate::ledger::Tier;
use crate::ops::Op;
use crate::planted::{Bug, planted};
use crate::violation::{Record, Violation};
use std::sync::Arc;

pub(crate) use plan::Claims;

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
    /// Changes what a copy is held by, and tells its segments.
    fn change_copy(
        &mut self,
        id: CopyId,
        now: Time,
        change: impl FnOnce(&mut Copy),
    ) -> Result<(), Violation> {
        let version = self.catalogue.version_mut(id.version)?;
        let before = version.held(id.tier);
        let copy = version.copies.get_mut(&id.tier);
        change(copy.ok_or(Violation::Missing(Record::Copy(id)))?);
        let after = version.held(id.tier);
        self.tell_segments(id, now, before, after)
    }

    /// Changes what all copies of a version are held by, and tells their segments.
    fn change_version(
        &mut self,
        id: VersionId,
        now: Time,
        change: impl FnOnce(&mut Version),
    ) -> Result<(), Violation> {
        let version = self.catalogue.version_mut(id)?;
        let tiers = version.copies.keys();
        let before: Vec<(Tier, bool)> = tiers.map(|tier| (*tier, version.held(*tier))).collect();
        change(version);
        for (tier, before) in before {
            let copy = CopyId { version: id, tier };
            let after = self.catalogue.held(copy)?;
            self.tell_segments(copy, now, before, after)?;
        }
        Ok(())
    }

    /// Tells the segments of a copy if it came to be held, or is held no longer.
    fn tell_segments(
        &mut self,
        id: CopyId,
        now: Time,
        before: bool,
        after: bool,
    ) -> Result<(), Violation> {
        if before == after {
            return Ok(());
        }
        if !after {
            self.touched.insert(id.version);
        }
        for (_, _, segment) in self.catalogue.places(id)? {
            if let Some(segment) = segment {
                self.room_changed |= self.residency.hold(segment, after, now)?;
            }
        }
        Ok(())
    }

    /// The segments of a copy, if all of them are resident.
    fn whole(&mut self, id: CopyId) -> Result<Option<Arc<[SegmentId]>>, Violation> {
        if let Some(whole) = &self.catalogue.copy(id)?.whole {
            return Ok(Some(Arc::clone(whole)));
        }
        let mut segments = Vec::new();
        for (_, _, segment) in self.catalogue.places(id)? {
            match segment {
                Some(segment)
                    if self.residency.is_resident(segment) || planted(Bug::GrantEarly) =>
                {
                    segments.push(segment);
                }
                Some(_) | None => return Ok(None),
            }
        }
        let whole: Arc<[SegmentId]> = segments.into();
        self.catalogue.copy_mut(id)?.whole = Some(Arc::clone(&whole));
        Ok(Some(whole))
    }

    /// Answers an open with a lease on a copy that is whole.
    fn grant(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        lease: Lease,
        origin: Origin,
        segments: Arc<[SegmentId]>,
    ) -> Result<(), Violation> {
        let CopyId { version, tier } = lease.copy;
        let (copy, reserve) = (lease.copy, lease.reserve);
        self.note_use(copy, lease.model, turn.now)?;
        if tier != Tier::Host {
            let subject = self.subject(version).unwrap_or(lease.model);
            self.policies.history.reserved(subject, reserve);
        }
        let lease = self.leases.grant(key.0, lease)?;
        self.change_copy(copy, turn.now, |copy| {
            copy.leases += 1;
            copy.reserved = copy.reserved.saturating_add(reserve);
            copy.last_used = Some(turn.now);
        })?;
        turn.reply(
            key,
            Reply::Opened {
                lease,
                version,
                tier,
                origin,
                segments,
            },
        );
        Ok(())
    }

    fn wait(
        &mut self,
        key: Key,
        what: (ModelId, Wanted),
        deadline: Time,
        target: Target,
    ) -> Result<(), Violation> {
        let session = self.leases.session_mut(key.0)?;
        session.waiting += 1;
        self.admission
            .wait((key, session.tenant), what, deadline, target);
        Ok(())
    }

    /// Takes an open out of what waits, and gives back what was kept free for it. The caller answers
    /// it, unless its session is gone, and then lets go of the target.
    fn unwait(&mut self, key: Key) -> Result<Waiter, Violation> {
        self.unreserve_waiter(key)?;
        self.unwait_to_grant(key)
    }

    /// The same, where a lease takes over what was kept free for it.
    fn unwait_to_grant(&mut self, key: Key) -> Result<Waiter, Violation> {
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
            if let Target::Copy(copy) = target {
                // Those who are left may want more kept free than who is gone.
                let in_queue = self.admission.stage(copy) == Some(Stage::Room);
                self.room_changed |= in_queue && copy.tier != Tier::Host;
            }
            return Ok(());
        }
        match target {
            Target::Copy(copy) => self.end_want(turn, copy),
            // What it stands for may have been kept for those who waited.
            Target::Model(model) => {
                let known = self.catalogue.models.get(&model);
                let current = known.and_then(|model| model.current);
                self.touched.extend(current.map(|current| current.version));
                Ok(())
            }
        }
    }

    /// Whether what is idle of a version may be of use to an open that waits: one whose want is in
    /// the queue, or one of a model that stands for the version and is being resolved.
    fn awaited(&self, id: VersionId) -> Result<bool, Violation> {
        let waited_for = |model| {
            self.admission
                .first_waiting_for(Target::Model(model))
                .is_some()
        };
        let mut wants = self.admission.wants_of(id);
        let version = self.catalogue.version(id)?;
        Ok(wants.any(|(_, stage)| stage == Stage::Room)
            || version.models.iter().copied().any(waited_for))
    }

    fn end_want(&mut self, turn: &Turn<'_>, copy: CopyId) -> Result<(), Violation> {
        self.touched.insert(copy.version);
        match self.admission.end_want(copy) {
            Some(Stage::Loading) => self.change_copy(copy, turn.now, |copy| copy.admitted = false),
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
            if !planted(Bug::LoseWaiter) {
                turn.reply(key, reply.clone());
            }
        }
        self.let_go(turn, target)
    }

    /// Grants those that wait for a copy, if it is whole, and what they want kept free is. The others
    /// go on waiting for that.
    fn grant_if_whole(&mut self, turn: &mut Turn<'_>, copy: CopyId) -> Result<(), Violation> {
        if self.admission.stage(copy) != Some(Stage::Loading) {
            return Ok(());
        }
        let Some(segments) = self.whole(copy)? else {
            return Ok(());
        };
        let target = Target::Copy(copy);
        for key in self.ready_for(copy) {
            let waiter = self.unwait_to_grant(key)?;
            let lease = Lease {
                model: waiter.model,
                copy,
                since: turn.now,
                reserve: waiter.reserved,
            };
            self.grant(turn, key, lease, waiter.origin, Arc::clone(&segments))?;
        }
        if self.admission.first_waiting_for(target).is_none() {
            return self.end_want(turn, copy);
        }
        self.room_changed = true;
        self.admission.requeue(copy)?;
        self.change_copy(copy, turn.now, |copy| copy.admitted = false)
    }

    /// Resident, not held: on its way out. Also a load whose content was there already, or whose
    /// device is lost.
    fn evict(&mut self, turn: &mut Turn<'_>, segment: SegmentId) -> Result<(), Violation> {
        let op = self.ops.start(Op::Free { segment });
        let going = self.residency.get(segment)?;
        let tier = going.tier;
        let copies = self.catalogue.copies_with(tier, &going.sources)?;
        let users = self.catalogue.users(&going.sources)?;
        let (charge, sources) = self.residency.evict(segment, op, users.clone())?;
        self.ledger.start_free(tier, charge);
        self.policies.dropped(tier, users.iter().copied())?;
        users.iter().for_each(|user| self.ahead.left(*user));
        for copy in copies {
            self.catalogue.copy_mut(copy)?.whole = None;
            self.demoted(turn, copy, tier)?;
        }
        for user in users {
            self.catalogue.version_mut(user)?.evicting.insert(segment);
            self.touched.insert(user);
        }
        for source in sources {
            self.catalogue.set_segment(source, tier, None)?;
        }
        turn.effects.push(Effect::Free { op, segment, tier });
        if planted(Bug::DoubleFree) {
            turn.effects.push(Effect::Free { op, segment, tier });
        }
        Ok(())
    }

    /// A copy on a device loses what it has there: the host's copy, if there is one, is the best
    /// that is left, and counts as used now.
    fn demoted(&mut self, turn: &Turn<'_>, copy: CopyId, tier: Tier) -> Result<(), Violation> {
        let host = CopyId::host(copy.version);
        if tier == Tier::Host || !self.catalogue.version(copy.version)?.has(Part::File) {
            return Ok(());
        }
        for segment in self.whole(host)?.iter().flat_map(|whole| whole.iter()) {
            if self.residency.is_idle(*segment) {
                self.residency.refresh(*segment, turn.now)?;
            }
        }
        Ok(())
    }
}
