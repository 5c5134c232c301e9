//! What models stand for, what versions consist of, and which segment holds which source.

use crate::event::{Resolution, SegmentFact, Wishes};
use crate::id::{Bytes, ModelId, OpId, SegmentId, SourceId, Time, VersionId};
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
    /// Its segments, if all are resident and it was opened since they are.
    pub(crate) whole: Option<Arc<[SegmentId]>>,
    /// Leases on it.
    pub(crate) leases: u64,
    /// Its want was admitted: what is resident of it is kept until the rest is.
    pub(crate) admitted: bool,
    /// Models that stand for it now.
    pub(crate) models: BTreeSet<ModelId>,
    /// How many of these are pinned.
    pub(crate) pins: usize,
    /// The last model that stood for it wished for eager eviction.
    pub(crate) orphan_eager: bool,
    /// Segments of it that are being freed.
    pub(crate) evicting: BTreeSet<SegmentId>,
    /// When it was last granted or given back.
    pub(crate) last_used: Option<Time>,
}

impl Version {
    /// Whether its segments may not be evicted.
    pub(crate) fn held(&self) -> bool {
        self.leases > 0 || self.pins > 0 || self.admitted
    }
}

/// A file in one state, or a table.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// Where its bytes are or are being loaded to; never a segment that is being freed.
    pub(crate) segment: Option<SegmentId>,
    /// Versions that name it.
    pub(crate) versions: BTreeSet<VersionId>,
}

/// What a version lacks, and what all of it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Need {
    pub(crate) missing_bytes: Bytes,
    pub(crate) missing_segments: u64,
    pub(crate) all_bytes: Bytes,
    pub(crate) all_segments: u64,
}

/// All models, versions and sources.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    pub(crate) models: BTreeMap<ModelId, Model>,
    pub(crate) versions: BTreeMap<VersionId, Version>,
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
            .ok_or(Violation::Missing(Record::Version(id)))
    }

    pub(crate) fn version_mut(&mut self, id: VersionId) -> Result<&mut Version, Violation> {
        self.versions
            .get_mut(&id)
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

    /// Takes in a version, or checks that it is the one that is known.
    pub(crate) fn learn(&mut self, resolution: &Resolution) -> Result<(), Violation> {
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
            if !self
                .sources
                .entry(slot.source)
                .or_default()
                .versions
                .insert(id)
            {
                return Err(Violation::RepeatedSource(id, slot.source));
            }
        }
        let version = Version {
            slots: resolution.segments.as_slice().into(),
            whole: None,
            leases: 0,
            admitted: false,
            models: BTreeSet::new(),
            pins: 0,
            orphan_eager: false,
            evicting: BTreeSet::new(),
            last_used: None,
        };
        self.versions.insert(id, version);
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
        for model in version.models {
            self.model_mut(model)?.current = None;
            self.tidy_model(model);
        }
        Ok(())
    }

    /// The segments of a version, one for each slot; `None` where there is none.
    pub(crate) fn segments_of(
        &self,
        id: VersionId,
    ) -> Result<impl Iterator<Item = (SegmentFact, Option<SegmentId>)>, Violation> {
        let version = self.version(id)?;
        Ok(version.slots.iter().map(|slot| {
            (
                *slot,
                self.sources
                    .get(&slot.source)
                    .and_then(|source| source.segment),
            )
        }))
    }

    /// The different segments that a version has.
    pub(crate) fn distinct_segments(
        &self,
        id: VersionId,
    ) -> Result<BTreeSet<SegmentId>, Violation> {
        Ok(self
            .segments_of(id)?
            .filter_map(|(_, segment)| segment)
            .collect())
    }

    /// What a version lacks, and what all of it takes.
    pub(crate) fn need(&self, id: VersionId) -> Result<Need, Violation> {
        let mut need = Need::default();
        let mut seen = BTreeSet::new();
        for (slot, segment) in self.segments_of(id)? {
            match segment {
                None => {
                    need.missing_bytes = need.missing_bytes.saturating_add(slot.charge);
                    need.missing_segments += 1;
                }
                // Two sources of one content share a segment.
                Some(segment) if !seen.insert(segment) => continue,
                Some(_) => {}
            }
            need.all_bytes = need.all_bytes.saturating_add(slot.charge);
            need.all_segments += 1;
        }
        Ok(need)
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
