//! A regular file, opened for reading.

use super::beneath::{Resolution, RootDir, kind_name};
use super::{Held, Identity, PassedFd, Source, SourceError, filesystem};
use crate::failpoint::{self, Point};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A regular file, opened for reading.
#[derive(Debug)]
pub struct FileSource {
    fd: OwnedFd,
    label: String,
    resolution: Resolution,
    /// Counts it for the user who passed it, for as long as it is open.
    _held: Option<Held>,
}

impl FileSource {
    /// Opens the file `rel` below `root`. Symbolic links are followed while they stay below.
    ///
    /// # Errors
    /// When it is missing, outside, not a regular file, or may not be read.
    pub fn registered(root: &Path, rel: &Path) -> Result<Self, SourceError> {
        Self::beneath(&RootDir::open(root)?, rel)
    }

    /// As [`registered`](Self::registered), with the root already open.
    ///
    /// # Errors
    /// The same.
    pub fn beneath(root: &RootDir, rel: &Path) -> Result<Self, SourceError> {
        let (fd, resolution) = root.open_file(rel)?;
        Ok(Self {
            fd,
            label: root.path().join(rel).display().to_string(),
            resolution,
            _held: None,
        })
    }

    /// Takes a descriptor that a client opened; `label` is what messages call it. Asks only what
    /// the kernel answers from memory, in this order: how it is open, what it is, where it lies.
    /// One that is refused is closed elsewhere: closing it could hang.
    ///
    /// # Errors
    /// When it is not open for reading, not a regular file, or on a filesystem that could hang.
    pub fn foreign(fd: PassedFd, label: &str) -> Result<Self, SourceError> {
        match fd.get() {
            Some(borrowed) => check_foreign(borrowed, label)?,
            None => return Err(taken(label)),
        }
        let (fd, held) = fd.into_known().ok_or_else(|| taken(label))?;
        Ok(Self {
            fd,
            label: label.to_owned(),
            resolution: Resolution::Kernel,
            _held: held,
        })
    }

    /// Who made sure that the path stayed below its root.
    #[must_use]
    pub const fn resolution(&self) -> Resolution {
        self.resolution
    }

    fn failed(&self, action: &'static str, errno: Errno) -> SourceError {
        SourceError::Unreadable {
            name: self.label.clone(),
            action,
            errno,
        }
    }
}

fn taken(label: &str) -> SourceError {
    SourceError::Unreadable {
        name: label.to_owned(),
        action: "find the descriptor of",
        errno: Errno::BADF,
    }
}

fn check_foreign(fd: BorrowedFd<'_>, label: &str) -> Result<(), SourceError> {
    let name = || label.to_owned();
    let failed = |action, errno| SourceError::Unreadable {
        name: name(),
        action,
        errno,
    };
    let flags = fcntl_getfl(fd).map_err(|errno| failed("ask about", errno))?;
    let how = if flags.contains(OFlags::PATH) {
        Some("as a path only (O_PATH)")
    } else {
        match flags & OFlags::RWMODE {
            OFlags::RDONLY | OFlags::RDWR => None,
            OFlags::WRONLY => Some("for writing only (O_WRONLY)"),
            _ => Some("for control only"),
        }
    };
    if let Some(how) = how {
        return Err(SourceError::NotReadable { name: name(), how });
    }
    let kind = filesystem::file_type(fd);
    if let Ok(kind) = kind
        && kind != FileType::RegularFile
    {
        return Err(SourceError::NotRegular {
            name: name(),
            kind: kind_name(kind),
        });
    }
    // FUSE refuses even a stat to whom its owner did not let in, so it comes before the error.
    let verdict = filesystem::check(fd).map_err(|errno| failed("ask the filesystem of", errno))?;
    if let Err(refused) = verdict {
        let (filesystem, magic) = (refused.name, refused.magic);
        return Err(SourceError::Filesystem {
            name: name(),
            filesystem,
            magic,
        });
    }
    kind.map_err(|errno| failed("stat", errno))?;
    Ok(())
}

impl Source for FileSource {
    fn label(&self) -> &str {
        &self.label
    }

    fn identity(&self) -> Result<Identity, SourceError> {
        let stat = fstat(&self.fd).map_err(|errno| self.failed("stat", errno))?;
        Ok(Identity {
            dev: stat.st_dev,
            ino: stat.st_ino,
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, SourceError> {
        if failpoint::fails(Point::Read) {
            return Err(self.failed("read", Errno::IO));
        }
        loop {
            match rustix::io::pread(&self.fd, &mut *buf, offset) {
                Ok(n) => return Ok(n),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed("read", errno)),
            }
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }
}

fn nanoseconds(seconds: impl Into<i128>, nanos: impl Into<i128>) -> i128 {
    seconds.into() * 1_000_000_000 + nanos.into()
}
