//! Names that outlive a daemon: what the keeper is told of them, and what it tells.

use super::{ContentKey, FoundImage, Names, Part, SourceKey, VersionRecord, image_source};
use crate::keeper::describe::{self, SourceRef};
use mrm_core::id::{ContentId, SegmentId, SourceId, VersionId};
use mrm_proto::ids::Digest;
use mrm_proto::layout::{Layout, LayoutError};
use mrm_proto::table::ModelKind;
use std::sync::Arc;

impl Names {
    /// A version that the last daemon knew, under the id that it had there; `None` if there is
    /// another of this id, or of these sources. Nothing can be loaded for it before it is resolved.
    pub(in crate::shell) fn adopt(
        &mut self,
        known: &describe::Version,
        image: Option<Result<FoundImage, LayoutError>>,
        charge: impl Fn(&Layout) -> (u64, u64),
    ) -> Option<VersionId> {
        let kind = match known.kind {
            0 => ModelKind::Opaque,
            1 => ModelKind::Safetensors,
            _ => return None,
        };
        let parts = known.parts.iter().map(|part| Part {
            source: self.source(key_of(part.source)),
            name: Arc::from(part.name.as_str()),
            bytes: part.bytes,
            supply: None,
        });
        let parts: Vec<Part> = parts.collect();
        let image = self.image_of(image, (&parts, known.owner), charge);
        let sources = parts.iter().map(|part| part.source);
        let key: Arc<[SourceId]> = sources.chain(image_source(image.as_ref())).collect();
        let version = VersionId(known.version.0);
        if self.versions.contains_key(&version) || self.version_ids.contains_key(&key) {
            return None;
        }
        let label: Arc<str> = Arc::from(known.label.as_str());
        for source in key.iter() {
            self.retain_source(*source);
        }
        self.version_ids.insert(Arc::clone(&key), version);
        self.by_label.insert((Arc::clone(&label), version));
        let record = VersionRecord {
            label,
            kind,
            tensors: known.tensors,
            parts: parts.into_boxed_slice(),
            foreign: known.foreign,
            path: known.path.clone(),
            image,
            owner: known.owner,
            passed_by: known.passed_by.iter().flatten().copied().collect(),
            key,
        };
        self.versions.insert(version, Box::new(record));
        Some(version)
    }

    /// What the next daemon is to know of a version.
    pub(in crate::shell) fn describe_version(&self, id: VersionId) -> Option<describe::Version> {
        let record = self.versions.get(&id)?;
        let parts = record.parts.iter().map(|part| {
            Some(describe::VersionPart {
                source: self.source_ref(part.source)?,
                name: part.name.to_string(),
                bytes: part.bytes,
            })
        });
        Some(describe::Version {
            version: mrm_proto::ids::VersionId(id.0),
            label: record.label.to_string(),
            foreign: record.foreign,
            kind: record.kind as u16,
            tensors: record.tensors,
            parts: parts.collect::<Option<_>>()?,
            path: record.path.clone(),
            leases: 0,
            pinned: false,
            owner: record.owner,
            passed_by: (!record.passed_by.is_empty())
                .then(|| record.passed_by.iter().copied().collect()),
        })
    }

    /// A source in words that another daemon understands; `None` for an image.
    pub(in crate::shell) fn source_ref(&self, source: SourceId) -> Option<SourceRef> {
        match &**self.source_keys.get(&source)? {
            SourceKey::File(identity) => Some(SourceRef::File((*identity).into())),
            SourceKey::Table(digest) => Some(SourceRef::Table(Digest(*digest))),
            SourceKey::Image(_) => None,
        }
    }

    /// What the image of a version is made of, in such words.
    pub(in crate::shell) fn image_of_version(&self, id: VersionId) -> Option<describe::ImageOf> {
        let parts = self.versions.get(&id)?.parts.iter();
        let mut sources = parts.map(|part| self.source_ref(part.source));
        let SourceRef::Table(table) = sources.next()?? else {
            return None;
        };
        let files = sources.collect::<Option<_>>()?;
        Some(describe::ImageOf { table, files })
    }

    /// The id of a digest, for a segment that is about to be known.
    pub(in crate::shell) fn content_of(&mut self, key: ContentKey) -> ContentId {
        let fresh = ContentId(self.next());
        let known = self.content_ids.entry(Arc::new(key));
        known.or_insert((fresh, 0)).0
    }

    /// The id of what a segment holds, once it is hashed.
    pub(in crate::shell) fn content_in(&self, segment: SegmentId) -> Option<ContentId> {
        let key = self.contents.get(&segment)?;
        self.content_ids.get(key).map(|(content, _)| *content)
    }

    /// The id of a content that is not known yet, and that nothing else has.
    pub(in crate::shell) fn unknown_content(&mut self) -> ContentId {
        ContentId(self.next())
    }

    /// Forgets the digests for which no segment came.
    pub(in crate::shell) fn drop_unused_contents(&mut self) {
        self.content_ids.retain(|_, (_, count)| *count > 0);
    }

    /// What people call one of the versions that name a source.
    pub(in crate::shell) fn label_of_source(&self, source: SourceId) -> Option<Arc<str>> {
        let mut records = self.versions.values();
        let record = records.find(|record| record.key.contains(&source))?;
        Some(Arc::clone(&record.label))
    }
}

fn key_of(source: SourceRef) -> SourceKey {
    match source {
        SourceRef::File(state) => SourceKey::File(state.into()),
        SourceRef::Table(digest) => SourceKey::Table(digest.0),
    }
}
