//! Why a name does not lead to files.

use crate::format::FormatError;
use crate::source::SourceError;
use mrm_proto::error::ErrorCode;
use mrm_proto::name::ModelName;
use std::path::PathBuf;

/// Why a model cannot be looked up. Each message names the object, the reason and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// No model of this name.
    #[error("there is no model `{name}`{}", advice(similar, *anything))]
    NotFound {
        /// What was asked for.
        name: ModelName,
        /// Registered names that come close, the closest first.
        similar: Vec<String>,
        /// Whether anything is registered at all.
        anything: bool,
    },
    /// A directory without weights.
    #[error(
        "directory {path:?} holds no `.safetensors` file and no index of shards; name a file in it"
    )]
    NotAModel {
        /// The directory.
        path: PathBuf,
    },
    /// A directory with several models.
    #[error(
        "directory {path:?} holds several models ({}); register one of them by its file",
        files.join(", ")
    )]
    Ambiguous {
        /// The directory.
        path: PathBuf,
        /// Some of the files that could be meant.
        files: Vec<String>,
    },
    /// A directory too large to look through.
    #[error("directory {path:?} has more than {entries_max} entries; register the file by itself")]
    TooManyEntries {
        /// The directory.
        path: PathBuf,
        /// The bound.
        entries_max: usize,
    },
    /// A file name that cannot be a segment's name.
    #[error("{path:?} has no file name that a model's file may have; rename it: {reason}")]
    BadFileName {
        /// The file.
        path: PathBuf,
        /// The rule that it breaks.
        reason: String,
    },
    /// Two entries of one name.
    #[error("two models are registered as `{name}`; rename one of them")]
    DuplicateName {
        /// The name.
        name: ModelName,
    },
    /// A relative path in the configuration.
    #[error("{path:?} is not an absolute path; begin it with `/`")]
    NotAbsolute {
        /// The path.
        path: PathBuf,
    },
    /// A file that cannot be opened.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// An index of shards that cannot be read.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl CatalogueError {
    /// The code for the boundary.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::ModelNotFound,
            Self::NotAModel { .. }
            | Self::Ambiguous { .. }
            | Self::TooManyEntries { .. }
            | Self::BadFileName { .. } => ErrorCode::BadFileSet,
            Self::DuplicateName { .. } | Self::NotAbsolute { .. } => ErrorCode::BadName,
            Self::Source(error) => error.code(),
            Self::Format(error) => error.code(),
        }
    }
}

fn advice(similar: &[String], anything: bool) -> String {
    match (similar, anything) {
        ([], false) => {
            "; nothing is registered: add a [[model]] or [[catalogue]], or pass the file".to_owned()
        }
        ([], true) => "; `mrm ls` lists what is registered".to_owned(),
        (names, _) => format!("; did you mean `{}`?", names.join("`, `")),
    }
}
