//! The decider's thread: turns requests and completions into events, and effects into work.
//!
//! Everything here runs on one thread, inside one `RefCell`: a request is decoded, decided and
//! answered without a lock, a queue or a wake-up. What blocks is handed to [`crate::transfer`];
//! its completions come back through a channel.

mod answer;
mod device_views;
mod devices;
mod forecast;
mod grant;
mod id_map;
mod keeping;
mod listing;
mod loading;
mod marks;
mod names;
mod operator;
mod orders;
mod policy;
mod readiness;
mod records;
mod refusal;
mod remembering;
mod requests;
mod resolving;
mod supply;
mod verify;
mod views;
mod work;

use crate::catalogue::Catalogue;
use crate::config::IntegrityConfig;
use crate::degraded::Degraded;
use crate::integrity::Lists;
use crate::journal::{self, Journal};
use crate::keeper::Keeper;
use crate::memory::stock::Stock;
use crate::peer::Peer;
use crate::session::{Ended, SessionIo};
use crate::source::Closer;
use crate::status::events::{Event as LogEvent, EventKind, EventLog};
use crate::status::metrics::Metrics;
use crate::transfer::Lanes;
use crate::turns::Turns;
use devices::{FillEffect, FillRecord, HeldImage};
use id_map::IdMap;
use keeping::Keeping;
use listing::Listing;
use loading::Loading;
use mrm_core::Core;
use mrm_core::effect::Effect;
use mrm_core::event::Event;
use mrm_core::id::{SegmentId, SessionId, Time};
use mrm_core::ledger::Tier;
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::ids::InstanceId;
use mrm_proto::name::ModelName;
use names::Names;
use records::{Held, LoadRecord, Pending, Session, Who};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, mpsc, watch};
use work::Completed;

pub(crate) use devices::{DeviceTier, Managed};
pub(crate) use operator::answer_queries;
pub(crate) use policy::Policies;

/// How often a waiting client hears how far its load is.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// How often each device is asked how it is, and how much of it others take.
const HEALTH_EVERY: Duration = Duration::from_secs(5);

/// Bounds and defaults of the shell, from the configuration.
#[derive(Debug, Clone)]
pub(crate) struct ShellConfig {
    pub(crate) sessions_max: usize,
    pub(crate) sessions_per_uid_max: usize,
    pub(crate) open_wait_ms_default: u64,
    /// Descriptors of opened files that may be held for loads to come.
    pub(crate) files_waiting_max: usize,
    pub(crate) runtime_dir: String,
    /// Where the journal goes when the decider broke a rule.
    pub(crate) journal_dir: PathBuf,
    pub(crate) integrity: IntegrityConfig,
    /// Where is kept what is remembered of models.
    pub(crate) state_dir: PathBuf,
}

/// Handle on the decider's thread state. Cheap to clone, bound to its thread.
#[derive(Clone)]
pub(crate) struct Shell(Rc<Inner>);

struct Inner {
    state: RefCell<State>,
    /// When [`State::wake`] is due may have changed.
    wake_changed: Notify,
    /// The last lease may be gone.
    settled: Notify,
}

/// What the shell is made of.
pub(crate) struct Parts {
    pub(crate) config: ShellConfig,
    pub(crate) core: Core,
    pub(crate) journal: Journal,
    pub(crate) catalogue: Catalogue,
    pub(crate) lanes: Lanes,
    pub(crate) degraded: Degraded,
    pub(crate) metrics: Metrics,
    pub(crate) instance: InstanceId,
    /// Tells followers of the event log that there is more.
    pub(crate) announcer: watch::Sender<u64>,
    /// Closes what clients passed and nobody takes.
    pub(crate) closer: Closer,
    pub(crate) tier: DeviceTier,
    pub(crate) keeper: Keeper,
    /// Memory that is ready for loads.
    pub(crate) stock: Option<Stock>,
}

struct State {
    config: ShellConfig,
    core: Core,
    journal: Journal,
    started: Instant,
    instance: InstanceId,
    /// Runs of the daemon whose memory this one has: its own, then the last first.
    ancestors: Vec<InstanceId>,
    names: Names,
    catalogue: Arc<Catalogue>,
    listing: Listing,
    /// `None` once they are shut down.
    lanes: Option<Lanes>,
    degraded: Degraded,
    metrics: Metrics,
    log: EventLog,
    log_seen: watch::Sender<u64>,
    closer: Closer,
    turns: Turns,
    next_session: u64,
    sessions: IdMap<SessionId, Session>,
    sessions_of_uid: HashMap<u32, usize>,
    segments: IdMap<SegmentId, Held>,
    loads: IdMap<SegmentId, LoadRecord>,
    loading: Loading,
    /// Leases that were granted before all was filled.
    early: readiness::EarlyLeases,
    orders: orders::Orders,
    keeping: Keeping,
    tier: DeviceTier,
    images: IdMap<SegmentId, HeldImage>,
    fills: IdMap<SegmentId, FillRecord>,
    /// When the devices are asked how they are; `None` without devices.
    health_at: Option<Instant>,
    verifying: verify::Verifying,
    lists: Lists,
    progress_waiters: usize,
    serving: bool,
    draining: bool,
    /// Everything is left to the next daemon.
    left: bool,
    /// Of models: their own layout on devices, what leases keep free there, where pinned ones load.
    granularities: std::collections::BTreeMap<ModelName, crate::config::Granularity>,
    workspaces: std::collections::BTreeMap<ModelName, mrm_core::id::Bytes>,
    warm_on: std::collections::BTreeMap<ModelName, crate::status::WarmOn>,
    /// Models of the configuration file, whose wishes a reload may take back.
    configured: std::collections::BTreeMap<ModelName, mrm_core::event::Wishes>,
    /// The policies of the configuration, and why what is being freed was chosen.
    reasons: policy::Reasons,
    remembering: remembering::Remembering,
    completed: mpsc::UnboundedSender<Completed>,
    followups: VecDeque<Event>,
    /// Opens that waited were answered: files may be open that nobody needs.
    supplies_stale: bool,
    effects: Vec<Effect>,
    last_wake: Option<Instant>,
    /// When those who asked for progress hear the next.
    report_at: Instant,
}

impl Shell {
    /// A shell, and the end of the channel that [`Shell::run`] reads.
    pub(crate) fn new(parts: Parts) -> (Self, mpsc::UnboundedReceiver<Completed>) {
        let (completed, completions) = mpsc::unbounded_channel();
        let lists = Lists::new(parts.config.integrity.manifest, parts.degraded.clone());
        let state = State {
            config: parts.config,
            core: parts.core,
            journal: parts.journal,
            started: Instant::now(),
            instance: parts.instance,
            ancestors: vec![parts.instance],
            names: Names::default(),
            catalogue: Arc::new(parts.catalogue),
            listing: Listing::new(),
            lanes: Some(parts.lanes),
            degraded: parts.degraded,
            metrics: parts.metrics,
            log: EventLog::default(),
            log_seen: parts.announcer,
            closer: parts.closer,
            turns: Turns::default(),
            next_session: 0,
            sessions: IdMap::default(),
            sessions_of_uid: HashMap::new(),
            segments: IdMap::default(),
            loads: IdMap::default(),
            loading: Loading::new(parts.stock),
            early: readiness::EarlyLeases::default(),
            orders: orders::Orders::default(),
            images: IdMap::default(),
            fills: IdMap::default(),
            health_at: (!parts.tier.devices.is_empty()).then(|| Instant::now() + HEALTH_EVERY),
            verifying: verify::Verifying::default(),
            lists,
            keeping: Keeping::new(parts.keeper, parts.instance),
            tier: parts.tier,
            progress_waiters: 0,
            serving: false,
            draining: false,
            left: false,
            granularities: std::collections::BTreeMap::new(),
            workspaces: std::collections::BTreeMap::new(),
            warm_on: std::collections::BTreeMap::new(),
            configured: std::collections::BTreeMap::new(),
            reasons: policy::Reasons::default(),
            remembering: remembering::Remembering::new(),
            completed,
            followups: VecDeque::new(),
            supplies_stale: false,
            effects: Vec::new(),
            last_wake: None,
            report_at: Instant::now(),
        };
        let inner = Inner {
            state: RefCell::new(state),
            wake_changed: Notify::new(),
            settled: Notify::new(),
        };
        (Self(Rc::new(inner)), completions)
    }

    /// Feeds completions and the passing of time to the decider, for ever.
    pub(crate) async fn run(&self, mut completions: mpsc::UnboundedReceiver<Completed>) {
        loop {
            let wake_at = self.0.state.borrow().wake_at();
            tokio::select! {
                completed = completions.recv() => match completed {
                    Some(completed) => self.with(|state| state.complete(completed)),
                    None => return,
                },
                () = sleep_until(wake_at), if wake_at.is_some() => self.with(State::wake),
                () = self.0.wake_changed.notified() => {}
            }
        }
    }

    /// Whose turn it is.
    pub(crate) fn turns(&self) -> Turns {
        self.0.state.borrow().turns.clone()
    }

    /// What closes descriptors that nobody takes, and counts those of the user `uid`.
    pub(crate) fn closer(&self, uid: u32) -> Closer {
        self.0.state.borrow().closer.of_user(uid)
    }

    /// A client connected.
    pub(crate) fn connected(&self, peer: Peer, io: Rc<SessionIo>) -> Result<SessionId, ErrorReply> {
        self.with(|state| state.connected(peer, io))
    }

    /// A client's session is over.
    pub(crate) fn disconnected(&self, session: SessionId, why: Ended) {
        self.with(|state| state.disconnected(session, &why));
    }

    /// Runs `action` on the state, then wakes whoever its outcome concerns.
    fn with<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.state.borrow_mut();
        let outcome = action(&mut state);
        state.follow_up();
        state.tell_stock();
        let wake_at = state.wake_at();
        if wake_at != state.last_wake {
            state.last_wake = wake_at;
            self.0.wake_changed.notify_one();
        }
        if state.draining {
            self.0.settled.notify_waiters();
        }
        outcome
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl State {
    fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn wake_at(&self) -> Option<Instant> {
        let core = self
            .core
            .next_deadline()
            .map(|at| self.started + Duration::from_micros(at.0));
        let report = (self.progress_waiters > 0).then_some(self.report_at);
        let saving = self.remembering.wake_at();
        [core, report, self.listing.wake_at(), self.health_at, saving]
            .into_iter()
            .flatten()
            .min()
    }

    /// Some deadline has come.
    fn wake(&mut self) {
        if self.progress_waiters > 0 && self.report_at <= Instant::now() {
            self.report_at = Instant::now() + PROGRESS_EVERY;
            self.report_progress();
        }
        self.listing_is_late();
        self.check_devices();
        self.remember_if_due();
        self.step(Event::Tick);
    }

    /// One event and its effects. None any more once everything is left to the next daemon, as if this
    /// one were gone already: what is lent then, no keeper hears of.
    fn step(&mut self, event: Event) {
        if self.left {
            return;
        }
        let now = self.now();
        let mut effects = std::mem::take(&mut self.effects);
        #[cfg(all(feature = "failpoints", debug_assertions))]
        let event = crate::failpoint::impossible_event(self.journal.len()).unwrap_or(event);
        self.journal.event(now, &event);
        if let Err(violation) = self.core.handle(now, event, &mut effects) {
            self.broken_rule(&violation);
        }
        let name = |model| Some(self.names.model(model)?.text.to_string());
        self.journal.effects(&effects, name);
        self.note_decisions();
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        self.effects = effects;
        self.queue_small_loads();
    }

    /// The events that answers gave rise to.
    fn follow_up(&mut self) {
        while let Some(event) = self.followups.pop_front() {
            let changed = if let Event::ModelChanged { model } = event {
                Some(model)
            } else {
                None
            };
            self.step(event);
            if let Some(model) = changed {
                self.forget_if_unknown(model);
            }
        }
        for model in self.core.take_forgotten() {
            self.forget_if_unknown(model);
        }
        if std::mem::take(&mut self.supplies_stale) {
            self.drop_supplies();
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Resolve { op, model } => self.resolve(op, model),
            Effect::Load {
                op,
                segment,
                source,
                version,
                charge,
                tier,
                feed,
            } => match tier {
                Tier::Host => self.load(op, segment, source, version, charge),
                Tier::Device(device) => self.fill(FillEffect {
                    op,
                    segment,
                    version,
                    charge,
                    device,
                    feed,
                }),
            },
            Effect::Free { op, segment, tier } => self.let_go(op, segment, tier),
            Effect::Adopted {
                segment,
                source,
                tier,
            } => self.adopted(segment, source, tier),
            Effect::Revoke {
                session,
                lease,
                gone,
                fault,
            } => self.revoke((session, lease), gone, &fault),
            Effect::Reply {
                session,
                request,
                reply,
            } => self.answer(session, request, reply),
            Effect::Forget { version } => {
                let model = self.names.model_of(version);
                self.names.forget_version(version);
                self.forget_kept_version(version);
                if let Some(model) = model {
                    self.forget_if_unknown(model);
                }
                self.supplies_stale = true;
            }
        }
    }

    fn connected(&mut self, peer: Peer, io: Rc<SessionIo>) -> Result<SessionId, ErrorReply> {
        let clients = self.sessions_of_uid.values().sum::<usize>();
        let of_uid = self.sessions_of_uid.get(&peer.uid).copied().unwrap_or(0);
        let refusal = if clients >= self.config.sessions_max {
            Some(format!(
                "{clients} sessions are connected: raise limits.sessions_max"
            ))
        } else if of_uid >= self.config.sessions_per_uid_max {
            Some(format!(
                "uid {} has {of_uid} sessions: close some, or raise limits.sessions_per_uid_max",
                peer.uid
            ))
        } else {
            None
        };
        if let Some(message) = refusal {
            self.metrics.protocol_error();
            return Err(ErrorReply::new(ErrorCode::TooManySessions, message));
        }
        let session = self.new_session();
        *self.sessions_of_uid.entry(peer.uid).or_default() += 1;
        let tenant = mrm_core::id::Tenant(peer.uid);
        self.metrics.session_opened();
        self.note(LogEvent::of(EventKind::SessionOpened).session(session.0));
        let (name, since) = (Arc::from(""), Instant::now());
        let who = Who::Client {
            io,
            peer,
            name,
            since,
            said_hello: false,
            features: 0,
        };
        self.sessions.insert(
            session,
            Session {
                who,
                pending: HashMap::new(),
            },
        );
        self.step(Event::SessionOpened { session, tenant });
        Ok(session)
    }

    fn disconnected(&mut self, session: SessionId, why: &Ended) {
        let detail = match why {
            Ended::Closed => None,
            Ended::PeerExited => Some("its process exited".to_owned()),
            Ended::Dropped => Some("dropped".to_owned()),
            Ended::Protocol(error) => {
                self.metrics.protocol_error();
                Some(error.message.clone())
            }
            Ended::Io(error) => Some(error.to_string()),
        };
        let Some(record) = self.sessions.remove(&session) else {
            return;
        };
        if let Who::Client { peer, .. } = &record.who
            && let Some(count) = self.sessions_of_uid.get_mut(&peer.uid)
        {
            *count -= 1;
            if *count == 0 {
                self.sessions_of_uid.remove(&peer.uid);
            }
        }
        self.end_early_of(session);
        self.progress_waiters -= record.pending.values().filter(|p| p.progress).count();
        let mut event = LogEvent::of(EventKind::SessionClosed).session(session.0);
        if let Some(detail) = &detail {
            tracing::debug!(%session, detail, "session ended");
            event = event.detail(detail);
        }
        self.note(event);
        self.step(Event::SessionClosed { session });
        self.supplies_stale |= !record.pending.is_empty();
        for pending in record.pending.into_values() {
            self.after_answer(&pending);
        }
    }

    fn new_session(&mut self) -> SessionId {
        self.next_session += 1;
        SessionId(self.next_session)
    }

    /// Adds to the operator's log.
    fn note(&mut self, event: LogEvent) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let seq = self
            .log
            .push(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), event);
        if self.log_seen.receiver_count() > 0 {
            self.log_seen.send_replace(seq);
        }
    }

    /// The decider found its own books wrong. Going on could evict what is in use; a fresh start
    /// cannot. Clients keep what they have mapped.
    fn broken_rule(&mut self, violation: &mrm_core::violation::Violation) -> ! {
        tracing::error!(%violation, "the daemon broke one of its own rules and stops; please report");
        self.journal.violated(violation);
        match journal::dump::dump(&self.journal, &self.config.journal_dir) {
            Ok(path) => tracing::error!(
                journal = %path.display(),
                "what led to it is kept; `mrmd --replay` repeats it"
            ),
            Err(error) => tracing::error!(%error, "what led to it is lost"),
        }
        std::process::abort();
    }
}
