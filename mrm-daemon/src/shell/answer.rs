//! From the decider's replies to frames, with words for people.

use super::grant::Granted;
use super::{Pending, State, Who};
use crate::status::events::{Event as LogEvent, EventKind};
use crate::status::metrics::OpenOutcome;
use mrm_core::effect::{Origin, Refusal, Reply as CoreReply};
use mrm_core::event::{Event, Part};
use mrm_core::id::{CopyId, RequestId, SessionId, VersionId};
use mrm_core::ledger::Tier;
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::ids;
use mrm_proto::reply::{self, Cancelled, Closed, Progress, Reply, Resumed};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl State {
    /// Carries out `Effect::Reply`.
    pub(super) fn answer(&mut self, session: SessionId, request: RequestId, reply: CoreReply) {
        let Some(record) = self.sessions.get_mut(&session) else {
            return;
        };
        let pending = record.pending.remove(&request);
        let hit = matches!(&reply, CoreReply::Opened { origin, .. } if *origin == Origin::Hit);
        self.supplies_stale |= pending.is_some() && !hit;
        if let Who::Operator(waiting) = &mut record.who {
            let waiting = waiting.take();
            return self.answer_operator(session, waiting, pending, reply);
        }
        let wire = ids::RequestId(request.0);
        match (reply, pending) {
            (
                CoreReply::Opened {
                    lease,
                    version,
                    tier,
                    origin,
                    segments,
                },
                Some(pending),
            ) => {
                let granted = Granted {
                    lease,
                    version,
                    tier,
                    origin,
                };
                self.grant((session, wire), &pending, granted, &segments);
                self.after_open(&pending);
            }
            (CoreReply::Opened { lease, .. }, None) => {
                // Nobody awaits it: give it back.
                self.followups.push_back(Event::Close {
                    session,
                    request: None,
                    lease,
                });
            }
            (CoreReply::Closed, _) => {
                self.send(session, wire, &Reply::Closed(Closed {}));
            }
            (CoreReply::Resumed { leases }, _) => {
                let leases = leases.into_iter().map(|lease| Some(ids::LeaseId(lease?.0)));
                let leases = leases.collect();
                self.send(session, wire, &Reply::Resumed(Resumed { leases }));
            }
            (CoreReply::Cancelled { was_pending }, _) => {
                self.send(session, wire, &Reply::Cancelled(Cancelled { was_pending }));
            }
            (CoreReply::Evicted { .. }, _) => {}
            (CoreReply::Failed(fault), pending) => {
                let error = error_of_fault(&fault);
                self.refuse(session, wire, pending, error);
            }
            (CoreReply::Refused(refusal), pending) => {
                let error = match (&refusal, &pending) {
                    (Refusal::NoImage, Some(pending)) => self.no_image(pending),
                    (refusal, pending) => {
                        let label = pending.as_ref().map(|p| &*p.label);
                        self.error_of_refusal(refusal, label)
                    }
                };
                self.refuse(session, wire, pending, error);
            }
        }
    }

    pub(super) fn record_open(
        &mut self,
        session: SessionId,
        pending: &Pending,
        origin: Origin,
        took_us: u64,
    ) {
        let (outcome, kind) = match origin {
            Origin::Hit => (OpenOutcome::Hit, EventKind::OpenHit),
            Origin::Loaded => (OpenOutcome::Loaded, EventKind::OpenLoaded),
            Origin::Promoted => (OpenOutcome::Promoted, EventKind::OpenPromoted),
            Origin::Joined => (OpenOutcome::Joined, EventKind::OpenJoined),
        };
        self.metrics.open(outcome, took_us);
        let label = Arc::clone(&pending.label);
        self.note(LogEvent::of(kind).model(label).session(session.0));
    }

    pub(super) fn record_refusal(
        &mut self,
        session: SessionId,
        pending: &Pending,
        error: &ErrorReply,
    ) {
        let took_us = u64::try_from(pending.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.metrics.open(OpenOutcome::Refused, took_us);
        let label = Arc::clone(&pending.label);
        let event = LogEvent::of(EventKind::OpenRefused)
            .model(label)
            .session(session.0);
        self.note(event.detail(&error.message));
    }

    fn refuse(
        &mut self,
        session: SessionId,
        request: ids::RequestId,
        pending: Option<Pending>,
        error: ErrorReply,
    ) {
        if let Some(pending) = &pending {
            self.record_refusal(session, pending, &error);
        }
        self.send(session, request, &Reply::Error(error));
        if let Some(pending) = pending {
            self.after_open(&pending);
        }
    }

    /// An open was answered: what only it needed goes.
    pub(super) fn after_open(&mut self, pending: &Pending) {
        self.progress_waiters -= usize::from(pending.progress);
        self.after_answer(pending);
    }

    pub(super) fn after_answer(&mut self, pending: &Pending) {
        if pending.passed {
            // The id stood for one request; without it, its version lives as long as its segments.
            self.followups.push_back(Event::ModelChanged {
                model: pending.model,
            });
        }
        self.forget_if_unknown(pending.model);
    }

    /// How far the load that a request waits for is.
    pub(super) fn progress_of(&self, session: SessionId, request: RequestId) -> Option<Progress> {
        let copy = self.core.view().pending_segments(session, request)?.copy?;
        Some(match copy.tier {
            Tier::Host => Progress {
                eta_ms: self.eta_us(copy.version).map(|us| us.div_ceil(1000)),
                ..self.progress_of_version(copy.version)
            },
            Tier::Device(_) => self.progress_of_image(copy),
        })
    }

    pub(super) fn progress_of_image(&self, copy: CopyId) -> Progress {
        let record = self.names.version_of(copy.version);
        let image = record.and_then(|record| record.image.as_ref()?.as_ref().ok());
        let total_bytes = image.map_or(0, |image| image.bytes);
        let shown = self.core.view().version(copy.version);
        let shown = shown.as_ref().and_then(|shown| shown.copy(copy.tier));
        let mut slots = shown.into_iter().flat_map(|copy| &copy.segments);
        let slot = slots.find(|slot| slot.part == Part::Image);
        let segment = slot.and_then(|slot| slot.segment);
        let loaded_bytes = segment.map_or(0, |segment| match self.fills.get(&segment) {
            Some(fill) => fill.filled_bytes.load(Ordering::Relaxed).min(fill.bytes),
            None if self.images.contains_key(&segment) => total_bytes,
            None => 0,
        });
        Progress {
            loaded_bytes,
            total_bytes,
            eta_ms: None,
        }
    }

    pub(super) fn progress_of_version(&self, version: VersionId) -> Progress {
        let mut progress = Progress {
            loaded_bytes: 0,
            total_bytes: 0,
            eta_ms: None,
        };
        let segments = self.segments_of(version);
        let parts = self
            .names
            .version_of(version)
            .map_or(&[][..], |record| &record.parts);
        for (part, segment) in parts.iter().zip(segments).skip(1) {
            progress.total_bytes = progress.total_bytes.saturating_add(part.bytes);
            let Some(segment) = segment else { continue };
            let loaded_bytes = match self.loads.get(&segment) {
                Some(load) => load.loaded_bytes.load(Ordering::Relaxed).min(load.bytes),
                None if self.segments.contains_key(&segment) => part.bytes,
                None => 0,
            };
            progress.loaded_bytes = progress.loaded_bytes.saturating_add(loaded_bytes);
        }
        progress
    }
}

pub(super) fn error_of_fault(fault: &mrm_core::event::Fault) -> ErrorReply {
    let code = ErrorCode::from_number(fault.code).unwrap_or(ErrorCode::Internal);
    ErrorReply::new(code, &*fault.message)
}

pub(super) const fn wire_origin(origin: Origin) -> reply::Origin {
    match origin {
        Origin::Hit => reply::Origin::Hit,
        Origin::Loaded => reply::Origin::Loaded,
        Origin::Promoted => reply::Origin::Promoted,
        Origin::Joined => reply::Origin::Joined,
    }
}
