//! What it takes to make a copy whole.

use crate::Core;
use crate::effect::Refusal;
use crate::event::{Part, SegmentFact};
use crate::id::{Bytes, CopyId, DeviceId, SegmentId};
use crate::ledger::{Amount, Amounts, Tier};
use crate::planted::{Bug, planted};
use crate::policy::Route;
use crate::violation::Violation;
use std::collections::BTreeSet;

/// What the image of a copy on a device is filled from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feeder {
    /// The files: also what there is to say of everything that is not an image.
    Source,
    /// The host copy, of which what is missing is loaded along.
    Host,
    /// The copy on another device.
    Peer(DeviceId),
}

/// One way to make a copy whole. All of it is charged at once, on all tiers, or nothing is.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) feeder: Feeder,
    /// What is to be loaded, and where to.
    pub(crate) loads: Vec<(SegmentFact, Tier)>,
    /// What these are charged.
    pub(crate) missing: Amounts,
    /// What that and what is there already are charged.
    pub(crate) all: Amounts,
    /// What is there already, and must not be evicted for the rest.
    pub(crate) kept: BTreeSet<SegmentId>,
    /// The part of what is missing on the copy's device that is to stay free.
    pub(crate) reserve: Bytes,
}

/// What wants in the queue have a claim on.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// What they will take of what is free or being freed.
    pub(crate) room: Amounts,
    /// Segments of theirs, which are not evicted for later wants.
    pub(crate) kept: BTreeSet<SegmentId>,
    /// What the idle ones among these take.
    pub(crate) kept_idle: Amounts,
}

impl Plan {
    /// How what is loaded to a tier comes there.
    pub(crate) fn route(&self, tier: Tier) -> Route {
        let from_files = |(slot, _): &(SegmentFact, Tier)| slot.part == Part::File;
        match (tier, self.feeder) {
            (Tier::Host, _) => Route::ToHost,
            (Tier::Device(_), Feeder::Peer(_)) => Route::Across,
            (Tier::Device(_), Feeder::Source) => Route::ToDevice,
            (Tier::Device(_), Feeder::Host) if self.loads.iter().any(from_files) => Route::ToDevice,
            (Tier::Device(_), Feeder::Host) => Route::Up,
        }
    }
}

impl Core {
    /// The ways to make a copy whole and keep so much free beside it, the best first; at least one.
    pub(crate) fn plans(&self, copy: CopyId, reserve: Bytes) -> Result<Vec<Plan>, Violation> {
        Ok(match self.feeder(copy)? {
            Feeder::Host => vec![
                self.plan(copy, reserve, Feeder::Host)?,
                self.plan(copy, reserve, Feeder::Source)?,
            ],
            feeder @ (Feeder::Source | Feeder::Peer(_)) => vec![self.plan(copy, reserve, feeder)?],
        })
    }

    fn feeder(&self, copy: CopyId) -> Result<Feeder, Violation> {
        let Tier::Device(device) = copy.tier else {
            return Ok(Feeder::Source);
        };
        let lacks = |(slot, _, segment): (SegmentFact, Tier, Option<SegmentId>)| {
            slot.part == Part::Image && segment.is_none()
        };
        if !self.catalogue.places(copy)?.any(lacks) {
            return Ok(Feeder::Source);
        }
        for peer in self.devices.peers(device) {
            let on_peer = CopyId::device(copy.version, peer);
            let mut images = self.catalogue.places(on_peer)?;
            let whole = images.all(|(slot, _, segment)| {
                let resident = segment.is_some_and(|segment| self.residency.is_resident(segment));
                slot.part != Part::Image || resident
            });
            if whole {
                return Ok(Feeder::Peer(peer));
            }
        }
        let has_files = self.catalogue.version(copy.version)?.has(Part::File);
        Ok(if has_files {
            Feeder::Host
        } else {
            Feeder::Source
        })
    }

    /// What a copy takes without what it may be filled from: the least that it takes.
    pub(crate) fn least(&self, copy: CopyId, reserve: Bytes) -> Result<Plan, Violation> {
        self.plan(copy, reserve, Feeder::Source)
    }

    fn plan(&self, copy: CopyId, reserve: Bytes, feeder: Feeder) -> Result<Plan, Violation> {
        let mut plan = Plan {
            feeder,
            loads: Vec::new(),
            missing: Amounts::default(),
            all: Amounts::default(),
            kept: BTreeSet::new(),
            reserve,
        };
        plan.missing.add(copy.tier, Amount::bytes(reserve));
        plan.all.add(copy.tier, Amount::bytes(reserve));
        // What feeds another load is started before it.
        if feeder == Feeder::Host {
            self.add(&mut plan, CopyId::host(copy.version))?;
        }
        self.add(&mut plan, copy)?;
        if let Feeder::Peer(peer) = feeder {
            let on_peer = CopyId::device(copy.version, peer);
            plan.kept.append(&mut self.catalogue.own_segments(on_peer)?);
        }
        Ok(plan)
    }

    fn add(&self, plan: &mut Plan, copy: CopyId) -> Result<(), Violation> {
        for (slot, tier, segment) in self.catalogue.places(copy)? {
            let new = match segment {
                // Two sources of one content share a segment, and copies share the table.
                Some(segment) => plan.kept.insert(segment),
                None if plan.loads.contains(&(slot, tier)) => false,
                None => {
                    plan.loads.push((slot, tier));
                    plan.missing.add(tier, slot.amount());
                    true
                }
            };
            if new {
                plan.all.add(tier, slot.amount());
            }
        }
        Ok(())
    }

    /// Whether a plan can never fit.
    pub(crate) fn exceeds(&self, plan: &Plan) -> Option<Refusal> {
        for (tier, _) in plan.missing.iter() {
            let (want, budget) = (plan.all.get(tier), self.ledger.account(tier).budget);
            if !want.fits(budget) {
                return Some(Refusal::TooLarge {
                    tier,
                    want: want.bytes,
                    reserve: match tier {
                        Tier::Host => Bytes::ZERO,
                        Tier::Device(_) => plan.reserve,
                    },
                    limit: budget.bytes,
                });
            }
        }
        None
    }

    /// Whether a copy can never fit with so much kept free beside it, or nobody may have that.
    pub(crate) fn too_large(
        &self,
        copy: CopyId,
        reserve: Bytes,
    ) -> Result<Option<Refusal>, Violation> {
        let exceeds = self.exceeds(&self.least(copy, reserve)?);
        let max = self.user_reserve_max(copy.tier)?;
        let over_share = (reserve > max).then_some(Refusal::OverShare {
            tier: copy.tier,
            reserve,
            kept: Bytes::ZERO,
            max,
        });
        Ok(exceeds.or(over_share))
    }

    /// Whether what a plan lacks can be charged now, after `claims`.
    pub(crate) fn fits_now(&self, plan: &Plan, claims: &Claims) -> bool {
        plan.missing.iter().all(|(tier, missing)| {
            let wanted = claims.room.get(tier).plus(missing);
            planted(Bug::ChargeAboveLimit) || wanted.fits(self.ledger.account(tier).free())
        })
    }

    /// The first tier on which room for what a plan lacks cannot be made, after `claims`.
    pub(crate) fn blocked_on(
        &self,
        plan: &Plan,
        claims: &Claims,
    ) -> Result<Option<Tier>, Violation> {
        let own_idle = self.idle_among(plan.kept.difference(&claims.kept))?;
        Ok(plan.missing.iter().find_map(|(tier, missing)| {
            let kept_idle = claims.kept_idle.get(tier).plus(own_idle.get(tier));
            let evictable = self.residency.idle_amount(tier).minus(kept_idle);
            let wanted = claims.room.get(tier).plus(missing);
            let coming = self.ledger.account(tier).coming();
            (!wanted.fits(coming.plus(evictable))).then_some(tier)
        }))
    }

    /// Whether the room that a copy takes at least, with what is to stay free beside it, can be made
    /// now, after what the queue claims.
    pub(super) fn can_be_made(&self, copy: CopyId, reserve: Bytes) -> Result<bool, Violation> {
        let claims = Claims {
            room: self.claimed.clone(),
            ..Claims::default()
        };
        let least = self.least(copy, reserve)?;
        Ok(self.blocked_on(&least, &claims)?.is_none())
    }

    /// How much room can be made on a tier now, after what the queue claims.
    pub(super) fn room_to_make(&self, tier: Tier) -> Amount {
        let coming = self.ledger.account(tier).coming();
        let all = coming.plus(self.residency.idle_amount(tier));
        all.minus(self.claimed.get(tier))
    }

    /// What the idle ones among these segments take.
    pub(super) fn idle_among<'a>(
        &self,
        segments: impl Iterator<Item = &'a SegmentId>,
    ) -> Result<Amounts, Violation> {
        let mut sum = Amounts::default();
        for segment in segments.filter(|segment| self.residency.is_idle(**segment)) {
            let segment = self.residency.get(*segment)?;
            sum.add(segment.tier, segment.charge);
        }
        Ok(sum)
    }
}
