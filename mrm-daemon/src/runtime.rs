//! The runtime directory: who may serve in it, its sockets, and the service manager.
//!
//! Whoever holds the lock on `mrmd.lock` is the daemon of the directory. The lock dies with its
//! process, so that what a killed daemon left behind is taken over, and a living one is never
//! disturbed: sockets are removed and made only under the lock.
//!
//! ```
//! use mrm_daemon::config::SocketMode;
//! use mrm_daemon::runtime::{ClaimError, RuntimeDir};
//!
//! let parent = tempfile::tempdir()?;
//! let mut runtime = RuntimeDir::claim(&parent.path().join("mrm"))?;
//! let status = runtime.status_listener()?;
//! assert!(runtime.path().join("status.sock").exists());
//!
//! let second = RuntimeDir::claim(runtime.path());
//! assert!(matches!(second, Err(ClaimError::AlreadyRunning { pid: Some(_), .. })));
//! drop(runtime);
//! assert!(!parent.path().join("mrm").exists());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::config::{Group, SocketMode};
use crate::keeper::describe::{Listener, Which};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod activation;
mod directory;
mod fd_store;
mod lock;
mod notify;
mod open_files;
mod sockets;
mod takeover;
#[cfg(test)]
mod tests;

pub use activation::{Activated, ActivationError};
pub use fd_store::{FdStore, STORED_PREFIX};
pub use notify::Notifier;
pub use open_files::{OPEN_FILES_WANTED_MIN, OpenFiles};
pub use sockets::ClientListener;

/// How long a daemon may take to hand over.
const TAKEOVER_PATIENCE: Duration = Duration::from_secs(20);
/// Name of the socket of clients.
pub const CLIENT_SOCKET: &str = "mrmd.sock";
/// Name of the socket of the status server.
pub const STATUS_SOCKET: &str = "status.sock";
/// Name of the file whose lock makes a process the daemon.
pub const LOCK_FILE: &str = "mrmd.lock";
/// The status socket is open to all who reach the directory; its verbs ask for credentials.
const STATUS_SOCKET_MODE: SocketMode = SocketMode::DEFAULT;

/// A directory in which this process is the daemon.
///
/// Dropping it removes the sockets that it bound, the lock file, and the directory if it made it.
#[derive(Debug)]
pub struct RuntimeDir {
    // Fields drop in this order: sockets while the lock is held, the directory last.
    sockets: Vec<sockets::SocketFile>,
    lock: lock::Lock,
    directory: directory::Directory,
    activated: Activated,
    /// Bound by a daemon before.
    adopted: Adopted,
}

#[derive(Debug, Default)]
struct Adopted {
    clients: Option<UnixListener>,
    status: Option<UnixListener>,
}

/// Why a directory could not be claimed or a socket not be bound.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another daemon holds the lock.
    #[error("another mrmd{} serves in {}; stop it, or choose another --runtime-dir", by(*.pid), .path.display())]
    AlreadyRunning {
        /// The directory.
        path: PathBuf,
        /// Of the other daemon; `None` in the instant before it has written it.
        pid: Option<u32>,
    },
    /// The directory could be tampered with by others, or is none.
    #[error("{} cannot be the runtime directory: {reason}; {remedy}", .path.display())]
    Unfit {
        /// The directory.
        path: PathBuf,
        /// Which rule it breaks.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Something else is where a socket belongs.
    #[error("{} is occupied: {reason}; {remedy}", .path.display())]
    Occupied {
        /// The socket.
        path: PathBuf,
        /// By what.
        reason: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The system refused a step.
    #[error("cannot {step} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl RuntimeDir {
    /// Makes this process the daemon of `path`, which is made if its parent exists.
    ///
    /// # Errors
    /// When another daemon has it, or others could tamper with it.
    pub fn claim(path: &Path) -> Result<Self, ClaimError> {
        let (directory, lock) = lock::claim(path)?;
        Ok(Self {
            sockets: Vec::new(),
            lock,
            directory,
            activated: Activated::default(),
            adopted: Adopted::default(),
        })
    }

    /// As [`claim`](Self::claim), but a daemon that has the directory is asked to hand over, by
    /// SIGUSR2, and waited for.
    ///
    /// # Errors
    /// When it does not end in time, or as [`claim`](Self::claim).
    pub fn take_over(path: &Path) -> Result<Self, ClaimError> {
        let held = match Self::claim(path) {
            Err(held @ ClaimError::AlreadyRunning { .. }) => held,
            claimed => return claimed,
        };
        let ClaimError::AlreadyRunning { pid: Some(pid), .. } = held else {
            return Err(held);
        };
        takeover::replace(pid, TAKEOVER_PATIENCE).map_err(|source| ClaimError::Io {
            step: "take over from the daemon of",
            path: path.to_owned(),
            source,
        })?;
        Self::claim(path)
    }

    /// Serves on a socket that a daemon before bound in this directory and its keeper kept, so that
    /// no connection is refused. From here on it is as if bound here. An adopted entry has checked
    /// out: the file at its path is the socket's.
    ///
    /// # Errors
    /// When it is a socket of another directory.
    pub fn adopt(&mut self, listener: &Listener, socket: OwnedFd) -> Result<(), ClaimError> {
        let (path, place) = match listener.which {
            Which::Client => (self.path().join(CLIENT_SOCKET), &mut self.adopted.clients),
            Which::Status => (self.path().join(STATUS_SOCKET), &mut self.adopted.status),
        };
        if path != Path::new(&listener.path) {
            return Err(ClaimError::Occupied {
                path: PathBuf::from(&listener.path),
                reason: "a keeper gave it back, but it is not in this runtime directory",
                remedy: "serve where the daemon before did",
            });
        }
        *place = Some(UnixListener::from(socket));
        let identity = (listener.dev, listener.ino);
        self.sockets
            .push(sockets::SocketFile::adopted(&path, identity));
        Ok(())
    }

    /// What a keeper is to be told of a socket: `None` when none was bound here, or a service
    /// manager bound it and keeps it itself.
    #[must_use]
    pub fn bound(&self, which: Which) -> Option<Listener> {
        let path = self.path().join(match which {
            Which::Client => CLIENT_SOCKET,
            Which::Status => STATUS_SOCKET,
        });
        let file = self.sockets.iter().find(|file| file.path() == path)?;
        let (dev, ino) = file.identity();
        let path = path.to_str()?.to_owned();
        Some(Listener {
            which,
            path,
            dev,
            ino,
        })
    }

    /// Gives up the lock, and leaves the sockets where they are: another daemon listens on them.
    pub fn hand_over(mut self) {
        self.sockets.iter_mut().for_each(sockets::SocketFile::leave);
    }

    /// Serves on the sockets of a service manager where there are some.
    #[must_use]
    pub fn with_activated(mut self, activated: Activated) -> Self {
        self.activated = activated;
        self
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The listener of clients: the service manager's, or else one bound here.
    ///
    /// Needs the context of a tokio runtime.
    ///
    /// # Errors
    /// When the socket is occupied, or the system refuses.
    pub fn client_listener(
        &mut self,
        mode: SocketMode,
        group: Option<&Group>,
    ) -> Result<ClientListener, ClaimError> {
        let path = self.path().join(CLIENT_SOCKET);
        let listener = match self.activated.clients.take() {
            Some(listener) => {
                tracing::info!(
                    "clients connect by the service manager's socket: \
                     its unit decides mode and group, not socket_mode and socket_group"
                );
                listener
            }
            None => {
                if let Some(group) = group {
                    self.directory.admit(group)?;
                }
                match self.adopted.clients.take() {
                    Some(listener) => {
                        sockets::renew(&path, mode, group)?;
                        listener
                    }
                    None => self.bind(&path, mode, group)?,
                }
            }
        };
        ClientListener::new(listener).map_err(io_error("listen on", &path))
    }

    /// The listener of the status server, not blocking, for any runtime to adopt.
    ///
    /// # Errors
    /// When the socket is occupied, or the system refuses.
    pub fn status_listener(&mut self) -> Result<UnixListener, ClaimError> {
        let path = self.path().join(STATUS_SOCKET);
        let passed = self.activated.status.take();
        let listener = match passed.or_else(|| self.adopted.status.take()) {
            Some(listener) => listener,
            None => self.bind(&path, STATUS_SOCKET_MODE, None)?,
        };
        listener
            .set_nonblocking(true)
            .map_err(io_error("listen on", &path))?;
        Ok(listener)
    }

    fn bind(
        &mut self,
        path: &Path,
        mode: SocketMode,
        group: Option<&Group>,
    ) -> Result<UnixListener, ClaimError> {
        debug_assert!(
            self.lock.is_held(),
            "sockets are touched under the lock only"
        );
        sockets::remove_stale(path)?;
        let (listener, file) = sockets::bind(path, mode, group)?;
        self.sockets.push(file);
        Ok(listener)
    }
}

fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ClaimError {
    let path = path.to_owned();
    move |source| ClaimError::Io { step, path, source }
}

fn by(pid: Option<u32>) -> String {
    pid.map_or(String::new(), |pid| format!(" (pid {pid})"))
}
