//! Opens that wait: for a resolution, for room, for a load.
//!
//! A want is what a copy lacks; all opens that are to get the copy wait on it. Wants for room stand in
//! one queue, in the order in which they came.

use crate::effect::Origin;
use crate::event::Wanted;
use crate::id::{Bytes, CopyId, DeviceId, ModelId, RequestId, SessionId, Tenant, Time, VersionId};
use crate::violation::{Record, Violation};
use std::collections::{BTreeMap, BTreeSet};

/// What names a request.
pub(crate) type Key = (SessionId, RequestId);

/// What an open waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// To know what the model stands for.
    Model(ModelId),
    /// The want of this copy.
    Copy(CopyId),
}

/// An open that waits.
#[derive(Debug, Clone)]
pub(crate) struct Waiter {
    pub(crate) model: ModelId,
    pub(crate) wanted: Wanted,
    pub(crate) deadline: Time,
    pub(crate) target: Target,
    pub(crate) origin: Origin,
    pub(crate) tenant: Tenant,
    /// What is kept free for it already, of what it wants kept free.
    pub(crate) reserved: Bytes,
    seq: u64,
}

/// How far a want is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// In the queue: nothing is charged for it yet.
    Room,
    /// Admitted: all that it lacks is charged and loading.
    Loading,
}

#[derive(Debug)]
struct Want {
    seq: u64,
    stage: Stage,
    /// How often it went back to the queue because a device had less than was thought.
    retries: u8,
}

/// All waiting opens and wants.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    seq: u64,
    waiters: BTreeMap<Key, Waiter>,
    by_target: BTreeMap<(Target, u64), Key>,
    by_deadline: BTreeSet<(Time, u64, Key)>,
    wants: BTreeMap<CopyId, Want>,
    queue: BTreeMap<u64, CopyId>,
    /// Of all tenants.
    waiting: Waiting,
    /// Of each that has any.
    of_tenant: BTreeMap<Tenant, Waiting>,
}

/// How many opens wait.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) all: usize,
    /// Those that wait for a copy rather than for a look at what a model stands for.
    pub(crate) for_copies: usize,
}

impl Waiting {
    fn add(&mut self, target: Target) {
        self.all += 1;
        self.for_copies += usize::from(matches!(target, Target::Copy(_)));
    }

    fn take(&mut self, target: Target) {
        self.all -= 1;
        self.for_copies -= usize::from(matches!(target, Target::Copy(_)));
    }
}

impl Admission {
    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    pub(crate) fn waiter(&self, key: Key) -> Option<&Waiter> {
        self.waiters.get(&key)
    }

    /// Lets an open of `tenant` wait.
    pub(crate) fn wait(
        &mut self,
        (key, tenant): (Key, Tenant),
        (model, wanted): (ModelId, Wanted),
        deadline: Time,
        target: Target,
    ) {
        let seq = self.next_seq();
        self.waiting.add(target);
        self.of_tenant.entry(tenant).or_default().add(target);
        self.waiters.insert(
            key,
            Waiter {
                model,
                wanted,
                deadline,
                target,
                origin: Origin::Joined,
                tenant,
                reserved: Bytes::ZERO,
                seq,
            },
        );
        self.by_target.insert((target, seq), key);
        self.by_deadline.insert((deadline, seq, key));
    }

    /// Takes an open out; its want stays, even if nobody waits for it any more.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Waiter> {
        let waiter = self.waiters.remove(&key)?;
        self.waiting.take(waiter.target);
        if let Some(of_tenant) = self.of_tenant.get_mut(&waiter.tenant) {
            of_tenant.take(waiter.target);
            if of_tenant.all == 0 {
                self.of_tenant.remove(&waiter.tenant);
            }
        }
        self.by_target.remove(&(waiter.target, waiter.seq));
        self.by_deadline.remove(&(waiter.deadline, waiter.seq, key));
        Some(waiter)
    }

    /// How many opens wait, of all tenants.
    pub(crate) const fn waiting(&self) -> Waiting {
        self.waiting
    }

    /// How many opens of a tenant wait.
    pub(crate) fn waiting_of(&self, tenant: Tenant) -> Waiting {
        self.of_tenant.get(&tenant).copied().unwrap_or_default()
    }

    /// The tenants of which opens wait.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = (Tenant, Waiting)> {
        self.of_tenant
            .iter()
            .map(|(tenant, waiting)| (*tenant, *waiting))
    }

    /// The opens that wait for `target`, oldest first.
    pub(crate) fn waiting_for(&self, target: Target) -> impl Iterator<Item = Key> {
        self.by_target
            .range((target, 0)..=(target, u64::MAX))
            .map(|(_, key)| *key)
    }

    /// The oldest open that waits for `target`.
    pub(crate) fn first_waiting_for(&self, target: Target) -> Option<Key> {
        self.waiting_for(target).next()
    }

    /// The opens of a session that wait.
    pub(crate) fn of_session(&self, session: SessionId) -> Vec<Key> {
        let range = (session, RequestId(0))..=(session, RequestId(u64::MAX));
        self.waiters.range(range).map(|(key, _)| *key).collect()
    }

    /// Notes what an open did to get its model. What was loaded for it stays loaded, if something
    /// else is only copied for it later.
    pub(crate) fn set_origin(&mut self, key: Key, origin: Origin) {
        if let Some(waiter) = self.waiters.get_mut(&key)
            && waiter.origin != Origin::Loaded
        {
            waiter.origin = origin;
        }
    }

    /// Notes what is kept free for an open while it waits.
    pub(crate) fn set_reserved(&mut self, key: Key, reserved: Bytes) {
        if let Some(waiter) = self.waiters.get_mut(&key) {
            waiter.reserved = reserved;
        }
    }

    /// The earliest time at which an open gives up.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.by_deadline.first().map(|(deadline, _, _)| *deadline)
    }

    /// An open whose time has come.
    pub(crate) fn first_expired(&self, now: Time) -> Option<Key> {
        let (deadline, _, key) = self.by_deadline.first()?;
        (*deadline <= now).then_some(*key)
    }

    /// Puts a want at the end of the queue.
    pub(crate) fn enqueue(&mut self, copy: CopyId) {
        let seq = self.next_seq();
        let want = Want {
            seq,
            stage: Stage::Room,
            retries: 0,
        };
        self.wants.insert(copy, want);
        self.queue.insert(seq, copy);
    }

    /// How far the want of a copy is, if it has one.
    pub(crate) fn stage(&self, copy: CopyId) -> Option<Stage> {
        self.wants.get(&copy).map(|want| want.stage)
    }

    /// Takes a want from the queue: it is being loaded.
    pub(crate) fn admit(&mut self, copy: CopyId) -> Result<(), Violation> {
        let want = self.want_mut(copy)?;
        want.stage = Stage::Loading;
        let seq = want.seq;
        self.queue.remove(&seq);
        Ok(())
    }

    /// Puts an admitted want back into the queue, where it was, unless that was done `max` times.
    pub(crate) fn readmit(&mut self, copy: CopyId, max: u8) -> Result<bool, Violation> {
        let want = self.want_mut(copy)?;
        if want.retries >= max {
            return Ok(false);
        }
        want.retries += 1;
        want.stage = Stage::Room;
        let seq = want.seq;
        self.queue.insert(seq, copy);
        Ok(true)
    }

    /// Puts an admitted want back into the queue, where it was: who waits still lacks room that is
    /// to stay free.
    pub(crate) fn requeue(&mut self, copy: CopyId) -> Result<(), Violation> {
        let want = self.want_mut(copy)?;
        want.stage = Stage::Room;
        let seq = want.seq;
        self.queue.insert(seq, copy);
        Ok(())
    }

    /// Ends a want; returns how far it was.
    pub(crate) fn end_want(&mut self, copy: CopyId) -> Option<Stage> {
        let want = self.wants.remove(&copy)?;
        self.queue.remove(&want.seq);
        Some(want.stage)
    }

    fn want_mut(&mut self, copy: CopyId) -> Result<&mut Want, Violation> {
        let want = self.wants.get_mut(&copy);
        want.ok_or(Violation::Missing(Record::Want(copy)))
    }

    /// The copies in the queue, first come first.
    pub(crate) fn queue(&self) -> Vec<CopyId> {
        self.queue.values().copied().collect()
    }

    /// How many wants are in the queue.
    pub(crate) fn queue_len(&self) -> usize {
        self.queue.len()
    }

    /// How many opens wait.
    pub(crate) fn len(&self) -> usize {
        self.waiters.len()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (Key, &Waiter)> {
        self.waiters.iter().map(|(key, waiter)| (*key, waiter))
    }

    pub(crate) fn wants(&self) -> impl Iterator<Item = (CopyId, Stage)> {
        self.wants.iter().map(|(copy, want)| (*copy, want.stage))
    }

    /// The wants of a version's copies.
    pub(crate) fn wants_of(&self, version: VersionId) -> impl Iterator<Item = (CopyId, Stage)> {
        let last = CopyId::device(version, DeviceId(u16::MAX));
        let range = CopyId::host(version)..=last;
        self.wants
            .range(range)
            .map(|(copy, want)| (*copy, want.stage))
    }

    /// Sizes of the indexes, for the check of invariants.
    pub(crate) fn index_lens(&self) -> (usize, usize) {
        (self.by_target.len(), self.by_deadline.len())
    }
}
