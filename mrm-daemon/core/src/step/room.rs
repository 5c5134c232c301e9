//! Room: who is admitted, and what is done at the end of each event.

use super::Turn;
use super::plan::{Claims, Feeder, Plan};
use crate::Core;
use crate::admission::{Stage, Target};
use crate::catalogue::Copy;
use crate::effect::{Effect, Feed, Origin, Refusal, Reply};
use crate::event::{Part, SegmentFact};
use crate::few::FewSet;
use crate::id::{CopyId, SegmentId, VersionId};
use crate::ledger::{Amount, Amounts, Tier};
use crate::ops::Op;
use crate::planted::{Bug, planted};
use crate::policy::Load;
use crate::residency::{Segment, State};
use crate::violation::{Record, Violation};
use std::collections::BTreeSet;

/// What becomes of a want in the queue.
enum Decision {
    Admit(Plan),
    MakeRoom(Plan),
    /// It cannot have room now, and claims nothing.
    Pass,
    Refuse(Refusal),
}

impl Core {
    /// Brings everything that the event concerned to rest.
    pub(crate) fn settle(&mut self, turn: &mut Turn<'_>) -> Result<(), Violation> {
        if self.touched.is_empty() && !self.room_changed {
            return Ok(());
        }
        let mut done = FewSet::default();
        self.settle_queue(turn, &mut done)?;
        self.go_ahead(turn)?;
        // That may have given something up, or started loads.
        self.settle_queue(turn, &mut done)?;
        done.extend(std::mem::take(&mut self.touched).iter().copied());
        for version in done.iter() {
            self.forget_if_unused(turn, *version)?;
        }
        Ok(())
    }

    /// Evicts and admits until nothing changes any more.
    fn settle_queue(
        &mut self,
        turn: &mut Turn<'_>,
        done: &mut FewSet<VersionId>,
    ) -> Result<(), Violation> {
        loop {
            while let Some(version) = self.touched.pop_first() {
                done.insert(version);
                self.merge_twins(turn, version)?;
                self.evict_eagerly(turn, version)?;
            }
            self.shrink(turn)?;
            if !std::mem::take(&mut self.room_changed) {
                break;
            }
            self.claimed = Amounts::default();
            if self.admission.queue_len() > 0 {
                self.run_queue(turn)?;
            }
        }
        Ok(())
    }

    /// Evicts what models of this version wish to be gone once nobody holds it.
    fn evict_eagerly(&mut self, turn: &mut Turn<'_>, id: VersionId) -> Result<(), Violation> {
        if !self.catalogue.versions.contains_key(&id)
            || !self.catalogue.eager(id)?
            || self.awaited(id)?
        {
            return Ok(());
        }
        for segment in self.catalogue.all_segments(id)? {
            if self.residency.is_idle(segment) && self.only_eager(segment)? {
                self.evict(turn, segment)?;
                self.room_changed = true;
            }
        }
        Ok(())
    }

    /// Whether all versions that use a segment are done with it and eager.
    fn only_eager(&self, segment: SegmentId) -> Result<bool, Violation> {
        for user in self
            .catalogue
            .users(&self.residency.get(segment)?.sources)?
        {
            if self.awaited(user)? || !self.catalogue.eager(user)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Evicts what is above the limits, as far as it can be evicted: on devices first, since that
    /// makes what the host has of it worth more.
    fn shrink(&mut self, turn: &mut Turn<'_>) -> Result<(), Violation> {
        let tiers: Vec<Tier> = self.ledger.tiers().rev().collect();
        for tier in tiers {
            let excess = self.ledger.account(tier).excess();
            if excess == Amount::ZERO || self.residency.idle_amount(tier) == Amount::ZERO {
                continue;
            }
            for segment in self.victims(turn.now, tier, excess, &BTreeSet::new())? {
                self.evict(turn, segment)?;
            }
            self.room_changed = true;
        }
        Ok(())
    }

    /// Goes through the wants that wait for room, first come first.
    ///
    /// A want whose room is there is admitted. One whose room can be made has it made, and keeps
    /// its claim on it against all later ones. One whose room cannot be made, because too much is
    /// held, claims nothing: later ones may pass it.
    fn run_queue(&mut self, turn: &mut Turn<'_>) -> Result<(), Violation> {
        let mut claims = Claims::default();
        for copy in self.admission.queue() {
            match self.decide(copy, &claims)? {
                Decision::Admit(plan) => self.admit(turn, copy, &plan, &claims)?,
                Decision::MakeRoom(plan) => self.make_room(turn, plan, &mut claims)?,
                Decision::Pass => {}
                Decision::Refuse(refusal) => {
                    self.answer_all(turn, Target::Copy(copy), &Reply::Refused(refusal))?;
                }
            }
        }
        self.claimed = claims.room;
        Ok(())
    }

    /// The first plan that can be followed now or later is followed.
    fn decide(&self, copy: CopyId, claims: &Claims) -> Result<Decision, Violation> {
        let mut decision = Decision::Pass;
        let Some(reserve) = self.next_reserve(copy)? else {
            return Ok(decision);
        };
        for plan in self.plans(copy, reserve)? {
            if let Some(refusal) = self.exceeds(&plan) {
                decision = Decision::Refuse(refusal);
            } else if self.fits_now(&plan, claims) {
                return Ok(Decision::Admit(plan));
            } else if self.blocked_on(&plan, claims)?.is_none() {
                return Ok(Decision::MakeRoom(plan));
            } else {
                decision = Decision::Pass;
            }
        }
        Ok(decision)
    }

    /// Evicts what is needed beyond what is free or being freed.
    fn make_room(
        &mut self,
        turn: &mut Turn<'_>,
        plan: Plan,
        claims: &mut Claims,
    ) -> Result<(), Violation> {
        let own_idle = self.idle_among(plan.kept.difference(&claims.kept))?;
        for (tier, amount) in own_idle.iter() {
            claims.kept_idle.add(tier, amount);
        }
        claims.kept.extend(plan.kept);
        // Devices first: what they lose makes what the host has of it worth more.
        for (tier, missing) in plan.missing.iter().rev() {
            claims.room.add(tier, missing);
            let coming = self.ledger.account(tier).coming();
            let short = claims.room.get(tier).minus(coming);
            if short == Amount::ZERO {
                continue;
            }
            for segment in self.victims(turn.now, tier, short, &claims.kept)? {
                self.evict(turn, segment)?;
            }
        }
        Ok(())
    }

    /// Charges what a copy lacks, and what those who wait for it want kept free as far as there is
    /// room, and starts to load it.
    pub(super) fn admit(
        &mut self,
        turn: &mut Turn<'_>,
        copy: CopyId,
        plan: &Plan,
        claims: &Claims,
    ) -> Result<(), Violation> {
        self.admission.admit(copy)?;
        // The rest of the version may have been kept for this want.
        self.touched.insert(copy.version);
        self.change_copy(copy, turn.now, |copy| copy.admitted = true)?;
        if plan.feeder == Feeder::Host {
            self.tell_policy(CopyId::host(copy.version), turn.now)?;
        }
        let mut origin = None;
        for (slot, tier) in &plan.loads {
            let feed = self.load(turn, copy, (*slot, *tier), plan)?;
            origin = match feed {
                Feed::Source => Some(Origin::Loaded),
                Feed::Host(_) | Feed::Peer(_) => origin.or(Some(Origin::Promoted)),
            };
        }
        if let (Some(origin), Some(first)) =
            (origin, self.admission.first_waiting_for(Target::Copy(copy)))
        {
            self.admission.set_origin(first, origin);
        }
        self.reserve_for_waiting(copy, claims)?;
        // Other loads may have brought what it lacked while it waited.
        self.grant_if_whole(turn, copy)?;
        self.grant_if_laid(turn, copy)
    }

    /// Charges one segment and starts to load it; what feeds it is held until that has ended.
    fn load(
        &mut self,
        turn: &mut Turn<'_>,
        copy: CopyId,
        (slot, tier): (SegmentFact, Tier),
        plan: &Plan,
    ) -> Result<Feed, Violation> {
        self.ledger.charge(tier, slot.amount())?;
        let (feed, fed_by) = self.feed(copy.version, &slot, plan.feeder)?;
        if let Some(fed_by) = fed_by {
            self.change_copy(fed_by, turn.now, |copy| copy.feeding += 1)?;
        }
        let segment = self.residency.next_id();
        let op = self.ops.start(Op::Load { segment });
        let mut held = 0;
        for user in self.catalogue.copies_with(tier, &[slot.source])? {
            held += u64::from(self.catalogue.held(user)?);
            // Another want for this image no longer needs what it was to be filled from.
            let waits = self.admission.stage(user) == Some(Stage::Room);
            self.room_changed |= waits && slot.part == Part::Image;
        }
        let loading = Segment {
            state: State::Loading(op),
            tier,
            charge: slot.amount(),
            sources: vec![slot.source],
            left_by: Vec::new(),
            fed_by,
            laid: false,
            spoilt: None,
            held,
            idle_since: None,
        };
        self.residency.start(segment, loading);
        // A table is in no time, and its copies share it.
        if slot.part != Part::Table {
            let load = Load {
                version: copy.version,
                tier,
                route: plan.route(tier),
                bytes: slot.charge,
            };
            self.policies.reloads.started(segment, load, turn.now);
        }
        self.catalogue
            .set_segment(slot.source, tier, Some(segment))?;
        turn.effects.push(Effect::Load {
            op,
            segment,
            source: slot.source,
            version: copy.version,
            charge: slot.charge,
            tier,
            feed: feed.clone(),
        });
        Ok(feed)
    }

    /// What a segment is filled from, and the copy that this is a part of.
    fn feed(
        &self,
        version: VersionId,
        slot: &SegmentFact,
        feeder: Feeder,
    ) -> Result<(Feed, Option<CopyId>), Violation> {
        match (slot.part, feeder) {
            (Part::Table | Part::File, _) | (Part::Image, Feeder::Source) => {
                Ok((Feed::Source, None))
            }
            (Part::Image, Feeder::Host) => {
                let host = CopyId::host(version);
                let files = self.catalogue.places(host)?;
                let files = files.filter(|(slot, _, _)| slot.part == Part::File);
                let segments: Option<Vec<SegmentId>> = files.map(|(_, _, there)| there).collect();
                let segments = segments.ok_or(Violation::Missing(Record::Copy(host)))?;
                Ok((Feed::Host(segments.into()), Some(host)))
            }
            (Part::Image, Feeder::Peer(peer)) => {
                let on_peer = CopyId::device(version, peer);
                let segment = self.catalogue.segment(slot.source, on_peer.tier);
                let segment = segment.ok_or(Violation::Missing(Record::Copy(on_peer)))?;
                Ok((Feed::Peer(segment), Some(on_peer)))
            }
        }
    }

    /// Drops a version of which nothing is in memory and that nobody holds or wants.
    fn forget_if_unused(&mut self, turn: &mut Turn<'_>, id: VersionId) -> Result<(), Violation> {
        if self.forgettable(id)? {
            self.catalogue.forget(id)?;
            if !planted(Bug::ForgetInSilence) {
                turn.effects.push(Effect::Forget { version: id });
            }
        }
        Ok(())
    }

    pub(crate) fn forgettable(&self, id: VersionId) -> Result<bool, Violation> {
        let Some(version) = self.catalogue.versions.get(&id) else {
            return Ok(false);
        };
        let unleased = |copy: &Copy| copy.leases == 0 && copy.tainted == 0;
        Ok(version.copies.values().all(unleased)
            && version.evicting.is_empty()
            && self.admission.wants_of(id).next().is_none()
            && !self.ahead.makes_room_for(id)
            && !self.catalogue.has_segments(version))
    }
}
