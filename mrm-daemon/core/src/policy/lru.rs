//! Least recently used first.

use super::{Candidate, Factor, Facts, Policy};

/// Least recently used first. A use ends with the lease.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lru;

impl Policy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn score(&self, _facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let last_used = |candidate: &Candidate| candidate.last_used.0 as f64;
        scores.extend(candidates.iter().map(last_used));
    }

    fn factors(&self, facts: &Facts<'_>, candidate: &Candidate) -> Vec<Factor> {
        let idle_us = facts.now.us_since(candidate.last_used);
        vec![Factor {
            name: "idle_s",
            value: idle_us as f64 / 1e6,
        }]
    }

    fn watches(&self) -> bool {
        false
    }
}
