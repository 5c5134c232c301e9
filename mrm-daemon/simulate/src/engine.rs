//! One run: the decider of `mrmd`, told of requests, loads and time that are pretended.
//!
//! Loads take no time on the clock unless they are [timed](Setup::timed): each request is answered
//! at once and the seconds are booked to it, as the literature on caches does. Whoever runs holds
//! its model; where those who run leave no room, the next one waits. It begins with nothing in
//! memory.
//!
//! ```
//! use mrm_core::id::Time;
//! use mrm_simulate::catalogue::Model;
//! use mrm_simulate::contender::Contender;
//! use mrm_simulate::engine::{Setup, run};
//! use mrm_simulate::workload::{Request, Workload};
//! let model = Model { name: "a".into(), bytes: 10, load_us: 2_000_000, exec_us: 1 };
//! let at = |s: u64| Request { at: Time(s * 1_000_000), model: 0, exec_us: 1 };
//! let workload = Workload { models: vec![model], requests: vec![at(0), at(60)] };
//! let setup = Setup::new(&workload, Contender::oracle(), 10);
//! let outcome = run(&setup, &mut |_| {})?;
//! assert_eq!((outcome.requests, outcome.misses, outcome.load_us), (2, 1, 2_000_000));
//! # Ok::<(), mrm_simulate::engine::SimulationError>(())
//! ```

mod books;
mod work;

pub use books::{Outcome, Resident};

use crate::contender::Contender;
use crate::workload::Workload;
use mrm_core::effect::Effect;
use mrm_core::event::{Event, Wanted};
use mrm_core::id::{
    Bytes, DeviceId, LeaseId, ModelId, OpId, RequestId, SegmentId, SessionId, Time,
};
use mrm_core::ledger::Tier;
use mrm_core::policy::Future;
use mrm_core::violation::Violation;
use mrm_core::{Config, Core, DeviceConfig, Prefetch};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// What an upload from host memory to a device is taken to reach, bytes a second: about half of
/// PCIe 4 with 16 lanes.
pub const UPLOAD_BYTES_PER_S: u64 = 12_000_000_000;
/// Requests between two reports of progress.
const PROGRESS_STEP: u64 = 4096;
/// A gap between requests is gone through tick by tick for so long at each of its ends.
const TICKED_US: u64 = 24 * 3600 * 1_000_000;
const SESSION: SessionId = SessionId(1);

/// A run could not go on: a fault of ours.
#[derive(Debug, thiserror::Error)]
pub enum SimulationError {
    /// The decider found one of its own rules broken.
    #[error(
        "the decider broke one of its rules at request {request}: {violation}; please report it"
    )]
    Violation {
        /// The request, from 0.
        request: u64,
        /// The rule.
        violation: Violation,
    },
    /// The decider asks for the time again and again.
    #[error("the decider makes no progress at {} s; please report it", .0.0 as f64 / 1e6)]
    Stuck(Time),
}

/// What becomes of a request for a model that is larger than the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Oversize {
    /// It is loaded for this request alone, beside the cache.
    #[default]
    Transient,
    /// It is refused, and counted apart.
    Refuse,
}

/// What is run.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// The requests.
    pub workload: &'a Workload,
    /// How memory is managed, on each tier.
    pub contender: Contender,
    /// Host memory, bytes.
    pub host_bytes: u64,
    /// The memory of a device, bytes; requests want their models there.
    pub device_bytes: Option<u64>,
    /// What an upload reaches.
    pub upload_bytes_per_s: u64,
    /// Whether what is expected is loaded ahead.
    pub prefetch: bool,
    /// What becomes of what can never fit.
    pub oversize: Oversize,
    /// Whether loads take their time on the clock, so that others join them or come in between.
    pub timed: bool,
    /// Whether to write down what is resident when.
    pub timeline: bool,
    /// Whether to take the time of each decision that drops something.
    pub clocked: bool,
}

impl<'a> Setup<'a> {
    /// Host memory of so many bytes, and nothing else.
    #[must_use]
    pub const fn new(workload: &'a Workload, contender: Contender, host_bytes: u64) -> Self {
        Self {
            workload,
            contender,
            host_bytes,
            device_bytes: None,
            upload_bytes_per_s: UPLOAD_BYTES_PER_S,
            prefetch: false,
            oversize: Oversize::Transient,
            timed: false,
            timeline: false,
            clocked: false,
        }
    }
}

/// Runs it. `progress` is told now and then how many requests are done.
///
/// # Errors
/// Only where the decider itself fails.
pub fn run(setup: &Setup<'_>, progress: &mut dyn FnMut(u64)) -> Result<Outcome, SimulationError> {
    let mut engine = Engine::new(setup)?;
    engine.told(Event::SessionOpened {
        session: SESSION,
        tenant: mrm_core::id::Tenant(0),
    })?;
    for (number, request) in (0..).zip(&setup.workload.requests) {
        if number % PROGRESS_STEP == 0 {
            progress(number);
        }
        engine.number = number;
        engine.advance(request.at)?;
        engine.open(number, request.model, request.at)?;
    }
    engine.advance(Time(u64::MAX))?;
    progress(setup.workload.requests.len() as u64);
    Ok(engine.books.outcome(engine.now))
}

/// What happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Loaded(OpId, SegmentId, u64),
    Close(LeaseId),
}

struct Engine<'a> {
    setup: &'a Setup<'a>,
    core: Core,
    books: books::Books<'a>,
    now: Time,
    due: BinaryHeap<Reverse<(Time, u64, Due)>>,
    /// Number of the next entry of `due`: what is due together comes in this order.
    entries: u64,
    /// The request that is being told.
    number: u64,
    wanted: Wanted,
    effects: Vec<Effect>,
}

impl<'a> Engine<'a> {
    fn new(setup: &'a Setup<'a>) -> Result<Self, SimulationError> {
        let mut core = Core::new(config(setup));
        let smallest = setup.device_bytes.unwrap_or(setup.host_bytes);
        let fits = |model: &u32| setup.workload.models[*model as usize].bytes <= smallest;
        let asked = setup.workload.requests.iter().map(|request| request.model);
        if setup.contender.is_oracle() {
            let asked = asked.filter(fits).map(|model| ModelId(model.into()));
            let future = Arc::new(Future::of(asked));
            let device = setup.device_bytes.map(|_| Tier::Device(DeviceId(0)));
            for tier in std::iter::once(Tier::Host).chain(device) {
                if let Some(policy) = setup.contender.installed(&future) {
                    let installed = core.install_policy(tier, policy);
                    installed.map_err(|violation| SimulationError::Violation {
                        request: 0,
                        violation,
                    })?;
                }
            }
        }
        Ok(Self {
            setup,
            core,
            books: books::Books::new(setup),
            now: Time(0),
            due: BinaryHeap::new(),
            entries: 0,
            number: 0,
            wanted: match setup.device_bytes {
                Some(_) => Wanted::Device([DeviceId(0)].into()),
                None => Wanted::Host,
            },
            effects: Vec::new(),
        })
    }

    /// Lets time pass until then, and what is due happen.
    fn advance(&mut self, until: Time) -> Result<(), SimulationError> {
        let mut last_tick = None;
        loop {
            let due = self.due.peek().map(|Reverse((at, ..))| *at);
            let due = due.filter(|at| *at <= until);
            let tick = self.core.next_deadline().filter(|at| *at <= until);
            // Nobody asks any more: what is left is let go of, and that is all.
            let tick = tick.filter(|_| due.is_some() || until.0 < u64::MAX);
            match (due, tick) {
                (Some(at), tick) if tick.is_none_or(|tick| at <= tick) => {
                    self.now = self.now.max(at);
                    if let Some(Reverse((_, _, due))) = self.due.pop() {
                        self.happens(due)?;
                    }
                }
                (_, Some(at)) => {
                    let at = self.skip(at, due.unwrap_or(until));
                    if last_tick == Some(at) {
                        return Err(SimulationError::Stuck(at));
                    }
                    last_tick = Some(at);
                    self.now = self.now.max(at);
                    self.told(Event::Tick)?;
                }
                (_, None) => break,
            }
        }
        if until.0 < u64::MAX {
            self.now = self.now.max(until);
        }
        Ok(())
    }

    /// A clock that jumps by years is not gone through tick by tick: the middle is left out.
    fn skip(&self, tick: Time, until: Time) -> Time {
        let began = self.books.last_asked();
        let long = until.us_since(began) > 2 * TICKED_US;
        match long && tick.us_since(began) > TICKED_US {
            true => tick.max(Time(until.0 - TICKED_US)),
            false => tick,
        }
    }

    fn happens(&mut self, due: Due) -> Result<(), SimulationError> {
        match due {
            Due::Close(lease) => self.told(Event::Close {
                session: SESSION,
                request: None,
                lease,
            }),
            Due::Loaded(op, segment, took_us) => {
                self.told(Event::Took { op, took_us })?;
                self.books.loaded(segment, self.now);
                self.told(work::loaded(op, segment))
            }
        }
    }

    fn open(&mut self, number: u64, model: u32, at: Time) -> Result<(), SimulationError> {
        self.books.asked(model, at);
        self.told(Event::Open {
            session: SESSION,
            request: RequestId(number + 1),
            model: ModelId(model.into()),
            wanted: self.wanted.clone(),
            deadline: Time(u64::MAX),
        })
    }

    fn at(&mut self, at: Time, due: Due) {
        self.entries += 1;
        self.due.push(Reverse((at, self.entries, due)));
    }
}

fn config(setup: &Setup<'_>) -> Config {
    let policy = setup.contender.configured();
    let device = |bytes| DeviceConfig {
        pieces_max: u64::MAX,
        policy,
        ..DeviceConfig::with_budget(Bytes(bytes))
    };
    Config {
        segments_max: u64::MAX,
        waiting_max: usize::MAX,
        leases_per_session_max: usize::MAX,
        revalidate_ms: u64::MAX,
        policy,
        devices: setup.device_bytes.map(device).into_iter().collect(),
        prefetch: Prefetch {
            enabled: setup.prefetch,
            ..Prefetch::default()
        },
        ..Config::with_limit(Bytes(setup.host_bytes))
    }
}
