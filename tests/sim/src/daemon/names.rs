//! What stands behind the decider's numbers, as in `mrm-daemon/src/shell/names.rs`.

use crate::disk::{self, Identity};
use mrm_core::id::{ContentId, ModelId, SegmentId, SourceId, VersionId};
use std::collections::{BTreeMap, BTreeSet};

/// Where a model's files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelOrigin {
    /// The operator's catalogue.
    Registered(usize),
    /// Files that a client passed: present until they are resolved.
    Passed(Option<Vec<u64>>),
}

/// What a source id stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum SourceKey {
    File(Identity),
    Table(u64),
    /// The parts that it is made of, and the user for whom alone it is.
    Image(Vec<SourceId>, Option<u32>),
}

/// What a look at a model found: each file with what it contains.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) files: Vec<(Identity, u64)>,
}

/// How to get the bytes of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Supply {
    Table(u64),
    File(Identity),
}

/// One segment's worth of a version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) source: SourceId,
    pub(crate) bytes: u64,
    /// Dropped when nobody waits for it any more.
    pub(crate) supply: Option<Supply>,
}

/// What a version id stands for.
#[derive(Debug)]
pub(crate) struct VersionRecord {
    /// The table first, then each file.
    pub(crate) parts: Vec<Part>,
    /// What devices get of it.
    pub(crate) image: Option<Image>,
    /// What it was found to be, and the last name of the catalogue under which.
    pub(crate) found: Found,
    pub(crate) label: Option<usize>,
    /// The user for whom alone its image is.
    pub(crate) owner: Option<u32>,
    key: Vec<SourceId>,
}

/// What devices get of a version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Image {
    pub(crate) source: SourceId,
    pub(crate) bytes: u64,
    pub(crate) pieces: u64,
}

/// What is in a segment, and the user for whom alone it is.
pub(crate) type ContentKey = (u64, Option<u32>);

/// The tables.
#[derive(Debug, Default)]
pub(crate) struct Names {
    made: u64,
    by_model: BTreeMap<(usize, Option<u32>), ModelId>,
    models: BTreeMap<ModelId, ModelOrigin>,
    owners: BTreeMap<ModelId, u32>,
    sources: BTreeMap<SourceKey, (SourceId, usize)>,
    source_keys: BTreeMap<SourceId, SourceKey>,
    version_ids: BTreeMap<Vec<SourceId>, VersionId>,
    versions: BTreeMap<VersionId, VersionRecord>,
    supplied: BTreeSet<VersionId>,
    content_ids: BTreeMap<ContentKey, (ContentId, usize)>,
    contents: BTreeMap<SegmentId, ContentKey>,
    unknown: BTreeSet<SegmentId>,
}

impl Names {
    const fn next(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// The id of a name, known or new, for one user alone if there is an `owner`.
    pub(crate) fn registered(&mut self, name: usize, owner: Option<u32>) -> ModelId {
        if let Some(model) = self.by_model.get(&(name, owner)) {
            return *model;
        }
        let model = ModelId(self.next());
        self.by_model.insert((name, owner), model);
        self.owners.extend(owner.map(|owner| (model, owner)));
        self.models.insert(model, ModelOrigin::Registered(name));
        model
    }

    /// A new id for files that a client passed, likewise.
    pub(crate) fn passed(&mut self, files: Vec<u64>, owner: Option<u32>) -> ModelId {
        let model = ModelId(self.next());
        self.owners.extend(owner.map(|owner| (model, owner)));
        self.models.insert(model, ModelOrigin::Passed(Some(files)));
        model
    }

    /// The id of a name, if it has one.
    pub(crate) fn find(&self, name: usize) -> Option<ModelId> {
        self.by_model.get(&(name, None)).copied()
    }

    /// The user for whom alone a model is.
    pub(crate) fn owner(&self, model: ModelId) -> Option<u32> {
        self.owners.get(&model).copied()
    }

    pub(crate) fn model_mut(&mut self, model: ModelId) -> Option<&mut ModelOrigin> {
        self.models.get_mut(&model)
    }

    pub(crate) fn forget_model(&mut self, model: ModelId) {
        let owner = self.owners.remove(&model);
        if let Some(ModelOrigin::Registered(name)) = self.models.remove(&model) {
            self.by_model.remove(&(name, owner));
        }
    }

    /// Whether a model has a name, under which it may come back.
    pub(crate) fn is_registered(&self, model: ModelId) -> bool {
        matches!(self.models.get(&model), Some(ModelOrigin::Registered(_)))
    }

    /// Every registered model that has an id.
    pub(crate) fn registered_models(&self) -> Vec<(usize, ModelId)> {
        let all = self.by_model.iter();
        all.map(|((name, _), model)| (*name, *model)).collect()
    }

    /// Goes on counting where no run before has come to.
    pub(crate) const fn begin_at(&mut self, made: u64) {
        self.made = made;
    }

    /// Takes a version over by its number. Its files are not open.
    pub(crate) fn adopt(
        &mut self,
        id: VersionId,
        (found, owner): (&Found, Option<u32>),
        has_devices: bool,
    ) {
        let made = self.version_as(Some(id), (found, owner), has_devices);
        self.drop_supplies_unless(|version| version != made);
    }

    /// The version that was found, for one user alone if there is an `owner`: known, or new.
    pub(crate) fn version(
        &mut self,
        (found, owner): (&Found, Option<u32>),
        has_devices: bool,
    ) -> VersionId {
        self.version_as(None, (found, owner), has_devices)
    }

    fn version_as(
        &mut self,
        id: Option<VersionId>,
        (found, owner): (&Found, Option<u32>),
        has_devices: bool,
    ) -> VersionId {
        let contents: Vec<u64> = found.files.iter().map(|(_, content)| *content).collect();
        let table = disk::table_of(&contents);
        let mut parts = vec![Part {
            source: self.source(SourceKey::Table(table)),
            bytes: crate::settings::PAGE_BYTES,
            supply: Some(Supply::Table(table)),
        }];
        for (identity, content) in &found.files {
            parts.push(Part {
                source: self.source(SourceKey::File(*identity)),
                bytes: disk::bytes_of(*content),
                supply: Some(Supply::File(*identity)),
            });
        }
        let mut key: Vec<SourceId> = parts.iter().map(|part| part.source).collect();
        let image = (has_devices && disk::has_image(&contents)).then(|| Image {
            source: self.source(SourceKey::Image(key.clone(), owner)),
            bytes: contents
                .iter()
                .map(|content| disk::bytes_of(*content))
                .sum(),
            pieces: disk::pieces_of(disk::image_of(&contents)),
        });
        key.extend(image.map(|image| image.source));
        if let Some(version) = self.version_ids.get(&key).copied() {
            self.supplied.insert(version);
            if let Some(record) = self.versions.get_mut(&version) {
                record.parts = parts;
            }
            return version;
        }
        let version = id.unwrap_or_else(|| VersionId(self.next()));
        for source in &key {
            self.retain(*source, true);
        }
        self.version_ids.insert(key.clone(), version);
        self.supplied.insert(version);
        self.versions.insert(
            version,
            VersionRecord {
                parts,
                image,
                found: found.clone(),
                label: None,
                owner,
                key,
            },
        );
        version
    }

    fn source(&mut self, key: SourceKey) -> SourceId {
        if let Some((source, _)) = self.sources.get(&key) {
            return *source;
        }
        let source = SourceId(self.next());
        self.sources.insert(key.clone(), (source, 0));
        self.source_keys.insert(source, key);
        source
    }

    /// One more, or one less, version that names a source.
    fn retain(&mut self, source: SourceId, more: bool) {
        let Some(key) = self.source_keys.get(&source) else {
            return;
        };
        let Some((_, count)) = self.sources.get_mut(key) else {
            return;
        };
        *count = if more {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
        if *count == 0 {
            self.sources.remove(key);
            self.source_keys.remove(&source);
        }
    }

    /// Takes note of a name of the catalogue that stands for a version.
    pub(crate) fn call(&mut self, version: VersionId, model: ModelId) {
        if let Some(ModelOrigin::Registered(name)) = self.models.get(&model)
            && let Some(record) = self.versions.get_mut(&version)
        {
            record.label = Some(*name);
        }
    }

    pub(crate) fn version_of(&self, version: VersionId) -> Option<&VersionRecord> {
        self.versions.get(&version)
    }

    /// Opened files that are held for loads to come.
    pub(crate) fn files_waiting(&self) -> usize {
        let supplied = self.supplied.iter().filter_map(|v| self.versions.get(v));
        supplied.map(|record| record.parts.len() - 1).sum()
    }

    /// Lets go of the opened files of all versions that nobody waits for.
    pub(crate) fn drop_supplies_unless(&mut self, awaited: impl Fn(VersionId) -> bool) {
        let versions = &mut self.versions;
        self.supplied.retain(|version| {
            let keep = awaited(*version);
            if let (false, Some(record)) = (keep, versions.get_mut(version)) {
                record.parts.iter_mut().for_each(|part| part.supply = None);
            }
            keep
        });
    }

    pub(crate) fn forget_version(&mut self, version: VersionId) {
        self.supplied.remove(&version);
        if let Some(record) = self.versions.remove(&version) {
            self.version_ids.remove(&record.key);
            for source in record.key {
                self.retain(source, false);
            }
        }
    }

    /// The id of a content, held until [`Names::forget_segment`].
    pub(crate) fn content(&mut self, segment: SegmentId, content: ContentKey) -> ContentId {
        self.unknown.remove(&segment);
        self.contents.insert(segment, content);
        let fresh = ContentId(self.next());
        let (id, count) = self.content_ids.entry(content).or_insert((fresh, 0));
        *count += 1;
        *id
    }

    /// It is not known what a segment holds, until [`Names::content`].
    pub(crate) fn unknown(&mut self, segment: SegmentId) {
        self.unknown.insert(segment);
    }

    /// The id of a content that is not known.
    pub(crate) fn unknown_content(&mut self) -> ContentId {
        ContentId(self.next())
    }

    /// Whether it is not known what a segment holds.
    pub(crate) fn is_unknown(&self, segment: SegmentId) -> bool {
        self.unknown.contains(&segment)
    }

    /// The id of a content that is taken over.
    pub(crate) fn content_id(&mut self, content: ContentKey) -> ContentId {
        let fresh = ContentId(self.next());
        self.content_ids.entry(content).or_insert((fresh, 0)).0
    }

    /// Forgets contents that no segment came to have.
    pub(crate) fn drop_unused_contents(&mut self) {
        self.content_ids.retain(|_, (_, count)| *count > 0);
    }

    pub(crate) fn forget_segment(&mut self, segment: SegmentId) {
        self.unknown.remove(&segment);
        let Some(content) = self.contents.remove(&segment) else {
            return;
        };
        if let Some((_, count)) = self.content_ids.get_mut(&content) {
            *count -= 1;
            if *count == 0 {
                self.content_ids.remove(&content);
            }
        }
    }

    /// How much is remembered, but for names of the catalogue: the shell keeps the id of one that
    /// was opened until the next reload.
    pub(crate) fn len(&self) -> usize {
        let passed = |model: &&ModelOrigin| matches!(model, ModelOrigin::Passed(_));
        self.models.values().filter(passed).count()
            + self.sources.len()
            + self.versions.len()
            + self.contents.len()
            + self.unknown.len()
            + self.content_ids.len()
    }
}
