//! In an order that nobody can guess, but that a seed repeats.

use super::{Candidate, Decision, Facts, Policy};

/// A new order after each decision, from a seed.
#[derive(Debug, Clone, Copy)]
pub struct Random {
    seed: u64,
    decisions: u64,
}

impl Random {
    /// The order that this seed gives.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        let decisions = 0;
        Self { seed, decisions }
    }
}

/// The finisher of SplitMix64.
const fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

impl Policy for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn score(&self, _facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let step = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let round = mixed(self.seed.wrapping_add(step(self.decisions + 1)));
        // 53 bits are as many as a number between 0 and 1 keeps.
        let lot = |candidate: &Candidate| {
            (mixed(round ^ mixed(step(candidate.version.0 + 1))) >> 11) as f64 / (1u64 << 53) as f64
        };
        scores.extend(candidates.iter().map(lot));
    }

    fn decided(&mut self, _facts: &Facts<'_>, _decision: &Decision<'_>) {
        self.decisions += 1;
    }

    fn watches(&self) -> bool {
        false
    }
}
