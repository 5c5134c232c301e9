//! Whichever of three would have loaded least lately.

use super::shadow::Shadow;
use super::{Candidate, Decision, Factor, Facts, Gc, Gdsf, Lru, Policy};
use crate::id::VersionId;

/// What a shadow lost counts for half after so many losses.
const HALF_LIFE: f64 = 500.0;
/// By how much another must be better to be followed.
const BETTER: f64 = 0.98;

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

/// Follows `gc`, `gdsf` or `lru`, whose shadow had the fewest load seconds lately.
#[derive(Debug)]
pub struct Mix {
    experts: [Expert; 3],
    followed: usize,
    decay: f64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            experts: [
                Expert::new(Box::new(Gc), Box::new(Gc)),
                Expert::new(Box::<Gdsf>::default(), Box::<Gdsf>::default()),
                Expert::new(Box::new(Lru), Box::new(Lru)),
            ],
            followed: 0,
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
}

impl Policy for Mix {
    fn name(&self) -> &'static str {
        "mix"
    }

    fn score(&self, facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let followed = &self.experts[self.followed];
        followed.policy.score(facts, candidates, scores);
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
        factors
    }

    fn used(&mut self, facts: &Facts<'_>, used: &Candidate) {
        for expert in &mut self.experts {
            expert.policy.used(facts, used);
        }
        let Some(model) = used.subject else {
            return;
        };
        let missed = self.experts.each_mut();
        let missed = missed.map(|expert| expert.shadow.used(facts, model, used));
        if !missed.contains(&true) {
            return;
        }
        for (expert, missed) in self.experts.iter_mut().zip(missed) {
            let lost_s = if missed { used.reload_s() } else { 0.0 };
            expert.lost_s = expert.lost_s * self.decay + lost_s;
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

    /// Nobody asked for it: the shadows do not see it.
    fn arrived(&mut self, facts: &Facts<'_>, arrived: &Candidate) {
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
        for expert in &mut self.experts {
            expert.policy.dropped(version);
        }
    }

    fn tracked(&self) -> usize {
        let tracked = self.experts.iter().map(|expert| expert.policy.tracked());
        tracked.max().unwrap_or(0)
    }
}
