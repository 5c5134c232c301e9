//! CremeBrulee as published: uses, times load time, by size, of all time.
//!
//! After the code of the cake-lab's CremeBrulee at a404f89. Who is held never comes here, which
//! that code does not look at.

use super::{Candidate, Factor, Facts, GiveBack, Policy};

/// What counts as the cost of a miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cost {
    /// The load time.
    #[default]
    Direct,
    /// The load time by the time that a lease lasts.
    Increase,
}

/// `(uses / most uses)^beta * (cost / highest cost)^gamma / bytes`; the smallest goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CremeBrulee {
    /// The exponent of the uses, in thousandths.
    pub beta_thousandths: u32,
    /// The exponent of the cost, in thousandths.
    pub gamma_thousandths: u32,
    /// What counts as the cost.
    pub cost: Cost,
    /// Whether the size is divided by.
    pub use_size: bool,
}

impl Default for CremeBrulee {
    fn default() -> Self {
        Self {
            beta_thousandths: 1000,
            gamma_thousandths: 1000,
            cost: Cost::Direct,
            use_size: true,
        }
    }
}

/// To a power in thousandths. The usual power is left out: it is no rounding away.
fn power(base: f64, thousandths: u32) -> f64 {
    match thousandths {
        1000 => base,
        thousandths => base.powf(f64::from(thousandths) / 1000.0),
    }
}

impl CremeBrulee {
    fn cost(&self, facts: &Facts<'_>, candidate: &Candidate) -> f64 {
        let reload_s = candidate.reload_s();
        match self.cost {
            Cost::Direct => reload_s,
            // What was never leased to its end has no execution time: one second.
            Cost::Increase => {
                let run_s = facts.history.run_s(candidate.subject);
                reload_s / run_s.unwrap_or(1.0).max(1e-6)
            }
        }
    }

    /// The weights with this notion of a use.
    pub(super) fn weigh(
        &self,
        facts: &Facts<'_>,
        candidates: &[Candidate],
        boundary: impl Fn(&Candidate) -> f64,
        scores: &mut Vec<f64>,
    ) {
        let factors = |candidate| (boundary(candidate), self.cost(facts, candidate));
        let factors: Vec<(f64, f64)> = candidates.iter().map(factors).collect();
        let most = |part: fn(&(f64, f64)) -> f64| {
            let most = factors.iter().map(part).fold(0.0, f64::max);
            if most > 0.0 { most } else { 1.0 }
        };
        let (most_uses, most_cost) = (most(|both| both.0), most(|both| both.1));
        let weights = candidates.iter().zip(&factors).map(|(candidate, both)| {
            let uses = power(both.0 / most_uses, self.beta_thousandths);
            let cost = power(both.1 / most_cost, self.gamma_thousandths);
            uses * cost / if self.use_size { candidate.size() } else { 1.0 }
        });
        scores.extend(weights);
    }
}

impl Policy for CremeBrulee {
    fn name(&self) -> &'static str {
        "cremebrulee"
    }

    fn score(&self, facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let all = facts.history.all_uses().saturating_add(1) as f64;
        let share = |candidate: &Candidate| facts.history.uses(candidate.subject) as f64 / all;
        self.weigh(facts, candidates, share, scores);
    }

    fn factors(&self, facts: &Facts<'_>, candidate: &Candidate) -> Vec<Factor> {
        let factor = |name, value| Factor { name, value };
        vec![
            factor("uses", facts.history.uses(candidate.subject) as f64),
            factor("cost", self.cost(facts, candidate)),
            factor("bytes", candidate.bytes.0 as f64),
        ]
    }

    fn give_back(&self) -> GiveBack {
        GiveBack::KeepLargest
    }

    fn watches(&self) -> bool {
        false
    }
}
