//! What there is to see of the decider: for status, and for the progress of an open that waits.
//!
//! ```
//! use mrm_core::{Config, Core, id::Bytes, ledger::Tier};
//! let core = Core::new(Config::with_limit(Bytes(4096)));
//! let ledger = core.view().ledger(Tier::Host);
//! assert_eq!((ledger.limit, ledger.charged), (Bytes(4096), Bytes::ZERO));
//! ```

mod shapes;

pub use shapes::*;

use crate::Core;
use crate::admission::{Stage as WantStage, Target};
use crate::ahead::Prefetch;
use crate::catalogue::{Copy, Model, Version};
use crate::event::Wanted;
use crate::id::{
    Bytes, ContentId, CopyId, DeviceId, LeaseId, ModelId, RequestId, SegmentId, SessionId, SourceId,
};
use crate::id::{Time, VersionId};
use crate::lease::{Lease, Session};
use crate::ledger::Tier;
use crate::policy::{Choice, Experience, Memory, rank};
use crate::residency::{Segment, State};

/// A read-only look at the decider. What is iterated comes in the order of its ids.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    core: &'a Core,
}

impl<'a> View<'a> {
    pub(crate) const fn new(core: &'a Core) -> Self {
        Self { core }
    }

    /// The tiers: the host's, and each device that is configured.
    pub fn tiers(&self) -> impl Iterator<Item = Tier> + 'a {
        self.core.ledger.tiers()
    }

    /// Whether a device is lost, or is not configured.
    #[must_use]
    pub fn is_lost(&self, device: DeviceId) -> bool {
        self.core.devices.is_lost(device)
    }

    /// Totals of a tier; nothing but zeros if there is no such tier. Takes time in the number of
    /// segments.
    #[must_use]
    pub fn ledger(&self, tier: Tier) -> LedgerView {
        let account = self.core.ledger.account(tier);
        let segments = self.core.residency.all().map(|(_, segment)| segment);
        let resident = segments
            .filter(|segment| segment.tier == tier && matches!(segment.state, State::Resident(_)))
            .map(|segment| segment.charge.bytes);
        LedgerView {
            budget: account.budget.bytes,
            limit: account.limit.bytes,
            charged: account.charged.bytes,
            reserved: account.reserved,
            freeing: account.freeing.bytes,
            resident: resident.sum(),
            idle: self.core.residency.idle_amount(tier).bytes,
            segments: account.charged.segments,
            segments_max: account.limit.segments,
        }
    }

    /// What may be charged on a tier now. Takes no time in the number of segments.
    #[must_use]
    pub fn free(&self, tier: Tier) -> Bytes {
        self.core.ledger.account(tier).free().bytes
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

    /// The segment that stands for a content on a tier.
    #[must_use]
    pub fn holding(&self, tier: Tier, content: ContentId) -> Option<SegmentId> {
        self.core.residency.holding(tier, content)
    }

    /// The versions that name one of these sources.
    #[must_use]
    pub fn versions_of(&self, sources: &[SourceId]) -> Vec<VersionId> {
        // A source that is not known is in no version.
        self.core.catalogue.users(sources).unwrap_or_default()
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
            .map(|(session, lease, held)| show_lease(session, lease, held))
    }

    /// The leases of one session, oldest first.
    pub fn leases_of(&self, session: SessionId) -> impl Iterator<Item = LeaseView> + 'a {
        self.core
            .leases
            .of(session)
            .map(move |(lease, held)| show_lease(session, lease, held))
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
            contents: core.residency.contents_len(),
            sessions: core.leases.sessions_len(),
            leases: core.leases.len(),
            waiting: core.admission.len(),
            wants: core.admission.wants().count(),
            ops: core.ops.len(),
            evictions: core.evictions.len(),
            ahead: core.ahead.unused.len() + usize::from(core.ahead.going.is_some()),
        }
    }

    /// The policy of a tier; `None` if there is no such tier.
    #[must_use]
    pub fn policy(&self, tier: Tier) -> Option<Choice> {
        self.core.policies.choice(tier).ok()
    }

    /// Why what the last event evicted for want of room was chosen.
    #[must_use]
    pub fn explained(&self) -> &'a [Explained] {
        &self.core.policies.explained
    }

    /// What the last event began to load ahead of what is asked for, and why.
    #[must_use]
    pub fn foreseen(&self) -> &'a [Foreseen] {
        &self.core.ahead.foreseen
    }

    /// Of what was loaded ahead, what was used or lost before with the last event.
    #[must_use]
    pub fn ahead_ended(&self) -> &'a [AheadEnd] {
        &self.core.ahead.ended
    }

    /// What became of what was loaded ahead.
    #[must_use]
    pub fn ahead(&self) -> AheadView {
        AheadView {
            hints: self.core.policies.history.hints_len(),
            ..self.core.ahead.counts
        }
    }

    /// Whether a version is being loaded ahead, and nobody waits for it.
    #[must_use]
    pub fn is_ahead(&self, version: VersionId) -> bool {
        let mut wants = self.core.admission.wants_of(version);
        let waited_for = |copy| {
            self.core
                .admission
                .first_waiting_for(Target::Copy(copy))
                .is_some()
        };
        self.core.ahead.loads_of(version) && !wants.any(|(copy, _)| waited_for(copy))
    }

    /// When it is looked next what is worth loading ahead, if there is reason to.
    #[must_use]
    pub fn look_at(&self) -> Option<Time> {
        self.core.look_at()
    }

    /// The settings for loading ahead.
    #[must_use]
    pub fn prefetch(&self) -> Prefetch {
        self.core.ahead.settings
    }

    /// How much a version is worth keeping on a tier at this time, whether it is held or not;
    /// `None` if nothing of it is resident there. Takes time in the number of versions there.
    #[must_use]
    pub fn utility(&self, version: VersionId, tier: Tier, now: Time) -> Option<UtilityView> {
        let core = self.core;
        let policy = core.policies.policy(tier).ok()?;
        let candidate = core.as_candidate(version, tier).ok()??;
        let facts = core.facts(tier, now);
        let mut all = core.all_candidates(tier).ok()?;
        all.retain(|other| other.version != version);
        all.push(candidate);
        let ranked = rank(policy, &facts, all);
        let rank = ranked
            .iter()
            .position(|of| of.candidate.version == version)?;
        Some(UtilityView {
            policy: policy.name(),
            utility: ranked.get(rank)?.utility,
            factors: policy.factors(&facts, &candidate),
            rank,
            candidates: ranked.len(),
        })
    }

    /// How often anything was used.
    #[must_use]
    pub fn uses(&self) -> u64 {
        self.core.policies.history.all_uses()
    }

    /// The most that opens of what a model stands for, on devices, kept free there of late.
    #[must_use]
    pub fn reserve_of(&self, model: ModelId) -> Bytes {
        let known = self.core.catalogue.models.get(&model);
        let current = known.and_then(|known| known.current);
        let subject = current.and_then(|current| self.core.subject(current.version));
        self.core.policies.history.reserve(subject.unwrap_or(model))
    }

    /// What is remembered of a model that was used, for the next daemon.
    #[must_use]
    pub fn memory(&self, model: ModelId, now: Time) -> Option<Memory> {
        self.core.policies.history.memory(model, now)
    }

    /// What is remembered of all models together, likewise.
    #[must_use]
    pub fn experience(&self) -> Experience {
        self.core.policies.history.experience()
    }

    /// Whether anything is remembered of the uses of a model.
    #[must_use]
    pub fn remembers(&self, model: ModelId) -> bool {
        self.core.policies.history.remembers(model)
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

    /// Whether loads of this version may still have to be started for opens that wait: they wait
    /// for room on some tier, or for a device, which may turn out to have less than is thought.
    #[must_use]
    pub fn waits_for_room(&self, version: VersionId) -> bool {
        let mut wants = self.core.admission.wants_of(version);
        wants.any(|(copy, stage)| stage == WantStage::Room || copy.tier != Tier::Host)
            || self.core.ahead.makes_room_for(version)
    }

    /// Whether nothing has to be read for `model` if it stands for `version`: all of that is in
    /// host memory, and whoever waits to learn what the model stands for wants it there.
    #[must_use]
    pub fn is_served_from_memory(&self, model: ModelId, version: VersionId) -> bool {
        let core = self.core;
        let tier = Tier::Host;
        let Ok(mut places) = core.catalogue.places(CopyId { version, tier }) else {
            return false;
        };
        let is_resident = |segment| {
            let segment = core.residency.get(segment);
            segment.is_ok_and(|segment| matches!(segment.state, State::Resident(_)))
        };
        let wants_no_more = |key| match core.admission.waiter(key).map(|waiter| &waiter.wanted) {
            Some(Wanted::Host | Wanted::Layout) | None => true,
            Some(Wanted::Device(_) | Wanted::Best(_)) => false,
        };
        let mut waiting = core.admission.waiting_for(Target::Model(model));
        places.all(|(_, _, segment)| segment.is_some_and(is_resident))
            && waiting.all(wants_no_more)
            && !core.ahead.is_resolving(model)
    }

    /// What an open waits for, if it waits.
    #[must_use]
    pub fn pending_segments(&self, session: SessionId, request: RequestId) -> Option<PendingView> {
        let waiter = self.core.admission.waiter((session, request))?;
        let copy = match waiter.target {
            Target::Model(_) => None,
            Target::Copy(copy) => Some(copy),
        };
        Some(PendingView {
            model: waiter.model,
            stage: self.stage(waiter.target),
            copy,
            segments: copy.map(|copy| self.slots(copy)).unwrap_or_default(),
        })
    }

    fn stage(&self, target: Target) -> Stage {
        match target {
            Target::Model(_) => Stage::Resolve,
            Target::Copy(copy) => match self.core.admission.stage(copy) {
                Some(WantStage::Loading) => Stage::Load,
                Some(WantStage::Room) | None => Stage::Room,
            },
        }
    }

    fn slots(&self, id: CopyId) -> Vec<SlotView> {
        let Ok(places) = self.core.catalogue.places(id) else {
            return Vec::new();
        };
        let show = |segment: SegmentId| self.core.residency.get(segment).ok().map(state);
        places
            .map(|(slot, tier, segment)| SlotView {
                source: slot.source,
                part: slot.part,
                tier,
                charge: slot.charge,
                segment,
                state: segment.and_then(show).unwrap_or(SegmentState::Absent),
            })
            .collect()
    }

    fn show(&self, id: VersionId, version: &Version) -> VersionView {
        let nothing = Copy::default();
        let host = version.copies.get(&Tier::Host).unwrap_or(&nothing);
        let devices = version.copies.iter().filter_map(|(tier, copy)| {
            let on_device = CopyId {
                version: id,
                tier: *tier,
            };
            let own = self.core.catalogue.own_segments(on_device).ok()?;
            let wanted = self.core.admission.stage(on_device).is_some();
            let worth_showing = copy.leases > 0 || wanted || !own.is_empty();
            (*tier != Tier::Host && worth_showing).then(|| self.show_copy(on_device, copy))
        });
        VersionView {
            version: id,
            pinned: version.pins > 0,
            host: self.show_copy(CopyId::host(id), host),
            devices: devices.collect(),
        }
    }

    fn show_copy(&self, id: CopyId, copy: &Copy) -> CopyView {
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
        CopyView {
            tier: id.tier,
            tainted: copy.tainted,
            presence,
            charged: self
                .core
                .holder(id, id.tier)
                .map_or(Bytes::ZERO, |holder| holder.charged)
                .saturating_sub(copy.reserved),
            reserved: copy.reserved,
            leases: copy.leases,
            feeding: copy.feeding,
            last_used: copy.last_used,
            segments,
        }
    }

    fn show_segment(&self, id: SegmentId, segment: &Segment) -> SegmentView {
        let tier = segment.tier;
        let users = self.core.catalogue.copies_with(tier, &segment.sources);
        let mut users = users.unwrap_or_default();
        users.sort_unstable();
        users.dedup();
        let leases = users.iter().filter_map(|user| {
            let copy = self.core.catalogue.copy(*user).ok()?;
            Some(copy.leases)
        });
        let tainted = self.core.quarantine.leases_on(id) as u64;
        SegmentView {
            segment: id,
            state: state(segment),
            tier,
            charge: segment.charge.bytes,
            pieces: segment.charge.segments,
            leases: leases.sum::<u64>() + tainted,
            sources: segment.sources.clone(),
            content: match segment.state {
                State::Resident(content) => Some(content),
                State::Loading(_) | State::Damaged | State::Evicting(_) => None,
            },
        }
    }
}

const fn state(segment: &Segment) -> SegmentState {
    match segment.state {
        State::Loading(_) => SegmentState::Loading,
        State::Resident(_) => SegmentState::Resident,
        State::Damaged => SegmentState::Damaged,
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

const fn show_lease(session: SessionId, lease: LeaseId, held: &Lease) -> LeaseView {
    LeaseView {
        session,
        lease,
        model: held.model,
        version: held.copy.version,
        tier: held.copy.tier,
        reserve: held.reserve,
    }
}
