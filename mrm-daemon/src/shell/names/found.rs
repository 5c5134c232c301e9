//! What a look at a model's files brings, and what is kept of it for the next.

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

/// What the files of a model were when they were looked into: of models there are many, and so it is short.
#[derive(Debug, Clone, Copy)]
pub(in crate::shell) struct Seen {
    pub(in crate::shell) version: VersionId,
    pub(in crate::shell) states: States,
}

/// The names and identities of files, in order, and how devices would get them: by their digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct States([u8; 32]);

impl States {
    pub(in crate::shell) fn of<'f>(
        files: impl Iterator<Item = (&'f FileName, Identity)>,
        granularity: Option<Granularity>,
    ) -> Self {
        let mut states = blake3::Hasher::new();
        // Nothing of two different lists is the same: what varies in length says how long it is.
        states.update(&granularity.map_or([u8::MAX; 9], granularity_key));
        for (name, identity) in files {
            states.update(&(name.as_str().len() as u64).to_le_bytes());
            states.update(name.as_str().as_bytes());
            for number in [identity.dev, identity.ino, identity.bytes] {
                states.update(&number.to_le_bytes());
            }
            for time_ns in [identity.mtime_ns, identity.ctime_ns] {
                states.update(&time_ns.to_le_bytes());
            }
        }
        Self(*states.finalize().as_bytes())
    }
}

/// A granularity as part of what is hashed.
pub(super) fn granularity_key(granularity: Granularity) -> [u8; 9] {
    let (kind, block_bytes) = match granularity {
        Granularity::Model => (0, 0),
        Granularity::Block { block_bytes } => (1, block_bytes),
        Granularity::Tensor => (2, 0),
    };
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&u64::to_le_bytes(block_bytes));
    key
}
