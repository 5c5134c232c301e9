//! What the decider asks for, done in no time, or in as much as it would take.

use super::books::Loading;
use super::{Due, Engine, SimulationError};
use mrm_core::effect::{Effect, Feed, Refusal, Reply};
use mrm_core::event::{Event, Part, Resolution, SegmentFact};
use mrm_core::id::{Bytes, ContentId, ModelId, OpId, SegmentId, SourceId, VersionId};
use mrm_core::ledger::Tier;
use std::time::Instant;

/// A model's image is a source of its own, far from those of the files.
const IMAGES: u64 = 1 << 40;

/// A load that ended well. Every segment has a content of its own.
pub(super) const fn loaded(op: OpId, segment: SegmentId) -> Event {
    let outcome = Ok(ContentId(segment.0));
    Event::Loaded { op, outcome }
}

impl Engine<'_> {
    /// Tells the decider something, and does what it asks for until it asks no more.
    pub(super) fn told(&mut self, event: Event) -> Result<(), SimulationError> {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut effects = std::mem::take(&mut self.effects);
            let began = self.setup.clocked.then(Instant::now);
            let handled = self.core.handle(self.now, event, &mut effects);
            if let Some(began) = began
                && effects
                    .iter()
                    .any(|effect| matches!(effect, Effect::Free { .. }))
            {
                self.books.decided(began.elapsed());
            }
            handled.map_err(|violation| SimulationError::Violation {
                request: self.number,
                violation,
            })?;
            let from = events.len();
            for effect in effects.drain(..) {
                self.carry_out(effect, &mut events);
            }
            events[from..].reverse();
            self.effects = effects;
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect, events: &mut Vec<Event>) {
        match effect {
            Effect::Resolve { op, model } => {
                let outcome = Ok(self.resolution(model));
                events.push(Event::Resolved { op, outcome });
            }
            Effect::Load {
                op,
                segment,
                version,
                tier,
                feed,
                ..
            } => {
                let model = version.0 as usize;
                let took_us = self.took_us(model, &feed, tier);
                let loading = Loading {
                    model,
                    tier,
                    took_us,
                };
                self.books.started(segment, loading, self.now);
                if self.setup.timed {
                    let at = mrm_core::id::Time(self.now.0.saturating_add(took_us));
                    self.at(at, Due::Loaded(op, segment, took_us));
                    return;
                }
                self.books.loaded(segment, self.now);
                events.push(Event::Took { op, took_us });
                events.push(loaded(op, segment));
            }
            Effect::Free { op, segment, .. } => {
                self.books.freed(segment, self.now);
                events.push(Event::Freed { op });
            }
            Effect::Reply { request, reply, .. } => self.answered(request.0, &reply),
            Effect::Adopted { .. } | Effect::Revoke { .. } | Effect::Forget { .. } => {}
        }
    }

    fn resolution(&self, model: ModelId) -> Resolution {
        let bytes = self.setup.workload.models.get(model.0 as usize);
        let bytes = bytes.map_or(1, |model| model.bytes);
        let part = |source, part| SegmentFact {
            source: SourceId(source),
            charge: Bytes(bytes),
            pieces: 1,
            part,
        };
        let mut segments = vec![part(model.0, Part::File)];
        if self.setup.device_bytes.is_some() {
            segments.push(part(IMAGES + model.0, Part::Image));
        }
        Resolution {
            version: VersionId(model.0),
            segments,
        }
    }

    /// What a load takes. An upload goes on while its files are still being read.
    fn took_us(&self, model: usize, feed: &Feed, tier: Tier) -> u64 {
        let model = &self.setup.workload.models[model];
        let per_s = u128::from(self.setup.upload_bytes_per_s.max(1));
        let upload_us = u128::from(model.bytes) * 1_000_000 / per_s;
        let upload_us = u64::try_from(upload_us).unwrap_or(u64::MAX);
        match (tier, feed) {
            (Tier::Host, _) => model.load_us,
            (Tier::Device(_), Feed::Peer(_)) => upload_us,
            (Tier::Device(_), Feed::Source) => model.load_us.max(upload_us),
            (Tier::Device(_), Feed::Host(segments)) => {
                let now = self.now;
                let left = segments.iter().map(|file| self.books.left_us(*file, now));
                left.max().unwrap_or(0).max(upload_us)
            }
        }
    }

    fn answered(&mut self, request: u64, reply: &Reply) {
        let Some(number) = request.checked_sub(1) else {
            return;
        };
        match reply {
            Reply::Opened { lease, origin, .. } => {
                let until = self.books.granted(number, *origin, self.now);
                self.at(until, Due::Close(*lease));
            }
            Reply::Refused(Refusal::TooLarge { .. }) => self.books.oversized(number),
            // Nothing fails here, nobody gives up, and no bound is set that could be reached.
            Reply::Refused(_)
            | Reply::Failed(_)
            | Reply::Closed
            | Reply::Resumed { .. }
            | Reply::Cancelled { .. }
            | Reply::Evicted { .. } => self.books.refused(number),
        }
    }
}
