//! What clients ask.

use super::Turn;
use crate::Core;
use crate::admission::{Key, Stage, Target};
use crate::effect::{Effect, Refusal, Reply};
use crate::id::{LeaseId, ModelId, RequestId, SessionId, Time};
use crate::lease::Lease;
use crate::ops::Op;
use crate::violation::Violation;

impl Core {
    pub(crate) fn open(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        model: ModelId,
        deadline: Time,
    ) -> Result<(), Violation> {
        let session = self.leases.session(key.0)?;
        let (held, waiting) = (session.leases, session.waiting);
        self.expect_new(key)?;
        if self.draining {
            turn.reply(key, Reply::Refused(Refusal::Draining));
            return Ok(());
        }
        if held + waiting >= self.leases_per_session_max {
            turn.reply(key, Reply::Refused(Refusal::TooManyLeases { held }));
            return Ok(());
        }
        let current = self
            .catalogue
            .models
            .get(&model)
            .and_then(|model| model.current);
        let fresh =
            current.filter(|current| turn.now < current.checked_at.after_ms(self.revalidate_ms));
        if let Some(current) = fresh
            && let Some(segments) = self.whole(current.version)?
        {
            let lease = Lease {
                model,
                version: current.version,
            };
            return self.grant(turn, key, lease, crate::effect::Origin::Hit, segments);
        }
        // A second look at what is in memory is never turned away: those who wait for room must
        // not be able to keep others from what needs none.
        let in_memory = match current {
            Some(current) => self.whole(current.version)?.is_some(),
            None => false,
        };
        if !in_memory && self.admission.len() >= self.waiting_max {
            let waiting = self.admission.len();
            turn.reply(key, Reply::Refused(Refusal::QueueFull { waiting }));
            return Ok(());
        }
        match fresh {
            Some(current) if self.catalogue.need(current.version)?.missing_segments == 0 => {
                self.place(turn, key, model, current.version, deadline)
            }
            // What must be loaded is resolved first, however fresh: the shell keeps files open
            // only for those who wait.
            Some(_) | None => {
                self.resolve(turn, model);
                self.wait(key, model, deadline, Target::Model(model))
            }
        }
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

    pub(crate) fn close(
        &mut self,
        turn: &mut Turn<'_>,
        session: SessionId,
        request: Option<RequestId>,
        lease: LeaseId,
    ) -> Result<(), Violation> {
        self.leases.session(session)?;
        self.expect_new_if_any(session, request)?;
        let reply = match self.leases.release(session, lease) {
            Some(lease) => {
                self.lease_ended(turn, lease)?;
                Reply::Closed
            }
            None => Reply::Refused(Refusal::UnknownLease),
        };
        if let Some(request) = request {
            turn.reply((session, request), reply);
        }
        Ok(())
    }

    fn lease_ended(&mut self, turn: &Turn<'_>, lease: Lease) -> Result<(), Violation> {
        let now = turn.now;
        self.change_version(lease.version, now, |version| {
            version.leases -= 1;
            version.last_used = Some(now);
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
            self.let_go(turn, waiter.target)?;
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
        while let Some(lease) = self.leases.release_first(session) {
            self.lease_ended(turn, lease)?;
        }
        self.evictions.drop_session(session);
        self.leases.close_session(session)
    }

    /// Gives up the opens whose time has come. What was started for them goes on.
    pub(crate) fn tick(&mut self, turn: &mut Turn<'_>) -> Result<(), Violation> {
        let mut holders = None;
        while let Some(key) = self.admission.first_expired(turn.now) {
            let waiter = self.unwait(key)?;
            let refusal = match waiter.target {
                Target::Version(version) if self.admission.stage(version) == Some(Stage::Room) => {
                    let holders = match &holders {
                        Some(holders) => holders,
                        None => holders.insert(self.holders()?),
                    };
                    self.no_room(version, holders.clone())?
                }
                Target::Version(_) | Target::Model(_) => Refusal::TimedOut,
            };
            turn.reply(key, Reply::Refused(refusal));
            self.let_go(turn, waiter.target)?;
        }
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
