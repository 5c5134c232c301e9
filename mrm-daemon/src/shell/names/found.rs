//! What a look at a model's files brings, and what is kept of it for the next.

use crate::catalogue::OpenFiles;
use crate::format::HeaderCheck;
use crate::integrity::manifest::Expected;
use crate::source::{Identity, Source};
use mrm_core::id::VersionId;
use mrm_proto::layout::{Granularity, Layout, LayoutError};
use mrm_proto::name::FileName;
use mrm_proto::table::ModelKind;
use std::sync::Arc;

/// What resolving a model found.
pub(crate) struct Found {
    pub(in crate::shell) kind: ModelKind,
    pub(in crate::shell) table: Vec<u8>,
    pub(in crate::shell) tensors: u64,
    pub(in crate::shell) files: Vec<FoundFile>,
    pub(in crate::shell) path: Option<String>,
    /// What devices would get of it, or why nothing; absent if there is no device.
    pub(in crate::shell) image: Option<Result<FoundImage, LayoutError>>,
    /// All files that were opened, and what they were before they were read.
    pub(in crate::shell) seen: Box<[(FileName, Identity)]>,
}

/// What devices would get of a model.
pub(crate) struct FoundImage {
    pub(in crate::shell) granularity: Granularity,
    pub(in crate::shell) layout: Layout,
}

/// One file of a model, opened.
pub(crate) struct FoundFile {
    pub(in crate::shell) name: FileName,
    pub(in crate::shell) source: Arc<dyn Source>,
    pub(in crate::shell) identity: Identity,
    pub(in crate::shell) check: Option<HeaderCheck>,
    /// What it should be, if a list says.
    pub(in crate::shell) expected: Option<Arc<Expected>>,
}

/// What the files of a model were when they were looked into.
pub(in crate::shell) struct Seen {
    pub(in crate::shell) version: VersionId,
    /// All that were opened, in that order.
    pub(in crate::shell) files: Box<[(FileName, Identity)]>,
    /// How devices would get it; absent if there is no device, or no way.
    pub(in crate::shell) granularity: Option<Granularity>,
}

impl Seen {
    /// Whether these are the same files, and as they were.
    pub(in crate::shell) fn is_of(&self, files: &OpenFiles) -> bool {
        let same = |((name, source), (seen, identity)): (&(_, Arc<dyn Source>), &(_, _))| {
            name == seen && source.identity().is_ok_and(|now| now == *identity)
        };
        files.len() == self.files.len() && files.iter().zip(&self.files).all(same)
    }
}
