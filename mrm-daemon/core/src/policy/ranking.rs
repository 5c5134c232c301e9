//! Candidates in the order in which they are to go, put in order no further than is asked for: of
//! thousands that could go, few do.

use super::{Candidate, Facts, Policy, Ranked};
use std::cmp::Ordering;

/// So many are put in order at first; then as many again as are.
const STEP: usize = 16;

/// All candidates, of which the first are in order.
#[derive(Debug)]
pub(crate) struct Ranking {
    all: Vec<Ranked>,
    /// So many are where they belong, and none behind them belongs before one of them.
    sorted: usize,
}

/// The least valuable first; equals by their last use, their first segment, their version.
fn before(a: &Ranked, b: &Ranked) -> Ordering {
    let key = |of: &Ranked| {
        let candidate = &of.candidate;
        (candidate.last_used, candidate.first, candidate.version)
    };
    let by_utility = a.utility.total_cmp(&b.utility);
    by_utility.then_with(|| key(a).cmp(&key(b)))
}

impl Ranking {
    pub(crate) fn of(policy: &dyn Policy, facts: &Facts<'_>, candidates: &[Candidate]) -> Self {
        let mut scores = Vec::with_capacity(candidates.len());
        policy.score(facts, candidates, &mut scores);
        scores.resize(candidates.len(), 0.0);
        let ranked = candidates.iter().zip(scores);
        let ranked = ranked.map(|(candidate, score)| Ranked {
            candidate: *candidate,
            utility: if score.is_nan() { 0.0 } else { score },
        });
        Self {
            all: ranked.collect(),
            sorted: 0,
        }
    }

    /// The one in this place, from 0; `None` behind the last.
    pub(crate) fn nth(&mut self, place: usize) -> Option<&Ranked> {
        while place >= self.sorted && self.sorted < self.all.len() {
            let more = self.sorted.max(STEP);
            let rest = &mut self.all[self.sorted..];
            if more < rest.len() {
                rest.select_nth_unstable_by(more, before);
            }
            let more = more.min(rest.len());
            rest[..more].sort_unstable_by(before);
            self.sorted += more;
        }
        self.all.get(place)
    }

    /// The first that was put in order and is not one of these, in order of their places.
    pub(crate) fn first_but(&mut self, places: impl IntoIterator<Item = usize>) -> Option<&Ranked> {
        let mut first = 0;
        for place in places {
            if place != first {
                break;
            }
            first += 1;
        }
        self.nth(first)
    }

    /// Puts all of them in order.
    pub(crate) fn sort_all(&mut self) {
        self.all[self.sorted..].sort_unstable_by(before);
        self.sorted = self.all.len();
    }

    /// Puts all of them in order, those for which `late` behind all others.
    pub(crate) fn sort_late(&mut self, late: impl Fn(&Ranked) -> bool) {
        self.sort_all();
        self.all.sort_by_key(late);
    }

    /// All of them, in order as far as was asked for.
    pub(crate) fn all(&self) -> &[Ranked] {
        &self.all
    }

    pub(crate) fn into_all(self) -> Vec<Ranked> {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Bytes, ModelId, SegmentId, Time, VersionId};
    use crate::policy::{Choice, History};
    use proptest::prelude::*;

    proptest! {
        /// However far it is put in order, and however often it is asked.
        #[test]
        fn the_first_are_those_that_come_first_when_all_are_in_order(
            last_used in proptest::collection::vec(0u64..20, 0..200),
            asked in 0usize..220,
        ) {
            let candidates: Vec<Candidate> = (0..).zip(last_used).map(|(id, last_used)| Candidate {
                version: VersionId(id),
                subject: Some(ModelId(id)),
                first: SegmentId(id % 7),
                bytes: Bytes(1),
                last_used: Time(last_used),
                reload_us: 1,
            }).collect();
            let history = History::default();
            let facts = Facts { now: Time(20), capacity: Bytes(1 << 30), history: &history };
            let policy = "lru".parse::<Choice>()?.build();
            let all = crate::policy::rank(&*policy, &facts, candidates.clone());
            let mut some = Ranking::of(&*policy, &facts, &candidates);
            for place in [asked, 0, asked / 2] {
                prop_assert_eq!(some.nth(place), all.get(place));
            }
            let asked = asked.min(all.len());
            prop_assert_eq!(&some.all()[..asked], &all[..asked]);
            prop_assert_eq!(some.first_but([0, 1, 3]), all.get(2));
            prop_assert_eq!(some.first_but([1]), all.first());
        }
    }
}
