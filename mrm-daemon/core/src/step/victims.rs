//! What is evicted when room is needed.

use super::worth::Idle;
use crate::Core;
use crate::event::Part;
use crate::id::{CopyId, SegmentId, Time, VersionId};
use crate::ledger::{Amount, Tier};
use crate::policy::{Candidate, Decision, GiveBack, Ranked, Ranking};
use crate::view::Explained;
use crate::violation::Violation;
use std::collections::{BTreeMap, BTreeSet};

/// What is idle, in its turn: the rank of the version that keeps it longest, then by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turned {
    rank: usize,
    since: Time,
    segment: SegmentId,
}

/// What is to go, and in which order what could was.
#[derive(Debug)]
pub(super) struct Chosen {
    ranking: Ranking,
    /// What was taken before some of it was given back.
    turns: Vec<Turned>,
    segments: Vec<SegmentId>,
    /// What these bring.
    pub(super) amount: Amount,
}

impl Chosen {
    /// The ranks of those of which something goes.
    fn ranks(&self) -> BTreeSet<usize> {
        let chosen: BTreeSet<SegmentId> = self.segments.iter().copied().collect();
        let going = self.turns.iter();
        let going = going.filter(|turn| chosen.contains(&turn.segment));
        going.map(|turn| turn.rank).collect()
    }

    /// Those of which something goes, the least valuable first.
    pub(super) fn going(&self) -> impl Iterator<Item = &Ranked> {
        self.ranks()
            .into_iter()
            .filter_map(|rank| self.ranking.all().get(rank))
    }
}

impl Core {
    /// Chooses idle segments of a tier outside `kept` that bring `short` together, or all of them,
    /// and tells the policy.
    pub(super) fn victims(
        &mut self,
        now: Time,
        tier: Tier,
        short: Amount,
        kept: &BTreeSet<SegmentId>,
    ) -> Result<Vec<SegmentId>, Violation> {
        let mut chosen = self.choose_victims(now, tier, short, kept)?;
        self.decide_on(now, tier, &mut chosen)?;
        Ok(chosen.segments)
    }

    /// The same, without telling anybody.
    pub(super) fn choose_victims(
        &self,
        now: Time,
        tier: Tier,
        short: Amount,
        kept: &BTreeSet<SegmentId>,
    ) -> Result<Chosen, Violation> {
        let idle = self.idle(tier, kept)?;
        let candidates = self.candidates(tier, &idle)?;
        let policy = self.policies.policy(tier)?;
        let mut ranking = Ranking::of(policy, &self.facts(tier, now), &candidates);
        let above = self.above(tier, &candidates)?;
        let (turns, sum) = match above.is_empty() {
            true => self.first_to_go(&idle, &mut ranking, short)?,
            false => {
                ranking.sort_late(|of| !above.contains(&of.candidate.version));
                let mut turns = turns(&idle, ranking.all());
                self.tables_last(&mut turns, ranking.all(), &above)?;
                self.take(&mut turns.into_iter(), short)?
            }
        };
        let give_back = policy.give_back();
        let mut chosen = turns.iter().map(|turn| turn.segment).collect();
        match give_back {
            _ if !self.policies.choice(tier)?.give_back => {}
            GiveBack::BestFirst => self.give_back(tier, &mut chosen, sum, short)?,
            GiveBack::KeepLargest => chosen = self.largest(&turns, short)?,
        }
        let mut amount = Amount::ZERO;
        for segment in &chosen {
            amount = amount.plus(self.residency.get(*segment)?.charge);
        }
        Ok(Chosen {
            ranking,
            turns,
            segments: chosen,
            amount,
        })
    }

    /// Of what could go from host memory, those that are on a device which has them alone.
    fn above(
        &self,
        tier: Tier,
        candidates: &[Candidate],
    ) -> Result<BTreeSet<VersionId>, Violation> {
        let mut above = BTreeSet::new();
        for (device, _) in self.devices.all().filter(|_| tier == Tier::Host) {
            if !self.policies.choice(Tier::Device(device))?.exclusive {
                continue;
            }
            for version in candidates.iter().map(|candidate| candidate.version) {
                if self.is_there(CopyId::device(version, device), Part::Image)? {
                    above.insert(version);
                }
            }
        }
        Ok(above)
    }

    /// Takes segments in their turns until they bring `short` together: those, and what they bring.
    fn take(
        &self,
        turns: &mut dyn Iterator<Item = Turned>,
        short: Amount,
    ) -> Result<(Vec<Turned>, Amount), Violation> {
        let (mut taken, mut sum) = (Vec::new(), Amount::ZERO);
        while !short.fits(sum)
            && let Some(turn) = turns.next()
        {
            sum = sum.plus(self.residency.get(turn.segment)?.charge);
            taken.push(turn);
        }
        Ok((taken, sum))
    }

    /// The first of all [`turns`] that bring `short` together, or all; no more is put in order than
    /// that takes.
    fn first_to_go(
        &self,
        idle: &[Idle],
        ranking: &mut Ranking,
        short: Amount,
    ) -> Result<(Vec<Turned>, Amount), Violation> {
        // What several use comes with the last of them.
        let mut users: BTreeMap<SegmentId, usize> = BTreeMap::new();
        let mut last = |part: &Idle| {
            let seen = users.entry(part.segment).or_default();
            *seen += 1;
            *seen == part.users
        };
        let none: &[Idle] = &[];
        let (mut rank, mut parts) = (0, none.iter());
        let mut turns = std::iter::from_fn(|| {
            loop {
                for part in parts.by_ref() {
                    let (since, segment) = (part.since, part.segment);
                    if part.users == 1 || last(part) {
                        return Some(Turned {
                            rank: rank - 1,
                            since,
                            segment,
                        });
                    }
                }
                let version = ranking.nth(rank)?.candidate.version;
                let from = idle.partition_point(|part| part.version < version);
                let own = idle.get(from..)?;
                let to = own.partition_point(|part| part.version == version);
                (rank, parts) = (rank + 1, own.get(..to)?.iter());
            }
        });
        self.take(&mut turns, short)
    }

    /// What is on a device needs its table there: that goes last.
    fn tables_last(
        &self,
        turns: &mut [Turned],
        ranked: &[Ranked],
        above: &BTreeSet<VersionId>,
    ) -> Result<(), Violation> {
        if above.is_empty() {
            return Ok(());
        }
        for turn in turns.iter_mut() {
            let version = ranked.get(turn.rank).map(|of| of.candidate.version);
            let mut table = false;
            for source in &self.residency.get(turn.segment)?.sources {
                table |= self.catalogue.source(*source)?.part == Part::Table;
            }
            if table && version.is_some_and(|version| above.contains(&version)) {
                turn.rank = usize::MAX;
            }
        }
        turns.sort_unstable();
        Ok(())
    }

    /// The fewest and largest versions of these whose segments suffice.
    fn largest(&self, turns: &[Turned], short: Amount) -> Result<Vec<SegmentId>, Violation> {
        let mut versions = Vec::new();
        for parts in turns.chunk_by(|a, b| a.rank == b.rank) {
            let mut amount = Amount::ZERO;
            for part in parts {
                amount = amount.plus(self.residency.get(part.segment)?.charge);
            }
            versions.push((amount, parts));
        }
        versions.sort_by_key(|(amount, _)| std::cmp::Reverse(amount.bytes));
        let (mut chosen, mut sum) = (Vec::new(), Amount::ZERO);
        for (amount, parts) in versions {
            if short.fits(sum) {
                break;
            }
            sum = sum.plus(amount);
            chosen.extend(parts.iter().map(|part| part.segment));
        }
        Ok(chosen)
    }

    /// Tells the policy what goes, and writes down why.
    fn decide_on(&mut self, now: Time, tier: Tier, chosen: &mut Chosen) -> Result<(), Violation> {
        let going = chosen.ranks();
        let spared = chosen.ranking.first_but(going.iter().copied());
        let spared = spared.map(|ranked| (ranked.candidate.version, ranked.utility));
        let ranked = chosen.ranking.all();
        let version = |rank: &usize| ranked.get(*rank).map(|ranked| ranked.candidate.version);
        let victims: BTreeSet<VersionId> = going.iter().filter_map(version).collect();
        let policy = self.policies.policy(tier)?;
        let facts = self.facts(tier, now);
        let chosen_segments: BTreeSet<SegmentId> = chosen.segments.iter().copied().collect();
        let mut segments: BTreeMap<usize, Vec<SegmentId>> = BTreeMap::new();
        let turns = chosen.turns.iter();
        for turn in turns.filter(|turn| chosen_segments.contains(&turn.segment)) {
            segments.entry(turn.rank).or_default().push(turn.segment);
        }
        let mut explained = Vec::with_capacity(going.len());
        for rank in &going {
            let Some(victim) = ranked.get(*rank) else {
                continue;
            };
            explained.push(Explained {
                tier,
                version: victim.candidate.version,
                model: victim.candidate.subject,
                policy: policy.name(),
                utility: victim.utility,
                factors: policy.factors(&facts, &victim.candidate),
                segments: segments.remove(rank).unwrap_or_default(),
                spared,
                candidates: ranked.len(),
            });
        }
        self.policies.explained.append(&mut explained);
        let when = (now, self.ledger.account(tier).limit.bytes);
        let (policy, facts) = self.policies.at(tier, when)?;
        let victims = &victims;
        policy.decided(&facts, &Decision { ranked, victims });
        Ok(())
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
}

/// Each idle segment once, in its turn.
fn turns(idle: &[Idle], ranked: &[Ranked]) -> Vec<Turned> {
    let ranks = ranked.iter().zip(0..);
    let mut ranks: Vec<(VersionId, usize)> = ranks
        .map(|(ranked, rank)| (ranked.candidate.version, rank))
        .collect();
    ranks.sort_unstable();
    let rank = |version: VersionId| {
        let at = ranks.binary_search_by_key(&version, |(version, _)| *version);
        at.ok().and_then(|at| ranks.get(at)).map(|(_, rank)| *rank)
    };
    let turn = |idle: &Idle| Turned {
        // What nobody ranked goes last.
        rank: rank(idle.version).unwrap_or(usize::MAX),
        since: idle.since,
        segment: idle.segment,
    };
    let mut turns: Vec<Turned> = idle.iter().map(turn).collect();
    // Whoever keeps it longest decides.
    turns.sort_unstable_by_key(|turn| (turn.segment, std::cmp::Reverse(turn.rank)));
    turns.dedup_by_key(|turn| turn.segment);
    turns.sort_unstable();
    turns
}
