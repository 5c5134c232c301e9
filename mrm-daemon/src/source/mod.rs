//! Where bytes come from: opened files, checked before anything is read from them.
//!
//! A file of the operator's catalogue is opened beneath its root ([`FileSource::registered`]); a
//! file that a client opened arrives as a descriptor ([`FileSource::foreign`]). Either way it is a
//! regular file by the time anybody reads it, and no open can block.
//!
//! ```
//! use mrm_daemon::source::{FileSource, Source};
//! use std::path::Path;
//!
//! let root = tempfile::tempdir()?;
//! std::fs::write(root.path().join("weights.bin"), b"abc")?;
//! let file = FileSource::registered(root.path(), Path::new("weights.bin"))?;
//! let mut bytes = [0; 3];
//! assert_eq!((file.read_at(0, &mut bytes)?, &bytes), (3, b"abc"));
//! assert_eq!(file.identity()?.bytes, 3);
//! assert!(FileSource::registered(root.path(), Path::new("../../etc/passwd")).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod beneath;
mod error;
mod file;
mod filesystem;
mod passed;
mod settle;
#[cfg(test)]
mod tests;

pub use beneath::{Resolution, RootDir};
pub use error::SourceError;
pub use file::FileSource;
pub use passed::{Closer, Held, PassedFd};
pub use settle::{SETTLE_MS, SETTLE_ROUNDS_MAX, settle};

use std::os::fd::BorrowedFd;

/// A quick alias of a content: as long as it stays, so do the bytes. Never an identity by itself.
///
/// The kernel does not touch the times of a file that is changed through a writable shared mapping
/// of tmpfs, so of such a file the alias proves less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device of the filesystem.
    pub dev: u64,
    /// The inode.
    pub ino: u64,
    /// The length.
    pub bytes: u64,
    /// When the content changed last, since the epoch.
    pub mtime_ns: i128,
    /// When content or inode changed last, since the epoch.
    pub ctime_ns: i128,
}

/// Something that bytes can be read from.
pub trait Source: Send + Sync {
    /// What it is called in messages.
    fn label(&self) -> &str;

    /// What the file is now: asks the kernel each time.
    ///
    /// # Errors
    /// When the kernel cannot say.
    fn identity(&self) -> Result<Identity, SourceError>;

    /// Reads at `offset` into `buf`; returns how many bytes, 0 only at the end of the file or for
    /// an empty `buf`.
    ///
    /// # Errors
    /// When the bytes cannot be read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, SourceError>;

    /// The descriptor, where there is one.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// [`SourceError::Changed`] when the file ends before that: its length was known to suffice.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        let mut done = 0;
        while done < buf.len() {
            match self.read_at(offset.saturating_add(done as u64), &mut buf[done..])? {
                0 => {
                    return Err(SourceError::Changed {
                        name: self.label().to_owned(),
                    });
                }
                n => done += n,
            }
        }
        Ok(())
    }
}
