//! A daemon: the real decider, and a shell that does what `mrm-daemon/src/shell` does.

mod answer;
mod fills;
mod names;
mod operator;
mod requests;
mod restart;
mod sessions;
mod work;

use crate::books::Books;
use crate::breach::{Checked, Rule, breach, ensure};
use crate::env::{Env, Happening, Job, Run};
use crate::link::LinkId;
use crate::memory::AllocId;
use crate::settings::{DRAIN_US, HEALTH_EVERY_US, PROGRESS_EVERY_US};
use mrm_core::effect::Effect;
use mrm_core::event::{Event, Fault};
use mrm_core::id::{Bytes, DeviceId, LeaseId, ModelId, OpId, SegmentId, SessionId, SourceId};
use mrm_core::ledger::Tier;
use mrm_core::view::RecordsView;
use mrm_core::{Config, Core, DeviceConfig, Prefetch, invariants};
use mrm_proto::error::ErrorCode;
use names::{Found, Names};
pub(crate) use requests::{IN_FLIGHT_MAX, uuid_of};
pub(crate) use restart::Left;
use sessions::Session;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use work::Load;

/// Files of a model that are not filled yet, and in which segments they lie.
type Unfilled = Vec<(u32, Option<SegmentId>)>;

/// One run of the daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) run: Run,
    core: Core,
    books: Books,
    names: Names,
    sessions: BTreeMap<SessionId, Session>,
    of_link: BTreeMap<LinkId, SessionId>,
    sessions_made: u64,
    segments: BTreeMap<SegmentId, Held>,
    loads: BTreeMap<SegmentId, Load>,
    /// Leases that were granted before all was filled, and which of their files were not.
    early: BTreeMap<(SessionId, LeaseId), Unfilled>,
    found: BTreeMap<OpId, Result<Found, Fault>>,
    /// What the last daemon left of a source on a tier: memory, bytes, pieces.
    left: BTreeMap<(SourceId, Tier), (AllocId, u64, u64)>,
    /// For which user alone, as far as it is for one.
    left_to: BTreeMap<AllocId, u32>,
    /// What of that was not hashed.
    left_unknown: BTreeSet<AllocId>,
    /// How many loads each segment is read for.
    feeding: BTreeMap<SegmentId, u64>,
    lost: BTreeSet<DeviceId>,
    /// What models may take of each device.
    budgets: Vec<u64>,
    followups: VecDeque<Event>,
    /// Opens that waited were answered: files may be open that nobody needs.
    supplies_stale: bool,
    wake_at: Option<u64>,
    progress_planned: bool,
    pub(crate) draining: bool,
    ending: bool,
}

/// A segment in memory.
#[derive(Debug)]
struct Held {
    alloc: AllocId,
    tier: Tier,
    /// It goes as soon as nothing is filled from it.
    freeing: Option<OpId>,
}

impl Daemon {
    /// A daemon that starts.
    pub(crate) fn start(env: &mut Env, run: Run, left: &Left) -> Checked<Self> {
        let settings = &env.settings;
        let devices = settings.devices.iter().map(|device| DeviceConfig {
            pieces_max: 64,
            peers: device.peers.iter().copied().map(DeviceId).collect(),
            ..DeviceConfig::with_budget(Bytes(device.budget))
        });
        let config = Config {
            segments_max: settings.segments_max,
            waiting_max: settings.waiting_max,
            leases_per_session_max: settings.leases_max,
            revalidate_ms: settings.revalidate_ms,
            prefetch: Prefetch {
                enabled: settings.prefetch,
                ..Prefetch::default()
            },
            devices: devices.collect(),
            ..Config::with_limit(Bytes(settings.host_budget))
        };
        let mut daemon = Self {
            run,
            books: Books::new(&config),
            core: Core::new(config),
            names: Names::default(),
            sessions: BTreeMap::new(),
            of_link: BTreeMap::new(),
            sessions_made: 0,
            segments: BTreeMap::new(),
            loads: BTreeMap::new(),
            early: BTreeMap::new(),
            found: BTreeMap::new(),
            left: BTreeMap::new(),
            left_to: BTreeMap::new(),
            left_unknown: BTreeSet::new(),
            feeding: BTreeMap::new(),
            lost: BTreeSet::new(),
            budgets: settings
                .devices
                .iter()
                .map(|device| device.budget)
                .collect(),
            followups: VecDeque::new(),
            supplies_stale: false,
            wake_at: None,
            progress_planned: false,
            draining: false,
            ending: false,
        };
        daemon.adopt(env, left)?;
        daemon.look_at_devices_later(env);
        Ok(daemon)
    }

    fn plan(&self, env: &mut Env, us: u64, job: Job) {
        env.after(us, Happening::Daemon(self.run, job));
    }

    fn devices(&self) -> impl Iterator<Item = DeviceId> + use<> {
        let ids = (0..=u16::MAX).map(DeviceId);
        ids.take(self.budgets.len())
    }

    fn look_at_devices_later(&self, env: &mut Env) {
        for device in self.devices() {
            let again = true;
            self.plan(env, HEALTH_EVERY_US, Job::Health { device, again });
        }
    }

    /// Something of its own that was planned.
    pub(crate) fn job(&mut self, env: &mut Env, job: Job) -> Checked {
        match job {
            Job::Look { op, model } => self.look(env, op, model),
            Job::Found { op, model } => self.resolved(env, op, model)?,
            Job::Allocate { op, segment } => self.allocate(env, op, segment)?,
            Job::Read { op, segment } => self.read(env, op, segment)?,
            Job::Loaded { op, segment } => self.loaded(env, op, segment)?,
            Job::Identified(segment) => self.identified(env, segment)?,
            Job::Freed { op, segment } => self.freed(env, op, segment)?,
            Job::Health { device, again } => self.check_device(env, device, again)?,
            Job::Wake => self.wake(env)?,
            Job::Stall(session) => self.stalled(env, session)?,
            Job::Progress => self.progress(env)?,
            Job::End => {}
        }
        self.finish(env)
    }

    /// One event and its effects.
    fn step(&mut self, env: &mut Env, event: Event) -> Checked {
        env.steps += 1;
        env.trace.note(env.now, &event);
        let ticked = event == Event::Tick;
        self.books.happens(&event)?;
        let mut effects = Vec::new();
        self.core.handle(env.time(), event, &mut effects)?;
        // A debug build has checked them already.
        if !cfg!(debug_assertions) {
            invariants::check(&self.core)?;
        }
        for effect in &effects {
            env.trace.note(env.now, effect);
            env.reached.see(effect);
            let size = self.size_of(effect);
            self.books.see(effect, size)?;
        }
        for foreseen in self.core.view().foreseen() {
            env.reached.see_foreseen(foreseen);
            ensure(foreseen.displaced <= foreseen.worth, Rule::Ahead, || {
                format!("{foreseen:?}")
            })?;
            ensure(!self.books.waits(), Rule::Ahead, || {
                format!("{foreseen:?} while somebody waits")
            })?;
        }
        self.books
            .compare(&self.core, ticked.then_some(env.time()))?;
        self.compare_memory(env)?;
        for effect in effects {
            self.carry_out(env, effect)?;
        }
        Ok(())
    }

    /// What is there is charged.
    fn compare_memory(&self, env: &Env) -> Checked {
        for tier in self.core.view().tiers() {
            let (kept, charged) = (env.memory.kept(tier).1, self.books.charged(tier).0);
            ensure(kept <= charged, Rule::Budget, || {
                format!("{tier}: {kept} B are there, {charged} are charged")
            })?;
        }
        Ok(())
    }

    /// Bytes and pieces of what is taken over, and pieces of what is loaded.
    fn size_of(&self, effect: &Effect) -> (u64, u64) {
        match effect {
            Effect::Load {
                version,
                tier: Tier::Device(_),
                ..
            } => {
                let record = self.names.version_of(*version);
                let image = record.and_then(|record| record.image);
                (0, image.map_or(0, |image| image.pieces))
            }
            Effect::Adopted { source, tier, .. } => {
                let left = self.left.get(&(*source, *tier));
                left.map_or((0, 0), |(_, bytes, pieces)| (*bytes, *pieces))
            }
            Effect::Load { .. }
            | Effect::Resolve { .. }
            | Effect::Free { .. }
            | Effect::Revoke { .. }
            | Effect::Reply { .. }
            | Effect::Forget { .. } => (0, 1),
        }
    }

    fn carry_out(&mut self, env: &mut Env, effect: Effect) -> Checked {
        match effect {
            Effect::Resolve { op, model } => {
                let us = env.work_us(8_000);
                self.plan(env, us, Job::Look { op, model });
                Ok(())
            }
            Effect::Load {
                op,
                segment,
                source,
                version,
                charge,
                tier,
                feed,
            } => {
                let order = self.order(version, source, tier, &feed)?;
                self.load(env, (op, segment), (version, tier, charge), order)
            }
            Effect::Free { op, segment, tier } => self.free(env, op, segment, tier),
            Effect::Adopted {
                segment,
                source,
                tier,
            } => self.adopted(env, segment, source, tier),
            Effect::Revoke {
                session,
                lease,
                gone,
                fault,
            } => self.revoke(env, (session, lease), gone, &fault),
            Effect::Reply {
                session,
                request,
                reply,
            } => self.answer(env, session, request, reply),
            Effect::Forget { version } => {
                self.names.forget_version(version);
                self.supplies_stale = true;
                Ok(())
            }
        }
    }

    /// What answers gave rise to, and what is to happen next.
    pub(crate) fn finish(&mut self, env: &mut Env) -> Checked {
        loop {
            if let Some(event) = self.followups.pop_front() {
                let changed = if let Event::ModelChanged { model } = event {
                    Some(model)
                } else {
                    None
                };
                self.step(env, event)?;
                if let Some(model) = changed {
                    self.forget_if_unknown(model);
                }
            } else if !self.end_sessions(env)? {
                break;
            }
        }
        for model in self.core.take_forgotten() {
            self.forget_if_unknown(model);
        }
        if std::mem::take(&mut self.supplies_stale) {
            let view = self.core.view();
            let filling = self.filling();
            let needed = |version| view.waits_for_room(version) || filling.contains(&version);
            self.names.drop_supplies_unless(needed);
        }
        self.plan_wake(env);
        if self.draining && !self.ending && self.core.view().leases_len() == 0 {
            self.ending = true;
            self.plan(env, 0, Job::End);
        }
        Ok(())
    }

    fn plan_wake(&mut self, env: &mut Env) {
        let at = self.core.next_deadline().map(|at| at.0.max(env.now));
        if let Some(at) = at
            && self.wake_at.is_none_or(|planned| at < planned)
        {
            self.wake_at = Some(at);
            self.plan(env, at - env.now, Job::Wake);
        }
        if !self.progress_planned && self.sessions.values().any(Session::wants_progress) {
            self.progress_planned = true;
            self.plan(env, PROGRESS_EVERY_US, Job::Progress);
        }
    }

    fn wake(&mut self, env: &mut Env) -> Checked {
        self.wake_at = None;
        if self.core.next_deadline().is_some_and(|at| at <= env.time()) {
            self.step(env, Event::Tick)?;
        }
        Ok(())
    }

    /// No new leases from now on.
    pub(crate) fn drain(&mut self, env: &mut Env) -> Checked {
        if self.draining {
            return Ok(());
        }
        self.draining = true;
        self.plan(env, DRAIN_US, Job::End);
        self.step(env, Event::Drain)?;
        self.finish(env)
    }

    fn forget_if_unknown(&mut self, model: ModelId) {
        let view = self.core.view();
        let comes_back = self.names.is_registered(model) && view.remembers(model);
        if view.model(model).is_none() && !comes_back {
            self.names.forget_model(model);
        }
    }

    /// What still awaits something.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let records = self.core.view().records();
        let waits = records.waiting + records.evictions + records.ops + records.sessions > 0;
        // What may be loaded ahead is looked for until the end.
        let deadline = self.core.next_deadline();
        let waits = waits || deadline != self.core.view().look_at();
        waits.then(|| format!("{records:?}"))
    }

    /// Nothing is under way: what is charged is resident, and within the limits if it can be.
    pub(crate) fn check_rest(&self, env: &Env) -> Checked {
        for tier in self.core.view().tiers() {
            let ledger = self.core.view().ledger(tier);
            let settled = ledger.freeing == Bytes::ZERO && ledger.charged == ledger.resident;
            let within = ledger.charged <= ledger.limit || ledger.idle == Bytes::ZERO;
            ensure(settled && within, Rule::Rest, || {
                format!("{tier}: {ledger:?}")
            })?;
            let kept = env.memory.kept(tier).1;
            ensure(kept == ledger.resident.0, Rule::Budget, || {
                format!("{tier}: {kept} B are there, of {ledger:?}")
            })?;
        }
        Ok(())
    }

    /// Lets everything go.
    pub(crate) fn let_all_go(&mut self, env: &mut Env) -> Checked {
        for (_, model) in self.names.registered_models() {
            let wishes = mrm_core::event::Wishes::default();
            self.step(env, Event::Configure { model, wishes })?;
            self.forget_if_unknown(model);
        }
        let tiers: Vec<Tier> = self.core.view().tiers().collect();
        for tier in tiers {
            let (budget, limit) = (Bytes::ZERO, Bytes::ZERO);
            self.step(
                env,
                Event::SetLimit {
                    tier,
                    budget,
                    limit,
                },
            )?;
        }
        self.finish(env)
    }

    /// Nothing is left.
    pub(crate) fn check_empty(&self, env: &Env) -> Checked {
        let records = self.core.view().records();
        ensure(records == RecordsView::default(), Rule::Leak, || {
            format!("{records:?}")
        })?;
        let names = self.names.len();
        ensure(names == 0, Rule::Leak, || {
            format!("{names} names: {:?}", self.names)
        })?;
        for tier in self.core.view().tiers() {
            let kept = env.memory.kept(tier);
            ensure(kept == (0, 0), Rule::Leak, || format!("{tier}: {kept:?}"))?;
        }
        let work = self.segments.len() + self.loads.len() + self.found.len() + self.feeding.len();
        ensure(work + self.sessions.len() == 0, Rule::Leak, || {
            format!("{work} pieces of work, {} sessions", self.sessions.len())
        })
    }
}

/// A failure of the world.
fn fault(code: ErrorCode, message: &str) -> Fault {
    Fault {
        code: code.number(),
        message: Arc::from(message),
    }
}

/// What cannot be.
fn impossible<T>(what: &str) -> Checked<T> {
    breach(Rule::Effects, what)
}
