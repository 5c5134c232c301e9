//! Room: who is admitted, what is evicted for it, and what is done at the end of each event.

use super::Turn;
use crate::Core;
use crate::admission::{Stage, Target};
use crate::effect::{Effect, HOLDERS_MAX, Holder, Origin, Refusal, Reply};
use crate::id::{Bytes, SegmentId, VersionId};
use crate::ledger::{Amount, Tier};
use crate::ops::Op;
use crate::policy::Candidate;
use crate::residency::State;
use crate::violation::Violation;
use std::collections::{BTreeMap, BTreeSet};

/// What earlier wants in the queue have a claim on.
#[derive(Default)]
struct Claims {
    /// What they will take of what is free or being freed.
    room: Amount,
    /// Segments of theirs, which are not evicted for later wants.
    kept: BTreeSet<SegmentId>,
    /// What the idle ones among these take.
    kept_idle: Amount,
}

impl Core {
    /// Brings everything that the event concerned to rest.
    pub(crate) fn settle(&mut self, turn: &mut Turn<'_>) -> Result<(), Violation> {
        if self.touched.is_empty() && !self.room_changed {
            return Ok(());
        }
        let mut done = BTreeSet::new();
        loop {
            while let Some(version) = self.touched.pop_first() {
                done.insert(version);
                self.evict_eagerly(turn, version)?;
            }
            self.shrink(turn)?;
            if !std::mem::take(&mut self.room_changed) {
                break;
            }
            if self.admission.queue_len() > 0 {
                self.run_queue(turn)?;
            }
        }
        done.append(&mut self.touched);
        for version in done {
            self.forget_if_unused(turn, version)?;
        }
        Ok(())
    }

    /// Evicts what models of this version wish to be gone once nobody holds it.
    fn evict_eagerly(&mut self, turn: &mut Turn<'_>, id: VersionId) -> Result<(), Violation> {
        let Some(version) = self.catalogue.versions.get(&id) else {
            return Ok(());
        };
        if version.held() || self.awaited(id)? || !self.catalogue.eager(id)? {
            return Ok(());
        }
        for segment in self.idle_of(id)? {
            if self.only_eager(segment)? {
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

    /// Evicts what is above the limit, as far as it can be evicted.
    fn shrink(&mut self, turn: &mut Turn<'_>) -> Result<(), Violation> {
        let excess = self.ledger.account(Tier::Host).excess();
        if excess == Amount::ZERO || self.residency.idle_amount() == Amount::ZERO {
            return Ok(());
        }
        for segment in self.victims(excess, &BTreeSet::new())? {
            self.evict(turn, segment)?;
        }
        self.room_changed = true;
        Ok(())
    }

    /// Goes through the wants that wait for room, first come first.
    ///
    /// A want whose room is there is admitted. One whose room can be made has it made, and keeps
    /// its claim on it against all later ones. One whose room cannot be made, because too much is
    /// held, claims nothing: later ones may pass it.
    fn run_queue(&mut self, turn: &mut Turn<'_>) -> Result<(), Violation> {
        let mut claims = Claims::default();
        for version in self.admission.queue() {
            let need = self.catalogue.need(version)?;
            let missing = Amount {
                bytes: need.missing_bytes,
                segments: need.missing_segments,
            };
            if missing == Amount::ZERO {
                self.admit(turn, version)?;
                continue;
            }
            if let Some(refusal) = self.too_large(version)? {
                self.answer_all(turn, Target::Version(version), &Reply::Refused(refusal))?;
                continue;
            }
            let wanted = claims.room.plus(missing);
            if wanted.fits(self.ledger.account(Tier::Host).free()) {
                self.admit(turn, version)?;
            } else {
                self.make_room(turn, version, wanted, &mut claims)?;
            }
        }
        Ok(())
    }

    /// Evicts what is needed beyond what is free or being freed, if that is possible.
    fn make_room(
        &mut self,
        turn: &mut Turn<'_>,
        version: VersionId,
        wanted: Amount,
        claims: &mut Claims,
    ) -> Result<(), Violation> {
        let coming = self.ledger.account(Tier::Host).coming();
        let mut own = self.catalogue.distinct_segments(version)?;
        own.retain(|segment| !claims.kept.contains(segment));
        let mut own_idle = Amount::ZERO;
        for segment in own
            .iter()
            .filter(|segment| self.residency.is_idle(**segment))
        {
            let charge = self.residency.get(*segment)?.charge;
            own_idle = own_idle.plus(Amount::segment(charge));
        }
        let kept_idle = claims.kept_idle.plus(own_idle);
        let evictable = self.residency.idle_amount().minus(kept_idle);
        if !wanted.fits(coming.plus(evictable)) {
            return Ok(());
        }
        claims.room = wanted;
        claims.kept.append(&mut own);
        claims.kept_idle = kept_idle;
        let short = wanted.minus(coming);
        if short != Amount::ZERO {
            for segment in self.victims(short, &claims.kept)? {
                self.evict(turn, segment)?;
            }
        }
        Ok(())
    }

    /// Charges what a version lacks and starts to load it.
    fn admit(&mut self, turn: &mut Turn<'_>, id: VersionId) -> Result<(), Violation> {
        self.admission.admit(id)?;
        self.change_version(id, turn.now, |version| version.admitted = true)?;
        let slots: Vec<_> = self.catalogue.segments_of(id)?.collect();
        let mut started = false;
        for (slot, _) in slots.into_iter().filter(|(_, segment)| segment.is_none()) {
            started = true;
            self.ledger
                .charge(Tier::Host, Amount::segment(slot.charge))?;
            let segment = self.residency.next_id();
            let op = self.ops.start(Op::Load { segment });
            let mut held = 0;
            for user in self.catalogue.users(&[slot.source])? {
                held += u64::from(self.catalogue.version(user)?.held());
            }
            self.residency
                .start(segment, op, slot.source, slot.charge, held);
            self.catalogue.source_mut(slot.source)?.segment = Some(segment);
            turn.effects.push(Effect::Load {
                op,
                segment,
                source: slot.source,
                version: id,
                charge: slot.charge,
            });
        }
        if let Some(first) = self.admission.first_waiting_for(Target::Version(id))
            && started
        {
            self.admission.set_origin(first, Origin::Loaded);
        }
        // Other loads may have brought what it lacked while it waited.
        self.grant_if_whole(turn, id)
    }

    /// Chooses idle segments outside `kept` that bring `short` together, or all of them.
    fn victims(
        &self,
        short: Amount,
        kept: &BTreeSet<SegmentId>,
    ) -> Result<Vec<SegmentId>, Violation> {
        let candidates: Vec<Candidate> = self
            .residency
            .candidates()
            .filter(|candidate| !kept.contains(&candidate.segment))
            .collect();
        let mut ranked = Vec::with_capacity(candidates.len());
        self.policy.rank(&candidates, &mut ranked);
        ranked.extend(candidates.iter().map(|candidate| candidate.segment));
        let mut left: BTreeMap<SegmentId, Bytes> = candidates
            .iter()
            .map(|candidate| (candidate.segment, candidate.charge))
            .collect();
        let (mut chosen, mut sum) = (Vec::new(), Amount::ZERO);
        for segment in ranked {
            if short.fits(sum) {
                break;
            }
            if let Some(charge) = left.remove(&segment) {
                chosen.push(segment);
                sum = sum.plus(Amount::segment(charge));
            }
        }
        self.give_back(&mut chosen, sum, short)?;
        Ok(chosen)
    }

    /// Takes back victims without which the rest suffices, the last ranked first.
    ///
    /// Only a whole version is worth keeping: what is left of one that loses a segment stays a
    /// victim, or small remains would be spared again and again and pile up.
    fn give_back(
        &self,
        chosen: &mut Vec<SegmentId>,
        mut sum: Amount,
        short: Amount,
    ) -> Result<(), Violation> {
        let mut victims: BTreeSet<SegmentId> = chosen.iter().copied().collect();
        for segment in chosen.iter().rev() {
            if !victims.contains(segment) {
                continue;
            }
            for user in self
                .catalogue
                .users(&self.residency.get(*segment)?.sources)?
            {
                let mut whole = true;
                let mut group = BTreeSet::new();
                for (_, part) in self.catalogue.segments_of(user)? {
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
                    without = without.minus(Amount::segment(self.residency.get(*part)?.charge));
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

    /// Drops a version of which nothing is in memory and that nobody holds or wants.
    fn forget_if_unused(&mut self, turn: &mut Turn<'_>, id: VersionId) -> Result<(), Violation> {
        if self.forgettable(id)? {
            self.catalogue.forget(id)?;
            turn.effects.push(Effect::Forget { version: id });
        }
        Ok(())
    }

    pub(crate) fn forgettable(&self, id: VersionId) -> Result<bool, Violation> {
        let Some(version) = self.catalogue.versions.get(&id) else {
            return Ok(false);
        };
        Ok(version.leases == 0
            && version.evicting.is_empty()
            && self.admission.stage(id).is_none()
            && self
                .catalogue
                .segments_of(id)?
                .all(|(_, segment)| segment.is_none()))
    }

    /// What a version takes and why it cannot be evicted.
    pub(crate) fn holder(&self, id: VersionId) -> Result<Holder, Violation> {
        let mut charged = Bytes::ZERO;
        let mut loading = self.admission.stage(id).is_some();
        for segment in self.catalogue.distinct_segments(id)? {
            let segment = self.residency.get(segment)?;
            charged = charged.saturating_add(segment.charge);
            loading |= matches!(segment.state, State::Loading(_));
        }
        let version = self.catalogue.version(id)?;
        let (leases, pinned) = (version.leases, version.pins > 0);
        Ok(Holder {
            version: id,
            charged,
            leases,
            pinned,
            loading,
        })
    }

    /// The largest versions that cannot be evicted, largest first.
    pub(crate) fn holders(&self) -> Result<Vec<Holder>, Violation> {
        let mut holders = Vec::new();
        for id in self.catalogue.versions.keys() {
            let mut holder = self.holder(*id)?;
            // A want that only waits for room takes nothing.
            holder.loading &= self.admission.stage(*id) != Some(Stage::Room);
            let holds = holder.leases > 0 || holder.pinned || holder.loading;
            if holds && holder.charged > Bytes::ZERO {
                holders.push(holder);
            }
        }
        holders.sort_by_key(|holder| (std::cmp::Reverse(holder.charged), holder.version));
        holders.truncate(HOLDERS_MAX);
        Ok(holders)
    }

    pub(crate) fn no_room(
        &self,
        version: VersionId,
        holders: Vec<Holder>,
    ) -> Result<Refusal, Violation> {
        let account = self.ledger.account(Tier::Host);
        Ok(Refusal::NoRoom {
            want: self.catalogue.need(version)?.missing_bytes,
            limit: account.limit.bytes,
            charged: account.charged.bytes,
            holders,
        })
    }
}
