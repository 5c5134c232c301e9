//! First come, first to go.

use super::order::Order;
use super::{Candidate, Facts, Policy};
use crate::id::VersionId;

/// What came to the tier first goes first. What it never saw used is older than all it did.
#[derive(Debug, Clone, Default)]
pub struct Fifo {
    order: Order<()>,
}

impl Policy for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }

    fn score(&self, _facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let place = |candidate: &Candidate| self.order.place(candidate.version).unwrap_or(0) as f64;
        scores.extend(candidates.iter().map(place));
    }

    fn used(&mut self, _facts: &Facts<'_>, used: &Candidate) {
        if !self.order.contains(used.version) {
            self.order.push(used.version, ());
        }
    }

    fn dropped(&mut self, version: VersionId) {
        self.order.remove(version);
    }

    fn tracked(&self) -> usize {
        self.order.len()
    }
}
