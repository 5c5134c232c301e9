//! What models stand for, what versions consist of, their copies, and which segment holds which
//! source where.

use crate::event::{Part, Resolution, SegmentFact, Wishes};
use crate::few::{FewMap, FewSet};
use crate::id::{Bytes, CopyId, DeviceId, ModelId, OpId, SegmentId, SourceId, Time, VersionId};
use crate::ledger::Tier;
use crate::planted::{Bug, planted};
use crate::violation::{Record, Violation};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A name.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) wishes: Wishes,
    pub(crate) current: Option<Current>,
    pub(crate) resolving: Option<Resolving>,
}

/// What a model stands for, as far as known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Current {
    pub(crate) version: VersionId,
    pub(crate) checked_at: Time,
}

/// A resolution in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resolving {
    pub(crate) op: OpId,
    /// The model changed after it was started: what it finds is of no use.
    pub(crate) outdated: bool,
}

/// An immutable list of sources.
#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) slots: Box<[SegmentFact]>,
    /// Its copies, whether anything of them is in memory or not: the host's, and one for each
    /// device if it has an image.
    pub(crate) copies: FewMap<Tier, Copy>,
    /// Models that stand for it now.
    pub(crate) models: FewSet<ModelId>,
    /// How many of these are pinned.
    pub(crate) pins: usize,
    /// The last model that stood for it wished for eager eviction.
    pub(crate) orphan_eager: bool,
    /// The model under which its uses were remembered last.
    pub(crate) subject: Option<ModelId>,
    /// Segments of it that are being freed.
    pub(crate) evicting: BTreeSet<SegmentId>,
}

/// A version on a tier.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    /// Its segments, if all are resident and it was opened since they are.
    pub(crate) whole: Option<Arc<[SegmentId]>>,
    /// Leases on it.
    pub(crate) leases: u64,
    /// Leases on what it was before that was found damaged. They hold nothing of what it is now.
    pub(crate) tainted: u64,
    /// What the leases on it, tainted ones included, keep free on its device.
    pub(crate) reserved: Bytes,
    /// Its want was admitted: what is resident of it is kept until the rest is.
    pub(crate) admitted: bool,
    /// Loads in flight that are filled from it.
    pub(crate) feeding: u64,
    /// How often it is kept for clients of the last daemon, who may come back.
    pub(crate) expected: u64,
    /// When it was last granted or given back.
    pub(crate) last_used: Option<Time>,
    /// Its device is lost: nothing holds it any more.
    pub(crate) lost: bool,
}

impl Version {
    pub(crate) fn has(&self, part: Part) -> bool {
        self.slots.iter().any(|slot| slot.part == part)
    }

    /// Whether the segments of a copy may not be evicted.
    pub(crate) fn held(&self, tier: Tier) -> bool {
        self.copies.get(&tier).is_some_and(|copy| {
            let leased = copy.leases > 0 && !planted(Bug::EvictLeased);
            let feeds = copy.feeding > 0 && !planted(Bug::FeedNotHeld);
            let used = leased || copy.admitted || feeds || copy.expected > 0;
            !copy.lost && (used || self.pins > 0)
        })
    }
}

/// A file in one state, a table, or an image.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) part: Part,
    /// Where its bytes are or are being loaded to, on each tier; never a segment that is being
    /// freed.
    pub(crate) segments: FewMap<Tier, SegmentId>,
    /// Versions that name it.
    pub(crate) versions: FewSet<VersionId>,
}

/// One place in a copy: what belongs there, where, and what is there.
pub(crate) type Place = (SegmentFact, Tier, Option<SegmentId>);

/// All models, versions and sources.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    pub(crate) models: BTreeMap<ModelId, Model>,
    /// Boxed, like what else is large: a tree that grows at its end is half empty.
    pub(crate) versions: BTreeMap<VersionId, Box<Version>>,
    pub(crate) sources: BTreeMap<SourceId, Source>,
}

impl Catalogue {
    pub(crate) fn model_mut(&mut self, id: ModelId) -> Result<&mut Model, Violation> {
        self.models
            .get_mut(&id)
            .ok_or(Violation::Missing(Record::Model(id)))
    }

    pub(crate) fn version(&self, id: VersionId) -> Result<&Version, Violation> {
        self.versions
            .get(&id)
            .map(|version| &**version)
            .ok_or(Violation::Missing(Record::Version(id)))
    }

    pub(crate) fn version_mut(&mut self, id: VersionId) -> Result<&mut Version, Violation> {
        self.versions
            .get_mut(&id)
            .map(|version| &mut **version)
            .ok_or(Violation::Missing(Record::Version(id)))
    }

    pub(crate) fn source(&self, id: SourceId) -> Result<&Source, Violation> {
        self.sources
            .get(&id)
            .ok_or(Violation::Missing(Record::Source(id)))
    }

    pub(crate) fn source_mut(&mut self, id: SourceId) -> Result<&mut Source, Violation> {
        self.sources
            .get_mut(&id)
            .ok_or(Violation::Missing(Record::Source(id)))
    }

    pub(crate) fn copy(&self, id: CopyId) -> Result<&Copy, Violation> {
        let copy = self.version(id.version)?.copies.get(&id.tier);
        copy.ok_or(Violation::Missing(Record::Copy(id)))
    }

    pub(crate) fn copy_mut(&mut self, id: CopyId) -> Result<&mut Copy, Violation> {
        let copy = self.version_mut(id.version)?.copies.get_mut(&id.tier);
        copy.ok_or(Violation::Missing(Record::Copy(id)))
    }

    pub(crate) fn held(&self, id: CopyId) -> Result<bool, Violation> {
        Ok(self.version(id.version)?.held(id.tier))
    }

    /// Notes that a source is not in this tier's memory any more, or in another segment.
    pub(crate) fn set_segment(
        &mut self,
        source: SourceId,
        tier: Tier,
        segment: Option<SegmentId>,
    ) -> Result<(), Violation> {
        let segments = &mut self.source_mut(source)?.segments;
        match segment {
            Some(segment) => segments.insert(tier, segment),
            None => segments.remove(&tier),
        }
        Ok(())
    }

    /// Drops a model about which nothing is known or wished.
    pub(crate) fn tidy_model(&mut self, id: ModelId) {
        let idle = self.models.get(&id).is_some_and(|model| {
            model.current.is_none()
                && model.resolving.is_none()
                && model.wishes == Wishes::default()
        });
        if idle {
            self.models.remove(&id);
        }
    }

    /// Takes in a version, or checks that it is the one that is known. `devices`: those that it may
    /// have copies on, and whether they are lost.
    pub(crate) fn learn(
        &mut self,
        resolution: &Resolution,
        devices: impl Iterator<Item = (DeviceId, bool)>,
    ) -> Result<(), Violation> {
        let id = resolution.version;
        if let Some(known) = self.versions.get(&id) {
            let same = *known.slots == *resolution.segments;
            return if same {
                Ok(())
            } else {
                Err(Violation::VersionChanged(id))
            };
        }
        for slot in &resolution.segments {
            let source = self.sources.entry(slot.source).or_insert_with(|| Source {
                part: slot.part,
                segments: FewMap::default(),
                versions: FewSet::default(),
            });
            if source.part != slot.part {
                return Err(Violation::PartChanged(id, slot.source));
            }
            if !source.versions.insert(id) {
                return Err(Violation::RepeatedSource(id, slot.source));
            }
        }
        let mut version = Version {
            slots: resolution.segments.as_slice().into(),
            copies: FewMap::Few(Some((Tier::Host, Copy::default()))),
            models: FewSet::default(),
            pins: 0,
            orphan_eager: false,
            subject: None,
            evicting: BTreeSet::new(),
        };
        if version.has(Part::Image) {
            for (device, lost) in devices {
                let copy = Copy {
                    lost,
                    ..Copy::default()
                };
                version.copies.insert(Tier::Device(device), copy);
            }
        }
        self.versions.insert(id, Box::new(version));
        Ok(())
    }

    /// Drops a version and what only it named.
    pub(crate) fn forget(&mut self, id: VersionId) -> Result<(), Violation> {
        let version = self
            .versions
            .remove(&id)
            .ok_or(Violation::Missing(Record::Version(id)))?;
        for slot in &version.slots {
            let source = self.source_mut(slot.source)?;
            source.versions.remove(&id);
            if source.versions.is_empty() {
                self.sources.remove(&slot.source);
            }
        }
        for &model in version.models.iter() {
            self.model_mut(model)?.current = None;
            self.tidy_model(model);
        }
        Ok(())
    }

    /// The places of a copy, in the order of the resolution.
    pub(crate) fn places(&self, copy: CopyId) -> Result<impl Iterator<Item = Place>, Violation> {
        let version = self.version(copy.version)?;
        Ok(version.slots.iter().filter_map(move |slot| {
            let tier = slot.part.tier(copy.tier)?;
            Some((*slot, tier, self.segment(slot.source, tier)))
        }))
    }

    /// The segment that a source is in on a tier.
    pub(crate) fn segment(&self, source: SourceId, tier: Tier) -> Option<SegmentId> {
        self.sources.get(&source)?.segments.get(&tier).copied()
    }

    /// The different segments that a copy has.
    pub(crate) fn segments_of(&self, copy: CopyId) -> Result<BTreeSet<SegmentId>, Violation> {
        let places = self.places(copy)?;
        Ok(places.filter_map(|(_, _, segment)| segment).collect())
    }

    /// The different segments that a copy does not share with other copies of its version.
    pub(crate) fn own_segments(&self, copy: CopyId) -> Result<BTreeSet<SegmentId>, Violation> {
        let places = self.places(copy)?;
        let own = places.filter(|(slot, _, _)| slot.part != Part::Table);
        Ok(own.filter_map(|(_, _, segment)| segment).collect())
    }

    /// The different segments that all copies of a version have.
    pub(crate) fn all_segments(&self, id: VersionId) -> Result<BTreeSet<SegmentId>, Violation> {
        let slots = &self.version(id)?.slots;
        let sources = slots
            .iter()
            .filter_map(|slot| self.sources.get(&slot.source));
        Ok(sources
            .flat_map(|source| source.segments.values().copied())
            .collect())
    }

    /// Whether any copy of a version has a segment.
    pub(crate) fn has_segments(&self, version: &Version) -> bool {
        version.slots.iter().any(|slot| {
            let source = self.sources.get(&slot.source);
            source.is_some_and(|source| !source.segments.is_empty())
        })
    }

    /// Whether there is a segment in every place of a copy, filled or on its way.
    pub(crate) fn lacks_nothing(&self, copy: CopyId) -> Result<bool, Violation> {
        Ok(self.places(copy)?.all(|(_, _, segment)| segment.is_some()))
    }

    /// The versions that use a segment which holds `sources`; one that names several of them comes
    /// as often.
    pub(crate) fn users(&self, sources: &[SourceId]) -> Result<Vec<VersionId>, Violation> {
        let mut users = Vec::new();
        for source in sources {
            users.extend(self.source(*source)?.versions.iter().copied());
        }
        Ok(users)
    }

    /// The copies that use a segment on `tier` which holds `sources`, likewise.
    pub(crate) fn copies_with(
        &self,
        tier: Tier,
        sources: &[SourceId],
    ) -> Result<Vec<CopyId>, Violation> {
        let mut users = Vec::new();
        for source in sources {
            let source = self.source(*source)?;
            for version in source.versions.iter() {
                let tiers = self.version(*version)?.copies.keys();
                let tiers = tiers.filter(|of| source.part.tier(**of) == Some(tier));
                users.extend(tiers.map(|tier| CopyId {
                    version: *version,
                    tier: *tier,
                }));
            }
        }
        Ok(users)
    }

    /// Whether a version is to be evicted as soon as nobody holds it.
    pub(crate) fn eager(&self, id: VersionId) -> Result<bool, Violation> {
        let version = self.version(id)?;
        if version.models.is_empty() {
            return Ok(version.orphan_eager);
        }
        Ok(version.models.iter().all(|model| {
            self.models
                .get(model)
                .is_some_and(|model| model.wishes.eager)
        }))
    }
}
