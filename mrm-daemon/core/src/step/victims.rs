//! What is evicted when room is needed.

use crate::Core;
use crate::id::SegmentId;
use crate::ledger::{Amount, Tier};
use crate::policy::{Candidate, Policy};
use crate::violation::Violation;
use std::collections::BTreeSet;

impl Core {
    /// Chooses idle segments of a tier outside `kept` that bring `short` together, or all of them.
    pub(super) fn victims(
        &self,
        tier: Tier,
        short: Amount,
        kept: &BTreeSet<SegmentId>,
    ) -> Result<Vec<SegmentId>, Violation> {
        let candidates: Vec<Candidate> = self
            .residency
            .candidates(tier)
            .filter(|candidate| !kept.contains(&candidate.segment))
            .collect();
        let mut ranked = Vec::with_capacity(candidates.len());
        self.policy(tier)?.rank(&candidates, &mut ranked);
        ranked.extend(candidates.iter().map(|candidate| candidate.segment));
        let mut left: BTreeSet<SegmentId> = candidates
            .iter()
            .map(|candidate| candidate.segment)
            .collect();
        let (mut chosen, mut sum) = (Vec::new(), Amount::ZERO);
        for segment in ranked {
            if short.fits(sum) {
                break;
            }
            if left.remove(&segment) {
                chosen.push(segment);
                sum = sum.plus(self.residency.get(segment)?.charge);
            }
        }
        self.give_back(tier, &mut chosen, sum, short)?;
        Ok(chosen)
    }

    /// Takes back victims without which the rest suffices, the last ranked first.
    ///
    /// Only a whole copy is worth keeping: what is left of one that loses a segment stays a
    /// victim, or small remains would be spared again and again and pile up.
    fn give_back(
        &self,
        tier: Tier,
        chosen: &mut Vec<SegmentId>,
        mut sum: Amount,
        short: Amount,
    ) -> Result<(), Violation> {
        let mut victims: BTreeSet<SegmentId> = chosen.iter().copied().collect();
        for segment in chosen.iter().rev() {
            if !victims.contains(segment) {
                continue;
            }
            let sources = &self.residency.get(*segment)?.sources;
            for user in self.catalogue.copies_with(tier, sources)? {
                let mut whole = true;
                let mut group = BTreeSet::new();
                for (_, _, part) in self.catalogue.places(user)? {
                    match part {
                        Some(part) if victims.contains(&part) => {
                            group.insert(part);
                        }
                        Some(part) => whole &= self.residency.is_resident(part),
                        None => whole = false,
                    }
                }
                let mut without = sum;
                for part in &group {
                    without = without.minus(self.residency.get(*part)?.charge);
                }
                if whole && short.fits(without) {
                    sum = without;
                    for part in &group {
                        victims.remove(part);
                    }
                    break;
                }
            }
        }
        chosen.retain(|segment| victims.contains(segment));
        Ok(())
    }

    fn policy(&self, tier: Tier) -> Result<&dyn Policy, Violation> {
        match tier {
            Tier::Host => Ok(&*self.policy),
            Tier::Device(id) => {
                let policy = self.devices.policy(id);
                policy.ok_or(Violation::UnknownDevice(id))
            }
        }
    }
}
