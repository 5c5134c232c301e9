//! Why a file cannot be a source.

use mrm_proto::error::ErrorCode;
use rustix::io::Errno;
use std::path::PathBuf;

/// Why a file cannot be opened or read. Each message names the file, the reason and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Opened for writing only, or as a mere path.
    #[error("file `{name}` is open {how}, not for reading; open it with O_RDONLY and pass that")]
    NotReadable {
        /// The file.
        name: String,
        /// How it is open.
        how: &'static str,
    },
    /// Not a regular file.
    #[error("`{name}` is a {kind}, not a regular file; name the weights file itself")]
    NotRegular {
        /// The file.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// On a filesystem that its owner can make hang.
    #[error(
        "file `{name}` is on {filesystem} (magic {magic:#x}), whose owner could make a read hang; \
         copy it to a local disk or tmpfs, or have the operator register it"
    )]
    Filesystem {
        /// The file.
        name: String,
        /// The filesystem, as far as it is known.
        filesystem: &'static str,
        /// `f_type` of `statfs(2)`.
        magic: u64,
    },
    /// The system refused.
    #[error("cannot {action} `{name}`: {errno}; {}", remedy(*errno))]
    Unreadable {
        /// The file.
        name: String,
        /// What was tried.
        action: &'static str,
        /// Why not.
        errno: Errno,
    },
    /// Changed or shrank.
    #[error(
        "file `{name}` changed while it was read; try again when it is written to its end, and \
         replace weights by rename(2) instead of writing into them"
    )]
    Changed {
        /// The file.
        name: String,
    },
    /// Leads out of its root.
    #[error(
        "`{name}` leads outside its root {root:?}; move the file below the root, make the link \
         relative, or register its target by itself"
    )]
    OutsideRoot {
        /// The path below the root.
        name: String,
        /// The root.
        root: PathBuf,
    },
    /// Not there.
    #[error("there is no `{name}` in {root:?}; put it there, or correct the path in the catalogue")]
    Missing {
        /// The path below the root.
        name: String,
        /// The root.
        root: PathBuf,
    },
}

impl SourceError {
    /// The code for the boundary.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotReadable { .. } => ErrorCode::FdNotReadable,
            Self::NotRegular { .. } => ErrorCode::NotRegularFile,
            Self::Filesystem { .. } => ErrorCode::FilesystemRefused,
            Self::Unreadable { errno, .. } if exhausted(*errno) => ErrorCode::Exhausted,
            Self::Unreadable { .. } => ErrorCode::SourceUnreadable,
            Self::Changed { .. } => ErrorCode::SourceChanged,
            Self::OutsideRoot { .. } => ErrorCode::OutsideRoot,
            Self::Missing { .. } => ErrorCode::SourceMissing,
        }
    }
}

fn exhausted(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM)
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::ACCESS | Errno::PERM => "let the daemon's user read it",
        Errno::IO => "check the disk (kernel log), restore the file, then try again",
        Errno::LOOP => "remove the chain of symbolic links",
        Errno::NAMETOOLONG => "use a shorter path",
        e if exhausted(e) => "raise the daemon's limit of open files or memory, then try again",
        _ => "check the file and its mount, then try again",
    }
}
