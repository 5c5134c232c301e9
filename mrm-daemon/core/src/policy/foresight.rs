//! Which models may be loaded before they are asked for: those that clients said will come, and
//! those whose next use was foretold often enough.

use super::History;
use super::reload::Route;
use crate::id::{Bytes, ModelId, Time};
use crate::ledger::Tier;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Uses before the times between them tell anything.
pub(super) const USES_MIN: u64 = 6;
/// Most models that are said to come.
const HINTS_MAX: usize = 1024;
/// Tries count for so much less with each that follows.
const DECAY: f64 = 0.9;
/// Of what is loaded ahead, so much must have been used.
const PRECISION_MIN: f64 = 0.5;
/// What comes is not expected sooner than this.
const SOONEST_S: f64 = 1.0;
/// How long after its time what was said to come is waited for.
const LATE_US: u64 = 60_000_000;

/// What was said of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hint {
    /// When it comes.
    pub(crate) due: Time,
    /// It was loaded for that, or could not be.
    pub(crate) tried: bool,
}

impl Hint {
    /// Uses per second to be expected.
    pub(super) fn index(self, now: Time) -> f64 {
        if self.is_over(now) {
            return 0.0;
        }
        1.0 / (self.due.us_since(now) as f64 / 1e6).max(SOONEST_S)
    }

    const fn is_over(self, now: Time) -> bool {
        now.us_since(self.due) > LATE_US
    }
}

/// What became of a model's loads ahead.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Gate {
    pub(super) tries: f64,
    pub(super) hits: f64,
}

impl Gate {
    fn is_open(self) -> bool {
        (self.hits + 1.0) / (self.tries + 2.0) >= PRECISION_MIN
    }
}

/// What is said and foretold of models.
#[derive(Debug, Clone, Default)]
pub(super) struct Foresight {
    hints: BTreeMap<ModelId, Hint>,
    /// Of those that were tried.
    gates: BTreeMap<ModelId, Gate>,
    /// Models that were used often enough and whose gate is open.
    open: BTreeSet<ModelId>,
}

impl Foresight {
    /// It was used: what was said has come true.
    pub(super) fn came(&mut self, model: ModelId) {
        if !self.hints.is_empty() {
            self.hints.remove(&model);
        }
    }

    /// It was used often enough.
    pub(super) fn open(&mut self, model: ModelId) {
        if self.gate(model).is_open() {
            self.open.insert(model);
        }
    }

    pub(super) fn gate(&self, model: ModelId) -> Gate {
        self.gates.get(&model).copied().unwrap_or_default()
    }

    /// What became of a model's loads ahead in another daemon.
    pub(super) fn recall(&mut self, model: ModelId, gate: Gate, uses: u64) {
        if gate != Gate::default() {
            self.gates.insert(model, gate);
        }
        if uses >= USES_MIN {
            self.open(model);
        }
    }

    pub(super) fn forget(&mut self, model: ModelId) {
        self.gates.remove(&model);
        self.open.remove(&model);
    }

    pub(super) fn hint(&self, model: ModelId) -> Option<Hint> {
        self.hints.get(&model).copied()
    }
}

impl History {
    /// Notes that a model is said to come; not if so many are already.
    pub(crate) fn said(&mut self, model: ModelId, due: Time) {
        let hints = &mut self.foresight.hints;
        if hints.len() < HINTS_MAX || hints.contains_key(&model) {
            let tried = false;
            hints.insert(model, Hint { due, tried });
        }
    }

    /// What is said to come, and is not given up at this time; the rest is forgotten.
    pub(crate) fn said_to_come(&mut self, now: Time) -> Vec<(ModelId, Hint)> {
        let hints = std::mem::take(&mut self.foresight.hints);
        let (over, hints) = hints.into_iter().partition(|(_, hint)| hint.is_over(now));
        self.foresight.hints = hints;
        let over: BTreeMap<ModelId, Hint> = over;
        for model in over.into_keys() {
            if !self.remembers(model) {
                self.note_forgotten(model);
            }
        }
        let hints = self.foresight.hints.iter();
        hints.map(|(model, hint)| (*model, *hint)).collect()
    }

    /// What is said of a model.
    pub(crate) fn hint(&self, model: ModelId) -> Option<Hint> {
        self.foresight.hint(model)
    }

    /// How many models are said to come.
    pub(crate) fn hints_len(&self) -> usize {
        self.foresight.hints.len()
    }

    /// At most so many of the models that may be loaded ahead, after this one and then around.
    pub(crate) fn foreseeable(&self, after: ModelId, max: usize) -> Vec<ModelId> {
        let open = &self.foresight.open;
        let behind = (Bound::Excluded(after), Bound::Unbounded);
        let around = (Bound::Unbounded, Bound::Included(after));
        let all = open.range(behind).chain(open.range(around));
        all.take(max).copied().collect()
    }

    /// Notes that a model was loaded ahead, or could not be.
    pub(crate) fn tried(&mut self, model: ModelId) {
        if let Some(hint) = self.foresight.hints.get_mut(&model) {
            // What somebody said is not the fault of what was foretold.
            hint.tried = true;
            return;
        }
        let gate = self.foresight.gates.entry(model).or_default();
        gate.tries = gate.tries * DECAY + 1.0;
        gate.hits *= DECAY;
        if !gate.is_open() {
            self.foresight.open.remove(&model);
        }
    }

    /// Notes that what was loaded ahead was used.
    pub(crate) fn foretold(&mut self, model: ModelId) {
        let enough = self.uses(Some(model)) >= USES_MIN;
        if let Some(gate) = self.foresight.gates.get_mut(&model) {
            gate.hits += 1.0;
            if gate.is_open() && enough {
                self.foresight.open.insert(model);
            }
        }
    }

    /// Where a model was used last.
    pub(crate) fn tier(&self, model: ModelId) -> Tier {
        self.get(Some(model)).map_or(Tier::Host, |known| known.tier)
    }

    /// What its last load to a tier brought, if it had one.
    pub(crate) fn brought(&self, model: ModelId, tier: Tier) -> Option<Bytes> {
        let routes: &[Route] = match tier {
            Tier::Host => &[Route::ToHost],
            Tier::Device(_) => &[Route::ToDevice, Route::Up, Route::Across],
        };
        let loads = routes.iter().filter_map(|route| self.load(model, *route));
        loads.map(super::reload::Sum::last).max()
    }
}
