//! What the shell has done.

use super::Turn;
use crate::Core;
use crate::admission::Target;
use crate::effect::Reply;
use crate::event::{Fault, Resolution};
use crate::id::{ContentId, ModelId, OpId, SegmentId, Time};
use crate::ledger::{Amount, Tier};
use crate::ops::Op;
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
        if resolving.is_some_and(|resolving| resolving.outdated) {
            if self.admission.first_waiting_for(target).is_some() {
                self.resolve(turn, model);
            }
        } else {
            match outcome {
                Ok(resolution) => self.resolved_to(turn, model, asked_at, &resolution)?,
                // What it stood for is kept, and with it a pin; the next open asks again.
                Err(fault) => self.answer_all(turn, target, &Reply::Failed(fault))?,
            }
        }
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
        self.catalogue.learn(resolution)?;
        self.set_current(turn, model, Some((version, asked_at)))?;
        self.touched.insert(version);
        while let Some(key) = self.admission.first_waiting_for(Target::Model(model)) {
            let waiter = self.unwait(key)?;
            self.place(turn, key, model, version, waiter.deadline)?;
        }
        Ok(())
    }

    pub(crate) fn loaded(
        &mut self,
        turn: &mut Turn<'_>,
        op: OpId,
        outcome: Result<ContentId, Fault>,
    ) -> Result<(), Violation> {
        let Op::Load { segment } = self.ops.end(op)? else {
            return Err(Violation::WrongCompletion(op));
        };
        let sources = self.residency.get(segment)?.sources.clone();
        let users = self.catalogue.users(&sources)?;
        self.touched.extend(users.iter().copied());
        self.room_changed = true;
        match outcome {
            Ok(content) => {
                self.arrived(turn, segment, content)?;
                for user in users {
                    self.grant_if_whole(turn, user)?;
                }
            }
            Err(fault) => {
                let ended = self.residency.end(segment)?;
                self.ledger
                    .refund(Tier::Host, Amount::segment(ended.charge));
                for source in sources {
                    self.catalogue.source_mut(source)?.segment = None;
                }
                for user in users {
                    let failed = Reply::Failed(fault.clone());
                    self.answer_all(turn, Target::Version(user), &failed)?;
                }
            }
        }
        Ok(())
    }

    /// A load brought a content: it is resident now, or was already in another segment.
    fn arrived(
        &mut self,
        turn: &mut Turn<'_>,
        segment: SegmentId,
        content: ContentId,
    ) -> Result<(), Violation> {
        let Some(existing) = self.residency.holding(content) else {
            return self.residency.arrive(segment, content, turn.now);
        };
        for source in self.residency.redirect(segment, existing, turn.now)? {
            self.catalogue.source_mut(source)?.segment = Some(existing);
        }
        self.evict(turn, segment)
    }

    pub(crate) fn freed(&mut self, turn: &mut Turn<'_>, op: OpId) -> Result<(), Violation> {
        let Op::Free { segment } = self.ops.end(op)? else {
            return Err(Violation::WrongCompletion(op));
        };
        let ended = self.residency.end(segment)?;
        let State::Evicting(_) = ended.state else {
            return Err(Violation::WrongState(segment));
        };
        self.ledger
            .end_free(Tier::Host, Amount::segment(ended.charge));
        self.room_changed = true;
        for id in ended.left_by {
            self.catalogue.version_mut(id)?.evicting.remove(&segment);
            self.touched.insert(id);
        }
        for (session, request, freed) in self.evictions.freed(op, ended.charge) {
            turn.reply((session, request), Reply::Evicted { freed });
        }
        Ok(())
    }
}
