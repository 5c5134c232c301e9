//! Load seconds saved per byte and second, by when the next use may be expected.
//!
//! The index of a model is that of Gittins for the time to its next use: the most uses per second
//! that keeping it for a time, of the best length, can bring, seen from how long it has not been
//! used. The times between its own uses count, and those of its kind as much as one of them.

use super::history::{BUCKETS, History, bounds_s, bucket_of};
use super::{Candidate, Factor, Facts, Policy};
use crate::id::{ModelId, Time};

/// What its kind counts for, in own uses.
const CLASS_WEIGHT: f64 = 1.0;
/// Mass of never being used again.
const NEVER: f64 = 2.0;
/// Nothing is expected sooner than this.
const SOONEST_S: f64 = 0.05;

/// The smallest index of the next use, times reload seconds, by bytes, goes first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gc;

/// Uses per second to be expected of a model: by when it was used, or by what was said of it.
pub(crate) fn index(history: &History, model: Option<ModelId>, now: Time) -> f64 {
    let said = model.and_then(|model| history.foresight.hint(model));
    let said = said.map_or(0.0, |hint| hint.index(now));
    seen(history, model, now).max(said)
}

/// Uses per second to be expected of a model that was last used when it was.
fn seen(history: &History, model: Option<ModelId>, now: Time) -> f64 {
    let Some(subject) = history.get(model) else {
        return 0.0;
    };
    let class = history.class(subject);
    let idle_s = subject.idle_us(now) as f64 / 1e6;
    let first = bucket_of(idle_s);
    let prior = CLASS_WEIGHT / (class.seen + class.waiting).max(1) as f64;
    // Of most buckets nothing is known: only the others are gone through, here and below.
    let (mut counts, mut known) = ([0.0; BUCKETS], class.known >> first << first);
    let own = subject.gaps.iter();
    for (bucket, times) in own.map(|(bucket, times)| (usize::from(*bucket), *times)) {
        if bucket >= first {
            counts[bucket] = f64::from(times);
            known |= 1 << bucket;
        }
    }
    let mut mass = NEVER + prior * class.waiting as f64;
    for bucket in buckets(known) {
        let count = &mut counts[bucket];
        *count += prior * class.gaps[bucket] as f64;
        mass += *count;
    }
    let (mut best, mut uses, mut waited_s) = (0.0, 0.0, 0.0);
    for bucket in buckets(known) {
        let count = counts[bucket];
        let (begin, end) = bounds_s(bucket);
        let middle = f64::midpoint(begin.max(idle_s), end);
        let until_s = (middle - idle_s).max(SOONEST_S);
        uses += count;
        waited_s += count * until_s;
        best = f64::max(best, uses / (waited_s + (mass - uses) * until_s));
    }
    best
}

/// The buckets of a set, in their order.
fn buckets(mut set: u128) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bucket = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(bucket)
    })
}

/// The utility: the index, times reload seconds, by bytes.
pub(super) fn utility(facts: &Facts<'_>, candidate: &Candidate) -> f64 {
    index(facts.history, candidate.subject, facts.now) * candidate.reload_s() / candidate.size()
}

impl Policy for Gc {
    fn name(&self) -> &'static str {
        "gc"
    }

    fn score(&self, facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let utility = |candidate| utility(facts, candidate);
        scores.extend(candidates.iter().map(utility));
    }

    fn factors(&self, facts: &Facts<'_>, candidate: &Candidate) -> Vec<Factor> {
        let factor = |name, value| Factor { name, value };
        let index = index(facts.history, candidate.subject, facts.now);
        vec![
            factor("index_per_s", index),
            factor("uses", facts.history.uses(candidate.subject) as f64),
            factor("reload_s", candidate.reload_s()),
            factor("bytes", candidate.bytes.0 as f64),
        ]
    }

    fn watches(&self) -> bool {
        false
    }
}
