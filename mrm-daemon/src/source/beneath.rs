//! Opening what is below a root, and nothing else.

use super::SourceError;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat2};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

/// Flags of every open here: none may block, change a terminal, or outlive an `exec`.
const OPEN: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOCTTY);
/// `openat2` gives up with `EAGAIN` when a rename races with it.
const RETRIES_MAX: u32 = 16;

/// Who made sure that a path stays below its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The kernel, by `openat2(RESOLVE_BENEATH)`.
    Kernel,
    /// We did, by comparing real paths: a slow path that somebody who can rename may race with.
    Walked,
}

/// A directory that everything is opened below. Symbolic links are followed while they stay below
/// it; absolute links count as outside.
#[derive(Debug)]
pub struct RootDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl RootDir {
    /// Opens the directory `path`.
    ///
    /// # Errors
    /// When it is not there, not a directory, or may not be read.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let name = path.display().to_string();
        match open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self {
                fd,
                path: path.to_owned(),
            }),
            Err(Errno::NOENT) => Err(SourceError::Missing {
                name,
                root: path.parent().unwrap_or(path).to_owned(),
            }),
            Err(errno) => Err(SourceError::Unreadable {
                name,
                action: "open root",
                errno,
            }),
        }
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the regular file `rel` for reading.
    pub(super) fn open_file(&self, rel: &Path) -> Result<(OwnedFd, Resolution), SourceError> {
        // Looked at before it is opened: opening a device can already have an effect.
        let (peek, _) = self.open_beneath(rel, OFlags::PATH | OFlags::CLOEXEC)?;
        let seen = self.regular(&peek, rel)?;
        let (fd, resolution) = self.open_beneath(rel, OPEN)?;
        let opened = self.regular(&fd, rel)?;
        if (seen.st_dev, seen.st_ino) != (opened.st_dev, opened.st_ino) {
            return Err(SourceError::Changed {
                name: rel.display().to_string(),
            });
        }
        Ok((fd, resolution))
    }

    /// Opens the directory `rel` (the root itself when empty) for listing.
    ///
    /// # Errors
    /// When it is no directory, not there, outside, or may not be read.
    pub fn open_dir(&self, rel: &Path) -> Result<OwnedFd, SourceError> {
        let rel = if rel.as_os_str().is_empty() {
            Path::new(".")
        } else {
            rel
        };
        self.open_beneath(rel, OPEN | OFlags::DIRECTORY)
            .map(|(fd, _)| fd)
    }

    /// What `rel` is, with links followed as far as they stay below the root.
    ///
    /// # Errors
    /// As [`open_dir`](Self::open_dir).
    pub fn file_type(&self, rel: &Path) -> Result<FileType, SourceError> {
        let rel = if rel.as_os_str().is_empty() {
            Path::new(".")
        } else {
            rel
        };
        let (fd, _) = self.open_beneath(rel, OFlags::PATH | OFlags::CLOEXEC)?;
        let stat = fstat(&fd).map_err(|errno| self.failed(rel, "stat", errno))?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }

    fn regular(&self, fd: &OwnedFd, rel: &Path) -> Result<Stat, SourceError> {
        let stat = fstat(fd).map_err(|errno| self.failed(rel, "stat", errno))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::RegularFile {
            return Ok(stat);
        }
        Err(SourceError::NotRegular {
            name: rel.display().to_string(),
            kind: kind_name(kind),
        })
    }

    fn open_beneath(
        &self,
        rel: &Path,
        flags: OFlags,
    ) -> Result<(OwnedFd, Resolution), SourceError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..RETRIES_MAX {
            match openat2(&self.fd, rel, flags, Mode::empty(), resolve) {
                Ok(fd) => return Ok((fd, Resolution::Kernel)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Kernels before 5.6, and sandboxes that do not know the call.
                Err(Errno::NOSYS) => {
                    return self
                        .open_walked(rel, flags)
                        .map(|fd| (fd, Resolution::Walked));
                }
                Err(errno) => return Err(self.failed(rel, "open", errno)),
            }
        }
        Err(self.failed(rel, "open", Errno::AGAIN))
    }

    /// The same without the kernel's help: compares real paths before and after.
    pub(super) fn open_walked(&self, rel: &Path, flags: OFlags) -> Result<OwnedFd, SourceError> {
        let outside = || SourceError::OutsideRoot {
            name: rel.display().to_string(),
            root: self.path.clone(),
        };
        let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if !rel.components().all(plain) {
            return Err(outside());
        }
        let real = |path: &Path| {
            let error = |e: std::io::Error| {
                Errno::from_io_error(&e)
                    .map_or_else(outside, |errno| self.failed(rel, "resolve", errno))
            };
            path.canonicalize().map_err(error)
        };
        let (root, target) = (real(&self.path)?, real(&self.path.join(rel))?);
        if !target.starts_with(&root) {
            return Err(outside());
        }
        let fd = rustix::fs::openat(CWD, &target, flags | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|errno| self.failed(rel, "open", errno))?;
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let opened = std::fs::read_link(link).map_err(|_| outside())?;
        if opened.starts_with(&root) {
            Ok(fd)
        } else {
            Err(outside())
        }
    }

    fn failed(&self, rel: &Path, action: &'static str, errno: Errno) -> SourceError {
        let name = rel.display().to_string();
        match errno {
            Errno::NOENT | Errno::NOTDIR => SourceError::Missing {
                name,
                root: self.path.clone(),
            },
            Errno::XDEV => SourceError::OutsideRoot {
                name,
                root: self.path.clone(),
            },
            errno => SourceError::Unreadable {
                name,
                action,
                errno,
            },
        }
    }
}

/// What a file that is not regular is called.
pub(super) const fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "regular file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "file of unknown type",
    }
}
