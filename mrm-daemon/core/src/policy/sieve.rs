//! SIEVE: first come, first to go, but for what was used since the hand last passed it.
//!
//! Zhang, Yang, Yue, Vigfusson, Rashmi: "SIEVE is simpler than LRU", NSDI 2024.

use super::order::Order;
use super::table::Table;
use super::{Candidate, Decision, Facts, Policy};
use crate::id::VersionId;

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
    /// Which comes sooner: what was not used, from the hand on; then the rest likewise.
    const fn turn(&self, place: u64, used: bool) -> (bool, bool, u64) {
        (used, place < self.hand, place)
    }

    /// Each place's turn.
    fn turns(&self) -> Table<VersionId, u32> {
        let order = self.order.iter();
        let turn = |(place, version, used): (u64, VersionId, &bool)| {
            let (used, passed, _) = self.turn(place, *used);
            (used, passed, version)
        };
        // As they come they are in order of their places.
        let mut all: Vec<(bool, bool, VersionId)> = order.map(turn).collect();
        all.sort_by_key(|(used, passed, _)| (*used, *passed));
        let mut turns = Table::default();
        for ((_, _, version), turn) in all.into_iter().zip(1..) {
            turns.insert(version, turn);
        }
        turns
    }
}

impl Policy for Sieve {
    fn name(&self) -> &'static str {
        "sieve"
    }

    fn score(&self, _facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let turns = self.turns();
        let turn = |candidate: &Candidate| turns.get(candidate.version).copied().unwrap_or(0);
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
        let turn = |version: &VersionId| {
            let (place, used) = self.order.get(*version)?;
            Some(self.turn(place, *used))
        };
        let Some((used, _, stop)) = decision.victims.iter().filter_map(turn).max() else {
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
