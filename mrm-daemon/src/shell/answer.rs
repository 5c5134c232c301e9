//! From the decider's replies to frames, with words for people.

use super::{Pending, State, Who};
use crate::status::events::{Event as LogEvent, EventKind};
use crate::status::metrics::OpenOutcome;
use crate::wire::LentFd;
use mrm_core::effect::{Holder, Origin, Refusal, Reply as CoreReply};
use mrm_core::event::Event;
use mrm_core::id::{Bytes, LeaseId, RequestId, SegmentId, SessionId, VersionId};
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::ids;
use mrm_proto::reply::{self, Cancelled, Closed, Opened, Progress, Reply};
use std::os::fd::AsFd;
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
                    tier: _,
                    origin,
                    segments,
                },
                Some(pending),
            ) => {
                self.grant(session, wire, &pending, lease, version, origin, &segments);
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
            (CoreReply::Cancelled { was_pending }, _) => {
                self.send(session, wire, &Reply::Cancelled(Cancelled { was_pending }));
            }
            (CoreReply::Evicted { .. }, _) => {}
            (CoreReply::Failed(fault), pending) => {
                let error = error_of_fault(&fault);
                self.refuse(session, wire, pending, error);
            }
            (CoreReply::Refused(refusal), pending) => {
                let label = pending.as_ref().map(|p| Arc::clone(&p.label));
                let error = self.error_of_refusal(&refusal, label.as_deref());
                self.refuse(session, wire, pending, error);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one reply")]
    fn grant(
        &mut self,
        session: SessionId,
        request: ids::RequestId,
        pending: &Pending,
        lease: LeaseId,
        version: VersionId,
        origin: Origin,
        segments: &[SegmentId],
    ) {
        let mut fds: Vec<LentFd> = Vec::with_capacity(segments.len());
        let mut bytes = Vec::with_capacity(segments.len());
        for id in segments {
            if let Some(held) = self.segments.get(id) {
                bytes.push(held.segment.bytes());
                let lent: Arc<dyn AsFd + Send + Sync> = held.segment.clone();
                fds.push(Arc::downgrade(&lent));
            }
        }
        if fds.len() != segments.len() || bytes.is_empty() {
            let error = ErrorReply::new(ErrorCode::Internal, "a granted segment is not there");
            tracing::error!(label = %pending.label, "a granted segment is not there");
            self.followups.push_back(Event::Close {
                session,
                request: None,
                lease,
            });
            return self.send(session, request, &Reply::Error(error));
        }
        let table_bytes = bytes.remove(0);
        let took_us = u64::try_from(pending.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let opened = Opened {
            lease: ids::LeaseId(lease.0),
            version: ids::VersionId(version.0),
            origin: wire_origin(origin),
            table_bytes,
            segments_bytes: bytes,
            took_us,
            device: None,
        };
        if let Some(Who::Client { io, .. }) = self.sessions.get(&session).map(|s| &s.who) {
            io.send(request, &Reply::Opened(opened), fds);
        }
        self.record_open(session, pending, origin, took_us);
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
            Origin::Loaded | Origin::Promoted => (OpenOutcome::Loaded, EventKind::OpenLoaded),
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
        let version = self
            .core
            .view()
            .pending_segments(session, request)?
            .copy?
            .version;
        Some(self.progress_of_version(version))
    }

    pub(super) fn progress_of_version(&self, version: VersionId) -> Progress {
        let mut progress = Progress {
            loaded_bytes: 0,
            total_bytes: 0,
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

    pub(super) fn error_of_refusal(&self, refusal: &Refusal, label: Option<&str>) -> ErrorReply {
        let model = label.map_or_else(String::new, |label| format!("`{label}`: "));
        let (code, text) = match refusal {
            Refusal::TooLarge {
                tier: _,
                want,
                limit,
            } => (
                ErrorCode::TooLarge,
                format!(
                    "needs {}, the host budget is {}: raise host_budget_bytes",
                    human(*want),
                    human(*limit)
                ),
            ),
            Refusal::NoRoom {
                tier: _,
                want,
                limit,
                charged,
                holders,
            } => (
                ErrorCode::NoRoom,
                format!(
                    "needs {} more; {} of {} are taken and cannot be freed now{}: close or unpin \
                     some, wait longer, or raise host_budget_bytes",
                    human(*want),
                    human(*charged),
                    human(*limit),
                    self.list_holders(holders)
                ),
            ),
            Refusal::DeviceLost { .. } | Refusal::NoImage => {
                (ErrorCode::Internal, refusal.to_string())
            }
            Refusal::TimedOut => (
                ErrorCode::TimedOut,
                "the load did not end within the wait and goes on: open again".to_owned(),
            ),
            Refusal::QueueFull { waiting } => (
                ErrorCode::QueueFull,
                format!("{waiting} requests wait for room already: try again later"),
            ),
            Refusal::Draining => (
                ErrorCode::Draining,
                "the daemon is about to exit and takes no new leases: try its successor".to_owned(),
            ),
            Refusal::TooManyLeases { held } => (
                ErrorCode::TooManyLeases,
                format!("the session holds {held} leases, which is the limit: close some"),
            ),
            Refusal::UnknownLease => (
                ErrorCode::UnknownLease,
                "the session holds no such lease: it was given back, or is another's".to_owned(),
            ),
            Refusal::Cancelled => (ErrorCode::Cancelled, "given up by the client".to_owned()),
            Refusal::InUse(holder) => (
                ErrorCode::InUse,
                format!("cannot be evicted now: {}", self.why_held(holder, label)),
            ),
        };
        let reply = ErrorReply::new(code, model + &text);
        // A load that was started for it goes on.
        let goes_on = code == ErrorCode::TimedOut;
        if goes_on { reply.with_effect() } else { reply }
    }

    /// Why a version cannot be evicted, naming it only if it is another than the one asked for.
    fn why_held(&self, holder: &Holder, asked: Option<&str>) -> String {
        match self.names.version_of(holder.version) {
            Some(record) if asked != Some(&*record.label) => {
                format!("it is shared with `{}`, {}", record.label, reason(holder))
            }
            Some(_) | None => reason(holder),
        }
    }

    fn list_holders(&self, holders: &[Holder]) -> String {
        let mut text = String::new();
        for holder in holders {
            let label = self
                .names
                .version_of(holder.version)
                .map_or("?", |v| &v.label);
            let why = reason(holder);
            let lead = if text.is_empty() { " (" } else { ", " };
            text += &format!("{lead}`{label}` {}: {why}", human(holder.charged));
        }
        if text.is_empty() { text } else { text + ")" }
    }
}

fn reason(holder: &Holder) -> String {
    match (holder.pinned, holder.loading, holder.leases) {
        (true, _, _) => "pinned".to_owned(),
        (false, true, _) => "being loaded".to_owned(),
        (false, false, 1) => "1 lease".to_owned(),
        (false, false, n) => format!("{n} leases"),
    }
}

pub(super) fn error_of_fault(fault: &mrm_core::event::Fault) -> ErrorReply {
    let code = ErrorCode::from_number(fault.code).unwrap_or(ErrorCode::Internal);
    ErrorReply::new(code, &*fault.message)
}

const fn wire_origin(origin: Origin) -> reply::Origin {
    match origin {
        Origin::Hit => reply::Origin::Hit,
        Origin::Loaded | Origin::Promoted => reply::Origin::Loaded,
        Origin::Joined => reply::Origin::Joined,
    }
}

/// Bytes for people: three digits and a binary unit.
pub(super) fn human(bytes: Bytes) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = bytes.0 as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{} B", bytes.0),
        _ => format!("{scaled:.1} {}", UNITS[unit]),
    }
}
