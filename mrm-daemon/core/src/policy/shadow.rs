//! A cache of nothing but numbers: what a policy would have had to load.

use super::table::Table;
use super::{Candidate, Decision, Facts, GiveBack, Policy, Ranking};
use crate::id::{ModelId, SegmentId, VersionId};
use std::collections::BTreeSet;

/// What a policy alone would keep of what is used on a tier. Nothing in it is ever held.
#[derive(Debug)]
pub(super) struct Shadow {
    policy: Box<dyn Policy>,
    /// By model: a version that is forgotten and comes back is the same here.
    residents: Table<ModelId, Candidate>,
    bytes: u64,
    arrived: u64,
}

impl Shadow {
    pub(super) fn new(policy: Box<dyn Policy>) -> Self {
        Self {
            policy,
            residents: Table::default(),
            bytes: 0,
            arrived: 0,
        }
    }

    /// A use; returns whether it would have been a miss.
    pub(super) fn used(&mut self, facts: &Facts<'_>, model: ModelId, used: &Candidate) -> bool {
        let before = self.residents.get(model).copied();
        let first = before.map_or_else(
            || {
                self.arrived += 1;
                SegmentId(self.arrived)
            },
            |before| before.first,
        );
        let now = Candidate {
            version: VersionId(model.0),
            first,
            last_used: facts.now,
            ..*used
        };
        self.bytes = self
            .bytes
            .saturating_sub(before.map_or(0, |before| before.bytes.0));
        if used.bytes > facts.capacity {
            // It would be loaded for this use alone.
            self.remove(model);
            return true;
        }
        self.residents.insert(model, now);
        self.bytes = self.bytes.saturating_add(now.bytes.0);
        self.policy.used(facts, &now);
        let short = self.bytes.saturating_sub(facts.capacity.0);
        if short > 0 {
            self.make_room(facts, model, short);
        }
        before.is_none()
    }

    fn make_room(&mut self, facts: &Facts<'_>, keep: ModelId, short: u64) {
        let others = self.residents.iter().filter(|(model, _)| *model != keep);
        let others: Vec<Candidate> = others.map(|(_, candidate)| *candidate).collect();
        let mut ranking = Ranking::of(&*self.policy, facts, &others);
        let (mut chosen, mut sum) = (Vec::new(), 0u64);
        while sum < short
            && let Some(next) = ranking.nth(chosen.len())
        {
            sum = sum.saturating_add(next.candidate.bytes.0);
            chosen.push(next.candidate);
        }
        debug_assert_eq!(self.policy.give_back(), GiveBack::BestFirst);
        for at in (0..chosen.len()).rev() {
            let without = sum.saturating_sub(chosen[at].bytes.0);
            if without >= short {
                sum = without;
                chosen.remove(at);
            }
        }
        let victims: BTreeSet<VersionId> = chosen.iter().map(|gone| gone.version).collect();
        let decision = Decision {
            ranked: ranking.all(),
            victims: &victims,
        };
        self.policy.decided(facts, &decision);
        for gone in chosen {
            self.bytes = self.bytes.saturating_sub(gone.bytes.0);
            self.remove(ModelId(gone.version.0));
        }
    }

    fn remove(&mut self, model: ModelId) {
        self.residents.remove(model);
        self.policy.dropped(VersionId(model.0));
    }
}
