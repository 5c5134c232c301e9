//! Why a load failed.

use crate::memory::MemoryError;
use crate::source::{Source, SourceError};
use mrm_proto::error::ErrorCode;
use std::io;

/// Why a load failed. Nothing of it is left in memory.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The source cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// No segment could be made for it.
    #[error("cannot load `{name}`: {cause}")]
    Memory {
        /// The file.
        name: String,
        /// Why not.
        #[source]
        cause: MemoryError,
    },
    /// The source is not, or no longer, what was to be loaded.
    #[error(
        "file `{name}` changed while it was loaded: {what}; try again when it is written to its \
         end, and replace weights by rename(2) instead of writing into them"
    )]
    Changed {
        /// The file.
        name: String,
        /// How it differs.
        what: String,
    },
    /// Nobody wants it any more.
    #[error("the load of `{name}` was cancelled; open it again if it is wanted")]
    Cancelled {
        /// The file.
        name: String,
    },
    /// No thread to read or hash with.
    #[error("no thread to load `{name}`: {cause}; raise the daemon's TasksMax or LimitNPROC")]
    Thread {
        /// The file.
        name: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The hash thread failed: a fault of the daemon's own.
    #[error("hashing `{name}` failed ({message}); try again, and report it")]
    Hash {
        /// The file.
        name: String,
        /// What its panic said.
        message: String,
    },
}

impl LoadError {
    /// The code for the client.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Source(error) => error.code(),
            Self::Memory { cause, .. } => cause.code(),
            Self::Changed { .. } => ErrorCode::SourceChanged,
            Self::Cancelled { .. } => ErrorCode::Cancelled,
            Self::Thread { .. } => ErrorCode::Exhausted,
            Self::Hash { .. } => ErrorCode::Internal,
        }
    }

    pub(super) fn changed(source: &dyn Source, what: impl Into<String>) -> Self {
        Self::Changed {
            name: source.label().to_owned(),
            what: what.into(),
        }
    }
}
