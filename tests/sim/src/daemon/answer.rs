//! What clients are answered, as in `shell/answer.rs` and `shell/grant.rs` of the daemon.

use super::sessions::{Pending, Who};
use super::{Daemon, impossible};
use crate::breach::Checked;
use crate::disk;
use crate::env::Env;
use crate::link::Reader;
use crate::memory::AllocId;
use mrm_core::effect::{Origin, Refusal, Reply as CoreReply};
use mrm_core::event::{Event, Fault};
use mrm_core::id::{LeaseId, RequestId, SegmentId, SessionId, VersionId};
use mrm_core::ledger::Tier;
use mrm_core::view::SegmentState;
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::hello::features;
use mrm_proto::ids;
use mrm_proto::layout::Granularity;
use mrm_proto::reply::{self, Cancelled, Closed, Handed, OnDevice, Opened, Progress, Reply};
use mrm_proto::reply::{Ready, Resumed, Revoked, Sharing};
use std::collections::BTreeSet;

/// What the decider granted.
struct Granted<'a> {
    lease: LeaseId,
    version: VersionId,
    tier: Tier,
    origin: Origin,
    segments: &'a [SegmentId],
}

impl Daemon {
    pub(super) fn answer(
        &mut self,
        env: &mut Env,
        session: SessionId,
        request: RequestId,
        reply: CoreReply,
    ) -> Checked {
        let Some(record) = self.sessions.get_mut(&session) else {
            return impossible("an answer to a session that is gone");
        };
        let pending = record.pending.remove(&request);
        let hit = matches!(
            &reply,
            CoreReply::Opened {
                origin: Origin::Hit,
                ..
            }
        );
        self.supplies_stale |= pending.is_some() && !hit;
        if let Who::Operator = record.who {
            self.answer_operator(session, pending.as_ref());
            return Ok(());
        }
        let key = (session, ids::RequestId(request.0));
        let reply = match reply {
            CoreReply::Opened {
                lease,
                version,
                tier,
                origin,
                segments,
            } => {
                let segments = &segments;
                let granted = Granted {
                    lease,
                    version,
                    tier,
                    origin,
                    segments,
                };
                if pending.is_none() {
                    return impossible("an open is granted that nobody awaits");
                }
                self.grant(env, key, &granted)?;
                None
            }
            CoreReply::Closed => Some(Reply::Closed(Closed {})),
            CoreReply::Cancelled { was_pending } => {
                Some(Reply::Cancelled(Cancelled { was_pending }))
            }
            CoreReply::Resumed { leases } => {
                let wire = |lease: Option<LeaseId>| lease.map(|lease| ids::LeaseId(lease.0));
                let leases = leases.into_iter().map(wire).collect();
                Some(Reply::Resumed(Resumed { leases }))
            }
            CoreReply::Evicted { .. } => return impossible("a client evicts"),
            CoreReply::Failed(fault) => Some(Reply::Error(error_of_fault(&fault))),
            CoreReply::Refused(refusal) => Some(Reply::Error(error_of_refusal(&refusal))),
        };
        if let Some(reply) = reply {
            self.send(env, key.0, key.1, &reply, Vec::new())?;
        }
        if let Some(pending) = pending {
            self.after_answer(&pending);
        }
        Ok(())
    }

    /// An open was answered: what only it needed goes.
    pub(super) fn after_answer(&mut self, pending: &Pending) {
        if pending.passed {
            let model = pending.model;
            self.followups.push_back(Event::ModelChanged { model });
        }
        self.forget_if_unknown(pending.model);
    }

    /// Sends what was granted.
    fn grant(
        &mut self,
        env: &mut Env,
        (session, request): (SessionId, ids::RequestId),
        granted: &Granted<'_>,
    ) -> Checked {
        let mut allocs = Vec::new();
        let mut filling = Vec::new();
        for (index, segment) in (0..).zip(granted.segments) {
            let held = self.segments.get(segment);
            let held = held.filter(|held| held.freeing.is_none());
            let laid = self.loads.get(segment).filter(|load| load.laid);
            match (held, laid.and_then(|load| load.alloc)) {
                (Some(held), _) => allocs.push(held.alloc),
                (None, Some(alloc)) if index > 0 => {
                    allocs.push(alloc);
                    filling.push(index - 1);
                }
                (None, _) => return impossible("a granted segment is not there"),
            }
        }
        if !filling.is_empty() {
            let at = |index: &u32| granted.segments.get(*index as usize + 1).copied();
            let files = filling.iter().map(|index| (*index, at(index)));
            self.early.insert((session, granted.lease), files.collect());
        }
        let mut opened = Opened {
            lease: ids::LeaseId(granted.lease.0),
            version: ids::VersionId(granted.version.0),
            origin: wire_origin(granted.origin),
            table_bytes: crate::settings::PAGE_BYTES,
            segments_bytes: Vec::new(),
            took_us: 0,
            device: None,
            filling: (!filling.is_empty()).then(|| filling.clone()),
        };
        match granted.tier {
            Tier::Host => {
                for (index, alloc) in (0..).zip(&allocs[1..]) {
                    // The size is that of the file; here nobody looks at it.
                    let bytes = match filling.contains(&index) {
                        true => crate::settings::PAGE_BYTES,
                        false => disk::bytes_of(env.memory.read(*alloc)?),
                    };
                    opened.segments_bytes.push(bytes);
                }
            }
            Tier::Device(device) => {
                let lent = self.lend_image(env, (session, request), granted, &allocs)?;
                allocs.truncate(1);
                opened.device = Some(OnDevice {
                    uuid: super::requests::uuid_of(device),
                    sharing: Sharing::Vmm,
                    granularity: Granularity::Tensor,
                    allocations_bytes: vec![0; lent.0],
                    handles: Vec::new(),
                });
                allocs.extend(lent.1);
            }
        }
        self.send(env, session, request, &Reply::Opened(opened), allocs)
    }

    /// Tells those who were lent a segment before it was filled that it is.
    pub(super) fn sealed(&mut self, env: &mut Env, segment: SegmentId) -> Checked {
        let view = self.core.view();
        let leases: BTreeSet<_> = view.leases().map(|l| (l.session, l.lease)).collect();
        self.early.retain(|key, _| leases.contains(key));
        let mut ready = Vec::new();
        for ((session, lease), files) in &self.early {
            let at = files.iter().filter(|(_, file)| *file == Some(segment));
            let sealed: Vec<u32> = at.map(|(index, _)| *index).collect();
            if !sealed.is_empty() {
                let lease = ids::LeaseId(lease.0);
                let ranges = Vec::new();
                let told = Ready {
                    lease,
                    ranges,
                    sealed,
                };
                ready.push((*session, Reply::Ready(told)));
            }
        }
        for (session, reply) in ready {
            self.send(env, session, ids::RequestId::NO_REPLY, &reply, Vec::new())?;
        }
        Ok(())
    }

    /// Hands over the pieces of an image but for the last ones; says how many there are in all, and
    /// what is left for the grant.
    fn lend_image(
        &mut self,
        env: &mut Env,
        (session, request): (SessionId, ids::RequestId),
        granted: &Granted<'_>,
        allocs: &[AllocId],
    ) -> Checked<(usize, Vec<AllocId>)> {
        let record = self.names.version_of(granted.version);
        let pieces = record
            .and_then(|record| record.image)
            .map(|image| image.pieces);
        let (Some(pieces), [_, image]) = (pieces, allocs) else {
            return impossible("an image that is granted is not known");
        };
        // Each piece has a descriptor of its own; all are parts of the same bytes.
        let pieces = vec![*image; usize::try_from(pieces).unwrap_or(1)];
        let mut batches: Vec<&[AllocId]> = pieces.chunks(env.settings.handed_max).collect();
        let last = batches.pop().unwrap_or_default().to_vec();
        let mut from = 0;
        for batch in batches {
            let handles = Vec::new();
            let handed = Reply::Handed(Handed { from, handles });
            self.send(env, session, request, &handed, batch.to_vec())?;
            from += batch.len() as u64;
        }
        Ok((pieces.len(), last))
    }

    pub(super) fn revoke(
        &mut self,
        env: &mut Env,
        (session, lease): (SessionId, LeaseId),
        gone: bool,
        fault: &Fault,
    ) -> Checked {
        let who = self.sessions.get(&session).map(|session| &session.who);
        let needed = if gone {
            features::DEVICE | features::EARLY
        } else {
            features::DAMAGE
        };
        if !matches!(who, Some(Who::Client(client)) if client.features & needed != 0) {
            return Ok(());
        }
        if let Some(Who::Client(client)) = who
            && let Some(pipe) = env.links.pipe(client.link, Reader::Client).filter(|_| gone)
        {
            pipe.taken_away.insert(lease.0);
        }
        let told = Reply::Revoked(Revoked {
            lease: ids::LeaseId(lease.0),
            number: fault.code,
            message: fault.message.to_string(),
        });
        self.send(env, session, ids::RequestId::NO_REPLY, &told, Vec::new())
    }

    /// Tells those who wait and asked for it how far it is.
    pub(super) fn progress(&mut self, env: &mut Env) -> Checked {
        self.progress_planned = false;
        let mut told = Vec::new();
        for (session, record) in &self.sessions {
            for (request, _) in record
                .pending
                .iter()
                .filter(|(_, pending)| pending.progress)
            {
                let pending = self.core.view().pending_segments(*session, *request);
                let Some(pending) = pending.filter(|pending| pending.copy.is_some()) else {
                    continue;
                };
                let sum = |done: bool| {
                    let slots = pending.segments.iter();
                    let slots = slots.filter(|s| !done || s.state == SegmentState::Resident);
                    slots.map(|slot| slot.charge.0).sum()
                };
                let progress = Progress {
                    loaded_bytes: sum(true),
                    total_bytes: sum(false),
                    eta_ms: None,
                };
                told.push((*session, *request, progress));
            }
        }
        for (session, request, progress) in told {
            let request = ids::RequestId(request.0);
            self.send(
                env,
                session,
                request,
                &Reply::Progress(progress),
                Vec::new(),
            )?;
        }
        Ok(())
    }
}

const fn wire_origin(origin: Origin) -> reply::Origin {
    match origin {
        Origin::Hit => reply::Origin::Hit,
        Origin::Loaded => reply::Origin::Loaded,
        Origin::Promoted => reply::Origin::Promoted,
        Origin::Joined => reply::Origin::Joined,
    }
}

fn error_of_fault(fault: &Fault) -> ErrorReply {
    let code = ErrorCode::from_number(fault.code).unwrap_or(ErrorCode::Internal);
    ErrorReply::new(code, &*fault.message)
}

fn error_of_refusal(refusal: &Refusal) -> ErrorReply {
    let code = match refusal {
        Refusal::TooLarge { .. } => ErrorCode::TooLarge,
        Refusal::OverShare { reserve, max, .. } if reserve > max => ErrorCode::TooLarge,
        Refusal::NoRoom { .. } | Refusal::OverShare { .. } => ErrorCode::NoRoom,
        Refusal::DeviceLost { .. } => ErrorCode::DeviceLost,
        Refusal::NoImage => ErrorCode::NoTensors,
        Refusal::TimedOut => ErrorCode::TimedOut,
        Refusal::QueueFull { .. } => ErrorCode::QueueFull,
        Refusal::Draining => ErrorCode::Draining,
        Refusal::TooManyLeases { .. } => ErrorCode::TooManyLeases,
        Refusal::UnknownLease => ErrorCode::UnknownLease,
        Refusal::Cancelled => ErrorCode::Cancelled,
        Refusal::InUse(_) => ErrorCode::InUse,
    };
    ErrorReply::new(code, "refused")
}
