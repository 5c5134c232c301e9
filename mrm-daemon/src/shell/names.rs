//! What stands behind the decider's numbers: names, file states, digests, versions.
//!
//! The decider sees ids only. Each table here gives one id to one thing, and forgets it when the
//! decider has forgotten the id, so that a year of churn leaves nothing behind.

mod found;
mod kept;
pub(super) mod private;

pub(crate) use found::Found;
pub(super) use found::{FoundFile, FoundImage, Seen, States};

use super::id_map::IdMap;
use crate::format::HeaderCheck;
use crate::integrity::manifest::Expected;
use crate::source::{Identity, PassedFd, Source};
use found::granularity_key;
use mrm_core::id::{ContentId, ModelId, SegmentId, SourceId, VersionId};
use mrm_proto::layout::{Granularity, Layout, LayoutError};
use mrm_proto::name::{FileName, ModelName};
use mrm_proto::table::ModelKind;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

/// What a model id stands for.
pub(super) struct ModelRecord {
    pub(super) name: ModelName,
    pub(super) text: Arc<str>,
    pub(super) origin: ModelOrigin,
    /// The user for whom alone it is.
    pub(super) owner: Option<u32>,
    /// The user who passed its files.
    pub(super) passed_by: Option<u32>,
    /// Why devices get nothing of what it was resolved to last. Kept here, because the decider may
    /// forget that version before the refusal is put into words.
    pub(super) no_image: Option<LayoutError>,
    /// What its files were the last time, if they were found by its name.
    pub(super) seen: Option<Seen>,
}

/// Where a model's files come from.
pub(super) enum ModelOrigin {
    /// The operator's catalogue, by name.
    Registered,
    /// Descriptors that a client passed: present until they are resolved.
    Passed(Option<Vec<(FileName, PassedFd)>>),
}

/// What a source id stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum SourceKey {
    /// A state of a file.
    File(Identity),
    /// A tensor table, by the digest of its bytes.
    Table([u8; 32]),
    /// What devices get of a version, by the digest of what it is made of and how.
    Image([u8; 32]),
}

/// What a version id stands for.
pub(super) struct VersionRecord {
    pub(super) label: Arc<str>,
    pub(super) kind: ModelKind,
    pub(super) tensors: u64,
    /// The table first, then each file.
    pub(super) parts: Box<[Part]>,
    /// Whether its files were passed by a client: they are read in a lane of their own.
    pub(super) foreign: bool,
    pub(super) path: Option<String>,
    /// What devices get of it, or why nothing; absent if there is no device.
    pub(super) image: Option<Result<Image, LayoutError>>,
    /// The user for whom alone it is.
    pub(super) owner: Option<u32>,
    /// The users who passed its files.
    passed_by: BTreeSet<u32>,
    key: Arc<[SourceId]>,
}

/// What devices get of a version.
#[derive(Debug, Clone, Copy)]
pub(super) struct Image {
    pub(super) source: SourceId,
    pub(super) granularity: Granularity,
    /// Of all allocations.
    pub(super) bytes: u64,
    pub(super) charge_bytes: u64,
    /// How many allocations.
    pub(super) pieces: u64,
}

/// One segment's worth of a version.
pub(super) struct Part {
    pub(super) source: SourceId,
    pub(super) name: Arc<str>,
    pub(super) bytes: u64,
    /// How to get the bytes; dropped when nobody waits for them any more.
    pub(super) supply: Option<Box<Supply>>,
}

/// How to get the bytes of a part.
#[derive(Clone)]
pub(super) enum Supply {
    /// From memory: a tensor table.
    Table(Arc<[u8]>),
    /// From an opened file.
    File {
        source: Arc<dyn Source>,
        identity: Identity,
        check: Option<HeaderCheck>,
        expected: Option<Arc<Expected>>,
    },
}

/// The tables.
pub(super) struct Names {
    next: u64,
    /// What people call each table.
    table_name: Arc<str>,
    by_name: BTreeMap<ModelName, ModelId>,
    by_owner: BTreeMap<(ModelName, u32), ModelId>,
    // What is large is boxed: of a table's places up to half are empty.
    models: IdMap<ModelId, Box<ModelRecord>>,
    sources: HashMap<Arc<SourceKey>, (SourceId, usize)>,
    source_keys: IdMap<SourceId, Arc<SourceKey>>,
    version_ids: HashMap<Arc<[SourceId]>, VersionId>,
    versions: IdMap<VersionId, Box<VersionRecord>>,
    by_label: BTreeSet<(Arc<str>, VersionId)>,
    /// Versions with opened files, and how many these are in all.
    supplied: BTreeSet<VersionId>,
    /// Versions that other users may have been lent than was the case when they were made.
    news: BTreeSet<VersionId>,
    content_ids: HashMap<Arc<ContentKey>, (ContentId, usize)>,
    contents: IdMap<SegmentId, Arc<ContentKey>>,
    files_waiting: usize,
    /// Supplies that nobody needs: closing a file may take time.
    dropped: Vec<Dropped>,
}

/// A digest, and the user for whom alone what has it is: on devices, what is the same for two users is
/// there twice if one of them shares nothing.
pub(super) type ContentKey = ([u8; 32], Option<u32>);

/// What was kept to load a version from, and whether clients passed it.
pub(super) struct Dropped {
    pub(super) foreign: bool,
    pub(super) supplies: Vec<Supply>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            next: 0,
            table_name: Arc::from("tensor table"),
            by_name: BTreeMap::new(),
            by_owner: BTreeMap::new(),
            models: IdMap::default(),
            sources: HashMap::new(),
            source_keys: IdMap::default(),
            version_ids: HashMap::new(),
            versions: IdMap::default(),
            by_label: BTreeSet::new(),
            supplied: BTreeSet::new(),
            news: BTreeSet::new(),
            content_ids: HashMap::new(),
            contents: IdMap::default(),
            files_waiting: 0,
            dropped: Vec::new(),
        }
    }
}

impl Names {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The id of a registered name, known or new.
    pub(super) fn registered(&mut self, name: &ModelName) -> ModelId {
        if let Some(&model) = self.by_name.get(name) {
            return model;
        }
        let model = ModelId(self.next());
        self.by_name.insert(name.clone(), model);
        let text = name.to_shared();
        let record = ModelRecord {
            name: name.clone(),
            text,
            origin: ModelOrigin::Registered,
            owner: None,
            passed_by: None,
            no_image: None,
            seen: None,
        };
        self.models.insert(model, Box::new(record));
        model
    }

    /// The id of a registered name, if it has one.
    pub(super) fn find(&self, name: &ModelName) -> Option<ModelId> {
        self.by_name.get(name).copied()
    }

    pub(super) fn model(&self, model: ModelId) -> Option<&ModelRecord> {
        self.models.get(&model).map(|record| &**record)
    }

    pub(super) fn model_mut(&mut self, model: ModelId) -> Option<&mut ModelRecord> {
        self.models.get_mut(&model).map(|record| &mut **record)
    }

    /// Whether a model is found by its name, and not by descriptors that are gone.
    pub(super) fn has_name(&self, model: ModelId) -> bool {
        let record = self.models.get(&model);
        record.is_some_and(|record| matches!(record.origin, ModelOrigin::Registered))
    }

    pub(super) fn forget_model(&mut self, model: ModelId) {
        let Some(record) = self.models.remove(&model) else {
            return;
        };
        if self.by_name.get(&record.name) == Some(&model) {
            self.by_name.remove(&record.name);
        }
        if let Some(uid) = record.owner {
            let key = (record.name, uid);
            if self.by_owner.get(&key) == Some(&model) {
                self.by_owner.remove(&key);
            }
        }
    }

    /// The registered models that have an id, from the name `first` on, in order.
    pub(super) fn registered_models(
        &self,
        first: Bound<&str>,
    ) -> impl Iterator<Item = (&ModelName, ModelId)> {
        let range = self.by_name.range::<str, _>((first, Bound::Unbounded));
        range.map(|(name, &model)| (name, model))
    }

    /// The version that `found` is: known, or new; for the user `owner` alone, if there is one. `charge` says what a layout is charged on
    /// devices: bytes, and allocations.
    pub(super) fn version(
        &mut self,
        (label, owner): (&Arc<str>, Option<u32>),
        foreign: bool,
        found: Found,
        charge: impl Fn(&Layout) -> (u64, u64),
    ) -> VersionId {
        let Found {
            kind,
            table,
            tensors,
            files,
            path,
            image,
        } = found;
        let digest = *blake3::hash(&table).as_bytes();
        let table_bytes = table.len() as u64;
        let mut parts = vec![Part {
            source: self.source(SourceKey::Table(digest)),
            name: Arc::clone(&self.table_name),
            bytes: table_bytes,
            supply: Some(Box::new(Supply::Table(Arc::from(table)))),
        }];
        for file in files {
            parts.push(Part {
                source: self.source(SourceKey::File(file.identity)),
                name: Arc::from(file.name.as_str()),
                bytes: file.identity.bytes,
                supply: Some(Box::new(Supply::File {
                    source: file.source,
                    identity: file.identity,
                    check: file.check,
                    expected: file.expected,
                })),
            });
        }
        let image = self.image_of(image, (&parts, owner), charge);
        let sources = parts.iter().map(|part| part.source);
        let key: Arc<[SourceId]> = sources.chain(image_source(image.as_ref())).collect();
        self.files_waiting += files_in(&parts);
        if let Some(&version) = self.version_ids.get(&key) {
            self.renew(version, parts, label, foreign, path);
            return version;
        }
        let version = VersionId(self.next());
        for source in key.iter() {
            self.retain_source(*source);
        }
        self.version_ids.insert(Arc::clone(&key), version);
        self.by_label.insert((Arc::clone(label), version));
        self.supplied.insert(version);
        let record = VersionRecord {
            label: Arc::clone(label),
            kind,
            tensors,
            parts: parts.into_boxed_slice(),
            foreign,
            path,
            image,
            owner,
            passed_by: BTreeSet::new(),
            key,
        };
        self.versions.insert(version, Box::new(record));
        version
    }

    /// All ids from now on are at least this.
    pub(super) fn begin_at(&mut self, first: u64) {
        self.next = self.next.max(first);
    }

    fn image_of(
        &mut self,
        image: Option<Result<FoundImage, LayoutError>>,
        (parts, owner): (&[Part], Option<u32>),
        charge: impl Fn(&Layout) -> (u64, u64),
    ) -> Option<Result<Image, LayoutError>> {
        Some(image?.map(|found| {
            let (charge_bytes, pieces) = charge(&found.layout);
            Image {
                source: self.source(image_key(parts, owner, found.granularity)),
                granularity: found.granularity,
                bytes: found.layout.allocations_bytes().iter().sum(),
                charge_bytes,
                pieces,
            }
        }))
    }

    /// Takes the fresh supplies of a version that is known. A registered name and its path take
    /// precedence over a client's label.
    fn renew(
        &mut self,
        version: VersionId,
        parts: Vec<Part>,
        label: &Arc<str>,
        foreign: bool,
        path: Option<String>,
    ) {
        self.drop_supplies(version);
        if let Some(record) = self.versions.get_mut(&version) {
            self.supplied.insert(version);
            record.parts = parts.into_boxed_slice();
            if !foreign {
                if record.foreign {
                    self.news.insert(version);
                }
                self.by_label.remove(&(Arc::clone(&record.label), version));
                self.by_label.insert((Arc::clone(label), version));
                record.label = Arc::clone(label);
                record.path = path;
                record.foreign = false;
            }
        }
    }

    fn source(&mut self, key: SourceKey) -> SourceId {
        if let Some(&(source, _)) = self.sources.get(&key) {
            return source;
        }
        let source = SourceId(self.next());
        let key = Arc::new(key);
        self.sources.insert(Arc::clone(&key), (source, 0));
        self.source_keys.insert(source, key);
        source
    }

    fn retain_source(&mut self, source: SourceId) {
        if let Some(key) = self.source_keys.get(&source)
            && let Some((_, count)) = self.sources.get_mut(key)
        {
            *count += 1;
        }
    }

    fn release_source(&mut self, source: SourceId) {
        let Some(key) = self.source_keys.get(&source) else {
            return;
        };
        if let Some((_, count)) = self.sources.get_mut(key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.sources.remove(key);
                self.source_keys.remove(&source);
            }
        }
    }

    pub(super) fn version_of(&self, version: VersionId) -> Option<&VersionRecord> {
        self.versions.get(&version).map(|record| &**record)
    }

    /// Notes where a version's files are now.
    pub(super) fn set_path(&mut self, version: VersionId, path: Option<String>) {
        if let Some(record) = self.versions.get_mut(&version) {
            record.path = path;
        }
    }

    /// The versions by what they are called, from `first` on, in order.
    pub(super) fn labels(&self, first: &str) -> impl Iterator<Item = (&str, VersionId)> {
        let first = (Arc::from(first), VersionId(0));
        let range = self.by_label.range(first..);
        range.map(|(label, version)| (&**label, *version))
    }

    /// Opened files that are held for loads to come, over all versions.
    pub(super) const fn files_waiting(&self) -> usize {
        self.files_waiting
    }

    /// Lets go of the opened files of a version.
    fn drop_supplies(&mut self, version: VersionId) {
        let Some(record) = self.versions.get_mut(&version) else {
            return;
        };
        if self.supplied.remove(&version) {
            self.files_waiting -= files_in(&record.parts);
            let parts = record.parts.iter_mut();
            self.dropped.push(Dropped {
                foreign: record.foreign,
                supplies: parts
                    .filter_map(|part| part.supply.take())
                    .map(|one| *one)
                    .collect(),
            });
        }
    }

    /// Lets go of the opened files of all versions that nobody waits for.
    pub(super) fn drop_supplies_unless(&mut self, awaited: impl Fn(VersionId) -> bool) {
        let idle = self.supplied.iter().copied();
        for version in idle
            .filter(|version| !awaited(*version))
            .collect::<Vec<_>>()
        {
            self.drop_supplies(version);
        }
    }

    /// What was let go of, to be dropped where that may take time.
    pub(super) fn take_dropped(&mut self) -> Vec<Dropped> {
        std::mem::take(&mut self.dropped)
    }

    pub(super) fn forget_version(&mut self, version: VersionId) {
        self.drop_supplies(version);
        self.news.remove(&version);
        if let Some(record) = self.versions.remove(&version) {
            self.by_label.remove(&(Arc::clone(&record.label), version));
            self.version_ids.remove(&record.key);
            for &source in record.key.iter() {
                self.release_source(source);
            }
        }
    }

    /// The id of a digest, held until [`Names::forget_segment`].
    pub(super) fn content(&mut self, segment: SegmentId, key: ContentKey) -> ContentId {
        let content = self.content_of(key);
        if let Some((shared, _)) = self.content_ids.get_key_value(&key) {
            self.contents.insert(segment, Arc::clone(shared));
        }
        if let Some((_, count)) = self.content_ids.get_mut(&key) {
            *count += 1;
        }
        content
    }

    pub(super) fn digest_of(&self, segment: SegmentId) -> Option<[u8; 32]> {
        self.contents.get(&segment).map(|content| content.0)
    }

    pub(super) fn forget_segment(&mut self, segment: SegmentId) {
        let Some(key) = self.contents.remove(&segment) else {
            return;
        };
        if let Some((_, count)) = self.content_ids.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.content_ids.remove(&key);
            }
        }
    }
}

fn image_source(image: Option<&Result<Image, LayoutError>>) -> Option<SourceId> {
    Some(image?.as_ref().ok()?.source)
}

/// Parts are known by their ids as long as a version has them.
fn image_key(parts: &[Part], owner: Option<u32>, granularity: Granularity) -> SourceKey {
    let mut key = blake3::Hasher::new();
    for part in parts {
        key.update(&part.source.0.to_le_bytes());
    }
    key.update(&granularity_key(granularity));
    if let Some(uid) = owner {
        key.update(&uid.to_le_bytes());
    }
    SourceKey::Image(*key.finalize().as_bytes())
}

fn files_in(parts: &[Part]) -> usize {
    parts
        .iter()
        .filter(|part| matches!(part.supply.as_deref(), Some(Supply::File { .. })))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::FileSource;
    use std::path::Path;

    fn found(dir: &Path, files: &[&str]) -> Found {
        let opened = files.iter().map(|name| {
            let source = FileSource::registered(dir, Path::new(name)).unwrap();
            FoundFile {
                name: FileName::new(*name).unwrap(),
                identity: source.identity().unwrap(),
                source: Arc::new(source),
                check: None,
                expected: None,
            }
        });
        Found {
            kind: ModelKind::Opaque,
            table: vec![1, 2, 3],
            tensors: 1,
            image: None,
            files: opened.collect(),
            path: None,
        }
    }

    fn dropped_files(names: &mut Names) -> usize {
        let supplies = names.take_dropped().into_iter().flat_map(|d| d.supplies);
        supplies
            .filter(|supply| matches!(supply, Supply::File { .. }))
            .count()
    }

    #[test]
    fn each_opened_file_is_counted_once_and_let_go_of_once() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let mut names = Names::default();
        let free = |_: &Layout| (0, 0);
        let (one, two) = (Arc::from("one"), Arc::from("two"));
        let first = names.version((&one, None), true, found(dir.path(), &["a", "b"]), free);
        let second = names.version((&two, None), false, found(dir.path(), &["c"]), free);
        assert_eq!(names.files_waiting(), 3);

        // Another look at the same files takes the place of the first.
        let again = names.version((&two, None), false, found(dir.path(), &["a", "b"]), free);
        assert_eq!((again, names.files_waiting()), (first, 3));
        assert_eq!(dropped_files(&mut names), 2);
        let labels: Vec<_> = names.labels("").collect();
        assert_eq!(labels, [("two", first), ("two", second)]);
        assert!(names.labels("u").next().is_none());

        names.drop_supplies_unless(|version| version == second);
        assert_eq!((names.files_waiting(), dropped_files(&mut names)), (1, 2));
        names.forget_version(first);
        names.forget_version(second);
        names.forget_version(second);
        assert_eq!((names.files_waiting(), dropped_files(&mut names)), (0, 1));
        assert!(names.sources.is_empty() && names.source_keys.is_empty());
        assert!(names.versions.is_empty() && names.version_ids.is_empty());
        assert!(names.by_label.is_empty() && names.supplied.is_empty());
    }
}
