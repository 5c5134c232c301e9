//! The tensor table: where each tensor of a version lies.
//!
//! The daemon writes it once per version into a sealed memfd of its own and passes that with each
//! grant, so that opening a model copies and parses nothing. All numbers are little endian; every
//! offset counts from the start of the table. Format 1:
//!
//! ```text
//! header, 64 bytes
//!   0   4  magic "MRMT"           24   8  offset of the entries
//!   4   2  format (1)             32   8  offset of the file order (u32 each)
//!   6   2  kind of model          40   8  offset of the shapes (u64 each)
//!   8   4  tensors                48   8  offset of the text
//!  12   4  segments               56   8  length of the table
//!  16   4  metadata pairs
//!  20   4  shape words
//! entry, 40 bytes, sorted by name
//!   0   4  name: offset in text   16   4  segment
//!   4   4  name: length           20   4  position in the file order
//!   8   2  dtype code             24   8  offset in the segment
//!  10   2  rank                   32   8  length in bytes
//!  12   4  shape: index of its first word
//! then the file order, the shapes, and the text: for each segment and then for each half of each
//! metadata pair a u32 length and its bytes, and last the tensor names.
//! ```
//!
//! ```
//! use mrm_proto::{dtype::DType, table::{ModelKind, Table, TableBuilder}};
//! let mut builder = TableBuilder::new(ModelKind::Safetensors);
//! let file = builder.segment("model.safetensors");
//! builder.tensor("w", DType::F32, &[2, 3], file, 64, 24);
//! let bytes = builder.build()?;
//! let table = Table::parse(&bytes)?;
//! let w = table.find("w").expect("w was added");
//! assert_eq!((w.dtype, w.offset, w.bytes), (DType::F32, 64, 24));
//! assert_eq!(w.shape().collect::<Vec<_>>(), [2, 3]);
//! # Ok::<(), mrm_proto::table::TableError>(())
//! ```

mod build;
mod read;

pub use build::TableBuilder;
pub use read::{Table, TensorRef};

pub(crate) const MAGIC: [u8; 4] = *b"MRMT";
pub(crate) const FORMAT: u16 = 1;
pub(crate) const HEADER_BYTES: usize = 64;
pub(crate) const ENTRY_BYTES: usize = 40;

/// What kind of files a version is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ModelKind {
    /// One file of unknown format: no tensors.
    Opaque = 0,
    /// safetensors, in one file or sharded.
    Safetensors = 1,
}

impl ModelKind {
    pub(crate) const fn from_code(code: u16) -> Option<Self> {
        match code {
            0 => Some(Self::Opaque),
            1 => Some(Self::Safetensors),
            _ => None,
        }
    }

    /// The name that status and command line use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opaque => "opaque",
            Self::Safetensors => "safetensors",
        }
    }
}

/// Why a table cannot be built or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// More of something than a table can hold.
    #[error("too many {0} for a tensor table")]
    TooMany(&'static str),
    /// Two tensors of one name.
    #[error("two tensors are called `{0}`")]
    Duplicate(String),
    /// Not a table, or a newer format.
    #[error("not a tensor table of format {FORMAT}")]
    Format,
    /// An offset or length that leads outside the table.
    #[error("tensor table is damaged: {0} lies outside")]
    Bounds(&'static str),
}
