//! Least frequently used first.

use super::{Candidate, Factor, Facts, Policy};

/// The fewest uses first, counted since the model is known; among equals, least recently used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lfu;

impl Policy for Lfu {
    fn name(&self) -> &'static str {
        "lfu"
    }

    fn score(&self, facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let uses = |candidate: &Candidate| facts.history.uses(candidate.subject) as f64;
        scores.extend(candidates.iter().map(uses));
    }

    fn factors(&self, facts: &Facts<'_>, candidate: &Candidate) -> Vec<Factor> {
        vec![Factor {
            name: "uses",
            value: facts.history.uses(candidate.subject) as f64,
        }]
    }

    fn watches(&self) -> bool {
        false
    }
}
