//! Whichever of three would have loaded least lately, and LRU until that can be told.

use super::shadow::Shadow;
use super::{Candidate, Decision, Factor, Facts, Gc, Gdsf, Lru, Policy};
use crate::id::VersionId;
use std::collections::BTreeSet;

/// What a shadow lost counts for half after so many losses.
const HALF_LIFE: f64 = 500.0;
/// By how much another must be better to be followed.
const BETTER: f64 = 0.98;
/// Of what LRU would have lost, so much may be lost: nothing but LRU is followed where one more load,
/// the largest, could take it beyond. Until enough was lost, one load decides who looks best.
const LOST_MAX: f64 = 1.07;
/// Where it is among the experts.
const LRU: usize = 2;

/// One policy: as it is on the tier, and as it would be alone.
#[derive(Debug)]
struct Expert {
    policy: Box<dyn Policy>,
    shadow: Shadow,
    /// Load seconds that it would have cost lately.
    lost_s: f64,
}

impl Expert {
    fn new(policy: Box<dyn Policy>, alone: Box<dyn Policy>) -> Self {
        Self {
            policy,
            shadow: Shadow::new(alone),
            lost_s: 0.0,
        }
    }
}

/// Follows `gc`, `gdsf` or `lru`, whose shadow had the fewest load seconds lately; `lru` wherever
/// the others could make it much worse than that.
#[derive(Debug)]
pub struct Mix {
    experts: [Expert; 3],
    followed: usize,
    decay: f64,
    /// What is on the tier of what was used or brought there.
    here: BTreeSet<VersionId>,
    /// Of that, what nobody has used yet.
    unasked: BTreeSet<VersionId>,
    /// Load seconds that were spent in fact, lately.
    lost_s: f64,
    /// The largest of the loads that count in it.
    largest_s: f64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            experts: [
                Expert::new(Box::new(Gc), Box::new(Gc)),
                Expert::new(Box::<Gdsf>::default(), Box::<Gdsf>::default()),
                Expert::new(Box::new(Lru), Box::new(Lru)),
            ],
            followed: LRU,
            here: BTreeSet::new(),
            unasked: BTreeSet::new(),
            lost_s: 0.0,
            largest_s: 0.0,
            decay: f64::exp2(-1.0 / HALF_LIFE),
        }
    }
}

impl Mix {
    /// The policy that is followed now.
    #[must_use]
    pub fn follows(&self) -> &'static str {
        self.experts[self.followed].policy.name()
    }

    /// Follows the best, where that cannot become much worse than LRU.
    fn choose(&mut self) {
        let lru_s = self.experts[LRU].lost_s;
        if self.lost_s + self.largest_s > LOST_MAX * lru_s {
            self.followed = LRU;
            return;
        }
        let mut best = self.followed;
        for (at, expert) in self.experts.iter().enumerate() {
            if expert.lost_s < self.experts[best].lost_s {
                best = at;
            }
        }
        if self.experts[best].lost_s < BETTER * self.experts[self.followed].lost_s {
            self.followed = best;
        }
    }
}

impl Policy for Mix {
    fn name(&self) -> &'static str {
        "mix"
    }

    fn score(&self, facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let followed = &self.experts[self.followed];
        let before = scores.len();
        followed.policy.score(facts, candidates, scores);
        if self.followed != LRU || self.unasked.is_empty() {
            return;
        }
        // LRU would take what was loaded ahead for what was used last.
        for (score, candidate) in scores[before..].iter_mut().zip(candidates) {
            let said = candidate
                .subject
                .and_then(|model| facts.history.hint(model));
            if said.is_none() && self.unasked.contains(&candidate.version) {
                *score = 0.0;
            }
        }
    }

    fn factors(&self, facts: &Facts<'_>, candidate: &Candidate) -> Vec<Factor> {
        let mut factors = self.experts[self.followed].policy.factors(facts, candidate);
        factors.extend(self.experts.iter().map(|expert| Factor {
            name: match expert.policy.name() {
                "gc" => "lost_by_gc_s",
                "gdsf" => "lost_by_gdsf_s",
                _ => "lost_by_lru_s",
            },
            value: expert.lost_s,
        }));
        let own = [("lost_s", self.lost_s), ("largest_load_s", self.largest_s)];
        factors.extend(own.map(|(name, value)| Factor { name, value }));
        factors
    }

    fn used(&mut self, facts: &Facts<'_>, used: &Candidate) {
        for expert in &mut self.experts {
            expert.policy.used(facts, used);
        }
        let came = self.here.insert(used.version);
        self.unasked.remove(&used.version);
        let Some(model) = used.subject else {
            return;
        };
        let missed = self.experts.each_mut();
        let missed = missed.map(|expert| expert.shadow.used(facts, model, used));
        if !came && !missed.contains(&true) {
            return;
        }
        let reload_s = used.reload_s();
        let lost_s = |missed| if missed { reload_s } else { 0.0 };
        for (expert, missed) in self.experts.iter_mut().zip(missed) {
            expert.lost_s = expert.lost_s * self.decay + lost_s(missed);
        }
        self.lost_s = self.lost_s * self.decay + lost_s(came);
        self.largest_s = f64::max(self.largest_s * self.decay, reload_s);
        self.choose();
    }

    /// Nobody asked for it: the shadows do not see it.
    fn arrived(&mut self, facts: &Facts<'_>, arrived: &Candidate) {
        self.here.insert(arrived.version);
        self.unasked.insert(arrived.version);
        for expert in &mut self.experts {
            expert.policy.arrived(facts, arrived);
        }
    }

    fn decided(&mut self, facts: &Facts<'_>, decision: &Decision<'_>) {
        for expert in &mut self.experts {
            expert.policy.decided(facts, decision);
        }
    }

    fn dropped(&mut self, version: VersionId) {
        self.here.remove(&version);
        self.unasked.remove(&version);
        for expert in &mut self.experts {
            expert.policy.dropped(version);
        }
    }

    /// Where too little is known to follow anything but LRU, the next uses are not known either.
    fn yields(&self) -> bool {
        self.followed != LRU
    }

    fn tracked(&self) -> usize {
        let tracked = self.experts.iter().map(|expert| expert.policy.tracked());
        tracked.max().unwrap_or(0).max(self.here.len())
    }
}
