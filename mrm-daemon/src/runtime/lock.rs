//! The lock file, which makes a process the one daemon of a directory.

use super::directory::Directory;
use super::{ClaimError, LOCK_FILE, io_error};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How often a daemon that goes away just now may take the file from under us.
const CLAIM_ATTEMPTS_MAX: usize = 64;
/// Longest pid and its newline, and then some.
const PID_BYTES_MAX: u64 = 32;

/// An exclusive `flock` on a file that holds our pid.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    file: File,
}

/// Prepares the directory and takes its lock.
pub(super) fn claim(path: &Path) -> Result<(Directory, Lock), ClaimError> {
    let mut last = None;
    for _ in 0..CLAIM_ATTEMPTS_MAX {
        let directory = match Directory::prepare(path) {
            // It was there, and the last daemon removed it before we could look at it.
            Err(ClaimError::Io {
                step: "inspect",
                source,
                ..
            }) if source.kind() == io::ErrorKind::NotFound => {
                last = Some(source);
                continue;
            }
            prepared => prepared?,
        };
        match attempt(path) {
            Ok(Some(lock)) => return Ok((directory, lock)),
            Ok(None) => {}
            // The last daemon removed the directory after we had looked at it.
            Err(ClaimError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                last = Some(source);
            }
            Err(error) => return Err(error),
        }
    }
    let source = last.unwrap_or_else(|| io::Error::other("the file is replaced again and again"));
    Err(io_error("lock", &path.join(LOCK_FILE))(source))
}

/// `None` when the file was removed between opening and locking it.
fn attempt(directory: &Path) -> Result<Option<Lock>, ClaimError> {
    let path = directory.join(LOCK_FILE);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file: File = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o644))
        .map_err(|error| io_error("open", &path)(error.into()))?
        .into();
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let path = directory.to_owned();
            return Err(ClaimError::AlreadyRunning {
                path,
                pid: holder(&mut file),
            });
        }
        Err(error) => return Err(io_error("lock", &path)(error.into())),
    }
    // A daemon that stops removes its file under the lock: ours may be that one, which the next
    // daemon would not find.
    let ours = file.metadata().map_err(io_error("inspect", &path))?;
    match std::fs::symlink_metadata(&path) {
        Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("inspect", &path)(error)),
    }
    if ![0, rustix::process::geteuid().as_raw()].contains(&ours.uid()) {
        // In a directory like /tmp, whoever made the file could let a second daemon in.
        let reason = format!("its lock file belongs to uid {}", ours.uid());
        let remedy = "remove that file, or choose another --runtime-dir";
        return Err(ClaimError::Unfit {
            path: directory.to_owned(),
            reason,
            remedy,
        });
    }
    let mut lock = Lock { path, file };
    lock.write_pid()
        .map_err(io_error("write the pid to", &lock.path.clone()))?;
    Ok(Some(lock))
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(PID_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

impl Lock {
    /// Whether the path still leads to the locked file.
    pub(super) fn is_held(&self) -> bool {
        let there = std::fs::symlink_metadata(&self.path)
            .map(|there| there.ino())
            .ok();
        there == self.file.metadata().map(|ours| ours.ino()).ok()
    }

    fn write_pid(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        writeln!(self.file, "{}", std::process::id())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Emptied as well, so that a file that cannot be removed names nobody.
        let _ = self.file.set_len(0);
        if self.is_held() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
