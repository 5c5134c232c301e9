//! The decider of `mrmd`: which bytes are in memory, who holds them, what is loaded and dropped.
//!
//! A pure state machine. [`Core::handle`] takes the time and one [`Event`] and appends
//! [`Effect`]s, each of which the shell carries out. Effects with an [`OpId`](id::OpId) settle in
//! exactly one completion event. There is no IO, clock, randomness, thread or unsafe code here;
//! the numbered invariants are in `mrm-daemon/DESIGN.md` and checked by [`invariants`].
//!
//! ```
//! use mrm_core::effect::{Effect, Origin, Reply};
//! use mrm_core::event::{Event, Part, Resolution, SegmentFact, Wanted};
//! use mrm_core::id::*;
//! use mrm_core::{Config, Core};
//!
//! let mut core = Core::new(Config::with_limit(Bytes(1 << 30)));
//! let mut effects = Vec::new();
//! let (session, request, model) = (SessionId(1), RequestId(1), ModelId(1));
//! let deadline = Time(0).after_ms(30_000);
//!
//! core.handle(Time(0), Event::SessionOpened { session, tenant: Tenant(1000) }, &mut effects)?;
//! let wanted = Wanted::Host;
//! core.handle(Time(1), Event::Open { session, request, model, wanted, deadline }, &mut effects)?;
//! let Some(Effect::Resolve { op, .. }) = effects.pop() else { unreachable!() };
//!
//! let (source, charge, part) = (SourceId(1), Bytes(4096), Part::File);
//! let segments = vec![SegmentFact { source, charge, pieces: 1, part }];
//! let outcome = Ok(Resolution { version: VersionId(1), segments });
//! core.handle(Time(2), Event::Resolved { op, outcome }, &mut effects)?;
//! let Some(Effect::Load { op, .. }) = effects.pop() else { unreachable!() };
//!
//! core.handle(Time(3), Event::Loaded { op, outcome: Ok(ContentId(1)) }, &mut effects)?;
//! let Some(Effect::Reply { reply, .. }) = effects.pop() else { unreachable!() };
//! assert!(matches!(reply, Reply::Opened { origin: Origin::Loaded, .. }));
//! # Ok::<(), mrm_core::violation::Violation>(())
//! ```
#![forbid(unsafe_code)]

pub mod effect;
pub mod event;
pub mod id;
pub mod invariants;
pub mod ledger;
#[cfg(feature = "planted")]
pub mod planted;
pub mod policy;
pub mod view;
pub mod violation;

mod admission;
mod ahead;
mod catalogue;
mod devices;
mod evictions;
mod few;
mod lease;
mod ops;
#[cfg(not(feature = "planted"))]
mod planted;
mod policies;
mod quarantine;
mod reserves;
mod residency;
mod step;
mod walk;

pub use crate::ahead::Prefetch;

use crate::effect::Effect;
use crate::event::Event;
use crate::few::FewSet;
use crate::id::{Bytes, ContentId, CopyId, DeviceId, ModelId, Time, VersionId};
use crate::ledger::{Amount, Amounts, Ledger, Tier};
use crate::policy::{Choice, Policy};
use crate::violation::Violation;
use std::collections::BTreeSet;

/// Most segments with which a debug build checks every invariant after every event.
const CHECKED_SEGMENTS_MAX: usize = 64;
/// Most versions, leases and waiting opens with which it does.
const CHECKED_RECORDS_MAX: usize = 256;

/// What the decider is told once.
#[derive(Debug)]
pub struct Config {
    /// The host budget.
    pub limit: Bytes,
    /// Most segments in memory: each costs the daemon a descriptor.
    pub segments_max: u64,
    /// Most opens that may wait for what is not in memory.
    pub waiting_max: usize,
    /// Most leases that one session may hold.
    pub leases_per_session_max: usize,
    /// How long it is believed what a model was last found to stand for. 0: never.
    pub revalidate_ms: u64,
    /// What goes first when room is needed in host memory.
    pub policy: Choice,
    /// What is loaded before it is asked for.
    pub prefetch: Prefetch,
    /// The devices; the place in the list is the [`DeviceId`].
    pub devices: Vec<DeviceConfig>,
}

/// What the decider is told of a device.
#[derive(Debug)]
pub struct DeviceConfig {
    /// How much of its memory may be taken.
    pub budget: Bytes,
    /// Most pieces of memory on it: each costs the daemon a descriptor.
    pub pieces_max: u64,
    /// The devices whose memory this one can copy from.
    pub peers: Vec<DeviceId>,
    /// What goes first when room is needed on it.
    pub policy: Choice,
    /// How much of the budget the leases of one user may keep free beside weights, in percent.
    pub user_reserve_percent: u8,
}

impl DeviceConfig {
    /// The usual settings, with this budget: no peers, least recently used first.
    #[must_use]
    pub fn with_budget(budget: Bytes) -> Self {
        Self {
            budget,
            pieces_max: 16_384,
            peers: Vec::new(),
            policy: Choice::default(),
            user_reserve_percent: 50,
        }
    }
}

impl Config {
    /// The usual settings, with this budget and no device.
    #[must_use]
    pub fn with_limit(limit: Bytes) -> Self {
        Self {
            limit,
            segments_max: 16_384,
            waiting_max: 1024,
            leases_per_session_max: 4096,
            revalidate_ms: 1000,
            policy: Choice::default(),
            prefetch: Prefetch::default(),
            devices: Vec::new(),
        }
    }
}

/// The decider. It routes; each part owns its own data.
#[derive(Debug)]
pub struct Core {
    waiting_max: usize,
    leases_per_session_max: usize,
    revalidate_ms: u64,
    policies: policies::Policies,
    ahead: ahead::Ahead,
    draining: bool,
    devices: devices::Devices,
    catalogue: catalogue::Catalogue,
    residency: residency::Residency,
    leases: lease::Leases,
    ledger: Ledger,
    admission: admission::Admission,
    evictions: evictions::Evictions,
    quarantine: quarantine::Quarantine,
    reserves: reserves::Reserves,
    ops: ops::Ops,
    /// Copies that are kept for clients of the last daemon, and until when.
    expected: BTreeSet<(Time, CopyId)>,
    /// What was taken over since anything else happened.
    taken_over: BTreeSet<(Tier, ContentId)>,
    /// Versions that this event concerned, to be looked at before it is done with.
    touched: FewSet<VersionId>,
    /// Something happened that may let a want in the queue proceed.
    room_changed: bool,
    /// What wants in the queue have a claim on, since the queue was last gone through.
    claimed: Amounts,
}

impl Core {
    /// A decider that knows nothing yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let limit = Amount {
            bytes: config.limit,
            segments: config.segments_max,
        };
        Self {
            waiting_max: config.waiting_max,
            leases_per_session_max: config.leases_per_session_max,
            revalidate_ms: config.revalidate_ms,
            policies: policies::Policies::new(
                config.policy,
                config.devices.iter().map(|device| device.policy),
            ),
            ahead: ahead::Ahead::new(config.prefetch),
            draining: false,
            ledger: Ledger::new(limit, &devices::Devices::budgets(&config.devices)),
            devices: devices::Devices::new(config.devices),
            catalogue: catalogue::Catalogue::default(),
            residency: residency::Residency::default(),
            leases: lease::Leases::default(),
            admission: admission::Admission::default(),
            evictions: evictions::Evictions::default(),
            quarantine: quarantine::Quarantine::default(),
            reserves: reserves::Reserves::default(),
            ops: ops::Ops::default(),
            expected: BTreeSet::new(),
            taken_over: BTreeSet::new(),
            touched: FewSet::default(),
            room_changed: false,
            claimed: Amounts::default(),
        }
    }

    /// Takes in what happened and appends what is to be done about it.
    ///
    /// # Errors
    /// A fault of ours: the event cannot have happened, or the books disagree. The state is not
    /// to be trusted any more: the caller records it and exits.
    pub fn handle(
        &mut self,
        now: Time,
        event: Event,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        self.policies.explained.clear();
        if !matches!(event, Event::Adopt(_)) {
            self.taken_over.clear();
        }
        self.ahead.foreseen.clear();
        self.ahead.ended.clear();
        let turn = &mut step::Turn { now, effects };
        self.route(turn, event)?;
        self.settle(turn)?;
        if cfg!(debug_assertions) && self.small() {
            invariants::check(self)?;
        }
        Ok(())
    }

    /// When [`Event::Tick`] is due, unless something else changes that first.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let expected = self.expected.first().map(|(until, _)| *until);
        [self.admission.next_deadline(), expected, self.look_at()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Puts a policy in charge of a tier that no [`Choice`] names: for simulators, whose policies
    /// know the future, and for tests. Comes before any event.
    ///
    /// # Errors
    /// [`Violation::UnknownDevice`] if there is no such tier.
    pub fn install_policy(&mut self, tier: Tier, policy: Box<dyn Policy>) -> Result<(), Violation> {
        self.policies.install(tier, policy)
    }

    /// The models whose uses were forgotten since this was last asked. What is remembered of a
    /// model outlives its version: whoever gives out the ids has to keep that of a model as long as
    /// [`View::remembers`](view::View::remembers) it.
    pub fn take_forgotten(&mut self) -> Vec<ModelId> {
        self.policies.history.take_forgotten()
    }

    /// What there is to see.
    #[must_use]
    pub fn view(&self) -> view::View<'_> {
        view::View::new(self)
    }

    fn route(&mut self, turn: &mut step::Turn<'_>, event: Event) -> Result<(), Violation> {
        match event {
            Event::SessionOpened { session, tenant } => self.leases.open_session(session, tenant),
            Event::SessionClosed { session } => self.session_closed(turn, session),
            Event::Open {
                session,
                request,
                model,
                wanted,
                deadline,
            } => self.open(turn, (session, request), (model, wanted), deadline),
            Event::Close {
                session,
                request,
                lease,
            } => self.close(turn, session, request, lease),
            Event::Cancel {
                session,
                request,
                target,
            } => self.cancel(turn, session, request, target),
            Event::Evict {
                session,
                request,
                version,
                tier,
            } => self.evict_version(turn, (session, request), version, tier),
            Event::Configure { model, wishes } => self.configure(turn, model, wishes),
            Event::ModelChanged { model } => self.model_changed(turn, model),
            Event::SetLimit {
                tier,
                budget,
                limit,
            } => self.set_limit(tier, budget, limit),
            Event::SetPolicy { tier, policy } => self.policies.choose(tier, policy),
            Event::SetPrefetch(settings) => {
                self.set_prefetch(turn.now, settings);
                Ok(())
            }
            Event::Recall { model, memory } => {
                self.policies.history.recall(model, &memory, turn.now);
                Ok(())
            }
            Event::RecallAll(experience) => {
                self.policies.history.recall_experience(&experience);
                Ok(())
            }
            Event::Hint { model, due } => {
                self.said(turn, model, due);
                Ok(())
            }
            Event::Adopt(adoption) => self.adopt(turn, &adoption),
            Event::Resume {
                session,
                request,
                leases,
            } => self.resume(turn, (session, request), &leases),
            Event::DeviceLost { device, fault } => self.device_lost(turn, device, &fault),
            Event::Damaged { segment, fault } => self.damaged(turn, segment, &fault),
            Event::Identified { segment, content } => self.identified(segment, content),
            Event::Drain => self.drain(turn),
            Event::Resolved { op, outcome } => self.resolved(turn, op, outcome),
            Event::Took { op, took_us } => self.took(op, took_us),
            Event::Laid { op } => self.laid(turn, op),
            Event::Unlaid { op, fault } => self.unlaid(turn, op, &fault),
            Event::Loaded { op, outcome } => self.loaded(turn, op, outcome),
            Event::Freed { op } => self.freed(turn, op),
            Event::Tick => self.tick(turn),
        }
    }

    fn small(&self) -> bool {
        let records = self.catalogue.versions.len()
            + self.leases.len()
            + self.admission.len()
            + self.ops.len();
        self.residency.len() <= CHECKED_SEGMENTS_MAX && records <= CHECKED_RECORDS_MAX
    }
}
