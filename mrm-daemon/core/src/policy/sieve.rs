//! SIEVE: first come, first to go, but for what was used since the hand last passed it.
//!
//! Zhang, Yang, Yue, Vigfusson, Rashmi: "SIEVE is simpler than LRU", NSDI 2024.

use super::order::Order;
use super::{Candidate, Decision, Facts, Policy};
use crate::id::VersionId;
use std::collections::BTreeMap;

/// A queue by arrival with a hand that goes from the oldest to the newest and begins again. It
/// takes what was not used since it last passed, and forgets the use of what it spares.
#[derive(Debug, Clone, Default)]
pub struct Sieve {
    /// Whether each was used since the hand passed.
    order: Order<bool>,
    /// The next place to look at.
    hand: u64,
}

impl Sieve {
    /// Each place's turn: what was not used, from the hand on; then the rest likewise.
    fn turns(&self) -> BTreeMap<VersionId, u32> {
        let round = |used: bool, passed: bool| {
            let order = self.order.iter();
            order.filter(move |(place, _, was)| **was == used && (*place < self.hand) == passed)
        };
        let all = round(false, false)
            .chain(round(false, true))
            .chain(round(true, false))
            .chain(round(true, true));
        all.map(|(_, version, _)| version).zip(1..).collect()
    }
}

impl Policy for Sieve {
    fn name(&self) -> &'static str {
        "sieve"
    }

    fn score(&self, _facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let turns = self.turns();
        let turn = |candidate: &Candidate| turns.get(&candidate.version).copied().unwrap_or(0);
        scores.extend(
            candidates
                .iter()
                .map(|candidate| f64::from(turn(candidate))),
        );
    }

    fn used(&mut self, _facts: &Facts<'_>, used: &Candidate) {
        match self.order.get_mut(used.version) {
            Some(since) => *since = true,
            None => self.order.push(used.version, false),
        }
    }

    fn decided(&mut self, _facts: &Facts<'_>, decision: &Decision<'_>) {
        let turns = self.turns();
        let turn = |version: &VersionId| turns.get(version).copied();
        let last = decision
            .victims
            .iter()
            .filter_map(|version| Some((turn(version)?, *version)));
        let Some((_, last)) = last.max() else {
            return;
        };
        let (Some(stop), Some(used)) = (self.order.place(last), self.order.get_mut(last).copied())
        else {
            return;
        };
        let hand = self.hand;
        for (place, since) in self.order.iter_mut() {
            let passed = match (hand <= stop, used) {
                // The hand went round once: all uses are forgotten.
                (_, true) => true,
                (true, false) => hand <= place && place <= stop,
                (false, false) => hand <= place || place <= stop,
            };
            *since &= !passed;
        }
        self.hand = stop + 1;
    }

    fn dropped(&mut self, version: VersionId) {
        self.order.remove(version);
    }

    fn tracked(&self) -> usize {
        self.order.len()
    }
}
