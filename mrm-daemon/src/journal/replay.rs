//! Runs a journal through a fresh decider.
//!
//! See [`replay`], and the [module](super) for what it guarantees.
//!
//! ```
//! use mrm_daemon::journal::replay::{Options, ReplayError, replay};
//! let refused = replay(b"no journal", &Options::default(), |_| {});
//! assert!(matches!(refused, Err(ReplayError::Damaged(_))));
//! ```

use super::file::{Damage, Reader};
use super::header::{Header, UnknownPolicy};
use super::record::{Record, noted};
use super::words::words;
use mrm_core::effect::{Effect, Origin};
use mrm_core::event::Event;
use mrm_core::id::Time;
use mrm_core::{Core, invariants};
use serde::Serialize;
use std::collections::VecDeque;

/// How to go about it.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Check every invariant after every event: what was broken is then found where it was
    /// broken, which may be long before it did harm. Takes time in the size of the state.
    pub check_invariants: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            check_invariants: true,
        }
    }
}

/// How far a replay is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Bytes of the file that are done.
    pub done_bytes: usize,
    /// Bytes of the file.
    pub all_bytes: usize,
}

/// Why a journal cannot be run again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// It is not whole.
    #[error("the journal is damaged {0}")]
    Damaged(#[from] Damage),
    /// It has a policy of another release.
    #[error(transparent)]
    Policy(#[from] UnknownPolicy),
    /// Its beginning was dropped.
    #[error(
        "the journal begins with event {first}: what came before was dropped, and with it the \
         state that a replay needs; give mrmd a larger journal.bytes_max. `opens` are all there"
    )]
    Wrapped {
        /// The first event that is left.
        first: u64,
    },
}

/// What a replay came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Release of the daemon that wrote the journal.
    pub release: String,
    /// Commit of that daemon, if it knew.
    pub commit: Option<String>,
    /// Number of the run that wrote it, as in `/v1/status`.
    pub instance: String,
    /// What was done.
    pub counts: Counts,
    /// Time of the last event, microseconds since the start of the daemon.
    pub last_us: u64,
    /// The file ends before its writer did: what is missing was not run.
    pub cut_off: bool,
    /// Where things stood after the last event that was run.
    pub end: EndState,
    /// Where a rule was broken, and the replay stopped.
    pub violation: Option<Stop>,
    /// Which rule the daemon found broken by its last event.
    pub recorded_violation: Option<String>,
    /// Where the decider decided otherwise than the daemon's, and the replay stopped.
    pub divergence: Option<Stop>,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Events that were run.
    pub events: u64,
    /// Clients and operator's verbs that came.
    pub sessions: u64,
    /// Opens that were asked for.
    pub opens: u64,
    /// Opens that were granted from memory.
    pub hits: u64,
    /// Opens that were granted after a load of their own.
    pub loaded: u64,
    /// Opens that were granted after another's load.
    pub joined: u64,
    /// Opens that were granted after a copy to a device.
    pub promoted: u64,
    /// Loads that were started, one a segment.
    pub loads: u64,
    /// Segments that were dropped from memory.
    pub frees: u64,
}

/// Where things stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndState {
    /// Sessions.
    pub sessions: u64,
    /// Leases.
    pub leases: u64,
    /// Effects in flight.
    pub in_flight: u64,
    /// Host memory, and each device's.
    pub tiers: Vec<TierState>,
}

/// A tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TierState {
    /// `host`, or `device0`.
    pub tier: String,
    /// What may be charged.
    pub limit_bytes: u64,
    /// What is.
    pub charged_bytes: u64,
    /// What of it is resident.
    pub resident_bytes: u64,
}

/// Why the replay stopped before the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stop {
    /// Number of the event since the start of the daemon, from 0.
    pub index: u64,
    /// When it happened, microseconds since the start of the daemon.
    pub now_us: u64,
    /// The event.
    pub event: String,
    /// What was wrong.
    pub violation: String,
}

impl Report {
    /// Whether the journal ran to its end, as it did in the daemon, and no rule was broken.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.violation.is_none() && self.recorded_violation.is_none() && self.divergence.is_none()
    }
}

/// Runs the events of a journal, the bytes of a [`file`](mod@super::file), and tells `progress` after
/// each record.
///
/// # Errors
/// When the file is damaged, or does not begin with the start of the daemon. A file that was cut
/// off is run as far as it goes.
pub fn replay(
    file: &[u8],
    options: &Options,
    mut progress: impl FnMut(Progress),
) -> Result<Report, ReplayError> {
    let mut reader = Reader::new(file)?;
    let mut run = Run::of(reader.header(), *options)?;
    while let Some(record) = reader.next_record()? {
        run.take(record)?;
        progress(Progress {
            done_bytes: reader.offset(),
            all_bytes: file.len(),
        });
        if run.stopped() {
            break;
        }
    }
    let mut recorded = run.recorded_violation.clone();
    while recorded.is_none()
        && let Some(record) = reader.next_record()?
    {
        if let Record::Violated { violation } = record {
            recorded = Some(violation);
        }
    }
    run.recorded_violation = recorded;
    let header = reader.header();
    Ok(Report {
        release: header.release.clone(),
        commit: header.commit.clone(),
        instance: format!("{:016x}", header.instance),
        counts: run.counts,
        last_us: run.now.0,
        cut_off: reader.is_cut_off(),
        end: run.end(),
        violation: run.violation,
        recorded_violation: run.recorded_violation,
        divergence: run.divergence,
    })
}

struct Run {
    core: Core,
    options: Options,
    effects: Vec<Effect>,
    counts: Counts,
    now: Time,
    begun: bool,
    /// The last event, its number, and what the daemon is to have noted of it.
    last: Option<(u64, Event)>,
    expected: VecDeque<Record>,
    violation: Option<Stop>,
    recorded_violation: Option<String>,
    divergence: Option<Stop>,
}

impl Run {
    fn of(header: &Header, options: Options) -> Result<Self, UnknownPolicy> {
        Ok(Self {
            core: Core::new(header.core.config()?),
            options,
            effects: Vec::new(),
            counts: Counts::default(),
            now: Time(0),
            begun: false,
            last: None,
            expected: VecDeque::new(),
            violation: None,
            recorded_violation: None,
            divergence: None,
        })
    }

    const fn stopped(&self) -> bool {
        self.violation.is_some() || self.divergence.is_some()
    }

    fn take(&mut self, record: Record) -> Result<(), ReplayError> {
        match record {
            Record::Chunk { index, .. } => {
                if !self.begun && index > 0 {
                    return Err(ReplayError::Wrapped { first: index });
                }
                self.begun = true;
            }
            Record::Event { now, event } => {
                self.nothing_missing();
                if self.divergence.is_none() {
                    self.step(now, event);
                }
            }
            Record::Opened { .. } | Record::LoadStarted { .. } => self.compare(&record),
            Record::Known { .. } => {}
            Record::Violated { violation } => self.recorded_violation = Some(violation),
            Record::End { .. } if self.recorded_violation.is_none() => self.nothing_missing(),
            Record::End { .. } => {}
        }
        Ok(())
    }

    fn step(&mut self, now: Time, event: Event) {
        let index = self.counts.events;
        self.counts.events += 1;
        self.now = now;
        match &event {
            Event::SessionOpened { .. } => self.counts.sessions += 1,
            Event::Open { .. } => self.counts.opens += 1,
            Event::SessionClosed { .. }
            | Event::Close { .. }
            | Event::Cancel { .. }
            | Event::Evict { .. }
            | Event::Configure { .. }
            | Event::ModelChanged { .. }
            | Event::SetLimit { .. }
            | Event::Adopt(_)
            | Event::Resume { .. }
            | Event::DeviceLost { .. }
            | Event::Damaged { .. }
            | Event::Identified { .. }
            | Event::Drain
            | Event::Resolved { .. }
            | Event::SetPolicy { .. }
            | Event::Took { .. }
            | Event::SetPrefetch(_)
            | Event::Hint { .. }
            | Event::Laid { .. }
            | Event::Unlaid { .. }
            | Event::Recall { .. }
            | Event::RecallAll(_)
            | Event::Loaded { .. }
            | Event::Freed { .. }
            | Event::Tick => {}
        }
        self.effects.clear();
        let mut outcome = self.core.handle(now, event.clone(), &mut self.effects);
        if outcome.is_ok() && self.options.check_invariants {
            outcome = invariants::check(&self.core);
        }
        self.last = Some((index, event));
        if let Err(violation) = outcome {
            self.violation = self.stop(violation.to_string());
        }
        for effect in &self.effects {
            self.counts.add(effect);
            self.expected.extend(noted(effect));
        }
    }

    fn compare(&mut self, recorded: &Record) {
        let expected = self.expected.pop_front();
        if expected.as_ref() != Some(recorded) {
            let decided =
                expected.map_or_else(|| "nothing".to_owned(), |expected| format!("{expected:?}"));
            self.divergence = self.stop(format!(
                "the daemon noted {recorded:?}, and the replay decided {decided}"
            ));
        }
    }

    /// What the replay decided, the daemon noted.
    fn nothing_missing(&mut self) {
        if let Some(expected) = self.expected.pop_front() {
            let what = format!("the replay decided {expected:?}, and the daemon did not");
            self.divergence = self.stop(what);
        }
    }

    fn stop(&self, violation: String) -> Option<Stop> {
        let (index, event) = self.last.as_ref()?;
        Some(Stop {
            index: *index,
            now_us: self.now.0,
            event: words(event),
            violation,
        })
    }

    fn end(&self) -> EndState {
        let view = self.core.view();
        let tier = |tier| {
            let ledger = view.ledger(tier);
            TierState {
                tier: tier.to_string(),
                limit_bytes: ledger.limit.0,
                charged_bytes: ledger.charged.0,
                resident_bytes: ledger.resident.0,
            }
        };
        EndState {
            sessions: view.sessions_len() as u64,
            leases: view.leases_len() as u64,
            in_flight: view.ops_in_flight() as u64,
            tiers: view.tiers().map(tier).collect(),
        }
    }
}

impl Counts {
    fn add(&mut self, effect: &Effect) {
        if let Some(Record::Opened { origin, .. }) = noted(effect) {
            match origin {
                Origin::Hit => self.hits += 1,
                Origin::Loaded => self.loaded += 1,
                Origin::Joined => self.joined += 1,
                Origin::Promoted => self.promoted += 1,
            }
        }
        match effect {
            Effect::Load { .. } => self.loads += 1,
            Effect::Free { .. } => self.frees += 1,
            Effect::Resolve { .. }
            | Effect::Adopted { .. }
            | Effect::Reply { .. }
            | Effect::Revoke { .. }
            | Effect::Forget { .. } => {}
        }
    }
}
