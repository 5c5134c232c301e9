//! The index of a sharded model: which tensor is in which shard.

use super::json::{deeper_than, shorten};
use super::{FormatError, HeaderCheck, INDEX_SUFFIX};
use crate::source::Source;
use mrm_proto::error::ErrorCode;
use mrm_proto::limits::{INDEX_BYTES_MAX, JSON_DEPTH_MAX};
use mrm_proto::name::FileName;
use std::collections::HashMap;

mod parse;

/// Which tensor is in which shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The shards, sorted by name.
    pub shards: Vec<FileName>,
    /// For each tensor the position of its shard in `shards`.
    pub tensors: HashMap<String, usize>,
}

/// What is wrong with an index, by itself or together with its shards.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexProblem {
    /// Not the JSON that the format asks for.
    #[error("it is malformed: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// A tensor is listed twice.
    #[error("it lists tensor {tensor:?} twice")]
    Duplicate {
        /// The tensor.
        tensor: String,
    },
    /// More of something than the bound.
    #[error("it lists more than {max} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// A shard in another directory.
    #[error("it names the shard {shard:?}, which is outside the model's directory")]
    Outside {
        /// The name.
        shard: String,
    },
    /// A shard that is not there.
    #[error("its shard `{shard}` is not there")]
    Missing {
        /// The shard.
        shard: FileName,
    },
    /// A file that is given twice.
    #[error("the file `{shard}` is given twice")]
    Twice {
        /// The file.
        shard: FileName,
    },
    /// A tensor in a shard that the index does not put it in.
    #[error("tensor {tensor:?} is in `{found}`, where the index does not put it")]
    Misplaced {
        /// The tensor.
        tensor: String,
        /// The shard that has it.
        found: FileName,
    },
    /// A tensor that its shard does not have.
    #[error("tensor {tensor:?} should be in `{shard}`, which does not have it")]
    Absent {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: FileName,
    },
}

impl IndexProblem {
    /// The code for the boundary.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Malformed { .. } => ErrorCode::IndexMalformed,
            Self::Duplicate { .. } => ErrorCode::DuplicateTensor,
            Self::TooMany { .. } => ErrorCode::TooManyTensors,
            Self::Outside { .. } => ErrorCode::ShardOutside,
            Self::Missing { .. } => ErrorCode::ShardMissing,
            Self::Twice { .. } | Self::Misplaced { .. } | Self::Absent { .. } => {
                ErrorCode::ShardMismatch
            }
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Malformed { .. } | Self::Duplicate { .. } => {
                "write it anew, or download it again"
            }
            Self::TooMany { .. } => "split the model, or write it in fewer shards",
            Self::Outside { .. } => "put the shards beside the index and name them without `/`",
            Self::Missing { .. } => "download the shard, or pass it with the index",
            Self::Twice { .. } => "give each file once",
            Self::Misplaced { .. } | Self::Absent { .. } => {
                "index and shards are of different models or revisions: get all of one revision"
            }
        }
    }
}

/// Reads the index `name`.
///
/// # Errors
/// When it cannot be read, is empty, over its bound, or malformed.
pub fn read_index(name: &FileName, source: &dyn Source) -> Result<Index, FormatError> {
    let bytes = source.identity()?.bytes;
    load(name, source, bytes).map(|(index, _)| index)
}

/// The same for an index of known length, with the proof of what was read.
pub(super) fn load(
    name: &FileName,
    source: &dyn Source,
    bytes: u64,
) -> Result<(Index, HeaderCheck), FormatError> {
    let failed = |problem| FormatError::Index {
        file: name.clone(),
        problem,
    };
    if bytes == 0 {
        return Err(FormatError::Empty { file: name.clone() });
    }
    if bytes > INDEX_BYTES_MAX {
        let reason = format!("it has {bytes} bytes, {INDEX_BYTES_MAX} are allowed");
        return Err(failed(IndexProblem::Malformed { reason }));
    }
    let mut text = vec![0; usize::try_from(bytes).unwrap_or(0)];
    source.read_exact_at(0, &mut text)?;
    let index = Index::parse(&text).map_err(failed)?;
    Ok((index, HeaderCheck::of(&text)))
}

impl Index {
    /// Parses the text of an index.
    ///
    /// # Errors
    /// Says which rule of the format is broken.
    pub fn parse(text: &[u8]) -> Result<Self, IndexProblem> {
        let malformed = |reason: String| IndexProblem::Malformed {
            reason: shorten(&reason),
        };
        let text = std::str::from_utf8(text)
            .map_err(|e| malformed(format!("it is not UTF-8 (byte {})", e.valid_up_to())))?;
        if deeper_than(text.as_bytes(), JSON_DEPTH_MAX) {
            return Err(malformed(format!(
                "it is nested deeper than {JSON_DEPTH_MAX} levels"
            )));
        }
        let index = parse::parse(text)?;
        if index.shards.is_empty() {
            return Err(malformed("its `weight_map` names no shard".to_owned()));
        }
        Ok(index)
    }
}

/// Whether a file of this name is an index.
#[must_use]
pub fn is_index(name: &str) -> bool {
    name.ends_with(INDEX_SUFFIX)
}
