//! The state of each segment.
//!
//! Absent is not stored: a segment that is not in the table is absent, and stays so, because an
//! id stands for one allocation.

use crate::event::Fault;
use crate::id::{ContentId, CopyId, OpId, SegmentId, SourceId, Time, VersionId};
use crate::ledger::{Amount, Tier};
use crate::planted::{Bug, planted};
use crate::violation::{Record, Violation};
use std::collections::{BTreeMap, BTreeSet};

/// Where a segment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Charged and on its way.
    Loading(OpId),
    /// Filled and sealed.
    Resident(ContentId),
    /// Filled with what it should not hold: nobody gets it, and it goes with its last holder.
    Damaged,
    /// On its way out, still charged.
    Evicting(OpId),
}

/// One allocation.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) state: State,
    pub(crate) tier: Tier,
    pub(crate) charge: Amount,
    /// The sources that it stands for; empty once it is damaged or being freed.
    pub(crate) sources: Vec<SourceId>,
    /// The versions that used it when its eviction began; empty before.
    pub(crate) left_by: Vec<VersionId>,
    /// The copy that it is being filled from.
    pub(crate) fed_by: Option<CopyId>,
    /// Its memory is there: it may be lent while it is filled.
    pub(crate) laid: bool,
    /// What it is being filled from is damaged: by which segments, and what to say of it.
    pub(crate) spoilt: Option<Box<Spoilt>>,
    /// How many pairs of a source of it and a held copy that has it there are, and how many leases
    /// on damaged copies and loads that it spoils keep it.
    pub(crate) held: u64,
    /// When it came to be resident and not held; its key in the index of idle segments.
    pub(crate) idle_since: Option<Time>,
}

/// Why nobody may get what a load brings.
#[derive(Debug)]
pub(crate) struct Spoilt {
    /// The damaged segments that it is filled from.
    pub(crate) by: BTreeSet<SegmentId>,
    /// What those who wait for it are told.
    pub(crate) fault: Fault,
}

/// All segments.
#[derive(Debug, Default)]
pub(crate) struct Residency {
    created: u64,
    segments: BTreeMap<SegmentId, Box<Segment>>,
    contents: BTreeMap<(Tier, ContentId), SegmentId>,
    idle: BTreeMap<Tier, Idle>,
    /// Resident segments that do not stand for their content.
    twins: BTreeSet<SegmentId>,
}

/// What can be evicted of a tier: resident and not held.
#[derive(Debug, Default)]
struct Idle {
    /// The longest idle first.
    index: BTreeSet<(Time, SegmentId)>,
    amount: Amount,
}

impl Residency {
    pub(crate) fn get(&self, id: SegmentId) -> Result<&Segment, Violation> {
        self.segments
            .get(&id)
            .map(|segment| &**segment)
            .ok_or(Violation::Missing(Record::Segment(id)))
    }

    fn get_mut(&mut self, id: SegmentId) -> Result<&mut Segment, Violation> {
        self.segments
            .get_mut(&id)
            .map(|segment| &mut **segment)
            .ok_or(Violation::Missing(Record::Segment(id)))
    }

    pub(crate) fn is_resident(&self, id: SegmentId) -> bool {
        self.segments
            .get(&id)
            .is_some_and(|segment| matches!(segment.state, State::Resident(_)))
    }

    /// Whether it can be lent to one who knows that it may still be filled.
    pub(crate) fn is_laid(&self, id: SegmentId) -> bool {
        self.segments
            .get(&id)
            .is_some_and(|segment| match segment.state {
                State::Loading(_) => segment.laid,
                State::Resident(_) => true,
                State::Damaged | State::Evicting(_) => false,
            })
    }

    /// Takes note that the memory of a load is there.
    pub(crate) fn lay(&mut self, id: SegmentId) -> Result<(), Violation> {
        let segment = self.get_mut(id)?;
        let loading = matches!(segment.state, State::Loading(_));
        if !loading || segment.laid || segment.tier != Tier::Host {
            return Err(Violation::WrongState(id));
        }
        segment.laid = true;
        Ok(())
    }

    /// Takes back that the memory of a load is there.
    pub(crate) fn unlay(&mut self, id: SegmentId) -> Result<(), Violation> {
        let segment = self.get_mut(id)?;
        if !matches!(segment.state, State::Loading(_)) || !segment.laid {
            return Err(Violation::WrongState(id));
        }
        segment.laid = false;
        Ok(())
    }

    /// What a twin holds: a resident segment that does not stand for its content, because another
    /// does or did.
    pub(crate) fn twin(&self, id: SegmentId) -> Option<ContentId> {
        match self.segments.get(&id)?.state {
            State::Resident(content) if self.twins.contains(&id) => Some(content),
            State::Loading(_) | State::Resident(_) | State::Damaged | State::Evicting(_) => None,
        }
    }

    pub(crate) fn has_twins(&self) -> bool {
        !self.twins.is_empty()
    }

    pub(crate) fn twins_len(&self) -> usize {
        self.twins.len()
    }

    /// Loading to Resident, without standing for its content: another segment does, and this one
    /// is lent.
    pub(crate) fn arrive_as_twin(
        &mut self,
        id: SegmentId,
        content: ContentId,
        now: Time,
    ) -> Result<(), Violation> {
        let segment = self.get_mut(id)?;
        let State::Loading(_) = segment.state else {
            return Err(Violation::WrongState(id));
        };
        segment.state = State::Resident(content);
        self.twins.insert(id);
        self.index(id, now)
    }

    /// Takes note of what a resident segment really holds. If another stands for that, it is a twin
    /// from now on.
    pub(crate) fn identify(&mut self, id: SegmentId, content: ContentId) -> Result<(), Violation> {
        let segment = self.get_mut(id)?;
        let tier = segment.tier;
        let before = match &mut segment.state {
            State::Resident(held) => std::mem::replace(held, content),
            State::Loading(_) | State::Damaged | State::Evicting(_) => {
                return Err(Violation::WrongState(id));
            }
        };
        if !self.twins.contains(&id) {
            self.contents.remove(&(tier, before));
        }
        if self.contents.contains_key(&(tier, content)) && !planted(Bug::OverlookTwin) {
            self.twins.insert(id);
        } else {
            self.contents.insert((tier, content), id);
            self.twins.remove(&id);
        }
        Ok(())
    }

    /// Lets a twin stand for its content, which no other segment holds any more.
    pub(crate) fn stand_alone(&mut self, id: SegmentId) -> Result<(), Violation> {
        if let Some(content) = self.twin(id) {
            let tier = self.get(id)?.tier;
            self.contents.insert((tier, content), id);
            self.twins.remove(&id);
        }
        Ok(())
    }

    pub(crate) fn is_idle(&self, id: SegmentId) -> bool {
        self.segments
            .get(&id)
            .is_some_and(|segment| segment.idle_since.is_some())
    }

    /// The id of the next segment.
    pub(crate) fn next_id(&mut self) -> SegmentId {
        self.created += 1;
        SegmentId(self.created)
    }

    /// Absent to Loading.
    pub(crate) fn start(&mut self, id: SegmentId, segment: Segment) {
        self.segments.insert(id, Box::new(segment));
    }

    /// Absent to Resident: what the last daemon left.
    pub(crate) fn adopt(
        &mut self,
        id: SegmentId,
        segment: Segment,
        content: ContentId,
        now: Time,
    ) -> Result<(), Violation> {
        let key = (segment.tier, content);
        self.segments.insert(id, Box::new(segment));
        self.contents.insert(key, id);
        self.index(id, now)
    }

    /// Lets a resident segment stand for one more source, by which it is held so often.
    pub(crate) fn stand_for(
        &mut self,
        id: SegmentId,
        source: SourceId,
        held: u64,
        now: Time,
    ) -> Result<(), Violation> {
        let segment = self.get_mut(id)?;
        segment.sources.push(source);
        segment.held += held;
        self.index(id, now)
    }

    /// The segment on a tier that holds a content.
    pub(crate) fn holding(&self, tier: Tier, content: ContentId) -> Option<SegmentId> {
        if planted(Bug::WrongSegment) {
            let mut there = self.contents.iter().filter(|((on, _), _)| *on == tier);
            return there.next().map(|(_, segment)| *segment);
        }
        self.contents.get(&(tier, content)).copied()
    }

    /// Takes note that the load of a segment needs what it was filled from no longer.
    pub(crate) fn end_feed(&mut self, id: SegmentId) -> Result<Option<CopyId>, Violation> {
        Ok(self.get_mut(id)?.fed_by.take())
    }

    /// Loading to Resident.
    pub(crate) fn arrive(
        &mut self,
        id: SegmentId,
        content: ContentId,
        now: Time,
    ) -> Result<(), Violation> {
        let segment = self.get_mut(id)?;
        let State::Loading(_) = segment.state else {
            return Err(Violation::WrongState(id));
        };
        segment.state = State::Resident(content);
        let key = (segment.tier, content);
        self.contents.insert(key, id);
        self.index(id, now)
    }

    /// Lets `to`, which is resident, stand for all that `from` stands for.
    pub(crate) fn redirect(
        &mut self,
        from: SegmentId,
        to: SegmentId,
        now: Time,
    ) -> Result<Vec<SourceId>, Violation> {
        let twin = self.twin(from).is_some();
        self.unindex(from)?;
        let old = self.get_mut(from)?;
        if !twin && !matches!(old.state, State::Loading(_)) {
            return Err(Violation::WrongState(from));
        }
        let held = std::mem::take(&mut old.held);
        let sources = std::mem::take(&mut old.sources);
        let new = self.get_mut(to)?;
        new.held += held;
        new.sources.extend_from_slice(&sources);
        self.index(to, now)?;
        Ok(sources)
    }

    /// Loading or Resident to Evicting, left by its users; returns the charge, and what it stood
    /// for.
    pub(crate) fn evict(
        &mut self,
        id: SegmentId,
        op: OpId,
        left_by: Vec<VersionId>,
    ) -> Result<(Amount, Vec<SourceId>), Violation> {
        self.unindex(id)?;
        let segment = self.get_mut(id)?;
        if segment.held > 0 {
            return Err(Violation::WrongState(id));
        }
        let before = std::mem::replace(&mut segment.state, State::Evicting(op));
        segment.left_by = left_by;
        let (charge, sources) = (segment.charge, std::mem::take(&mut segment.sources));
        let tier = segment.tier;
        match before {
            // A load whose content was there already, or whose device is lost.
            State::Loading(_) | State::Damaged => {}
            State::Resident(content) => {
                if !self.twins.remove(&id) {
                    self.contents.remove(&(tier, content));
                }
            }
            State::Evicting(_) => return Err(Violation::WrongState(id)),
        }
        Ok((charge, sources))
    }

    /// Resident or Loading to Damaged: it stands for nothing any more, and is held by `pairs` of
    /// its sources and held copies less. Returns what it stood for.
    pub(crate) fn condemn(
        &mut self,
        id: SegmentId,
        pairs: u64,
    ) -> Result<Vec<SourceId>, Violation> {
        self.unindex(id)?;
        let segment = self.get_mut(id)?;
        let held = segment.held.checked_sub(pairs);
        segment.held = held.ok_or(Violation::WrongState(id))?;
        let before = std::mem::replace(&mut segment.state, State::Damaged);
        let (tier, sources) = (segment.tier, std::mem::take(&mut segment.sources));
        match before {
            State::Loading(_) => {}
            State::Resident(content) => {
                if !self.twins.remove(&id) {
                    self.contents.remove(&(tier, content));
                }
            }
            State::Damaged | State::Evicting(_) => return Err(Violation::WrongState(id)),
        }
        Ok(sources)
    }

    /// Notes that what a load brings is spoilt by `by`; returns whether that is news.
    pub(crate) fn spoil(
        &mut self,
        id: SegmentId,
        by: SegmentId,
        fault: &Fault,
    ) -> Result<bool, Violation> {
        let spoilt = self.get_mut(id)?.spoilt.get_or_insert_with(|| {
            Box::new(Spoilt {
                by: BTreeSet::new(),
                fault: fault.clone(),
            })
        });
        Ok(spoilt.by.insert(by))
    }

    /// Takes note that a load has ended: what spoilt it is of no concern to it any more.
    pub(crate) fn end_spoilt(&mut self, id: SegmentId) -> Result<Option<Spoilt>, Violation> {
        Ok(self.get_mut(id)?.spoilt.take().map(|spoilt| *spoilt))
    }

    /// Whether a segment is damaged, and nobody keeps it.
    pub(crate) fn is_waste(&self, id: SegmentId) -> bool {
        self.segments
            .get(&id)
            .is_some_and(|segment| segment.held == 0 && matches!(segment.state, State::Damaged))
    }

    /// Evicting or Loading to Absent: nothing of it is in memory.
    pub(crate) fn end(&mut self, id: SegmentId) -> Result<Segment, Violation> {
        self.segments
            .remove(&id)
            .map(|segment| *segment)
            .ok_or(Violation::Missing(Record::Segment(id)))
    }

    /// One more, or one less, holder; returns whether it came to be idle.
    pub(crate) fn hold(&mut self, id: SegmentId, more: bool, now: Time) -> Result<bool, Violation> {
        let segment = self.get_mut(id)?;
        let held = if more {
            segment.held.checked_add(1)
        } else {
            segment.held.checked_sub(1)
        };
        segment.held = held.ok_or(Violation::WrongState(id))?;
        self.index(id, now)?;
        Ok(!more && self.is_idle(id))
    }

    /// One more holder of a segment that is about to be taken out of its copies.
    pub(crate) fn keep(&mut self, id: SegmentId) -> Result<(), Violation> {
        self.unindex(id)?;
        self.get_mut(id)?.held += 1;
        Ok(())
    }

    /// Puts a segment into the index of idle ones or takes it out, as its state asks.
    fn index(&mut self, id: SegmentId, now: Time) -> Result<(), Violation> {
        let segment = self.get_mut(id)?;
        let idle = segment.held == 0 && matches!(segment.state, State::Resident(_));
        match (idle, segment.idle_since) {
            (true, None) => {
                segment.idle_since = Some(now);
                let (tier, charge) = (segment.tier, segment.charge);
                let idle = self.idle.entry(tier).or_default();
                idle.index.insert((now, id));
                idle.amount = idle.amount.plus(charge);
                Ok(())
            }
            (false, Some(_)) => self.unindex(id),
            (true, Some(_)) | (false, None) => Ok(()),
        }
    }

    fn unindex(&mut self, id: SegmentId) -> Result<(), Violation> {
        let segment = self.get_mut(id)?;
        if let Some(since) = segment.idle_since.take() {
            let (tier, charge) = (segment.tier, segment.charge);
            let idle = self.idle.entry(tier).or_default();
            idle.index.remove(&(since, id));
            idle.amount = idle.amount.minus(charge);
        }
        Ok(())
    }

    /// Lets an idle segment count as used now.
    pub(crate) fn refresh(&mut self, id: SegmentId, now: Time) -> Result<(), Violation> {
        self.unindex(id)?;
        self.index(id, now)
    }

    /// What is resident on a tier and not held: all that can be evicted there.
    pub(crate) fn idle_amount(&self, tier: Tier) -> Amount {
        self.idle
            .get(&tier)
            .map_or(Amount::ZERO, |idle| idle.amount)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (SegmentId, &Segment)> {
        self.segments.iter().map(|(id, segment)| (*id, &**segment))
    }

    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }

    pub(crate) fn contents_len(&self) -> usize {
        self.contents.len()
    }

    /// How many segments of a tier can be evicted.
    pub(crate) fn idle_len(&self, tier: Tier) -> usize {
        self.idle.get(&tier).map_or(0, |idle| idle.index.len())
    }

    /// The segments of a tier that can be evicted, the longest idle first.
    pub(crate) fn idle_index(&self, tier: Tier) -> impl Iterator<Item = (Time, SegmentId)> {
        let idle = self.idle.get(&tier).into_iter();
        idle.flat_map(|idle| idle.index.iter().copied())
    }
}
