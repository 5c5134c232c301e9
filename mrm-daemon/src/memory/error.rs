//! Why a segment could not be made.

use mrm_proto::error::ErrorCode;
use std::io;

/// Why a segment could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The machine, or the daemon's control group, has no memory for it.
    #[error(
        "no memory for a segment of {bytes} bytes: {cause}; free memory on this node, raise the \
         daemon's memory limit, or lower host_budget_bytes"
    )]
    OutOfMemory {
        /// How much was wanted.
        bytes: u64,
        /// What said no.
        cause: String,
    },
    /// More bytes than this machine can address.
    #[error("a segment of {bytes} bytes is more than this machine can address")]
    TooLarge {
        /// How much was wanted.
        bytes: u64,
    },
    /// A segment of no bytes cannot be mapped.
    #[error("a segment of no bytes cannot be mapped; lend a file that has content")]
    Empty,
    /// The daemon has no descriptor left.
    #[error("no file descriptor left for a segment: {cause}; raise the daemon's LimitNOFILE")]
    Descriptors {
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel took more memory than was charged, or less than was asked for.
    #[error("a segment of {bytes} bytes took {allocated_bytes} bytes, charged were {charge_bytes}")]
    Allocated {
        /// The length of the segment.
        bytes: u64,
        /// What it takes.
        allocated_bytes: u64,
        /// What it may take.
        charge_bytes: u64,
    },
    /// The kernel refused a step that it should allow.
    #[error(
        "{step} failed for a segment of {bytes} bytes: {cause}; `mrm doctor` checks the kernel"
    )]
    Refused {
        /// What was tried.
        step: &'static str,
        /// The length of the segment.
        bytes: u64,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel does not seal what somebody could still write to: memory that is mapped for
    /// writing, or of which who was lent it before it was filled keeps pages pinned.
    #[error(
        "sealing failed for a segment of {bytes} bytes: it is mapped elsewhere, or pages of it are \
         kept pinned by who opened it by its layout, for a device, a pipe or a ring"
    )]
    Pinned {
        /// The length of the segment.
        bytes: u64,
    },
    /// What came back from sealing is not the segment, whole and sealed.
    #[error("a segment of {bytes} bytes could not be verified after sealing: {reason}")]
    NotSealed {
        /// The length of the segment.
        bytes: u64,
        /// What is wrong with it.
        reason: String,
    },
}

impl MemoryError {
    /// The code for the client.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::OutOfMemory { .. } => ErrorCode::OutOfMemory,
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            Self::Empty => ErrorCode::EmptyFile,
            Self::Descriptors { .. } => ErrorCode::Exhausted,
            Self::Allocated { .. }
            | Self::Refused { .. }
            | Self::Pinned { .. }
            | Self::NotSealed { .. } => ErrorCode::Internal,
        }
    }

    /// The error for a failed system call.
    pub(super) fn from_errno(step: &'static str, bytes: u64, errno: rustix::io::Errno) -> Self {
        use rustix::io::Errno;
        match errno {
            // A fault that finds no page is EFAULT from madvise; a full tmpfs is ENOSPC.
            Errno::NOMEM | Errno::NOSPC | Errno::FAULT | Errno::AGAIN => Self::OutOfMemory {
                bytes,
                cause: format!("{step}: {}", io::Error::from(errno)),
            },
            Errno::MFILE | Errno::NFILE => Self::Descriptors {
                cause: errno.into(),
            },
            Errno::FBIG | Errno::OVERFLOW => Self::TooLarge { bytes },
            _ => Self::Refused {
                step,
                bytes,
                cause: errno.into(),
            },
        }
    }
}
