//! GreedyDual-Size-Frequency with load seconds as the cost, and a count that survives eviction.
//!
//! Cherkasova 1998; with load seconds in FaasCache (Fuerst and Sharma, ASPLOS 2021).

use super::table::Table;
use super::{Candidate, Decision, Factor, Facts, Policy};
use crate::id::VersionId;

/// `H = L + uses * reload seconds / bytes`, where `L` is the clock at the last use. The smallest `H`
/// goes, and the clock goes on to it.
#[derive(Debug, Clone, Default)]
pub struct Gdsf {
    clock: f64,
    /// The clock at the last use of each.
    used_at: Table<VersionId, f64>,
}

impl Gdsf {
    /// `H` of a candidate.
    fn value(&self, facts: &Facts<'_>, candidate: &Candidate) -> f64 {
        let used_at = self.used_at.get(candidate.version).copied();
        used_at.unwrap_or(0.0) + worth(facts, candidate)
    }
}

/// Uses times reload seconds by bytes.
pub(super) fn worth(facts: &Facts<'_>, candidate: &Candidate) -> f64 {
    let uses = facts.history.uses(candidate.subject) as f64;
    uses * candidate.reload_s() / candidate.size()
}

impl Policy for Gdsf {
    fn name(&self) -> &'static str {
        "gdsf"
    }

    fn score(&self, facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let value = |candidate| self.value(facts, candidate);
        scores.extend(candidates.iter().map(value));
    }

    fn factors(&self, facts: &Facts<'_>, candidate: &Candidate) -> Vec<Factor> {
        let factor = |name, value| Factor { name, value };
        let used_at = self.used_at.get(candidate.version).copied();
        vec![
            factor("clock", used_at.unwrap_or(0.0)),
            factor("uses", facts.history.uses(candidate.subject) as f64),
            factor("reload_s", candidate.reload_s()),
            factor("bytes", candidate.bytes.0 as f64),
        ]
    }

    fn used(&mut self, _facts: &Facts<'_>, used: &Candidate) {
        self.used_at.insert(used.version, self.clock);
    }

    fn decided(&mut self, facts: &Facts<'_>, decision: &Decision<'_>) {
        for gone in decision.gone() {
            let value = self.value(facts, gone);
            if value.is_finite() {
                self.clock = self.clock.max(value);
            }
        }
    }

    fn dropped(&mut self, version: VersionId) {
        self.used_at.remove(version);
    }

    fn tracked(&self) -> usize {
        self.used_at.len()
    }
}
