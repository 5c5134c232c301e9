//! Binding, removing and accepting on the sockets.

use super::{ClaimError, io_error};
use crate::config::{Group, SocketMode};
use crate::watched::watch;
use interprocess::local_socket::{GenericFilePath, ListenerOptions, ToFsName as _};
use interprocess::os::unix::local_socket::ListenerOptionsExt as _;
use interprocess::os::unix::uds_local_socket::Listener as LocalListener;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Nobody but the owner, until the socket has its group.
const CLOSED: u32 = 0o600;

/// Accepts the connections of clients, on whatever socket they come.
#[derive(Debug)]
pub struct ClientListener(AsyncFd<OwnedFd>);

impl ClientListener {
    /// Adopts a listening socket into the current tokio runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        watch(listener.into(), Interest::READABLE).map(Self)
    }

    /// The next connection. Cancelling the wait loses none.
    ///
    /// # Errors
    /// As `accept(2)`: for `EMFILE` and `ENFILE`, wait before the next attempt.
    pub async fn accept(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |listener: &OwnedFd| Ok(accept_with(listener, flags)?);
        self.0.async_io(Interest::READABLE, accept).await
    }
}

impl AsFd for ClientListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// A socket that we bound, as a name to remove.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    /// It stays where it is: another daemon listens on it.
    left: bool,
}

impl SocketFile {
    /// The file of a socket that a daemon before bound, if it still is at its path.
    pub(super) fn adopted(path: &Path, identity: (u64, u64)) -> Self {
        Self {
            path: path.to_owned(),
            identity,
            left: false,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode.
    pub(super) const fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Leaves it where it is.
    pub(super) const fn leave(&mut self) {
        self.left = true;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // If somebody put another there by force, it is not ours to remove.
        if !self.left
            && fs::symlink_metadata(&self.path).is_ok_and(|there| identity(&there) == self.identity)
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds `path`. The socket never has more permission than `mode`, whatever the umask.
pub(super) fn bind(
    path: &Path,
    mode: SocketMode,
    group: Option<&Group>,
) -> Result<(UnixListener, SocketFile), ClaimError> {
    let failed = || io_error("bind", path);
    let first = if group.is_some() {
        mode.bits() & CLOSED
    } else {
        mode.bits()
    };
    let name = path.to_fs_name::<GenericFilePath>().map_err(failed())?;
    let listener: LocalListener = ListenerOptions::new()
        .name(name)
        .mode(first)
        .reclaim_name(false) // `SocketFile` is the one that removes it
        .create_sync_as()
        .map_err(failed())?;
    let metadata = fs::symlink_metadata(path).map_err(failed())?;
    let file = SocketFile::adopted(path, identity(&metadata));
    permit(path, metadata.mode(), mode, group)?;
    Ok((listener.into(), file))
}

/// Gives an adopted socket the permissions of now.
pub(super) fn renew(
    path: &Path,
    mode: SocketMode,
    group: Option<&Group>,
) -> Result<(), ClaimError> {
    let metadata = fs::symlink_metadata(path).map_err(io_error("inspect", path))?;
    permit(path, metadata.mode(), mode, group)
}

fn permit(
    path: &Path,
    before: u32,
    mode: SocketMode,
    group: Option<&Group>,
) -> Result<(), ClaimError> {
    if let Some(group) = group {
        std::os::unix::fs::lchown(path, None, Some(group.gid))
            .map_err(io_error("give to its group", path))?;
    }
    if before & 0o777 != mode.bits() {
        // The umask takes from what was asked for, and a group comes before its permission.
        fs::set_permissions(path, Permissions::from_mode(mode.bits()))
            .map_err(io_error("set the mode of", path))?;
    }
    Ok(())
}

/// Removes the socket of a daemon that died. Only for the holder of the lock.
pub(super) fn remove_stale(path: &Path) -> Result<(), ClaimError> {
    let occupied = |reason, remedy| {
        Err(ClaimError::Occupied {
            path: path.to_owned(),
            reason,
            remedy,
        })
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("inspect", path)(error)),
        Ok(there) if !there.file_type().is_socket() => occupied(
            "what is there is not a socket",
            "remove it, or choose another --runtime-dir",
        ),
        Ok(_) => match listens(path) {
            Ok(false) => fs::remove_file(path).map_err(io_error("remove the stale socket", path)),
            // The lock is ours, so it is no mrmd: the socket unit of systemd, or a keeper.
            Ok(true) => occupied(
                "another process listens on it",
                "stop that (`systemctl stop mrmd.socket`, or end `mrm-keeper`), or choose another \
                 --runtime-dir",
            ),
            Err(error) => Err(io_error("test", path)(error)),
        },
    }
}

/// Whether anybody would accept a connection to `path`.
fn listens(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => Ok(false),
        // A full backlog, or a socket of another type: somebody has it.
        Ok(()) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::PROTOTYPE) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
