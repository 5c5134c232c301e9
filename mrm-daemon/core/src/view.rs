//! What there is to see of the decider: for status, and for the progress of an open that waits.
//!
//! ```
//! use mrm_core::{Config, Core, id::Bytes};
//! let core = Core::new(Config::with_limit(Bytes(4096)));
//! let ledger = core.view().ledger();
//! assert_eq!((ledger.limit, ledger.charged), (Bytes(4096), Bytes::ZERO));
//! ```

use crate::Core;
use crate::admission::{Stage as WantStage, Target};
use crate::catalogue::{Model, Version};
use crate::event::Wishes;
use crate::id::{Bytes, ContentId, LeaseId, ModelId, RequestId, SegmentId, SessionId, SourceId};
use crate::id::{Tenant, Time, VersionId};
use crate::lease::Session;
use crate::ledger::Tier;
use crate::residency::{Segment, State};

/// A read-only look at the decider. What is iterated comes in the order of its ids.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    core: &'a Core,
}

/// Totals of the host tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerView {
    /// The budget.
    pub limit: Bytes,
    /// Taken of it: loading, resident and freeing.
    pub charged: Bytes,
    /// The part that is being freed.
    pub freeing: Bytes,
    /// The part that is resident, held or idle.
    pub resident: Bytes,
    /// The part that is resident and could be evicted.
    pub idle: Bytes,
    /// Segments that are charged.
    pub segments: u64,
    /// Most segments that may be.
    pub segments_max: u64,
}

/// How much of a version is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Nothing.
    Absent,
    /// Something is on its way.
    Loading,
    /// All.
    Resident,
    /// Something.
    Partial,
}

/// One version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionView {
    /// The version.
    pub version: VersionId,
    /// How much of it is in memory.
    pub presence: Presence,
    /// What its segments are charged. A segment that versions share counts for each of them.
    pub charged: Bytes,
    /// Leases on it, over all sessions.
    pub leases: u64,
    /// Whether a model that stands for it is pinned.
    pub pinned: bool,
    /// When it was last granted or given back.
    pub last_used: Option<Time>,
    /// Its segments, in the order of the resolution.
    pub segments: Vec<SlotView>,
}

/// One place in a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotView {
    /// What it is filled from.
    pub source: SourceId,
    /// What it is or will be charged.
    pub charge: Bytes,
    /// The segment that fills it, if any does.
    pub segment: Option<SegmentId>,
    /// Where that is in its life.
    pub state: SegmentState,
}

/// Where a segment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentState {
    /// Not in memory.
    Absent,
    /// On its way.
    Loading,
    /// Filled and sealed.
    Resident,
    /// On its way out.
    Evicting,
}

/// One segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentView {
    /// The segment.
    pub segment: SegmentId,
    /// Where it is in its life.
    pub state: SegmentState,
    /// What it is charged.
    pub charge: Bytes,
    /// Leases on it: the sum over the versions that use it.
    pub leases: u64,
    /// The sources that it stands for.
    pub sources: Vec<SourceId>,
    /// What it holds, once that is known.
    pub content: Option<ContentId>,
}

/// One model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelView {
    /// The model.
    pub model: ModelId,
    /// What it stands for, as far as known.
    pub version: Option<VersionId>,
    /// The operator's wishes.
    pub wishes: Wishes,
    /// Whether it is being resolved.
    pub resolving: bool,
}

/// One session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionView {
    /// The session.
    pub session: SessionId,
    /// Who is charged.
    pub tenant: Tenant,
    /// Leases that it holds.
    pub leases: usize,
    /// Opens of it that wait.
    pub waiting: usize,
}

/// One lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseView {
    /// Who holds it.
    pub session: SessionId,
    /// The lease.
    pub lease: LeaseId,
    /// What was opened.
    pub model: ModelId,
    /// What was granted.
    pub version: VersionId,
}

/// What an open waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// To know what the model stands for.
    Resolve,
    /// For room.
    Room,
    /// For its segments to be loaded.
    Load,
}

/// How many opens wait, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WaitingView {
    /// To know what the model stands for.
    pub resolve: usize,
    /// For room.
    pub room: usize,
    /// For segments to be loaded.
    pub load: usize,
}

/// An open that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingView {
    /// What is being opened.
    pub model: ModelId,
    /// What it waits for.
    pub stage: Stage,
    /// The version that it will get; not known while it is being resolved.
    pub version: Option<VersionId>,
    /// The segments of that version.
    pub segments: Vec<SlotView>,
}

/// How many records of each kind the decider keeps: flat, however many opens there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordsView {
    /// Models.
    pub models: usize,
    /// Versions.
    pub versions: usize,
    /// Sources.
    pub sources: usize,
    /// Segments.
    pub segments: usize,
    /// Contents.
    pub contents: usize,
    /// Sessions.
    pub sessions: usize,
    /// Leases.
    pub leases: usize,
    /// Opens that wait.
    pub waiting: usize,
    /// Versions that they want.
    pub wants: usize,
    /// Effects in flight.
    pub ops: usize,
    /// Evictions that await their frees.
    pub evictions: usize,
}

impl<'a> View<'a> {
    pub(crate) const fn new(core: &'a Core) -> Self {
        Self { core }
    }

    /// Totals of the host tier. Takes time in the number of segments.
    #[must_use]
    pub fn ledger(&self) -> LedgerView {
        let account = self.core.ledger.account(Tier::Host);
        let segments = self.core.residency.all();
        let resident = segments
            .filter(|(_, segment)| matches!(segment.state, State::Resident(_)))
            .map(|(_, segment)| segment.charge);
        LedgerView {
            limit: account.limit.bytes,
            charged: account.charged.bytes,
            freeing: account.freeing.bytes,
            resident: resident.sum(),
            idle: self.core.residency.idle_amount().bytes,
            segments: account.charged.segments,
            segments_max: account.limit.segments,
        }
    }

    /// All versions.
    pub fn versions(&self) -> impl Iterator<Item = VersionView> + 'a {
        let view = *self;
        view.core
            .catalogue
            .versions
            .iter()
            .map(move |(id, version)| view.show(*id, version))
    }

    /// One version.
    #[must_use]
    pub fn version(&self, id: VersionId) -> Option<VersionView> {
        self.core
            .catalogue
            .versions
            .get(&id)
            .map(|version| self.show(id, version))
    }

    /// The models that stand for a version now.
    pub fn models_of(&self, version: VersionId) -> impl Iterator<Item = ModelId> + 'a {
        let version = self.core.catalogue.versions.get(&version);
        version
            .into_iter()
            .flat_map(|version| version.models.iter().copied())
    }

    /// All segments.
    pub fn segments(&self) -> impl Iterator<Item = SegmentView> + 'a {
        let view = *self;
        view.core
            .residency
            .all()
            .map(move |(id, segment)| view.show_segment(id, segment))
    }

    /// One segment.
    #[must_use]
    pub fn segment(&self, id: SegmentId) -> Option<SegmentView> {
        self.core
            .residency
            .get(id)
            .ok()
            .map(|segment| self.show_segment(id, segment))
    }

    /// All models of which something is known or wished.
    pub fn models(&self) -> impl Iterator<Item = ModelView> + 'a {
        self.core
            .catalogue
            .models
            .iter()
            .map(|(id, model)| show_model(*id, model))
    }

    /// One model.
    #[must_use]
    pub fn model(&self, id: ModelId) -> Option<ModelView> {
        self.core
            .catalogue
            .models
            .get(&id)
            .map(|model| show_model(id, model))
    }

    /// All sessions.
    pub fn sessions(&self) -> impl Iterator<Item = SessionView> + 'a {
        self.core
            .leases
            .sessions()
            .map(|(id, session)| show_session(id, session))
    }

    /// One session.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<SessionView> {
        self.core
            .leases
            .session(id)
            .ok()
            .map(|session| show_session(id, session))
    }

    /// The leases of all sessions.
    pub fn leases(&self) -> impl Iterator<Item = LeaseView> + 'a {
        self.core
            .leases
            .all()
            .map(|(session, lease, held)| LeaseView {
                session,
                lease,
                model: held.model,
                version: held.version,
            })
    }

    /// The leases of one session, oldest first.
    pub fn leases_of(&self, session: SessionId) -> impl Iterator<Item = LeaseView> + 'a {
        self.core
            .leases
            .of(session)
            .map(move |(lease, held)| LeaseView {
                session,
                lease,
                model: held.model,
                version: held.version,
            })
    }

    /// How many leases there are.
    #[must_use]
    pub fn leases_len(&self) -> usize {
        self.core.leases.len()
    }

    /// How many sessions there are.
    #[must_use]
    pub fn sessions_len(&self) -> usize {
        self.core.leases.sessions_len()
    }

    /// How many effects are in flight.
    #[must_use]
    pub fn ops_in_flight(&self) -> usize {
        self.core.ops.len()
    }

    /// How many records of each kind there are.
    #[must_use]
    pub fn records(&self) -> RecordsView {
        let core = self.core;
        RecordsView {
            models: core.catalogue.models.len(),
            versions: core.catalogue.versions.len(),
            sources: core.catalogue.sources.len(),
            segments: core.residency.len(),
            contents: core.residency.contents().count(),
            sessions: core.leases.sessions_len(),
            leases: core.leases.len(),
            waiting: core.admission.len(),
            wants: core.admission.wants().count(),
            ops: core.ops.len(),
            evictions: core.evictions.len(),
        }
    }

    /// Whether new leases are refused.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.core.draining
    }

    /// How many opens wait.
    #[must_use]
    pub fn waiting(&self) -> WaitingView {
        let mut waiting = WaitingView::default();
        for (_, waiter) in self.core.admission.all() {
            match self.stage(waiter.target) {
                Stage::Resolve => waiting.resolve += 1,
                Stage::Room => waiting.room += 1,
                Stage::Load => waiting.load += 1,
            }
        }
        waiting
    }

    /// Whether opens of this version wait for room: its loads are still to be started.
    #[must_use]
    pub fn waits_for_room(&self, version: VersionId) -> bool {
        self.core.admission.stage(version) == Some(WantStage::Room)
    }

    /// What an open waits for, if it waits.
    #[must_use]
    pub fn pending_segments(&self, session: SessionId, request: RequestId) -> Option<PendingView> {
        let waiter = self.core.admission.waiter((session, request))?;
        let version = match waiter.target {
            Target::Model(_) => None,
            Target::Version(version) => Some(version),
        };
        Some(PendingView {
            model: waiter.model,
            stage: self.stage(waiter.target),
            version,
            segments: version
                .map(|version| self.slots(version))
                .unwrap_or_default(),
        })
    }

    fn stage(&self, target: Target) -> Stage {
        match target {
            Target::Model(_) => Stage::Resolve,
            Target::Version(version) => match self.core.admission.stage(version) {
                Some(WantStage::Loading) => Stage::Load,
                Some(WantStage::Room) | None => Stage::Room,
            },
        }
    }

    fn slots(&self, id: VersionId) -> Vec<SlotView> {
        let Ok(slots) = self.core.catalogue.segments_of(id) else {
            return Vec::new();
        };
        let show = |segment: SegmentId| self.core.residency.get(segment).ok().map(state);
        slots
            .map(|(slot, segment)| SlotView {
                source: slot.source,
                charge: slot.charge,
                segment,
                state: segment.and_then(show).unwrap_or(SegmentState::Absent),
            })
            .collect()
    }

    fn show(&self, id: VersionId, version: &Version) -> VersionView {
        let segments = self.slots(id);
        let is = |state| {
            segments
                .iter()
                .filter(move |slot: &&SlotView| slot.state == state)
                .count()
        };
        let resident = is(SegmentState::Resident);
        let presence = if is(SegmentState::Loading) > 0 {
            Presence::Loading
        } else if resident == 0 {
            Presence::Absent
        } else if resident == segments.len() {
            Presence::Resident
        } else {
            Presence::Partial
        };
        VersionView {
            version: id,
            presence,
            charged: self
                .core
                .holder(id)
                .map_or(Bytes::ZERO, |holder| holder.charged),
            leases: version.leases,
            pinned: version.pins > 0,
            last_used: version.last_used,
            segments,
        }
    }

    fn show_segment(&self, id: SegmentId, segment: &Segment) -> SegmentView {
        let mut users = self
            .core
            .catalogue
            .users(&segment.sources)
            .unwrap_or_default();
        users.sort_unstable();
        users.dedup();
        let versions = users
            .iter()
            .filter_map(|user| self.core.catalogue.versions.get(user));
        SegmentView {
            segment: id,
            state: state(segment),
            charge: segment.charge,
            leases: versions.map(|version| version.leases).sum(),
            sources: segment.sources.clone(),
            content: match segment.state {
                State::Resident(content) => Some(content),
                State::Loading(_) | State::Evicting(_) => None,
            },
        }
    }
}

const fn state(segment: &Segment) -> SegmentState {
    match segment.state {
        State::Loading(_) => SegmentState::Loading,
        State::Resident(_) => SegmentState::Resident,
        State::Evicting(_) => SegmentState::Evicting,
    }
}

fn show_model(id: ModelId, model: &Model) -> ModelView {
    ModelView {
        model: id,
        version: model.current.map(|current| current.version),
        wishes: model.wishes,
        resolving: model.resolving.is_some(),
    }
}

const fn show_session(id: SessionId, session: &Session) -> SessionView {
    SessionView {
        session: id,
        tenant: session.tenant,
        leases: session.leases,
        waiting: session.waiting,
    }
}
