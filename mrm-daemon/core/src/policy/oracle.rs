//! Policies that know the future: for a simulator, to tell what could be had.

use super::{Candidate, CremeBrulee, Facts, GiveBack, Policy};
use crate::id::ModelId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// When each model is used, by the number of the use among all.
#[derive(Debug, Clone, Default)]
pub struct Future {
    uses: BTreeMap<ModelId, Vec<u64>>,
}

impl Future {
    /// The future in which these are used, in this order.
    #[must_use]
    pub fn of(uses: impl IntoIterator<Item = ModelId>) -> Self {
        let mut future = Self::default();
        for (number, model) in (0..).zip(uses) {
            future.uses.entry(model).or_default().push(number);
        }
        future
    }

    /// How many uses of others come before the next of this, and that one; `None`: it is not used
    /// again. Uses of one model come in their order; those of others may have changed places.
    fn distance(&self, facts: &Facts<'_>, candidate: &Candidate) -> Option<u64> {
        let had = facts.history.uses(candidate.subject);
        let next = self.uses.get(&candidate.subject?)?;
        let next = next.get(usize::try_from(had).ok()?)?;
        Some(
            next.saturating_sub(facts.history.all_uses())
                .saturating_add(1),
        )
    }
}

/// What is used again the latest goes first.
#[derive(Debug, Clone)]
pub struct Belady(Arc<Future>);

impl Belady {
    /// With this future.
    #[must_use]
    pub const fn new(future: Arc<Future>) -> Self {
        Self(future)
    }
}

impl Policy for Belady {
    fn name(&self) -> &'static str {
        "belady"
    }

    fn score(&self, facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let sooner = |candidate| {
            let distance = self.0.distance(facts, candidate);
            distance.map_or(f64::NEG_INFINITY, |distance| -(distance as f64))
        };
        scores.extend(candidates.iter().map(sooner));
    }

    fn watches(&self) -> bool {
        false
    }
}

/// CremeBrulee with one by the uses until the next instead of the number of uses.
#[derive(Debug, Clone)]
pub struct CremeBruleeOracle {
    weights: CremeBrulee,
    future: Arc<Future>,
}

impl CremeBruleeOracle {
    /// With these exponents and this future.
    #[must_use]
    pub const fn new(weights: CremeBrulee, future: Arc<Future>) -> Self {
        Self { weights, future }
    }
}

impl Policy for CremeBruleeOracle {
    fn name(&self) -> &'static str {
        "cremebrulee-oracle"
    }

    fn score(&self, facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let nearness = |candidate: &Candidate| {
            let distance = self.future.distance(facts, candidate);
            distance.map_or(0.0, |distance| 1.0 / distance as f64)
        };
        self.weights.weigh(facts, candidates, nearness, scores);
    }

    fn give_back(&self) -> GiveBack {
        GiveBack::BestFirst
    }

    fn watches(&self) -> bool {
        false
    }
}
