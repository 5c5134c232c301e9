//! What clients ask.

use super::Turn;
use crate::Core;
use crate::admission::{Key, Stage, Target};
use crate::effect::{Effect, Origin, Refusal, Reply};
use crate::event::Wanted;
use crate::id::{Bytes, CopyId, LeaseId, ModelId, RequestId, SessionId, Time, VersionId};
use crate::lease::Lease;
use crate::ops::Op;
use crate::planted::{Bug, planted};
use crate::violation::Violation;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

impl Core {
    pub(crate) fn open(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        (model, wanted): (ModelId, Wanted),
        deadline: Time,
    ) -> Result<(), Violation> {
        let session = self.leases.session(key.0)?;
        let (held, waiting) = (session.leases, session.waiting);
        self.expect_new(key)?;
        self.expect_devices(key, &wanted)?;
        if self.draining {
            turn.reply(key, Reply::Refused(Refusal::Draining));
            return Ok(());
        }
        if held + waiting >= self.leases_per_session_max {
            turn.reply(key, Reply::Refused(Refusal::TooManyLeases { held }));
            return Ok(());
        }
        let known = self.catalogue.models.get(&model);
        let current = known.and_then(|model| model.current);
        let copy = match current {
            Some(current) => self.chosen(key.0, current.version, &wanted)?,
            None => None,
        };
        let whole = match copy {
            Some(copy) => self.whole(copy)?,
            None => None,
        };
        let fresh = current
            .is_some_and(|current| turn.now < current.checked_at.after_ms(self.revalidate_ms))
            || planted(Bug::BelieveForever) && current.is_some();
        let is_whole = whole.is_some();
        match (copy, whole) {
            (Some(copy), Some(segments))
                if fresh && self.reserve_now(key.0, copy.tier, wanted.reserve_on(copy.tier))? =>
            {
                let lease = Lease {
                    model,
                    copy,
                    since: turn.now,
                    reserve: wanted.reserve_on(copy.tier),
                };
                self.grant(turn, key, lease, Origin::Hit, segments)?;
                self.look_again(turn, model);
                return Ok(());
            }
            // A second look at what is in memory is never turned away: those who wait for room
            // must not be able to keep others from what needs none.
            (_, Some(_)) => {}
            (_, None) => {
                if let Some(full) = self.queue_full(key.0, |waiting| waiting.all)? {
                    turn.reply(key, Reply::Refused(full));
                    return Ok(());
                }
            }
        }
        // Who lacks room to be kept free waits, and what is in memory may go meanwhile.
        let keeps_free = |copy: CopyId| wanted.reserve_on(copy.tier) > Bytes::ZERO;
        let waits = is_whole && copy.is_some_and(keeps_free);
        match copy {
            Some(copy) if fresh && !waits && self.catalogue.lacks_nothing(copy)? => {
                self.place(turn, key, (model, wanted), copy.version, deadline)
            }
            // What must be loaded is resolved first, however fresh: the shell keeps files open
            // only for those who wait.
            Some(_) | None => {
                self.resolve(turn, model);
                self.wait(key, (model, wanted), deadline, Target::Model(model))
            }
        }
    }

    /// The copy that an open would get of what its model stands for, as far as known.
    fn chosen(
        &mut self,
        session: SessionId,
        version: VersionId,
        wanted: &Wanted,
    ) -> Result<Option<CopyId>, Violation> {
        let tier = self.choose(session, version, wanted)?.ok();
        Ok(tier.map(|tier| CopyId { version, tier }))
    }

    fn expect_devices(&self, key: Key, wanted: &Wanted) -> Result<(), Violation> {
        let devices = match wanted {
            Wanted::Host | Wanted::Layout => return Ok(()),
            Wanted::Device(any) if any.devices.is_empty() => {
                return Err(Violation::NoDevice(key.0, key.1));
            }
            Wanted::Device(any) | Wanted::Best(any) => &any.devices,
        };
        devices
            .iter()
            .try_for_each(|device| self.devices.expect(*device))
    }

    /// Starts a resolution, unless one is in flight.
    pub(crate) fn resolve(&mut self, turn: &mut Turn<'_>, model: ModelId) {
        let entry = self.catalogue.models.entry(model).or_default();
        if entry.resolving.is_none() {
            let op = self.ops.start(Op::Resolve {
                model,
                asked_at: turn.now,
            });
            entry.resolving = Some(crate::catalogue::Resolving {
                op,
                outdated: false,
            });
            turn.effects.push(Effect::Resolve { op, model });
        }
    }

    /// Asks again what a model in use stands for before that is too old to be believed, so that
    /// none of its hits has to wait for the answer.
    fn look_again(&mut self, turn: &mut Turn<'_>, model: ModelId) {
        let known = self.catalogue.models.get(&model);
        let current = known.and_then(|model| model.current);
        let half_us = self.revalidate_ms.saturating_mul(500);
        if current.is_some_and(|current| turn.now.us_since(current.checked_at) >= half_us) {
            self.resolve(turn, model);
        }
    }

    pub(crate) fn close(
        &mut self,
        turn: &mut Turn<'_>,
        session: SessionId,
        request: Option<RequestId>,
        lease: LeaseId,
    ) -> Result<(), Violation> {
        self.leases.session(session)?;
        self.expect_new_if_any(session, request)?;
        let id = lease;
        let reply = match self.leases.release(session, id) {
            Some(lease) => {
                self.lease_ended(turn, (session, id), lease)?;
                if let (true, Some(request)) = (planted(Bug::AnswerTwice), request) {
                    turn.reply((session, request), Reply::Closed);
                }
                Reply::Closed
            }
            None => Reply::Refused(Refusal::UnknownLease),
        };
        if let Some(request) = request {
            turn.reply((session, request), reply);
        }
        Ok(())
    }

    pub(super) fn lease_ended(
        &mut self,
        turn: &mut Turn<'_>,
        id: (SessionId, LeaseId),
        lease: Lease,
    ) -> Result<(), Violation> {
        let now = turn.now;
        let subject = self.subject(lease.copy.version).unwrap_or(lease.model);
        if self.residency.has_twins() {
            self.touched.insert(lease.copy.version);
        }
        self.policies
            .history
            .ran(subject, now.us_since(lease.since));
        self.reserve_ended(id.0, &lease)?;
        if self.quarantine.holds(id) {
            return self.tainted_lease_ended(turn, id, lease.copy);
        }
        self.change_copy(lease.copy, now, |copy| {
            copy.leases -= 1;
            copy.last_used = Some(now);
        })
    }

    pub(crate) fn cancel(
        &mut self,
        turn: &mut Turn<'_>,
        session: SessionId,
        request: Option<RequestId>,
        target: RequestId,
    ) -> Result<(), Violation> {
        self.leases.session(session)?;
        self.expect_new_if_any(session, request)?;
        let key = (session, target);
        let was_pending = self.admission.waiter(key).is_some();
        if was_pending {
            let waiter = self.unwait(key)?;
            turn.reply(key, Reply::Refused(Refusal::Cancelled));
            if !planted(Bug::KeepEmptyWant) {
                self.let_go(turn, waiter.target)?;
            }
        }
        if let Some(request) = request {
            turn.reply((session, request), Reply::Cancelled { was_pending });
        }
        Ok(())
    }

    pub(crate) fn session_closed(
        &mut self,
        turn: &mut Turn<'_>,
        session: SessionId,
    ) -> Result<(), Violation> {
        for key in self.admission.of_session(session) {
            let waiter = self.unwait(key)?;
            self.let_go(turn, waiter.target)?;
        }
        while !planted(Bug::KeepDeadLease)
            && let Some((id, lease)) = self.leases.release_first(session)
        {
            self.lease_ended(turn, (session, id), lease)?;
        }
        self.evictions.drop_session(session);
        self.leases.close_session(session)
    }

    /// Gives up the opens whose time has come. What was started for them goes on.
    pub(crate) fn tick(&mut self, turn: &mut Turn<'_>) -> Result<(), Violation> {
        self.end_expectations(turn)?;
        let mut holders = BTreeMap::new();
        while !planted(Bug::SleepThroughDeadline)
            && let Some(key) = self.admission.first_expired(turn.now)
        {
            let waiter = self.unwait(key)?;
            let refusal = match waiter.target {
                Target::Copy(copy) if self.admission.stage(copy) == Some(Stage::Room) => {
                    let reserve = waiter.wanted.reserve_on(copy.tier);
                    if let Some(over) = self.over_share(waiter.tenant, copy.tier, reserve)? {
                        over
                    } else {
                        let tier = self.short_of(copy, reserve)?;
                        let of_tier = match holders.entry(tier) {
                            Entry::Occupied(known) => known.into_mut(),
                            Entry::Vacant(unknown) => unknown.insert(self.holders(tier)?),
                        };
                        self.no_room((copy, reserve), tier, of_tier.clone())?
                    }
                }
                Target::Copy(_) | Target::Model(_) => Refusal::TimedOut,
            };
            turn.reply(key, Reply::Refused(refusal));
            self.let_go(turn, waiter.target)?;
        }
        self.look_if_due(turn);
        Ok(())
    }

    fn expect_new_if_any(
        &self,
        session: SessionId,
        request: Option<RequestId>,
    ) -> Result<(), Violation> {
        request.map_or(Ok(()), |request| self.expect_new((session, request)))
    }

    /// A request whose id awaits an answer cannot come again.
    pub(crate) fn expect_new(&self, (session, request): Key) -> Result<(), Violation> {
        let known = self.admission.waiter((session, request)).is_some()
            || self.evictions.contains(session, request);
        if known {
            Err(Violation::RequestExists(session, request))
        } else {
            Ok(())
        }
    }
}
