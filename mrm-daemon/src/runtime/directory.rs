//! The directory itself: made or checked.

use super::{ClaimError, io_error};
use crate::config::Group;
use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const WORLD_WRITABLE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// A directory that nobody but us and root can tamper with.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    made: bool,
}

impl Directory {
    /// Makes `path`, or checks it when it is there.
    pub(super) fn prepare(path: &Path) -> Result<Self, ClaimError> {
        let root = rustix::process::geteuid().is_root();
        let mode = if root { 0o755 } else { 0o700 };
        match DirBuilder::new().mode(mode).create(path) {
            Ok(()) => {
                let made = Self {
                    path: path.to_owned(),
                    made: true,
                };
                // The umask may have taken bits from what mkdir was asked for.
                made.set_mode(mode)?;
                Ok(made)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // Not followed: a link could be turned elsewhere after it was checked.
                let metadata = fs::symlink_metadata(path).map_err(io_error("inspect", path))?;
                check(path, &metadata, rustix::process::geteuid().as_raw())?;
                Ok(Self {
                    path: path.to_owned(),
                    made: false,
                })
            }
            Err(error) => Err(io_error("make the runtime directory", path)(error)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets `group` reach the sockets, where the directory was made for its owner alone.
    pub(super) fn admit(&self, group: &Group) -> Result<(), ClaimError> {
        if !self.made || rustix::process::geteuid().is_root() {
            return Ok(());
        }
        std::os::unix::fs::chown(&self.path, None, Some(group.gid))
            .map_err(io_error("give the group access to", &self.path))?;
        self.set_mode(0o710)
    }

    fn set_mode(&self, mode: u32) -> Result<(), ClaimError> {
        fs::set_permissions(&self.path, Permissions::from_mode(mode))
            .map_err(io_error("set the mode of", &self.path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.made {
            // Not empty when somebody put something beside the sockets: then it stays.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

pub(super) fn check(path: &Path, metadata: &Metadata, uid: u32) -> Result<(), ClaimError> {
    let unfit = |reason: String, remedy| {
        Err(ClaimError::Unfit {
            path: path.to_owned(),
            reason,
            remedy,
        })
    };
    if metadata.file_type().is_symlink() {
        return unfit(
            "it is a symbolic link".into(),
            "name the directory that it points to",
        );
    }
    if !metadata.is_dir() {
        return unfit(
            "it is not a directory".into(),
            "remove it, or name a directory",
        );
    }
    if metadata.uid() != uid && metadata.uid() != 0 {
        let reason = format!(
            "it belongs to uid {}, and this is uid {uid}",
            metadata.uid()
        );
        return unfit(reason, "give it to the daemon's user, or name another");
    }
    if metadata.mode() & WORLD_WRITABLE != 0 && metadata.mode() & STICKY == 0 {
        let reason = format!(
            "everybody may replace what is in it (mode {:04o})",
            metadata.mode() & 0o7777
        );
        return unfit(
            reason,
            "remove the write permission of others with chmod o-w",
        );
    }
    Ok(())
}
