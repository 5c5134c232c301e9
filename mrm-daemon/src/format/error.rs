//! Why a set of files is no model.

use super::{HeaderProblem, IndexProblem};
use crate::source::SourceError;
use mrm_proto::error::ErrorCode;
use mrm_proto::name::FileName;
use mrm_proto::table::TableError;

/// Why a set of files is no model. Each message names the file, the reason and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The files do not belong together.
    #[error(
        "{reason}; pass one `.safetensors` file, an index with exactly its shards, or one file of \
         any other kind"
    )]
    FileSet {
        /// What is wrong with the set.
        reason: String,
    },
    /// A file of no bytes.
    #[error("file `{file}` is empty; write it anew, or wait until it is written")]
    Empty {
        /// The file.
        file: FileName,
    },
    /// A safetensors file that breaks a rule of its format.
    #[error("file `{file}`: {problem}; {}", problem.remedy())]
    Header {
        /// The file.
        file: FileName,
        /// What is wrong.
        problem: HeaderProblem,
    },
    /// An index that does not fit its shards.
    #[error("index `{file}`: {problem}; {}", problem.remedy())]
    Index {
        /// The index.
        file: FileName,
        /// What is wrong.
        problem: IndexProblem,
    },
    /// A model that its tensor table cannot describe.
    #[error("{0}; split the model")]
    Table(#[from] TableError),
    /// A file that cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl FormatError {
    /// The code for the boundary.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::FileSet { .. } => ErrorCode::BadFileSet,
            Self::Empty { .. } => ErrorCode::EmptyFile,
            Self::Header { problem, .. } => problem.code(),
            Self::Index { problem, .. } => problem.code(),
            Self::Table(_) => ErrorCode::TooManyTensors,
            Self::Source(error) => error.code(),
        }
    }
}
