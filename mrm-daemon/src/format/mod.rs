//! What a set of files is: safetensors in one file, in shards, or one opaque file.
//!
//! [`inspect`] reads headers only and trusts nothing: not the names that a client gave, not the
//! lengths that a header claims. What it returns is enough to load the files and to describe every
//! tensor in them.
//!
//! ```
//! use mrm_daemon::{format, source::{FileSource, Source}};
//! use mrm_proto::{name::FileName, table::{ModelKind, Table}};
//! use std::{path::Path, sync::Arc};
//!
//! let header = br#"{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
//! let mut image = (header.len() as u64).to_le_bytes().to_vec();
//! image.extend_from_slice(header);
//! image.extend_from_slice(&[7, 9]);
//! let dir = tempfile::tempdir()?;
//! std::fs::write(dir.path().join("m.safetensors"), &image)?;
//!
//! let file = FileSource::registered(dir.path(), Path::new("m.safetensors"))?;
//! let files = [(FileName::new("m.safetensors")?, Arc::new(file) as Arc<dyn Source>)];
//! let layout = format::inspect(&files)?;
//! let table = Table::parse(&layout.table)?;
//! assert_eq!(layout.kind, ModelKind::Safetensors);
//! assert_eq!(table.find("w").map(|w| w.offset), Some(8 + header.len() as u64));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod header;
mod index;
mod inspect;
mod json;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use error::FormatError;
pub use header::{Header, HeaderProblem, METADATA_PAIRS_MAX, TensorFact};
pub use index::{Index, IndexProblem, is_index, read_index};
pub use inspect::inspect;

use crate::source::Identity;
use mrm_proto::name::FileName;
use mrm_proto::table::ModelKind;

/// How the name of a safetensors file ends.
pub const SAFETENSORS_SUFFIX: &str = ".safetensors";
/// How the name of an index of shards ends.
pub const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// What [`inspect`] found out about a set of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// What the files are.
    pub kind: ModelKind,
    /// The files in the order of their segments: shards by name, then the index.
    pub files: Vec<FileLayout>,
    /// The encoded tensor table.
    pub table: Vec<u8>,
}

/// One file of a [`Layout`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLayout {
    /// Its name within the model.
    pub name: FileName,
    /// Where it stood in the set that was inspected.
    pub position: usize,
    /// Its length.
    pub bytes: u64,
    /// What it was before it was looked into. A load that ends with another one is void.
    pub identity: Identity,
    /// What its first bytes were; `None` for an opaque file.
    pub check: Option<HeaderCheck>,
}

/// Proof that loaded bytes begin with the header that was parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderCheck {
    /// How many bytes, from the start of the file.
    pub bytes: u64,
    /// Their BLAKE3 hash.
    pub digest: [u8; 32],
}

impl HeaderCheck {
    /// The check of a file that begins with `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            digest: *blake3::hash(bytes).as_bytes(),
        }
    }

    /// Whether `image`, a whole file, begins with what was parsed.
    #[must_use]
    pub fn holds(&self, image: &[u8]) -> bool {
        let start = usize::try_from(self.bytes)
            .ok()
            .and_then(|n| image.get(..n));
        start.is_some_and(|start| Self::of(start) == *self)
    }
}
