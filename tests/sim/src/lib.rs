//! Deterministic simulation of a node: the real decider ([`mrm_core`]) and the real codec
//! ([`mrm_proto`]) with simulated clients, clock, disks, devices and memory, everything else from
//! one seed. `README.md` says what is modelled.
//!
//! ```
//! let report = mrm_sim::run(1);
//! assert_eq!(report.breach, None);
//! assert_eq!(mrm_sim::run(1).trace, report.trace);
//! ```
#![forbid(unsafe_code)]

pub mod breach;
pub mod campaign;
pub mod mishap;
pub mod random;
pub mod reached;

mod books;
mod client;
mod daemon;
mod disk;
mod env;
mod link;
mod memory;
mod settings;
mod sim;
mod trace;

use breach::{Breach, Rule};
use mishap::Mishap;
use reached::Reached;
use trace::Trace;

/// How a run went.
#[derive(Debug, Clone)]
pub struct Report {
    /// What it was made from.
    pub seed: u64,
    /// A number that stands for everything that happened.
    pub trace: u64,
    /// Events that the decider took in, each followed by a look at every invariant.
    pub steps: u64,
    /// How often something went wrong, by kind.
    pub mishaps: Vec<(Mishap, u64)>,
    /// How often something went wrong.
    pub faults: u64,
    /// What the decider asked for.
    pub reached: Reached,
    /// Segments that clients read and found right.
    pub reads: u64,
    /// Simulated time, in microseconds.
    pub us: u64,
    /// The first broken promise.
    pub breach: Option<Breach>,
    /// The last that happened, if somebody wants to know.
    pub lines: Vec<String>,
}

/// One run.
#[must_use]
pub fn run(seed: u64) -> Report {
    run_traced(seed, Trace::new(false, false))
}

/// One run, which prints everything that it does.
#[must_use]
pub fn run_aloud(seed: u64) -> Report {
    run_traced(seed, Trace::new(true, true))
}

/// Two runs, which must go the same way.
#[must_use]
pub fn run_twice(seed: u64) -> Report {
    let mut first = run(seed);
    if first.breach.is_some() {
        first.lines = run_traced(seed, Trace::new(true, false)).lines;
        return first;
    }
    let second = run(seed);
    let same = (first.trace, first.steps, first.us) == (second.trace, second.steps, second.us);
    if second.breach.is_some() || !same {
        let (rule, what) = (Rule::Repeat, format!("{:?} the second time", second.breach));
        first.breach = Some(Breach { rule, what });
    }
    first.steps += second.steps;
    first
}

fn run_traced(seed: u64, trace: Trace) -> Report {
    let mut sim = sim::Sim::new(seed, trace);
    let breach = sim.run().err();
    let env = &mut sim.env;
    Report {
        seed,
        trace: env.trace.sum(),
        steps: env.steps,
        mishaps: env.mishaps.counts().collect(),
        faults: env.mishaps.total(),
        reached: env.reached.clone(),
        reads: env.reads,
        us: env.now,
        breach,
        lines: env.trace.take_lines(),
    }
}
