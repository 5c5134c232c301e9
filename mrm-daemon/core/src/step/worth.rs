//! What the policies are told: uses, what loads took, and what could be evicted.

use crate::Core;
use crate::catalogue::{Model, Version};
use crate::event::Part;
use crate::id::{Bytes, CopyId, ModelId, SegmentId, Time, VersionId};
use crate::ledger::Tier;
use crate::policy::{Candidate, Facts, Route};
use crate::residency::Segment;
use crate::violation::{Record, Violation};
use crate::walk::Walk;

/// Something idle, once for each version that uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Idle {
    pub(super) version: VersionId,
    pub(super) since: Time,
    pub(super) segment: SegmentId,
    pub(super) bytes: Bytes,
    /// How many versions use it.
    pub(super) users: usize,
}

impl Core {
    /// The model under which the uses of a version are remembered: the first that it was opened
    /// as, unless that stands for another now; then the first that stands for it. A model that
    /// nobody knows any more still counts: passed files have a new one for each open.
    pub(crate) fn subject(&self, id: VersionId) -> Option<ModelId> {
        let version = self.catalogue.versions.get(&id)?;
        subject(id, version, |model| self.catalogue.models.get(&model))
    }

    /// Takes note of a grant.
    pub(super) fn note_use(
        &mut self,
        copy: CopyId,
        model: ModelId,
        now: Time,
    ) -> Result<(), Violation> {
        let subject = self.subject(copy.version).unwrap_or(model);
        self.catalogue.version_mut(copy.version)?.subject = Some(subject);
        self.policies.history.used_on(subject, copy.tier, now);
        if let Some(foretold) = self.ahead.used(copy.version) {
            self.policies.history.foretold(foretold);
        }
        self.tell_policy(copy, now)
    }

    /// Tells the policy of a copy's tier that the copy was used.
    pub(super) fn tell_policy(&mut self, copy: CopyId, now: Time) -> Result<(), Violation> {
        if let Some(used) = self.as_used(copy, now)? {
            let when = (now, self.ledger.account(copy.tier).limit.bytes);
            self.policies.used(copy.tier, when, &used)?;
        }
        Ok(())
    }

    /// Tells the policy of a copy's tier that the copy was loaded before anybody asked for it.
    pub(super) fn tell_arrived(&mut self, copy: CopyId, now: Time) -> Result<(), Violation> {
        if let Some(arrived) = self.as_used(copy, now)? {
            let when = (now, self.ledger.account(copy.tier).limit.bytes);
            self.policies.arrived(copy.tier, when, &arrived)?;
        }
        Ok(())
    }

    /// A copy as the policy of its tier is told of it, if that wants to be.
    fn as_used(&self, copy: CopyId, now: Time) -> Result<Option<Candidate>, Violation> {
        if !self.policies.policy(copy.tier)?.watches() {
            return Ok(None);
        }
        let mut bytes = Bytes::ZERO;
        for (slot, tier, _) in self.catalogue.places(copy)? {
            if tier == copy.tier {
                bytes = bytes.saturating_add(slot.charge);
            }
        }
        Ok(Some(Candidate {
            version: copy.version,
            subject: self.subject(copy.version),
            first: SegmentId(0),
            bytes,
            last_used: now,
            reload_us: self.reload_us(copy, bytes)?,
        }))
    }

    /// Takes note of the end of a load.
    pub(super) fn note_load(&mut self, segment: SegmentId, succeeded: bool, now: Time) {
        let ended = self.policies.reloads.ended(segment, succeeded, now);
        if let Some((version, route, bytes, took_us)) = ended
            && let Some(subject) = self.subject(version)
        {
            self.policies
                .history
                .loaded(subject, route, (bytes, took_us), now);
            self.ahead.took(version, took_us);
        }
    }

    /// How a copy would come back if it went.
    fn route_back(&self, copy: CopyId) -> Result<Route, Violation> {
        let Tier::Device(device) = copy.tier else {
            return Ok(Route::ToHost);
        };
        for peer in self.devices.peers(device) {
            if self.is_there(CopyId::device(copy.version, peer), Part::Image)? {
                return Ok(Route::Across);
            }
        }
        Ok(
            match self.is_there(CopyId::host(copy.version), Part::File)? {
                true => Route::Up,
                false => Route::ToDevice,
            },
        )
    }

    /// Whether a copy has such parts, and all of them are resident.
    pub(super) fn is_there(&self, copy: CopyId, part: Part) -> Result<bool, Violation> {
        if !self.catalogue.version(copy.version)?.has(part) {
            return Ok(false);
        }
        let resident = |segment: Option<SegmentId>| {
            segment.is_some_and(|segment| self.residency.is_resident(segment))
        };
        let mut places = self.catalogue.places(copy)?;
        Ok(places.all(|(slot, _, segment)| slot.part != part || resident(segment)))
    }

    /// What it would take to bring so much of a copy back if it went.
    fn reload_us(&self, copy: CopyId, bytes: Bytes) -> Result<u64, Violation> {
        let of = (self.subject(copy.version), bytes);
        let way = (copy.tier, self.route_back(copy)?);
        let reloads = &self.policies.reloads;
        Ok(reloads.estimate_us(&self.policies.history, of, way))
    }

    /// What is idle on a tier and not kept, version by version.
    pub(super) fn idle(
        &self,
        tier: Tier,
        kept: &std::collections::BTreeSet<SegmentId>,
    ) -> Result<Vec<Idle>, Violation> {
        let mut idle = Vec::with_capacity(self.residency.idle_len(tier));
        let mut sources = Walk::of(&self.catalogue.sources);
        let mut add = |segment: SegmentId, there: &Segment, since: Time| {
            if kept.contains(&segment) {
                return Ok(());
            }
            let from = idle.len();
            for source in &there.sources {
                let known = sources.get(*source);
                let known = known.ok_or(Violation::Missing(Record::Source(*source)))?;
                idle.extend(known.versions.iter().map(|version| Idle {
                    version: *version,
                    since,
                    segment,
                    bytes: there.charge.bytes,
                    users: 1,
                }));
            }
            // A version that names two sources of one content has it once.
            if idle.len() > from + 1 {
                let mut new = idle.split_off(from);
                new.sort_unstable();
                new.dedup();
                let users = new.len();
                idle.extend(new.into_iter().map(|one| Idle { users, ..one }));
            }
            Ok(())
        };
        // Where most can go, all are gone through: that is faster than to look each of them up.
        if self.residency.idle_len(tier) * 4 >= self.residency.len() {
            for (segment, there) in self.residency.all() {
                match there.idle_since {
                    Some(since) if there.tier == tier => add(segment, there, since)?,
                    Some(_) | None => {}
                }
            }
        } else {
            for (since, segment) in self.residency.idle_index(tier) {
                add(segment, self.residency.get(segment)?, since)?;
            }
        }
        idle.sort_unstable();
        Ok(idle)
    }

    /// One candidate for each version of what is idle, which comes version by version.
    pub(super) fn candidates(
        &self,
        tier: Tier,
        idle: &[Idle],
    ) -> Result<Vec<Candidate>, Violation> {
        let mut candidates = Vec::with_capacity(idle.len());
        let mut versions = Walk::of(&self.catalogue.versions);
        let mut models = Walk::of(&self.catalogue.models);
        for parts in idle.chunk_by(|a, b| a.version == b.version) {
            let (Some(one), Some(last_used), Some(first)) = (
                parts.first(),
                parts.iter().map(|part| part.since).max(),
                parts.iter().map(|part| part.segment).min(),
            ) else {
                continue;
            };
            let (version, bytes) = (one.version, parts.iter().map(|part| part.bytes).sum());
            let known = versions.get(version);
            let subject = known.and_then(|known| subject(version, known, |id| models.get(id)));
            let way = (tier, self.route_back(CopyId { version, tier })?);
            let reloads = &self.policies.reloads;
            candidates.push(Candidate {
                version,
                subject,
                first,
                bytes,
                last_used,
                reload_us: reloads.estimate_us(&self.policies.history, (subject, bytes), way),
            });
        }
        Ok(candidates)
    }

    /// What policies look at besides.
    pub(crate) fn facts(&self, tier: Tier, now: Time) -> Facts<'_> {
        Facts {
            now,
            capacity: self.ledger.account(tier).limit.bytes,
            history: &self.policies.history,
        }
    }

    /// What is resident of a version on a tier, as a candidate, whether it may go or not.
    pub(crate) fn as_candidate(
        &self,
        version: VersionId,
        tier: Tier,
    ) -> Result<Option<Candidate>, Violation> {
        let mut parts = Vec::new();
        for segment in self.catalogue.all_segments(version)? {
            let there = self.residency.get(segment)?;
            if there.tier == tier && self.residency.is_resident(segment) {
                let since = there.idle_since.unwrap_or(Time(u64::MAX));
                let bytes = there.charge.bytes;
                parts.push(Idle {
                    version,
                    since,
                    segment,
                    bytes,
                    users: 1,
                });
            }
        }
        Ok(self.candidates(tier, &parts)?.pop())
    }

    /// All candidates of a tier.
    pub(crate) fn all_candidates(&self, tier: Tier) -> Result<Vec<Candidate>, Violation> {
        let idle = self.idle(tier, &std::collections::BTreeSet::new())?;
        self.candidates(tier, &idle)
    }
}

/// As [`Core::subject`], of a version that was looked up.
fn subject<'a>(
    id: VersionId,
    version: &Version,
    mut model: impl FnMut(ModelId) -> Option<&'a Model>,
) -> Option<ModelId> {
    let still = |of: &ModelId| {
        let current = model(*of).and_then(|known| known.current);
        current.is_none_or(|current| current.version == id)
    };
    let first = version.subject.filter(still);
    first.or_else(|| version.models.first().copied())
}
