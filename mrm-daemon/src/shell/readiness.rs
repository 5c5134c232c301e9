//! Leases on models that are still being filled: what their clients were told is there.
//!
//! The threads that read mark pieces ([`Marks`]); this thread tells clients of them, in few frames.

mod suspended;

use self::suspended::Suspended;
use super::marks::{EARLY_BYTES_MIN, Marks, Told, Watcher};
use super::work::{Completed, fault};
use super::{State, Who};
use crate::transfer::PIECE_BYTES;
use mrm_core::event::Event;
use mrm_core::id::{LeaseId, OpId, SegmentId, SessionId, VersionId};
use mrm_proto::error::ErrorCode;
use mrm_proto::hello::features;
use mrm_proto::ids;
use mrm_proto::limits::{EARLY_LEASES_PER_SESSION_MAX, READY_RANGES_MAX, READY_UNHEARD_MAX};
use mrm_proto::reply::{Ready, ReadyRange, Reply};
use mrm_proto::request::{Touched, WaitFor};
use mrm_proto::table::Table;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

/// A lease, as its session names it.
pub(super) type Key = (SessionId, LeaseId);

/// Leases on what was not all filled when they were granted.
#[derive(Default)]
pub(super) struct EarlyLeases {
    leases: BTreeMap<Key, Early>,
    /// Which users were lent what of the loads that are under way.
    lent_to: BTreeMap<SegmentId, BTreeSet<u32>>,
    /// What is loaded, and the keeper has yet to have: to clients it is still being filled.
    unkept: BTreeMap<SegmentId, Arc<Marks>>,
    /// Users who had some on what could not be sealed for them.
    suspended: Suspended,
}

/// A lease on what was not all filled when it was granted.
struct Early {
    files: Vec<EarlyFile>,
    /// How many frames the client did not say that it read.
    unheard: u32,
}

struct EarlyFile {
    index: u32,
    segment: SegmentId,
    /// Keeps the descriptor that was lent until the frame that carries it is sent.
    marks: Arc<Marks>,
    /// Pieces that the client was told of.
    sent: Box<[u64]>,
    sealed: Sealed,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sealed {
    Not,
    Untold,
    Told,
}

/// Largest table of which the order of use is learned: it is read on the decider's thread.
const LEARNED_TABLE_BYTES_MAX: u64 = 8 << 20;

impl State {
    /// Whether an open is to be granted by its layout.
    pub(super) fn by_layout(&self, session: SessionId, wait_for: Option<WaitFor>) -> bool {
        let uid = self.uid_of(session);
        let now = Instant::now();
        let suspended = uid.is_some_and(|uid| self.early.suspended.has(uid, now));
        let of_session = (session, LeaseId(0))..=(session, LeaseId(u64::MAX));
        wait_for == Some(WaitFor::Layout)
            && !suspended
            && self.knows_early(session)
            && self.early.leases.range(of_session).count() < EARLY_LEASES_PER_SESSION_MAX
    }

    pub(super) fn uid_of(&self, session: SessionId) -> Option<u32> {
        match &self.sessions.get(&session)?.who {
            Who::Client { peer, .. } => Some(peer.uid),
            Who::Operator(_) => None,
        }
    }

    /// The memory of a load was thrown away, because somebody who was lent it keeps it from being
    /// sealed. Which of them it is cannot be known: none of their users is lent anything early for a while.
    pub(super) fn unlaid(&mut self, op: OpId, segment: SegmentId) {
        let label = self.loads.get_mut(&segment).and_then(|load| {
            load.marks = None;
            load.label.clone()
        });
        let uids = self.early.lent_to.remove(&segment).unwrap_or_default();
        let label = label.unwrap_or_else(|| Arc::from("?"));
        let now = Instant::now();
        for uid in uids {
            let suspended_s = self.early.suspended.suspend(uid, now).as_secs();
            tracing::warn!(%label, uid, suspended_s, "memory that was lent before it was filled is kept pinned");
        }
        let message = format!(
            "`{label}` cannot be had before it is whole: pages of it are kept pinned, and it is \
             loaded once more; open it again, and wait for all of it if you pin it"
        );
        let fault = fault(ErrorCode::Exhausted, &message);
        self.step(Event::Unlaid { op, fault });
    }

    /// Whether the session agreed on grants before the last byte.
    pub(super) fn knows_early(&self, session: SessionId) -> bool {
        self.agreed(session, features::EARLY)
    }

    /// What marks the pieces of a load, and tells this thread; not worth it for small files.
    pub(super) fn watcher(
        &self,
        (op, segment): (OpId, SegmentId),
        bytes: u64,
    ) -> Option<Watcher<impl Fn(Told) + Send + Sync + use<>>> {
        if bytes < EARLY_BYTES_MIN {
            return None;
        }
        let done = self.completed.clone();
        Some(Watcher {
            marks: Arc::new(Marks::new(bytes)),
            tell: move |told| {
                drop(done.send(match told {
                    Told::Laid => Completed::Laid { op },
                    Told::More => Completed::More { segment },
                    Told::Unlaid => Completed::Unlaid { op, segment },
                }));
            },
            degraded: self.degraded.clone(),
        })
    }

    /// A lease was granted, of which these files are still being filled.
    pub(super) fn begin_early(&mut self, key: Key, weights: &[SegmentId], filling: &[u32]) {
        let file = |index: &u32| {
            let segment = *weights.get(usize::try_from(*index).ok()?)?;
            let marks = Arc::clone(self.marks_of(segment)?);
            marks.look();
            Some(EarlyFile {
                index: *index,
                segment,
                sent: marks.none_sent(),
                marks,
                sealed: Sealed::Not,
            })
        };
        let files: Vec<EarlyFile> = filling.iter().filter_map(file).collect();
        if let (false, Some(uid)) = (files.is_empty(), self.uid_of(key.0)) {
            for file in &files {
                let lent_to = self.early.lent_to.entry(file.segment);
                lent_to.or_default().insert(uid);
            }
            self.early.leases.insert(key, Early { files, unheard: 0 });
            self.tell_ready(key);
        }
    }

    /// What is there of a segment that is being filled, or that the keeper has yet to have.
    pub(super) fn marks_of(&self, segment: SegmentId) -> Option<&Arc<Marks>> {
        let loading = self.loads.get(&segment);
        let loading = loading.and_then(|load| load.marks.as_ref());
        loading.or_else(|| self.early.unkept.get(&segment))
    }

    /// More pieces of a segment are there.
    pub(super) fn more(&mut self, segment: SegmentId) {
        if let Some(marks) = self.marks_of(segment) {
            marks.look();
        }
        for key in self.on(segment) {
            self.tell_ready(key);
        }
    }

    /// A load has ended, one way or the other.
    pub(super) fn end_lending(&mut self, segment: SegmentId) {
        self.early.lent_to.remove(&segment);
    }

    /// A segment is whole and sealed, and on its way to the keeper: clients hear of it when the next
    /// daemon would have it, too.
    pub(super) fn await_keeper(&mut self, segment: SegmentId, marks: Option<Arc<Marks>>) {
        if let Some(marks) = marks {
            self.early.unkept.insert(segment, marks);
        }
    }

    /// The keeper has a segment, or cannot have it.
    pub(super) fn tell_sealed(&mut self, segment: SegmentId) {
        if self.early.unkept.remove(&segment).is_none() {
            return;
        }
        for key in self.on(segment) {
            for file in self
                .early
                .leases
                .get_mut(&key)
                .into_iter()
                .flat_map(|early| &mut early.files)
            {
                if file.segment == segment && file.sealed == Sealed::Not {
                    file.sealed = Sealed::Untold;
                }
            }
            self.tell_ready(key);
        }
    }

    /// The client has read what it was told.
    pub(super) fn heard(&mut self, key: Key) {
        if let Some(early) = self.early.leases.get_mut(&key) {
            early.unheard = 0;
            self.tell_ready(key);
        }
    }

    /// A lease is gone.
    pub(super) fn end_early(&mut self, key: Key) {
        self.early.leases.remove(&key);
    }

    /// A session is gone.
    pub(super) fn end_early_of(&mut self, session: SessionId) {
        self.early.leases.retain(|(of, _), _| *of != session);
    }

    /// The leases that were granted before this segment was filled.
    fn on(&self, segment: SegmentId) -> Vec<Key> {
        let early = self.early.leases.iter();
        let on = early.filter(|(_, early)| early.files.iter().any(|file| file.segment == segment));
        on.map(|(key, _)| *key).collect()
    }

    /// Tells a client what is new, unless it has not read what it was told before.
    fn tell_ready(&mut self, key: Key) {
        let Some(early) = self.early.leases.get_mut(&key) else {
            return;
        };
        let last = early.files.iter().all(|file| file.sealed != Sealed::Not);
        if early.unheard >= READY_UNHEARD_MAX && !last {
            return;
        }
        let (mut ranges, mut sealed) = (Vec::new(), Vec::new());
        for file in &mut early.files {
            match file.sealed {
                Sealed::Told => {}
                Sealed::Untold => {
                    sealed.push(file.index);
                    file.sealed = Sealed::Told;
                }
                Sealed::Not => {
                    let room = READY_RANGES_MAX.saturating_sub(ranges.len());
                    let segment = file.index;
                    let new = if room > 0 {
                        file.marks.since(&mut file.sent, room)
                    } else {
                        Vec::new()
                    };
                    ranges.extend(new.into_iter().map(|range| ReadyRange {
                        segment,
                        from: range.start,
                        to: range.end,
                    }));
                }
            }
        }
        if ranges.is_empty() && sealed.is_empty() {
            return;
        }
        early.unheard += 1;
        if last {
            self.early.leases.remove(&key);
        }
        let (session, lease) = (key.0, ids::LeaseId(key.1.0));
        let ready = Ready {
            lease,
            ranges,
            sealed,
        };
        self.send(session, ids::RequestId::NO_REPLY, &Reply::Ready(ready));
    }

    /// A client tells in which order it used the tensors of what it leases.
    pub(super) fn touched(&mut self, session: SessionId, touched: &Touched) {
        let mut leases = self.core.view().leases_of(session);
        let Some(leased) = leases.find(|leased| leased.lease.0 == touched.lease.0) else {
            return;
        };
        let Some(Some(table)) = self.segments_of(leased.version).first().copied() else {
            return;
        };
        let Some(digest) = self.names.digest_of(table) else {
            return;
        };
        if self.orders.knows(&digest) {
            return;
        }
        let Some(held) = self.segments.get(&table) else {
            return;
        };
        if held.segment.bytes() > LEARNED_TABLE_BYTES_MAX {
            return;
        }
        let mut bytes = vec![0; usize::try_from(held.segment.bytes()).unwrap_or(0)];
        match rustix::io::pread(held.segment.fd(), &mut bytes, 0) {
            Ok(count) if count == bytes.len() => {}
            Ok(_) | Err(_) => return,
        }
        if let Ok(table) = Table::parse(&bytes) {
            self.orders
                .learn(digest, pieces_of(&table, &touched.tensors));
        }
    }

    /// The pieces of a file of a version that are to be read first.
    pub(super) fn first_pieces(&self, version: VersionId, file: usize) -> Arc<[u32]> {
        let none = || Arc::from([]);
        if self.orders.is_empty() {
            return none();
        }
        let table = self.names.version_of(version).and_then(|record| {
            let supply = record.parts.first()?.supply.as_deref()?;
            match supply {
                super::names::Supply::Table(table) => Some(Arc::clone(table)),
                super::names::Supply::File { .. } => None,
            }
        });
        let table = table.filter(|table| table.len() as u64 <= LEARNED_TABLE_BYTES_MAX);
        let digest = table.map(|table| *blake3::hash(&table).as_bytes());
        digest
            .and_then(|digest| self.orders.get(&digest, file))
            .unwrap_or_else(none)
    }
}

/// The pieces of each file in which these tensors lie, in the order of their use.
fn pieces_of(table: &Table<'_>, tensors: &[u32]) -> Vec<Vec<u32>> {
    let entries: Vec<_> = table.iter().collect();
    let mut files: Vec<Vec<u32>> = vec![Vec::new(); table.segment_names().len()];
    let mut seen = std::collections::HashSet::new();
    for position in tensors {
        let at = usize::try_from(*position).ok();
        let Some(Some(entry)) = at.and_then(|at| entries.get(at)) else {
            continue;
        };
        let Some(file) = files.get_mut(entry.segment as usize) else {
            continue;
        };
        let last = (entry.offset + entry.bytes.max(1) - 1) / PIECE_BYTES;
        for piece in entry.offset / PIECE_BYTES..=last {
            if let Ok(piece) = u32::try_from(piece)
                && seen.insert((entry.segment, piece))
            {
                file.push(piece);
            }
        }
    }
    files
}
